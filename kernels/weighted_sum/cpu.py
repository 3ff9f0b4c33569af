"""The weighted sum by tiles whose accumulators stay in the level-2 cache, four rows at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.native import carray, compiled, float64, pointer
from kernels.rows import ITEM

# Coordinates: 512 KiB of float64. Long runs of each row matter more to the memory than near accumulators: 2,048
# coordinates take twice as long.
TILE = 65_536


@compiled(
    "void(float64[::1], int64[::1], int64, float64[::1], boolean)",
    "void(float64[::1], int64[::1], int64, float32[::1], boolean)",
)
def weighted_sum(
    weights: NDArray[np.float64], rows: NDArray[np.int64], count: int, out: NDArray[np.float64], accumulate: bool
) -> None:
    """Write the weighted sum of rows by address into ``out`` [count].

    Compiled without leave to fuse or reorder, so the roundings are those of the reference.
    """
    total = np.empty(min(TILE, count), dtype=np.float64)
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        first = 0
        if accumulate:
            for k in range(size):
                total[k] = float64(out[start + k])
        elif rows.shape[0] >= 4:
            a = carray(pointer(rows[0] + ITEM * start), (size,))
            b = carray(pointer(rows[1] + ITEM * start), (size,))
            c = carray(pointer(rows[2] + ITEM * start), (size,))
            d = carray(pointer(rows[3] + ITEM * start), (size,))
            p, q, r, s = weights[0], weights[1], weights[2], weights[3]
            for k in range(size):
                value = p * float64(a[k]) + q * float64(b[k])
                value = value + r * float64(c[k])
                total[k] = value + s * float64(d[k])
            first = 4
        else:
            row = carray(pointer(rows[0] + ITEM * start), (size,))
            factor = weights[0]
            for k in range(size):
                total[k] = factor * float64(row[k])
            first = 1
        while first + 4 <= rows.shape[0]:
            a = carray(pointer(rows[first] + ITEM * start), (size,))
            b = carray(pointer(rows[first + 1] + ITEM * start), (size,))
            c = carray(pointer(rows[first + 2] + ITEM * start), (size,))
            d = carray(pointer(rows[first + 3] + ITEM * start), (size,))
            p, q, r, s = weights[first], weights[first + 1], weights[first + 2], weights[first + 3]
            for k in range(size):
                value = total[k] + p * float64(a[k])
                value = value + q * float64(b[k])
                value = value + r * float64(c[k])
                total[k] = value + s * float64(d[k])
            first += 4
        while first < rows.shape[0]:
            row = carray(pointer(rows[first] + ITEM * start), (size,))
            factor = weights[first]
            for k in range(size):
                total[k] += factor * float64(row[k])
            first += 1
        for k in range(size):
            out[start + k] = total[k]
