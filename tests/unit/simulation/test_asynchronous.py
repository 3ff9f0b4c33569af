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


def with_hours(settings: Any, **hours: list[str]) -> Any:
    """The same federation, of which some institutions keep hours."""
    table = settings.model_dump()
    for item in table["simulation"]["institutions"]:
        item["hours"] = hours.get(item["name"].replace("-", "_"))
    return type(settings).model_validate(table)


@pytest.mark.parametrize("mode", [pytest.param("asynchronous", marks=pytest.mark.slow), "synchronous"])
def test_institutions_that_close_for_the_night_hold_up_nobody(tmp_path: Path, mode: str) -> None:
    # Virtual time begins on a Sunday at 01:46:40 UTC; a training takes an hour.
    rounds = {"mode": mode, "count": 6, "min_participants": 2, "min_updates": 2, "evaluate_every": 0}
    rounds |= {"deadline_s": 5_400.0, **({"buffer_size": 2} if mode == "asynchronous" else {})}
    settings = config(seconds=[3600.0] * 3, rounds=rounds)
    closing = with_hours(settings, site_2=["sun 00:00-04:00", "sun 12:00-24:00"])
    result = run(closing, tmp_path / "one")
    merged = [{seat.name for seat in item.participants if seat.outcome == "merged"} for item in result.record.rounds]
    assert len(merged) == 6
    assert result.record.virtual_seconds <= 6 * 3600.0 + 1.0, "an hour a version at most: nobody waited"
    assert "site-2" in merged[0] | merged[1]
    assert "site-2" not in merged[5], "closed"
    again = run(closing, tmp_path / "again")
    assert again.digest == result.digest


@pytest.mark.slow
def test_a_federation_whose_institutions_all_sleep_goes_on_in_the_morning(tmp_path: Path) -> None:
    # Ten minutes a round: the second one is finished after two, and the third begins at eight.
    settings = config(seconds=[600.0] * 3, rounds={"count": 3, "evaluate_every": 0, "deadline_s": 900.0})
    night = ["00:00-02:00", "08:00-18:00"]
    result = run(with_hours(settings, site_0=night, site_1=night, site_2=["00:00-02:00", "06:00-20:00"]), tmp_path)
    assert result.record.virtual_seconds == pytest.approx(6 * 3600 + 23 * 60 + 20)


def test_hours_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names the days 'sonntag'"):
        with_hours(config(), site_0=["sonntag 08:00-18:00"])
