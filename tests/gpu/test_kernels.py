"""The merging kernels on a CUDA device, by the checker of every back end."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_checks import (
    VALUES,
    BackEnd,
    Tensors,
    check_gram,
    check_mixing,
    check_selection,
    check_weighted_sum,
    make,
    same_bits,
)

from kernels.gram import gram
from kernels.selection import around_median, trimmed_mean
from kernels.weighted_sum import weighted_sum

pytestmark = pytest.mark.gpu
CUDA = Tensors("cuda")


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(("n", "d"), [(1, 5), (2, 64), (20, 10_007), (64, 3_000), (100, 5_000)])
def test_selection(values: str, n: int, d: int) -> None:
    check_selection(CUDA, values, n, d)


@pytest.mark.parametrize(("m", "n", "d"), [(20, 20, 10_007), (64, 64, 3_000), (100, 100, 5_000), (1, 4, 10)])
def test_mixing(m: int, n: int, d: int) -> None:
    check_mixing(CUDA, m, n, d)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (4, 0), (20, 100_003), (100, 10_000)])
def test_weighted_sum(n: int, d: int) -> None:
    check_weighted_sum(CUDA, n, d)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 1_000), (20, 10_007), (41, 2_000)])
def test_gram(n: int, d: int) -> None:
    check_gram(CUDA, n, d)


def test_a_million_coordinates_and_rows_apart() -> None:
    """Offsets beyond 32 bits of bytes, and rows that aren't one array: the bits that arrays in memory give."""
    rows = make(20, 1_000_000)
    apart = [CUDA.rows(row) for row in rows]
    assert same_bits(CUDA.call(trimmed_mean, apart, 4), trimmed_mean(rows, 4))
    assert same_bits(CUDA.call(around_median, apart, 12), around_median(rows, 12))
    weights = np.full(20, 0.05)
    assert same_bits(CUDA.call(weighted_sum, weights, apart), BackEnd().call(weighted_sum, weights, rows))
    here, there = gram(rows), CUDA.call(gram, apart)
    assert np.all(np.abs(here - there) <= 1e-14 * np.sqrt(np.outer(np.diagonal(here), np.diagonal(here))))
