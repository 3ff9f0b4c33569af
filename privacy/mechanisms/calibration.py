"""How much noise a budget needs, and how long a budget lasts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from privacy.accounting.accountant import COARSE, FINE, Accountant, epsilon, gaussian_epsilon
from privacy.accounting.events import Event, GaussianEvent, merged
from privacy.accounting.losses import spread
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.schedules import NoiseSchedule

PRECISION: Final = 2e-4
"""Relative precision of a solved noise multiplier; always on the safe side."""

LARGEST: Final = 1e4
"""A noise multiplier above this isn't looked for: nothing could be learned under it."""

_SMALLEST: Final = 0.05
_LONGEST: Final = 1 << 40
# More different amounts of noise are accounted on the coarser lattice, at a thousandth more noise.
_FEW: Final = 4


def events_of(base: float, sampling_rate: float, steps: int, schedule: NoiseSchedule) -> list[Event]:
    """The events of a whole run."""
    return merged(
        [
            GaussianEvent(noise_multiplier=base * relative, sampling_rate=sampling_rate, count=count)
            for relative, count in schedule.plateaus(steps)
        ]
    )


def planned_epsilon(events: Sequence[Event], delta: float, accountant: Accountant = "pld") -> float:
    """What a planned run costs, as finely as a planner can wait for."""
    return epsilon(events, delta, accountant, interval=FINE if len(merged(events)) <= _FEW else COARSE)


def noise_multiplier_for(
    target: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    schedule: NoiseSchedule | None = None,
    *,
    accountant: Accountant = "pld",
) -> float:
    """The smallest noise multiplier of the first step with which the run keeps within ``target``.

    Formal Guarantees:
        :func:`planned_epsilon` of the run's events, an upper bound, is at most ``target``.

    Example:
        >>> round(noise_multiplier_for(1.0, 1e-5, 1.0, 1), 2)
        3.73

    Args:
        target: Epsilon.
        delta: Delta.
        sampling_rate: q in (0, 1].
        steps: Of the run.
        schedule: Of the noise; constant without it.
        accountant: "rdp" where noise may adapt within a filter, which counts in Renyi divergences.

    Raises:
        PrivacyError: "budget-impossible" if no reasonable amount of noise is enough.
    """
    schedule = schedule or NoiseSchedule()

    def enough(base: float) -> bool:
        return planned_epsilon(events_of(base, sampling_rate, steps, schedule), delta, accountant) <= target

    if not enough(LARGEST):
        raise PrivacyError(
            "budget-impossible",
            f"{steps} steps at sampling rate {sampling_rate:g} can't keep within epsilon {target:g}, delta {delta:g}",
            "Take fewer rounds or steps, a smaller sampling rate, or a larger epsilon.",
        )
    # The central limit of the composition is no bound, but a good place to look around.
    guess = _bisect(
        lambda base: _limit(events_of(base, sampling_rate, steps, schedule), delta) <= target, _SMALLEST, LARGEST, 1e-2
    )
    return _around(enough, guess)


def _limit(events: Sequence[Event], delta: float) -> float:
    """Epsilon if the sum of the privacy losses were normal."""
    variance = math.fsum(event.count * spread(event.noise_multiplier, event.sampling_rate) ** 2 for event in events)
    return gaussian_epsilon(1.0 / math.sqrt(variance), delta)


def _around(enough: Callable[[float], bool], guess: float) -> float:
    """The smallest multiplier that is enough, looked for around a guess."""
    factor = 1.02
    low = high = guess
    if enough(guess):
        while low > _SMALLEST and enough(low := max(_SMALLEST, high / factor)):
            high, factor = low, factor * factor
    else:
        while not enough(high := min(LARGEST, low * factor)):
            low, factor = high, factor * factor
    return _bisect(enough, low, high, PRECISION)


def _bisect(enough: Callable[[float], bool], low: float, high: float, precision: float) -> float:
    """The smallest multiplier from ``low`` to ``high`` (which is enough) that is, up to a relative precision."""
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

    Args:
        target: Epsilon.
        delta: Delta.
        sampling_rate: q in (0, 1].
        multiplier: Of the noise, at every step.

    Returns:
        The number of steps; 0 if a single one costs more.

    Raises:
        PrivacyError: "budget-endless" if that is more steps than anybody takes.
    """

    def affordable(steps: int) -> bool:
        event = GaussianEvent(noise_multiplier=multiplier, sampling_rate=sampling_rate, count=steps)
        return epsilon([event], delta) <= target

    if not affordable(1):
        return 0
    if affordable(_LONGEST):
        raise PrivacyError(
            "budget-endless",
            f"noise multiplier {multiplier:g} doesn't reach epsilon {target:g} in {_LONGEST} steps",
            "Name the number of rounds, or take less noise.",
        )
    high = 2
    while affordable(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if affordable(middle):
            low = middle
        else:
            high = middle
    return low
