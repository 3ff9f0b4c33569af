"""Receipts: whoever reads one can check who wrote it and compute epsilon anew."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from privacy.accounting import GaussianEvent, Unit, epsilon
from privacy.ledger import Balance, Book, LedgerError, Receipt, SignedReceipt
from privacy.ledger.receipts import MAX_EVENTS, MAX_RECEIPT_BYTES
from privacy.secure_aggregation.keys import SigningKey
from privacy.transcript import decode, encode

KEY = SigningKey(bytes(range(32)))
EVENTS = (
    GaussianEvent(noise_multiplier=2.0, sampling_rate=0.1, count=3),
    GaussianEvent(noise_multiplier=30.0, count=2),
)


def receipt(events: tuple[GaussianEvent, ...] = EVENTS, budget: float = 2.0) -> Receipt:
    balance = Balance(
        dataset="scans",
        records=1_000,
        unit=Unit.RECORD,
        epsilon=budget,
        delta=1e-6,
        spent=0.0,
        committed=0.0,
        left=budget,
        events=events,
        tasks=1,
    )
    return Receipt.of(balance, site="ward-a", run_id="flu-1", round_number=3, lines=9, head=bytes(32), at_s=7.0)


def changed(**changes: Any) -> SignedReceipt:
    """A receipt that the site itself has signed, with other fields."""
    body = encode({**dict(decode(receipt().sign(KEY).body)), **changes})  # type: ignore[call-overload]
    return SignedReceipt(body, KEY.sign(body))


def test_a_receipt_can_be_checked_and_recomputed() -> None:
    made = receipt()
    read = Receipt.opened(made.sign(KEY), KEY.public, "ward-a")
    assert read == made
    assert read.spent == epsilon(EVENTS, 1e-6, interval=1e-3)
    assert read.left == pytest.approx(2.0 - read.spent)


def test_nothing_is_left_of_an_overspent_budget() -> None:
    assert receipt(budget=0.01).left == 0.0


def test_the_name_of_the_data_set_stays_at_the_site() -> None:
    assert b"scans" not in receipt().sign(KEY).body


def test_another_key_another_site_or_another_byte() -> None:
    signed = receipt().sign(KEY)
    for item, public, site in (
        (signed, SigningKey.generate().public, "ward-a"),
        (signed, KEY.public, "ward-b"),
        (SignedReceipt(signed.body + b"x", signed.signature), KEY.public, "ward-a"),
        (SignedReceipt(signed.body, bytes(64)), KEY.public, "ward-a"),
        (SignedReceipt(b"x", KEY.sign(b"x")), KEY.public, "ward-a"),
    ):
        with pytest.raises(LedgerError) as caught:
            Receipt.opened(item, public, site)
        assert caught.value.code == "receipt-invalid"
        assert site in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {"round": -1},
        {"round": True},
        {"round": 1 << 60},
        {"unit": "house"},
        {"unit": 3},
        {"budget": "-0x1p0"},
        {"budget": "nan"},
        {"budget": "0x1p99999"},
        {"budget": 2.0},
        {"delta": "0x1p0"},
        {"delta": "0x0p0"},
        {"events": [{}]},
        {"events": 3},
        {"events": ["gaussian/1"]},
        {"more": 1},
        {"run": 3},
        {"run": "x" * 256},
        {"head": bytes(31)},
        {"head": 1 << 45},  # as a count of bytes, it would fill the coordinator's memory
        {"head": None},
        {"at": "inf"},
        {"at": 0},
        {"format": "fedloom/budget-receipt/2"},
    ],
    ids=str,
)
def test_what_a_dishonest_site_may_sign(changes: dict[str, Any]) -> None:
    with pytest.raises(LedgerError) as caught:
        Receipt.opened(changed(**changes), KEY.public, "ward-a")
    assert caught.value.code == "receipt-invalid"


@pytest.mark.parametrize("rates", [1, 40])
def test_more_events_than_a_receipt_holds_become_an_upper_bound(rates: int) -> None:
    """A schedule whose noise changes at every step: the receipt stays small, and never says less than the ledger."""
    events = tuple(
        GaussianEvent(noise_multiplier=2.0 + number * 1e-2, sampling_rate=0.01 * (1 + number % rates / 200))
        for number in range(300)
    )
    made = receipt(events)
    signed = made.sign(KEY)
    assert len(signed.body) <= MAX_RECEIPT_BYTES
    assert len(made.events) <= MAX_EVENTS
    assert sum(event.count for event in made.events) == 300
    read = Receipt.opened(signed, KEY.public, "ward-a")
    exact = epsilon(events, 1e-6, "rdp")  # this accountant takes every event as it is
    shown = epsilon(read.events, 1e-6, "rdp")
    assert exact <= shown <= exact * (1.01 if rates == 1 else 1.15)


@pytest.mark.parametrize(
    "event",
    [
        GaussianEvent(noise_multiplier=1.0, sampling_rate=5e-324),
        GaussianEvent(noise_multiplier=1e300),
        GaussianEvent(noise_multiplier=5e-324, sampling_rate=0.5),
        GaussianEvent(noise_multiplier=1e200, sampling_rate=0.5, count=1 << 48),
    ],
)
def test_an_event_that_would_keep_an_accountant_busy_for_ever_is_no_receipt(event: GaussianEvent) -> None:
    """A member's signed receipt is computed with by the coordinator: it may be wrong, and may not cost it anything."""
    key = SigningKey(bytes(range(32)))
    balance = dataclasses.replace(_balance_of_one(), events=(event,))
    made = Receipt.of(balance, site="a", run_id="r", round_number=1, lines=1, head=bytes(32), at_s=0.0)
    with pytest.raises(LedgerError) as caught:
        Receipt.opened(made.sign(key), key.public, "a")
    assert caught.value.code == "receipt-invalid"
    assert "out of range" in caught.value.message


def _balance_of_one() -> Balance:
    book = Book("a", SigningKey(bytes(range(32))).public)
    key = SigningKey(bytes(range(32)))
    line = book.open_dataset("d", records=10, unit=Unit.RECORD, epsilon=1.0, delta=1e-3)
    assert line is not None
    book.line(key, 0.0, *line)
    return book.balance("d")
