"""A site's hours and days: what it says, what it still hands in, and a count that no restart begins anew."""

from __future__ import annotations

import datetime
import math
import zoneinfo
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paying_site import DIMENSION, MODEL_BYTES, PayingSite, outcome, said, task_id

from participant.actions import Fetch, Pause, Push, Resume, Stop, Work
from participant.rules import ScheduleRules
from participant.schedule import Meter, Schedule
from participant.site import SiteConfig
from participant.store import Day, ParticipantStore, TaskState
from privacy.ledger import Phase
from protos import session_pb2 as pb
from wire import ConfigError, OpeningHours, ResourceError, validate

ZURICH = "Europe/Zurich"
ROUND = MODEL_BYTES + 4 * DIMENSION
NIGHTS = OpeningHours.parse(["mon-fri 19:00-06:00", "sat-sun"], ZURICH)

Open = Callable[..., PayingSite]


def at(text: str) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo(ZURICH)).timestamp()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Open]:
    made: list[PayingSite] = []

    def build(now: str, **rules: Any) -> PayingSite:
        placement = rules.pop("placement", "off")
        built = PayingSite(tmp_path, ScheduleRules(**rules), placement)
        built.now = at(now)
        made.append(built)
        return built

    yield build
    for item in made:
        item.close()


def availability(actions: list[Any]) -> tuple[float, str, bool]:
    (message,) = said(actions, "availability")
    return message.away_s, message.reason, message.working


# --- hours ------------------------------------------------------------------------------------------------------------


def test_outside_its_hours_it_says_until_when_before_it_says_that_it_is_ready(site: Open) -> None:
    ward = site("2026-11-25T12:00", hours=NIGHTS)
    actions = ward.ready()
    kinds = [action.message.WhichOneof("body") for action in actions]
    assert kinds == ["availability", "ready"]
    assert availability(actions) == (7 * 3600, "hours", False)
    # A coordinator that asks all the same is told again, and nothing begins.
    assert availability(ward.asked()) == (7 * 3600, "hours", False)
    assert ward.store.get(task_id(0)) is None
    assert ward.agent.task_id == ""
    ward.now = at("2026-11-25T18:59:59")
    assert ward.agent.tick() == []
    ward.now = at("2026-11-25T19:00")
    assert availability(ward.agent.tick()) == (0, "", False)
    assert isinstance(ward.asked()[0], Fetch)


def test_a_training_is_finished_and_handed_in_when_the_window_ends(site: Open) -> None:
    ward = site("2026-11-26T05:59", hours=NIGHTS)
    ward.ready()
    (fetch,) = ward.asked()
    (work,) = ward.agent.fetched(fetch.job)
    ward.now = at("2026-11-26T06:00")
    assert availability(ward.agent.tick()) == (13 * 3600, "hours", True)
    assert ward.agent.tick() == [], "said once"
    (push,) = ward.agent.worked(work.job, outcome(0))
    assert push == Push(task_id(0), outcome(0).digest, 4 * DIMENSION)
    ward.agent.pushed(task_id(0))
    ward.receipt()
    assert ward.state() is TaskState.RECEIPTED
    assert availability(ward.asked(base=1)) == (13 * 3600, "hours", False)


def test_what_is_trained_is_handed_in_outside_the_hours_also_after_a_restart(site: Open) -> None:
    ward = site("2026-11-26T05:59", hours=NIGHTS)
    ward.ready()
    ward.trains()
    ward.now = at("2026-11-26T08:00")
    ward.restart()
    ward.ready()
    assert ward.asked() == [Push(task_id(0), bytes([1, 0]) * 16, 4 * DIMENSION)]


def test_a_training_is_paused_when_the_window_ends_and_goes_on_with_the_next(site: Open) -> None:
    ward = site("2026-11-26T05:59", hours=NIGHTS, pause=True)
    ward.ready()
    (fetch,) = ward.asked()
    (work,) = ward.agent.fetched(fetch.job)
    ward.now = at("2026-11-26T06:00")
    actions = ward.agent.tick()
    assert actions[0] == Pause(task_id(0))
    assert availability(actions) == (13 * 3600, "hours", False), "nobody shall wait for it"
    # Asked again after a reconnection, it says so again, and the training isn't lost.
    assert availability(ward.asked()) == (13 * 3600, "hours", False)
    ward.now = at("2026-11-26T19:00")
    actions = ward.agent.tick()
    assert actions[0] == Resume(task_id(0))
    assert availability(actions) == (0, "", False)
    assert isinstance(ward.agent.worked(work.job, outcome(0))[0], Push)


def test_a_window_that_ended_during_the_download_pauses_the_training_at_its_beginning(site: Open) -> None:
    ward = site("2026-11-26T05:59", hours=NIGHTS, pause=True)
    ward.ready()
    (fetch,) = ward.asked()
    ward.now = at("2026-11-26T06:30")
    work, pause, *_ = ward.agent.fetched(fetch.job)
    assert isinstance(work, Work)
    assert pause == Pause(task_id(0))


def test_a_paused_training_that_is_called_off_is_put_down(site: Open) -> None:
    ward = site("2026-11-26T05:59", hours=NIGHTS, pause=True)
    ward.ready()
    (fetch,) = ward.asked()
    ward.agent.fetched(fetch.job)
    ward.now = at("2026-11-26T06:00")
    ward.agent.tick()
    ward.agent.received(pb.FromCoordinator(cancel=pb.Cancel(task_id=task_id(0), reason="deadline")))
    ward.now = at("2026-11-26T19:00")
    assert availability(ward.agent.tick()) == (0, "", False)
    assert isinstance(ward.asked(base=1)[0], Fetch)


def test_before_a_window_ends_no_secure_round_is_begun_that_would_have_to_stop_in_the_middle(tmp_path: Path) -> None:
    store = ParticipantStore(tmp_path / "journal.sqlite")
    now = at("2026-11-26T05:30")
    schedule = Schedule(ScheduleRules(hours=NIGHTS, pause=True), store, lambda: now)
    assert schedule.absence(0, takes_s=1_000.0) is None
    late = schedule.absence(0, takes_s=3_600.0)
    assert late is not None
    assert (late.until_s, late.reason) == (at("2026-11-26T19:00"), "hours")
    # What takes longer than the next window, too, is begun.
    now = at("2026-11-26T20:00")
    assert schedule.absence(0, takes_s=1e6) is None
    store.close()


# --- days -------------------------------------------------------------------------------------------------------------


def test_the_rounds_of_a_day_are_counted_before_they_begin_and_no_restart_begins_the_day_anew(site: Open) -> None:
    ward = site("2026-11-25T12:00", hours=OpeningHours(zone=zoneinfo.ZoneInfo(ZURICH)), max_rounds_a_day=2)
    ward.ready()
    assert isinstance(ward.asked(base=0)[0], Fetch)
    assert ward.store.day("2026-11-25") == Day(rounds=1)
    ward.restart()
    ward.ready()
    # The same training begun again isn't another one.
    assert isinstance(ward.asked(base=0)[0], Fetch)
    ward.trains(base=1)
    ward.receipt(base=1)
    assert ward.store.day("2026-11-25") == Day(rounds=2)
    assert availability(ward.asked(base=2)) == (12 * 3600, "rounds", False)
    ward.restart()
    assert availability(ward.ready()) == (12 * 3600, "rounds", False)
    # What was begun may be finished.
    assert isinstance(ward.asked(base=1)[0], Push)
    ward.now = at("2026-11-26T00:00")
    assert availability(ward.agent.tick()) == (0, "", False)
    assert isinstance(ward.asked(base=2)[-1], Fetch)


def test_at_midnight_it_waits_for_its_hours(site: Open) -> None:
    hours = OpeningHours.parse(["08:00-18:00"], ZURICH)
    ward = site("2026-11-25T12:00", hours=hours, max_rounds_a_day=1)
    ward.ready()
    ward.trains()
    ward.receipt()
    assert availability(ward.agent.tick()) == (20 * 3600, "rounds", False)


def test_where_a_round_does_not_fit_into_what_is_left_of_the_bytes_it_is_away_until_midnight(site: Open) -> None:
    hours = OpeningHours(zone=zoneinfo.ZoneInfo(ZURICH))
    ward = site("2026-11-25T12:00", hours=hours, max_bytes_a_day=2 * ROUND)
    ward.ready()
    (fetch,) = ward.asked()
    ward.agent.schedule.spend("received", ROUND)
    assert ward.agent.tick() == []
    ward.agent.schedule.spend("received", 1)
    # Less than a round is left; the one in hand is finished.
    assert availability(ward.agent.tick()) == (12 * 3600, "bytes", True)
    (work,) = ward.agent.fetched(fetch.job)
    assert isinstance(ward.agent.worked(work.job, outcome(0))[0], Push)


def test_an_update_that_is_too_large_for_the_rest_of_the_day_is_kept_and_not_paid_for_yet(site: Open) -> None:
    hours = OpeningHours(zone=zoneinfo.ZoneInfo(ZURICH))
    ward = site("2026-11-25T12:00", hours=hours, max_bytes_a_day=2 * ROUND, placement="local")
    ward.ready()
    (fetch,) = ward.asked()
    (work,) = ward.agent.fetched(fetch.job)
    ward.agent.schedule.spend("sent", 2 * ROUND - 1)  # a coordinator that had things sent again and again
    assert availability(ward.agent.worked(work.job, outcome(0))) == (12 * 3600, "bytes", False)
    assert (ward.state(), ward.phase()) == (TaskState.TRAINED, Phase.RESERVED)
    ward.now = at("2026-11-26T00:00")
    assert availability(ward.agent.tick())[0] == 0
    assert isinstance(ward.asked()[0], Push)
    assert ward.phase() is Phase.CHARGED


def test_a_transfer_is_counted_before_it_moves_and_what_did_not_move_is_taken_off(tmp_path: Path) -> None:
    store = ParticipantStore(tmp_path / "journal.sqlite")
    rules = ScheduleRules(hours=NIGHTS, max_bytes_a_day=1_000)
    schedule = Schedule(rules, store, lambda: at("2026-11-25T12:00"))

    def counted() -> int:
        return store.day("2026-11-25").received

    meter = schedule.meter("received")
    meter.before(600)
    assert counted() == 600
    meter.moved(200, 600)  # and then the connection broke: of 200 bytes that are here 150 were kept
    meter.before(450)
    assert counted() == 650
    meter.moved(600, 600)
    meter.close()
    assert counted() == 650, "what was moved twice counts twice"
    meter = schedule.meter("received")
    meter.before(300)
    meter.moved(100, 300)
    meter.close()
    assert counted() == 750
    # A process that is killed in a transfer has counted all of it.
    Meter(schedule, "received").before(250)
    with pytest.raises(ResourceError) as refused:
        schedule.meter("sent").before(1)
    assert refused.value.code == "day-over"
    assert store.day("2026-11-25") == Day(received=1_000)
    store.close()


def test_a_site_that_allows_less_than_a_round_a_day_leaves_and_names_the_setting(site: Open) -> None:
    ward = site("2026-11-25T12:00", hours=NIGHTS, max_bytes_a_day=ROUND - 1)
    (stop,) = ward.ready()
    assert isinstance(stop, Stop)
    assert stop.error.code == "policy"
    assert "max_bytes_a_day in [schedule]" in stop.error.hint


def test_a_training_that_its_budget_refuses_is_no_round_of_the_day(site: Open) -> None:
    hours = OpeningHours(zone=zoneinfo.ZoneInfo(ZURICH))
    ward = site("2026-11-25T12:00", hours=hours, max_rounds_a_day=2, placement="local")
    ward.ready()
    ward.ledger.open_dataset("ward", records=1_000, unit=_unit(ward), epsilon=1e-6, delta=1e-5)
    (declined,) = said(ward.asked(), "declined")
    assert declined.code == "budget-exhausted"
    assert ward.store.day("2026-11-25") == Day()


# --- what the administrator sees --------------------------------------------------------------------------------------


def test_what_is_left_of_the_day_is_said_for_people_and_programs(tmp_path: Path) -> None:
    store = ParticipantStore(tmp_path / "journal.sqlite")
    rules = ScheduleRules(hours=NIGHTS, max_rounds_a_day=3, max_bytes_a_day=1_000)
    schedule = Schedule(rules, store, lambda: at("2026-11-25T12:00"))
    schedule.begin()
    schedule.spend("sent", 250)
    assert schedule.today() == {
        "time_zone": ZURICH,
        "day": "2026-11-25",
        "away_until": "19:00",
        "away_reason": "hours",
        "open_until": None,
        "rounds": 1,
        "rounds_left": 2,
        "bytes": 250,
        "bytes_left": 750,
    }
    store.close()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"hours": ["mon-fry 19:00-06:00"], "time_zone": ZURICH}, '[schedule.hours] #1 = "mon-fry 19:00-06:00": names'),
        ({"hours": ["mon 19:00-06:00"]}, "time_zone is missing: whose hours"),
        ({"max_rounds_a_day": 2}, "time_zone is missing: whose hours"),
        ({"time_zone": "Mars/Olympus"}, '[schedule] time_zone = "Mars/Olympus": is no time zone'),
        ({"at_the_end": "pause"}, "does nothing without hours"),
        ({"max_bytes_a_day": -1}, "[schedule] max_bytes_a_day = -1: must be at least 0"),
    ],
)
def test_mistakes_in_the_configuration_are_named_with_their_field(table: dict[str, object], said: str) -> None:
    base = {"session_address": "a:1", "enrolment_address": "a:2", "root": "ab" * 32, "data": "x"}
    with pytest.raises(ConfigError) as error:
        validate(SiteConfig, {**base, "schedule": table}, "participant.toml")
    assert said in error.value.message


def test_a_site_without_rules_is_always_there_and_counts_nothing(site: Open) -> None:
    ward = site("2026-11-25T12:00")
    assert said(ward.ready(), "availability") == []
    ward.trains()
    ward.agent.schedule.spend("sent", 10**12)
    assert ward.store.day("2026-11-25") == Day()
    assert ward.agent.schedule.absence(10**15) is None
    assert ScheduleRules().hours.open_until(0.0) == math.inf


def _unit(ward: PayingSite) -> Any:
    return ward.ledger.book().data["ward"].unit
