"""Private rounds over TLS: budgets that are paid on disk, killed processes, and what a site's administrator sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.deployment import Deployment, configuration, data_of

pytestmark = pytest.mark.timeout(240)

SITES = [f"site-{index}" for index in range(4)]
DATA = {name: data_of(index, 4) for index, name in enumerate(SITES)}

PRIVACY = """
[privacy]
placement = "{placement}"
epsilon = 6.0
delta = 1e-5
noise_multiplier = {noise}
sampling_rate = {rate}
"""


def private(folder: Path, placement: str, **options: int) -> Path:
    config = configuration(folder, **options)
    rate, noise = (0.1, 0.0) if placement == "shared" else (0.05, 1.0)
    config.write_text(config.read_text() + PRIVACY.format(placement=placement, rate=rate, noise=noise))
    return config


@pytest.mark.parametrize("placement", ["shared", pytest.param("local", marks=pytest.mark.slow)])
def test_a_private_federation_pays_and_everybody_sees_it(tmp_path: Path, placement: str) -> None:
    config = private(tmp_path, placement)
    with Deployment(tmp_path, config) as federation:
        federation.start_coordinator()
        federation.join(*SITES, data=DATA)
        for name in SITES:
            federation.start_participant(name, "--once")
        status = federation.wait("finished")
        assert status["version"] == 3
        for process in federation.participants.values():
            assert process.wait(timeout=30) == 0
        status = federation.lines("coordinator", "status", "--config", str(config))[0]
        seen = {item["name"]: item["budget"] for item in status["participants"]}
        for name in SITES:
            home = ("--home", str(federation.home(name)))
            (row,) = federation.lines("participant", "budget", *home)[0]["datasets"]
            assert row["rounds_by_run"] == {"clinics-1": 3}
            assert row["reserved"] == 0
            assert 0 < row["spent"] <= 6.0
            # The coordinator recomputes from the receipt's events what the site recomputes from its ledger's.
            assert seen[name]["spent"] == pytest.approx(row["spent"], rel=0.01)
        for name in SITES[:1]:
            home = ("--home", str(federation.home(name)))
            audit = federation.lines("participant", "budget", "audit", *home)[0]
            assert all(item["agree"] for item in audit["datasets"])
            file = tmp_path / f"{name}.json"
            federation.lines("participant", "budget", "export", str(file), *home)
            exported = json.loads(file.read_text())
            assert exported["head"] == audit["head"]
            assert len(exported["lines"]) == audit["lines"] == 10  # opened; three rounds, three lines each


@pytest.mark.slow  # around each write: test_fault_plan
def test_a_site_killed_in_mid_round_pays_once(tmp_path: Path) -> None:
    config = private(tmp_path, "local", rounds=2, steps=60)
    with Deployment(tmp_path, config) as federation:
        federation.start_coordinator()
        federation.join(*SITES, data=DATA)
        victim = federation.start_participant(SITES[0])
        for name in SITES[1:]:
            federation.start_participant(name)
        federation.wait("training")
        federation.kill(victim)
        federation.start_participant(SITES[0])
        federation.wait("finished")
        rows = [
            federation.lines("participant", "budget", "--home", str(federation.home(name)))[0]["datasets"][0]
            for name in SITES[:2]
        ]
    # Two rounds for either: what the killed one had reserved, it used when it was back.
    assert [row["rounds_by_run"] for row in rows] == [{"clinics-1": 2}] * 2
    assert rows[0]["spent"] == pytest.approx(rows[1]["spent"], rel=0.05)
