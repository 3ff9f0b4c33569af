"""Reading a record off the gradient of a linear layer (Phong et al. 2017; Geiping et al. 2020).

For one record x, a layer y = W x + b has the gradients dW = g x^T and db = g: their quotient is the record itself.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def inverted(weight: NDArray[np.float64], bias: NDArray[np.float64]) -> NDArray[np.float64]:
    """The record that a linear layer's gradients tell of, by least squares over the rows.

    >>> inverted(np.outer([2.0, -1.0], [0.25, 0.5]), np.array([2.0, -1.0])).tolist()
    [0.25, 0.5]

    Args:
        weight: [p, d] The weight's gradient.
        bias: [p] The bias's gradient.

    Returns:
        [d] Zeros where the bias has no gradient.
    """
    norm = float(bias @ bias)
    return (bias @ weight) / norm if norm > 0 else np.zeros(weight.shape[1])


def peak_signal_to_noise(found: NDArray[np.float64], wanted: NDArray[np.float64], peak: float = 1.0) -> float:
    """How much alike two pictures are, in dB: over 40 is a copy, under 10 is nothing.

    >>> round(peak_signal_to_noise(np.array([0.1, 0.5]), np.array([0.0, 0.5])), 6)
    23.0103

    Args:
        found: The reconstruction; its values are cut to [0, ``peak``], as an attacker would.
        wanted: The record, in [0, ``peak``].
        peak: The largest value.

    Returns:
        Infinite for an exact copy.
    """
    error = float(np.mean(np.square(np.clip(found, 0.0, peak) - wanted)))
    return math.inf if error == 0 else 10.0 * math.log10(peak * peak / error)
