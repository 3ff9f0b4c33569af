"""What a site tells the coordinator about its budget: signed, and recomputable by whoever reads it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Final

from privacy.accounting.accountant import COARSE, epsilon
from privacy.accounting.events import Event, GaussianEvent, Unit, merged, parse_event
from privacy.ledger.balance import Balance
from privacy.ledger.entries import LedgerError
from privacy.secure_aggregation.keys import SigningKey, verify
from privacy.transcript import TranscriptError, decode, encode

FORMAT: Final = "fedloom/budget-receipt/1"
MAX_RECEIPT_BYTES: Final = 1 << 16
MAX_EVENTS: Final = 256
"""So many different events fit into a receipt; a ledger with more shows an upper bound of them."""

# Ratios of neighbouring noise multipliers in such a receipt: 0.4 % less noise costs less than 1 % of epsilon.
_GRIDS: Final = (1.004, 1.02, 1.1, 1.3)
# Up to so many different events are accounted for exactly when a receipt is read.
_EXACT: Final = 16
# So many different sampling rates are kept as they are.
_RATES: Final = 4
_FIELDS: Final = frozenset(
    {"format", "site", "run", "round", "records", "unit", "budget", "delta", "events", "lines", "head", "at"}
)


@dataclasses.dataclass(frozen=True)
class SignedReceipt:
    """A receipt's canonical bytes and the site's signature over them."""

    body: bytes
    signature: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Receipt:
    """A site's privacy after a round. The data set's name stays at the site.

    Attributes:
        site: Who says so.
        run_id: The run.
        round: After which it was written.
        records: Of the data set; public.
        unit: Of privacy.
        budget: Epsilon that the site allows its data set, over all runs.
        delta: Of all figures.
        events: All that the data set has paid so far, for any run; where they are more than a receipt holds, events
            that cost at least as much, within 1 % where their noise spans a factor of 2.5.
        lines: Of the site's ledger.
        head: Hash of the last line.
        at_s: Seconds since the epoch, by the site's clock.
    """

    site: str
    run_id: str
    round: int
    records: int
    unit: Unit
    budget: float
    delta: float
    events: tuple[Event, ...]
    lines: int
    head: bytes
    at_s: float

    @property
    def spent(self) -> float:
        """Epsilon that has been spent."""
        return _spent(self.events, self.delta)

    @property
    def left(self) -> float:
        """Epsilon that is left."""
        return max(0.0, self.budget - self.spent)

    @classmethod
    def of(
        cls, balance: Balance, *, site: str, run_id: str, round_number: int, lines: int, head: bytes, at_s: float
    ) -> Receipt:
        """The receipt of a balance.

        Formal Guarantees:
            Epsilon that is recomputed from ``events`` is at least that of the ledger.
        """
        return cls(
            site=site,
            run_id=run_id,
            round=round_number,
            records=balance.records,
            unit=balance.unit,
            budget=balance.epsilon,
            delta=balance.delta,
            events=tuple(_few(balance.events)),
            lines=lines,
            head=head,
            at_s=at_s,
        )

    def sign(self, key: SigningKey) -> SignedReceipt:
        """Sign it."""
        body = encode(
            {
                "format": FORMAT,
                "site": self.site,
                "run": self.run_id,
                "round": self.round,
                "records": self.records,
                "unit": str(self.unit),
                "budget": self.budget.hex(),
                "delta": self.delta.hex(),
                "events": [event.plain() for event in self.events],
                "lines": self.lines,
                "head": self.head,
                "at": self.at_s.hex(),
            }
        )
        return SignedReceipt(body, key.sign(body))

    @classmethod
    def opened(cls, signed: SignedReceipt, public: bytes, site: str) -> Receipt:
        """Check a receipt's signature and read it.

        Args:
            signed: As received.
            public: The site's key, as the federation's root certifies it.
            site: From whom it came.

        Raises:
            LedgerError: "receipt-invalid".
        """
        if len(signed.body) > MAX_RECEIPT_BYTES or not verify(public, signed.signature, signed.body):
            raise _invalid(site, "it isn't signed by that site")
        try:
            table = decode(signed.body)
        except TranscriptError as error:
            raise _invalid(site, error.message) from None
        if not isinstance(table, dict) or set(table) != _FIELDS or table["format"] != FORMAT or table["site"] != site:
            raise _invalid(site, "it has another form")
        try:
            return cls(
                site=site,
                run_id=_text(table["run"]),
                round=_natural(table["round"]),
                records=_natural(table["records"]),
                unit=Unit(table["unit"]),
                budget=_positive(table["budget"]),
                delta=_delta(table["delta"]),
                events=_events(table["events"]),
                lines=_natural(table["lines"]),
                head=_hash(table["head"]),
                at_s=_finite(table["at"]),
            )
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
            raise _invalid(site, str(error)) from None


@functools.lru_cache(maxsize=1024)
def _spent(events: tuple[Event, ...], delta: float) -> float:
    """Epsilon of a receipt's events, once for all who look at it; of many different ones the quick upper bound."""
    if len(events) > _EXACT:
        return epsilon(events, delta, "rdp")
    return epsilon(events, delta, interval=COARSE)


def _events(plain: Any) -> tuple[Event, ...]:
    """A peer's events: no more of them, and none more extreme, than an accountant gets through in a second."""
    if len(plain) > MAX_EVENTS:
        raise ValueError(f"it names {len(plain)} events; {MAX_EVENTS} are possible")
    events = tuple(parse_event(item) for item in plain)
    for event in events:
        noise, rate = event.noise_multiplier, event.sampling_rate
        if not 1e-3 <= noise <= 1e6 or rate < 1e-9 or event.count > 1 << 31:
            raise ValueError(f"an event is out of range: noise {noise:g}, rate {rate:g}, count {event.count}")
    return events


def _few(events: Sequence[Event]) -> Sequence[Event]:
    """Few different events that cost at least as much: noise is rounded down, sampling rates are rounded up."""
    fewer = events
    few_rates = len({event.sampling_rate for event in events}) <= _RATES
    for grid in _GRIDS:
        if len(fewer) <= MAX_EVENTS:
            break
        fewer = merged(
            [
                GaussianEvent(
                    noise_multiplier=_below(event.noise_multiplier, grid),
                    sampling_rate=event.sampling_rate
                    if few_rates
                    else min(1.0, 1.0 / _below(1.0 / event.sampling_rate, grid)),
                    count=event.count,
                )
                for event in events
            ]
        )
    return fewer


def _below(value: float, grid: float) -> float:
    """The next power of ``grid`` below."""
    return min(value, math.exp(math.floor(math.log(value) / math.log(grid)) * math.log(grid)))


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 255:
        raise ValueError("a name isn't one")
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise ValueError("a number is out of range")
    return value


def _finite(value: Any) -> float:
    number = float.fromhex(value)
    if not math.isfinite(number):
        raise ValueError("a number is out of range")
    return number


def _positive(value: Any) -> float:
    number = _finite(value)
    if number <= 0:
        raise ValueError("a number is out of range")
    return number


def _delta(value: Any) -> float:
    number = _positive(value)
    if number >= 1:
        raise ValueError("delta is out of range")
    return number


def _hash(value: Any) -> bytes:
    if not isinstance(value, bytes) or len(value) != 32:
        raise ValueError("a hash isn't one")
    return value


def _invalid(site: str, what: str) -> LedgerError:
    return LedgerError("receipt-invalid", f"the budget receipt of {site} can't be used: {what}")
