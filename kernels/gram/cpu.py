"""The Gram matrix by blocks of 4 x 4 rows whose sums stay in vector registers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.native import carray, compiled, float64, pointer
from kernels.rows import ITEM

SIDE = 4  # rows on each side of a block: 16 sums and 8 operands fit the vector registers


@compiled("void(int64[::1], int64[::1], int64, int64, float64[:, ::1])", reassociate=True, contract=True)
def block(left: NDArray[np.int64], right: NDArray[np.int64], count: int, tile: int, out: NDArray[np.float64]) -> None:
    """Add to ``out`` [4, 4] the dot products of four rows with four others, a ``tile`` of coordinates at a time.

    Every product is exact in float64, for float32 has 24 bits. Each of the sixteen sums is formed by the same
    instructions, so a dot product doesn't depend on where in the block its rows stand.
    """
    for start in range(0, count, tile):
        size = min(tile, count - start)
        a0 = carray(pointer(left[0] + ITEM * start), (size,))
        a1 = carray(pointer(left[1] + ITEM * start), (size,))
        a2 = carray(pointer(left[2] + ITEM * start), (size,))
        a3 = carray(pointer(left[3] + ITEM * start), (size,))
        b0 = carray(pointer(right[0] + ITEM * start), (size,))
        b1 = carray(pointer(right[1] + ITEM * start), (size,))
        b2 = carray(pointer(right[2] + ITEM * start), (size,))
        b3 = carray(pointer(right[3] + ITEM * start), (size,))
        s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = 0.0
        s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = 0.0
        for k in range(size):
            x0, x1, x2, x3 = float64(a0[k]), float64(a1[k]), float64(a2[k]), float64(a3[k])
            y0, y1, y2, y3 = float64(b0[k]), float64(b1[k]), float64(b2[k]), float64(b3[k])
            s00 += x0 * y0
            s01 += x0 * y1
            s02 += x0 * y2
            s03 += x0 * y3
            s10 += x1 * y0
            s11 += x1 * y1
            s12 += x1 * y2
            s13 += x1 * y3
            s20 += x2 * y0
            s21 += x2 * y1
            s22 += x2 * y2
            s23 += x2 * y3
            s30 += x3 * y0
            s31 += x3 * y1
            s32 += x3 * y2
            s33 += x3 * y3
        out[0, 0] += s00
        out[0, 1] += s01
        out[0, 2] += s02
        out[0, 3] += s03
        out[1, 0] += s10
        out[1, 1] += s11
        out[1, 2] += s12
        out[1, 3] += s13
        out[2, 0] += s20
        out[2, 1] += s21
        out[2, 2] += s22
        out[2, 3] += s23
        out[3, 0] += s30
        out[3, 1] += s31
        out[3, 2] += s32
        out[3, 3] += s33


@compiled("void(int64[::1], int64, int64, int64, float64[:, :, :, ::1])")
def blocks(rows: NDArray[np.int64], first: int, count: int, tile: int, out: NDArray[np.float64]) -> None:
    """Add the lower triangle of blocks to ``out`` [m, m, 4, 4], for block rows from ``first`` on.

    ``rows`` [4 m] are addresses; the last ones repeat a row where n isn't a multiple of 4. A tile of all rows stays in
    the cache while every pair of blocks is formed.
    """
    for start in range(0, count, tile):
        size = min(tile, count - start)
        here = rows + ITEM * start
        for i in range(first, rows.shape[0] // SIDE):
            for j in range(i + 1):
                block(here[SIDE * i : SIDE * i + SIDE], here[SIDE * j : SIDE * j + SIDE], size, tile, out[i, j])


@compiled("void(int64[::1], int64, int64, float64[::1])", reassociate=True, contract=True)
def squared_norms(rows: NDArray[np.int64], count: int, tile: int, out: NDArray[np.float64]) -> None:
    """Add to ``out`` [n] the squared norms of rows in float64; not finite exactly where a coordinate isn't."""
    for i in range(rows.shape[0]):
        for start in range(0, count, tile):
            values = carray(pointer(rows[i] + ITEM * start), (min(tile, count - start),))
            part = 0.0
            for k in range(values.shape[0]):
                x = float64(values[k])
                part += x * x
            out[i] += part
