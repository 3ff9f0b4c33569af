"""Clopper-Pearson bounds, and what rates of error prove."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.auditing.bounds import at_least, epsilon_of, largest_rate, most_true_positives, mu_of, smallest_rate


@given(trials=st.integers(1, 500), confidence=st.floats(0.5, 0.9999), data=st.data())
def test_bounds_are_those_of_clopper_and_pearson(trials: int, confidence: float, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials))
    found = stats.binomtest(hits, trials).proportion_ci(2 * confidence - 1, "exact")
    if hits < trials:
        assert largest_rate(hits, trials, confidence) == pytest.approx(found.high, abs=1e-9)
    if hits > 0:
        assert smallest_rate(hits, trials, confidence) == pytest.approx(found.low, abs=1e-9)


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5])
def test_bounds_fail_as_seldom_as_they_say(rate: float) -> None:
    """Exactly, over all outcomes of 60 trials."""
    trials, confidence = 60, 0.95
    hits = np.arange(trials + 1)
    mass = stats.binom.pmf(hits, trials, rate)
    high = np.array([largest_rate(int(k), trials, confidence) for k in hits])
    low = np.array([smallest_rate(int(k), trials, confidence) for k in hits])
    assert mass[high < rate].sum() <= 0.05
    assert mass[low > rate].sum() <= 0.05
    assert mass[high < rate].sum() > 0.005 or rate < 0.02


def test_bounds_at_the_ends() -> None:
    assert largest_rate(5, 5, 0.9) == 1.0
    assert smallest_rate(0, 5, 0.9) == 0.0
    assert largest_rate(0, 0, 0.9) == 1.0
    for wrong in ((3, 2, 0.9), (-1, 2, 0.9), (1, 2, 1.0), (1, 2, 0.0)):
        with pytest.raises(ValueError, match="no observation"):
            largest_rate(*wrong)


@given(trials=st.integers(1, 300), rate=st.floats(0.001, 0.999), successes=st.integers(-3, 310))
def test_tails_of_the_binomial(trials: int, rate: float, successes: int) -> None:
    assert float(at_least(successes, trials, rate)) == pytest.approx(
        float(stats.binom.sf(successes - 1, trials, rate)), abs=1e-12
    )


@given(mu=st.floats(0.01, 6.0), positives=st.floats(1e-4, 0.9))
def test_mu_of_the_best_test_is_the_mechanisms(mu: float, positives: float) -> None:
    threshold = stats.norm.isf(positives)
    negatives = float(stats.norm.cdf(threshold - mu))
    if negatives > 1e-12:
        assert mu_of(positives, negatives) == pytest.approx(mu, rel=1e-6, abs=1e-6)


def test_mu_of_useless_and_perfect_tests() -> None:
    assert mu_of(1.0, 0.2) == 0.0
    assert mu_of(0.7, 0.7) == 0.0  # worse than chance
    assert mu_of(0.0, 0.5) == math.inf


@given(epsilon=st.floats(0.0, 8.0), delta=st.floats(0.0, 0.1), positives=st.floats(1e-6, 0.999))
def test_epsilon_never_exceeds_that_of_a_private_mechanism(epsilon: float, delta: float, positives: float) -> None:
    """The best rates that (epsilon, delta) leaves show just that epsilon, and no more."""
    negatives = 1 - most_true_positives(epsilon, delta, positives)
    found = epsilon_of(positives, negatives, delta)
    assert found <= epsilon + 1e-6


def test_epsilon_of_published_rates() -> None:
    assert epsilon_of(0.1, 0.1, 0.0) == pytest.approx(math.log(9))
    assert epsilon_of(0.001, 0.9, 0.0) == pytest.approx(math.log(100))
    assert epsilon_of(0.9, 0.001, 0.0) == pytest.approx(math.log(100))  # both ways
    assert epsilon_of(0.5, 0.5, 0.0) == 0.0
    assert epsilon_of(0.0, 0.5, 1e-5) == math.inf
    assert epsilon_of(0.2, 0.9, 0.1) == 0.0  # delta explains it


@pytest.mark.parametrize(
    ("epsilon", "delta", "positives", "expected"),
    [(0.0, 0.0, 0.3, 0.3), (1.0, 0.0, 0.01, 0.0271828), (10.0, 0.0, 0.5, 1 - 0.5 * math.exp(-10)), (1.0, 0.2, 0.9, 1)],
)
def test_the_region_that_a_private_mechanism_leaves(
    epsilon: float, delta: float, positives: float, expected: float
) -> None:
    assert most_true_positives(epsilon, delta, positives) == pytest.approx(expected, abs=1e-6)
