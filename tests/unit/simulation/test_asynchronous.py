"""Whole federations in one process whose sites train at their own pace."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from simulation.run import RECORD, Result
from tests.unit.simulation.test_simulate import config, run


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


def attacked(rule: str, attack: str | None, folder: Path, count: int = 12) -> Result:
    """Eight honest sites of different speeds and two hostile ones that are faster than all; buffers of five."""
    pace = [1.0, 1.3, 0.8, 1.1, 1.6, 0.9, 1.4, 2.0] + [0.3] * (2 if attack else 0)
    rounds = {"count": count, "buffer_size": 5, "min_updates": 5, "evaluate_every": count}
    settings = asynchronous(
        seconds=pace,
        data=[f"digits:{index + 1}/10" for index in range(len(pace))],
        rounds=rounds,
        merging={"rule": rule, **({"f": 2} if rule == "robust" else {})},
        training={"local_steps": 12, "batch_size": 32},
        simulation={"attack": attack, "attackers": 2} if attack else {},
    )
    return run(settings, folder)


def score(result: Result) -> float:
    """Mean accuracy that the honest sites find in the end."""
    return statistics.fmean(result.record.final[f"site-{index}"]["accuracy"] for index in range(8))


def test_fast_hostile_sites_have_one_place_each_in_a_buffer_and_the_robust_rule_stands_them(tmp_path: Path) -> None:
    robust, mean = (attacked(rule, "ipm-optimised", tmp_path / rule, count=5) for rule in ("robust", "mean"))
    for item in robust.record.rounds:
        merged = [seat.name for seat in item.participants if seat.outcome == "merged"]
        assert len(merged) == 5
        assert len({"site-8", "site-9"}.intersection(merged)) >= 1, "they are in every buffer"
    assert score(robust) > 0.5, "a guess is right in a tenth"
    assert score(mean) < 0.3
    assert robust.record.hostility[0].institutions == ("site-8", "site-9")


@pytest.mark.slow
def test_an_attack_in_buffers_is_the_same_again_and_costs_the_robust_rule_little(tmp_path: Path) -> None:
    free = attacked("robust", None, tmp_path / "free")
    one, again = (attacked("robust", "ipm-optimised", tmp_path / name) for name in ("one", "again"))
    assert one.digest == again.digest
    assert score(one) > score(free) - 0.1
    careful = attacked("careful", "ipm-optimised", tmp_path / "careful")
    assert score(careful) < score(free) - 0.3, "careful stands mishaps, no adversary"


@pytest.mark.parametrize("attack", ["forged-count", "rop", "model-replacement"])
def test_attacks_that_forge_remember_or_poison_work_in_buffers(attack: str, tmp_path: Path) -> None:
    settings = asynchronous(seconds=[1.0, 1.0, 0.5], rounds={"count": 3}, simulation={"attack": attack, "attackers": 1})
    result = run(settings, tmp_path)
    assert result.record.model.version == 3
    outcomes = {seat.outcome for item in result.record.rounds for seat in item.participants if seat.name == "site-2"}
    assert outcomes == {"merged"}


@pytest.mark.slow
def test_groups_of_a_buffer_stand_hostile_sites_that_are_always_first(tmp_path: Path) -> None:
    """The four at once but for noise: asynchronous, secure, in groups, robust."""
    sites = 24
    settings = config(
        data=[f"digits:{index + 1}/{sites}" for index in range(sites)],
        seconds=[1.0 + 0.05 * (index % 5) for index in range(sites - 4)] + [3.0, 3.0, 0.9, 0.9],
        rounds={"mode": "asynchronous", "count": 12, "buffer_size": 15, "min_updates": 15, "evaluate_every": 1},
        aggregation={"mode": "secure"},
        secure_aggregation={"group_size": 3},
        merging={"rule": "robust", "f": 2},
        training={"local_steps": 20, "batch_size": 16, "learning_rate": 0.005},
        simulation={"attack": "sign-flip", "attackers": 2},
    )
    result = run(settings, tmp_path, in_process=False)
    assert len([item for item in result.record.rounds if item.version]) == 12
    ages = {seat.staleness for item in result.record.rounds for seat in item.participants if seat.outcome == "merged"}
    assert max(ages) >= 2, "the slow ones are in later sums"
    merged = {seat.name for item in result.record.rounds for seat in item.participants if seat.outcome == "merged"}
    assert {"site-22", "site-23"} <= merged, "the hostile ones take part"
    scores = [scored["accuracy"] for scored in result.record.final.values()]
    assert min(scores) > 0.5


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
