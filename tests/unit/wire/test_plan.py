"""Plans: canonical form, hash, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wire import AggregationSpec, ConfigError, InitialModel, RefusedError, RoundsSpec, RunPlan, SecureSpec
from wire.plan import MAX_PLAN_BYTES


def make(**changes: Any) -> RunPlan:
    table: dict[str, Any] = {
        "federation": "demo",
        "run_id": "demo-1",
        "learning": {"model": {"width": 64}, "task": {}, "training": {"lr": 0.1, "names": ["a", "b"]}},
        "rounds": {"count": 3, "min_participants": 2, "min_updates": 1, "deadline_s": 10.0},
        "aggregation": {"mode": "plain"},
        "secure": None,
        "initial": {"digest": "ab" * 32, "size": 1000, "dimension": 100, "manifest_hash": "cd" * 32},
    }
    return RunPlan.model_validate({**table, **changes})


def test_canonical_form_reads_back_to_the_same_plan_and_hash() -> None:
    plan = make()
    again = RunPlan.parse(plan.canonical())
    assert again == plan
    assert again.hash == plan.hash
    assert again.canonical() == plan.canonical()
    assert len(plan.hash) == 32


def test_canonical_json_is_sorted_and_compact() -> None:
    text = make().canonical().decode()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def test_the_hash_does_not_depend_on_how_the_json_was_written() -> None:
    plan = make()
    pretty = json.dumps(json.loads(plan.canonical()), indent=3).encode()
    assert RunPlan.parse(pretty).hash == plan.hash


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "demo-2"},
        {"federation": "other"},
        {"learning": {"model": {"width": 65}, "task": {}, "training": {}}},
        {"rounds": {"seed": 1}},
        {"aggregation": {"mode": "plain", "optimizer": "fedadam"}},
        {"aggregation": {}, "secure": {}},
        {"metrics": ("loss",)},
        {"initial": {"digest": "ab" * 32, "size": 1001, "dimension": 100, "manifest_hash": "cd" * 32}},
    ],
)
def test_every_part_changes_the_hash(change: dict[str, Any]) -> None:
    assert make(**change).hash != make().hash


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values, max_size=4))
def test_any_json_table_survives(table: dict[str, Any]) -> None:
    try:
        plan = make(learning=table)
        data = plan.canonical()
    except UnicodeEncodeError:
        return  # a lone surrogate has no UTF-8; TOML and JSON files can't hold one
    assert RunPlan.parse(data).learning == table


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[1]", "dictionary"),
        (b'{"format": 1, "format": 1}', "twice"),
        (b'{"format": NaN}', "NaN"),
        (b"[" * 200_000, "JSON"),
        (b'{"format": 2}', "format"),
        (b" " * (MAX_PLAN_BYTES + 1), "bytes"),
    ],
)
def test_garbage_is_refused_by_name(data: bytes, part: str) -> None:
    with pytest.raises(RefusedError, match=part) as caught:
        RunPlan.parse(data)
    assert caught.value.code == "plan-mismatch"
    assert caught.value.hint


def test_an_unknown_key_names_itself() -> None:
    table = json.loads(make().canonical())
    table["rounds"]["cuont"] = 1
    with pytest.raises(RefusedError, match=r"rounds\.cuont"):
        RunPlan.parse(json.dumps(table).encode())


@given(st.binary(max_size=200))
def test_fuzz(data: bytes) -> None:
    with pytest.raises(RefusedError):
        RunPlan.parse(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), (1, 2), {1: 2}, b"x", {"a": [object()]}])
def test_learning_holds_json_only(value: object) -> None:
    with pytest.raises(ValidationError, match=r"learning\.model"):
        make(learning={"model": value})


@pytest.mark.parametrize(
    "table",
    [
        {"count": 0},
        {"deadline_s": 0},
        {"deadline_s": float("inf")},
        {"seed": -1},
        {"seed": 2**63},
        {"min_participants": 1, "min_updates": 2},
        {"participants_per_round": 1, "min_updates": 2, "min_participants": 4},
    ],
)
def test_rounds_out_of_range(table: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RoundsSpec.model_validate(table)


@pytest.mark.parametrize(
    "table", [{"optimizer": "sgd"}, {"momentum": 1.0}, {"learning_rate": 0}, {"tau": 0}, {"beta1": -0.1}]
)
def test_aggregation_out_of_range(table: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AggregationSpec.model_validate(table)


def test_the_initial_model_must_fit_its_file() -> None:
    with pytest.raises(ValidationError, match="can't hold"):
        InitialModel(digest="a" * 64, size=100, dimension=100, manifest_hash="b" * 64)
    with pytest.raises(ValidationError):
        InitialModel(digest="A" * 64, size=1000, dimension=100, manifest_hash="b" * 64)


def test_plans_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make().run_id = "other"  # type: ignore[misc]


# --- secure sums ------------------------------------------------------------------------------------------------------


def secure(**changes: Any) -> RunPlan:
    return make(aggregation={}, secure=changes)


def test_sums_are_secure_unless_a_plan_says_otherwise() -> None:
    assert AggregationSpec().mode == "secure"
    plan = secure()
    assert plan.secure == SecureSpec()
    again = RunPlan.parse(plan.canonical())
    assert (again, again.hash) == (plan, plan.hash)


@pytest.mark.parametrize(
    "changes",
    [{"aggregation": {}, "secure": None}, {"aggregation": {"mode": "plain"}, "secure": {}}],
)
def test_mode_and_section_belong_together(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="doesn't fit the section on secure sums"):
        make(**changes)


def test_a_plan_says_which_aggregation_it_wants() -> None:
    table = json.loads(make().canonical())
    del table["secure"]
    with pytest.raises(RefusedError, match="secure"):
        RunPlan.parse(json.dumps(table).encode())


@pytest.mark.parametrize(
    "changes", [{"wire_bits": 20}, {"clip_norm": 9.0}, {"min_cohort": 4}, {"audited_rounds": 3}, {"group_size": 3}]
)
def test_every_setting_of_secure_sums_changes_the_hash(changes: dict[str, Any]) -> None:
    assert secure(**changes).hash != secure().hash


def test_a_plan_says_how_many_the_coordinator_sees_summed() -> None:
    assert "of at least 4 participants together the sum" in secure(min_cohort=4).visibility
    groups = secure(min_cohort=9, group_size=5).visibility
    assert "of groups of at least 5 participants, fixed atoms of whom are never split, together the sum" in groups
    assert "9" not in groups


def test_shared_noise_and_sums_of_groups_exclude_each_other_in_a_plan() -> None:
    noise = {"multiplier": 1.0, "share_std": 1.0, "honest": 2, "grid": 0.1, "quantum": 0.1, "value_bits": 20}
    one = {"aggregation": {}, "privacy": {"placement": "participant"}, "shared_noise": noise}
    assert make(**one, secure={}).shared_noise is not None
    with pytest.raises(ValidationError, match="shared noise is sized for one sum"):
        make(**one, secure={"group_size": 3})


@pytest.mark.parametrize("metrics", [("b", "a"), ("a", "a"), ("",), ("x" * 65,), tuple(f"m{n:02}" for n in range(65))])
def test_metrics_are_distinct_sorted_and_few(metrics: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="metric"):
        make(metrics=metrics)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"wire_bits": 12}, "wire_bits"),
        ({"value_bits": 31}, "value_bits"),
        ({"clip_norm": 0}, "clip_norm"),
        ({"clip_norm": float("inf")}, "clip_norm"),
        ({"clip_value": -1.0}, "clip_value"),
        ({"weight_cap": 0}, "weight_cap"),
        ({"weight_cap": (1 << 20) + 1}, "weight_cap"),
        ({"min_cohort": 2}, "min_cohort"),
        ({"group_size": 2}, "group_size"),
        ({"group_size": 1_025}, "group_size"),
        ({"corrupt_percent": 34}, "corrupt_percent"),
        ({"min_roster_change": 0}, "min_roster_change"),
        ({"audited_rounds": 0}, "audited_rounds"),
        ({"bits": 16}, "bits"),
    ],
)
def test_a_setting_out_of_range_names_itself(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        SecureSpec.model_validate(changes)


@pytest.mark.parametrize("wire_bits", [16, 20, 24, 32])
@pytest.mark.parametrize("participants", [3, 4, 5, 100, 1_024])
def test_left_to_itself_an_encoding_takes_all_the_bits_that_a_sum_of_so_many_leaves(
    wire_bits: int, participants: int
) -> None:
    encoding = SecureSpec.model_validate({"wire_bits": wire_bits}).encoding(participants)
    assert (encoding.wire_bits, encoding.ring_bits) == (wire_bits, 16 if wire_bits == 16 else 32)
    assert encoding.value_bits == min(30, wire_bits - (participants - 1).bit_length())
    assert (encoding.clip_norm, encoding.clip_value, encoding.weight_cap) == (
        SecureSpec().clip_norm,
        SecureSpec().clip_value,
        SecureSpec().weight_cap,
    )


def test_value_bits_that_are_set_are_taken_and_too_many_name_the_section_and_the_way_out() -> None:
    spec = SecureSpec(wire_bits=16, value_bits=14)
    assert spec.encoding(4).value_bits == 14
    with pytest.raises(ConfigError, match=r"\[secure_aggregation\] the sum of 5 values of 14 bits") as failure:
        spec.encoding(5)
    for way in ("value_bits to at most 13", "at most 4 participants", "wire_bits"):
        assert way in failure.value.hint
