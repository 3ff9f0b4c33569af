"""What a configuration of asynchronous rounds becomes, and what is refused before there is a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from coordinator.aggregation import server_optimizer
from coordinator.merging.planning import guarantee, plan_recipe
from coordinator.planning import check_merging, make_plan, planned_rounds, same_run
from wire import AggregationSpec, ConfigError, FederationConfig, RefusedError, RunPlan, validate


def config(
    *,
    merging: dict[str, Any] | None = None,
    mode: str = "plain",
    secure: dict[str, Any] | None = None,
    privacy: dict[str, Any] | None = None,
    **rounds: Any,
) -> FederationConfig:
    table = {
        "rounds": {"mode": "asynchronous", **rounds},
        "aggregation": {"mode": mode},
        "merging": merging or {},
        "secure_aggregation": secure or {},
        "privacy": privacy or {},
    }
    return validate(FederationConfig, table, "federation.toml")


@pytest.fixture
def initial(tmp_path: Path) -> Path:
    path = tmp_path / "initial.safetensors"
    save_file({"w": np.zeros(8, np.float32)}, path)
    return path


@pytest.mark.parametrize(
    ("participants", "merging", "expected"),
    [
        (2, {}, 2),  # min_updates
        (4, {}, 2),
        (7, {}, 4),
        (10, {}, 5),
        (19, {}, 10),
        (20, {}, 10),
        (400, {}, 10),
        (10, {"rule": "robust"}, 5),
        (10, {"rule": "robust", "f": 3}, 7),
        (40, {"rule": "robust"}, 17),  # 8 of 40 may be hostile, and all be in one buffer
    ],
)
def test_the_size_of_the_buffer(participants: int, merging: dict[str, Any], expected: int) -> None:
    assert planned_rounds(config(min_participants=participants, merging=merging)).buffer_size == expected


@pytest.mark.parametrize(
    ("participants", "merging", "expected"),
    [
        (50, {}, "ca2fl"),
        (51, {}, "none"),
        (10, {"rule": "mean"}, "ca2fl"),
        (10, {"rule": "mean", "before": [{"name": "norm-clip", "settings": {"norm": 1.0}}]}, "ca2fl"),
        (10, {"rule": "mean", "before": [{"name": "nnm"}]}, "none"),
        (10, {"rule": "robust"}, "none"),
    ],
)
def test_the_correction(participants: int, merging: dict[str, Any], expected: str) -> None:
    assert planned_rounds(config(min_participants=participants, merging=merging)).correction == expected


def test_a_plan_says_it_all_and_the_configuration_still_describes_it(initial: Path) -> None:
    settings = config(min_participants=10)
    plan = make_plan(settings, "run-1", initial, ())
    assert (plan.rounds.buffer_size, plan.rounds.correction, plan.rounds.max_staleness) == (5, "ca2fl", 20)
    assert same_run(settings, plan) == []
    assert RunPlan.parse(plan.canonical()) == plan
    assert same_run(config(min_participants=10, buffer_size=6), plan) == ["rounds"]


def test_a_fraction_of_hostile_participants_is_of_all_of_them(initial: Path) -> None:
    plan = make_plan(config(min_participants=10, min_updates=5, merging={"rule": "robust"}), "run-1", initial, ())
    assert plan_recipe(plan).rule.f == 2
    assert "Of 5 updates it stands 2 hostile ones" in guarantee(plan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "secure", "correction": "ca2fl"}, r"needs the single updates, which the coordinator doesn't see"),
        ({"mode": "secure", "buffer_size": 2, "min_participants": 5}, r"a secure sum needs at least 3 updates"),
        ({"mode": "secure", "privacy": {"placement": "shared", "sampling_rate": 0.05}}, r"older ones count for less"),
        ({"secure": {"min_same_base": 3}}, r"min_same_base = 3 does nothing without"),
        ({"participants_per_round": 3}, "everyone who is there trains"),
        ({"buffer_size": 1}, "less than min_updates"),
        ({"buffer_size": 5}, "more than min_participants"),
        ({"max_staleness": -1}, "max_staleness"),
        ({"correction": "mifa"}, "ca2fl"),
    ],
)
def test_what_a_file_may_not_say(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


@pytest.mark.parametrize("changes", [{"buffer_size": 2}, {"max_staleness": 3}, {"correction": "none"}])
def test_no_setting_of_asynchronous_rounds_is_silently_without_effect(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does nothing in synchronous rounds"):
        validate(FederationConfig, {"rounds": changes}, "federation.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"min_participants": 10, "min_updates": 3, "buffer_size": 4, "merging": {"rule": "robust"}},
            "needs at least 5 updates .* buffer_size = 4",
        ),
        (
            {"min_participants": 10, "min_updates": 3, "merging": {"rule": "robust"}},
            r"needs at least 5 updates .* min_updates = 3",
        ),
        ({"min_participants": 4, "merging": {"rule": "robust", "f": 2}}, "a buffer of 5 updates"),
        (
            {"min_participants": 10, "min_updates": 5, "correction": "ca2fl", "merging": {"rule": "robust"}},
            "corrects a mean",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_before_the_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_merging(config(**changes))


def test_a_plan_with_secure_sums_or_open_questions_is_refused(initial: Path) -> None:
    plan = make_plan(config(), "run-1", initial, ())
    for old, new in ((b'"buffer_size":2', b'"buffer_size":0'), (b'"correction":"ca2fl"', b'"correction":null')):
        assert old in plan.canonical()
        with pytest.raises(RefusedError, match="says buffer_size and correction"):
            RunPlan.parse(plan.canonical().replace(old, new))


@pytest.mark.parametrize(
    ("participants", "secure", "merging", "expected"),
    [
        (4, {}, {}, 3),  # of fewer nothing is summed
        (10, {}, {}, 5),
        (10, {"min_cohort": 6}, {}, 6),
        (12, {"min_same_base": 7}, {}, 7),
        (30, {"group_size": 6}, {}, 12),
    ],
)
def test_the_size_of_a_buffer_that_is_summed(
    participants: int, secure: dict[str, Any], merging: dict[str, Any], expected: int
) -> None:
    settings = config(mode="secure", min_participants=participants, secure=secure, merging=merging)
    rounds = planned_rounds(settings)
    assert (rounds.buffer_size, rounds.correction) == (expected, "none")


def test_a_plan_with_secure_sums_says_what_they_promise_at_different_paces(initial: Path) -> None:
    plan = make_plan(config(mode="secure", min_participants=5), "run-1", initial, ())
    assert RunPlan.parse(plan.canonical()) == plan
    assert "not for one that makes versions up" in plan.visibility
    strict = make_plan(config(mode="secure", min_participants=5, secure={"min_same_base": 3}), "run-1", initial, ())
    assert "At least 3 updates of a sum come from the same version" in strict.visibility
    spoilt = plan.canonical().replace(b'"correction":"none"', b'"correction":"ca2fl"')
    with pytest.raises(RefusedError, match="no earlier update is known"):
        RunPlan.parse(spoilt)


def test_groups_of_a_buffer_are_enough_for_the_rule_or_the_run_is_refused() -> None:
    merging = {"rule": "robust", "f": 1}
    fine = {"mode": "secure", "min_participants": 24, "secure": {"group_size": 3}, "merging": merging}
    check_merging(config(min_updates=15, buffer_size=15, **fine))
    with pytest.raises(ConfigError, match=r"needs .* groups"):
        check_merging(config(min_updates=6, buffer_size=6, **fine))


def test_the_servers_step_is_scaled_and_the_whole_one_is_untouched() -> None:
    for optimizer in ("fedavg", "fedadam"):
        spec = AggregationSpec.model_validate({"mode": "plain", "optimizer": optimizer, "learning_rate": 0.3})
        assert server_optimizer(spec, 1.0) == server_optimizer(spec)
        assert getattr(server_optimizer(spec, 0.5), "learning_rate") == 0.15  # noqa: B009
