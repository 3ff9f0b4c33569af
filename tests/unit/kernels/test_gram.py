"""The Gram matrix in memory, beyond what every back end is checked for: arrival, panels, files, norms."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_checks import make

from kernels.gram import TILE, GramBuilder, gram, squared_norm, squared_norms
from kernels.rows import Rows


class FileLike:
    """A row that is read piece by piece."""

    def __init__(self, row: np.ndarray) -> None:
        self._row = row

    def read(self, start: int, out: np.ndarray) -> None:
        out[:] = self._row[start : start + len(out)]


def test_an_entry_depends_on_its_two_rows_alone() -> None:
    """Not on the other rows, their order, threads, or where they lie: bit for bit."""
    d = 5 * TILE + 13
    rows = make(11, d)
    whole = gram(rows)
    order = np.random.default_rng(2).permutation(11)
    assert np.array_equal(gram(rows[order]), whole[np.ix_(order, order)])
    assert np.array_equal(gram([rows[i] for i in (7, 2)]), whole[np.ix_([7, 2], [7, 2])])
    assert np.array_equal(gram(rows, threads=2), whole)
    assert np.array_equal(gram(np.asfortranarray(rows)), whole)
    assert np.array_equal(gram(Rows([FileLike(row) for row in rows], d)), whole)


def test_so_many_rows_that_their_sums_are_formed_in_panels() -> None:
    rows = make(137, 2_600)
    whole = gram(rows, threads=2)
    wide = rows.astype(np.float64)
    assert np.allclose(whole, wide @ wide.T, rtol=0, atol=1e-13 * np.diagonal(whole).max())
    some = [0, 3, 127, 128, 129, 136]
    assert np.array_equal(gram([rows[i] for i in some]), whole[np.ix_(some, some)])
    builder = GramBuilder(2_600)
    for part in (rows[:5], rows[5:131], rows[131:]):
        builder.add_all(list(part))
    assert np.array_equal(builder.finish(), whole)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 10])
def test_grows_with_rows_that_arrive_to_the_same_bits(n: int) -> None:
    rows = make(n, 3_000)
    builder = GramBuilder(3_000)
    for index, row in enumerate(rows, start=1):
        builder.add(row)
        assert len(builder) == index
        assert np.array_equal(builder.finish(), gram(rows[:index]))


def test_equal_rows_are_at_distance_exactly_zero() -> None:
    row = make(1, 5_000)[0]
    found = gram([row, make(1, 5_000, 3)[0], row.copy()])
    assert found[0, 0] + found[2, 2] - 2 * found[0, 2] == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_coordinate_spoils_its_own_row_only(bad: float) -> None:
    rows = make(6, 300)
    clean = gram(rows)
    rows[2, 299] = bad
    found = gram(rows)
    others = [0, 1, 3, 4, 5]
    assert not np.isfinite(found[2]).any()
    assert np.array_equal(found[np.ix_(others, others)], clean[np.ix_(others, others)])
    assert not np.isfinite(squared_norm(rows[2]))


@pytest.mark.parametrize("size", [1e20, 1e30, 3e38, 1e-40])
def test_norms_neither_overflow_nor_vanish(size: float) -> None:
    row = np.full(10, size, np.float32)
    expected = 10 * float(row[0]) ** 2
    assert squared_norm(row) == pytest.approx(expected, rel=1e-14)
    assert gram([row])[0, 0] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("d", [5, 300, 70_000, 70_003])
def test_norms_are_those_of_the_rows_at_any_number_of_threads(d: int) -> None:
    rows = make(5, d)
    exact = (rows.astype(np.float64) ** 2).sum(axis=1)
    found = squared_norms(rows)
    assert found == pytest.approx(exact, rel=1e-13)
    assert np.array_equal(squared_norms(rows, threads=2), found)
    assert np.array_equal(np.diagonal(gram(rows)), found)


def test_small_differences_on_large_weights_are_seen() -> None:
    """Rows of size 0.05 that differ by 1e-5: dot products in float32 would get nothing of it."""
    generator = np.random.default_rng(4)
    base = 0.05 * generator.standard_normal(20_000)
    rows = (base + 1e-5 * generator.standard_normal((6, 20_000))).astype(np.float32)
    found = gram(rows)
    squares = np.diagonal(found)
    distances = squares[:, None] + squares[None, :] - 2 * found
    wide = rows.astype(np.float64)
    exact = ((wide[:, None, :] - wide[None, :, :]) ** 2).sum(axis=2)
    assert np.allclose(distances, exact, rtol=1e-6, atol=0)


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        gram([])
    with pytest.raises(ValueError, match="no rows"):
        GramBuilder(3).finish()
    with pytest.raises(ValueError, match="row 1"):
        gram([np.zeros(3, np.float32), np.zeros(4, np.float32)])
    with pytest.raises(TypeError, match="float64"):
        GramBuilder(3).add(np.zeros(3))
    with pytest.raises(ValueError, match="threads"):
        gram(make(2, 3), threads=0)
