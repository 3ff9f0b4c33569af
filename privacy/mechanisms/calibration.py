"""How much noise a budget needs, and how long a budget lasts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from privacy.accounting.accountant import COARSE, FINE, epsilon
from privacy.accounting.events import GaussianEvent, merged
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.schedules import NoiseSchedule

PRECISION: Final = 1e-3
"""Relative precision of a solved noise multiplier; always on the safe side."""

_LARGEST: Final = 1e4
_SMALLEST: Final = 0.05
_FEW: Final = 4  # different amounts of noise


def events_of(base: float, sampling_rate: float, steps: int, schedule: NoiseSchedule) -> list[GaussianEvent]:
    """The events of a whole run."""
    return merged(
        [
            GaussianEvent(noise_multiplier=value, sampling_rate=sampling_rate)
            for value in schedule.multipliers(base, steps)
        ]
    )


def noise_multiplier_for(
    target: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    schedule: NoiseSchedule | None = None,
) -> float:
    """The smallest noise multiplier of the first step with which the run keeps within ``target``.

    Formal Guarantees:
        PLD's epsilon of the run's events, at discretisation 1e-4 (1e-3 where the noise takes many values), is at most
        ``target``.

    Example:
        >>> round(noise_multiplier_for(1.0, 1e-5, 1.0, 1), 2)
        3.73

    Args:
        target: Epsilon.
        delta: Delta.
        sampling_rate: q in (0, 1].
        steps: Of the run.
        schedule: Of the noise; constant without it.

    Raises:
        PrivacyError: "budget-impossible" if no reasonable amount of noise is enough.
    """
    schedule = schedule or NoiseSchedule()

    def cost(base: float, interval: float) -> float:
        return epsilon(events_of(base, sampling_rate, steps, schedule), delta, interval=interval)

    if cost(_LARGEST, COARSE) > target:
        raise PrivacyError(
            "budget-impossible",
            f"{steps} steps at sampling rate {sampling_rate:g} can't keep within epsilon {target:g}, delta {delta:g}",
            "Take fewer rounds or steps, a smaller sampling rate, or a larger epsilon.",
        )
    several = len(events_of(1.0, sampling_rate, steps, schedule)) > _FEW
    high = _bisect(lambda base: cost(base, COARSE) <= target, PRECISION if several else 10 * PRECISION)
    if several:
        return high  # the finer discretisation would take a minute and gain a thousandth
    if cost(high, FINE) > target:
        return high  # both are upper bounds; the coarser one vouches for it
    low = high / 1.2
    while low > _SMALLEST and cost(low, FINE) <= target:
        high, low = low, low / 1.2
    while high / low > 1 + PRECISION:
        middle = math.sqrt(low * high)
        if cost(middle, FINE) <= target:
            high = middle
        else:
            low = middle
    return high


def reported_epsilon(events: list[GaussianEvent], target: float, delta: float) -> float:
    """What events cost, as finely as it matters: coarsely where that is far over ``target``, or would take long."""
    coarse = epsilon(events, delta, interval=COARSE)
    if coarse > 1.1 * target or len(merged(events)) > _FEW:
        return coarse
    return epsilon(events, delta, interval=FINE)


def _bisect(enough: Callable[[float], bool], precision: float) -> float:
    """The smallest multiplier that is enough, up to a relative precision."""
    low, high = _SMALLEST, 1.0
    while not enough(high):
        low, high = high, 4 * high
    while high / low > 1 + precision:
        middle = math.sqrt(low * high)
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def steps_until(target: float, delta: float, sampling_rate: float, multiplier: float) -> int:
    """How many steps with this noise keep within ``target``: the schedule "until exhausted".

    >>> steps_until(1.0, 1e-5, 1.0, 3.8)
    1
    """

    def cost(steps: int) -> float:
        event = GaussianEvent(noise_multiplier=multiplier, sampling_rate=sampling_rate, count=steps)
        return epsilon([event], delta, interval=COARSE)

    if cost(1) > target:
        return 0
    high = 2
    while cost(high) <= target:
        high *= 2
        if high > 1 << 40:
            raise PrivacyError("budget-endless", f"noise multiplier {multiplier:g} never reaches epsilon {target:g}")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if cost(middle) <= target:
            low = middle
        else:
            high = middle
    return low
