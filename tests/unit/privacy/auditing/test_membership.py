"""The likelihood-ratio attack's statistics, on made-up losses and on models that are trained with and without noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from privacy.accounting.accountant import epsilon
from privacy.accounting.events import GaussianEvent
from privacy.auditing.bounds import most_true_positives
from privacy.auditing.membership import likelihood_scores, true_positives
from privacy.mechanisms.lattice import Lattice
from privacy.mechanisms.noise import NoiseKey

MODELS, RECORDS, WIDTH = 16, 200, 100


def coins(seed: int, models: int = MODELS, records: int = RECORDS) -> np.ndarray:
    """Each record in half of the models."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(models) < models // 2 for _ in range(records)], axis=1)


def test_scores_are_the_likelihood_ratios_of_the_other_models() -> None:
    included = coins(0)
    losses = np.random.default_rng(1).normal(0, 1, included.shape) - 2.0 * included
    scores = likelihood_scores(losses, included)
    others = np.arange(MODELS) != 3
    inside = losses[others, 7][included[others, 7]].mean()
    outside = losses[others, 7][~included[others, 7]].mean()
    # With one deviation for all, the ratio is linear in the loss between both means.
    middle = (inside + outside) / 2
    assert (scores[3, 7] > 0) == (abs(losses[3, 7] - inside) < abs(losses[3, 7] - outside)) or math.isclose(
        losses[3, 7], middle, abs_tol=0.1
    )
    assert scores[included].mean() > 1 > -1 > scores[~included].mean()


def test_losses_that_tell_nothing() -> None:
    included = coins(2)
    losses = np.random.default_rng(3).normal(0, 1, included.shape)
    rate, low, high = true_positives(likelihood_scores(losses, included), included, 0.01)
    assert low <= rate <= high
    assert low < 0.01 < high


def test_the_rate_is_that_of_the_best_test() -> None:
    """Losses two deviations apart: the best test against a normal law has a rate that is known."""
    generator = np.random.default_rng(4)
    included = generator.random(200_000) < 0.5
    scores = generator.normal(0, 1, 200_000) + 2.0 * included
    rate, low, high = true_positives(scores, included, 0.01)
    assert low < rate < high
    assert rate == pytest.approx(float(stats.norm.sf(stats.norm.isf(0.01) - 2)), abs=0.01)


def test_a_record_that_all_models_have_teaches_nothing() -> None:
    included = coins(5)
    included[:, 0] = True
    with pytest.raises(ValueError, match="two models"):
        likelihood_scores(np.zeros(included.shape), included)


def trained(included: np.ndarray, inputs: np.ndarray, labels: np.ndarray, sigma: float, key: int) -> np.ndarray:
    """A linear model by full-batch clipped steps with noise, as the private mechanism makes them."""
    weights, steps, clip = np.zeros(WIDTH), 30, 1.0
    lattice = Lattice.for_clip(clip, WIDTH)
    for step in range(steps):
        margin = labels * (inputs @ weights)
        gradients = -(labels / (1 + np.exp(margin)))[:, None] * inputs
        norms = np.linalg.norm(gradients, axis=1, keepdims=True)
        total = (gradients * np.minimum(1.0, clip / norms))[included].sum(0)
        if sigma:
            noise = NoiseKey(bytes([key, step, *range(30)]))
            total = lattice.values(lattice.release(total, sigma * lattice.sensitivity(clip), noise))
        weights -= 0.2 * total
    return labels * (inputs @ weights)


@pytest.mark.slow
def test_private_models_keep_what_they_promise_and_others_do_not() -> None:
    """In a small size: the attack finds an overfit model's records, and no private one's."""
    included = coins(6, 24)
    generator = np.random.default_rng(7)
    inputs = generator.normal(0, 1, (RECORDS, WIDTH))
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    labels = np.where(generator.random(RECORDS) < 0.5, -1.0, 1.0)  # nothing to learn: all is memory
    for sigma, alive in ((0.0, True), (24.0, False)):
        margins = np.stack([trained(row, inputs, labels, sigma, key) for key, row in enumerate(included)])
        rate, low, high = true_positives(likelihood_scores(margins, included), included, 0.01)
        if alive:
            assert low > 0.05  # the attack works
            continue
        delta = 1e-5
        cost = epsilon([GaussianEvent(noise_multiplier=sigma, count=30)], delta)
        assert cost < 1.1
        assert low <= most_true_positives(cost, delta, 0.01)
        assert rate < 0.05 and high < 0.06
