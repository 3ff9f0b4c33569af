"""Weighted sum of rows: the one pass over the updates with which every linear merging rule ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.weighted_sum import cpu

__all__ = ["weighted_sum"]

Rows = Sequence[NDArray[np.float32]] | NDArray[np.float32]


def weighted_sum(
    weights: Sequence[float] | NDArray[np.float64],
    rows: Rows,
    out: NDArray[np.float64] | None = None,
    *,
    accumulate: bool = False,
    block: int = cpu.BLOCK,
) -> NDArray[np.float64]:
    """Sum rows with weights: ``out[k] = weights[0] * rows[0][k] + weights[1] * rows[1][k] + ...`` in float64.

    Every coordinate is formed by the same operations in the same order (each product and each sum rounded to float64
    once, rows from first to last), so the result doesn't depend on ``block``, on how the caller slices the coordinates,
    or on whether the rows come in one call or in several with ``accumulate``.

    Cost for n rows of d: reads 4 n d bytes, writes 8 d bytes, 2 n d - d FLOPs. Beside ``out`` it needs 8 ``block``
    bytes; rows are read where they lie and never copied whole.

    Example:
        >>> weighted_sum([0.25, 0.75], [np.float32([4, 8]), np.float32([0, 4])]).tolist()
        [1.0, 5.0]

    Args:
        weights: [n] One factor a row; any finite value.
        rows: n arrays [d] of float32, or one array [n, d]. Strides other than 1 are allowed.
        out: [d] float64, written in place; must not overlap a row. Allocated where None.
        accumulate: Add to what ``out`` holds instead of overwriting it; ``out`` must be given.
        block: Coordinates handled at a time. Changes the speed, never the result.

    Returns:
        ``out``.

    Raises:
        ValueError: Shapes that don't fit each other, no rows, or a block under 1.
        TypeError: A row that isn't float32 or an ``out`` that isn't float64.
    """
    factors = np.asarray(weights, dtype=np.float64)
    _check(factors, rows, out, accumulate, block)
    if out is None:
        out = np.empty(rows[0].shape[0], dtype=np.float64)
    cpu.weighted_sum(factors, rows, out, accumulate=accumulate, block=block)
    return out


def _check(
    factors: NDArray[np.float64],
    rows: Rows,
    out: NDArray[Any] | None,
    accumulate: bool,
    block: int,
) -> None:
    if len(rows) == 0 or factors.shape != (len(rows),):
        raise ValueError(f"{len(rows)} rows need as many weights, at least 1, not shape {factors.shape}")
    if block < 1:
        raise ValueError(f"block is {block}, but must be at least 1")
    shape = rows[0].shape
    for index, row in enumerate(rows):
        if row.dtype != np.float32:
            raise TypeError(f"row {index} is {row.dtype}, not float32")
        if row.ndim != 1 or row.shape != shape:
            raise ValueError(f"row {index} has shape {row.shape}, the first {shape}: rows are vectors of one length")
    if out is None:
        if accumulate:
            raise ValueError("accumulate needs an array to add to: pass `out`")
        return
    if out.dtype != np.float64:
        raise TypeError(f"out is {out.dtype}, not float64")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}, the rows {shape}")
