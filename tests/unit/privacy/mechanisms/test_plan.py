"""Plans: solved for their budget, consistent in themselves, refused where they couldn't keep the promise."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import GaussianEvent, GdpFilter, Placement, RdpFilter, Unit, epsilon
from privacy.mechanisms.adaptive import AdaptiveNoise
from privacy.mechanisms.clipping import ClippingRule
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.lattice import Lattice
from privacy.mechanisms.plan import PrivacyPlan, Share, solve
from privacy.mechanisms.quantile import QuantileClipping
from privacy.mechanisms.schedules import NoiseSchedule
from privacy.transcript import decode, digest, encode

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
SHARED: dict[str, Any] = {**LOCAL, "placement": Placement.SHARED, "steps_per_round": 1, "multiplier": 1.5}
WHOLE: dict[str, Any] = {
    **LOCAL,
    "unit": Unit.PARTICIPANT,
    "placement": Placement.PARTICIPANT,
    "records": 10,
    "sampling_rate": 1.0,
    "steps_per_round": 1,
    "multiplier": 10.0,
    "target_epsilon": 5.0,
}


def share(honest: int, std: float) -> Share:
    return Share(std=std, honest=honest, grid=1e-5)


def code_of(fields: dict[str, Any]) -> str:
    with pytest.raises(PrivacyError) as caught:
        solve(**fields)
    assert caught.value.message
    assert caught.value.exit_code == 3
    return caught.value.code


# ---- solving ---------------------------------------------------------------------------------------------------------


def test_a_plan_uses_its_budget_and_no_more() -> None:
    plan = solve(**LOCAL)
    assert 0.999 * 3.0 < plan.epsilon <= 3.0
    assert plan.epsilon == epsilon(plan.events(), 1e-5)
    assert plan.events() == [GaussianEvent(noise_multiplier=plan.multiplier, sampling_rate=0.05, count=50)]
    assert sum(event.count for number in range(1, 11) for event in plan.round_events(number)) == 50
    assert plan.sensitivity(1.0) == pytest.approx(1.005)
    assert [plan.cost(rounds) for rounds in (10, 11)] == [plan.epsilon] * 2
    assert 0 < plan.cost(1) < plan.cost(9) < plan.epsilon


@pytest.mark.parametrize("kind", ["linear", "exponential", "step", "spend-later"])
def test_a_schedule_is_solved_as_a_whole(kind: Any) -> None:
    plan = solve(**LOCAL, schedule=NoiseSchedule(kind=kind, end=0.5))
    first, last = plan.step(0), plan.step(49)
    assert last.noise_multiplier == pytest.approx(0.5 * first.noise_multiplier)
    assert 0.995 * 3.0 < plan.epsilon <= 3.0
    assert plan.step(60).noise_multiplier == last.noise_multiplier  # a repeated last round
    assert first.event.noise_multiplier == first.noise_multiplier
    assert sorted(event for step in range(50) for event in [plan.step(step).event]) == sorted(
        dataclasses.replace(event, count=1) for event in plan.events() for _ in range(event.count)
    )


def test_a_count_beside_the_gradient_takes_its_part_of_the_noise() -> None:
    plan = solve(**LOCAL, adaptive=QuantileClipping())
    step = plan.step(0)
    assert step.event.noise_multiplier == plan.multiplier == step.noise_multiplier
    assert step.gradient_multiplier > step.noise_multiplier
    assert step.count_std == 5.0 * plan.multiplier
    # Andrew et al. 2021, Theorem 1: both releases together are one Gaussian mechanism of the accounted multiplier.
    joint = step.gradient_multiplier**-2 + (2 * step.count_std) ** -2
    assert joint == pytest.approx(step.noise_multiplier**-2)


def test_grouped_records_have_twice_the_sensitivity() -> None:
    plan = solve(**LOCAL, group_factor=2)
    assert plan.sensitivity(1.0) == pytest.approx(2.01)
    assert plan.epsilon == solve(**LOCAL).epsilon  # the same multiplier of twice the sensitivity


@pytest.mark.parametrize("clip_norm", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("factor", [1, 2])
def test_the_sensitivity_is_the_lattices(clip_norm: float, factor: int) -> None:
    plan = solve(**{**LOCAL, "clip_norm": clip_norm, "group_factor": factor})
    lattice = Lattice(plan.grid(clip_norm), plan.dimension)
    assert plan.sensitivity(clip_norm) == lattice.sensitivity(factor * clip_norm)
    # The noise follows the norm: whatever it adapts to, relative to it the lattice stays as fine.
    assert plan.sensitivity(3 * clip_norm) == pytest.approx(3 * plan.sensitivity(clip_norm))


def test_two_neighbouring_sums_on_the_lattice_are_no_further_apart_than_the_sensitivity() -> None:
    import numpy as np

    plan = solve(**{**LOCAL, "dimension": 500})
    draw = np.random.default_rng(1)
    grid = plan.grid(1.0)
    for _ in range(50):
        total = draw.normal(0, 3, 500)
        unit = draw.normal(size=500)
        unit /= np.linalg.norm(unit)
        moved = np.rint((total + unit) / grid) * grid - np.rint(total / grid) * grid
        assert np.linalg.norm(moved) <= plan.sensitivity(1.0)


def test_noise_so_large_that_nothing_is_told_costs_nothing() -> None:
    plan = solve(**{**LOCAL, "multiplier": 1e9})
    assert plan.epsilon == 0.0
    assert PrivacyPlan.parse(plan.plain()) == plan


def test_until_exhausted() -> None:
    fields = {**LOCAL, "rounds": None, "multiplier": 1.2, "target_epsilon": 2.0}
    plan = solve(**fields)
    assert plan.epsilon <= 2.0
    assert epsilon([GaussianEvent(noise_multiplier=1.2, sampling_rate=0.05, count=plan.steps + 5)], 1e-5) > 2.0
    assert plan.steps == 5 * plan.rounds
    assert code_of({**fields, "multiplier": 0.0}) == "plan-inconsistent"
    assert code_of({**fields, "schedule": NoiseSchedule(kind="step", end=0.5)}) == "plan-inconsistent"
    assert code_of({**fields, "target_epsilon": 0.01}) == "budget-too-small"


# ---- noise that is shared --------------------------------------------------------------------------------------------


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


@settings(max_examples=50, deadline=None)
@given(survivors=st.integers(1, 40), corrupt=st.integers(0, 40), std=st.floats(0.751, 3.0))
def test_the_event_of_the_set_that_survived(survivors: int, corrupt: int, std: float) -> None:
    plan = solve(**{**SHARED, "target_epsilon": 100.0}, share=share(4, std))
    step = plan.step(0)
    if survivors - corrupt < 4:
        with pytest.raises(PrivacyError):
            step.event_for(survivors, corrupt)
        return
    event = step.event_for(survivors, corrupt)
    real = std * math.sqrt(survivors - corrupt) / plan.sensitivity(1.0)
    assert event.noise_multiplier == pytest.approx(real)
    assert event.noise_multiplier >= step.event.noise_multiplier
    assert event.sampling_rate == 0.05


def test_more_corrupt_sites_than_there_are_is_no_set() -> None:
    step = solve(**SHARED, share=share(4, 0.8)).step(0)
    with pytest.raises(PrivacyError):
        step.event_for(9, -1)


def test_local_noise_is_the_same_whoever_survives() -> None:
    plan = solve(**LOCAL)
    assert plan.step(0).event_for(1, 0) == plan.step(0).event
    assert plan.survivors_events(1, 0) == plan.round_events(1)


def test_whole_sites_are_hidden_by_shares_too() -> None:
    plan = solve(**WHOLE, share=share(5, 10.0 * 1.001 / math.sqrt(5)))
    (event,) = plan.round_events(1)
    assert (event.noise_multiplier, event.sampling_rate) == (10.0, 1.0)
    assert plan.epsilon == pytest.approx(
        epsilon([GaussianEvent(noise_multiplier=10.0 / math.sqrt(10))], 1e-5), rel=1e-9
    )


# ---- noise that follows what is released -----------------------------------------------------------------------------


def test_noise_that_follows_is_bound_by_a_filter_of_the_whole_budget() -> None:
    plan = solve(**LOCAL, noise=AdaptiveNoise(lowest=0.5))
    assert isinstance(plan.guard, RdpFilter)
    assert (plan.guard.epsilon, plan.guard.delta, plan.epsilon) == (3.0, 1e-5, 3.0)
    assert plan.guard.spent(plan.events()) <= plan.guard.budget  # as planned, all steps fit
    control = plan.control()
    step = plan.controlled_step(0, control)
    assert step is not None and step == plan.step(0)
    worst = control.most(5)
    assert worst == [GaussianEvent(noise_multiplier=0.5 * plan.multiplier, sampling_rate=0.05, count=5)]
    many = [GaussianEvent(noise_multiplier=plan.multiplier, sampling_rate=0.05, count=10_000)]
    assert plan.control(spent=many).most(1) == []


def test_the_controlled_steps_of_a_run_end_within_the_budget() -> None:
    plan = solve(**LOCAL, noise=AdaptiveNoise(smoothing=0.0, change=1.2, lowest=0.5), adaptive=QuantileClipping())
    control = plan.control()
    number = 0
    while (step := plan.controlled_step(number, control)) is not None:
        assert step.event.noise_multiplier == step.noise_multiplier < step.gradient_multiplier
        assert step.noise_multiplier >= 0.5 * plan.multiplier * (1 - 1e-12)
        std = step.gradient_multiplier * plan.sensitivity(1.0)
        control.released(step.noise_multiplier, energy=10_000 * std * std, std=std, dimension=10_000)
        number += 1
    assert number > 10
    assert plan.guard is not None and plan.guard.spent(control.spent) > 0.98 * plan.guard.budget
    assert epsilon(control.spent, 1e-5, "rdp") <= 3.0
    assert plan.controlled_step(number, plan.control(spent=control.spent)) is None


def test_without_sampling_a_gdp_filter_costs_nothing() -> None:
    plan = solve(**{**LOCAL, "sampling_rate": 1.0}, noise=AdaptiveNoise())
    assert isinstance(plan.guard, GdpFilter)
    assert plan.multiplier == solve(**{**LOCAL, "sampling_rate": 1.0}).multiplier
    assert plan.guard.spent(plan.events()) <= plan.guard.budget


def test_what_steps_may_cost_is_reserved_and_never_more_than_is_left() -> None:
    """All steps with the least noise; towards the end, all that the filter has left, as one release."""
    plan = solve(**{**LOCAL, "sampling_rate": 1.0}, noise=AdaptiveNoise(lowest=0.5))
    assert isinstance(plan.guard, GdpFilter)
    assert plan.control().most(3) == [GaussianEvent(noise_multiplier=0.5 * plan.multiplier, count=3)]
    spent = [GaussianEvent(noise_multiplier=plan.multiplier, count=plan.steps - 2)]
    [rest] = plan.control(spent=spent).most(5)
    assert rest.count == 1
    assert plan.guard.spent([*spent, rest]) == pytest.approx(plan.guard.budget, rel=1e-12)
    assert epsilon([*spent, rest], plan.delta) <= 3.0 * (1 + 1e-9)
    assert plan.control(spent=[*spent, rest]).most(5) == []


def test_fixed_noise_has_nothing_to_control() -> None:
    with pytest.raises(PrivacyError) as caught:
        solve(**LOCAL).control()
    assert caught.value.code == "plan-inconsistent"


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"delta": 1 / 6_000}, "delta-too-large"),
        ({"delta": 0.0}, "delta-too-large"),
        ({"delta": math.nan}, "delta-too-large"),
        ({"target_epsilon": 0.0}, "epsilon-invalid"),
        ({"target_epsilon": math.inf}, "epsilon-invalid"),
        ({"records": 0}, "records-none"),
        ({"sampling_rate": 0.0}, "sampling-invalid"),
        ({"sampling_rate": 1.5}, "sampling-invalid"),
        ({"sampler": "shuffled"}, "sampling-not-poisson"),
        ({"clip_norm": 0.0}, "clipping-invalid"),
        ({"clip_norm": math.nan}, "clipping-invalid"),
        ({"steps_per_round": 0}, "plan-inconsistent"),
        ({"rounds": 0}, "plan-inconsistent"),
        ({"rounds": -2, "steps_per_round": -5}, "plan-inconsistent"),
        ({"group_factor": 3}, "plan-inconsistent"),
        ({"dimension": 0}, "plan-inconsistent"),
        ({"multiplier": 0.1}, "budget-too-small"),
        ({"multiplier": -1.0}, "noise-invalid"),
        ({"multiplier": math.nan}, "noise-invalid"),
        ({"share": Share(std=1.0, honest=4, grid=1e-5)}, "plan-inconsistent"),
        ({"placement": Placement.SHARED}, "plan-inconsistent"),
        ({"unit": Unit.PARTICIPANT}, "plan-inconsistent"),
        ({"adaptive": QuantileClipping(), "rule": ClippingRule(kind="automatic")}, "plan-inconsistent"),
        ({"noise": AdaptiveNoise(), "schedule": NoiseSchedule(kind="step", end=0.5)}, "plan-inconsistent"),
    ],
)
def test_plans_that_are_refused(changes: dict[str, Any], code: str) -> None:
    assert code_of({**LOCAL, **changes}) == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"share": share(4, 0.7)}, "share-too-small"),  # a coordinator that claims more noise than the shares make
        ({"share": share(0, 1.0)}, "plan-inconsistent"),
        ({"share": Share(std=1.0, honest=4, grid=0.0)}, "plan-inconsistent"),
        ({"share": share(4, math.inf)}, "plan-inconsistent"),
        ({"share": share(4, 1.0), "steps_per_round": 2}, "plan-inconsistent"),
        ({"share": share(4, 1.0), "adaptive": QuantileClipping()}, "plan-inconsistent"),
        ({"share": share(4, 1.0), "schedule": NoiseSchedule(kind="linear", end=2.0)}, "plan-inconsistent"),
        ({"share": share(4, 1.0), "noise": AdaptiveNoise()}, "plan-inconsistent"),
        ({"share": share(4, 1.0), "unit": Unit.PARTICIPANT}, "plan-inconsistent"),
    ],
)
def test_shared_plans_that_are_refused(changes: dict[str, Any], code: str) -> None:
    assert code_of({**SHARED, "target_epsilon": 50.0, **changes}) == code


def test_amplification_by_who_takes_part_is_refused() -> None:
    """The coordinator sees it, and the roster tells the other sites."""
    wide = share(5, 100.0)
    assert code_of({**WHOLE, "share": wide, "sampling_rate": 0.5}) == "sampling-visible"
    assert code_of({**WHOLE, "share": wide, "unit": Unit.RECORD}) == "plan-inconsistent"
    assert code_of({**WHOLE, "share": wide, "group_factor": 2}) == "plan-inconsistent"


def test_another_sampler_is_fine_where_nothing_is_claimed() -> None:
    assert solve(**{**LOCAL, "sampling_rate": 1.0}, sampler="shuffled").sampling_rate == 1.0


def test_hints_say_what_to_change() -> None:
    for changes in ({"delta": 0.1}, {"multiplier": 0.1}, {"sampler": "shuffled"}, {"records": 0}):
        with pytest.raises(PrivacyError) as caught:
            solve(**{**LOCAL, **changes})
        assert caught.value.hint


# ---- a plan can't be put together ------------------------------------------------------------------------------------


def test_a_plan_is_solved_not_put_together() -> None:
    plan = solve(**LOCAL)
    fields = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    with pytest.raises(PrivacyError) as caught:
        PrivacyPlan(**fields)
    assert caught.value.code == "plan-inconsistent"
    with pytest.raises(PrivacyError):
        dataclasses.replace(plan, multiplier=0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.multiplier = 0.1  # type: ignore[misc]


def test_a_plan_travels_to_a_worker_and_back() -> None:
    plan = solve(**LOCAL, adaptive=QuantileClipping())
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert copy.deepcopy(plan) == plan


# ---- writing and reading ---------------------------------------------------------------------------------------------

PLANS = {
    "local": {**LOCAL},
    "schedule": {**LOCAL, "schedule": NoiseSchedule(kind="exponential", end=0.6)},
    "quantile": {**LOCAL, "adaptive": QuantileClipping(target=0.7)},
    "layers": {**LOCAL, "rule": ClippingRule.layers(3), "group_factor": 2},
    "shared": {**SHARED, "share": share(4, 0.8)},
    "whole": {**WHOLE, "share": share(5, 5.0)},
    "follows": {**LOCAL, "noise": AdaptiveNoise(target=0.02)},
    "follows-all": {**LOCAL, "sampling_rate": 1.0, "noise": AdaptiveNoise()},
}


@pytest.mark.parametrize("name", PLANS)
def test_what_is_written_is_read(name: str) -> None:
    plan = solve(**PLANS[name])
    assert PrivacyPlan.parse(plan.plain()) == plan
    assert PrivacyPlan.parse(json.loads(json.dumps(plan.plain()))) == plan
    carried = decode(encode(plan.plain()))
    assert isinstance(carried, dict)
    assert PrivacyPlan.parse(carried) == plan
    assert digest("plan", PrivacyPlan.parse(carried).plain()) == digest("plan", plan.plain())


def test_plans_that_differ_are_written_differently() -> None:
    written = {encode(solve(**fields).plain()) for fields in PLANS.values()}
    assert len(written) == len(PLANS)


def other(plain: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    changed = copy.deepcopy(plain)
    *outer, last = path.split(".")
    place = changed
    for name in outer:
        place = place[name]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return changed


@pytest.mark.parametrize(
    ("name", "path", "value", "code"),
    [
        ("local", "multiplier", (0.3).hex(), "plan-invalid"),  # less noise than it says
        ("local", "epsilon", (2.0).hex(), "plan-invalid"),
        ("local", "rounds", 1_000, "plan-invalid"),
        ("local", "sampling_rate", (0.5).hex(), "plan-invalid"),
        ("local", "rounds", True, "plan-invalid"),
        ("local", "rounds", 10.0, "plan-invalid"),
        ("local", "multiplier", 2.5, "plan-invalid"),
        ("local", "multiplier", "2.5", "plan-invalid"),
        ("local", "multiplier", "nan", "noise-invalid"),
        ("local", "delta", (0.5).hex(), "delta-too-large"),
        ("local", "unit", "file", "plan-invalid"),
        ("local", "unit", KeyError, "plan-invalid"),
        ("local", "more", 1, "plan-invalid"),
        ("local", "rule", None, "plan-invalid"),
        ("local", "rule.kind", "none", "clipping-invalid"),
        ("local", "rule.more", 1, "plan-invalid"),
        ("local", "schedule", {"kind": "constant"}, "plan-invalid"),
        ("local", "share", {"std": "0x1p0", "honest": 3, "grid": "0x1p-9"}, "plan-inconsistent"),
        ("shared", "share", None, "plan-inconsistent"),
        ("shared", "share.honest", 3, "share-too-small"),
        ("shared", "share.honest", "4", "plan-invalid"),
        ("shared", "clip_norm", (2.0).hex(), "share-too-small"),
        ("quantile", "adaptive.count_multiplier", (0.1).hex(), "quantile-invalid"),
        ("quantile", "adaptive", {"target": "0x1p-1"}, "plan-invalid"),
        ("follows", "guard", None, "filter-missing"),
        ("follows", "noise", None, "filter-missing"),
        ("follows", "guard.epsilon", (30.0).hex(), "plan-inconsistent"),
        ("follows", "guard.order", KeyError, "plan-inconsistent"),
        ("follows-all", "sampling_rate", (0.5).hex(), "plan-inconsistent"),
    ],
)
def test_a_plan_that_was_changed_is_refused(name: str, path: str, value: object, code: str) -> None:
    with pytest.raises(PrivacyError) as caught:
        PrivacyPlan.parse(other(solve(**PLANS[name]).plain(), path, value))
    assert caught.value.code == code


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_field_may_be_anything(data: st.DataObject) -> None:
    plain = solve(**PLANS["shared"]).plain()
    name = data.draw(st.sampled_from(sorted(plain)))
    junk = data.draw(
        st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=4), st.lists(st.integers(), max_size=2))
    )
    if plain[name] == junk:
        return
    with pytest.raises(PrivacyError):
        PrivacyPlan.parse({**plain, name: junk})


def test_something_else_isnt_a_plan() -> None:
    for junk in ({}, {"kind": "gaussian/1"}):
        with pytest.raises(PrivacyError) as caught:
            PrivacyPlan.parse(junk)
        assert caught.value.code == "plan-invalid"
