"""What the weighted sum means, one scalar operation at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def weighted_sum(
    weights: Sequence[float] | NDArray[np.float64],
    rows: Sequence[NDArray[np.float32]] | NDArray[np.float32],
) -> NDArray[np.float64]:
    """``out[k] = sum_i weights[i] * rows[i][k]`` in Python floats (IEEE 754 binary64), rows from first to last.

    Args:
        weights: [n]
        rows: n arrays [d] of float32, or one array [n, d].

    Returns:
        [d] float64.
    """
    columns = zip(*(row.tolist() for row in rows), strict=True)
    factors = [float(weight) for weight in weights]
    return np.array([_column(factors, column) for column in columns], dtype=np.float64)


def _column(factors: Sequence[float], column: Sequence[float]) -> float:
    total = factors[0] * column[0]
    for factor, value in zip(factors[1:], column[1:], strict=True):
        total += factor * value
    return total
