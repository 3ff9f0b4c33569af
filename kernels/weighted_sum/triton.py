"""The weighted sum on a CUDA device: one program for each stretch of coordinates, rows from first to last."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from kernels.device import DeviceRows, on_device

BLOCK: Final = 1_024
"""Coordinates of one program."""


def weighted_sum(weights: NDArray[np.float64], rows: DeviceRows, out: Any, accumulate: bool) -> None:
    """Write the weighted sum of ``rows`` [n, d] into the tensor ``out`` [d], float32 or float64: the bits of the CPU's.

    Reads 4 n d bytes and writes 4 d or 8 d.
    """
    grid = (triton.cdiv(rows.dimension, BLOCK),)
    if rows.dimension:
        _weighted_sum[grid](
            rows.addresses,
            rows.copy(weights),
            out,
            rows.dimension,
            size=len(rows),
            accumulate=accumulate,
            block=BLOCK,
            enable_fp_fusion=False,  # every product and every sum is rounded, as everywhere else
        )


@on_device
def _weighted_sum(
    addresses: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    dimension: tl.tensor,
    size: tl.constexpr,
    accumulate: tl.constexpr,
    block: tl.constexpr,
) -> None:
    places = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = places < dimension
    row = tl.load(addresses).to(tl.pointer_type(tl.float32))
    total = tl.load(weights) * tl.load(row + places, mask=inside, other=0.0).to(tl.float64)
    if accumulate:
        total = tl.load(out + places, mask=inside, other=0.0).to(tl.float64) + total
    for i in range(1, size):
        row = tl.load(addresses + i).to(tl.pointer_type(tl.float32))
        total = total + tl.load(weights + i) * tl.load(row + places, mask=inside, other=0.0).to(tl.float64)
    tl.store(out + places, total.to(out.dtype.element_ty), mask=inside)
