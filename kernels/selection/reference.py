"""What the selections mean: sort each coordinate, keep the wanted ranks, average them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def ranks_mean(rows: Sequence[Floats] | Floats, first: int, last: int) -> Floats:
    """The mean of ranks ``first`` to ``last`` - 1 at each coordinate; NaN counts as infinity, -0.0 as 0.0."""
    return mean(sorted_columns(rows)[first:last])


def around_median(rows: Sequence[Floats] | Floats, count: int) -> Floats:
    """The mean of the ``count`` values nearest the median at each coordinate, the smaller one where two are as near."""
    ordered = sorted_columns(rows)
    size = len(ordered)
    with np.errstate(invalid="ignore", over="ignore"):
        middle = ordered[(size - 1) // 2] * np.float32(0.5) + ordered[size // 2] * np.float32(0.5)
        chosen = ordered[:count].copy()
        for place in range(size - count):
            nearer = np.abs(ordered[place + count] - middle) < np.abs(ordered[place] - middle)
            chosen[place % count] = np.where(nearer, ordered[place + count], chosen[place % count])
    return mean(chosen)


def mixed(matrix: NDArray[np.float64], rows: Sequence[Floats] | Floats) -> Floats:
    """``matrix`` [m, n] times the rows [n, d], in float64, rounded to float32."""
    product: Floats = (matrix @ np.stack([row.astype(np.float64) for row in rows])).astype(np.float32)
    return product


def sorted_columns(rows: Sequence[Floats] | Floats) -> Floats:
    """The rows [n, d] with each column sorted."""
    stacked = np.stack([np.asarray(row) for row in rows])
    return np.sort(np.where(np.isnan(stacked), np.float32(np.inf), stacked), axis=0)


def mean(values: Floats) -> Floats:
    """The mean over axis 0 in float32: a tree of sums, the upper half onto the lower, and one division."""
    total = values.copy()
    left = len(total)
    with np.errstate(invalid="ignore", over="ignore"):
        while left > 1:
            half = (left + 1) // 2
            total[: left // 2] += total[half : half + left // 2]
            left = half
        found: Floats = total[0] / np.float32(len(values)) + np.float32(0)
    return found
