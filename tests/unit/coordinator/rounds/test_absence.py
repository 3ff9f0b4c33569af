"""Participants that are connected and take no tasks for a while, by their own word: nobody waits, nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asynchronous_world import AsynchronousWorld
from sites_world import SitesWorld

from coordinator.rounds import (
    BeginMerge,
    CancelTask,
    Contribution,
    Decision,
    IssueTask,
    RunState,
    SendReceipt,
    SynchronousRounds,
)
from coordinator.rounds.tasks import task_id
from participant.rules import ScheduleRules, SiteRules
from wire import OpeningHours, RoundsSpec

DEADLINE_S = 100.0


class Sync:
    """A synchronous run of a, b and c."""

    def __init__(self, **changes: Any) -> None:
        values = {"count": 3, "min_participants": 2, "min_updates": 2, "deadline_s": DEADLINE_S, "evaluate_every": 0}
        self.machine = SynchronousRounds("run", RoundsSpec.model_validate({**values, **changes}), RunState())

    def submit(self, name: str, number: int, at_s: float, attempt: int = 1) -> Decision:
        update = Contribution(participant=name, digest="ab" * 32, examples=10)
        return self.machine.submitted(name, task_id("run", number, attempt, name), update, {}, {}, at_s)


def tasks(decision: Decision) -> list[tuple[str, str]]:
    return [(item.participant, item.task_id) for item in decision.effects if isinstance(item, IssueTask)]


def outcomes(machine: SynchronousRounds) -> dict[str, str]:
    return {name: seat.outcome for name, seat in machine.state.rounds[-1].seats.items()}


# --- synchronous rounds ----------------------------------------------------------------------------------------------


def test_a_round_does_not_seat_who_is_away_for_longer_than_its_deadline() -> None:
    run = Sync()
    run.machine.absent("c", 0.0 + DEADLINE_S, "hours", 0.0, working=True)
    assert "1 of at least 2 are ready. Away by their own rules: c." in (
        run.machine.available("a", 0.0) and run.machine.waiting_for()
    )
    run.machine.available("b", 0.0)
    assert outcomes(run.machine) == {"a": "pending", "b": "pending"}
    assert run.machine.present() == {"a", "b", "c"}, "it is told of versions all the same"


def test_who_is_back_in_good_time_has_a_seat_and_gets_its_task_then() -> None:
    run = Sync()
    run.machine.absent("c", 50.0, "rounds", 0.0, working=True)
    run.machine.available("a", 0.0)
    assert outcomes(run.machine) == {"a": "pending", "c": "pending"}
    run.submit("a", 1, 10.0)
    # It says once more that it is away, as after a reconnection: it is waited for until the round closes.
    assert run.machine.absent("c", 50.0, "rounds", 20.0, working=False).facts == []
    assert tasks(run.machine.available("c", 50.0)) == [("c", "run/1.1/c")]
    assert any(isinstance(item, BeginMerge) for item in run.submit("c", 1, 60.0).effects)


def test_nobody_is_seated_alone_while_all_are_away() -> None:
    run = Sync(min_participants=1, min_updates=1)
    run.machine.absent("c", 50.0, "hours", 0.0, working=True)
    assert run.machine.tick(10.0).facts == []
    assert run.machine.state.rounds == []


def test_a_paused_training_holds_up_nobody_and_goes_on_with_the_same_task() -> None:
    run = Sync(min_participants=3, min_updates=3)
    for name in ("a", "b", "c"):
        run.machine.available(name, 0.0)
    run.machine.absent("c", 1_000.0, "hours", 10.0, working=False)
    assert outcomes(run.machine)["c"] == "away"
    # The round needs three, and goes on; when c is back, it is the training that it has in hand.
    decision = run.machine.available("c", 60.0)
    assert tasks(decision) == [("c", "run/1.1/c")]
    assert outcomes(run.machine)["c"] == "pending"


def test_the_round_closes_without_who_paused_as_soon_as_all_others_are_there() -> None:
    run = Sync()
    for name in ("a", "b"):
        run.machine.available(name, 0.0)
    run.machine.absent("b", 1_000.0, "hours", 10.0, working=False)
    run.machine.available("c", 11.0)
    run.submit("a", 1, 12.0)
    assert run.machine.became_of("b", "run/1.1/b").effects == [], "it may still be wanted"
    decision = run.submit("c", 1, 13.0)
    assert any(isinstance(item, BeginMerge) for item in decision.effects)
    # What b has paused is of no more use: it is told, and pays nothing for it.
    assert [item.participant for item in decision.effects if isinstance(item, CancelTask)] == ["b"]
    (receipt,) = run.machine.became_of("b", "run/1.1/b").effects
    assert isinstance(receipt, SendReceipt)
    assert (receipt.accepted, receipt.code) == (False, "task-closed")


def test_who_goes_on_working_is_waited_for_and_gets_no_further_seat() -> None:
    run = Sync()
    for name in ("a", "b"):
        run.machine.available(name, 0.0)
    run.machine.absent("b", 1_000.0, "rounds", 10.0, working=True)
    run.machine.available("c", 11.0)
    run.submit("a", 1, 12.0)
    assert outcomes(run.machine)["b"] == "pending"
    # A reconnection asks again for what it owes.
    assert tasks(run.machine.recall("b", 13.0)) == [("b", "run/1.1/b")]
    (order,) = [item for item in run.submit("b", 1, 14.0).effects if isinstance(item, BeginMerge)]
    run.machine.committed(order, "cd" * 32, 100, 15.0)
    assert sorted(outcomes(run.machine)) == ["a", "c"]
    # At its deadline nobody who is away is asked.
    run.machine.gone("c", "vanished", "", 16.0)
    assert tasks(run.machine.tick(200.0)) == []


def test_an_announcement_is_no_promise_a_deadline_ends_it() -> None:
    run = Sync(min_updates=1)
    for name in ("a", "b"):
        run.machine.available(name, 0.0)
    run.machine.absent("b", 1e9, "hours", 1.0, working=True)
    run.submit("a", 1, 2.0)
    decision = run.machine.tick(DEADLINE_S)
    assert [item.participant for item in decision.effects if isinstance(item, CancelTask)] == ["b"]


def test_a_lapsed_lease_forgets_that_it_was_away() -> None:
    run = Sync()
    run.machine.absent("c", 1e9, "hours", 0.0, working=True)
    run.machine.gone("c", "vanished", "", 1.0)
    assert run.machine.away == {}
    assert run.machine.present() == frozenset()


# --- asynchronous rounds ---------------------------------------------------------------------------------------------


def test_an_asynchronous_run_gives_no_task_to_who_is_away_and_the_same_one_when_it_is_back() -> None:
    world = AsynchronousWorld(min_participants=2)
    world.join("a", "b")
    first = world.tasks["b"]
    world.absent("b", 1_000.0)
    assert world.in_training() == {"a": 0}
    world.submit("a")
    world.merge()
    assert world.in_training() == {"a": 1}
    assert world.machine.became_of("b", first.task_id).effects == [], "it gets the same task again"
    world.back("b")
    assert world.tasks["b"].task_id == first.task_id
    assert world.in_training() == {"a": 1, "b": 0}
    world.submit("b")
    assert world.machine.state.rounds[-1].staleness("b") == 1, "counted by the coordinator, whatever b said"
    world.check()


def test_who_finishes_its_training_while_it_is_away_is_merged_and_gets_no_further_task() -> None:
    world = AsynchronousWorld(min_participants=2)
    world.join("a", "b")
    world.absent("b", 1_000.0, working=True)
    assert world.in_training() == {"a": 0, "b": 0}
    world.submit("a")
    world.submit("b")
    order = world.merge()
    assert [item.participant for item in order.contributions] == ["a", "b"]
    assert world.in_training() == {"a": 1}
    world.back("b")
    assert world.in_training() == {"a": 1, "b": 1}


def test_whoever_is_away_does_not_begin_a_run_and_does_not_count_as_concurrent() -> None:
    world = AsynchronousWorld(min_participants=3, buffer_size=2)
    world.join("a", "b")
    world.absent("c", 1_000.0)
    assert world.machine.state.rounds == []
    world.join("d")
    world.submit("a")
    world.submit("b")
    assert world.merge().step_scale == pytest.approx(2 / 3)


def test_a_task_that_became_too_old_is_called_off_when_its_site_connects_again() -> None:
    world = AsynchronousWorld(min_participants=2, buffer_size=1, count=9, max_staleness=1)
    world.join("a", "b")
    for _ in range(2):
        world.submit("a")
        world.merge()
    world.join("b")
    assert [(item.participant, item.reason) for item in world.cancelled] == [("b", "update-stale")]
    assert world.in_training() == {"a": 2, "b": 2}


# --- secure sums: whole sites ----------------------------------------------------------------------------------------


def closes(world: SitesWorld, after_s: float) -> ScheduleRules:
    """Open until so many seconds from now, and again the next day."""
    minute = int(world.now + after_s) // 60 % 1440
    start = (minute - 600) % 1440
    window = f"{start // 60:02}:{start % 60:02}-{minute // 60:02}:{minute % 60:02}"
    return ScheduleRules(hours=OpeningHours.parse([window], "UTC"), pause=True)


def with_hours(folder: Path, after_s: float, **rounds: Any) -> SitesWorld:
    """Five sites, of which the fourth closes; four begin a round."""
    table = {"count": 2, "min_participants": 4, "min_updates": 3, **rounds}
    world = SitesWorld(folder, 5, rounds=table)
    site = world.sites["site-3"]
    site.rules = SiteRules(schedule=closes(world, after_s))
    site.restart()
    world.queue.clear()
    return world


def survivors(world: SitesWorld, number: int) -> tuple[str, ...]:
    revealed = world.hub.machine.state.rounds[number - 1].revealed
    assert revealed is not None
    return revealed.survivors


def test_a_secure_round_is_made_without_who_is_away_and_needs_no_deadline_for_it(tmp_path: Path) -> None:
    world = with_hours(tmp_path, 60.0)
    world.slow.add("site-3")
    world.connect("site-0", "site-1", "site-2", "site-3")
    world.now += 120.0
    site = world.sites["site-3"]
    site.perform(site.agent.tick())
    world.settle()
    world.connect("site-4")
    assert survivors(world, 1) == ("site-0", "site-1", "site-2")
    assert survivors(world, 2) == ("site-0", "site-1", "site-2", "site-4")
    assert world.hub.machine.state.finished is not None
    assert world.now < 1_000_200.0, "no time had to pass"
    seat = world.hub.machine.state.rounds[0].seats["site-3"]
    assert (seat.outcome, seat.code) == ("away", "hours")
    # It was asked for nothing in the second round, and was told of the run's end.
    assert "site-3" not in world.hub.machine.state.rounds[1].seats
    assert site.store.open_tasks(world.plan.run_id) == []
    world.close()


def test_who_has_trained_when_its_hours_end_is_in_the_sum(tmp_path: Path) -> None:
    world = with_hours(tmp_path, 60.0, count=1)
    world.slow.add("site-0")
    world.connect("site-0", "site-1", "site-2", "site-3")
    world.now += 120.0
    site = world.sites["site-3"]
    site.perform(site.agent.tick())
    world.settle()
    assert world.hub.machine.away.keys() == {"site-3"}
    world.sites["site-0"].work(_job(world, "site-0"))
    world.settle()
    assert survivors(world, 1) == ("site-0", "site-1", "site-2", "site-3")
    world.close()


def _job(world: SitesWorld, name: str) -> Any:
    job = world.sites[name].agent._active
    assert job is not None
    return job
