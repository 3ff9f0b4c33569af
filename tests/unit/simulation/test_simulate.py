"""Whole federations in one process, with plain averaging; ``test_secure`` has those with secure sums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulation.federation import Event
from simulation.run import MODEL, RECORD, REPORT, Result, simulate
from wire import ConfigError, DataError, FederationConfig

MODEL_TABLE = {
    "kind": "multimodal",
    "image_size": 8,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "embedding": 16,
    "classes": 10,
}


def config(*, seconds: list[float] | None = None, data: list[str] | None = None, **tables: Any) -> FederationConfig:
    pace = seconds or [1.0, 1.0, 1.0]
    sources = data or [f"digits:{index + 1}/{len(pace)}" for index in range(len(pace))]
    institutions = [
        {"name": f"site-{index}", "data": source, "seconds": time}
        for index, (source, time) in enumerate(zip(sources, pace, strict=True))
    ]
    base: dict[str, Any] = {
        "federation": {"name": "digits"},
        "model": MODEL_TABLE,
        "task": {"kind": "classification"},
        "training": {"local_steps": 3, "batch_size": 16},
        "rounds": {"count": 2, "min_participants": len(pace), "min_updates": 1},
        "aggregation": {"mode": "plain"},
        "simulation": {"institutions": institutions, "workers": 1, "compare_local": False},
    }
    for name, table in tables.items():
        base[name] = {**base.get(name, {}), **table}
    return FederationConfig.model_validate(base)


def run(
    settings: FederationConfig, folder: Path, watch: Any = lambda event: None, *, in_process: bool = True
) -> Result:
    """Worker processes would spend longer on their start than on the work."""
    return simulate(settings, folder, watch, command="fedloom simulate", in_process=in_process)


def test_it_learns_reports_and_leaves_record_and_model(tmp_path: Path) -> None:
    seen: list[Event] = []
    result = run(config(rounds={"count": 3}, training={"local_steps": 30}), tmp_path / "out", seen.append)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["model"]["digest"] == result.digest
    assert (tmp_path / "out" / MODEL).stat().st_size == result.plan.initial.size
    assert "<html" in (tmp_path / "out" / REPORT).read_text()
    assert [event.round.number for event in seen if event.round is not None] == [1, 2, 3]
    first = result.record.rounds[0].participants[0].evaluation["accuracy"]
    assert result.record.final["site-0"]["accuracy"] > first + 0.2


@pytest.mark.parametrize("changes", [{"seconds": [9.0, 1.0, 4.0]}, {"simulation": {"workers": 2}}])
def test_the_model_depends_neither_on_speeds_nor_on_workers(tmp_path: Path, changes: dict[str, Any]) -> None:
    one = run(config(), tmp_path / "one")
    other_config = config(**changes)
    if "simulation" in changes:
        other_config = config().changed(simulation={"workers": 2})
    other = run(other_config, tmp_path / "other", in_process="simulation" not in changes)
    assert one.digest == other.digest
    assert one.plan.hash == other.plan.hash


def test_the_seed_changes_the_model(tmp_path: Path) -> None:
    one = run(config(), tmp_path / "one")
    other = run(config(rounds={"seed": 1}), tmp_path / "other")
    assert one.digest != other.digest


def test_a_straggler_past_the_deadline_is_left_out_and_virtual_time_costs_nothing(tmp_path: Path) -> None:
    result = run(config(seconds=[1.0, 1.0, 5_000.0], rounds={"deadline_s": 60.0, "evaluate_every": 0}), tmp_path)
    outcomes = [{seat.name: seat.outcome for seat in item.participants} for item in result.record.rounds]
    assert outcomes[0] == {"site-0": "merged", "site-1": "merged", "site-2": "late"}
    assert result.record.rounds[0].seconds == pytest.approx(60.0)
    assert result.record.wall_seconds < 60.0


def test_each_institution_alone_is_trained_as_long_and_scored_by_the_same_measure(tmp_path: Path) -> None:
    result = run(config(simulation={"compare_local": True}), tmp_path)
    assert set(result.record.local_only) == {"site-0", "site-1", "site-2"}
    assert all(set(scores) == {"accuracy", "loss"} for scores in result.record.local_only.values())


def test_updates_that_are_never_usable_end_with_a_reason_and_not_never(tmp_path: Path) -> None:
    # Each step multiplies every matrix by 1 - 90 * 10: float32 overflows within 20 steps on any processor.
    training = {"optimizer": "sgd", "learning_rate": 90.0, "weight_decay": 10.0, "clip_norm": 0.0, "local_steps": 40}
    settings = config(training=training).changed(rounds={"min_updates": 3})
    with pytest.raises(DataError, match="not finite") as failure:
        run(settings, tmp_path)
    assert "site-" in str(failure.value)
    assert not (tmp_path / REPORT).exists()


def test_a_wrong_key_in_a_learning_table_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="local_steps"):
        run(config(training={"local_stepz": 3}), tmp_path)


def test_a_data_source_that_is_not_there_names_itself(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="nowhere") as failure:
        run(config(seconds=[1.0], data=[f"folder:{tmp_path}/nowhere"]), tmp_path)
    assert getattr(failure.value, "hint", "")
