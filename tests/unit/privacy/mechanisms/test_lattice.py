"""Sums on a lattice: their sensitivity, their noise, and shares that add up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.lattice import Lattice
from privacy.mechanisms.noise import NoiseKey, reach

VECTORS = hnp.arrays(np.float64, 7, elements=st.floats(-50, 50))


@given(total=VECTORS, contribution=VECTORS, grid=st.sampled_from([0.001, 0.1, 3.0]))
def test_no_contribution_moves_the_integers_further_than_the_sensitivity(
    total: np.ndarray, contribution: np.ndarray, grid: float
) -> None:
    lattice = Lattice(grid, 7)
    norm = float(np.linalg.norm(contribution))
    moved = lattice._rounded(total + contribution) - lattice._rounded(total)
    assert grid * float(np.linalg.norm(moved)) <= lattice.sensitivity(norm) * (1 + 1e-9)


def test_the_sensitivity_is_reached() -> None:
    """A contribution that tips every coordinate over a border of rounding: no smaller bound would be true."""
    lattice = Lattice(1.0, 10_000)
    contribution = np.full(10_000, 0.02)
    before = np.full(10_000, 0.49)
    moved = lattice._rounded(before + contribution) - lattice._rounded(before)
    norm = float(np.linalg.norm(contribution))
    assert np.linalg.norm(moved) == pytest.approx(100.0)
    assert np.linalg.norm(moved) > 0.98 * (lattice.sensitivity(norm) - norm)


@given(clip=st.floats(1e-6, 1e6), dimension=st.integers(1, 10**9), slack=st.sampled_from([1 / 200, 1 / 10, 1e-3]))
def test_the_lattice_for_a_norm_adds_the_slack(clip: float, dimension: int, slack: float) -> None:
    lattice = Lattice.for_clip(clip, dimension, slack)
    assert lattice.sensitivity(clip) == pytest.approx(clip * (1 + slack))


@given(total=VECTORS, contribution=VECTORS)
def test_cutting_to_the_limit_moves_them_no_further(total: np.ndarray, contribution: np.ndarray) -> None:
    lattice, room = Lattice(0.1, 7), 40
    one, other = lattice._rounded(total), lattice._rounded(total + contribution)
    cut = np.clip(one, -room, room) - np.clip(other, -room, room)
    assert np.linalg.norm(cut) <= np.linalg.norm(one - other)


def test_a_release_is_the_sum_and_its_noise() -> None:
    lattice = Lattice.for_clip(2.0, 100_000)
    assert lattice.sensitivity(2.0) == pytest.approx(2.01)
    total = np.linspace(-3, 3, 100_000)
    noise = lattice.values(lattice.release(total, 0.5, NoiseKey(bytes(32)))) - total
    assert noise.std() == pytest.approx(0.5, rel=0.02)
    assert stats.kstest(noise / 0.5, "norm").pvalue > 1e-3


@pytest.mark.parametrize("units", [8.0, 5_000.0])
def test_shares_add_up_to_one_gaussian(units: float) -> None:
    """Eight lattice units are enough: ten rounded shares pass for one Gaussian of ten times the variance.

    Of fine noise, which is made of two parts, so do ten.
    """
    lattice, sites = Lattice(1.0, 200_000), 10
    total = np.zeros(200_000)
    shares = sum(
        lattice.share(total, units, NoiseKey(bytes([site] * 32)), 1 << 20).astype(np.int64) for site in range(sites)
    )
    std = units * math.sqrt(sites)
    edges = np.floor(np.linspace(-4 * std, 4 * std, 201)) + 0.5
    cuts = np.concatenate(([-np.inf], edges, [np.inf]))
    # Each rounding adds a uniform on [-1/2, 1/2]: the law is the Gaussian's, smoothed ten times.
    expected = len(total) * np.diff(stats.norm.cdf(cuts / math.sqrt(std**2 + sites / 12)))
    found = np.histogram(shares, cuts)[0]
    often = expected > 5
    statistic = float(((found - expected)[often] ** 2 / expected[often]).sum())
    assert stats.chi2.sf(statistic, int(often.sum()) - 1) > 1e-3


def test_the_noise_in_a_sum_over_many_rounds() -> None:
    """The federated sum's variance, round by round: that of so many shares, whoever takes part."""
    lattice = Lattice.for_clip(1.0, 500)
    variances: dict[int, list[float]] = {3: [], 7: []}
    for number in range(60):
        for sites, found in variances.items():
            shares = [
                lattice.share(np.ones(500), 0.4, NoiseKey(bytes([number, site, sites, *range(29)])), 1 << 28)
                for site in range(sites)
            ]
            residual = lattice.values(np.sum(shares, axis=0, dtype=np.int64)) - sites
            found.append(float(residual.var()))
    for sites, found in variances.items():
        wanted = sites * 0.4**2
        spread = wanted * math.sqrt(2 / (500 * 60))
        assert np.mean(found) == pytest.approx(wanted, abs=4 * spread)
        assert stats.kstest(np.array(found) * 499 / wanted, stats.chi2(499).cdf).pvalue > 1e-3


def test_the_law_of_a_sum_of_shares_is_a_post_processed_gaussian() -> None:
    """The theorem in numbers: convolve the lattice laws of three shares, and compare with the smoothed Gaussian."""
    s, reach = 2.0, 60  # a share four times finer than is allowed, so that the difference can be seen at all
    integers = np.arange(-reach, reach + 1)
    one = stats.norm.cdf((integers + 0.5) / s) - stats.norm.cdf((integers - 0.5) / s)
    total = np.convolve(np.convolve(one, one), one)
    fine = 256
    grid = np.arange(-3 * reach * fine, 3 * reach * fine + 1) / fine
    box = np.ones(fine) / fine
    spline = np.convolve(np.convolve(box, box), box)  # B_3, sampled
    density = stats.norm.pdf(grid, scale=s * math.sqrt(3))
    smoothed = np.convolve(density, spline, mode="same")
    kernel = smoothed[::fine][: len(total)]
    assert 0.5 * float(np.abs(total - kernel).sum()) < 1e-3  # what sampling B_3 leaves
    assert 40 * math.sqrt(3) * 8.0 * math.exp(-(math.pi**2) * 64) < 1e-270


@pytest.mark.parametrize(
    ("std", "limit", "code"), [(7.9, 1 << 20, "share-too-fine"), (100.0, 1_000, "lattice-too-fine")]
)
def test_shares_that_cannot_keep_the_promise(std: float, limit: int, code: str) -> None:
    with pytest.raises(PrivacyError) as caught:
        Lattice(1.0, 3).share(np.zeros(3), std, NoiseKey.fresh(), limit)
    assert caught.value.code == code


def test_a_share_never_leaves_its_range() -> None:
    lattice = Lattice(1.0, 4)
    shared = lattice.share(np.array([1e9, -1e9, 5.0, 0.0]), 10.0, NoiseKey(bytes(32)), 1_000)
    assert shared.dtype == np.dtype("<i4")
    assert np.abs(shared).max() <= 1_000
    assert abs(shared[2]) < 100
    # Cut before the noise: the noise of the cut coordinates is whole.
    room = 1_000 - reach(10.0)
    plain = lattice.share(np.zeros(4), 10.0, NoiseKey(bytes(32)), 1_000)
    assert (shared - plain).tolist() == [room, -room, 5, 0]


@pytest.mark.parametrize("std", [8.0, 2_000.0])
def test_no_share_is_ever_cut_after_its_noise(std: float) -> None:
    """The largest noise that there is fits exactly."""
    with pytest.raises(PrivacyError):
        Lattice(1.0, 1).share(np.zeros(1), std, NoiseKey(bytes(32)), reach(std))
    Lattice(1.0, 1).share(np.zeros(1), std, NoiseKey(bytes(32)), reach(std) + 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_sum_that_is_not_finite_draws_no_noise(bad: float) -> None:
    with pytest.raises(PrivacyError) as caught:
        Lattice(1.0, 2).release(np.array([0.0, bad]), 1.0, NoiseKey.fresh())
    assert caught.value.code == "sum-not-finite"


@pytest.mark.parametrize(("grid", "dimension"), [(0.0, 3), (-1.0, 3), (math.nan, 3), (1.0, 0)])
def test_lattices_that_are_none(grid: float, dimension: int) -> None:
    with pytest.raises(PrivacyError):
        Lattice(grid, dimension)
    with pytest.raises(PrivacyError):
        Lattice.for_clip(1.0, 0)
    with pytest.raises(PrivacyError):
        Lattice(1.0, 3).release(np.zeros(4), 1.0, NoiseKey.fresh())
