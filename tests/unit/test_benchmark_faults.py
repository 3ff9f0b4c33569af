"""The benchmark of faults: its crowd is real, its log can be replayed, and it counts rightly."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from federated import Federation

from benchmarks import crowd, faults
from benchmarks.crowd import Found, Pace
from benchmarks.faults import FULL, QUICK, quantile
from benchmarks.restarts import Kills, Log, Starts
from coordinator.hub import Hub
from coordinator.planning import run_records
from coordinator.store import open_store
from tests.unit.coordinator.test_hub import plan


def test_a_quantile_is_a_value_that_was_measured() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(list(range(100)), 0.99) == 99
    assert quantile([7.0], 0.99) == 7.0
    assert math.isnan(quantile([], 0.5))


def test_the_full_run_is_held_against_the_target_and_the_quick_one_is_not() -> None:
    starts = Starts(rows=10_000, serving_s=[1.0, 2.5, 1.5], cpu_s=[0.9, 1.0, 1.1])
    rows = {row.metric: row for row in faults.start_rows(starts, FULL)}
    slowest = rows["start to first check-in, slowest"]
    assert (slowest.value, slowest.target, slowest.met) == (2.5, 2.0, False)
    assert rows["start to first check-in, median"].value == 1.5
    assert all(row.target is None for row in faults.start_rows(starts, QUICK))


def test_each_pace_of_a_crowd_has_its_rows() -> None:
    pace = Pace(
        updates_per_s=5.0,
        versions=2,
        rows_per_s=11.0,
        sealed_s=[0.1, 0.3],
        receipts_s=[0.2],
        cpu=0.5,
        refused={"quota": 1},
    )
    found = Found(check_ins_per_s=9.0, check_in_s=[0.5], connection_bytes=2_000.0, steady=pace, flat_out=pace)
    rows = faults.crowd_rows(found, QUICK)
    values = {(row.case, row.metric): row.value for row in rows}
    assert len(values) == len(rows)
    for case in ("50 participants, steady", "50 participants, flat out"):
        assert values[case, "sealed to announced, p99"] == 0.3
        assert values[case, "refused"] == values[case, "refused as quota"] == 1
    assert values["50 participants", "coordinator's memory for a connection"] == 2.0


def test_kills_have_rows() -> None:
    rows = {row.metric: row.value for row in faults.kill_rows(Kills(next_s=[1.0, 3.0], usual_s=0.1, versions=9))}
    assert rows["SIGKILL to next version, slowest"] == 3.0
    assert rows["versions in the end, each made once"] == 9


def test_the_written_log_is_one_that_a_coordinator_goes_on_from(tmp_path: Path) -> None:
    rounds = {"mode": "asynchronous", "min_participants": 6, "min_updates": 1, "buffer_size": 3, "count": 1_000}
    run = plan(**rounds, correction="none", max_staleness=1_000)
    store = open_store(tmp_path / "coordinator.sqlite")
    store.create_run(*run_records(run, 0.0))
    log = Log(store, 6)
    log.write(200)
    assert log.rows == sum(1 for _ in store.transitions(run.run_id)) >= 200
    hub = Hub(store, run, Federation(), lease_s=30.0, now_s=0.0)
    state = hub.machine.state
    assert state.version == len(state.rounds) - 1 > 20
    assert state.merging() is None, "nothing to merge: the updates aren't there"
    store.close()


@pytest.mark.slow
def test_a_small_crowd_connects_trains_and_is_counted(tmp_path: Path) -> None:
    found = crowd.measure(tmp_path, 12, 2.0, 2.0, 0.5)
    assert len(found.check_in_s) == 12
    for pace in (found.steady, found.flat_out):
        assert pace.versions > 0
        assert len(pace.sealed_s) > 0
        assert min(pace.sealed_s) > 0.0
        assert pace.refused == {}
        assert pace.rows_per_s > pace.updates_per_s > 0.0


@pytest.mark.slow
def test_the_quick_run_writes_finite_rows_of_every_part(tmp_path: Path) -> None:
    faults.main(["--quick", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert all(row["value"] is not None for row in rows)
    cases = {row["case"] for row in rows}
    assert any("flat out" in case for case in cases)
    assert any("kills" in case for case in cases)
    assert any("rows, 50 participants" in case for case in cases)
