"""How the noise changes over a run: schedules that are fixed before it begins.

A schedule gives the noise of each step relative to a base that is solved for the budget. Fixed beforehand, a changing
noise costs nothing beyond what its events cost; noise that is chosen from what was released needs a filter
(``privacy.accounting.filters``).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Final, Literal, TypeAlias

from privacy.mechanisms.errors import PrivacyError

Kind: TypeAlias = Literal["constant", "linear", "exponential", "step", "spend-later"]

LEVELS: Final = 16
"""A schedule takes at most so many different values, so that accounting stays quick; steps are rounded down to them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """Noise of a step relative to the first one's.

    Args:
        kind: "constant"; "linear" or "exponential" from 1 to ``end``; "step": 1 in the first half, then ``end``;
            "spend-later": 1 for three quarters of the run, then exponentially to ``end``.
        end: Noise of the last step relative to the first, positive. Below 1 later steps are the more exact ones.

    Raises:
        PrivacyError: "schedule-invalid".
    """

    kind: Kind = "constant"
    end: float = 1.0

    def __post_init__(self) -> None:
        """Check the range."""
        if self.kind not in ("constant", "linear", "exponential", "step", "spend-later"):
            raise PrivacyError("schedule-invalid", f"there is no noise schedule {self.kind!r}")
        if not 0 < self.end < math.inf or (self.kind == "constant" and self.end != 1.0):
            raise PrivacyError(
                "schedule-invalid", f"a {self.kind} schedule can't end at {self.end} times the noise it begins with"
            )

    def relative(self, step: int, steps: int) -> float:
        """The noise of step ``step`` (from 0) of ``steps``, relative to the first one's."""
        if not 0 <= step < steps:
            raise PrivacyError("schedule-invalid", f"step {step} isn't one of {steps}")
        if self.kind == "constant":
            return 1.0
        # Rounding progress to levels gives few different values.
        levels = min(LEVELS, steps)
        level = step * levels // steps
        progress = level / (levels - 1) if levels > 1 else 0.0
        if self.kind == "linear":
            return 1.0 + (self.end - 1.0) * progress
        if self.kind == "exponential":
            return float(self.end**progress)
        if self.kind == "step":
            return 1.0 if 2 * step < steps else self.end
        return float(self.end ** max(0.0, 4.0 * progress - 3.0))

    def plateaus(self, steps: int) -> list[tuple[float, int]]:
        """The run as stretches of equal noise: (noise relative to the first step's, steps), in their order.

        >>> NoiseSchedule(kind="step", end=0.5).plateaus(5)
        [(1.0, 3), (0.5, 2)]
        """
        if self.kind == "constant":
            return [(1.0, steps)]
        parts = 2 if self.kind == "step" else min(LEVELS, steps)
        # The first step of each stretch; of two, the first is the longer one.
        starts = [-(-part * steps // parts) for part in range(parts + 1)]
        return [(self.relative(start, steps), end - start) for start, end in itertools.pairwise(starts) if end > start]

    def multipliers(self, base: float, steps: int) -> list[float]:
        """The noise multiplier of each step.

        >>> [round(value, 2) for value in NoiseSchedule(kind="linear", end=0.5).multipliers(2.0, 3)]
        [2.0, 1.5, 1.0]
        """
        return [base * self.relative(step, steps) for step in range(steps)]
