"""From events to epsilon: the privacy loss distribution as reference, Renyi differential privacy as a fast upper bound.

The reference is dp-accounting's PLD accountant (Meiser & Mohammadi 2018; Koskela et al. 2020; Doroshenko et al. 2022,
"connect the dots"), pessimistic in every rounding, for adding or removing one unit. It composes events whose parameters
were fixed beforehand; where noise was chosen from what had been released, see ``privacy.accounting.filters``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from privacy.accounting.events import Event, GaussianEvent, dp_event, merged
from privacy.mechanisms.errors import PrivacyError

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Accountant: TypeAlias = Literal["pld", "rdp"]

FINE: Final = 1e-4
"""Discretisation of privacy loss with which figures are reported."""
COARSE: Final = 1e-3
"""Discretisation for decisions while training goes on: quicker, and never below the finer one."""

# More different amounts of noise than this are rounded down to a geometric grid: each costs a convolution.
_DISTINCT: Final = 128
_RATIO: Final = 1.004

# Orders of the Renyi divergence. Nearer to 1 its series converges badly for large sampling rates.
_ORDERS: Final = (
    [1 + step / 10 for step in range(5, 100)] + [float(order) for order in range(11, 64)] + [128.0, 256.0, 512.0]
)


def epsilon(events: Sequence[Event], delta: float, accountant: Accountant = "pld", *, interval: float = FINE) -> float:
    """The epsilon that these events have cost together, at ``delta``.

    Formal Guarantees:
        The composition of the events is (epsilon, delta)-differentially private for adding or removing one unit,
        provided that their parameters didn't depend on the data. Both accountants only ever round up.

    Example:
        >>> events = [GaussianEvent(noise_multiplier=4.0, sampling_rate=0.01, count=10_000)]
        >>> round(epsilon(events, 1e-5, "rdp"), 3)
        1.036

    Args:
        events: In any order; none cost nothing.
        delta: In (0, 1).
        accountant: "pld", or "rdp" for a quick upper bound, 8 to 65 % higher.
        interval: Discretisation of the privacy loss, for "pld".

    Raises:
        PrivacyError: "delta-invalid".
    """
    if not 0 < delta < 1:
        raise PrivacyError("delta-invalid", f"delta is {delta}; it must lie between 0 and 1")
    if not events:
        return 0.0
    return _rdp_epsilon(events, delta) if accountant == "rdp" else _pld_epsilon(events, delta, interval)


class Composed:
    """Events as they come, and what they cost so far; what was computed once is kept.

    >>> spent = Composed()
    >>> spent.add(GaussianEvent(noise_multiplier=30.0, count=100))
    >>> round(spent.epsilon(1e-5), 2)
    1.27
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._events: list[Event] = merged(list(events))
        self._known: dict[tuple[float, float], float] = {}

    @property
    def events(self) -> list[Event]:
        """All so far, equal ones counted together."""
        return list(self._events)

    def add(self, *events: Event) -> None:
        """Further releases."""
        self._events = merged([*self._events, *events])
        self._known.clear()

    def epsilon(self, delta: float, *, interval: float = COARSE) -> float:
        """What all of them cost."""
        key = (delta, interval)
        if key not in self._known:
            self._known[key] = epsilon(self._events, delta, interval=interval)
        return self._known[key]

    def with_more(self, events: Sequence[Event], delta: float, *, interval: float = COARSE) -> float:
        """What they would cost with ``events`` added."""
        return epsilon(merged([*self._events, *events]), delta, interval=interval)


def _rdp_epsilon(events: Sequence[Event], delta: float) -> float:
    from dp_accounting.rdp import RdpAccountant

    return float(RdpAccountant(orders=_ORDERS).compose(dp_event(events)).get_epsilon(delta))


def _pld_epsilon(events: Sequence[Event], delta: float, interval: float) -> float:
    precision = 0.0
    sampled = []
    for event in merged(events):
        if event.sampling_rate == 1.0:
            # Gaussian releases of everybody are one Gaussian release: the inverse variances add up.
            precision += event.count / event.noise_multiplier**2
        else:
            sampled.append(event)
    if not sampled:
        return _gaussian_epsilon(1 / math.sqrt(precision), delta)
    total = None
    if precision:
        total = _base(1 / math.sqrt(precision), 1.0, interval)
    for event in _few(sampled):
        part = _repeated(event.noise_multiplier, event.sampling_rate, event.count, interval)
        total = part if total is None else total.compose(part)
    assert total is not None
    return max(0.0, float(total.get_epsilon_for_delta(delta)))


def _gaussian_epsilon(sigma: float, delta: float) -> float:
    """Exactly (Balle & Wang 2018, Theorem 8)."""
    import dp_accounting as dp

    return max(0.0, float(dp.get_epsilon_gaussian(sigma, delta)))


def _few(events: Sequence[Event]) -> list[Event]:
    """Few different amounts of noise: many are rounded down, which can only raise epsilon (by about 0.6 %)."""
    if len(events) <= _DISTINCT:
        return list(events)
    step = math.log(_RATIO)
    rounded = []
    for event in events:
        sigma = math.exp(math.floor(math.log(event.noise_multiplier) / step) * step)
        sigma = min(sigma, event.noise_multiplier)
        rounded.append(GaussianEvent(noise_multiplier=sigma, sampling_rate=event.sampling_rate, count=event.count))
    return merged(rounded)


@functools.lru_cache(maxsize=256)
def _base(sigma: float, rate: float, interval: float) -> PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=sigma, sampling_prob=rate, value_discretization_interval=interval
    )


@functools.lru_cache(maxsize=64)
def _repeated(sigma: float, rate: float, count: int, interval: float) -> PrivacyLossDistribution:
    base = _base(sigma, rate, interval)
    return base if count == 1 else base.self_compose(count)
