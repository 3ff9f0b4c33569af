"""Renyi divergences against closed forms, against the integral as scipy does it, and against dp-accounting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from privacy.accounting import GaussianEvent
from privacy.accounting.renyi import ORDERS, divergence, rdp_epsilon


def closed(sigma: float, rate: float, order: int) -> float:
    """For whole orders it is a sum (Mironov, Talwar & Zhang 2019)."""
    k = np.arange(order + 1)
    terms = (
        special.gammaln(order + 1)
        - special.gammaln(k + 1)
        - special.gammaln(order - k + 1)
        + k * math.log(rate)
        + (order - k) * math.log1p(-rate)
        + k * (k - 1) / (2 * sigma**2)
    )
    return float(special.logsumexp(terms)) / (order - 1)


@settings(max_examples=60, deadline=None)
@given(sigma=st.floats(0.4, 20.0), rate=st.floats(1e-3, 0.99), order=st.integers(2, 200))
def test_whole_orders(sigma: float, rate: float, order: int) -> None:
    assert divergence(sigma, rate, float(order)) == pytest.approx(closed(sigma, rate, order), rel=1e-7, abs=1e-14)


@pytest.mark.parametrize(
    ("sigma", "rate", "order"), [(1.0, 0.01, 1.1), (3.0, 0.25, 1.1), (3.0, 0.25, 3.5), (0.8, 0.001, 5.5)]
)
def test_orders_in_between(sigma: float, rate: float, order: float) -> None:
    def integrand(x: float) -> float:
        density = math.exp(-x * x / (2 * sigma * sigma)) / (sigma * math.sqrt(2 * math.pi))
        return float(density * (1 - rate + rate * math.exp((2 * x - 1) / (2 * sigma * sigma))) ** order)

    value = integrate.quad(integrand, -30, order + 30, epsabs=0, epsrel=1e-12, limit=1_000, points=[0.0, 1.0, order])[0]
    assert divergence(sigma, rate, order) == pytest.approx(math.log(value) / (order - 1), rel=1e-8)


def test_without_sampling_it_is_a_formula() -> None:
    assert divergence(2.0, 1.0, 8.0) == 1.0
    assert divergence(3.0, 1.0 - 1e-12, 4.0) == pytest.approx(4 / 18, rel=1e-6)


@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.01), (0.8, 0.001), (3.0, 0.25), (20.0, 0.9)])
def test_dp_accounting_has_the_same_where_it_is_exact(sigma: float, rate: float) -> None:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    orders = [float(order) for order in range(2, 65)]
    accountant = RdpAccountant(orders=orders).compose(PoissonSampledDpEvent(rate, GaussianDpEvent(sigma)))
    for order, theirs in zip(orders, accountant.rdp, strict=True):
        assert divergence(sigma, rate, order) == pytest.approx(theirs, rel=1e-8)


@settings(max_examples=40, deadline=None)
@given(sigma=st.floats(0.3, 10.0), rate=st.floats(1e-6, 1.0), order=st.floats(1.1, 500.0))
def test_bounds_and_monotony(sigma: float, rate: float, order: float) -> None:
    here = divergence(sigma, rate, order)
    assert 0.0 <= here <= order / (2 * sigma**2) * (1 + 1e-9)
    assert divergence(1.1 * sigma, rate, order) <= here * (1 + 1e-9) + 1e-13
    assert divergence(sigma, rate, 1.1 * order) >= here * (1 - 1e-9) - 1e-13
    assert divergence(sigma, 0.9 * rate, order) <= here * (1 + 1e-9) + 1e-13


def test_rounding_is_on_the_safe_side() -> None:
    """A divergence below float64's rounding isn't 0: a billion of them would be something."""
    assert divergence(1.0, 1e-12, 8.0) > 0.0
    events = [GaussianEvent(noise_multiplier=1.0, sampling_rate=1e-12, count=1 << 40)]
    assert rdp_epsilon(events, 1e-5) > 0.0


def test_noise_so_small_that_the_integral_would_be_long() -> None:
    assert divergence(1e-3, 0.5, 64.0) == 64.0 / (2 * 1e-6)


def test_the_classic_conversion_gives_the_published_values() -> None:
    """Abadi et al. 2016 (1.26) and the tutorial of TensorFlow Privacy, with the conversion of their time."""
    orders = np.array(ORDERS)

    def classic(sigma: float, rate: float, steps: int) -> float:
        total = steps * np.array([divergence(sigma, rate, order) for order in ORDERS])
        return float((total + math.log(1e5) / (orders - 1)).min())

    assert classic(4.0, 0.01, 10_000) == pytest.approx(1.2586, abs=1e-4)
    for sigma, epochs, published in ((1.1, 60, 3.0083), (1.3, 15, 1.1921), (0.7, 45, 7.1003)):
        assert classic(sigma, 256 / 60_000, epochs * 60_000 // 256) == pytest.approx(published, abs=1e-4)


def test_events_add_up() -> None:
    one, other = GaussianEvent(noise_multiplier=1.0, sampling_rate=0.01), GaussianEvent(noise_multiplier=3.0)
    assert rdp_epsilon([one, other], 1e-5) > max(rdp_epsilon([one], 1e-5), rdp_epsilon([other], 1e-5))
    twice = GaussianEvent(noise_multiplier=1.0, sampling_rate=0.01, count=2)
    assert rdp_epsilon([one, one], 1e-5) == pytest.approx(rdp_epsilon([twice], 1e-5), rel=1e-12)
