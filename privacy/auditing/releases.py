"""What can be seen in the releases themselves: how much noise is in them, whether it is fresh, and where it lies.

An auditor who knows the sum that went into a release subtracts it and looks at what is left. These tests find a noise
at half its scale, or one that is used twice, with a hundredth of the runs that telling two worlds apart needs.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import special

_ROWS: Final = 512


def noise_scale(residual: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Bounds of a normal noise's standard deviation, from its independent numbers, around a mean of zero.

    >>> low, high = noise_scale(np.random.default_rng(0).normal(0, 2, 10_000), 0.999)
    >>> low < 2.0 < high < 2.1
    True

    Formal Guarantees:
        For normal numbers of mean 0, each bound fails with probability at most (1 - ``confidence``) / 2. A mean that
        isn't 0 makes both larger.

    Args:
        residual: Releases without the sums that are in them.
        confidence: Of both bounds together.

    Raises:
        ValueError: No numbers.
    """
    count = residual.size
    if not count:
        raise ValueError("there is no noise to measure")
    squares = float(np.square(residual, dtype=np.float64).sum())
    tail = (1 - confidence) / 2
    # The sum of squares over the variance is chi-squared with as many degrees of freedom as numbers.
    low, high = (float(special.chdtri(count, probability)) for probability in (tail, 1 - tail))
    return math.sqrt(squares / low), math.sqrt(squares / high) if high else math.inf


def largest_correlation(residuals: NDArray[np.float64]) -> float:
    """The largest correlation, in absolute value, between the noises of any two releases.

    Noise that was drawn twice shows as one of about 1, even if its scale has changed in between.

    Args:
        residuals: [T, n] The noise of each release.

    Returns:
        0 for a single release.
    """
    centred = residuals - residuals.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0)
    largest = 0.0
    for first in range(0, len(unit), _ROWS):
        products = np.abs(unit[first : first + _ROWS] @ unit[first:].T)
        np.fill_diagonal(products, 0.0)
        largest = max(largest, float(products.max(initial=0.0)))
    return largest


def correlation_bound(releases: int, size: int, error: float) -> float:
    """What :func:`largest_correlation` of fresh noise exceeds with probability at most ``error``.

    >>> correlation_bound(2, 5, 1e-3) < 1.0 < correlation_bound(2, 3, 1e-9) + 1e-3
    True

    Args:
        releases: T.
        size: n, numbers of each; under 3 nothing can be said, and the bound is 1.
        error: In (0, 1).
    """
    pairs = releases * (releases - 1) // 2
    if pairs < 1 or size < 3:
        return 1.0
    # r^2 of two independent normal vectors is Beta(1/2, (n - 2) / 2); one degree is lost to the mean.
    return math.sqrt(float(special.betaincinv(0.5, (size - 2) / 2, 1 - error / pairs)))


def off_lattice(values: NDArray[np.floating[Any]] | NDArray[np.integer[Any]], unit: float) -> float:
    """The share of values that aren't integer multiples of ``unit``, to the precision of their type.

    >>> off_lattice(np.array([0.5, -1.5, 0.7], np.float32), 0.5)
    0.3333333333333333
    """
    if not values.size:
        return 0.0
    multiples = np.rint(values.astype(np.float64) / unit)
    return float(np.mean((multiples * unit).astype(values.dtype) != values))
