"""What a merge did to each participant's update, and why."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTLYING: float = 3.0
"""Robust standard deviations from which a score stands out."""


class Verdict(enum.StrEnum):
    """What became of an update."""

    KEPT = "kept"
    CLIPPED = "clipped"
    REJECTED = "rejected"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParticipantReport:
    """One participant's update in a merge.

    Attributes:
        participant: Its name.
        verdict: Kept, clipped (it counts, scaled down), or rejected (it doesn't count).
        reason: Why, in a few words; empty for kept.
        norm: L2 norm of the update as sent, in float64; not finite where the update isn't, NaN where it has no shape.
        share: Its share of the examples after the cap, in [0, 1]; what weighted rules start from.
        weight: The factor of its update in the result; for rules that select at each coordinate, the mean over a sample
            of coordinates. Of n updates that count alike each has 1 / n.
        kept_fraction: For those rules: at how much of the sample its value (or that of its mixture) was used.
        score: What the rule judged it by; larger is worse. None where the rule has no score.
        distance: From the update to the result; None for rules that select at each coordinate.
        factor: By which clipping scaled it, in [0, 1].
    """

    participant: str
    verdict: Verdict
    reason: str = ""
    norm: float
    share: float = 0.0
    weight: float = 0.0
    kept_fraction: float | None = None
    score: float | None = None
    distance: float | None = None
    factor: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeReport:
    """One merge.

    Attributes:
        rule: The recipe's canonical name.
        tolerated: Bad participants that the round was to stand, of all who sent an update.
        remaining: Of those, how many are left for the rule after the gate's rejections.
        kappa: The known bound of the recipe for what was merged, see `coordinator.merging.Rule.kappa`; None where
            none is known.
        participants: In the order of their names.
        warnings: For the operator, each a sentence.
    """

    rule: str
    tolerated: int
    remaining: int
    kappa: float | None
    participants: tuple[ParticipantReport, ...]
    warnings: tuple[str, ...] = ()

    @property
    def rejected(self) -> tuple[str, ...]:
        """Who was rejected, by name."""
        return tuple(item.participant for item in self.participants if item.verdict is Verdict.REJECTED)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values; numbers that JSON doesn't have become strings."""
        found: dict[str, Any] = _plain(dataclasses.asdict(self))
        return found


def robust_deviations(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many robust standard deviations each score [n] lies above the median (1.4826 x median absolute deviation).

    Where more than half of the scores are equal, what differs by more than rounding is infinitely far.
    """
    middle = np.median(scores)
    offset = scores - middle
    spread = 1.4826 * np.median(np.abs(offset))
    if spread > 0:
        found: NDArray[np.float64] = offset / spread
        return found
    return np.where(np.abs(offset) > 1e-9 * abs(middle), np.copysign(np.inf, offset), 0.0)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
