"""The benchmark of secure aggregation: which figures it gives, on sizes that say nothing about speed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import secure_aggregation, secure_context, secure_federation, secure_peer, secure_server, timing
from benchmarks.report import Report
from benchmarks.secure_aggregation import Sizes

TINY = Sizes(
    streams_dimension=1_000,
    dimension=2_000,
    peers=4,
    peer_masks=2,
    server_dimension=1_000,
    participants=5,
    drops=1,
    trials=1,
    peer_operations=1,
    scaling_dimension=1_000,
    scaling_trials=1,
    cohorts=((1_000, 16), (70, 32)),
    repeats=1,
)

# One row for each line of the table of targets: (part of the case, part of the metric, target), in the full run.
TARGETS = [
    ("100 streams x 10 M, 32-bit", "of raw AES", 0.8),
    ("100 streams x 10 M, 16-bit", "of raw AES", 0.8),
    ("unmasking by slices", "one process / two", 1.8),
    ("participant after training, 10 M, 32-bit", "error feedback", 60.0),
    ("participant after training, 10 M, 16-bit", "error feedback", 60.0),
    ("upload, 32 bits", "bytes to those of float32", 1.0),
    ("upload, 24 bits", "bytes to those of float32", 0.75),
    ("upload, 16 bits", "bytes to those of float32", 0.5),
    ("control plane", "to the upload of 10 M at 32 bits", 0.2),
]


@pytest.fixture(scope="module")
def report() -> Report:
    report = Report("secure_aggregation")
    secure_aggregation.measure(report, TINY)
    return report


def test_rows_are_complete_and_finite(report: Report) -> None:
    assert all(np.isfinite(row.value) for row in report.rows)
    keys = [(row.case, row.metric) for row in report.rows]
    assert len(set(keys)) == len(keys)
    cases = {row.case for row in report.rows}
    for part in ("raw AES-256-CTR", "participant's masks", "after training", "late drops", "no drop", "whole round"):
        assert any(part in case for case in cases), part


def test_the_json_has_the_agreed_form(report: Report, tmp_path: Path) -> None:
    report.finish(tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["name"] == "secure_aggregation"
    fields = ["case", "metric", "value", "unit", "better", "target", "met", "peer", "ratio"]
    assert all(sorted(row) == sorted(fields) for row in written["rows"])
    assert all((row["target"] is None) == (row["met"] is None) for row in written["rows"])
    if secure_peer.name() is None:
        assert all(row["peer"] is None and row["ratio"] is None for row in written["rows"])


def test_every_target_has_its_row_in_the_full_run() -> None:
    """By names: the sizes in a case's name are those of ``Sizes``, so the tiny run's are put to the full one's."""
    full = secure_aggregation.FULL
    assert (full.streams_dimension, full.dimension, full.peers, full.server_dimension) == (10**7, 10**7, 100, 10**7)
    assert (full.participants, full.drops) == (100, 10)
    assert full.peer_masks == full.peers + 1
    assert (1_000_000, 16) in full.cohorts and (10_000_000, 32) in full.cohorts


def test_targets_that_do_not_depend_on_the_size(report: Report) -> None:
    for case, metric, target in TARGETS:
        case = case.replace("10 M", "").split(" x ")[0].split(",")[0].replace("10 late drops", "late drops")
        found = [row for row in report.rows if case in row.case and metric.split(" of ")[0] in row.metric]
        assert found, (case, metric)
        if "control" not in case:  # whose target is for 10 M parameters
            assert any(row.target == target for row in found), (case, metric)


def test_bytes_on_the_wire_are_exact(report: Report) -> None:
    values = {row.case: row.value for row in report.rows if row.metric == "bytes to those of float32"}
    assert values == {
        "upload, 32 bits on the wire": 1.0,
        "upload, 24 bits on the wire": 0.75,
        "upload, 20 bits on the wire": 0.625,
        "upload, 16 bits on the wire": 0.5,
    }


def test_the_control_plane_is_what_was_sent(report: Report) -> None:
    rows = {row.metric: row.value for row in report.rows if row.case.startswith("control plane")}
    kinds = ("prekey", "plan", "accept", "delivery", "ready", "freeze", "upload", "receipt", "survivors", "survived")
    assert rows["all, up and down"] == pytest.approx(
        sum(rows[kind] for kind in (*kinds, "quorum", "release", "result"))
    )
    assert rows["accept"] > 5 * (82 + 32)  # a parcel and its commitment for each keeper


@pytest.mark.parametrize(("participants", "dimension", "processes"), [(3, 1, 2), (4, 40, 3), (5, 333, 1)])
def test_a_round_gives_the_mean(tmp_path: Path, participants: int, dimension: int, processes: int) -> None:
    done = secure_federation.run(participants, dimension, 32, tmp_path, processes=processes)
    assert done.streams == participants * (participants + 1) // 2
    assert list(done.seconds) == list(secure_federation.PHASES)


def test_flowers_masks_are_counted_as_its_workflow_makes_them() -> None:
    operations = secure_peer.Unmasking(upload_s=1.0, mask_s=100.0, end_s=0.5)
    assert operations.whole_s(90, 10) == 89 + 100 * (90 + 10 * 99) + 0.5
    assert operations.whole_s(100, 0) == 99 + 100 * 100 + 0.5


def test_the_size_of_the_specification_has_its_seconds() -> None:
    size = secure_server.Size(participants=100, drops=10, dimension=10_000_000, trials=1, peer_operations=1)
    assert size.stated
    assert not secure_server.Size(participants=100, drops=10, dimension=1, trials=1, peer_operations=1).stated


def test_without_room_there_is_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with secure_context.room(1 << 60, memory=True) as folder:
        assert folder is None
    assert "no room" in capsys.readouterr().out


def test_the_best_run_counts_and_the_first_does_not() -> None:
    calls = []

    def work() -> None:
        calls.append("work")
        until = time.process_time() + (0.02 if len(calls) < 3 else 0.0)
        while time.process_time() < until:
            pass

    assert timing.best_cpu_s(work, 3, before=lambda: calls.append("before")) < 0.02
    assert calls == ["before", "work"] * 4
