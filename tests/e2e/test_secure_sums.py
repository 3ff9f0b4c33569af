"""Secure sums between real processes that are killed: at every step a sum over who is left, or an end with a name."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.killing import SITES, Fragile
from tests.e2e.stages import Stages, outcomes

pytestmark = pytest.mark.timeout(300)

VICTIM = SITES[1]
OTHERS = [name for name in SITES if name != VICTIM]


STEPS = ("planned", "delivered", "frozen", "masked", "survived", "released")
ALL_STEPS = ("task", "planned", "delivered", "trained", "frozen", "masked", "survived", "released")
RECORDS = ("plan", "accepted", "freeze", "survivors", "quorum", "SumRevealed")


def deaths_of(steps: Sequence[str], moment: str = "after") -> list[str]:
    """One in each round, from the first."""
    return [f"{step}-{number}-{moment}" for number, step in enumerate(steps, 1)]


def run_through(federation: Fragile, *fragile: str) -> None:
    """Start all, and these again whenever they have killed themselves, until the run is over."""
    federation.start()
    federation.until(
        lambda: not any(federation.revive(name) for name in fragile) and federation.finished(), "the run ends", 250.0
    )
    assert federation.died() == {death for name in fragile for death in federation.deaths[name]}
    federation.check_logs()


def check_nothing_lost(federation: Fragile, stages: Stages, rounds: int) -> None:
    """Every update is in its round's sum, and the model is the simulation's."""
    status = federation.status()
    assert status["version"] == rounds
    for number in range(1, rounds + 1):
        assert outcomes(status, number) == dict.fromkeys(SITES, "merged")
    assert status["refusals"] == {}
    assert status["model"]["digest"] == stages.simulated(federation, rounds)


def test_a_participant_killed_at_each_step_and_started_again_loses_nothing(tmp_path: Path, stages: Stages) -> None:
    with stages.make(tmp_path, rounds=len(STEPS)) as federation:
        federation.deaths[VICTIM] = deaths_of(STEPS)
        run_through(federation, VICTIM)
        check_nothing_lost(federation, stages, len(STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_participant_killed_on_either_side_of_all_steps_loses_nothing(
    tmp_path: Path, stages: Stages, moment: str
) -> None:
    with stages.make(tmp_path, rounds=len(ALL_STEPS)) as federation:
        federation.deaths[VICTIM] = deaths_of(ALL_STEPS, moment)
        run_through(federation, VICTIM)
        check_nothing_lost(federation, stages, len(ALL_STEPS))


def stay_away(federation: Fragile, steps: Sequence[str], moment: str) -> None:
    """Each round is over before the victim, dead in it, is started again."""
    federation.deaths[VICTIM] = deaths_of(steps, moment)
    federation.start()
    for number, death in enumerate(federation.deaths[VICTIM], 1):
        federation.until(lambda number=number: federation.status()["version"] >= number, f"round {number} ends")
        assert death in federation.died()
        # The mark of a death is written just before it.
        federation.until(lambda: federation.revive(VICTIM), "the victim is dead")
    federation.until(federation.finished, "the run ends")
    status = federation.status()
    assert status["version"] == len(steps)
    for number, step in enumerate(steps, 1):
        found = outcomes(status, number)
        # Whoever dies behind its upload is in the sum all the same. Without it, the others are just enough.
        if step in ("survived", "released"):
            assert found.pop(VICTIM) == "merged"
            assert sorted(found.values())[1:] == ["merged", "merged"]
        else:
            assert found.pop(VICTIM) in ("late", "vanished")
            assert found == dict.fromkeys(OTHERS, "merged")
    federation.check_logs()


def test_a_participant_that_stays_away_after_any_step_costs_the_round_its_update_at_most(
    tmp_path: Path, stages: Stages
) -> None:
    with stages.make(tmp_path, rounds=len(STEPS), lease_s=3.0) as federation:
        stay_away(federation, STEPS, "after")
        last = len(STEPS)
        verified = federation.lines("coordinator", "verify-log", "--config", str(federation.config))[0]
        assert verified["lines"] == last + 1
        assert {last, last + 1} <= {item["round"] for item in verified["recomputed"]}
        audited = federation.lines("participant", "audit", str(last), "--home", str(federation.home(VICTIM)))[0]
        assert (audited["mine"], audited["round"]) == (True, last)
        assert audited["model"] == federation.status()["model"]["digest"]


@pytest.mark.slow
def test_a_participant_that_stays_away_just_before_any_step_costs_the_round_its_update_at_most(
    tmp_path: Path, stages: Stages
) -> None:
    with stages.make(tmp_path, rounds=len(ALL_STEPS), lease_s=3.0) as federation:
        stay_away(federation, ALL_STEPS, "before")


def test_a_coordinator_killed_at_each_record_goes_on_from_its_log(tmp_path: Path, stages: Stages) -> None:
    with stages.make(tmp_path, rounds=len(RECORDS)) as federation:
        federation.deaths["coordinator"] = [*deaths_of(RECORDS), f"VersionCommitted-{len(RECORDS)}-after"]
        run_through(federation, "coordinator")
        check_nothing_lost(federation, stages, len(RECORDS))


@pytest.mark.slow
def test_a_coordinator_killed_just_before_each_record_goes_on_from_its_log(tmp_path: Path, stages: Stages) -> None:
    records = (*RECORDS, "VersionCommitted", "AttemptOpened")
    with stages.make(tmp_path, rounds=len(records)) as federation:
        federation.deaths["coordinator"] = deaths_of(records, "before")
        run_through(federation, "coordinator")
        check_nothing_lost(federation, stages, len(records))


@pytest.mark.slow
def test_a_coordinator_and_a_participant_killed_in_the_same_rounds_lose_nothing(tmp_path: Path, stages: Stages) -> None:
    with stages.make(tmp_path, rounds=len(STEPS)) as federation:
        federation.deaths[VICTIM] = deaths_of(STEPS)
        federation.deaths["coordinator"] = deaths_of(("accepted", "freeze", "survivors", "freeze", "quorum", "plan"))
        run_through(federation, VICTIM, "coordinator")
        check_nothing_lost(federation, stages, len(STEPS))


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
