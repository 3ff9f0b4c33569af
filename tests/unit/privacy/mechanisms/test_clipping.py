"""Rules of clipping: shares of layers add up to the whole norm."""

from __future__ import annotations

import math
from typing import Any

import pytest

from privacy.mechanisms.clipping import ClippingRule
from privacy.mechanisms.errors import PrivacyError


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_equal_shares_make_the_whole(count: int) -> None:
    rule = ClippingRule.layers(count)
    assert len(rule.shares) == count
    assert math.fsum(share**2 for share in rule.shares) == pytest.approx(1.0)


def test_shares_may_differ_and_may_leave_some_over() -> None:
    assert ClippingRule(kind="layers", shares=(0.6, 0.8)).shares == (0.6, 0.8)
    assert ClippingRule(kind="layers", shares=(0.1, 0.2)).shares == (0.1, 0.2)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "layers"},
        {"shares": (1.0,)},
        {"kind": "automatic", "shares": (1.0,)},
        {"kind": "layers", "shares": (0.9, 0.9)},
        {"kind": "layers", "shares": (0.5, 0.0)},
        {"kind": "layers", "shares": (0.5, -0.5)},
        {"kind": "layers", "shares": (math.nan,)},
        {"kind": "no"},
    ],
)
def test_rules_that_are_none(fields: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError) as caught:
        ClippingRule(**fields)
    assert caught.value.code == "clipping-invalid"


def test_a_model_without_layers() -> None:
    with pytest.raises(PrivacyError):
        ClippingRule.layers(0)
