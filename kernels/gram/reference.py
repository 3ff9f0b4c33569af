"""What the Gram matrix means: each dot product summed exactly, rounded once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def gram(rows: Sequence[NDArray[np.float32]] | NDArray[np.float32]) -> NDArray[np.float64]:
    """``out[i, j] = sum_k rows[i][k] * rows[j][k]``, each correctly rounded. Finite rows only.

    Returns:
        [n, n] float64.
    """
    wide = [row.astype(np.float64).tolist() for row in rows]
    return np.array([[math.fsum(map(float.__mul__, a, b)) for b in wide] for a in wide])
