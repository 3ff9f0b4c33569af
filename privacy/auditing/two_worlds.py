"""Two worlds, one record apart: how well can what is released tell them from each other?

The white-box audit after Nasr et al. (2023, arXiv 2302.07956): a mechanism is run many times with and without one
record whose effect on the release is as large as clipping lets it be. A score of each release, the larger the likelier
with the record, is compared with a threshold; errors of both kinds bound from below what the mechanism tells.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.auditing.bounds import epsilon_of, largest_rate, mu_of

CONFIDENCE: Final = 0.95
_CHOOSING: Final = 0.25
_THRESHOLDS: Final = 201


@dataclasses.dataclass(frozen=True, kw_only=True)
class Separation:
    """How far apart two worlds are, at least.

    Attributes:
        mu: Lower bound of the mechanism's mu, with the stated confidence.
        false_positives: Upper bound of the test's rate.
        false_negatives: Upper bound of the test's rate.
        threshold: Of the test.
        trials: Releases that the rates come from, of both worlds.
    """

    mu: float
    false_positives: float
    false_negatives: float
    threshold: float
    trials: int

    def epsilon(self, delta: float) -> float:
        """Lower bound of the mechanism's epsilon at ``delta``, with the same confidence."""
        return epsilon_of(self.false_positives, self.false_negatives, delta)


def separation(
    without: NDArray[np.float64], within: NDArray[np.float64], *, confidence: float = CONFIDENCE
) -> Separation:
    """Bound how far two worlds are apart.

    A quarter of the scores of each world chooses the threshold, and the rest is tested against it.

    Formal Guarantees:
        If the scores are functions of independent runs of a mu-Gaussian-private mechanism on two neighbouring data
        sets, then ``result.mu`` exceeds mu with probability at most ``1 - confidence``: the threshold doesn't depend on
        the scores that are tested, and each rate's bound fails with half of that.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> found = separation(generator.normal(0, 1, 4000), generator.normal(1, 1, 4000))
        >>> 0.8 < found.mu < 1.0
        True

    Args:
        without: Scores of releases without the record.
        within: Scores of releases with it.
        confidence: Of the bound.

    Raises:
        ValueError: There are under eight scores of a world, or some that are NaN.
    """
    if min(len(without), len(within)) < 8:
        raise ValueError(f"{len(without)} and {len(within)} scores show nothing; eight of each at least")
    if np.isnan(without).any() or np.isnan(within).any():
        raise ValueError("a score is NaN")
    cut_out, cut_in = (max(4, int(len(scores) * _CHOOSING)) for scores in (without, within))
    threshold = _best(without[:cut_out], within[:cut_in], confidence)
    mu, positives, negatives = _rates(without[cut_out:], within[cut_in:], threshold, confidence)
    trials = len(without) - cut_out + len(within) - cut_in
    return Separation(mu=mu, false_positives=positives, false_negatives=negatives, threshold=threshold, trials=trials)


def _rates(
    without: NDArray[np.float64], within: NDArray[np.float64], threshold: float, confidence: float
) -> tuple[float, float, float]:
    each = 1 - (1 - confidence) / 2
    positives = largest_rate(int((without > threshold).sum()), len(without), each)
    negatives = largest_rate(int((within <= threshold).sum()), len(within), each)
    return mu_of(positives, negatives), positives, negatives


def _best(without: NDArray[np.float64], within: NDArray[np.float64], confidence: float) -> float:
    """The threshold with the largest bound on these scores; of equally good ones the one in the middle."""
    candidates = np.quantile(np.concatenate((without, within)), np.linspace(0, 1, _THRESHOLDS))
    candidates = (candidates[1:] + candidates[:-1]) / 2
    found = np.array([_rates(without, within, float(candidate), confidence)[0] for candidate in candidates])
    best = np.flatnonzero(found >= found.max() - 1e-12)
    return float(candidates[best[len(best) // 2]])
