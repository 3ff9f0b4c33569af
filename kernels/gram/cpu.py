"""The Gram matrix by blocks of 4 x 4 rows whose sums stay in vector registers.

Rows are widened piece by piece into the cache while the next pieces are fetched (Goto and van de Geijn, "Anatomy of
High-Performance Matrix Multiplication", ACM TOMS 2008).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.lanes import LANES, address, aligned, load, multiply_add, prefetch, store, widen, zero
from kernels.native import carray, compiled, float64, pointer
from kernels.rows import ITEM

SIDE = 4  # rows on each side of a block: 16 sums and 8 operands fit the vector registers
PANEL = 32  # blocks on each side of what is formed at a time: up to 1 MiB of sums
PIECE = 128  # coordinates that are widened at a time: 20 rows of them fit the level-1 cache, 100 the level-2 cache
LINE = 64  # bytes that come from memory together

VECTOR = 8 * LANES  # bytes
ROW = 8 * PIECE  # bytes of a widened piece
SUMS = SIDE * SIDE * VECTOR  # bytes of a block's sums


@compiled("void(int64, int64, int64, int64)")
def block(left: int, right: int, vectors: int, sums: int) -> None:
    """Add the products of four widened rows with four others to the 16 x 8 sums at an address.

    Every product is exact in float64, for float32 has 24 bits. Each of the sixteen sums is formed by the same
    instructions, so a dot product doesn't depend on where in the block its rows stand.
    """
    s00, s01, s02, s03 = load(sums), load(sums + 64), load(sums + 128), load(sums + 192)
    s10, s11, s12, s13 = load(sums + 256), load(sums + 320), load(sums + 384), load(sums + 448)
    s20, s21, s22, s23 = load(sums + 512), load(sums + 576), load(sums + 640), load(sums + 704)
    s30, s31, s32, s33 = load(sums + 768), load(sums + 832), load(sums + 896), load(sums + 960)
    for k in range(0, vectors * VECTOR, VECTOR):
        x0, x1, x2, x3 = load(left + k), load(left + k + ROW), load(left + k + 2 * ROW), load(left + k + 3 * ROW)
        y0, y1, y2, y3 = load(right + k), load(right + k + ROW), load(right + k + 2 * ROW), load(right + k + 3 * ROW)
        s00 = multiply_add(s00, x0, y0)
        s01 = multiply_add(s01, x0, y1)
        s02 = multiply_add(s02, x0, y2)
        s03 = multiply_add(s03, x0, y3)
        s10 = multiply_add(s10, x1, y0)
        s11 = multiply_add(s11, x1, y1)
        s12 = multiply_add(s12, x1, y2)
        s13 = multiply_add(s13, x1, y3)
        s20 = multiply_add(s20, x2, y0)
        s21 = multiply_add(s21, x2, y1)
        s22 = multiply_add(s22, x2, y2)
        s23 = multiply_add(s23, x2, y3)
        s30 = multiply_add(s30, x3, y0)
        s31 = multiply_add(s31, x3, y1)
        s32 = multiply_add(s32, x3, y2)
        s33 = multiply_add(s33, x3, y3)
    store(sums, s00)
    store(sums + 64, s01)
    store(sums + 128, s02)
    store(sums + 192, s03)
    store(sums + 256, s10)
    store(sums + 320, s11)
    store(sums + 384, s12)
    store(sums + 448, s13)
    store(sums + 512, s20)
    store(sums + 576, s21)
    store(sums + 640, s22)
    store(sums + 704, s23)
    store(sums + 768, s30)
    store(sums + 832, s31)
    store(sums + 896, s32)
    store(sums + 960, s33)


@compiled("void(int64[::1], int64, int64, float64[::1])")
def widened(rows: NDArray[np.int64], start: int, width: int, out: NDArray[np.float64]) -> None:
    """Write ``width`` coordinates of each row to ``out`` [m, PIECE] as float64, and zeros behind them."""
    for i in range(rows.shape[0]):
        source = rows[i] + ITEM * start
        target = address(out) + ROW * i
        for k in range(0, width // (2 * LANES)):
            store(target + 2 * VECTOR * k, widen(source + LINE * k))
            store(target + 2 * VECTOR * k + VECTOR, widen(source + LINE * k + LINE // 2))
        if width < PIECE:
            rest = carray(pointer(source), (width,))
            for k in range(width // (2 * LANES) * 2 * LANES, PIECE):
                out[PIECE * i + k] = float64(rest[k]) if k < width else 0.0


@compiled("float64(float64[::1])")
def added(lanes: NDArray[np.float64]) -> float:
    """The sum of eight lanes, as a tree."""
    found: float = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
    return found


@compiled("void(float64[::1], float64[:, ::1])")
def flush(sums: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Add a block's sums [4, 4, 8] to ``out`` [4, 4] and set them to 0."""
    for i in range(SIDE):
        for j in range(SIDE):
            out[i, j] += added(sums[LANES * (SIDE * i + j) : LANES * (SIDE * i + j + 1)])
    sums[:] = 0.0


@compiled("void(int64[::1], int64, int64, int64, int64, int64, int64, float64[:, :, :, ::1])")
def panel(
    rows: NDArray[np.int64],
    top: int,
    bottom: int,
    left: int,
    right: int,
    count: int,
    run: int,
    out: NDArray[np.float64],
) -> None:
    """Add block rows ``top`` to ``bottom`` - 1 by block columns ``left`` to ``right`` - 1, as far as they lie below."""
    diagonal = left <= top < right
    columns = SIDE * ((bottom if diagonal else right) - left)  # on the diagonal the rows are among the columns
    here = rows[SIDE * left : SIDE * left + columns]
    if not diagonal:
        here = np.concatenate((here, rows[SIDE * top : SIDE * bottom]))
    first = SIDE * (top - left) if diagonal else columns
    wide = aligned(len(here) * PIECE)
    sums = aligned((bottom - top) * (right - left) * SIDE * SIDE * LANES)
    sums[:] = 0.0
    # Runs of a piece are too short for the processor to see where they lead. So each block fetches a share of what
    # will be widened after the next piece.
    share = len(here) * ITEM * PIECE // LINE // max((bottom - top) * (right - left + 1) // 2, 1) + 1
    for start in range(0, count, run):
        size = min(run, count - start)
        for piece in range(0, size, PIECE):
            width = min(PIECE, size - piece)
            widened(here, start + piece, width, wide)
            ahead = ITEM * (start + piece + 2 * PIECE)
            fetched, at = 0, 0
            for i in range(bottom - top):
                for j in range(min(right, top + i + 1) - left):
                    for _ in range(share):
                        if fetched < len(here):
                            prefetch(here[fetched] + ahead + at)
                            at += LINE
                            if at == ITEM * PIECE:
                                fetched, at = fetched + 1, 0
                    block(
                        address(wide) + ROW * (first + SIDE * i),
                        address(wide) + ROW * SIDE * j,
                        -(-width // LANES),
                        address(sums) + SUMS * (i * (right - left) + j),
                    )
        for i in range(bottom - top):
            for j in range(min(right, top + i + 1) - left):
                place = SIDE * SIDE * LANES * (i * (right - left) + j)
                flush(sums[place : place + SIDE * SIDE * LANES], out[top + i, left + j])


@compiled("void(int64[::1], int64, int64, int64, float64[:, :, :, ::1])")
def blocks(rows: NDArray[np.int64], first: int, count: int, run: int, out: NDArray[np.float64]) -> None:
    """Add the lower triangle of blocks to ``out`` [m, m, 4, 4], for block rows from ``first`` on.

    ``rows`` [4 m] are addresses; the last ones repeat a row where n isn't a multiple of 4. Each lane sums over a
    ``run`` of coordinates before its sum goes to ``out``.
    """
    size = rows.shape[0] // SIDE
    for start in range(first // PANEL * PANEL, size, PANEL):
        for left in range(0, start + 1, PANEL):
            bottom = min(start + PANEL, size)
            panel(rows, max(start, first), bottom, left, min(left + PANEL, bottom), count, run, out)


@compiled("void(int64[::1], int64, int64, float64[::1])")
def squared_norms(rows: NDArray[np.int64], count: int, run: int, out: NDArray[np.float64]) -> None:
    """Add to ``out`` [n] the squared norms of rows in float64: the bits that `blocks` has on its diagonal."""
    sums = aligned(LANES)
    rest = np.zeros(LANES, dtype=np.float32)
    for i in range(rows.shape[0]):
        for start in range(0, count, run):
            size = min(run, count - start)
            at = rows[i] + ITEM * start
            s = zero()
            for k in range(size // LANES):
                x = widen(at + ITEM * LANES * k)
                s = multiply_add(s, x, x)
            if size % LANES:
                left = size % LANES
                rest[:left] = carray(pointer(at + ITEM * (size - left)), (left,))
                x = widen(address(rest))
                s = multiply_add(s, x, x)
            store(address(sums), s)
            out[i] += added(sums)
