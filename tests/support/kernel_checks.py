"""One checker for every back end of the merging kernels: the numbers that their references give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import kernels.gram.reference as gram_reference
import kernels.selection.reference as selection_reference
import kernels.weighted_sum.reference as sum_reference


class BackEnd:
    """The public functions on arrays in memory; others say where rows go first and where results come from."""

    name = "arrays"

    def rows(self, rows: np.ndarray) -> Any:
        return rows

    def array(self, result: Any) -> np.ndarray:
        return result

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> np.ndarray:
        return self.array(function(*arguments, **options))

    def empty(self, d: int, dtype: str) -> Any:
        return np.empty(d, dtype)

    def __str__(self) -> str:
        return self.name


class Tensors(BackEnd):
    """The public functions on tensors of a device."""

    def __init__(self, device: str) -> None:
        self.name = device

    def rows(self, rows: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(rows).to(self.name)

    def array(self, result: Any) -> np.ndarray:
        return result if isinstance(result, np.ndarray) else result.cpu().numpy()

    def empty(self, d: int, dtype: str) -> Any:
        import torch

        return torch.empty(d, dtype=getattr(torch, dtype), device=self.name)


class Interpreted(Tensors):
    """The public functions as on a device, with tensors in memory and Triton's interpreter."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.name = "cpu"

    def rows(self, rows: np.ndarray) -> Any:
        from kernels.device import DeviceRows

        return DeviceRows(super().rows(rows))

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> np.ndarray:
        with np.errstate(all="ignore"):  # a device doesn't warn of infinities either
            return super().call(function, *arguments, **options)

    def __str__(self) -> str:
        return "interpreted"


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def make(n: int, d: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


def middle(rows: np.ndarray) -> np.ndarray:
    return selection_reference.ranks_mean(rows, (len(rows) - 1) // 2, len(rows) // 2 + 1)


VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda rows: rows,
    "ties": lambda rows: np.round(rows).astype(np.float32),
    "denormal": lambda rows: (rows * 1e-40).astype(np.float32),
    "huge": lambda rows: (rows * 1e36).astype(np.float32),
    "one NaN": lambda rows: np.where(np.arange(rows.size).reshape(rows.shape) == 3, np.float32(np.nan), rows),
    "infinities": lambda rows: np.where(
        rows > 1.5, np.float32(np.inf), np.where(rows < -1.5, -np.float32(np.inf), rows)
    ),
    "zeros": lambda rows: np.where(rows > 0, np.float32(0.0), np.float32(-0.0)),
}


def check_selection(back_end: BackEnd, values: str, n: int, d: int) -> None:
    """Every selection, bit for bit; and the rows are left as they were."""
    from kernels.selection import around_median, median, trimmed_mean

    rows = VALUES[values](make(n, d))
    before = rows.copy()
    there = back_end.rows(rows)
    for trim in {0, (n - 1) // 4, (n - 1) // 2}:
        expected = selection_reference.ranks_mean(rows, trim, n - trim)
        assert same_bits(back_end.call(trimmed_mean, there, trim), expected)
    assert same_bits(back_end.call(median, there), middle(rows))
    for count in {1, (n + 1) // 3 or 1, n - n // 4, n}:
        expected = selection_reference.around_median(rows, count)
        assert same_bits(back_end.call(around_median, there, count), expected)
    assert same_bits(rows, before)
    order = np.random.default_rng(3).permutation(n)
    whole = back_end.call(trimmed_mean, there, (n - 1) // 4)
    assert same_bits(back_end.call(trimmed_mean, back_end.rows(rows[order]), (n - 1) // 4), whole)


def check_mixing(back_end: BackEnd, m: int, n: int, d: int) -> None:
    """A selection from mixed rows; a product and a sum may be rounded together, so a last bit may differ."""
    from kernels.selection import around_median, median, trimmed_mean

    rows = make(n, d)
    matrix = np.random.default_rng(2).random((m, n)) / n
    mixed = selection_reference.mixed(matrix, rows)
    trim = (m - 1) // 3
    there = back_end.rows(rows)
    expected = selection_reference.ranks_mean(mixed, trim, m - trim)
    assert np.allclose(back_end.call(trimmed_mean, there, trim, mix=matrix), expected, rtol=0, atol=1e-6)
    assert np.allclose(back_end.call(median, there, mix=matrix), middle(mixed), rtol=0, atol=1e-6)
    assert np.allclose(back_end.call(around_median, there, m, mix=matrix), mixed.mean(axis=0), rtol=0, atol=1e-6)


def check_weighted_sum(back_end: BackEnd, n: int, d: int) -> None:
    """Both types of result, in one go and in two, bit for bit."""
    from kernels.weighted_sum import weighted_sum

    rows, weights = make(n, d), np.random.default_rng(4).standard_normal(n)
    weights[0] = -0.0
    expected = sum_reference.weighted_sum(weights, rows)
    there = back_end.rows(rows)
    assert same_bits(back_end.call(weighted_sum, weights, there), expected)
    narrow = back_end.empty(d, "float32")
    assert same_bits(back_end.call(weighted_sum, weights, there, narrow), expected.astype(np.float32))
    out = back_end.empty(d, "float64")
    half = (n + 1) // 2
    found = back_end.call(weighted_sum, weights[:half], back_end.rows(rows[:half]), out)
    if half < n:
        found = back_end.call(weighted_sum, weights[half:], back_end.rows(rows[half:]), out, accumulate=True)
    assert same_bits(found, expected)


def check_gram(back_end: BackEnd, n: int, d: int) -> None:
    """Exact sums; an entry depends on its two rows alone, and the norms are the diagonal."""
    from kernels.gram import gram, squared_norms

    rows = make(n, d)
    exact = gram_reference.gram(rows)
    norms = np.sqrt(np.diagonal(exact))
    whole = back_end.call(gram, back_end.rows(rows))
    assert np.all(np.abs(whole - exact) <= 1e-14 * np.outer(norms, norms))
    order = np.random.default_rng(2).permutation(n)[: max(n - 1, 1)]
    assert same_bits(back_end.call(gram, back_end.rows(rows[order])), whole[np.ix_(order, order)])
    assert same_bits(back_end.call(squared_norms, back_end.rows(rows)), np.diagonal(whole).copy())
    if d:
        rows[n // 2, d - 1] = np.nan
        found = back_end.call(gram, back_end.rows(rows))
        others = np.arange(n) != n // 2
        assert not np.isfinite(found[n // 2]).any()
        assert same_bits(found[np.ix_(others, others)], whole[np.ix_(others, others)])
