"""Noise that follows the training: more exact where the signal is weak, and always within a filter's budget.

How much noise a step gets is decided from what was released before, which costs nothing by itself. But composition, as
it is usually computed, assumes noise that was fixed beforehand. So what may be released is decided by a privacy filter
(``privacy.accounting.filters``) that was fixed with the plan.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable
from typing import TypeAlias

from privacy.accounting.events import Event, GaussianEvent, merged
from privacy.accounting.filters import GdpFilter, RdpFilter
from privacy.mechanisms.errors import PrivacyError

Filter: TypeAlias = RdpFilter | GdpFilter


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveNoise:
    """How the noise follows the ratio of signal to noise in the released gradients.

    Args:
        target: Energy of the signal over the energy of the noise that is aimed at, positive. Weaker signals get less
            noise, stronger ones more.
        smoothing: Weight of the past in the mean of that ratio, in [0, 1).
        change: The factor by which one step's noise differs from the next one's, if it does; above 1. The noise takes
            the values of a ladder with this ratio, few enough for any accountant.
        lowest: Least noise, relative to the planned; in (0, 1].
        highest: Most noise, relative to the planned; at least 1.

    Raises:
        PrivacyError: "adaptive-invalid".
    """

    target: float = 0.01
    smoothing: float = 0.9
    change: float = 1.05
    lowest: float = 0.8
    highest: float = 1.25

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, possible in (
            ("target", 0.0 < self.target < math.inf),
            ("smoothing", 0.0 <= self.smoothing < 1.0),
            ("change", 1.0 < self.change < math.inf),
            ("lowest", 0.0 < self.lowest <= 1.0),
            ("highest", 1.0 <= self.highest < math.inf),
        ):
            if not possible:
                raise PrivacyError(
                    "adaptive-invalid",
                    f"adaptive noise can't have {name} = {getattr(self, name)}",
                    "target > 0, 0 <= smoothing < 1, change > 1, 0 < lowest <= 1 <= highest.",
                )


class NoiseControl:
    """The noise of the steps to come, from what was released so far.

    Formal Guarantees:
        All releases whose noise :meth:`multiplier` gave are together (epsilon, delta)-differentially private with the
        filter's epsilon and delta, however the releases came out: a step is given noise only if the filter allows it
        after all that :meth:`released` was told of. What :meth:`released` is told must itself be released or public.

    Args:
        rule: How noise follows the signal.
        guard: The filter that was fixed with the plan.
        planned: Noise multiplier of a step if nothing adapts; the first step has it.
        sampling_rate: Of every step.
        spent: What was released before, from the ledger, where a run is taken up again.
    """

    def __init__(
        self,
        rule: AdaptiveNoise,
        guard: Filter,
        *,
        planned: float,
        sampling_rate: float,
        spent: Iterable[Event] = (),
    ) -> None:
        self._rule = rule
        self._guard = guard
        self._planned = planned
        self._rate = sampling_rate
        self._spent = merged(list(spent))
        self._level = 0
        self._ratio: float | None = None

    @property
    def spent(self) -> list[Event]:
        """What was released so far."""
        return list(self._spent)

    def resumed(self, spent: Iterable[Event]) -> NoiseControl:
        """One that goes on from here by itself, with the ledger's account of what was released."""
        other = copy.copy(self)
        other._spent = merged(list(spent))
        return other

    def most(self, steps: int) -> list[Event]:
        """What so many steps may cost at most, to be reserved; nothing if there is no room for a single one.

        Where there isn't room for all of them with the least noise, releases without sampling get all that is left of
        the filter's budget, as one release: they add up to it (see :class:`~privacy.accounting.filters.GdpFilter`).
        """
        least = dataclasses.replace(self._event(self._rule.lowest * self._planned), count=steps)
        if self._guard.allows(self._spent, least):
            return [least]
        if not self._guard.allows(self._spent, self._event(self._rule.highest * self._planned)):
            return []
        if isinstance(self._guard, RdpFilter):
            return [least]
        left = self._guard.budget - self._guard.spent(self._spent)
        return [self._event(left**-0.5)]

    def multiplier(self) -> float | None:
        """The noise multiplier of the next step, to be accounted; None if the budget is exhausted.

        Where the budget has no room for the wanted noise any more, it is the least noise that there is room for.
        """
        level = self._level
        while True:
            found = self._planned * min(max(self._rule.change**level, self._rule.lowest), self._rule.highest)
            if self._guard.allows(self._spent, self._event(found)):
                return found
            if found >= self._rule.highest * self._planned:
                return None
            level += 1

    def released(self, multiplier: float, *, energy: float, std: float, dimension: int) -> None:
        """Take in what a step has released.

        Args:
            multiplier: Of its noise.
            energy: Squared L2 norm of the noisy sum.
            std: Standard deviation of its noise, in the sum's units.
            dimension: d.
        """
        self._spent = merged([*self._spent, self._event(multiplier)])
        noise = dimension * std * std
        # Without bias, and so noisy that it may be negative.
        ratio = energy / noise - 1.0
        if not math.isfinite(ratio):
            return
        kept = self._rule.smoothing
        self._ratio = ratio if self._ratio is None else kept * self._ratio + (1.0 - kept) * ratio
        wanted = math.sqrt(max(self._ratio, 0.0) / self._rule.target)
        change = self._rule.change
        if wanted >= change and change**self._level < self._rule.highest:
            self._level += 1
        elif wanted <= 1.0 / change and change**self._level > self._rule.lowest:
            self._level -= 1

    def _event(self, multiplier: float) -> Event:
        return GaussianEvent(noise_multiplier=multiplier, sampling_rate=self._rate)
