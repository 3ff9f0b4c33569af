"""What a site tells the coordinator about its budget: signed, and recomputable by whoever reads it."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from privacy.accounting.accountant import COARSE, epsilon
from privacy.accounting.events import Event, Unit, parse_event
from privacy.ledger.book import Balance
from privacy.ledger.entries import LedgerError
from privacy.secure_aggregation.keys import SigningKey, verify
from privacy.transcript import TranscriptError, decode, encode

FORMAT: Final = "fedloom/budget-receipt/1"
MAX_RECEIPT_BYTES: Final = 1 << 16
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
        events: All that the data set has paid so far, for any run.
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
        return epsilon(self.events, self.delta, interval=COARSE)

    @property
    def left(self) -> float:
        """Epsilon that is left."""
        return max(0.0, self.budget - self.spent)

    @classmethod
    def of(
        cls, balance: Balance, *, site: str, run_id: str, round_number: int, lines: int, head: bytes, at_s: float
    ) -> Receipt:
        """The receipt of a balance."""
        return cls(
            site=site,
            run_id=run_id,
            round=round_number,
            records=balance.records,
            unit=balance.unit,
            budget=balance.epsilon,
            delta=balance.delta,
            events=balance.events,
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
                delta=_positive(table["delta"]),
                events=tuple(parse_event(item) for item in table["events"]),
                lines=_natural(table["lines"]),
                head=bytes(table["head"]),
                at_s=float.fromhex(table["at"]),
            )
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise _invalid(site, str(error)) from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 255:
        raise ValueError("a name isn't one")
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise ValueError("a number is out of range")
    return value


def _positive(value: Any) -> float:
    number = float.fromhex(value)
    if not 0 < number < float("inf"):
        raise ValueError("a number is out of range")
    return number


def _invalid(site: str, what: str) -> LedgerError:
    return LedgerError("receipt-invalid", f"the budget receipt of {site} can't be used: {what}")
