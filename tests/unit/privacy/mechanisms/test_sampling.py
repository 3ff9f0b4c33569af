"""The sampler's law is what amplification rests on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.noise import NoiseKey
from privacy.mechanisms.quantile import QuantileClipping
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


def test_samples_differ_between_runs() -> None:
    one, other = (PoissonSampler(1_000, 0.5).sample() for _ in range(2))
    assert one.tolist() != other.tolist()


@pytest.mark.parametrize(("records", "rate"), [(10, 0.0), (10, 1.1), (10, math.nan), (-1, 0.5)])
def test_rates_that_are_none(records: int, rate: float) -> None:
    with pytest.raises(PrivacyError):
        PoissonSampler(records, rate)


def test_the_count_and_the_gradient_together_cost_what_is_accounted() -> None:
    config = QuantileClipping(count_multiplier=5.0)
    assert config.gradient_multiplier(1.0) == pytest.approx(1.00504, abs=1e-5)
    for multiplier in (0.6, 1.0, 7.0):
        gradient, count = config.gradient_multiplier(multiplier), config.count_std(multiplier)
        assert gradient**-2 + (2 * count) ** -2 == pytest.approx(multiplier**-2)
    with pytest.raises(PrivacyError):
        QuantileClipping(count_multiplier=0.4)
    for bad in ({"target": 1.0}, {"target": 0.0}, {"learning_rate": 0.0}):
        with pytest.raises(PrivacyError):
            QuantileClipping(**bad)


def test_the_norm_goes_to_the_quantile() -> None:
    norms = np.random.default_rng(2).lognormal(1.0, 0.7, 5_000)
    config = QuantileClipping(target=0.7)
    norm, noise = 0.01, np.random.default_rng(3)
    for _ in range(150):
        within = float((norms <= norm).sum()) - len(norms) / 2
        norm = config.next_norm(norm, within + noise.normal(0, 20), len(norms))
    assert norm == pytest.approx(float(np.quantile(norms, 0.7)), rel=0.05)
    assert config.next_norm(1.0, math.inf, 10) == pytest.approx(math.exp(-0.2 * 0.3))
