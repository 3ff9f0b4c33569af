"""How much noise a budget needs: published and measured values, and always on the safe side."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import GaussianEvent, epsilon
from privacy.mechanisms.calibration import events_of, noise_multiplier_for, planned_epsilon, steps_until
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.schedules import NoiseSchedule


def gaussian(sigma: float, rate: float, count: int) -> GaussianEvent:
    return GaussianEvent(noise_multiplier=sigma, sampling_rate=rate, count=count)


@pytest.mark.parametrize(
    ("target", "rate", "steps", "multiplier", "error"),
    [
        (3, 2_048 / 60_000, 1_172, 1.809, 1e-3),
        (1, 0.01, 2_000, 1.846, 2e-3),  # known from a coarser lattice, which asks for more
        (8, 4_096 / 50_000, 875, 1.640, 1e-3),
        (3, 8_192 / 60_000, 293, 3.400, 1e-3),
    ],
)
def test_solved_noise(target: float, rate: float, steps: int, multiplier: float, error: float) -> None:
    found = noise_multiplier_for(target, 1e-5, rate, steps)
    assert found == pytest.approx(multiplier, rel=error)
    assert epsilon([gaussian(found, rate, steps)], 1e-5) <= target
    assert epsilon([gaussian(found / 1.0003, rate, steps)], 1e-5) > target


def test_the_gaussian_mechanism_needs_what_balle_and_wang_say() -> None:
    found = noise_multiplier_for(1.0, 1e-5, 1.0, 1)
    assert 3.730632 <= found <= 3.730632 * (1 + 2e-4)
    assert noise_multiplier_for(1.0, 1e-5, 1.0, 100) == pytest.approx(10 * 3.730632, rel=3e-4)


@settings(max_examples=10, deadline=None)
@given(target=st.floats(0.1, 8.0), rate=st.floats(0.002, 1.0), steps=st.integers(1, 3_000), delta=st.floats(1e-8, 1e-3))
def test_solved_noise_keeps_within_the_budget_and_wastes_little(
    target: float, rate: float, steps: int, delta: float
) -> None:
    found = noise_multiplier_for(target, delta, rate, steps)
    assert planned_epsilon([gaussian(found, rate, steps)], delta) <= target
    if found > 0.06:
        assert planned_epsilon([gaussian(found / 1.001, rate, steps)], delta) > target * (1 - 1e-3)


def test_a_plan_is_solved_while_one_waits() -> None:
    begin = time.process_time()
    noise_multiplier_for(3.0, 1e-6, 0.031, 1_234)
    assert time.process_time() - begin < 3.0


@pytest.mark.parametrize("kind", ["linear", "exponential", "step", "spend-later"])
@pytest.mark.parametrize("end", [0.5, 1.7])
def test_a_schedule_is_solved_as_a_whole(kind: Any, end: float) -> None:
    schedule = NoiseSchedule(kind=kind, end=end)
    base = noise_multiplier_for(3.0, 1e-5, 0.05, 200, schedule)
    events = events_of(base, 0.05, 200, schedule)
    assert sum(event.count for event in events) == 200
    assert 0.995 * 3.0 < epsilon(events, 1e-5) <= 3.0
    constant = noise_multiplier_for(3.0, 1e-5, 0.05, 200)
    assert (base > constant) == (end < 1)


def test_noise_within_a_filter_is_solved_by_its_own_count() -> None:
    found = noise_multiplier_for(3.0, 1e-5, 0.05, 200, accountant="rdp")
    assert 0.998 * 3.0 < epsilon([gaussian(found, 0.05, 200)], 1e-5, "rdp") <= 3.0
    assert found > noise_multiplier_for(3.0, 1e-5, 0.05, 200)


def test_a_budget_so_large_that_hardly_any_noise_is_needed() -> None:
    found = noise_multiplier_for(300.0, 1e-5, 0.5, 2)
    assert 0.05 <= found < 0.1


def test_no_noise_is_enough_for_this() -> None:
    with pytest.raises(PrivacyError) as caught:
        noise_multiplier_for(1e-6, 1e-9, 1.0, 100_000)
    assert caught.value.code == "budget-impossible"
    assert "100000 steps" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(("target", "rate", "sigma"), [(1.0, 0.01, 1.2), (3.0, 1.0, 20.0), (0.5, 0.1, 4.0)])
def test_until_exhausted(target: float, rate: float, sigma: float) -> None:
    steps = steps_until(target, 1e-5, rate, sigma)
    assert steps > 0
    assert epsilon([gaussian(sigma, rate, steps)], 1e-5) <= target
    assert epsilon([gaussian(sigma, rate, steps + 1)], 1e-5) > target


def test_until_exhausted_and_solved_noise_are_inverse() -> None:
    sigma = noise_multiplier_for(2.0, 1e-6, 0.02, 777)
    assert 777 <= steps_until(2.0, 1e-6, 0.02, sigma) <= 778


def test_a_budget_that_is_exhausted_at_once_and_one_that_never_is() -> None:
    assert steps_until(0.1, 1e-5, 1.0, 1.0) == 0
    with pytest.raises(PrivacyError) as caught:
        steps_until(1.0, 1e-5, 1e-9, 1e4)
    assert caught.value.code == "budget-endless"


def test_events_of_a_long_run_are_counted_not_listed() -> None:
    begin = time.process_time()
    events = events_of(2.0, 0.01, 1_000_000, NoiseSchedule(kind="linear", end=0.5))
    assert sum(event.count for event in events) == 1_000_000
    assert math.isclose(max(event.noise_multiplier for event in events), 2.0)
    assert time.process_time() - begin < 0.1
