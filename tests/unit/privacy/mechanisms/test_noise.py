"""The noise: its law, its keys, and what an attack on floating-point numbers finds in it (nothing)."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from scipy import stats

from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.lattice import Lattice
from privacy.mechanisms.noise import NoiseKey, gaussian_integers

KEY = NoiseKey(bytes(range(32)))


@pytest.mark.parametrize("std", [0.3, 1.0, 8.0, 1000.0])
def test_every_integer_has_the_probability_of_its_interval(std: float) -> None:
    """A chi-squared test over the integers that ought to come up often enough; the key is fixed, so it can't flake."""
    count = 400_000
    drawn = gaussian_integers(KEY, count, std)
    if std > 100:
        edges = np.arange(-4 * std, 4 * std + 1, std / 4)
        edges = np.floor(edges) + 0.5
    else:
        edges = np.arange(-math.ceil(4 * std), math.ceil(4 * std) + 1) + 0.5
    cuts = np.concatenate(([-np.inf], edges, [np.inf]))
    expected = count * np.diff(stats.norm.cdf(cuts / std))
    found = np.histogram(drawn, cuts)[0]
    often = expected > 5
    statistic = float(((found - expected)[often] ** 2 / expected[often]).sum())
    assert stats.chi2.sf(statistic, int(often.sum()) - 1) > 1e-3


def test_moments_and_independence() -> None:
    drawn = gaussian_integers(KEY, 2_000_000, 4_096.0) / 4_096.0
    assert abs(drawn.mean()) < 4 / math.sqrt(len(drawn))
    assert drawn.var() == pytest.approx(1.0, abs=5 * math.sqrt(2 / len(drawn)))
    assert stats.kurtosis(drawn) == pytest.approx(0.0, abs=5 * math.sqrt(24 / len(drawn)))
    assert np.abs(drawn).max() > 4.7  # tails are there
    half = len(drawn) // 2
    for lag in (1, 2, 8_192, half):  # neighbours, partners of one Box-Muller pair, tiles
        assert abs(np.corrcoef(drawn[:-lag], drawn[lag:])[0, 1]) < 5 / math.sqrt(len(drawn) - lag)


def test_the_same_numbers_by_slices() -> None:
    whole = gaussian_integers(KEY, 50_000, 100.0)
    out = np.empty(50_000, np.int64)
    assert gaussian_integers(KEY, 50_000, 100.0, out=out) is out
    assert (out == whole).all()
    # A tile lies as (cosines, sines), so that slices begin at tiles.
    part = gaussian_integers(KEY, 16_384, 100.0, start=16_384)
    assert (part == whole[16_384:32_768]).all()
    with pytest.raises(ValueError, match="pair"):
        gaussian_integers(KEY, 2, 1.0, start=1)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 16_383, 16_384, 16_385])
def test_any_number_of_numbers(count: int) -> None:
    assert gaussian_integers(KEY, count, 10.0).shape == (count,)


def test_keys() -> None:
    assert NoiseKey.fresh().secret != NoiseKey.fresh().secret
    assert "00" not in repr(NoiseKey(bytes(32))) and "secret" not in repr(KEY)
    with pytest.raises(TypeError):
        pickle.dumps(KEY)
    with pytest.raises(PrivacyError):
        NoiseKey(b"short")
    one, other = (gaussian_integers(NoiseKey.fresh(), 10_000, 50.0) for _ in range(2))
    assert np.abs(one - other).max() > 0
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.06
    # A release is made anew with fresh noise: the difference of two is zero in no block.
    assert not any((one[at : at + 64] == other[at : at + 64]).all() for at in range(0, 9_920, 64))


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf, 2.0**41])
def test_noise_without_meaning(std: float) -> None:
    with pytest.raises(PrivacyError):
        gaussian_integers(KEY, 4, std)


def off_grid(values: np.ndarray) -> float:
    """Share of the small values that aren't multiples of 2^-24: float32 betrays what it was made from."""
    small = values[np.abs(values) < 0.05].astype(np.float64)
    return float(np.mean(small * 2.0**24 != np.rint(small * 2.0**24)))


def test_floating_point_noise_betrays_the_sum_and_ours_does_not() -> None:
    """Mironov 2012, Jin et al. 2022: one coordinate tells the world g = 0 from the world g = 1."""
    count = 200_000
    naive = np.random.default_rng(1).standard_normal(count).astype(np.float32)
    assert off_grid(np.float32(1.0) + naive) == 0.0
    assert off_grid(np.float32(0.0) + naive) > 0.9
    lattice = Lattice.for_clip(1.0, count)
    for key, value in ((1, 0.0), (2, 1.0)):
        total = np.full(count, value, np.float32)
        released = lattice.release(total, 1.0, NoiseKey(bytes([key] * 32)))
        values = lattice.values(released)
        assert (np.rint(values / lattice.grid) == released).all()  # on the lattice, in both worlds
