"""Hostile institutions in whole federations: they take part by the protocol, and the record says what they did."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulation.run import MODEL, RECORD, REPORT, Result
from tests.unit.simulation.test_simulate import config as small
from tests.unit.simulation.test_simulate import run
from wire import ConfigError, FederationConfig


def config(
    attack: str | None, *, honest: int = 3, attackers: int = 1, seconds: list[float] | None = None, **tables: Any
) -> FederationConfig:
    total = honest + (attackers if attack else 0)
    pace = seconds or [1.0] * total
    hostility = {"attack": attack, "attackers": attackers} if attack else {}
    return small(
        seconds=pace,
        data=[f"digits:{index + 1}/{honest + attackers}" for index in range(total)],
        **{**tables, "simulation": {"compare_local": False, **hostility, **tables.get("simulation", {})}},
    )


def outcomes(result: Result) -> list[dict[str, str]]:
    return [{seat.name: seat.outcome for seat in item.participants} for item in result.record.rounds]


@pytest.mark.parametrize("mode", ["plain", "secure"])
def test_hostile_sites_get_in_by_the_protocol_and_the_record_names_them(tmp_path: Path, mode: str) -> None:
    settings = config("ipm", honest=3, attackers=2, aggregation={"mode": mode})
    one = run(settings, tmp_path / "one")
    assert outcomes(one) == [dict.fromkeys((f"site-{index}" for index in range(5)), "merged")] * 2
    (said,) = json.loads((tmp_path / "one" / RECORD).read_text())["hostility"]
    assert (said["attack"], said["institutions"]) == ("ipm", ["site-3", "site-4"])
    honest = [one.record.final[f"site-{index}"]["accuracy"] for index in range(3)]
    assert said["score"] == pytest.approx(np.mean(honest))
    page = (tmp_path / "one" / REPORT).read_text()
    assert "The hostile institutions" in page and "<strong>site-4</strong>" in page
    # The same seed gives the same attack, whoever is the slowest.
    slow = config("ipm", honest=3, attackers=2, aggregation={"mode": mode}, seconds=[9.0, 1.0, 4.0, 0.0, 20.0])
    assert run(slow, tmp_path / "slow").digest == one.digest


def test_the_optimised_attack_makes_the_mean_collapse(tmp_path: Path) -> None:
    table: dict[str, Any] = {
        "rounds": {"count": 3, "evaluate_every": 3},
        "training": {"local_steps": 12, "batch_size": 32},
    }
    ours, theirs = (
        run(config(attack, honest=10, attackers=3, **table), tmp_path / str(attack))
        for attack in (None, "ipm-optimised")
    )
    accuracy = np.mean([table["accuracy"] for table in ours.record.final.values()])
    assert not ours.record.hostility
    assert accuracy > 0.4
    assert theirs.record.hostility[0].score < 0.2


def test_attackers_dont_wait_past_the_deadline_for_an_honest_straggler(tmp_path: Path) -> None:
    settings = config(
        "alie", seconds=[1.0, 1.0, 5_000.0, 1.0], rounds={"count": 1, "deadline_s": 60.0, "evaluate_every": 0}
    )
    result = run(settings, tmp_path)
    expected = {"site-0": "merged", "site-1": "merged", "site-2": "late", "site-3": "merged"}
    assert outcomes(result)[0] == expected
    assert math.isnan(result.record.hostility[0].score)
    assert math.isnan(result.record.hostility[0].success)


@pytest.mark.parametrize("mode", ["plain", "secure"])
def test_a_nan_is_refused_and_the_run_goes_on_without_the_attacker(tmp_path: Path, mode: str) -> None:
    result = run(config("nan", aggregation={"mode": mode}, rounds={"evaluate_every": 0}), tmp_path)
    for item in outcomes(result):
        assert "update-not-finite" in item.pop("site-3")
        assert set(item.values()) == {"merged"}
    assert result.record.model.version == 2


@pytest.mark.parametrize(
    ("simulation", "named"),
    [
        ({"attack": "alie", "attackers": 3}, "attackers = 3 of 4 institutions: two at least must be honest"),
        ({"attack": "alie"}, "give both"),
        ({"attack": None, "attackers": 1}, "give both"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(simulation: dict[str, Any], named: str) -> None:
    settings = small(seconds=[1.0] * 4)
    with pytest.raises(ConfigError, match=named):
        settings.changed(simulation=simulation)


def test_an_unknown_attack_is_refused_with_the_list_of_attacks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no attack 'alive'") as failure:
        run(config("alive"), tmp_path / "out")
    assert "min-max" in failure.value.hint
    assert not (tmp_path / "out").exists()


def test_noise_on_a_lattice_isnt_attacked(tmp_path: Path) -> None:
    private = {"placement": "shared", "epsilon": 8.0, "sampling_rate": 0.1}
    settings = config("alie", honest=3, aggregation={"mode": "secure"}, privacy=private)
    with pytest.raises(ConfigError, match="lattice"):
        run(settings, tmp_path)


def test_a_backdoor_is_in_the_attackers_data_and_its_success_in_the_record(tmp_path: Path) -> None:
    table: dict[str, Any] = {"training": {"local_steps": 25, "batch_size": 32}, "rounds": {"evaluate_every": 0}}
    result = run(config("model-replacement", honest=4, attackers=2, **table), tmp_path)
    (said,) = result.record.hostility
    assert said.success > 0.6
    assert "The backdoor opens" in (tmp_path / REPORT).read_text()


def test_an_attack_that_doesnt_fit_the_data_says_so(tmp_path: Path) -> None:
    settings = config(
        "backdoor",
        model={"kind": "linear", "inputs": 324},
    )
    institutions = [
        {"name": item.name, "data": f"{item.data}?features=scattering"} for item in settings.simulation.institutions
    ]
    with pytest.raises(Exception, match="no pictures that a model sees"):
        run(settings.changed(simulation={"institutions": institutions}), tmp_path)


def test_a_forged_count_buys_a_bare_mean_and_neither_a_careful_one_nor_a_secure_sum(tmp_path: Path) -> None:
    """The coordinator takes a participant's word for its records, and caps what they weigh."""
    once = {"rounds": {"count": 1, "evaluate_every": 0}}
    bare = {"merging": {"rule": "mean"}}
    bought = run(config("forged-count", honest=4, **once, **bare), tmp_path / "bought")
    (seat,) = (seat for seat in bought.record.rounds[0].participants if seat.name == "site-4")
    assert (seat.outcome, seat.examples) == ("merged", 10**9)
    run(config("forged-count", honest=4, **once), tmp_path / "careful")
    run(config("forged-count", honest=4, aggregation={"mode": "secure"}, **once), tmp_path / "secure")
    run(config("sign-flip", honest=4, **once, **bare), tmp_path / "honest count")
    moved = {name: _distance(tmp_path / name, tmp_path / "honest count") for name in ("bought", "careful", "secure")}
    assert moved["bought"] > 1.2 * moved["secure"]
    assert moved["bought"] > 1.2 * moved["careful"]


def _distance(one: Path, other: Path) -> float:
    vectors = []
    for folder in (one, other):
        content = (folder / MODEL).read_bytes()
        vectors.append(np.frombuffer(content[8 + int.from_bytes(content[:8], "little") :], "<f4").astype(np.float64))
    return float(np.linalg.norm(vectors[0] - vectors[1]))


def test_a_replayed_update_is_the_one_of_the_round_before(tmp_path: Path) -> None:
    result = run(config("replay", rounds={"count": 2, "evaluate_every": 0}), tmp_path)
    assert {name for item in outcomes(result) for name in item.values()} == {"merged"}
    other = run(config("wrong-size", rounds={"count": 1, "evaluate_every": 0}), tmp_path / "other")
    assert [item["site-3"] for item in outcomes(other)] == ["declined: blob-size"]


def test_the_command_line_makes_institutions_hostile(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from simulation.cli import simulate_app
    from wire import commented_toml

    path = tmp_path / "federation.toml"
    path.write_text(commented_toml(config(None, honest=4, rounds={"count": 1})))
    options = ["--config", str(path), "--out", str(tmp_path / "out"), "--json"]
    hostile = ["--attack", "min-max", "--attackers", "2", "--attack-setting", "direction=sign"]
    done = CliRunner().invoke(simulate_app, [*options, *hostile])
    assert done.exit_code == 0, done.output
    finished = json.loads(done.stdout.splitlines()[-1])
    (said,) = finished["hostility"]
    assert (said["attack"], said["institutions"], said["success"]) == ("min-max", ["site-2", "site-3"], None)
    assert said["settings"] == {"direction": "sign"}
    assert "direction = sign" in (tmp_path / "out" / REPORT).read_text()
    wrong = ["--attack", "min-max", "--attackers", "2", "--attack-setting", "way=up"]
    for arguments in (wrong, ["--attack", "min-max", "--attackers", "3"], ["--attack", "mimax", "--attackers", "1"]):
        failed = CliRunner().invoke(simulate_app, [*options, *arguments])
        assert isinstance(failed.exception, ConfigError)
