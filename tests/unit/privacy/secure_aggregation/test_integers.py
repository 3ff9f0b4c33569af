"""Integers with shared noise reach the ring as they were drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privacy.secure_aggregation.encoding import Encoding
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.integers import IntegerEncoder

ENCODING = Encoding(ring_bits=32, wire_bits=32, value_bits=20, clip_norm=1.0, clip_value=float(2**19 - 1), weight_cap=1)
VECTORS = hnp.arrays(np.dtype("<i4"), 5, elements=st.integers(-ENCODING.limit, ENCODING.limit))


@given(updates=st.lists(VECTORS, min_size=1, max_size=8), mask=st.integers(0, 2**32 - 1))
def test_a_sum_is_exact(updates: list[np.ndarray], mask: int) -> None:
    total = np.zeros(5, "<u4")
    masks = np.full(5, mask, "<u4")
    for update in updates:
        encoder = IntegerEncoder(ENCODING, update)
        out = masks.copy()
        encoder.write(out[:2], 0, mask=out[:2])
        encoder.write(out[2:], 2, mask=out[2:])
        total += out - masks
    assert encoder.weight == 1 and encoder.dimension == 5
    mean = ENCODING.decode(total, len(updates))
    assert np.allclose(mean * len(updates), sum(item.astype(np.int64) for item in updates))


def test_without_a_mask_and_with_a_residual() -> None:
    out, lost = np.empty(3, "<u4"), np.ones(3, "<f4")
    IntegerEncoder(ENCODING, np.array([1, -1, 0], "<i4")).write(out, residual_out=lost)
    assert out.tolist() == [1, 2**32 - 1, 0]
    assert lost.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "update",
    [
        np.zeros(3, "<f4"),
        np.zeros((1, 3), "<i4"),
        np.array([0, ENCODING.limit + 1], "<i4"),
        np.array([-(2**31), 0], "<i4"),
    ],
)
def test_what_could_overflow_is_refused(update: np.ndarray) -> None:
    with pytest.raises(SecureAggregationError) as caught:
        IntegerEncoder(ENCODING, update)
    assert caught.value.code == "update-malformed"


def test_a_ring_of_sixteen_bits_is_too_small() -> None:
    small = Encoding(ring_bits=16, wire_bits=16, value_bits=8, clip_norm=1.0, clip_value=1.0, weight_cap=1)
    with pytest.raises(SecureAggregationError):
        IntegerEncoder(small, np.zeros(3, "<i4"))
