"""Secure sums between real processes that are killed: at every step a sum over who is left, or an end with a name."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.deployment import configuration
from tests.e2e.killing import SITES, Fragile, Nursery

pytestmark = pytest.mark.timeout(300)

VICTIM = SITES[1]
OTHERS = [name for name in SITES if name != VICTIM]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


class Stages:
    """Federations with one first model, and what the simulator makes of each configuration."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        self._folder = folder
        self._nursery = nursery
        self._initial: Path | None = None
        self._simulated: dict[str, str] = {}

    def make(self, folder: Path, **settings: Any) -> Fragile:
        config = configuration(folder, min_updates=3, steps=2, **settings)
        if self._initial is None:
            self._initial = self._folder / "initial.safetensors"
            made = Fragile(self._folder, config, self._nursery)
            made.run_once("model", "init", "--config", str(config), "--out", str(self._initial), "--seed", "11")
        text = config.read_text().replace("\nlease_s", f'\ninitial_model = "{self._initial}"\nlease_s')
        config.write_text(text)
        return Fragile(folder, config, self._nursery)

    def simulated(self, federation: Fragile, rounds: int) -> str:
        """Digest of the final model of the same run in the simulator."""
        key = str(rounds)
        if key not in self._simulated:
            lines = federation.run_once(
                "simulate", "--config", str(federation.config), "--out", "report", "--workers", "1"
            )
            self._simulated[key] = lines[-1]["digest"]
        return self._simulated[key]


@pytest.fixture(scope="module")
def stages(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return Stages(tmp_path_factory.mktemp("stages"), nursery)


def outcomes(status: dict[str, Any], number: int) -> dict[str, str]:
    return {item["name"]: item["outcome"] for item in status["history"][number - 1]["participants"]}


STEPS = ("planned", "delivered", "frozen", "masked", "survived", "released")


def run_through(federation: Fragile, who: str) -> None:
    """Start all, and ``who`` again whenever it has killed itself, until the run is over."""
    federation.start()
    federation.until(lambda: not federation.revive(who) and federation.finished(), "the run ends", 200.0)


def test_a_participant_killed_at_each_step_and_started_again_loses_nothing(tmp_path: Path, stages: Stages) -> None:
    with stages.make(tmp_path, rounds=len(STEPS)) as federation:
        federation.deaths[VICTIM] = [f"{step}-{number}-after" for number, step in enumerate(STEPS, 1)]
        run_through(federation, VICTIM)
        assert federation.died() == set(federation.deaths[VICTIM])
        status = federation.status()
        assert status["version"] == len(STEPS)
        for number in range(1, len(STEPS) + 1):
            assert outcomes(status, number) == dict.fromkeys(SITES, "merged")
        federation.check_logs()
        assert status["model"]["digest"] == stages.simulated(federation, len(STEPS))


def test_a_participant_that_stays_away_after_any_step_costs_the_round_its_update_at_most(
    tmp_path: Path, stages: Stages
) -> None:
    with stages.make(tmp_path, rounds=len(STEPS), lease_s=2.0) as federation:
        federation.deaths[VICTIM] = [f"{step}-{number}-after" for number, step in enumerate(STEPS, 1)]
        federation.start()
        for number, step in enumerate(STEPS, 1):
            federation.until(lambda number=number: federation.status()["version"] >= number, f"round {number} ends")
            assert f"{step}-{number}-after" in federation.died()
            assert federation.revive(VICTIM)
        federation.until(federation.finished, "the run ends")
        status = federation.status()
        assert status["version"] == len(STEPS)
        for number, step in enumerate(STEPS, 1):
            found = outcomes(status, number)
            # Whoever dies behind its upload is in the sum all the same.
            assert found.pop(VICTIM) in (("merged",) if step in ("survived", "released") else ("late", "vanished"))
            assert found == dict.fromkeys(OTHERS, "merged")
        federation.check_logs()
        verified = federation.lines("coordinator", "verify-log", "--config", str(federation.config))[0]
        assert [item["round"] for item in verified["recomputed"]] == [len(STEPS), len(STEPS) + 1]
        assert verified["lines"] == len(STEPS) + 1
        audited = federation.lines("participant", "audit", str(len(STEPS)), "--home", str(federation.home(VICTIM)))[0]
        assert (audited["mine"], sorted(audited["participants"])) == (True, sorted(SITES))


def test_a_coordinator_killed_at_each_record_goes_on_from_its_log(tmp_path: Path, stages: Stages) -> None:
    records = ("plan", "accepted", "freeze", "survivors", "quorum", "SumRevealed")
    with stages.make(tmp_path, rounds=len(records)) as federation:
        federation.deaths["coordinator"] = [f"{kind}-{number}-after" for number, kind in enumerate(records, 1)]
        federation.deaths["coordinator"].append(f"VersionCommitted-{len(records)}-after")
        run_through(federation, "coordinator")
        assert federation.died() == set(federation.deaths["coordinator"])
        status = federation.status()
        for number in range(1, len(records) + 1):
            assert outcomes(status, number) == dict.fromkeys(SITES, "merged")
        federation.check_logs()
        assert status["model"]["digest"] == stages.simulated(federation, len(records))


def test_what_was_changed_on_disk_is_named_and_so_is_a_round_that_never_was(tmp_path: Path, stages: Stages) -> None:
    with stages.make(tmp_path, rounds=1) as federation:
        federation.start()
        federation.until(federation.finished, "the run ends")
        home, place = ["--home", str(federation.home(SITES[0]))], ["--config", str(federation.config)]

        unknown = federation.fedloom("participant", "audit", "9", *home, check=False)
        assert (unknown.returncode, unknown.stdout) == (4, "")
        assert "Error (round-unknown): the log has no round 9" in unknown.stderr
        assert "Rounds that can be recomputed now: 1, 2" in unknown.stderr
        right = federation.fedloom("participant", "audit", "1", *home)
        assert "round 1: the sum over site-0, site-1, site-2, site-3 is right, bit for bit." in right.stdout
        assert "right, bit for bit" in federation.fedloom("coordinator", "verify-log", *place).stdout

        upload = one_upload(federation)
        content = upload.read_bytes()
        upload.chmod(0o600)
        upload.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        changed = federation.fedloom("coordinator", "verify-log", *place, check=False)
        assert (changed.returncode, changed.stdout) == (4, "")
        assert "Error (blob-digest)" in changed.stderr and upload.name in changed.stderr
        refused = federation.fedloom("participant", "audit", "1", *home, check=False)
        assert refused.returncode == 4
        assert "Error (blob-digest)" in refused.stderr
        for done in (unknown, changed, refused):
            assert "Traceback" not in done.stderr


def one_upload(federation: Fragile) -> Path:
    """The file of a masked update of round 1."""
    with sqlite3.connect(federation.folder / "state" / "coordinator.sqlite") as database:
        rows = database.execute("select body from transitions where kind = 'SumRevealed'").fetchall()
    database.close()
    name = next(json.loads(row[0])["uploads"][0] for row in rows if json.loads(row[0])["round"] == 1)
    return next((federation.folder / "state" / "blobs").rglob(name))
