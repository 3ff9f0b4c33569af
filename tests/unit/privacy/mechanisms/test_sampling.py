"""The sampler's law is what amplification rests on."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.noise import NoiseKey
from privacy.mechanisms.sampling import PoissonSampler


def test_each_record_is_drawn_by_itself() -> None:
    records, rate, rounds = 200, 0.07, 4_000
    sampler = PoissonSampler(records, rate, NoiseKey(bytes(32)))
    hits = np.zeros((rounds, records), bool)
    for row in hits:
        row[sampler.sample()] = True
    # Sizes are binomial, records equally often, and two records meet as often as independence says.
    sizes = hits.sum(axis=1)
    assert sizes.var() == pytest.approx(records * rate * (1 - rate), rel=0.1)
    counts = hits.sum(axis=0)
    statistic = float(((counts - rounds * rate) ** 2 / (rounds * rate * (1 - rate))).sum())
    assert stats.chi2.sf(statistic, records) > 1e-3
    pairs = (hits[:, :-1] & hits[:, 1:]).sum()
    expected = rounds * (records - 1) * rate**2
    assert abs(pairs - expected) < 5 * math.sqrt(expected)
    following = (hits[:-1] & hits[1:]).sum()
    assert abs(following - (rounds - 1) * records * rate**2) < 5 * math.sqrt(expected)


def test_a_sample_may_be_empty() -> None:
    sampler = PoissonSampler(20, 0.02, NoiseKey(bytes(32)))
    lengths = [len(sampler.sample()) for _ in range(200)]
    assert lengths.count(0) > 80
    assert max(lengths) > 1


def test_the_rate_is_never_exceeded() -> None:
    assert PoissonSampler(1, 0.1)._threshold <= 0.1 * 2**64
    assert len(PoissonSampler(50, 1.0).sample()) == 50
    assert len(PoissonSampler(0, 0.5).sample()) == 0


@pytest.mark.parametrize("rate", [1e-3, 0.1, 1 / 3, 0.999, math.nextafter(1.0, 0.0)])
def test_the_rate_is_kept_to_the_last_bit(rate: float) -> None:
    threshold = PoissonSampler(1, rate)._threshold
    assert Fraction(threshold, 1 << 64) <= Fraction(rate) < Fraction(threshold + 1, 1 << 64)


def test_sizes_are_binomial() -> None:
    records, rate, rounds = 500, 0.02, 5_000
    sampler = PoissonSampler(records, rate, NoiseKey(bytes([3] * 32)))
    sizes = np.array([len(sampler.sample()) for _ in range(rounds)])
    values = np.arange(0, 30)
    expected = rounds * stats.binom.pmf(values, records, rate)
    found = np.bincount(sizes, minlength=30)[:30]
    often = expected > 5
    statistic = float(((found - expected)[often] ** 2 / expected[often]).sum())
    assert stats.chi2.sf(statistic, int(often.sum()) - 1) > 1e-3


def test_indices_are_ascending_and_all_there_is() -> None:
    sampler = PoissonSampler(97, 0.5, NoiseKey(bytes([4] * 32)))
    seen: set[int] = set()
    for _ in range(50):
        sample = sampler.sample()
        assert sample.dtype == np.int64
        assert (np.diff(sample) > 0).all()
        seen.update(sample.tolist())
    assert seen == set(range(97))


def test_a_key_samples_once() -> None:
    """Two samplers of one key would draw the same records: the second is refused."""
    key = NoiseKey(bytes([5] * 32))
    PoissonSampler(10, 0.5, key).sample()
    with pytest.raises(PrivacyError) as caught:
        PoissonSampler(10, 0.5, key).sample()
    assert caught.value.code == "noise-reused"


def test_samples_differ_between_runs() -> None:
    one, other = (PoissonSampler(1_000, 0.5).sample() for _ in range(2))
    assert one.tolist() != other.tolist()


@pytest.mark.parametrize(("records", "rate"), [(10, 0.0), (10, 1.1), (10, math.nan), (-1, 0.5)])
def test_rates_that_are_none(records: int, rate: float) -> None:
    with pytest.raises(PrivacyError):
        PoissonSampler(records, rate)
