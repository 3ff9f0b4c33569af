"""Whole federations in one process whose sites train at their own pace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulation.run import RECORD
from tests.unit.simulation.test_simulate import config, run
from wire import ConfigError


def asynchronous(**tables: Any) -> Any:
    rounds = {"mode": "asynchronous", "count": 4, "buffer_size": 2, **tables.pop("rounds", {})}
    return config(rounds=rounds, **tables)


def test_a_buffer_of_everyone_gives_the_synchronous_model_byte_for_byte(tmp_path: Path) -> None:
    speeds = {"speeds": "half-normal", "speed_seed": 5}
    rounds = {"count": 3}
    synchronous = run(config(rounds=rounds, simulation=speeds), tmp_path / "one")
    found = run(asynchronous(rounds={**rounds, "buffer_size": 3}, simulation=speeds), tmp_path / "other")
    assert found.digest == synchronous.digest
    assert found.record.virtual_seconds == pytest.approx(synchronous.record.virtual_seconds)
    assert found.record.final == synchronous.record.final


def test_versions_are_made_at_the_pace_of_the_fast_and_the_slow_take_part(tmp_path: Path) -> None:
    seconds = [1.0, 1.0, 3.5]
    result = run(asynchronous(seconds=seconds), tmp_path / "one")
    merged = [{seat.name for seat in item.participants if seat.outcome == "merged"} for item in result.record.rounds]
    assert merged == [{"site-0", "site-1"}] * 3 + [{"site-0", "site-2"}]
    assert [item.seconds for item in result.record.rounds] == pytest.approx([1.0, 1.0, 1.0, 1.0])
    ages = {seat.name: seat.staleness for seat in result.record.rounds[3].participants}
    assert ages == {"site-0": 0, "site-2": 3}
    assert result.plan.rounds.correction == "ca2fl"
    record = json.loads((tmp_path / "one" / RECORD).read_text())
    assert set(record["final"]) == {"site-0", "site-1", "site-2"}
    again = run(asynchronous(seconds=seconds), tmp_path / "again")
    assert again.digest == result.digest, "the same seed, the same model"


@pytest.mark.slow
def test_the_correction_changes_the_model(tmp_path: Path) -> None:
    digests = {
        run(asynchronous(seconds=[1.0, 1.2, 3.0], rounds={"correction": choice}), tmp_path / choice).digest
        for choice in ("ca2fl", "none")
    }
    assert len(digests) == 2


def test_a_sum_of_everyone_gives_the_synchronous_secure_model_byte_for_byte(tmp_path: Path) -> None:
    secure = {"aggregation": {"mode": "secure"}, "simulation": {"speeds": "half-normal", "speed_seed": 5}}
    rounds = {"count": 2, "min_updates": 3}
    synchronous = run(config(rounds=rounds, **secure), tmp_path / "one")
    found = run(asynchronous(rounds={**rounds, "buffer_size": 3}, **secure), tmp_path / "other")
    assert found.digest == synchronous.digest
    assert found.record.virtual_seconds == pytest.approx(synchronous.record.virtual_seconds)


def test_sums_are_made_at_the_pace_of_the_fast_and_the_slow_are_in_later_ones(tmp_path: Path) -> None:
    secure = {"aggregation": {"mode": "secure"}, "seconds": [1.0, 1.0, 1.0, 2.5], "rounds": {"buffer_size": 3}}
    result = run(asynchronous(**secure), tmp_path / "one")
    merged = [
        {seat.name: seat.staleness for seat in item.participants if seat.outcome == "merged"}
        for item in result.record.rounds
        if item.version
    ]
    fast = {"site-0": 0, "site-1": 0, "site-2": 0}
    # The slow one waits for the next two; the third that is ready in that moment is in the sum after it.
    assert merged == [fast, fast, {"site-0": 0, "site-1": 0, "site-3": 2}, {"site-0": 0, "site-1": 0, "site-2": 1}]
    assert run(asynchronous(**secure), tmp_path / "again").digest == result.digest, "the same seed, the same model"


def test_a_site_that_is_always_too_late_holds_up_nobody(tmp_path: Path) -> None:
    settings = asynchronous(
        seconds=[1.0, 1.0, 9.5], rounds={"count": 12, "max_staleness": 2, "evaluate_every": 0, "correction": "none"}
    )
    result = run(settings, tmp_path)
    outcomes = {seat.outcome for item in result.record.rounds for seat in item.participants if seat.name == "site-2"}
    assert outcomes == {"refused: update-stale"}
    assert result.record.virtual_seconds == pytest.approx(12.0)


def test_attacks_wait_for_rounds_that_are_not_there(tmp_path: Path) -> None:
    settings = asynchronous(simulation={"attack": "sign-flip", "attackers": 1})
    with pytest.raises(ConfigError, match=r"attackers wait for the honest .*") as caught:
        run(settings, tmp_path)
    assert "synchronous" in caught.value.hint
