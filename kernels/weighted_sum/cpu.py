"""The weighted sum by tiles whose accumulators stay in the level-2 cache, eight rows at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.native import carray, compiled, float64, pointer
from kernels.rows import ITEM

# Coordinates: 512 KiB of float64. Long runs of each row matter more to the memory than near accumulators: 2,048
# coordinates take twice as long.
TILE = 65_536


@compiled(
    "void(float64[::1], int64[::1], int64, float64[::1], boolean, float64[::1])",
    "void(float64[::1], int64[::1], int64, float32[::1], boolean, float64[::1])",
)
def weighted_sum(
    weights: NDArray[np.float64],
    rows: NDArray[np.int64],
    count: int,
    out: NDArray[np.float64] | NDArray[np.float32],
    accumulate: bool,
    total: NDArray[np.float64],
) -> None:
    """Write the weighted sum of rows by address into ``out`` [count]; ``total`` [TILE] is working space.

    Compiled without leave to fuse or reorder, so the roundings are those of the reference.
    """
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        first = 0
        if accumulate:
            for k in range(size):
                total[k] = float64(out[start + k])
        elif rows.shape[0] >= 8:
            r0 = carray(pointer(rows[0] + ITEM * start), (size,))
            r1 = carray(pointer(rows[1] + ITEM * start), (size,))
            r2 = carray(pointer(rows[2] + ITEM * start), (size,))
            r3 = carray(pointer(rows[3] + ITEM * start), (size,))
            r4 = carray(pointer(rows[4] + ITEM * start), (size,))
            r5 = carray(pointer(rows[5] + ITEM * start), (size,))
            r6 = carray(pointer(rows[6] + ITEM * start), (size,))
            r7 = carray(pointer(rows[7] + ITEM * start), (size,))
            w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
            w4, w5, w6, w7 = weights[4], weights[5], weights[6], weights[7]
            for k in range(size):
                value = w0 * float64(r0[k]) + w1 * float64(r1[k])
                value = value + w2 * float64(r2[k])
                value = value + w3 * float64(r3[k])
                value = value + w4 * float64(r4[k])
                value = value + w5 * float64(r5[k])
                value = value + w6 * float64(r6[k])
                total[k] = value + w7 * float64(r7[k])
            first = 8
        else:
            row = carray(pointer(rows[0] + ITEM * start), (size,))
            factor = weights[0]
            for k in range(size):
                total[k] = factor * float64(row[k])
            first = 1
        while first + 8 <= rows.shape[0]:
            r0 = carray(pointer(rows[first] + ITEM * start), (size,))
            r1 = carray(pointer(rows[first + 1] + ITEM * start), (size,))
            r2 = carray(pointer(rows[first + 2] + ITEM * start), (size,))
            r3 = carray(pointer(rows[first + 3] + ITEM * start), (size,))
            r4 = carray(pointer(rows[first + 4] + ITEM * start), (size,))
            r5 = carray(pointer(rows[first + 5] + ITEM * start), (size,))
            r6 = carray(pointer(rows[first + 6] + ITEM * start), (size,))
            r7 = carray(pointer(rows[first + 7] + ITEM * start), (size,))
            w0, w1, w2, w3 = weights[first], weights[first + 1], weights[first + 2], weights[first + 3]
            w4, w5, w6, w7 = weights[first + 4], weights[first + 5], weights[first + 6], weights[first + 7]
            for k in range(size):
                value = total[k] + w0 * float64(r0[k])
                value = value + w1 * float64(r1[k])
                value = value + w2 * float64(r2[k])
                value = value + w3 * float64(r3[k])
                value = value + w4 * float64(r4[k])
                value = value + w5 * float64(r5[k])
                value = value + w6 * float64(r6[k])
                total[k] = value + w7 * float64(r7[k])
            first += 8
        while first + 4 <= rows.shape[0]:
            r0 = carray(pointer(rows[first] + ITEM * start), (size,))
            r1 = carray(pointer(rows[first + 1] + ITEM * start), (size,))
            r2 = carray(pointer(rows[first + 2] + ITEM * start), (size,))
            r3 = carray(pointer(rows[first + 3] + ITEM * start), (size,))
            w0, w1, w2, w3 = weights[first], weights[first + 1], weights[first + 2], weights[first + 3]
            for k in range(size):
                value = total[k] + w0 * float64(r0[k])
                value = value + w1 * float64(r1[k])
                value = value + w2 * float64(r2[k])
                total[k] = value + w3 * float64(r3[k])
            first += 4
        while first < rows.shape[0]:
            row = carray(pointer(rows[first] + ITEM * start), (size,))
            factor = weights[first]
            for k in range(size):
                total[k] += factor * float64(row[k])
            first += 1
        for k in range(size):
            out[start + k] = total[k]
