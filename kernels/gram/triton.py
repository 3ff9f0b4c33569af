"""The Gram matrix on a CUDA device: one program for a pair of blocks of four rows and a stretch of coordinates."""

from __future__ import annotations

from typing import Final

import numpy as np
import triton.language as tl
from numpy.typing import NDArray

from kernels.device import DeviceRows, on_device

SIDE: Final = 4
"""Rows on each side of a block."""

LANES: Final = 256
"""Coordinates that a program takes at a time; each has its own sums."""

STRETCH: Final = 1 << 16
"""Coordinates of one program, at least."""

STRETCHES: Final = 256
"""Most stretches; where d is larger than so many, they are longer."""

PAIRS: Final = 4_096
"""Pairs of blocks that are formed at a time: their sums take 128 MiB at most."""


def gram(rows: DeviceRows) -> NDArray[np.float64]:
    """Form all dot products [n, n] of the rows in float64, in memory.

    Products are exact, and each sum is formed by the same operations whatever the other rows, as on the CPU; but in
    another order than there, so that the two differ by about 1e-14 ``|row i| |row j|``.

    Reads 4 n d bytes for every four rows, most of them from the device's cache.
    """
    size = len(rows)
    blocks = -(-size // SIDE)
    pairs = np.array([(i, j) for i in range(blocks) for j in range(i + 1)], dtype=np.int32)
    found = np.zeros((SIDE * blocks, SIDE * blocks))
    for (i, j), part in zip(pairs, _formed(rows, pairs), strict=True):
        found[SIDE * i : SIDE * i + SIDE, SIDE * j : SIDE * j + SIDE] = part
    lower = np.tril(found)[:size, :size]
    return lower + np.tril(lower, -1).T


def squared_norms(rows: DeviceRows) -> NDArray[np.float64]:
    """The squared norm of each row [n] in float64: the diagonal of `gram`."""
    blocks = np.arange(-(-len(rows) // SIDE), dtype=np.int32)
    formed = _formed(rows, np.stack([blocks, blocks], axis=1))
    return np.diagonal(formed, axis1=1, axis2=2).reshape(-1)[: len(rows)].copy()


def _formed(rows: DeviceRows, pairs: NDArray[np.int32]) -> NDArray[np.float64]:
    """The dot products [p, 4, 4] of pairs of blocks; a block that isn't full repeats the last row."""
    stretch = max(STRETCH, -(-rows.dimension // (STRETCHES * LANES)) * LANES)
    stretches = -(-rows.dimension // stretch)
    total = np.zeros((len(pairs), SIDE, SIDE))
    for start in range(0, len(pairs) if stretches else 0, PAIRS):
        some = pairs[start : start + PAIRS]
        partial = rows.empty(stretches, len(some), SIDE, SIDE, dtype="float64")
        _blocks[(len(some), stretches)](
            rows.addresses,
            rows.copy(some),
            partial,
            rows.dimension,
            len(rows),
            stretch=stretch,
            side=SIDE,
            lanes=LANES,
        )
        for part in partial.cpu().numpy():  # in order, so that the sum doesn't depend on how many pairs there are
            total[start : start + PAIRS] += part
    return total


@on_device
def _blocks(
    addresses: tl.tensor,
    pairs: tl.tensor,
    partial: tl.tensor,
    dimension: tl.tensor,
    size: tl.tensor,
    stretch: tl.constexpr,
    side: tl.constexpr,
    lanes: tl.constexpr,
) -> None:
    pair = tl.program_id(0)
    start = tl.program_id(1).to(tl.int64) * stretch
    rows = tl.arange(0, side)
    left = tl.minimum(tl.load(pairs + 2 * pair) * side + rows, size - 1)
    right = tl.minimum(tl.load(pairs + 2 * pair + 1) * side + rows, size - 1)
    lefts = tl.load(addresses + left).to(tl.pointer_type(tl.float32))
    rights = tl.load(addresses + right).to(tl.pointer_type(tl.float32))
    sums = tl.zeros((side, side, lanes), tl.float64)
    for piece in range(0, tl.minimum(stretch, dimension - start), lanes):
        places = start + piece + tl.arange(0, lanes)
        inside = (places < dimension)[None, :]
        a = tl.load(lefts[:, None] + places[None, :], mask=inside, other=0.0).to(tl.float64)
        b = tl.load(rights[:, None] + places[None, :], mask=inside, other=0.0).to(tl.float64)
        sums += a[:, None, :] * b[None, :, :]
    found = tl.sum(sums, axis=2)
    places = (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + pair) * side * side
    tl.store(partial + places + rows[:, None] * side + rows[None, :], found)
