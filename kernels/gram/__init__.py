"""The Gram matrix of the updates: all that a linear merging rule needs to know of them, formed as they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernels.device import DeviceRows, device_rows
from kernels.rows import RowReader, Rows, RowsLike, Span, over_spans

__all__ = ["GramBuilder", "gram", "squared_norm", "squared_norms"]

TILE: Final = 4_096
"""Coordinates over which a vector's lanes sum before they are added to the total; part of the order of summation."""

PARTS: Final = 8
"""Pieces of the coordinates that are summed apart, whatever the number of threads, and then added in order."""

_SIDE: Final = 4
_SLAB: Final = 1 << 20


def gram(rows: RowsLike | DeviceRows, *, threads: int = 1) -> NDArray[np.float64]:
    """Form all dot products of the rows with each other, in float64.

    Products are exact and sums are float64, so that distances ``G[i,i] + G[j,j] - 2 G[i,j]`` keep about nine digits
    where rows of size 0.05 differ by 1e-5. In float32 they would keep none.

    Formal Guarantees:
        Entry (i, j) is a function of rows i and j alone: the same bits whatever the other rows, the order of the rows,
        the number of threads, the processor, and whether rows lie in memory, in maps or in files. Equal rows have
        exactly equal entries, so their distance is exactly 0. An entry is off by at most about 1e-14
        ``|row i| |row j|``. A row with a NaN or an infinity makes its own entries not finite and no others.

    Cost for n rows of d: reads 4 n d bytes, n (n + 1) d FLOPs rounded up to blocks of four rows.

    Example:
        >>> gram([np.float32([3, 4]), np.float32([1, 0])]).tolist()
        [[25.0, 3.0], [3.0, 1.0]]

    Args:
        rows: [n, d] float32 in any form that `kernels.rows.Rows` takes, or tensors on a CUDA device.
        threads: That work side by side; a device has its own.

    Returns:
        [n, n] symmetric, in memory wherever the rows are.
    """
    if (there := device_rows(rows)) is not None:
        from kernels.gram import triton

        return triton.gram(there)
    assert not isinstance(rows, DeviceRows)
    table = rows if isinstance(rows, Rows) else Rows(rows)
    return _unfold(_blocks(table, 0, threads), len(table))


def squared_norm(row: NDArray[np.float32] | RowReader, dimension: int | None = None) -> float:
    """The squared norm of a row in float64: finite exactly if every coordinate is.

    Example:
        >>> squared_norm(np.float32([1e30, 0])) > 1e59
        True
    """
    return float(squared_norms(Rows([row], dimension))[0])


def squared_norms(rows: RowsLike | DeviceRows, *, threads: int = 1) -> NDArray[np.float64]:
    """The squared norm of each row [n] in float64, at the cost of reading the rows once; the diagonal of `gram`."""
    if (there := device_rows(rows)) is not None:
        from kernels.gram import triton

        return triton.squared_norms(there)
    from kernels.gram import cpu

    assert not isinstance(rows, DeviceRows)
    table = rows if isinstance(rows, Rows) else Rows(rows)
    each = -(-table.dimension // (TILE * PARTS)) * TILE
    starts = range(0, table.dimension, each) if each else range(0)
    found = np.zeros((len(starts), len(table)))

    def work(share: Span) -> None:
        for part in range(share.start, share.stop):
            stop = min(starts[part] + each, table.dimension)
            for _, width, addresses in table.slabs(starts[part], stop, _SLAB, TILE):
                cpu.squared_norms(addresses, width, TILE, found[part])

    over_spans(len(starts), threads, 1, work)
    total: NDArray[np.float64] = np.add.reduce(found, axis=0)
    return total


class GramBuilder:
    """The Gram matrix while rows arrive, four at a time: earlier rows are read once for every four new ones.

    The result is that of `gram`, bit for bit. After the last row only the blocks of the last one to four rows remain.

    Args:
        dimension: d.
        threads: That work side by side.
    """

    def __init__(self, dimension: int, *, threads: int = 1) -> None:
        self._dimension = dimension
        self._threads = threads
        self._parts: list[NDArray[np.float32] | RowReader] = []
        self._blocks = np.zeros((0, 0, _SIDE, _SIDE))

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, row: NDArray[np.float32] | RowReader) -> None:
        """Take the next row [d]; it is kept, not copied, and must stay as it is."""
        self.add_all([row])

    def add_all(self, rows: Sequence[NDArray[np.float32] | RowReader]) -> None:
        """Take several rows at once: one pass over all of them."""
        if rows:
            Rows(rows, self._dimension)
        self._parts += rows
        if len(self._parts) // _SIDE > len(self._blocks):
            self._extend(len(self._parts) // _SIDE * _SIDE)

    def finish(self) -> NDArray[np.float64]:
        """The Gram matrix [n, n] of the rows so far; more may follow."""
        if not self._parts:
            raise ValueError("no rows")
        kept = self._blocks
        if len(self._parts) % _SIDE:
            self._extend(len(self._parts))
        found = _unfold(self._blocks, len(self._parts))
        self._blocks = kept
        return found

    def _extend(self, size: int) -> None:
        done = len(self._blocks)
        fresh = _blocks(Rows(self._parts[:size], self._dimension), done, self._threads)
        fresh[:done, :done] = self._blocks
        self._blocks = fresh


def _blocks(table: Rows, first: int, threads: int) -> NDArray[np.float64]:
    """The lower triangle of 4 x 4 blocks [m, m, 4, 4], from block row ``first`` on."""
    from kernels.gram import cpu

    if threads < 1:
        raise ValueError(f"threads is {threads}, but must be at least 1")
    size = len(table)
    count = -(-size // _SIDE)
    # The last block is filled up with its last row: one kernel, one order of summation for every pair.
    padded = np.minimum(np.arange(_SIDE * count), size - 1)
    each = -(-table.dimension // (TILE * PARTS)) * TILE
    starts = range(0, table.dimension, each) if each else range(0)
    total = np.zeros((count, count, _SIDE, _SIDE))
    for group in range(0, len(starts), threads):
        some = starts[group : group + threads]
        found = np.zeros((len(some), *total.shape))

        def work(share: Span, some: range = some, found: NDArray[np.float64] = found) -> None:
            for part in range(share.start, share.stop):
                stop = min(some[part] + each, table.dimension)
                for _, width, addresses in table.slabs(some[part], stop, _SLAB, TILE):
                    cpu.blocks(addresses[padded], first, width, TILE, found[part])

        over_spans(len(some), threads, 1, work)
        for part in found:
            total += part
    return total


def _unfold(blocks: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    count = len(blocks)
    full = blocks.transpose(0, 2, 1, 3).reshape(_SIDE * count, _SIDE * count)
    lower = np.tril(full)[:size, :size]
    return lower + np.tril(lower, -1).T
