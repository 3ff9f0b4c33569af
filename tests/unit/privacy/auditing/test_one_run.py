"""One-run auditing (Steinke et al. 2023): its p-value, its bounds, and what half the noise does to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.auditing.one_run import largest_refuted, one_run, p_value


def released(canaries: int, mu: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a Gaussian release with orthogonal canaries."""
    generator = np.random.default_rng(seed)
    included = generator.random(canaries) < 0.5
    return mu * included + generator.normal(0, 1, canaries), included


def epsilon_of_gaussian(mu: float, delta: float) -> float:
    """Exactly (Balle and Wang 2018)."""
    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        cost = stats.norm.cdf(mu / 2 - middle / mu) - math.exp(middle) * stats.norm.cdf(-mu / 2 - middle / mu)
        low, high = (middle, high) if cost > delta else (low, middle)
    return high


def test_p_value_is_the_binomial_tail_without_delta() -> None:
    rate = math.exp(1.5) / (1 + math.exp(1.5))
    assert p_value(500, 100, 90, 1.5, 0.0) == pytest.approx(float(stats.binom.sf(89, 100, rate)))


def test_p_value_by_hand_with_delta() -> None:
    """The theorem's formula, term by term."""
    canaries, guesses, right, epsilon, delta = 50, 20, 18, 1.0, 1e-3
    rate = math.exp(epsilon) / (1 + math.exp(epsilon))
    beta = stats.binom.sf(right - 1, guesses, rate)
    alpha = max((stats.binom.sf(right - 1 - i, guesses, rate) - beta) / i for i in range(1, canaries + 1))
    assert p_value(canaries, guesses, right, epsilon, delta) == pytest.approx(beta + 2 * canaries * delta * alpha)


@given(
    guesses=st.integers(2, 200),
    epsilon=st.floats(0, 8),
    more=st.floats(0.01, 3),
    delta=st.sampled_from([0.0, 1e-6, 1e-3]),
    data=st.data(),
)
def test_p_value_grows_with_epsilon_and_falls_with_right_guesses(
    guesses: int, epsilon: float, more: float, delta: float, data: st.DataObject
) -> None:
    right = data.draw(st.integers(1, guesses))
    value = p_value(200, guesses, right, epsilon, delta)
    assert 0 <= value <= 1
    assert value <= p_value(200, guesses, right, epsilon + more, delta) + 1e-9
    assert value <= p_value(200, guesses, right - 1, epsilon, delta) + 1e-9


@pytest.mark.parametrize("delta", [0.0, 1e-5])
def test_the_largest_refuted_epsilon_is_just_refuted(delta: float) -> None:
    found = largest_refuted(1_000, 400, 350, delta, 0.95)
    assert p_value(1_000, 400, 350, found, delta) <= 0.05 < p_value(1_000, 400, 350, found + 1e-6, delta)
    assert largest_refuted(1_000, 400, 200, delta, 0.95) == 0.0


def test_canaries_show_half_of_epsilon_and_half_the_noise() -> None:
    """Claimed epsilon 2 at delta 1e-5: half of it is shown, half the noise is found with 5,000 canaries."""
    delta = 1e-5
    mu = next(mu for mu in np.arange(0.3, 1.0, 0.001) if epsilon_of_gaussian(mu, delta) >= 2.0)
    lower = [one_run(*released(10_000, mu, seed), guesses=500, delta=delta).epsilon for seed in range(5)]
    assert all(0.5 * 2.0 <= value <= 2.0 for value in lower)
    broken = [one_run(*released(10_000, 2 * mu, seed), guesses=500, delta=delta).epsilon for seed in range(5)]
    assert all(value > 2.0 for value in broken)


def test_the_bound_fails_as_seldom_as_it_says() -> None:
    claimed = epsilon_of_gaussian(1.0, 1e-5)
    failures = sum(
        one_run(*released(200, 1.0, seed), guesses=60, delta=1e-5, confidence=0.9).epsilon > claimed
        for seed in range(200)
    )
    assert failures <= 20


def test_randomized_response_is_bounded_tightly() -> None:
    """The mechanism for which the theorem is exact: each coin is told rightly with probability e^eps / (1 + e^eps)."""
    epsilon, generator = 1.0, np.random.default_rng(4)
    included = generator.random(4_000) < 0.5
    told = included ^ (generator.random(4_000) > math.exp(epsilon) / (1 + math.exp(epsilon)))
    scores = told + generator.uniform(-0.1, 0.1, 4_000)
    found = one_run(scores, included, guesses=3_000, delta=0.0)
    assert 0.85 < found.epsilon <= 1.0


def test_what_is_counted() -> None:
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    included = np.array([True, True, False, False, True, False])
    found = one_run(scores, included, guesses=4, delta=0.0)
    assert (found.canaries, found.guesses, found.right) == (6, 4, 3)
    assert found.epsilon == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"guesses": 3},
        {"guesses": 0},
        {"guesses": 12},
        {"delta": 1.0},
        {"delta": -0.1},
        {"confidence": 1.0},
        {"scores": np.full(10, math.nan)},
        {"included": np.zeros(9, bool)},
    ],
)
def test_audits_that_are_none(wrong: dict[str, object]) -> None:
    settings = {"scores": np.arange(10.0), "included": np.zeros(10, bool), "guesses": 4, "delta": 0.0, **wrong}
    with pytest.raises(ValueError, match=r"coins|range|scores"):
        one_run(settings.pop("scores"), settings.pop("included"), **settings)  # type: ignore[arg-type]
