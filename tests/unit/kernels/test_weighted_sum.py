"""The weighted sum against its reference, bit for bit, over slicings, layouts and values."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kernel_checks import same_bits

import kernels.weighted_sum as kernel
from kernels.weighted_sum import reference, straight, weighted_sum

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
WEIGHTS = st.floats(-1e3, 1e3)


def rows_and_weights() -> st.SearchStrategy[tuple[np.ndarray, list[float]]]:
    return st.integers(1, 6).flatmap(
        lambda n: st.tuples(
            st.integers(0, 40).flatmap(lambda d: hnp.arrays(np.float32, (n, d), elements=FLOATS)),
            st.lists(WEIGHTS, min_size=n, max_size=n),
        )
    )


@given(rows_and_weights(), st.integers(1, 50))
def test_equals_the_reference_bit_for_bit_in_any_block(case: tuple[np.ndarray, list[float]], block: int) -> None:
    rows, weights = case
    expected = reference.weighted_sum(weights, rows)
    assert same_bits(weighted_sum(weights, rows, block=block), expected)
    assert same_bits(weighted_sum(weights, list(rows), block=block), expected)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 100_000), max_size=5), st.integers(1, 4))
def test_slicing_and_batching_change_no_bit(cuts: list[int], batch: int) -> None:
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((5, 100_000), dtype=np.float32)
    weights = generator.random(5)
    whole = weighted_sum(weights, rows)
    pieces = np.empty(100_000)
    edges = [0, *sorted(cuts), 100_000]
    for start, stop in itertools.pairwise(edges):
        for first in range(0, 5, batch):
            some = slice(first, first + batch)
            weighted_sum(weights[some], rows[some, start:stop], pieces[start:stop], accumulate=first > 0)
    assert same_bits(pieces, whole)


def test_accumulates_in_double_precision() -> None:
    rows = [np.float32([1e8]), np.float32([1.0]), np.float32([-1e8])]
    assert weighted_sum([1.0, 1.0, 1.0], rows).tolist() == [1.0]


def test_strided_rows_and_read_only_rows_are_read_in_place() -> None:
    table = np.arange(24, dtype=np.float32).reshape(8, 3)
    table.flags.writeable = False
    assert weighted_sum([1.0, 10.0, 100.0], table.T).tolist() == (table @ [1.0, 10.0, 100.0]).tolist()


def test_threads_change_no_bit_and_a_float32_result_is_rounded_once() -> None:
    generator = np.random.default_rng(4)
    rows = generator.standard_normal((7, 10_001), dtype=np.float32)
    weights = generator.random(7)
    whole = weighted_sum(weights, rows)
    assert same_bits(weighted_sum(weights, rows, threads=2), whole)
    narrow = weighted_sum(weights, rows, np.empty(10_001, np.float32), threads=2)
    assert same_bits(narrow, whole.astype(np.float32))


@pytest.mark.parametrize(("n", "d"), [(5, 1_003), (5, 16), (47, 130_007)])
def test_straight_lines_give_the_same_bits(n: int, d: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line, and batches of lines over tiles with a rest of rows and of coordinates."""
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path))
    monkeypatch.setattr(straight, "ROWS", 12)  # what more rows take is only longer to compile
    monkeypatch.setattr(straight, "BATCH", 6)
    generator = np.random.default_rng(5)
    rows = generator.standard_normal((n, d), dtype=np.float32)
    rows[:, 3] = -0.0
    weights = generator.standard_normal(n)
    weights[1] = -0.0
    expected = weighted_sum(weights, rows).astype(np.float32)
    monkeypatch.setattr(kernel, "STRAIGHT_WORK", 0)
    for threads in (1, 2):
        assert same_bits(weighted_sum(weights, rows, np.empty(d, np.float32), threads=threads), expected)


def test_infinities_and_nan_reach_the_result_without_a_warning() -> None:
    rows = [np.float32([np.inf, np.nan, 1]), np.float32([-np.inf, 1, 1])]
    result = weighted_sum([0.5, 0.5], rows)
    assert np.isnan(result[:2]).all()
    assert result[2] == 1.0


def test_writes_into_the_given_array_and_returns_it() -> None:
    out = np.full(2, 7.0)
    assert weighted_sum([2.0], [np.float32([1, 2])], out) is out
    assert out.tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("weights", "rows", "error", "says"),
    [
        ([], [], ValueError, "at least 1"),
        ([1.0], [np.zeros(2, np.float32)] * 2, ValueError, "2 rows"),
        ([1.0, 1.0], [np.zeros(2, np.float32), np.zeros(3, np.float32)], ValueError, "row 1"),
        ([1.0], [np.zeros((2, 2), np.float32)], ValueError, "row 0"),
        ([1.0], [np.zeros(2)], TypeError, "float64, not float32"),
    ],
)
def test_misfitting_input_is_refused(
    weights: list[float], rows: list[np.ndarray], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        weighted_sum(weights, rows)


def test_misfitting_output_is_refused() -> None:
    row = np.zeros(2, np.float32)
    with pytest.raises(TypeError, match="out is int32"):
        weighted_sum([1.0], [row], np.zeros(2, np.int32))  # type: ignore[type-var]
    with pytest.raises(ValueError, match="contiguously"):
        weighted_sum([1.0], [row], np.zeros(4)[::2])
    with pytest.raises(ValueError, match=r"out has shape \(3,\)"):
        weighted_sum([1.0], [row], np.zeros(3))
    with pytest.raises(ValueError, match="accumulate"):
        weighted_sum([1.0], [row], accumulate=True)
    with pytest.raises(ValueError, match="block"):
        weighted_sum([1.0], [row], block=0)
