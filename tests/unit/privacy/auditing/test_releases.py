"""Noise seen from outside: its scale, its freshness, its lattice."""

from __future__ import annotations

import math

import numpy as np
import pytest

from privacy.auditing.releases import correlation_bound, largest_correlation, noise_scale, off_lattice


def test_the_scale_of_noise() -> None:
    failures = 0
    for seed in range(300):
        low, high = noise_scale(np.random.default_rng(seed).normal(0, 3, 200), 0.9)
        assert low < high
        failures += not low <= 3 <= high
    assert 10 <= failures <= 50  # 30 are to be expected


def test_the_scale_of_much_noise_is_known_well() -> None:
    low, high = noise_scale(np.random.default_rng(0).normal(0, 1, 40_000), 0.999)
    assert 0.98 < low < high < 1.02
    half = noise_scale(np.random.default_rng(0).normal(0, 0.5, 1_000), 0.9999)
    assert half[1] < 0.6


def test_a_mean_that_is_not_zero_counts_as_noise() -> None:
    low, _ = noise_scale(np.random.default_rng(0).normal(2, 1, 1_000), 0.999)
    assert low > 2
    with pytest.raises(ValueError, match="no noise"):
        noise_scale(np.empty(0), 0.9)


@pytest.mark.parametrize(("releases", "size"), [(2, 30), (60, 20), (300, 64), (600, 8)])
def test_fresh_noise_correlates_little(releases: int, size: int) -> None:
    bound = correlation_bound(releases, size, 1e-3)
    assert 0 < bound < 1
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(0, 1, (releases, size))
        assert largest_correlation(noise) < bound


def test_the_bound_is_that_of_the_worst_pair() -> None:
    """It is exceeded about as often as it says."""
    bound = correlation_bound(10, 12, 0.2)
    exceeded = sum(
        largest_correlation(np.random.default_rng(seed).normal(0, 1, (10, 12))) > bound for seed in range(500)
    )
    assert 50 <= exceeded <= 130


@pytest.mark.parametrize("scale", [1.0, 0.3, -2.0])
def test_noise_that_is_used_twice_shows_at_any_scale(scale: float) -> None:
    noise = np.random.default_rng(0).normal(0, 1, (700, 64))
    noise[650] = scale * noise[3] + 0.5
    assert largest_correlation(noise) == pytest.approx(1.0)
    assert correlation_bound(700, 64, 1e-4) < 0.9


def test_releases_without_noise_and_single_ones() -> None:
    assert largest_correlation(np.ones((5, 8))) == 0.0
    assert largest_correlation(np.random.default_rng(0).normal(0, 1, (1, 8))) == 0.0
    assert correlation_bound(1, 8, 0.1) == correlation_bound(9, 2, 0.1) == 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_multiples_are_on_the_lattice(dtype: type) -> None:
    unit = 0.0123
    integers = np.random.default_rng(0).integers(-(1 << 20), 1 << 20, 10_000)
    values = (integers * unit).astype(dtype)
    assert off_lattice(values, unit) == 0.0
    assert off_lattice(values + dtype(unit / 3), unit) > 0.99
    values[:2_500] = np.random.default_rng(1).normal(0, 100, 2_500)
    assert off_lattice(values, unit) == pytest.approx(0.25, abs=0.01)
    assert off_lattice(integers, 1.0) == 0.0
    assert off_lattice(values[:0], unit) == 0.0


def test_a_lattice_that_is_finer_than_the_numbers_shows_nothing() -> None:
    """Every float32 is near a multiple of its own last bit: callers leave the large ones out."""
    values = np.random.default_rng(0).normal(0, 1, 100).astype(np.float32)
    assert off_lattice(values, math.ldexp(1, -60)) == 0.0
