"""Renyi differential privacy of Gaussian releases on Poisson samples: a quick bound, and what filters count in.

The divergence of a release (Mironov, Talwar & Zhang 2019, arXiv 1908.10530) is computed as the integral that defines
it, for any order; the conversion to epsilon is that of Canonne, Kamath & Steinke (2020, arXiv 2004.00010,
Proposition 12).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.accounting.events import Event

ORDERS: Final = (
    *(1.1 + step / 10 for step in range(99)),
    *(float(order) for order in range(11, 64)),
    *(64.0 * 2.0 ** (step / 4) for step in range(17)),
)
"""Orders among which the best is taken: from 1.1 for large epsilon to 1024 for small."""

# The trapezoidal rule converges faster than any power for a smooth integrand that decays like a normal density. At
# sixteen points a standard deviation its error is below float64's rounding.
_POINTS: Final = 16
_CUT: Final = 12.0
_ROUNDING: Final = 1e-15
# Standard deviations over which the integral is computed; beyond, noise is so small that nothing is amplified.
_FARTHEST: Final = 2e4


def divergence(sigma: float, rate: float, order: float) -> float:
    """The Renyi divergence of one release.

    Formal Guarantees:
        Adding noise of ``sigma`` times the sensitivity to a sum over a Poisson sample of rate q is (order,
        divergence)-Renyi differentially private for adding or removing one unit: removing is the worse of both.

    >>> divergence(2.0, 1.0, 8.0)
    1.0

    Args:
        sigma: Noise multiplier.
        rate: q in (0, 1].
        order: Above 1.
    """
    return float(_divergences(sigma, rate, (order,))[0])


@functools.lru_cache(maxsize=4096)
def _divergences(sigma: float, rate: float, orders: tuple[float, ...]) -> NDArray[np.float64]:
    """Of each order, [k]: log E (1 - q + q e^((2 x - 1) / (2 s^2)))^order / (order - 1) for x ~ N(0, s^2)."""
    powers = np.array(orders)
    if rate == 1.0:
        return powers / (2.0 * sigma * sigma)
    # Sampling never makes a release cost more.
    found = powers / (2.0 * sigma * sigma)
    for index, order in enumerate(orders):
        if order / sigma > _FARTHEST:
            continue
        # The integrand has its mass between that of the density and that of the density moved to ``order``.
        points = np.arange(-_CUT, order / sigma + _CUT, 1.0 / _POINTS)
        losses = np.logaddexp(math.log1p(-rate), math.log(rate) + points / sigma - 0.5 / (sigma * sigma))
        exponents = order * losses - 0.5 * points * points
        top = float(exponents.max())
        mass = math.log(float(np.exp(exponents - top).sum()) / _POINTS / math.sqrt(2.0 * math.pi)) + top
        found[index] = min(found[index], (max(mass, 0.0) + _ROUNDING) / (order - 1.0))
    return found


def rdp_epsilon(events: Sequence[Event], delta: float) -> float:
    """The epsilon of events by their Renyi divergences, at the order where it is lowest.

    Args:
        events: At least one.
        delta: In (0, 1).
    """
    total = np.zeros(len(ORDERS))
    for event in events:
        total += event.count * _divergences(event.noise_multiplier, event.sampling_rate, ORDERS)
    orders = np.array(ORDERS)
    found = total + np.log1p(-1.0 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1.0)
    return max(0.0, float(found.min()))
