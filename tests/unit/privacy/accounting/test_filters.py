"""Filters stop in time, whatever noise is chosen on the way."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import GaussianEvent, GdpFilter, RdpFilter, epsilon
from privacy.mechanisms.errors import PrivacyError


@settings(max_examples=25, deadline=None)
@given(choices=st.lists(st.sampled_from([0.7, 1.0, 1.5, 3.0]), min_size=400, max_size=400))
def test_what_an_rdp_filter_lets_through_keeps_within_its_budget(choices: list[float]) -> None:
    expected = [GaussianEvent(noise_multiplier=1.0, sampling_rate=0.05, count=200)]
    guard = RdpFilter.best(expected, 4.0, 1e-5)
    done: list[GaussianEvent] = []
    for sigma in choices:
        step = GaussianEvent(noise_multiplier=sigma, sampling_rate=0.05)
        if guard.allows(done, step):
            done.append(step)
    assert done
    assert epsilon(done, 1e-5, interval=1e-3) <= 4.0


def test_a_committed_schedule_uses_most_of_what_its_filter_allows() -> None:
    step = GaussianEvent(noise_multiplier=1.0, sampling_rate=0.01)
    guard = RdpFilter.best([GaussianEvent(noise_multiplier=1.0, sampling_rate=0.01, count=1_000)], 2.2, 1e-5)
    done = [GaussianEvent(noise_multiplier=1.0, sampling_rate=0.01, count=1_000)]
    assert guard.allows(done, step)
    assert not guard.allows([GaussianEvent(noise_multiplier=1.0, sampling_rate=0.01, count=2_000)], step)


def test_a_gdp_filter_costs_nothing_beside_fixed_noise() -> None:
    guard = GdpFilter(epsilon=1.0, delta=1e-5)
    done = [GaussianEvent(noise_multiplier=10.0, count=6), GaussianEvent(noise_multiplier=20.0, count=4)]
    assert guard.allows(done, GaussianEvent(noise_multiplier=40.0))
    assert not guard.allows(done, GaussianEvent(noise_multiplier=4.5))
    assert epsilon([*done, GaussianEvent(noise_multiplier=40.0)], 1e-5) <= 1.0
    with pytest.raises(PrivacyError):
        guard.allows(done, GaussianEvent(noise_multiplier=40.0, sampling_rate=0.5))


@pytest.mark.parametrize(("order", "target"), [(1.0, 1.0), (2.0, 0.001), (300.0, 1.0)])
def test_a_filter_that_is_always_shut(order: float, target: float) -> None:
    with pytest.raises(PrivacyError) as caught:
        RdpFilter(order=order, epsilon=target, delta=1e-5)
    assert caught.value.code == "filter-invalid"


def test_no_order_is_enough_for_nothing() -> None:
    with pytest.raises(PrivacyError):
        RdpFilter.best([GaussianEvent(noise_multiplier=1.0)], 1e-4, 1e-5)
