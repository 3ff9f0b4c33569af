"""Noise that follows what was released: it moves the right way, stays within bounds, and stops in time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import GaussianEvent, GdpFilter, RdpFilter, epsilon
from privacy.mechanisms.adaptive import AdaptiveNoise, NoiseControl
from privacy.mechanisms.errors import PrivacyError

RATE = 0.05
PLANNED = [GaussianEvent(noise_multiplier=1.5, sampling_rate=RATE, count=100)]


def control(rule: AdaptiveNoise | None = None, spent: tuple[GaussianEvent, ...] = ()) -> NoiseControl:
    guard = RdpFilter.best(PLANNED, 2.5, 1e-5)
    return NoiseControl(rule or AdaptiveNoise(), guard, planned=1.5, sampling_rate=RATE, spent=spent)


def run(noise: NoiseControl, ratio: float, steps: int) -> list[float]:
    """Steps whose released energy is that of the noise and ``ratio`` times as much signal."""
    used = []
    for _ in range(steps):
        multiplier = noise.multiplier()
        if multiplier is None:
            break
        used.append(multiplier)
        noise.released(multiplier, energy=(1 + ratio) * 1_000 * 0.25, std=0.5, dimension=1_000)
    return used


def test_the_first_step_has_the_planned_noise() -> None:
    assert control().multiplier() == 1.5


def test_a_weak_signal_gets_less_noise_and_a_strong_one_more() -> None:
    rule = AdaptiveNoise(target=0.01, smoothing=0.0)
    weak, strong, right = (run(control(rule), ratio, 5) for ratio in (0.0, 1.0, 0.01))
    assert weak == sorted(weak, reverse=True) and weak[-1] < 1.5
    assert strong == sorted(strong) and strong[-1] > 1.5
    assert right == [1.5] * 5


def test_noise_stays_between_its_bounds_and_takes_few_values() -> None:
    rule = AdaptiveNoise(smoothing=0.0, lowest=0.8, highest=1.2)
    for ratio in (0.0, 10.0):
        used = run(control(rule), ratio, 60)
        assert min(used) >= 0.8 * 1.5 * (1 - 1e-12)
        assert max(used) <= 1.2 * 1.5 * (1 + 1e-12)
        assert len(set(used)) <= 8


def test_noise_turns_round_at_once_at_a_bound() -> None:
    """What was asked for beyond a bound isn't remembered."""
    rule = AdaptiveNoise(smoothing=0.0, change=1.1, lowest=0.8, highest=1.25)
    noise = control(rule)
    run(noise, 10.0, 30)
    after = run(noise, 0.0, 3)
    assert after[-1] < after[0] == pytest.approx(1.25 * 1.5)


def test_smoothing_keeps_single_steps_from_deciding() -> None:
    calm = control(AdaptiveNoise(target=0.1, smoothing=0.95))
    run(calm, 0.1, 3)
    run(calm, 0.14, 1)
    assert calm.multiplier() == 1.5


def test_a_release_of_noise_alone_is_seen_as_no_signal() -> None:
    """The energy of the noise is taken off without bias."""
    draw = np.random.default_rng(3)
    rule = AdaptiveNoise(target=0.05, smoothing=0.9)
    noise = control(rule)
    for _ in range(10):
        multiplier = noise.multiplier()
        assert multiplier is not None
        noisy = draw.normal(0.0, 2.0, 50_000)
        noise.released(multiplier, energy=float(noisy @ noisy), std=2.0, dimension=50_000)
    assert noise.multiplier() == pytest.approx(0.8 * 1.5, rel=0.06)


@settings(max_examples=20, deadline=None)
@given(energies=st.lists(st.floats(0.0, 2_000.0), min_size=400, max_size=400))
def test_whatever_is_released_the_budget_holds(energies: list[float]) -> None:
    noise = control(AdaptiveNoise(smoothing=0.2, change=1.2, lowest=0.4, highest=2.0))
    for energy in energies:
        multiplier = noise.multiplier()
        if multiplier is None:
            break
        noise.released(multiplier, energy=energy, std=0.5, dimension=1_000)
    assert noise.spent
    assert epsilon(noise.spent, 1e-5, "rdp") <= 2.5
    assert epsilon(noise.spent, 1e-5) <= 2.5


def test_it_stops_when_the_budget_is_exhausted_and_not_long_before() -> None:
    noise = control(AdaptiveNoise(smoothing=0.0))
    used = run(noise, 0.0, 10_000)
    assert 20 < len(used) < 100  # of 100 planned: a weak signal takes the budget sooner
    assert noise.multiplier() is None
    guard = RdpFilter.best(PLANNED, 2.5, 1e-5)
    assert 0.98 * guard.budget < guard.spent(noise.spent) <= guard.budget


def test_the_last_steps_take_the_least_noise_that_there_is_room_for() -> None:
    used = run(control(AdaptiveNoise(smoothing=0.0, lowest=0.7, highest=2.0)), 0.0, 10_000)
    turn = used.index(min(used)) + used.count(min(used))
    assert used[:turn] == sorted(used[:turn], reverse=True)
    assert used[turn:] == sorted(used[turn:])
    assert used[-1] > min(used)


def test_a_run_that_is_taken_up_again_knows_what_was_spent() -> None:
    whole = control()
    run(whole, 0.0, 50)
    again = control(spent=tuple(whole.spent))
    assert again.spent == whole.spent
    assert len(run(again, 0.0, 10_000)) < len(run(control(), 0.0, 10_000))


def test_without_sampling_the_gdp_filter_guards() -> None:
    guard = GdpFilter(epsilon=1.0, delta=1e-5)
    noise = NoiseControl(AdaptiveNoise(smoothing=0.0), guard, planned=20.0, sampling_rate=1.0)
    run(noise, 0.0, 10_000)
    assert noise.multiplier() is None
    assert 0.97 < epsilon(noise.spent, 1e-5) <= 1.0 + 1e-9


def test_an_energy_that_isnt_finite_changes_nothing_but_is_paid_for() -> None:
    noise = control()
    noise.released(1.5, energy=math.nan, std=0.5, dimension=10)
    noise.released(1.5, energy=math.inf, std=0.5, dimension=10)
    assert noise.multiplier() == 1.5
    assert noise.spent == [GaussianEvent(noise_multiplier=1.5, sampling_rate=RATE, count=2)]


@pytest.mark.parametrize(
    "fields",
    [
        {"target": 0.0},
        {"target": math.inf},
        {"smoothing": 1.0},
        {"smoothing": -0.1},
        {"change": 1.0},
        {"change": math.nan},
        {"lowest": 0.0},
        {"lowest": 1.1},
        {"highest": 0.9},
    ],
)
def test_rules_that_are_none(fields: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError) as caught:
        AdaptiveNoise(**fields)
    assert caught.value.code == "adaptive-invalid"
    assert next(iter(fields)) in caught.value.message
