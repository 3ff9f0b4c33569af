"""Selection over cached tiles by a table of comparators, for any number of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.lanes import address, aligned
from kernels.native import carray, compiled, float32, pointer
from kernels.rows import ITEM
from kernels.singles import fetch, lower, put, upper

TILE = 64  # coordinates: four vectors of 16; 100 rows of a tile take 25 KiB


@compiled("void(int64[::1], int64, int64[:, ::1], int64, int64, int64, float32, float32[::1])")
def select(
    rows: NDArray[np.int64],
    count: int,
    table: NDArray[np.int64],
    first: int,
    last: int,
    around: int,
    infinity: float,
    out: NDArray[np.float32],
) -> None:
    """Write the mean of the wanted values at each coordinate into ``out`` [count].

    Args:
        rows: [m] addresses.
        count: Coordinates.
        table: [c, 2] comparators.
        first: Lowest wanted rank, where ``around`` is 0.
        last: One past the highest.
        around: How many values nearest the median are wanted; 0 for ranks.
        infinity: Told and not written out, or the compiler takes the guard against NaN for a test of equality.
        out: [count].
    """
    size = rows.shape[0]
    tile = aligned(size * TILE // 2).view(np.float32).reshape((size, TILE))
    tile[:] = float32(0.0)
    chosen = np.zeros((max(around, 1), TILE), dtype=np.float32)
    middle = np.zeros(TILE, dtype=np.float32)
    half = float32(0.5)
    zero = float32(0.0)
    for start in range(0, count, TILE):
        width = min(TILE, count - start)
        for i in range(size):
            source = carray(pointer(rows[i] + ITEM * start), (width,))
            target = tile[i]
            for k in range(width):
                value = source[k]
                target[k] = value if value < infinity else infinity
        for c in range(table.shape[0]):
            low = address(tile) + ITEM * TILE * table[c, 0]
            high = address(tile) + ITEM * TILE * table[c, 1]
            x0, x1, x2, x3 = fetch(low), fetch(low + 64), fetch(low + 128), fetch(low + 192)
            y0, y1, y2, y3 = fetch(high), fetch(high + 64), fetch(high + 128), fetch(high + 192)
            put(low, lower(x0, y0))
            put(low + 64, lower(x1, y1))
            put(low + 128, lower(x2, y2))
            put(low + 192, lower(x3, y3))
            put(high, upper(x0, y0))
            put(high + 64, upper(x1, y1))
            put(high + 128, upper(x2, y2))
            put(high + 192, upper(x3, y3))
        kept = last - first
        values = tile[first:last]
        if around > 0:
            kept = around
            values = chosen
            below = tile[(size - 1) // 2]
            above = tile[size // 2]
            for k in range(TILE):
                middle[k] = below[k] * half + above[k] * half
            chosen[:] = tile[:around]
            for place in range(size - around):
                near = tile[place + around]
                far = tile[place]
                target = chosen[place % around]
                for k in range(TILE):
                    target[k] = near[k] if abs(near[k] - middle[k]) < abs(far[k] - middle[k]) else target[k]
        left = kept
        while left > 1:
            step = (left + 1) // 2
            for i in range(left // 2):
                onto = values[i]
                more = values[i + step]
                for k in range(TILE):
                    onto[k] += more[k]
            left = step
        total = values[0]
        divisor = float32(kept)
        for k in range(width):
            out[start + k] = total[k] / divisor + zero
