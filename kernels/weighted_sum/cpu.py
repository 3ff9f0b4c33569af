"""The weighted sum in numpy, by blocks that stay in the level-2 cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Three passes touch a block for each row (widen, scale, add). At 32,768 coordinates the accumulator and the scratch
# row take 512 KiB together. Measured over 2,048 to 1,048,576: slower on both sides, by a third or more at the ends.
BLOCK: Final = 32_768


def weighted_sum(
    weights: NDArray[np.float64],
    rows: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    out: NDArray[np.float64],
    *,
    accumulate: bool,
    block: int = BLOCK,
) -> None:
    """Write the weighted sum into ``out``; arguments as in `kernels.weighted_sum.weighted_sum`, unchecked.

    Widening before scaling is the faster form: a mixed-type multiplication in numpy goes through its cast buffer, which
    costs more than the extra pass in cache. numpy never contracts the product and the sum to one fused operation, so
    the order of roundings is as documented.
    """
    size = out.shape[0]
    scratch = np.empty(min(block, size), dtype=np.float64)
    # An infinite row gives inf - inf; the callers look at the result, so a warning for each block helps nobody.
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, size, block):
            total = out[start : start + block]
            term = scratch[: total.shape[0]]
            for index, weight in enumerate(weights):
                target = total if index == 0 and not accumulate else term
                target[...] = rows[index][start : start + block]
                target *= weight
                if target is term:
                    total += term
