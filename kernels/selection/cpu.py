"""Selection over cached tiles by a table of comparators, for any number of rows; and the mixing of rows in a tile."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.native import carray, compiled, float32, float64, pointer
from kernels.rows import ITEM

MIX_TILE = 128  # coordinates: 20 rows of float64 take 20 KiB
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
    tile = np.zeros((size, TILE), dtype=np.float32)
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
            low = tile[table[c, 0]]
            high = tile[table[c, 1]]
            for k in range(TILE):
                x = low[k]
                y = high[k]
                low[k] = x if x < y else y
                high[k] = x if x > y else y
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
                lower = values[i]
                upper = values[i + step]
                for k in range(TILE):
                    lower[k] += upper[k]
            left = step
        total = values[0]
        divisor = float32(kept)
        for k in range(width):
            out[start + k] = total[k] / divisor + zero


@compiled("void(int64[::1], int64, float64[:, ::1], float32[:, ::1])", contract=True)
def mix(rows: NDArray[np.int64], count: int, matrix: NDArray[np.float64], out: NDArray[np.float32]) -> None:
    """Write ``matrix`` [m, n] times the rows into ``out`` [m, >= count], in float64 and rounded once.

    Four results and four rows at a time, so that sixteen products are formed for eight values from the cache. float64
    also because the products of float32's denormals are ordinary numbers there, so they take no longer.
    """
    size = rows.shape[0]
    padded = (size + 3) // 4 * 4
    fours = (matrix.shape[0] + 3) // 4
    factors = np.zeros((4 * fours, padded), dtype=np.float64)
    factors[: matrix.shape[0], :size] = matrix
    # Flat, so that the compiler sees offsets from one base where it must exclude overlaps.
    wide = np.zeros(padded * MIX_TILE, dtype=np.float64)
    sums = np.zeros(4 * MIX_TILE, dtype=np.float64)
    for start in range(0, count, MIX_TILE):
        width = min(MIX_TILE, count - start)
        for i in range(size):
            source = carray(pointer(rows[i] + ITEM * start), (width,))
            target = wide[i * MIX_TILE : i * MIX_TILE + MIX_TILE]
            for k in range(width):
                target[k] = float64(source[k])
        for j in range(0, 4 * fours, 4):
            sums[:] = 0.0
            f0, f1, f2, f3 = factors[j], factors[j + 1], factors[j + 2], factors[j + 3]
            for i in range(0, padded, 4):
                part = wide[i * MIX_TILE : (i + 4) * MIX_TILE]
                p0, p1, p2, p3 = f0[i], f0[i + 1], f0[i + 2], f0[i + 3]
                q0, q1, q2, q3 = f1[i], f1[i + 1], f1[i + 2], f1[i + 3]
                r0, r1, r2, r3 = f2[i], f2[i + 1], f2[i + 2], f2[i + 3]
                s0, s1, s2, s3 = f3[i], f3[i + 1], f3[i + 2], f3[i + 3]
                for k in range(MIX_TILE):
                    a, b, c, d = part[k], part[k + MIX_TILE], part[k + 2 * MIX_TILE], part[k + 3 * MIX_TILE]
                    sums[k] = sums[k] + p0 * a + p1 * b + p2 * c + p3 * d
                    sums[k + MIX_TILE] = sums[k + MIX_TILE] + q0 * a + q1 * b + q2 * c + q3 * d
                    sums[k + 2 * MIX_TILE] = sums[k + 2 * MIX_TILE] + r0 * a + r1 * b + r2 * c + r3 * d
                    sums[k + 3 * MIX_TILE] = sums[k + 3 * MIX_TILE] + s0 * a + s1 * b + s2 * c + s3 * d
            for row in range(j, min(j + 4, matrix.shape[0])):
                result = sums[(row - j) * MIX_TILE : (row - j + 1) * MIX_TILE]
                target_row = out[row, start : start + width]
                for k in range(width):
                    target_row[k] = float32(result[k])
