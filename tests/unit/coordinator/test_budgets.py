"""The coordinator's memory of budgets: a ledger may grow, and never shrink or change."""

from __future__ import annotations

import dataclasses

import pytest

from coordinator.budgets import check_follows
from privacy.accounting import Unit
from privacy.ledger import Receipt
from wire import RefusedError

RECEIPT = Receipt(
    site="a",
    run_id="r",
    round=1,
    records=100,
    unit=Unit.RECORD,
    budget=1.0,
    delta=1e-5,
    events=(),
    lines=5,
    head=bytes(32),
    at_s=0.0,
)


@pytest.mark.parametrize("changes", [{}, {"lines": 6, "head": bytes([1] * 32)}, {"round": 2}])
def test_the_same_ledger_or_a_longer_one(changes: dict[str, object]) -> None:
    check_follows("a", dataclasses.replace(RECEIPT, **changes), RECEIPT)  # type: ignore[arg-type]
    check_follows("a", RECEIPT, None)


@pytest.mark.parametrize("changes", [{"lines": 4}, {"head": bytes([1] * 32)}])
def test_an_older_ledger_or_another_one(changes: dict[str, object]) -> None:
    with pytest.raises(RefusedError) as caught:
        check_follows("a", dataclasses.replace(RECEIPT, **changes), RECEIPT)  # type: ignore[arg-type]
    assert caught.value.code == "receipt-older"
