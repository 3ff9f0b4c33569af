"""The record's JSON: strict, complete, and suspicious of what it reads."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import report_sample
from hypothesis import given
from hypothesis import strategies as st

from simulation.report import Metric, Participation, Picture, Round, RunRecord
from wire.errors import DataError


def tampered(change: Any) -> str:
    """The sample's JSON after ``change`` was applied to its table."""
    table = json.loads(report_sample.make_record(rounds=2, queries=1).to_json())
    change(table)
    return json.dumps(table)


def test_round_trip_keeps_everything() -> None:
    record = report_sample.make_record()
    assert RunRecord.from_json(record.to_json()) == record
    assert RunRecord.from_json(record.to_json().encode()) == record


def test_format_comes_with_the_record() -> None:
    assert json.loads(report_sample.make_record(rounds=1).to_json())["format"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_a_number_is_null_and_back(value: float) -> None:
    entry = Round(number=1, version=1, participants=(Participation(name="a", metrics={"loss": value}),))
    record = dataclasses.replace(report_sample.make_record(rounds=1), rounds=(entry,), wall_seconds=value)
    text = record.to_json()
    assert json.loads(text)["rounds"][0]["participants"][0]["metrics"] == {"loss": None}
    back = RunRecord.from_json(text)
    assert math.isnan(back.rounds[0].participants[0].metrics["loss"])
    assert math.isnan(back.wall_seconds)


def test_config_may_hold_any_plain_value() -> None:
    config = {"a": [1, None, {"b": math.nan}], "path": Path("x/y"), 3: True}
    record = dataclasses.replace(report_sample.make_record(rounds=1), config=config)
    assert RunRecord.from_json(record.to_json()).config == {"a": [1, None, {"b": None}], "path": "x/y", "3": True}


@given(st.floats(), st.text(max_size=30), st.integers(min_value=0, max_value=2**40))
def test_round_trip_of_arbitrary_values(number: float, text: str, amount: int) -> None:
    record = dataclasses.replace(
        report_sample.make_record(institutions=1, rounds=1, queries=0),
        title=text,
        virtual_seconds=number,
        versions={text: text},
        model=report_sample.Model(digest=text, parameters=amount, version=amount),
    )
    back = RunRecord.from_json(record.to_json())
    assert (back.title, back.versions, back.model) == (text, {text: text}, record.model)
    assert back.virtual_seconds == number or (math.isnan(back.virtual_seconds) and not math.isfinite(number))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.update(format=2), "format 2"),
        (lambda t: t.pop("format"), "format None"),
        (lambda t: t.pop("federation"), "'federation'"),
        (lambda t: t.update(colour="red"), "'colour'"),
        (lambda t: t.update(title=7), "record.title"),
        (lambda t: t.update(rounds={}), "record.rounds"),
        (lambda t: t.update(final=[]), "record.final"),
        (lambda t: t["rounds"][1].update(seconds="soon"), "record.rounds[1].seconds"),
        (lambda t: t["rounds"][0].update(number=True), "record.rounds[0].number"),
        (lambda t: t["rounds"][0].update(version=-1), "record.rounds[0].version"),
        (lambda t: t["rounds"][0]["participants"].append(3), "record.rounds[0].participants[4]"),
        (lambda t: t["model"].update(parameters=1.5), "record.model.parameters"),
        (lambda t: t["model"].update(parameters=10**30), "record.model.parameters"),
        (lambda t: t.update(wall_seconds=10**400), "record.wall_seconds"),
        (lambda t: t["headline_metric"].update(better="more"), "record.headline_metric.better"),
        (lambda t: t["gallery"][0]["pictures"][0].update(correct="yes"), ".correct"),
        (lambda t: t["final"].update(Twemoji={"missing_r1": "high"}), "record.final.Twemoji.missing_r1"),
        (lambda t: t["gallery"][0]["pictures"][0].update(png="not base64!"), "base64 of a PNG"),
    ],
)
def test_what_is_wrong_is_named(change: Any, named: str) -> None:
    with pytest.raises(DataError) as caught:
        RunRecord.from_json(tampered(change))
    assert named in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": NaN}', "[" * 100_000, b"\xff\xfe\x00"])
def test_what_is_not_a_record_is_refused(text: str | bytes) -> None:
    with pytest.raises(DataError):
        RunRecord.from_json(text)


@pytest.mark.parametrize(
    "png",
    [
        "",
        "AAAA",
        'x" onerror="alert(1)',
        base64.b64encode(b"<svg onload='alert(1)'>").decode(),
        base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(5 * 1024 * 1024)).decode(),
    ],
)
def test_a_picture_is_a_png_of_bounded_size(png: str) -> None:
    with pytest.raises(DataError, match="base64 of a PNG"):
        Picture(png=png, caption="cat")


def test_metric_defaults_to_a_fraction_that_should_rise() -> None:
    metric = Metric(name="accuracy", label="accuracy")
    assert (metric.better, metric.unit) == ("higher", "fraction")
