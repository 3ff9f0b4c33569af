"""Rows as combinations of rows, a slab of coordinates at a time: what stands before a selection."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.lanes import LANES, address, aligned, load, multiply_add, narrow, spread, store, widen, zero
from kernels.native import carray, compiled, pointer
from kernels.rows import ITEM

TILE = 32  # coordinates, four vectors: 100 rows of float64 take 25 KiB
SIDE = 4  # results and vectors of each that are formed together: 16 sums, 4 operands and a factor fit the registers

VECTOR = 8 * LANES  # bytes
ROW = 8 * TILE  # bytes of a widened tile of a row


@compiled("void(int64[::1], int64, float32[:, ::1])")
def stage(rows: NDArray[np.int64], count: int, out: NDArray[np.float32]) -> None:
    """Copy a slab of rows by address to the first of ``out`` [>= n, >= count].

    In long runs, which memory is fast at; the mixing then takes a few coordinates of each row in turn.
    """
    for i in range(rows.shape[0]):
        source = carray(pointer(rows[i]), (count,))
        target = out[i]
        for k in range(count):
            target[k] = source[k]


@compiled("void(float32[:, ::1], int64, float64[:, ::1])")
def mix(rows: NDArray[np.float32], count: int, matrix: NDArray[np.float64]) -> None:
    """Replace the first n of ``rows`` [max(m, n), w] by ``matrix`` [m, n] times them, in float64 and rounded once.

    Whole tiles up to ``count`` and what remains of the last; w is a multiple of `TILE`. In place, because a tile is
    widened whole before its results are written. float64 also because products of float32's denormals are ordinary
    numbers there, so they take no longer.
    """
    size, many = matrix.shape
    width = ITEM * rows.shape[1]
    wide = aligned(many * TILE)
    # Results that are formed beside the last ones, so that there are always four, go nowhere.
    factors = np.zeros((-(-size // SIDE) * SIDE, many))
    factors[:size] = matrix
    spare = np.empty(TILE, dtype=np.float32)
    for start in range(0, count, TILE):
        for i in range(many):
            source = address(rows) + width * i + ITEM * start
            for k in range(SIDE):
                store(address(wide) + ROW * i + VECTOR * k, widen(source + ITEM * LANES * k))
        for j in range(0, size, SIDE):
            f0, f1, f2, f3 = factors[j], factors[j + 1], factors[j + 2], factors[j + 3]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = zero()
            s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = zero()
            at = address(wide)
            for i in range(many):
                x0, x1, x2, x3 = load(at), load(at + VECTOR), load(at + 2 * VECTOR), load(at + 3 * VECTOR)
                at += ROW
                f = spread(f0[i])
                s00 = multiply_add(s00, f, x0)
                s01 = multiply_add(s01, f, x1)
                s02 = multiply_add(s02, f, x2)
                s03 = multiply_add(s03, f, x3)
                f = spread(f1[i])
                s10 = multiply_add(s10, f, x0)
                s11 = multiply_add(s11, f, x1)
                s12 = multiply_add(s12, f, x2)
                s13 = multiply_add(s13, f, x3)
                f = spread(f2[i])
                s20 = multiply_add(s20, f, x0)
                s21 = multiply_add(s21, f, x1)
                s22 = multiply_add(s22, f, x2)
                s23 = multiply_add(s23, f, x3)
                f = spread(f3[i])
                s30 = multiply_add(s30, f, x0)
                s31 = multiply_add(s31, f, x1)
                s32 = multiply_add(s32, f, x2)
                s33 = multiply_add(s33, f, x3)
            at = address(rows) + width * j + ITEM * start
            beside = address(spare)
            narrow(at, s00)
            narrow(at + 32, s01)
            narrow(at + 64, s02)
            narrow(at + 96, s03)
            to = at + width if j + 1 < size else beside
            narrow(to, s10)
            narrow(to + 32, s11)
            narrow(to + 64, s12)
            narrow(to + 96, s13)
            to = at + 2 * width if j + 2 < size else beside
            narrow(to, s20)
            narrow(to + 32, s21)
            narrow(to + 64, s22)
            narrow(to + 96, s23)
            to = at + 3 * width if j + 3 < size else beside
            narrow(to, s30)
            narrow(to + 32, s31)
            narrow(to + 64, s32)
            narrow(to + 96, s33)
