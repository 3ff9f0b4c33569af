"""Selection at each coordinate: trimmed mean, median, mean around the median, also of mixed rows.

Ranks are found by selection networks, which compare without branching. Up to 48 rows the network is a straight line of
code whose values stay in vector registers; above it is a table of comparators over tiles that stay in the cache. Both
give the same bits. Where rows are mixed first (``out = select(matrix @ rows)``), the product exists a slab of
coordinates at a time and never whole.

Formal Guarantees, of every function here:
    The result at a coordinate depends on the values there and nowhere else, and not on their order: the same bits for
    any permutation of the rows, any slicing of the coordinates, any number of threads, in memory and on a device (with
    ``mix``, up to the last bit of a mixed value). NaN counts as plus infinity,
    so it is trimmed like any other largest value; it stays at its coordinate. -0.0 counts as 0.0. The time taken
    doesn't depend on the values. The sum of kept values is formed in float32 by a tree, with a relative error of at
    most log2(n) * 6e-8 of the largest kept value; where it leaves float32's range the result is infinite.
"""

from __future__ import annotations

from typing import Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from kernels.device import DeviceRows, as_array, device_rows
from kernels.rows import ITEM, Rows, RowsLike, Span, over_spans

__all__ = ["around_median", "median", "trimmed_mean"]

STRAIGHT_ROWS: Final = 48
"""Most rows for which the network is written out as a straight line."""

STRAIGHT_WORK: Final = 4_000_000
"""Rows times coordinates under which writing and compiling a straight line isn't worth its while."""

SLAB: Final = 1 << 19
"""Bytes of mixed rows that exist at a time, in each thread: they stay in the level-2 cache."""

_WHOLE: Final = 1 << 18

Matrix = NDArray[np.float64]
Out = NDArray[np.float32]


@overload
def trimmed_mean(
    rows: RowsLike, trim: int, out: Out | None = None, *, mix: Matrix | None = None, threads: int = 1
) -> Out: ...
@overload
def trimmed_mean(
    rows: DeviceRows, trim: int, out: Any = None, *, mix: Matrix | None = None, threads: int = 1
) -> Any: ...
def trimmed_mean(
    rows: RowsLike | DeviceRows, trim: int, out: Any = None, *, mix: Matrix | None = None, threads: int = 1
) -> Any:
    """Average what remains at each coordinate without the ``trim`` smallest and the ``trim`` largest values.

    Cost for n rows of d: reads 4 n d bytes, writes 4 d bytes; about n log2(n)^2 / 4 comparators at each coordinate
    (95 for n = 20 and trim = 4, 1,027 for n = 100 and trim = 20; eleven and 119 of these only order the values
    that are kept, so that their sum is the same in any order of rows).

    Example:
        >>> trimmed_mean([np.float32([1]), np.float32([2]), np.float32([9e9])], 1).tolist()
        [2.0]

    Args:
        rows: [n, d] float32 in any form that `kernels.rows.Rows` takes, or tensors on a CUDA device.
        trim: Values dropped on each side; 2 ``trim`` < the number of rows that are selected from.
        out: [d] float32, contiguous, not overlapping a row; a tensor where the rows are on a device. Allocated where
            None.
        mix: [m, n] Select from the m rows ``mix @ rows`` (formed in float64, rounded to float32) instead.
        threads: That work side by side; a device has its own.

    Returns:
        ``out``.

    Raises:
        ValueError: Nothing would be left, or shapes don't fit.
        TypeError: A row or ``out`` isn't float32.
    """
    size = _selected(rows, mix)
    if not 0 <= 2 * trim < size:
        raise ValueError(f"trimming {trim} of {size} values on each side leaves nothing")
    return _run(rows, (trim, size - trim, 0), out, mix, threads)


@overload
def median(rows: RowsLike, out: Out | None = None, *, mix: Matrix | None = None, threads: int = 1) -> Out: ...
@overload
def median(rows: DeviceRows, out: Any = None, *, mix: Matrix | None = None, threads: int = 1) -> Any: ...
def median(rows: RowsLike | DeviceRows, out: Any = None, *, mix: Matrix | None = None, threads: int = 1) -> Any:
    """Find the median at each coordinate: the middle value, or the mean of the two middle ones.

    Arguments, errors and cost as for `trimmed_mean`.

    Example:
        >>> median([np.float32([1]), np.float32([2]), np.float32([5]), np.float32([9e9])]).tolist()
        [3.5]
    """
    size = _selected(rows, mix)
    return _run(rows, ((size - 1) // 2, size // 2 + 1, 0), out, mix, threads)


@overload
def around_median(
    rows: RowsLike, count: int, out: Out | None = None, *, mix: Matrix | None = None, threads: int = 1
) -> Out: ...
@overload
def around_median(
    rows: DeviceRows, count: int, out: Any = None, *, mix: Matrix | None = None, threads: int = 1
) -> Any: ...
def around_median(
    rows: RowsLike | DeviceRows, count: int, out: Any = None, *, mix: Matrix | None = None, threads: int = 1
) -> Any:
    """Average the ``count`` values nearest the median at each coordinate; the smaller one where two are as near.

    Distances to the median are rounded to float32. Arguments, errors and cost as for `trimmed_mean`.

    Example:
        >>> around_median([np.float32([1]), np.float32([2]), np.float32([9e9])], 2).tolist()
        [1.5]
    """
    size = _selected(rows, mix)
    if not 1 <= count <= size:
        raise ValueError(f"{count} values around the median of {size}: must be from 1 to {size}")
    return _run(rows, (0, size, count), out, mix, threads)


def _selected(rows: RowsLike | DeviceRows, mix: Matrix | None) -> int:
    if not len(rows):
        raise ValueError("no rows")
    if mix is None:
        return len(rows)
    if mix.ndim != 2 or mix.shape[1] != len(rows) or not len(mix):
        raise ValueError(f"a matrix of shape {mix.shape} can't mix {len(rows)} rows")
    return len(mix)


def _run(rows: RowsLike | DeviceRows, wanted: tuple[int, int, int], out: Any, mix: Matrix | None, threads: int) -> Any:
    if (there := device_rows(rows)) is not None:
        from kernels.selection import triton

        result = there.result(out, "float32")
        triton.select(there, wanted, result, mix)
        return result
    assert not isinstance(rows, DeviceRows)
    found = _in_memory(rows if isinstance(rows, Rows) else Rows(rows), wanted, as_array(out), mix, threads)
    return found if out is None else out


def _in_memory(table: Rows, wanted: tuple[int, int, int], out: Out | None, mix: Matrix | None, threads: int) -> Out:
    from kernels.selection import cpu, mixing
    from kernels.selection.network import table as comparators
    from kernels.selection.straight import LINE, straight_line

    dimension = table.dimension
    if out is None:
        out = np.empty(dimension, dtype=np.float32)
    _check(out, dimension)
    target = out
    size = len(table) if mix is None else len(mix)
    first, last, around = wanted
    infinity = float("inf")
    straight = size <= STRAIGHT_ROWS and size * dimension >= STRAIGHT_WORK
    line = straight_line(size, first, last, around) if straight else None
    steps = comparators(size, first, last)
    factors = None if mix is None else np.ascontiguousarray(mix, dtype=np.float64)

    def select(addresses: NDArray[np.int64], start: int, count: int) -> None:
        part = target[start : start + count]
        whole = count // LINE * LINE if line is not None else 0
        if line is not None:
            line(addresses, whole // LINE, infinity, part)
        if whole < count:
            rest = addresses + ITEM * whole
            cpu.select(rest, count - whole, steps, first, last, around, infinity, part[whole:])

    def work(span: Span) -> None:
        if factors is None:
            for start, count, addresses in table.slabs(span.start, span.stop, _WHOLE):
                select(addresses, start, count)
            return
        held = max(size, len(table))
        width = max(SLAB // (ITEM * held) // mixing.TILE, 1) * mixing.TILE
        mixed = np.zeros((held, width), dtype=np.float32)
        places = mixed.ctypes.data + np.arange(size, dtype=np.int64) * mixed.strides[0]
        for start, whole, addresses in table.slabs(span.start, span.stop, _WHOLE):
            for past in range(0, whole, width):
                count = min(width, whole - past)
                mixing.stage(addresses + ITEM * past, count, mixed)
                mixing.mix(mixed, count, factors)
                select(places, start + past, count)

    over_spans(dimension, threads, 16, work)
    return out


def _check(out: Out, dimension: int) -> None:
    if out.dtype != np.float32:
        raise TypeError(f"out is {out.dtype}, not float32")
    if out.shape != (dimension,) or not out.flags.c_contiguous:
        raise ValueError(f"out has shape {out.shape}, but must be ({dimension},) and contiguous")
