"""What attacks are tuned against is what the coordinator does."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

from simulation.merging import rule_of
from wire import MergingSpec, PrivacySpec, RoundsSpec, SecureSpec

ROWS = np.random.default_rng(0).normal(0.0, 0.01, (4, 30)).astype(np.float32)
EXAMPLES = [40, 10, 30, 5_000]


def plan(secure: SecureSpec | None) -> Any:
    rounds = RoundsSpec()
    return types.SimpleNamespace(secure=secure, merging=MergingSpec(rule="mean"), privacy=PrivacySpec(), rounds=rounds)


def test_plain_averaging_weighs_by_examples() -> None:
    merged = rule_of(plan(None), EXAMPLES)(ROWS)
    expected = sum(count * row.astype(np.float64) for count, row in zip(EXAMPLES, ROWS, strict=True)) / sum(EXAMPLES)
    np.testing.assert_allclose(merged, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e30])
def test_a_secure_sum_is_what_its_encoding_makes_of_it(size: float) -> None:
    """By the participants' own encoder, for a mean that is clipped in every way there is."""
    spec = SecureSpec(wire_bits=32, clip_norm=2.0, clip_value=0.05, weight_cap=50)
    rows = ROWS.copy()
    rows[1] *= np.float32(size)
    before = rows.copy()
    merged = rule_of(plan(spec), EXAMPLES)(rows)
    np.testing.assert_array_equal(rows, before)
    encoding = spec.encoding(4)
    total = np.zeros(30, encoding.dtype)
    for row, count in zip(rows, EXAMPLES, strict=True):
        part = np.empty(30, encoding.dtype)
        encoding.encoder(row, count, bytes(32)).write(part)
        total += part
    weight = sum(min(count, 50) for count in EXAMPLES)
    np.testing.assert_allclose(merged, encoding.decode(total, weight), atol=encoding.error_bound(4, weight))
