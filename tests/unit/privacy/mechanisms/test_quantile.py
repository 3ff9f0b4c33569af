"""The clipping norm that follows a quantile, and what its count costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.noise import NoiseKey, gaussian_integers
from privacy.mechanisms.quantile import QuantileClipping


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


@pytest.mark.parametrize("bad", [{"learning_rate": 1.5}, {"count_multiplier": 0.5}, {"target": math.nan}])
def test_settings_without_meaning(bad: dict[str, float]) -> None:
    with pytest.raises(PrivacyError) as caught:
        QuantileClipping(**bad)
    assert caught.value.code == "quantile-invalid"


@given(
    norm=st.floats(1e-6, 1e6),
    count=st.floats(-1e9, 1e9),
    batch=st.floats(1.0, 1e6),
    rate=st.floats(0.01, 1.0),
)
def test_the_norm_stays_positive_and_moves_a_little(norm: float, count: float, batch: float, rate: float) -> None:
    config = QuantileClipping(learning_rate=rate)
    found = config.next_norm(norm, count, batch)
    assert norm * math.exp(-rate) <= found <= norm * math.exp(rate)
    assert config.next_norm(norm, count + 1, batch) <= found  # more within it: smaller


@pytest.mark.parametrize("multiplier", [0.7, 2.0])
def test_gradient_and_count_are_one_gaussian_mechanism(multiplier: float) -> None:
    """Whoever sees both does as well as against one Gaussian of the accounted multiplier, and no better.

    A record moves the gradient by its norm (one, here) and the count by a half, which is drawn in halves as integers.
    """
    config, draws = QuantileClipping(count_multiplier=1.0), 200_000
    gradient = config.gradient_multiplier(multiplier)
    halves = 2.0 * config.count_std(multiplier)
    noise = gaussian_integers(NoiseKey(bytes(32)), draws, 1_000.0 * gradient) / 1_000.0
    count = gaussian_integers(NoiseKey(bytes([1] * 32)), draws, 1_000.0 * halves) / 1_000.0
    # The best test adds both up by how far each is moved over its variance.
    without = noise / gradient**2 + count / halves**2
    moved = 1.0 / gradient**2 + 1.0 / halves**2
    assert moved / without.std() == pytest.approx(1.0 / multiplier, rel=0.01)
    assert stats.kstest(without / without.std(), "norm").pvalue > 1e-3


def test_the_count_is_drawn_as_an_integer_of_halves() -> None:
    """Records within the norm less those beyond it: one record more or less moves it by one."""
    norms = np.array([0.1, 0.4, 0.9, 5.0])
    for without in range(4):
        rest = np.delete(norms, without)
        halves = [2 * int((some <= 0.5).sum()) - len(some) for some in (norms, rest)]
        assert abs(halves[0] - halves[1]) == 1
