"""What counts of hits and misses prove about a mechanism, with a stated confidence."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special


def largest_rate(hits: int, trials: int, confidence: float) -> float:
    """The largest probability that so few hits are compatible with (Clopper and Pearson 1934, one-sided).

    >>> round(largest_rate(0, 100, 0.95), 4)
    0.0295

    Formal Guarantees:
        For independent trials of any probability p, the result is below p with probability at most 1 - confidence.

    Args:
        hits: At most ``trials``.
        trials: How many; 0 proves nothing, so that the result is 1.
        confidence: In (0, 1).
    """
    if not 0 <= hits <= trials or not 0 < confidence < 1:
        raise ValueError(f"{hits} hits of {trials} at confidence {confidence} are no observation")
    if hits == trials:
        return 1.0
    return float(special.betaincinv(hits + 1, trials - hits, confidence))


def smallest_rate(hits: int, trials: int, confidence: float) -> float:
    """The smallest probability that so many hits are compatible with; see :func:`largest_rate`."""
    return 1.0 - largest_rate(trials - hits, trials, confidence)


def mu_of(false_positives: float, false_negatives: float) -> float:
    """The mu of Gaussian differential privacy that a test with these rates shows (Dong, Roth and Su 2019).

    A mechanism that adds normal noise of ``sigma`` times the sensitivity has mu = 1 / sigma, and against it no test has
    a false-negative rate below Phi(Phi^-1(1 - false positives) - mu).

    >>> round(mu_of(0.3085375387259869, 0.3085375387259869), 9)
    1.0

    Returns:
        At least 0; infinite for a test without errors.
    """
    if false_positives >= 1 or false_negatives >= 1:
        return 0.0
    return max(0.0, float(-special.ndtri(false_positives) - special.ndtri(false_negatives)))


def epsilon_of(false_positives: float, false_negatives: float, delta: float) -> float:
    """The epsilon that a test with these rates shows (Kairouz, Oh and Viswanath 2015).

    Against an (epsilon, delta)-private mechanism, 1 - false negatives <= e^epsilon * false positives + delta, and the
    same with both changed about.

    >>> round(epsilon_of(0.01, 0.5, 0.0), 3)
    3.912
    """
    found = 0.0
    for one, other in ((false_positives, false_negatives), (false_negatives, false_positives)):
        gain = 1.0 - other - delta
        if gain > 0:
            found = max(found, math.inf if one <= 0 else math.log(gain / one))
    return found


def at_least(successes: int | NDArray[np.int64], trials: int, rate: float) -> NDArray[np.float64]:
    """P[X >= successes] for binomial X, exactly; element by element.

    >>> at_least(2, 2, 0.5).item()
    0.25
    """
    count = np.asarray(successes, np.float64)
    inside = np.clip(count, 1, trials)
    found = special.betainc(inside, trials - inside + 1, rate)
    return np.asarray(np.where(count <= 0, 1.0, np.where(count > trials, 0.0, found)), np.float64)


def most_true_positives(epsilon: float, delta: float, false_positives: float) -> float:
    """The largest true-positive rate that an (epsilon, delta)-private mechanism leaves to a test.

    >>> round(most_true_positives(1.0, 1e-5, 0.01), 4)
    0.0272
    """
    by_one = math.exp(min(epsilon, 700.0)) * false_positives + delta
    by_other = 1.0 - math.exp(-epsilon) * (1.0 - delta - false_positives)
    return min(1.0, by_one, by_other)
