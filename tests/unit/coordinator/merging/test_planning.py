"""From [merging] to a recipe: what is refused at the start of a run, and what is promised there."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from coordinator.merging import RULES, MergeRefused
from coordinator.merging.planning import (
    MIN_GROUPS,
    fewest_updates,
    fitting_group_size,
    group_count,
    guarantee,
    recipe_of,
)
from coordinator.merging.recipes import PREAGGREGATORS
from coordinator.merging.tolerance import bad_count
from coordinator.planning import make_plan, same_run
from wire import ConfigError, FederationConfig, MergingSpec, MergingStep, RunPlan, validate
from wire.merging import RECIPES, MergingRule


def test_configuration_knows_every_rule_and_step_that_a_coordinator_can_use() -> None:
    named = set(typing.get_args(MergingRule)) - set(RECIPES)
    assert named == {name for name, rule in RULES.items() if not getattr(rule, "needs_reference", False)}
    assert set(typing.get_args(MergingStep.model_fields["name"].annotation)) == set(PREAGGREGATORS)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rule": "careful", "f": 1}, "does nothing"),
        ({"rule": "robust", "settings": {"m": 1}}, "is a whole recipe"),
        ({"rule": "robust", "before": [{"name": "nnm"}]}, "is a whole recipe"),
        ({"rule": "robust", "f": 0.5}, "less than 0.5"),
        ({"rule": "robust", "f": -1}, "f"),
        ({"rule": "robust", "f": True}, "f"),
        ({"rule": "krum"}, "multi-krum"),
        ({"rule": "median", "before": [{"name": "clip"}]}, "norm-clip"),
        ({"max_norm": 0.0}, "max_norm"),
    ],
)
def test_what_a_file_may_not_say(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(MergingSpec, table, "federation.toml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rule": "multi-krum", "settings": {"q": 1}}, r"\[merging\] multi-krum has no setting 'q'; it has m"),
        ({"rule": "median", "settings": {"q": 1}}, "it has none"),
        ({"rule": "median", "before": [{"name": "norm-clip"}]}, "exactly one of"),
        ({"rule": "multi-krum", "settings": {"m": "all"}}, r"\[merging\] "),
        ({"rule": "median", "before": [{"name": "bucketing", "settings": {"per_bucket": 0}}]}, "at least 1"),
    ],
)
def test_settings_are_checked_when_the_recipe_is_made(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_of(MergingSpec.model_validate(table))


def test_recipes_by_name() -> None:
    assert recipe_of(MergingSpec()).name == "norm-clip(times_median=3.0) >> mean(times_equal=3.0)"
    steps = ({"name": "norm-clip", "settings": {"adaptive": True}},)
    recipe = recipe_of(MergingSpec(rule="caf", f=3, before=steps))
    assert recipe == recipe_of(MergingSpec(rule="robust", f=3))
    assert recipe.rule.f == 3


@given(
    rule=st.sampled_from(["robust", "median", "multi-krum", "bulyan", "geometric-median", "caf", "dnc"]),
    f=st.one_of(st.integers(0, 6), st.floats(0.001, 0.24)),
    more=st.integers(0, 60),
    gone=st.integers(0, 6),
)
def test_with_the_fewest_updates_or_more_no_round_is_refused(rule: Any, f: int | float, more: int, gone: int) -> None:
    """Whatever was turned away before: it counts against f."""
    recipe = recipe_of(MergingSpec(rule=rule, f=f))
    try:
        count = fewest_updates(recipe) + more
    except ConfigError:
        assert f > 0
        return
    recipe.require(count, max(bad_count(f, count + gone) - gone, 0))
    if f:
        assert bad_count(f, count) >= 1


def test_fewest_is_the_fewest() -> None:
    for f, rule, expected in ((2, "robust", 5), (1, "bulyan", 7), (0.2, "robust", 5), (0, "median", 1)):
        recipe = recipe_of(MergingSpec(rule=rule, f=f))  # type: ignore[arg-type]
        assert fewest_updates(recipe) == expected
        if expected > 1 and isinstance(f, int):
            with pytest.raises(MergeRefused):
                recipe.require(expected - 1, bad_count(f, expected - 1))
    with pytest.raises(ConfigError, match=r"bulyan can't stand f = 0\.3 hostile participants, however many"):
        fewest_updates(recipe_of(MergingSpec(rule="bulyan", f=0.3)))


def plan(folder: Path, merging: dict[str, Any], mode: str = "plain", **rounds: Any) -> RunPlan:
    path = folder / "initial.safetensors"
    save_file({"w": np.zeros(10, np.float32)}, path)
    table = {
        "aggregation": {"mode": mode},
        "merging": merging,
        "rounds": {"min_participants": 9, "min_updates": 7, **rounds},
    }
    config = FederationConfig.model_validate(table)
    made = make_plan(config, "x-1", path, ())
    assert same_run(config, made) == []
    assert RunPlan.parse(made.canonical()) == made
    return made


def test_another_rule_is_another_run(tmp_path: Path) -> None:
    made = plan(tmp_path, {"rule": "median", "f": 2})
    config = FederationConfig.model_validate(
        {"aggregation": {"mode": "plain"}, "merging": {"rule": "median", "f": 1}, "rounds": made.rounds.model_dump()}
    )
    assert same_run(config, made) == ["merging"]


def test_a_robust_rule_over_secure_sums_gets_groups(tmp_path: Path) -> None:
    made = plan(tmp_path, {"rule": "robust", "f": 3}, "secure", min_participants=45, min_updates=30)
    assert made.secure is not None
    assert made.secure.group_size == 3
    said = guarantee(made)
    assert "Of the means of 15 groups it stands 3 hostile ones" in said
    assert "so it stands 3 of them, wherever they are" in said
    assert "hides among the 3 or more of its atom" in said
    made = plan(tmp_path, {"rule": "robust"}, "secure", min_participants=100, min_updates=80)
    assert made.secure is not None
    assert made.secure.group_size == 10
    assert "of 2 atoms, drawn anew each round" in guarantee(made)
    assert "Of the means of 10 groups it stands 2 hostile" in guarantee(made)


@given(st.integers(15, 400), st.integers(0, 100), st.one_of(st.integers(1, 20), st.floats(0.01, 0.45)))
def test_groups_are_never_so_large_that_they_are_too_few(participants: int, away: int, f: int | float) -> None:
    """As long as groups of three are enough, in the smallest round too."""
    updates = max(participants - away, 1)
    size = fitting_group_size(participants, updates, f)
    assert 3 <= size <= 10
    assert group_count(updates, size) >= min(MIN_GROUPS, group_count(updates, 3))
    if isinstance(f, int) and size > 3:
        assert group_count(participants, size) >= 2 * f + 1


@pytest.mark.parametrize(("participants", "updates", "size"), [(16, 15, 3), (19, 19, 3), (30, 30, 6), (30, 24, 4)])
def test_a_federation_that_groups_of_three_would_do_for_isnt_refused(
    tmp_path: Path, participants: int, updates: int, size: int
) -> None:
    made = plan(tmp_path, {"rule": "robust", "f": 1}, "secure", min_participants=participants, min_updates=updates)
    assert made.secure is not None and made.secure.group_size == size


def test_a_run_says_what_it_stands(tmp_path: Path) -> None:
    assert "no participant that is hostile" in guarantee(plan(tmp_path, {}))
    assert "the mean of what comes" in guarantee(plan(tmp_path, {"rule": "mean"}))
    assert "each site's own machine limits norm" in guarantee(plan(tmp_path, {}, "secure"))
    robust = guarantee(plan(tmp_path, {"rule": "robust", "f": 2}))
    assert "Of 9 updates it stands 2 hostile ones" in robust
    assert "times the honest updates' root-mean-square distance" in robust
    assert "root-mean-square" not in guarantee(plan(tmp_path, {"rule": "robust", "f": 3}))
    assert "Of 8 updates it stands 1 " in guarantee(plan(tmp_path, {"rule": "median"}, participants_per_round=8))
    assert "it stands 1 hostile one," in guarantee(plan(tmp_path, {"rule": "median", "f": 1}))


@pytest.mark.parametrize(
    ("merging", "mode", "message"),
    [
        (
            {"rule": "robust", "f": 4},
            "plain",
            r"needs at least 9 updates to stand 4 hostile participants.*min_updates = 7",
        ),
        ({"rule": "bulyan", "f": 2}, "plain", "needs at least 11 updates"),
        ({"rule": "median", "f": 0.1}, "plain", "needs at least 10 updates"),
        ({"rule": "robust", "f": 2}, "secure", r"needs 5 groups, and \[rounds\] min_participants = 9 makes 3"),
    ],
)
def test_a_federation_too_small_for_its_promise_is_refused(
    tmp_path: Path, merging: dict[str, Any], mode: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, merging, mode)
