"""Opening hours: midnight, week's ends, and the two days of the year on which the clock changes."""

from __future__ import annotations

import datetime
import math
import zoneinfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire.hours import OpeningHours, Window, parse_zone

ZURICH = "Europe/Zurich"


def at(text: str, zone: str = ZURICH, fold: int = 0) -> float:
    """Seconds since the epoch of a wall's time there."""
    wall = datetime.datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo(zone), fold=fold)
    return wall.timestamp()


def spans(hours: OpeningHours, first: float, days: int) -> list[tuple[str, str]]:
    """The open intervals from a moment on, in UTC."""
    found, moment = [], first
    while (moment := hours.opens_at(moment)) < first + days * 86_400:
        end = hours.open_until(moment)
        assert end is not None
        found.append((utc(moment), utc(end)))
        moment = end
    return found


def utc(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%a %d %H:%M")


def test_nights_of_working_days_and_whole_weekends_join_where_they_touch() -> None:
    hours = OpeningHours.parse(["mon-fri 19:00-06:00", "sat-sun"], ZURICH)
    # From Thursday noon: Thursday's night; Friday's goes over into the weekend, which ends with it at midnight.
    assert spans(hours, at("2026-11-26T12:00"), 5) == [
        ("Thu 26 18:00", "Fri 27 05:00"),
        ("Fri 27 18:00", "Sun 29 23:00"),
        ("Mon 30 18:00", "Tue 01 05:00"),
    ]
    assert hours.open_until(at("2026-11-26T19:00")) == at("2026-11-27T06:00")
    assert hours.open_until(at("2026-11-27T06:00")) is None
    assert hours.open_until(at("2026-11-27T05:59:59")) == at("2026-11-27T06:00")


def test_without_windows_and_with_all_days_it_is_always_open() -> None:
    for hours in (OpeningHours(), OpeningHours.parse(["mon-sun"], ZURICH), OpeningHours.parse(["sun-sat"], "UTC")):
        assert hours.open_until(at("2026-03-29T02:30")) == math.inf
        assert hours.after(5.0, 1e7) == 5.0 + 1e7


def test_in_spring_a_time_that_is_skipped_is_the_moment_of_the_change() -> None:
    # On 29 March 2026 two o'clock is three o'clock, at 01:00 UTC.
    assert spans(OpeningHours.parse(["02:30-05:00"], ZURICH), at("2026-03-28T12:00"), 1) == [
        ("Sun 29 01:00", "Sun 29 03:00")
    ]
    assert spans(OpeningHours.parse(["01:00-02:30"], ZURICH), at("2026-03-28T12:00"), 1) == [
        ("Sun 29 00:00", "Sun 29 01:00")
    ]
    # A window that lies in the hour that doesn't exist isn't open that day.
    hours = OpeningHours.parse(["02:10-02:50"], ZURICH)
    assert hours.opens_at(at("2026-03-28T12:00")) == at("2026-03-30T02:10")
    night = OpeningHours.parse(["sat 19:00-06:00"], ZURICH)
    assert night.after(at("2026-03-28T19:00"), 10 * 3600) == at("2026-03-29T06:00"), "that night has ten hours"


def test_in_autumn_the_first_of_two_equal_times_counts() -> None:
    # On 25 October 2026 it is half past two twice, at 00:30 and at 01:30 UTC.
    assert spans(OpeningHours.parse(["01:00-02:30"], ZURICH), at("2026-10-24T12:00"), 1) == [
        ("Sat 24 23:00", "Sun 25 00:30")
    ]
    assert spans(OpeningHours.parse(["02:30-05:00"], ZURICH), at("2026-10-24T12:00"), 1) == [
        ("Sun 25 00:30", "Sun 25 04:00")
    ]
    night = OpeningHours.parse(["sat 19:00-06:00"], ZURICH)
    assert night.after(at("2026-10-24T19:00"), 12 * 3600) == at("2026-10-25T06:00"), "that night has twelve hours"


def test_days_are_those_of_the_place_and_begin_at_its_midnight() -> None:
    tokyo = OpeningHours(zone=parse_zone("Asia/Tokyo"))
    moment = at("2026-11-25T23:00", "UTC")
    assert tokyo.day(moment) == "2026-11-26"
    assert tokyo.midnight(moment) == at("2026-11-27T00:00", "Asia/Tokyo")
    # In Santiago the clock goes from midnight to one: the day begins with the change.
    santiago = OpeningHours(zone=parse_zone("America/Santiago"))
    assert santiago.midnight(at("2026-09-05T12:00", "America/Santiago")) == at("2026-09-06T04:00", "UTC")
    # On the longest day of the year midnight is 25 hours off.
    zurich = OpeningHours(zone=parse_zone(ZURICH))
    assert zurich.midnight(at("2026-10-25T00:00")) - at("2026-10-25T00:00") == 25 * 3600


def test_a_moment_is_shown_by_the_clock_of_the_place() -> None:
    hours = OpeningHours(zone=parse_zone(ZURICH))
    assert hours.shown(at("2026-11-25T19:00"), at("2026-11-25T12:00")) == "19:00"
    assert hours.shown(at("2026-11-28T19:00"), at("2026-11-25T12:00")) == "19:00 on Sat 28 Nov"


@pytest.mark.parametrize(
    ("text", "days", "start", "end"),
    [
        ("mon-fri 19:00-06:00", range(5), 1140, 1800),
        ("sat-sun", (5, 6), 0, 1440),
        ("Sat-Mon 00:00-24:00", (5, 6, 0), 0, 1440),
        ("  mon,wed-thu 08:15-09:00", (0, 2, 3), 495, 540),
        ("20:00-06:00", range(7), 1200, 1800),
        ("sun 12:00-00:00", (6,), 720, 1440),
    ],
)
def test_windows_are_read(text: str, days: range | tuple[int, ...], start: int, end: int) -> None:
    assert Window.parse(text) == Window(frozenset(days), start, end)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no window of the week"),
        ("weekdays 19:00-06:00", "names the days 'weekdays'"),
        ("mon- 19:00-06:00", "names the days 'mon-'"),
        ("mon-fri 19-06", "is no window of the week"),
        ("mon 25:00-26:00", "is no window of the week"),
        ("mon 19:00-24:30", "names the time 24:30"),
        ("mon 24:00-06:00", "begins at 24:00"),
        ("mon 19:00-19:00", "begins when it ends"),
    ],
)
def test_what_is_no_window_is_refused_with_an_example(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Window.parse(text)


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "Europe"])
def test_what_is_no_time_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no time zone of the IANA database"):
        parse_zone(name)


_MINUTE = st.integers(0, 1439)


@settings(max_examples=60, deadline=None)
@given(
    days=st.frozensets(st.integers(0, 6), min_size=1),
    start=_MINUTE,
    length=st.integers(1, 1440),
    zone=st.sampled_from([ZURICH, "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"]),
    moment=st.floats(1.7e9, 1.9e9),
    open_s=st.floats(0, 3e6),
)
def test_open_and_closed_alternate_and_open_time_adds_up(
    days: frozenset[int], start: int, length: int, zone: str, moment: float, open_s: float
) -> None:
    hours = OpeningHours((Window(days, start, start + length),), parse_zone(zone))
    opens = hours.opens_at(moment)
    closes = hours.open_until(opens)
    assert closes is not None
    assert moment <= opens < closes
    assert (hours.open_until(moment) is not None) == (opens == moment)
    if closes < math.inf:
        assert hours.open_until(closes) is None
    end = hours.after(moment, open_s)
    # Walking there in two steps comes to the same moment.
    assert hours.after(hours.after(moment, open_s / 3), open_s - open_s / 3) == pytest.approx(end, abs=1e-3)
    assert end - moment >= open_s - 1e-3
