"""The two-world audit: never above the truth (but once in a while), and near it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from privacy.auditing.two_worlds import separation


def worlds(mu: float, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(0, 1, count), generator.normal(mu, 1, count)


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0, 3.0])
def test_the_bound_is_close_and_below(mu: float) -> None:
    """3,000 runs a world show four fifths of mu."""
    found = separation(*worlds(mu, 3_000, seed=3))
    assert (0.8 if mu >= 1 else 0.6) * mu < found.mu <= mu
    assert found.trials == 4_500
    assert -1 < found.threshold < mu + 1


def test_the_bound_fails_as_seldom_as_it_says() -> None:
    failures = sum(separation(*worlds(1.0, 400, seed), confidence=0.9).mu > 1.0 for seed in range(400))
    assert failures <= 40


def test_more_confidence_shows_less() -> None:
    scores = worlds(1.5, 2_000)
    assert separation(*scores, confidence=0.9999).mu < separation(*scores, confidence=0.9).mu


def test_worlds_that_are_one() -> None:
    assert separation(*worlds(0.0, 2_000)).mu < 0.1
    same = np.zeros(100)
    assert separation(same, same).mu == 0.0


def test_worlds_without_noise() -> None:
    """A perfect test of 100 runs proves what 75 of them can, not everything."""
    found = separation(np.zeros(100), np.ones(100))
    assert 3 < found.mu < 5
    assert found.epsilon(1e-5) == pytest.approx(math.log((1 - found.false_negatives - 1e-5) / found.false_positives))


def test_the_sign_of_the_score_matters() -> None:
    without, within = worlds(2.0, 2_000)
    assert separation(within, without).mu == 0.0


@pytest.mark.parametrize("sizes", [(7, 100), (100, 7), (0, 0)])
def test_too_few_scores(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="show nothing"):
        separation(np.zeros(sizes[0]), np.zeros(sizes[1]))


def test_scores_that_are_no_numbers() -> None:
    with pytest.raises(ValueError, match="NaN"):
        separation(np.full(50, math.nan), np.zeros(50))
