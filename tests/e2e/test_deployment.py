"""The main job for real: separate processes over mutual TLS, killed and restarted, equal to the simulation."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.deployment import Deployment, configuration, data_of

pytestmark = pytest.mark.timeout(240)

SITES = [f"site-{index}" for index in range(4)]
DATA = {name: data_of(index, 4) for index, name in enumerate(SITES)}


@pytest.mark.parametrize("aggregation", ["secure", pytest.param("plain", marks=pytest.mark.slow)])
def test_four_processes_over_tls_reach_the_simulations_model_byte_for_byte(tmp_path: Path, aggregation: str) -> None:
    config = configuration(tmp_path, aggregation=aggregation)
    with Deployment(tmp_path, config) as federation:
        federation.start_coordinator()
        federation.join(*SITES, data=DATA, allow_plain=aggregation == "plain")
        for name in SITES:
            federation.start_participant(name, "--once")
        status = federation.wait("finished")
        assert status["version"] == 3
        for process in federation.participants.values():
            assert process.wait(timeout=30) == 0
        exported = federation.lines("coordinator", "export", "model.safetensors", "--config", str(config))[0]
        content = (tmp_path / "model.safetensors").read_bytes()
        assert hashlib.sha256(content).hexdigest() == exported["sha256"] == status["model"]["digest"]
        simulated = federation.lines("simulate", "--config", str(config), "--out", "report", "--workers", "0")[-1]
    assert simulated["digest"] == status["model"]["digest"]
    assert (tmp_path / "report" / "model.safetensors").read_bytes() == content
    plan = json.loads((tmp_path / "model.plan.json").read_text())
    assert plan["rounds"]["count"] == 3
    seats = {item["name"]: item for item in status["history"][-1]["participants"]}
    if aggregation == "plain":
        assert {name: seat["evaluation"] for name, seat in seats.items()} == simulated["final"]
    else:
        # The coordinator knows that the sites took part, and nothing of what each of them found.
        assert {(name, seat["outcome"]) for name, seat in seats.items()} == {(name, "scored") for name in SITES}
        for item in status["history"]:
            for seat in item["participants"]:
                assert (seat["evaluation"], seat["metrics"], seat["examples"]) == ({}, {}, "0")


# n = 4 tolerates one that drops out of a secure sum; plain averaging any number of them.
MODES = [pytest.param("secure", 4, id="secure"), pytest.param("plain", 2, id="plain", marks=pytest.mark.slow)]


@pytest.mark.slow  # around each write: test_fault_plan
@pytest.mark.parametrize(("aggregation", "count"), MODES)
def test_a_participant_killed_in_mid_round_is_waited_for_and_trains_nothing_twice(
    tmp_path: Path, aggregation: str, count: int
) -> None:
    names = SITES[:count]
    enough = count - 1 if aggregation == "secure" else count
    config = configuration(
        tmp_path, participants=count, rounds=2, steps=150, min_updates=enough, lease_s=40.0, aggregation=aggregation
    )
    with Deployment(tmp_path, config) as federation:
        federation.start_coordinator()
        data = {name: data_of(index, count) for index, name in enumerate(names)}
        federation.join(*names, data=data, allow_plain=aggregation == "plain")
        victim = federation.start_participant(names[0])
        for name in names[1:]:
            federation.start_participant(name)
        federation.wait("training")
        federation.kill(victim)
        federation.start_participant(names[0])
        status = federation.wait("finished")
        simulated = federation.lines("simulate", "--config", str(config), "--out", "report", "--workers", "0")[-1]
    assert status["version"] == 2
    assert status["model"]["digest"] == simulated["digest"]


@pytest.mark.parametrize(
    ("aggregation", "count"),
    [pytest.param("secure", 4, id="secure"), pytest.param("plain", 3, id="plain")],
)
@pytest.mark.slow  # after any step: test_secure_sums
def test_a_participant_that_stays_away_does_not_hold_up_the_round(tmp_path: Path, aggregation: str, count: int) -> None:
    config = configuration(
        tmp_path,
        participants=count,
        rounds=2,
        steps=150,
        lease_s=3.0,
        min_updates=count - 1,
        aggregation=aggregation,
    )
    with Deployment(tmp_path, config) as federation:
        federation.start_coordinator()
        names = SITES[:count]
        data = {name: data_of(index, count) for index, name in enumerate(names)}
        federation.join(*names, data=data, allow_plain=aggregation == "plain")
        for name in names:
            federation.start_participant(name)
        federation.wait("training")
        federation.kill(federation.participants[names[0]])
        time.sleep(4.0)
        federation.start_participant(names[0])
        status = federation.wait("finished")
    outcomes = [{seat["name"]: seat["outcome"] for seat in item["participants"]} for item in status["history"]]
    assert {outcomes[0][name] for name in names[1:]} == {"merged"}
    assert status["version"] == 2


@pytest.mark.parametrize(("aggregation", "count"), MODES)
def test_a_coordinator_killed_at_any_moment_goes_on_from_its_log(tmp_path: Path, aggregation: str, count: int) -> None:
    names = SITES[:count]
    enough = count - 1 if aggregation == "secure" else count
    config = configuration(
        tmp_path, participants=count, rounds=4, steps=40, min_updates=enough, aggregation=aggregation
    )
    with Deployment(tmp_path, config) as federation:
        federation.start_coordinator()
        data = {name: data_of(index, count) for index, name in enumerate(names)}
        federation.join(*names, data=data, allow_plain=aggregation == "plain")
        for name in names:
            federation.start_participant(name)
        federation.fix_ports()
        versions = []
        for _ in range(3):
            deadline = time.monotonic() + 60
            while federation.status()["version"] <= len(versions) - 1 and time.monotonic() < deadline:
                time.sleep(0.1)
            versions.append(federation.status()["version"])
            assert federation.coordinator is not None
            federation.kill(federation.coordinator)
            federation.start_coordinator()
            assert federation.wait_open()["version"] >= versions[-1]
        status = federation.wait("finished")
        simulated = federation.lines("simulate", "--config", str(config), "--out", "report", "--workers", "0")[-1]
    assert status["version"] == 4
    assert status["model"]["digest"] == simulated["digest"]


def test_a_revoked_participant_is_shut_out_by_name_and_the_others_go_on(tmp_path: Path) -> None:
    config = configuration(
        tmp_path, participants=3, rounds=2, steps=400, min_participants=2, min_updates=2, aggregation="plain"
    )
    with Deployment(tmp_path, config) as federation:
        federation.start_coordinator()
        names = SITES[:3]
        data = {name: data_of(index, 3) for index, name in enumerate(names)}
        federation.join(*names, data=data, allow_plain=True)
        for name in names:
            federation.start_participant(name)
        federation.wait("training")
        federation.fedloom("coordinator", "revoke", names[2], "--reason", "left the study", "--config", str(config))
        assert federation.participants[names[2]].wait(timeout=30) == 4
        again = federation.start_participant(names[2])
        assert again.wait(timeout=30) == 4
        status = federation.wait("finished")
        log = federation.log(names[2])
    assert "participant-revoked" in log
    assert "left the study" in log
    assert "Traceback" not in log
    assert status["refusals"]["participant-revoked"] == "1"
    assert {item["name"]: item["state"] for item in status["participants"]}[names[2]] == "revoked"


def test_daemons_stop_quietly_on_sigterm(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    with Deployment(tmp_path, config) as federation:
        federation.start_coordinator()
        federation.join(SITES[0], data=DATA)
        participant = federation.start_participant(SITES[0])
        deadline = time.monotonic() + 60
        while "connected to" not in federation.log(SITES[0]) and time.monotonic() < deadline:
            time.sleep(0.2)
        participant.send_signal(signal.SIGTERM)
        assert participant.wait(timeout=20) == 0
        assert federation.coordinator is not None
        federation.coordinator.send_signal(signal.SIGTERM)
        assert federation.coordinator.wait(timeout=20) == 0
        assert "Traceback" not in federation.logs()
