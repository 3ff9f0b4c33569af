"""From recorded steps to findings: does what was released fit what was claimed?"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from participant.privacy_audit.recorder import Watched
from privacy.auditing import (
    at_least,
    correlation_bound,
    largest_correlation,
    noise_scale,
    off_lattice,
    poisson_p_value,
    separation,
)

ERROR: Final = 1e-3
"""Probability with which all findings together cry wolf over a right training."""

POWER: Final = 0.8
"""Share of the claimed mu that the separation must reach, with 95 % confidence, or the audit had no eyes."""

_TESTS: Final = 6
_LEVEL: Final = 1.1
_MANY: Final = 400
_RESOLUTION: Final = 0.02  # of noise: what a two-hundredth of rounding and canaries of finite length amount to
_TRUSTED: Final = 2.0**24  # integers that a float32 holds exactly


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check.

    Attributes:
        name: Of the check.
        good: Whether releases and claims fit.
        measured: What was found.
        bound: What it was compared with.
        words: What that means.
    """

    name: str
    good: bool
    measured: float
    bound: float
    words: str


def faults(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that speak against the training. Canaries that chance lets show too little speak against the audit."""
    return [item for item in findings if not item.good and item.name != "power"]


def examine(
    steps: Sequence[Watched], *, rate: float, records: int, power: bool = True, error: float = ERROR
) -> list[Finding]:
    """Compare releases with claims, in all ways for which there are enough of them.

    Formal Guarantees:
        For a right training, the probability that any finding isn't good is about ``error`` at most, but for
        "power", which says something about the audit.

    Args:
        steps: Recorded, of one or several runs.
        rate: Sampling rate that was claimed.
        records: Records of the task, canaries included.
        power: Whether few releases are a fault: an audit that can't find anything proves nothing.
        error: Probability of a false alarm.
    """
    each = error / _TESTS
    found = [*_separation(steps, each, power), *_noise(steps, each), *_fresh(steps, each), _lattice(steps)]
    if rate < 1 and len(steps) >= 8 and records >= 2:
        found.append(_sampling(steps, rate, records, each))
    counted = [step for step in steps if step.claim.count_std > 0 and not math.isnan(step.below)]
    if counted:
        found.append(_count(counted, each))
    return found


def residuals(steps: Sequence[Watched]) -> npt.NDArray[np.float64]:
    """The noise in the canaries' rows, [T, m], in standard deviations as claimed.

    What the sum holds is known: each anchor takes the clipping norm off, each canary adds it; in groups, the canary
    turns its anchors' sum around.
    """
    return np.stack([(step.rows - _sum(step)) / _std(step) for step in steps])


def _std(step: Watched) -> float:
    return step.claim.gradient_multiplier * step.claim.sensitivity


def _grouped(step: Watched) -> bool:
    return step.claim.sensitivity > 1.5 * step.clip_norm


def _base(step: Watched) -> npt.NDArray[np.float64]:
    """The sum in the canaries' rows without the canaries."""
    anchors = np.minimum(step.anchors, 1) if _grouped(step) else step.anchors
    found: npt.NDArray[np.float64] = -step.clip_norm * anchors.astype(np.float64)
    return found


def _sum(step: Watched) -> npt.NDArray[np.float64]:
    if _grouped(step):
        return np.where(step.here, step.clip_norm, _base(step))
    return _base(step) + step.clip_norm * step.here


def _levels(steps: Sequence[Watched]) -> list[list[Watched]]:
    """Steps of about one claimed noise together: a level's largest is a tenth more than its smallest, the first."""
    levels: list[list[Watched]] = []
    for step in sorted(steps, key=lambda step: step.claim.gradient_multiplier):
        if not levels or step.claim.gradient_multiplier > _LEVEL * levels[-1][0].claim.gradient_multiplier:
            levels.append([])
        levels[-1].append(step)
    return levels


def _separation(steps: Sequence[Watched], error: float, power: bool) -> list[Finding]:
    """Two worlds, a canary apart, for each level of noise: mu is at most what was claimed."""
    levels = _levels(steps)
    shares: list[float] = []
    seen: list[tuple[int, float]] = []
    for level in levels:
        # In standard deviations as claimed, a canary moves its row by 1 / multiplier at most, that of the least noise.
        scores = np.stack([(step.rows - _base(step)) / _std(step) for step in level])
        here = np.stack([step.here for step in level])
        # In a group it does so if there is an anchor that it turns around.
        fit = np.stack([(step.anchors > 0) | (not _grouped(step)) for step in level])
        without, within = scores[~here & fit], scores[here & fit]
        if min(len(without), len(within)) < 8:
            continue
        least = level[0].claim.gradient_multiplier
        shares.append(separation(without, within, confidence=1 - error / len(levels)).mu * least)
        seen.append((min(len(without), len(within)), separation(without, within).mu * least))
    if not shares:
        return [Finding(name="power", good=False, measured=0.0, bound=POWER, words=_BLIND)] if power else []
    worst = max(shares)
    # A level that only a few steps had needs no eyes of its own.
    many = min(_MANY, max(size for size, _ in seen))
    eyes = min(share for size, share in seen if size >= many)
    findings = [
        Finding(
            name="separation",
            good=worst <= 1.0,
            measured=worst,
            bound=1.0,
            words="a record can be told by its release no better than the accounted noise allows"
            if worst <= 1
            else f"a record can be told by its release {worst:.2f} times better than the accounted noise allows",
        )
    ]
    if power:
        good = eyes >= POWER
        findings.append(Finding(name="power", good=good, measured=eyes, bound=POWER, words=_SEEING if good else _BLIND))
    return findings


_SEEING: Final = "canaries move releases as far as a record can"
_BLIND: Final = "canaries move releases less than a record could: this audit would miss a fault"


def _noise(steps: Sequence[Watched], error: float) -> list[Finding]:
    """Noise of the canaries' rows has the standard deviation that was claimed, and explains all that is there."""
    low, high = noise_scale(residuals(steps), 1 - error)
    measured = math.sqrt(low * high)
    findings = [
        Finding(
            name="noise",
            good=high >= 1 - _RESOLUTION,
            measured=measured,
            bound=1.0,
            words=f"the noise has {measured:.3f} times its claimed scale",
        ),
        Finding(
            name="sum",
            good=low <= 1 + _RESOLUTION,
            measured=measured,
            bound=1.0,
            words="releases hold the clipped sums and noise, and nothing else"
            if low <= 1 + _RESOLUTION
            else "releases hold something else than the clipped sums and noise that were claimed",
        ),
    ]
    return findings


def _fresh(steps: Sequence[Watched], error: float) -> list[Finding]:
    """No release repeats another's noise, in all of its coordinates or in some."""
    equal = np.stack([one.release == other.release for one, other in itertools.pairwise(steps)])
    # Two normal numbers of s lattice units round to the same integer with probability 1 / (2 s sqrt(pi)).
    units = min(_std(step) / step.claim.grid for step in steps)
    chance = min(1.0, 1 / (2 * units * math.sqrt(math.pi)))
    in_step = _unlikely(int(equal.sum(axis=1).max()), equal.shape[1], chance) * len(equal)
    in_place = _unlikely(int(equal.sum(axis=0).max()), equal.shape[0], chance) * equal.shape[1]
    noise = residuals(steps)
    bound = correlation_bound(noise.shape[0], noise.shape[1], error / 2)
    correlation = largest_correlation(noise) if bound < 1 else 0.0
    good = min(in_step, in_place) >= error / 4 and correlation <= bound
    return [
        Finding(
            name="fresh",
            good=good,
            measured=max(float(equal.mean(axis=1).max()), correlation),
            bound=bound,
            words="every release has noise of its own in every coordinate"
            if good
            else f"noise was used twice, or is missing: successive releases agree in up to "
            f"{equal.mean(axis=1).max():.0%} of their coordinates, and one coordinate in {equal.mean(axis=0).max():.0%}"
            f" of the releases; two noises correlate by {correlation:.2f}",
        )
    ]


def _unlikely(equal: int, count: int, chance: float) -> float:
    return float(at_least(equal, count, chance))


def _lattice(steps: Sequence[Watched]) -> Finding:
    """Releases are integers of the lattice, so that no low bits tell of the sums."""
    shares = []
    for step in steps:
        # Integers of a secure sum are on their lattice by their type.
        unit = 1.0 if step.release.dtype.kind == "i" else step.claim.grid / step.scale
        inside = step.release[np.abs(step.release) < unit * _TRUSTED]
        shares.append(off_lattice(inside, unit))
    worst = max(shares)
    return Finding(
        name="lattice",
        good=worst == 0.0,
        measured=worst,
        bound=0.0,
        words="all releases lie on the lattice"
        if worst == 0
        else f"{worst:.0%} of a release's numbers aren't on the lattice: their low bits tell of the sum",
    )


def _sampling(steps: Sequence[Watched], rate: float, records: int, error: float) -> Finding:
    """Samples look like independent draws."""
    chosen = np.zeros((len(steps), records), bool)
    for row, step in zip(chosen, steps, strict=True):
        row[step.sample] = True
    value = poisson_p_value(chosen, rate)
    return Finding(
        name="sampling",
        good=value >= error,
        measured=value,
        bound=error,
        words="samples are those of independent draws"
        if value >= error
        else "samples aren't independent draws, so that no amplification may be claimed",
    )


def _count(steps: Sequence[Watched], error: float) -> Finding:
    """The count that moves the clipping norm has its noise."""
    differences = np.array([(step.below - (step.units / 2 - step.above)) / step.claim.count_std for step in steps])
    low, high = noise_scale(differences, 1 - error)
    good = high >= 1 - _RESOLUTION and low <= 1 + _RESOLUTION
    measured = math.sqrt(low * high)
    return Finding(
        name="count",
        good=good,
        measured=measured,
        bound=1.0,
        words=f"the count behind the clipping norm has {measured:.3f} times its claimed noise",
    )
