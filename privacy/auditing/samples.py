"""Was it Poisson sampling? Amplification is claimed for no other (Chua et al. 2024, arXiv 2403.17673)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special


def poisson_p_value(chosen: NDArray[np.bool_], rate: float) -> float:
    """How well samples fit independent draws with one probability for every record and step; small means badly.

    Four tests: each record is drawn equally often; the sizes' variance is that of sums of independent draws (batches of
    fixed size have none), and their mean that of the rate; and a record that was drawn isn't the less likely to be
    drawn again in the next step (passes over a shuffled order leave it out until all others had their turn).

    Formal Guarantees:
        For Poisson samples the result is below p with probability about p at most (Bonferroni over the four tests,
        each by a normal or chi-squared approximation that wants some tens of expected draws).

    Args:
        chosen: [T, N] Whether record n was in step t's sample.
        rate: q in (0, 1).

    Raises:
        ValueError: Under eight steps or two records, or a rate that leaves nothing to chance.
    """
    steps, records = chosen.shape
    if steps < 8 or records < 2 or not 0 < rate < 1:
        raise ValueError(f"{steps} samples of {records} records at a rate of {rate} show nothing")
    variance = rate * (1 - rate)
    sizes = chosen.sum(axis=1).astype(np.float64)
    counts = chosen.sum(axis=0).astype(np.float64)
    values = [_dispersion(counts, steps, rate), _dispersion(sizes, records, rate)]
    values.append(_two_sided((sizes.sum() - steps * records * rate) / math.sqrt(steps * records * variance)))
    kept = (chosen[1:] - rate) * (chosen[:-1] - rate)
    values.append(_two_sided(float(kept.sum()) / (variance * math.sqrt(kept.size))))
    return min(1.0, len(values) * min(values))


def _dispersion(counts: NDArray[np.float64], draws: int, rate: float) -> float:
    """Do these counts vary as binomial ones do? A chi-squared test, matched to their mean and variance."""
    variance = draws * rate * (1 - rate)
    statistic = float(np.square(counts - draws * rate).sum()) / variance
    # For few draws a count isn't normal: its square varies by 2 + kurtosis instead of 2.
    freedom = 2 * len(counts) / (2 + (1 - 6 * rate * (1 - rate)) / variance)
    above = float(special.chdtrc(freedom, statistic * freedom / len(counts)))
    return 2 * min(above, 1 - above)


def _two_sided(score: float) -> float:
    return 2.0 * float(special.ndtr(-abs(score)))
