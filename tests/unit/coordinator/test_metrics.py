"""Metrics: what is declared, what a status becomes, and what the documentation says of both."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from coordinator.metrics import METRICS, StatusCollector, metrics_of
from coordinator.status import PARTICIPANT_STATES, RUN_STATES
from protos import control_pb2 as pb
from protos import session_pb2
from wire import ConfigError, FederationConfig

NASTY = 'a"b\\c\nd'


def status() -> pb.Status:
    """A run in its third round, with a merge behind it."""
    merge = pb.MergeReport(
        rule="clip+nnm+trimmed-mean",
        tolerated=2,
        remaining=1,
        updates=[
            pb.MergedUpdate(participant="a+b+c", verdict="kept", norm=1.5, weight=0.6),
            pb.MergedUpdate(participant="d+e+f", verdict="clipped", norm=math.inf, weight=0.4),
            pb.MergedUpdate(participant="g+h+i", verdict="rejected", reason="no shape", norm=math.nan),
        ],
        warnings=["one", "two"],
    )
    budget = pb.BudgetStatus(spent=1.25, left=2.75, budget=4.0, delta=1e-5, unit="record", round=2)
    return pb.Status(
        federation="clinics",
        run_id="clinics-1",
        state="training",
        buffer_size=5,
        buffered=2,
        closed_rounds=2,
        closed_seconds=24.0,
        staleness={0: 1, 1: 2, 7: 1, 60: 1},
        round=3,
        rounds=9,
        version=2,
        model=session_pb2.Blob(digest=b"x" * 32, size=1_234),
        refusals={"quota": 3, NASTY: 1},
        participants=[
            pb.ParticipantStatus(name="a", state="training", silent_s=2.5, budget=budget),
            pb.ParticipantStatus(name="b", state="idle", certificate_expires="2030-01-01T00:00:00+00:00"),
            pb.ParticipantStatus(name="c", state="away", silent_s=70.0),
            pb.ParticipantStatus(name="d", state="away"),
            pb.ParticipantStatus(name="e", state="invited"),
        ],
        history=[
            pb.RoundStatus(round=1, version=1, seconds=10.0, weighted_loss=0.5, merge=merge),
            pb.RoundStatus(round=2, version=2, seconds=14.0, weighted_loss=0.25, merge=merge),
            pb.RoundStatus(round=3, seconds=4.0, weighted_loss=math.nan),
        ],
    )


def scraped(given: pb.Status) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples by name, then by the values of their labels in the order of their names, through the text format."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: given))
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parse(generate_latest(registry).decode()):
        for sample in family.samples:
            key = tuple(value for _, value in sorted(sample.labels.items()))
            assert key not in found.setdefault(sample.name, {})
            found[sample.name][key] = sample.value
    return found


def test_a_status_becomes_metrics_with_the_fields_names_and_units() -> None:
    found = scraped(status())
    assert found["fedloom_run_info"] == {("clinics", "clinics-1"): 1.0}
    assert found["fedloom_run_state"] == {(state,): float(state == "training") for state in RUN_STATES}
    assert (found["fedloom_round"], found["fedloom_rounds_planned"]) == ({(): 3.0}, {(): 9.0})
    assert (found["fedloom_model_version"], found["fedloom_model_size_bytes"]) == ({(): 2.0}, {(): 1_234.0})
    assert found["fedloom_round_duration_seconds_count"] == {(): 2.0}
    assert found["fedloom_round_duration_seconds_sum"] == {(): 24.0}
    assert found["fedloom_round_open_seconds"] == {(): 4.0}
    assert found["fedloom_training_loss"] == {(): 0.25}
    assert found["fedloom_refusals_total"] == {("quota",): 3.0, (NASTY,): 1.0}
    counts = {"training": 1.0, "idle": 1.0, "away": 2.0, "invited": 1.0}
    assert found["fedloom_participants"] == {(state,): counts.get(state, 0.0) for state in PARTICIPANT_STATES}
    # "d" was never connected, "e" has no certificate even.
    assert found["fedloom_participant_silence_seconds"] == {("a",): 2.5, ("b",): 0.0, ("c",): 70.0}
    assert found["fedloom_participant_certificate_expiry_timestamp_seconds"] == {("b",): 1_893_456_000.0}
    assert found["fedloom_privacy_epsilon_spent"] == {("a", "record"): 1.25}
    assert found["fedloom_privacy_epsilon_left"] == {("a", "record"): 2.75}
    assert found["fedloom_privacy_delta"] == {("a", "record"): 1e-5}


def test_buffers_are_told_with_a_histogram_of_ages() -> None:
    found = scraped(status())
    assert (found["fedloom_buffer_size"], found["fedloom_buffer_updates"]) == ({(): 5.0}, {(): 2.0})
    assert found["fedloom_update_staleness_versions_bucket"] == {
        ("0.0",): 1.0,
        ("1.0",): 3.0,
        ("2.0",): 3.0,
        ("5.0",): 3.0,
        ("10.0",): 4.0,
        ("20.0",): 4.0,
        ("50.0",): 4.0,
        ("+Inf",): 5.0,
    }
    assert found["fedloom_update_staleness_versions_count"] == {(): 5.0}
    assert found["fedloom_update_staleness_versions_sum"] == {(): 69.0}
    synchronous = status()
    synchronous.buffer_size = 0
    assert not any("buffer" in name or "staleness" in name for name in scraped(synchronous))


def test_the_last_merge_is_told_update_by_update() -> None:
    found = scraped(status())
    assert found["fedloom_merge_round"] == {(): 2.0}
    assert found["fedloom_merge_info"] == {("clip+nnm+trimmed-mean",): 1.0}
    assert found["fedloom_merge_updates"] == {("kept",): 1.0, ("clipped",): 1.0, ("rejected",): 1.0}
    assert (found["fedloom_merge_tolerated"], found["fedloom_merge_remaining"]) == ({(): 2.0}, {(): 1.0})
    assert found["fedloom_merge_warnings"] == {(): 2.0}
    assert found["fedloom_update_verdict"] == {
        ("a+b+c", "kept"): 1.0,
        ("d+e+f", "clipped"): 1.0,
        ("g+h+i", "rejected"): 1.0,
    }
    assert found["fedloom_update_norm"] == {("a+b+c",): 1.5, ("d+e+f",): math.inf}
    assert found["fedloom_update_weight"] == {("a+b+c",): 0.6, ("d+e+f",): 0.4, ("g+h+i",): 0.0}


def test_before_a_run_there_are_no_numbers_of_one() -> None:
    found = scraped(pb.Status(federation="clinics", state="preparing"))
    assert set(found) == {"fedloom_run_info", "fedloom_run_state", "fedloom_participants"}
    assert found["fedloom_run_state"][("preparing",)] == 1.0
    assert not any(found["fedloom_participants"].values())


def test_openmetrics_reads_it_too() -> None:
    """Its parser is strict: types, suffixes, labels of state sets, the order of samples."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    families = {family.name: family for family in parse_openmetrics(openmetrics(registry).decode())}
    assert list(families) == [item.name for item in METRICS]
    for item in METRICS:
        family = families[item.name]
        assert (family.type, family.documentation) == (item.kind, item.help)
        labels = {tuple(sorted(sample.labels)) for sample in family.samples}
        assert labels == {tuple(sorted(item.labels))} | ({("le",)} if item.kind == "histogram" else set())


def test_registering_asks_for_no_status() -> None:
    def never() -> pb.Status:
        raise AssertionError("no scrape, no status")

    CollectorRegistry().register(StatusCollector(never))


def test_names_are_those_that_prometheus_asks_for() -> None:
    assert len({item.name for item in METRICS}) == len(METRICS)
    for item in METRICS:
        assert re.fullmatch(r"fedloom(_[a-z]+)+", item.name)
        assert item.help.endswith(".")
        assert not item.name.endswith(("_total", "_info", "_count", "_sum"))  # the format adds them
        assert all(re.fullmatch(r"[a-z_]+", label) for label in item.labels)
    assert [family.name for family in metrics_of(status())] == [item.name for item in METRICS]


def test_the_documentation_lists_exactly_these(repository: Path) -> None:
    suffixes = {
        "counter": ("_total",),
        "info": ("_info",),
        "summary": ("_count", "_sum"),
        "histogram": ("_bucket", "_count", "_sum"),
    }
    declared = [
        [
            ", ".join(f"`{item.name}{suffix}`" for suffix in suffixes.get(item.kind, ("",))),
            item.kind,
            ", ".join(item.labels + (("le",) if item.kind == "histogram" else ())),
            item.help,
        ]
        for item in METRICS
    ]
    text = (repository / "docs" / "metrics.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    assert rows == declared
    samples = {name for row in declared for name in re.findall(r"`(\w+)`", row[0])}
    assert set(re.findall(r"\bfedloom_\w+", text.partition("## What to be told about")[2])) <= samples


@pytest.mark.parametrize(
    ("ports", "named"),
    [
        ({"port": 9_000, "metrics_port": 9_000}, "port and metrics_port are both 9000"),
        ({"enrolment_port": 9_000, "metrics_port": 9_000}, "enrolment_port and metrics_port are both 9000"),
        ({"port": 9_000, "enrolment_port": 9_000}, "port and enrolment_port are both 9000"),
    ],
)
def test_ports_differ(ports: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        FederationConfig().changed(coordinator=ports)
    assert FederationConfig().changed(coordinator={name: 0 for name in ports})
