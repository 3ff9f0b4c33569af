"""Filters stop in time, whatever noise is chosen on the way."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import GaussianEvent, GdpFilter, RdpFilter, epsilon
from privacy.accounting.accountant import gaussian_epsilon
from privacy.mechanisms.errors import PrivacyError


def gaussian(sigma: float, rate: float = 1.0, count: int = 1) -> GaussianEvent:
    return GaussianEvent(noise_multiplier=float(sigma), sampling_rate=float(rate), count=count)


@settings(max_examples=25, deadline=None)
@given(choices=st.lists(st.sampled_from([0.7, 1.0, 1.5, 3.0]), min_size=400, max_size=400))
def test_what_an_rdp_filter_lets_through_keeps_within_its_budget(choices: list[float]) -> None:
    guard = RdpFilter.best([gaussian(1.0, 0.05, 200)], 4.0, 1e-5)
    done: list[GaussianEvent] = []
    for sigma in choices:
        step = gaussian(sigma, 0.05)
        if guard.allows(done, step):
            done.append(step)
    assert done
    assert guard.spent(done) <= guard.budget
    assert epsilon(done, 1e-5, "rdp") <= 4.0
    assert epsilon(done, 1e-5, interval=1e-3) <= 4.0


@settings(max_examples=25, deadline=None)
@given(choices=st.lists(st.floats(3.0, 60.0), min_size=30, max_size=30))
def test_what_a_gdp_filter_lets_through_keeps_within_its_budget(choices: list[float]) -> None:
    guard = GdpFilter(epsilon=1.0, delta=1e-5)
    done: list[GaussianEvent] = []
    for sigma in choices:
        if guard.allows(done, gaussian(sigma)):
            done.append(gaussian(sigma))
    if done:
        assert epsilon(done, 1e-5) <= 1.0 + 1e-9


def test_a_greedy_adversary_gets_no_more() -> None:
    """It always asks for the most exact release that is still allowed, as what was released may tell it to."""
    guard = RdpFilter.best([gaussian(1.0, 0.02, 500)], 2.0, 1e-6)
    done: list[GaussianEvent] = []
    for sigma in [0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0] * 100:
        if guard.allows(done, gaussian(sigma, 0.02)):
            done.append(gaussian(sigma, 0.02))
    assert not guard.allows(done, gaussian(0.5, 0.02))
    assert epsilon(done, 1e-6, "rdp") <= 2.0


def test_a_committed_schedule_uses_most_of_what_its_filter_allows() -> None:
    guard = RdpFilter.best([gaussian(1.0, 0.01, 1_000)], 2.2, 1e-5)
    assert guard.allows([gaussian(1.0, 0.01, 1_000)], gaussian(1.0, 0.01))
    assert not guard.allows([gaussian(1.0, 0.01, 2_000)], gaussian(1.0, 0.01))


def test_the_best_order_is_the_accountants() -> None:
    """With all of the budget at the order that the bound itself takes, a filter costs what the bound says."""
    expected = [gaussian(1.1, 256 / 60_000, 14_040)]
    exact = epsilon(expected, 1e-5, "rdp")
    guard = RdpFilter.best(expected, exact * (1 + 1e-9), 1e-5)
    assert guard.spent(expected) <= guard.budget
    assert (
        RdpFilter.best(expected, 0.99 * exact, 1e-5).spent(expected)
        > RdpFilter.best(expected, 0.99 * exact, 1e-5).budget
    )


def test_the_budget_of_an_order_is_the_conversion_backwards() -> None:
    guard = RdpFilter(order=8.0, epsilon=3.0, delta=1e-5)
    back = guard.budget + math.log1p(-1 / 8) - (math.log(1e-5) + math.log(8)) / 7
    assert back == pytest.approx(3.0)


def test_a_gdp_filter_costs_nothing_beside_fixed_noise() -> None:
    guard = GdpFilter(epsilon=1.0, delta=1e-5)
    done = [gaussian(10.0, 1.0, 6), gaussian(20.0, 1.0, 4)]
    assert guard.allows(done, gaussian(40.0))
    assert not guard.allows(done, gaussian(4.5))
    assert epsilon([*done, gaussian(40.0)], 1e-5) <= 1.0
    with pytest.raises(PrivacyError):
        guard.allows(done, gaussian(40.0, 0.5))


@settings(max_examples=20, deadline=None)
@given(target=st.floats(0.01, 30.0), exponent=st.floats(2.0, 10.0))
def test_a_gdp_budget_is_all_of_epsilon(target: float, exponent: float) -> None:
    delta = 10.0**-exponent
    budget = GdpFilter(epsilon=target, delta=delta).budget
    assert target * (1 - 1e-6) <= gaussian_epsilon(budget**-0.5, delta) <= target


@pytest.mark.parametrize(("order", "target"), [(1.0, 1.0), (2.0, 0.001), (5_000.0, 1.0)])
def test_a_filter_that_is_always_shut(order: float, target: float) -> None:
    with pytest.raises(PrivacyError) as caught:
        RdpFilter(order=order, epsilon=target, delta=1e-5)
    assert caught.value.code == "filter-invalid"


@pytest.mark.parametrize(("target", "delta"), [(0.0, 1e-5), (math.inf, 1e-5), (1.0, 0.0), (1.0, 1.0), (math.nan, 0.1)])
def test_budgets_without_meaning(target: float, delta: float) -> None:
    for build in (
        lambda: GdpFilter(epsilon=target, delta=delta),
        lambda: RdpFilter(order=8.0, epsilon=target, delta=delta),
        lambda: RdpFilter.best([gaussian(1.0)], target, delta),
    ):
        with pytest.raises(PrivacyError) as caught:
            build()
        assert caught.value.code == "filter-invalid"


def test_no_order_is_enough_for_nothing() -> None:
    with pytest.raises(PrivacyError):
        RdpFilter.best([gaussian(1.0)], 1e-4, 1e-5)
