"""Epsilon of a ledger by accountants that have nothing in common but the events."""

from __future__ import annotations

from typing import Any, Final

from privacy.accounting.accountant import FINE, epsilon
from privacy.accounting.events import Event
from privacy.ledger import Book

_PRV_ERROR: Final = 0.005
_AGREEMENT: Final = 0.003
_RELATIVE: Final = 0.01  # many different amounts of noise are rounded to a grid


def recompute(book: Book, dataset: str) -> dict[str, Any]:
    """What a data set has paid by our PLD, by dp-accounting's, by RDP, and by Opacus's PRV where that can tell.

    Returns:
        The figures, and whether they agree: the two PLDs with each other, PLD at most RDP, within PRV's error of PRV.
        "prv" is None without Opacus, and where its accountant gives up on these events.
    """
    balance = book.balance(dataset)
    events = list(balance.events)
    pld = epsilon(events, balance.delta, interval=FINE)
    reference = epsilon(events, balance.delta, "reference", interval=FINE)
    rdp = epsilon(events, balance.delta, "rdp")
    prv = _prv(events, balance.delta)
    close = abs(reference - pld) <= max(_AGREEMENT, _RELATIVE * pld)
    agree = close and pld <= rdp + _AGREEMENT and (prv is None or abs(prv - pld) <= _PRV_ERROR + _AGREEMENT)
    figures = {"pld": pld, "reference": reference, "rdp": rdp, "prv": prv}
    return {"dataset": dataset, "delta": balance.delta, **figures, "agree": agree}


def _prv(events: list[Event], delta: float) -> float | None:
    """By numerical composition of privacy random variables (Gopi et al. 2021), in Opacus's hands."""
    if not events:
        return 0.0
    try:
        from opacus.accountants import PRVAccountant
    except ImportError:
        return None
    second = PRVAccountant()
    second.history = [(event.noise_multiplier, event.sampling_rate, event.count) for event in events]
    try:
        return float(second.get_epsilon(delta=delta, eps_error=_PRV_ERROR))
    except RuntimeError:  # "Discrete mean differs significantly from continuous mean": it can't do every list
        return None
