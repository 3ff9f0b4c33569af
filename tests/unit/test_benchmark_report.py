"""The report that every benchmark ends with."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from benchmarks.report import Report, Row, machine, versions


def row(**changes: object) -> Row:
    fields = {"case": "4 x 10 M", "metric": "time", "value": 0.25, "unit": "s", "better": "lower", **changes}
    return Row(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("better", "value", "target", "met"),
    [
        ("lower", 0.25, 0.3, True),
        ("lower", 0.3, 0.3, True),
        ("lower", 0.31, 0.3, False),
        ("higher", 0.31, 0.3, True),
        ("higher", 0.29, 0.3, False),
        ("higher", float("nan"), 0.3, False),
        ("lower", float("nan"), 0.3, False),
        ("lower", 0.25, None, None),
    ],
)
def test_met_follows_from_value_and_target(better: str, value: float, target: float | None, met: bool | None) -> None:
    assert row(better=better, value=value, target=target).met is met


def test_json_has_the_agreed_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("kernels")
    report.add(row(target=0.3, peer="flwr 1.42", ratio=52.0))
    report.add(row(value=float("nan")))
    report.finish(tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written) == ["name", "date", "machine", "versions", "rows"]
    assert written["name"] == "kernels"
    assert datetime.datetime.fromisoformat(written["date"]).utcoffset() == datetime.timedelta(0)
    assert written["rows"] == [
        {
            "case": "4 x 10 M",
            "metric": "time",
            "value": 0.25,
            "unit": "s",
            "better": "lower",
            "target": 0.3,
            "met": True,
            "peer": "flwr 1.42",
            "ratio": 52.0,
        },
        {
            "case": "4 x 10 M",
            "metric": "time",
            "value": None,
            "unit": "s",
            "better": "lower",
            "target": None,
            "met": None,
            "peer": None,
            "ratio": None,
        },
    ]
    printed = capsys.readouterr().out
    assert "benchmarks.kernels" in printed
    assert "4 x 10 M  time    0.25 s  <= 0.3  yes  flwr 1.42 x 52" in printed


def test_without_a_path_only_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("empty")
    report.finish(None)
    assert "case  metric  value  target  met  against" in capsys.readouterr().out


def test_machine_and_versions_are_stated() -> None:
    here = machine()
    assert set(here) == {"processor", "cores", "memory_gb", "system"}
    assert int(here["cores"]) >= 1
    found = versions()
    assert found["python"].startswith("3.")
    assert "numpy" in found
