"""Weighted sum of rows: the one pass over the updates with which every linear merging rule ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from kernels.device import DeviceRows, as_array, device_rows
from kernels.rows import Rows, RowsLike, Span, over_spans

__all__ = ["BLOCK", "weighted_sum"]

BLOCK: Final = 1 << 18
"""Coordinates that are handed to the compiled code at a time."""

STRAIGHT_WORK: Final = 4_000_000
"""Rows times coordinates under which writing and compiling a straight line isn't worth its while."""

Out = TypeVar("Out", np.float32, np.float64)


@overload
def weighted_sum(
    weights: Sequence[float] | NDArray[np.float64],
    rows: RowsLike,
    out: NDArray[Out] | None = None,
    *,
    accumulate: bool = False,
    block: int = BLOCK,
    threads: int = 1,
) -> NDArray[Out]: ...
@overload
def weighted_sum(
    weights: Sequence[float] | NDArray[np.float64],
    rows: DeviceRows,
    out: Any = None,
    *,
    accumulate: bool = False,
    block: int = BLOCK,
    threads: int = 1,
) -> Any: ...
def weighted_sum(
    weights: Sequence[float] | NDArray[np.float64],
    rows: RowsLike | DeviceRows,
    out: Any = None,
    *,
    accumulate: bool = False,
    block: int = BLOCK,
    threads: int = 1,
) -> Any:
    """Sum rows with weights: ``out[k] = weights[0] * rows[0][k] + weights[1] * rows[1][k] + ...`` in float64.

    Every coordinate is formed by the same operations in the same order (each product and each sum rounded to float64
    once, rows from first to last), so the result doesn't depend on ``block``, on how the caller slices the coordinates,
    on the number of threads, on whether the rows come in one call or in several with ``accumulate``, or on whether they
    lie in memory or on a device. A float32 ``out`` takes the float64 result rounded once more.

    Cost for n rows of d: reads 4 n d bytes, writes 8 d bytes (4 d where ``out`` is float32), 2 n d - d FLOPs. Beside
    ``out`` it needs 512 KiB for each thread; rows are read where they lie and never copied whole.

    Example:
        >>> weighted_sum([0.25, 0.75], [np.float32([4, 8]), np.float32([0, 4])]).tolist()
        [1.0, 5.0]

    Args:
        weights: [n] One factor a row; any finite value.
        rows: n arrays [d] of float32, one array [n, d], or readers, as `kernels.rows.Rows` takes them; or tensors on a
            CUDA device, as `kernels.device.DeviceRows` takes them.
        out: [d] float64 or float32, contiguous, written in place; must not overlap a row; a tensor where the rows are
            on a device. float64 where None.
        accumulate: Add to what ``out`` holds instead of overwriting it; ``out`` must be given.
        block: Coordinates handled at a time in memory. Changes the speed, never the result.
        threads: That work side by side; a device has its own.

    Returns:
        ``out``.

    Raises:
        ValueError: Shapes that don't fit each other, no rows, or a block under 1.
        TypeError: A row that isn't float32 or an ``out`` that is neither float64 nor float32.
    """
    factors = np.ascontiguousarray(weights, dtype=np.float64)
    there = device_rows(rows)
    if len(rows) == 0 or factors.shape != (len(rows),):
        raise ValueError(f"{len(rows)} rows need as many weights, at least 1, not shape {factors.shape}")
    if block < 1:
        raise ValueError(f"block is {block}, but must be at least 1")
    if out is None and accumulate:
        raise ValueError("accumulate needs an array to add to: pass `out`")
    if there is not None:
        from kernels.weighted_sum import triton

        result = there.result(out, "float64", "float32")
        triton.weighted_sum(factors, there, result, accumulate)
        return result
    assert not isinstance(rows, DeviceRows)
    found = _in_memory(
        factors, rows if isinstance(rows, Rows) else Rows(rows), as_array(out), accumulate, block, threads
    )
    return found if out is None else out


def _in_memory(
    factors: NDArray[np.float64], table: Rows, out: NDArray[Any] | None, accumulate: bool, block: int, threads: int
) -> NDArray[Any]:
    from kernels.weighted_sum import cpu, straight

    if out is None:
        out = np.empty(table.dimension, dtype=np.float64)
    _check(out, table.dimension)
    target = out
    by_lines = out.dtype == np.float32 and not accumulate and len(table) * table.dimension >= STRAIGHT_WORK

    def work(span: Span) -> None:
        total = np.empty(min(cpu.TILE, span.stop - span.start), dtype=np.float64)
        for start, count, addresses in table.slabs(span.start, span.stop, block):
            part = target[start : start + count]
            if by_lines:
                straight.weighted_sum(factors, addresses, count, part, total)
            else:
                cpu.weighted_sum(factors, addresses, count, part, accumulate, total)

    over_spans(table.dimension, threads, 16, work)
    return out


def _check(out: NDArray[Any], dimension: int) -> None:
    if out.dtype not in (np.float64, np.float32):
        raise TypeError(f"out is {out.dtype}, neither float64 nor float32")
    if out.shape != (dimension,):
        raise ValueError(f"out has shape {out.shape}, the rows ({dimension},)")
    if not out.flags.c_contiguous:
        raise ValueError("out must lie contiguously in memory")
