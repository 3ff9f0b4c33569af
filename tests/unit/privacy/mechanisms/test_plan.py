"""Plans: solved for their budget, consistent in themselves, refused where they couldn't keep the promise."""

from __future__ import annotations

import math
from typing import Any

import pytest

from privacy.accounting import GaussianEvent, Placement, Unit, epsilon
from privacy.mechanisms.calibration import noise_multiplier_for, steps_until
from privacy.mechanisms.clipping import ClippingRule
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.plan import PrivacyPlan, Share, solve
from privacy.mechanisms.quantile import QuantileClipping
from privacy.mechanisms.schedules import NoiseSchedule

LOCAL: dict[str, Any] = {
    "unit": Unit.RECORD,
    "placement": Placement.LOCAL,
    "target_epsilon": 3.0,
    "delta": 1e-5,
    "records": 6_000,
    "sampling_rate": 0.05,
    "clip_norm": 1.0,
    "rounds": 10,
    "steps_per_round": 5,
    "dimension": 10_000,
}


@pytest.mark.parametrize(
    ("target", "rate", "steps", "multiplier"),
    [
        (3, 2_048 / 60_000, 1_172, 1.809),
        (1, 0.01, 2_000, 1.846),
        (8, 4_096 / 50_000, 875, 1.640),
        (3, 8_192 / 60_000, 293, 3.400),
    ],
)
def test_solved_noise(target: float, rate: float, steps: int, multiplier: float) -> None:
    found = noise_multiplier_for(target, 1e-5, rate, steps)
    assert found == pytest.approx(multiplier, rel=2e-3)
    assert epsilon([GaussianEvent(noise_multiplier=found, sampling_rate=rate, count=steps)], 1e-5) <= target


def test_a_plan_uses_its_budget_and_no_more() -> None:
    plan = solve(**LOCAL)
    assert 0.995 * 3.0 < plan.epsilon <= 3.0
    assert plan.epsilon == epsilon(plan.events(), 1e-5)  # finely, as there is one amount of noise
    assert plan.events() == [GaussianEvent(noise_multiplier=plan.multiplier, sampling_rate=0.05, count=50)]
    assert sum(event.count for number in range(1, 11) for event in plan.round_events(number)) == 50
    assert plan.sensitivity(1.0) == pytest.approx(1.005)
    assert "adding or removing one record" in plan.statement()
    assert "Poisson sampling" in plan.statement()


@pytest.mark.parametrize("kind", ["linear", "exponential", "step", "spend-later"])
def test_a_schedule_is_solved_as_a_whole(kind: Any) -> None:
    plan = solve(**LOCAL, schedule=NoiseSchedule(kind=kind, end=0.5))
    first, last = plan.step(0), plan.step(49)
    assert last.noise_multiplier == pytest.approx(0.5 * first.noise_multiplier)
    assert 0.99 * 3.0 < plan.epsilon <= 3.0
    assert plan.step(60).noise_multiplier == last.noise_multiplier  # a repeated last round
    assert first.event.noise_multiplier == first.noise_multiplier


def test_a_count_beside_the_gradient_takes_its_part_of_the_noise() -> None:
    plan = solve(**LOCAL, adaptive=QuantileClipping())
    step = plan.step(0)
    assert step.event.noise_multiplier == plan.multiplier == step.noise_multiplier
    assert step.gradient_multiplier > step.noise_multiplier
    assert step.count_std == 5.0 * plan.multiplier


def test_grouped_records_have_twice_the_sensitivity() -> None:
    assert solve(**LOCAL, group_factor=2).sensitivity(1.0) == pytest.approx(2.01)


SHARED = {**LOCAL, "placement": Placement.SHARED, "steps_per_round": 1, "multiplier": 1.5}


def share(honest: int, std: float) -> Share:
    return Share(std=std, honest=honest, grid=1e-5)


def test_shares_make_the_noise_of_the_smallest_sum() -> None:
    plan = solve(**SHARED, share=share(4, 1.5 * 1.001 / 2))
    assert plan.sensitivity(1.0) == pytest.approx(1.001)
    (planned,), (better,) = plan.round_events(3), plan.survivors_events(3, 9)
    assert planned.noise_multiplier == 1.5
    assert better.noise_multiplier == pytest.approx(1.5 * math.sqrt(9 / 4))
    assert plan.survivors_events(3, 4) == [planned]
    with pytest.raises(PrivacyError) as caught:
        plan.survivors_events(3, 3)
    assert caught.value.code == "share-too-few"
    assert "4 honest sites" in plan.statement()


def test_a_coordinator_that_claims_more_noise_than_the_shares_make() -> None:
    with pytest.raises(PrivacyError) as caught:
        solve(**SHARED, share=share(4, 0.7))
    assert caught.value.code == "share-too-small"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"delta": 1 / 6_000}, "delta-too-large"),
        ({"delta": 0.0}, "delta-too-large"),
        ({"target_epsilon": 0.0}, "epsilon-invalid"),
        ({"records": 0}, "records-none"),
        ({"sampling_rate": 0.0}, "sampling-invalid"),
        ({"sampling_rate": 1.5}, "sampling-invalid"),
        ({"clip_norm": 0.0}, "clipping-invalid"),
        ({"clip_norm": math.nan}, "clipping-invalid"),
        ({"steps_per_round": 0}, "plan-inconsistent"),
        ({"group_factor": 3}, "plan-inconsistent"),
        ({"multiplier": 0.1}, "budget-too-small"),
        ({"share": Share(std=1.0, honest=4, grid=1e-5)}, "plan-inconsistent"),
        ({"placement": Placement.SHARED}, "plan-inconsistent"),
    ],
)
def test_plans_that_are_refused(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(PrivacyError) as caught:
        solve(**{**LOCAL, **changes})
    assert caught.value.code == code
    assert caught.value.message


def test_no_noise_is_enough_for_this() -> None:
    with pytest.raises(PrivacyError) as caught:
        noise_multiplier_for(1e-6, 1e-9, 1.0, 100_000)
    assert caught.value.code == "budget-impossible"


def test_until_exhausted() -> None:
    steps = steps_until(1.0, 1e-5, 0.01, 1.2)
    event = GaussianEvent(noise_multiplier=1.2, sampling_rate=0.01, count=steps)
    assert epsilon([event], 1e-5, interval=1e-3) <= 1.0
    more = GaussianEvent(noise_multiplier=1.2, sampling_rate=0.01, count=steps + 1)
    assert epsilon([more], 1e-5, interval=1e-3) > 1.0
    assert steps_until(0.1, 1e-5, 1.0, 1.0) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "none"},
        {"kind": "linear", "end": 0.0},
        {"kind": "constant", "end": 0.5},
        {"kind": "step", "end": math.inf},
    ],
)
def test_schedules_that_are_none(fields: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        NoiseSchedule(**fields)
    with pytest.raises(PrivacyError):
        NoiseSchedule().relative(5, 5)


def test_clipping_rules() -> None:
    assert math.fsum(share**2 for share in ClippingRule.layers(7).shares) == pytest.approx(1.0)
    for fields in ({"kind": "layers"}, {"shares": (1.0,)}, {"kind": "layers", "shares": (0.9, 0.9)}, {"kind": "no"}):
        with pytest.raises(PrivacyError):
            ClippingRule(**fields)  # type: ignore[arg-type]
    with pytest.raises(PrivacyError):
        ClippingRule.layers(0)


def test_a_plan_written_down_is_plain() -> None:
    plain = solve(**LOCAL).plain()
    assert plain["unit"] == "record"
    assert float.fromhex(plain["multiplier"]) > 0
    assert isinstance(solve(**LOCAL), PrivacyPlan)
