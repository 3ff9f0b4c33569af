"""Numbers and names as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.report import Metric, wording

SHARE = Metric(name="r1", label="recall")
LOSS = Metric(name="loss", label="loss", better="lower", unit="")
POWER = Metric(name="w", label="power", unit="W")
THIN = "\u202f"


@pytest.mark.parametrize(
    ("value", "metric", "shown"),
    [
        (0.5234, SHARE, f"52.3{THIN}%"),
        (-0.01, SHARE, f"−1.0{THIN}%"),
        (0.6, LOSS, "0.600"),
        (12.3456, LOSS, "12.3"),
        (1234.5, LOSS, "1,234.5"),
        (0.0, LOSS, "0"),
        (3.5, POWER, f"3.50{THIN}W"),
        (math.nan, SHARE, "–"),
        (math.inf, LOSS, "–"),
    ],
)
def test_number(value: float, metric: Metric, shown: str) -> None:
    assert wording.number(value, metric) == shown


def test_differences() -> None:
    assert wording.signed(0.382, SHARE) == "+38.2 points"
    assert wording.signed(-0.01, SHARE) == "−1.0 point"
    assert wording.signed(-0.25, LOSS) == "−0.250"
    assert wording.signed(math.nan, SHARE) == wording.difference(math.nan, LOSS) == "–"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (4.25, "4.2 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (90_000, "1 d 1 h")],
)
def test_duration(seconds: float, shown: str) -> None:
    assert wording.duration(seconds).replace(THIN, " ") == shown


def test_duration_of_nothing_known() -> None:
    assert wording.duration(math.nan) == "–"


@pytest.mark.parametrize(
    ("rank", "shown"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (13, "13th"), (22, "22nd"), (111, "111th")],
)
def test_ordinal(rank: int, shown: str) -> None:
    assert wording.ordinal(rank) == shown


def test_amounts() -> None:
    assert wording.plural(1, "institution") == "one institution"
    assert wording.plural(4, "institution") == "four institutions"
    assert wording.plural(1300, "site") == f"1{THIN}300 sites"
    assert wording.large(1_214_336) == f"1.21{THIN}million"
    assert wording.large(7_000_000_000) == f"7{THIN}billion"
    assert wording.large(999) == "999"


def test_moment() -> None:
    assert wording.moment("2026-11-23T09:14:00Z") == "23 November 2026, 09:14 UTC"
    assert wording.moment("2026-11-23T09:14:00+02:00") == "23 November 2026, 09:14 UTC+02:00"
    assert wording.moment("yesterday") == "yesterday"


def test_flat_keeps_order_and_shows_json() -> None:
    table = {"b": {"x": 1, "y": {"z": [True, None]}}, "a": "text", "empty": {}}
    assert list(wording.flat(table)) == [("b.x", "1"), ("b.y.z", "[true, null]"), ("a", '"text"'), ("empty", "{}")]


def test_clean_removes_what_breaks_a_line() -> None:
    assert wording.clean("a\nb\t c\x00d\u2028e") == "a b c d e"
    assert wording.clean("safe\u202etxt.exe") == "safetxt.exe"
    assert wording.clean("x" * 50, 10) == "x" * 9 + "…"
    assert wording.clean("\ud800") == "?"
    assert wording.sentence("recall at 1") == "Recall at 1"


@given(st.text(), st.integers(min_value=1, max_value=100))
def test_clean_is_bounded_and_idempotent(text: str, limit: int) -> None:
    once = wording.clean(text, limit)
    assert len(once) <= limit
    assert "\n" not in once
    assert wording.clean(once, limit) == once
