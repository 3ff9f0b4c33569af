"""Asynchronous rounds: buffers, staleness, deadlines, crashes, and equality with synchronous rounds."""

from __future__ import annotations

from typing import Any

import pytest
from asynchronous_world import AsynchronousWorld, digest_of, spec

from coordinator.rounds import (
    AnnounceFinish,
    AsyncRounds,
    BeginMerge,
    Contribution,
    Decision,
    IssueTask,
    RunState,
    SendReceipt,
    SynchronousRounds,
    WakeAt,
    from_row,
)
from coordinator.rounds.tasks import attempt_seed
from privacy.ledger import BUDGET_EXHAUSTED
from wire import RefusedError, RoundsSpec


def started(**changes: object) -> AsynchronousWorld:
    """Three sites that train from version 0, a buffer of two."""
    world = AsynchronousWorld(**changes)
    world.join("a", "b", "c")
    return world


def weights(order: BeginMerge) -> list[tuple[str, int]]:
    return [(item.participant, item.staleness) for item in order.contributions]


def test_everyone_begins_at_once_as_soon_as_enough_are_there() -> None:
    world = AsynchronousWorld()
    world.join("a", "b")
    assert world.in_training() == {}
    world.join("c")
    assert world.in_training() == {"a": 0, "b": 0, "c": 0}
    world.join("d")
    assert world.in_training()["d"] == 0, "who comes later doesn't wait for the others"


def test_a_full_buffer_is_merged_and_only_those_in_it_begin_anew() -> None:
    world = started()
    world.submit("b")
    assert world.waiting == []
    assert world.in_training() == {"a": 0, "c": 0}, "one place in a buffer each, and no second training from a version"
    world.submit("a")
    order = world.merge()
    assert weights(order) == [("a", 0), ("b", 0)]
    assert order.step_scale == pytest.approx(2 / 3), "K = 2 of a concurrency of 3"
    assert world.in_training() == {"a": 1, "b": 1, "c": 0}


def test_staleness_is_counted_from_the_task_that_was_issued() -> None:
    world = started(count=9)
    for _ in range(3):
        world.submit("a")
        world.submit("b")
        world.merge()
    world.submit("c")
    world.submit("a")
    assert weights(world.merge()) == [("a", 0), ("c", 3)]
    world.check()


def test_an_update_that_arrives_during_a_merge_goes_into_the_next_buffer() -> None:
    world = started()
    world.submit("a")
    world.submit("b")
    world.submit("c")  # the merge of version 1 is under way
    assert [item.number for item in world.machine.state.open_rounds()] == [1, 2]
    assert weights(world.merge()) == [("a", 0), ("b", 0)]
    assert world.in_training() == {"a": 1, "b": 1}
    world.submit("a")
    assert weights(world.merge()) == [("a", 0), ("c", 1)]


def test_no_task_is_issued_from_a_version_that_is_about_to_be_replaced() -> None:
    world = started()
    world.submit("a")
    world.submit("b")
    world.join("d")
    assert "d" not in world.in_training()
    world.merge()
    assert world.in_training()["d"] == 1


def test_an_update_past_max_staleness_is_refused_by_name_and_its_sender_trains_anew() -> None:
    world = started(max_staleness=1, count=9)
    for _ in range(2):
        world.submit("a")
        world.submit("b")
        world.merge()
    late = world.tasks["c"].task_id
    refusal = world.machine.refusal("c", late)
    assert refusal is not None
    assert "c is 2 versions behind" in refusal.message
    world.submit("c")
    assert world.said()[-1] == ("c", False, "update-stale")
    assert world.in_training()["c"] == 2
    assert world.machine.state.rounds[-1].seats["c"].code == "update-stale"
    world.submit("c")
    world.submit("a")
    assert weights(world.merge()) == [("a", 0), ("c", 0)]


def test_a_repeated_update_is_receipted_again_however_long_ago_it_was_merged() -> None:
    world = started(count=9)
    first = world.tasks["a"].task_id
    for _ in range(3):
        world.submit("a")
        world.submit("b")
        world.merge()
    before = list(world.log)
    world.submit("a", first)
    assert world.said()[-1] == ("a", True, "")
    world.submit("a", first, digest="ff" * 32)
    assert world.said()[-1] == ("a", False, "task-closed")
    world.submit("stranger", first)
    assert world.said()[-1] == ("stranger", False, "task-unknown")
    assert world.log == before


def test_who_vanishes_and_comes_back_hands_in_what_it_has_trained() -> None:
    world = started(count=9)
    task = world.tasks["c"].task_id
    world.gone("c")
    assert world.in_training() == {"a": 0, "b": 0}
    world.submit("a")
    world.submit("b")
    world.merge()
    world.join("c")
    assert world.tasks["c"].task_id == task, "the same task, so the site's journal has its result"
    world.submit("c")
    world.submit("a")
    assert weights(world.merge()) == [("a", 0), ("c", 1)]


def test_who_was_away_too_long_begins_from_the_newest_version() -> None:
    world = started(max_staleness=0, count=9)
    task = world.tasks["c"].task_id
    world.gone("c", "left")
    world.submit("a")
    world.submit("b")
    world.merge()
    world.join("c")
    assert world.tasks["c"].base_version == 1
    world.submit("c", task)
    assert world.said()[-1] == ("c", False, "task-closed")


def test_who_is_away_between_two_tasks_catches_up_with_one_download() -> None:
    world = started(count=9)
    world.submit("a")
    world.gone("a")
    world.submit("b")
    world.merge()
    world.submit("b")
    world.submit("c")
    world.merge()
    world.join("a")
    assert [item.base_version for item in world.issued if item.participant == "a"] == [0, 2]


def test_a_revoked_site_loses_its_task_but_not_what_is_in_the_buffer() -> None:
    world = started()
    world.submit("a")
    world.gone("a", "revoked")
    world.gone("c", "revoked")
    assert world.in_training() == {"b": 0}
    world.submit("b")
    assert weights(world.merge()) == [("a", 0), ("b", 0)]


def test_a_buffer_that_nobody_can_fill_is_merged_as_it_is() -> None:
    world = started(buffer_size=3)
    world.submit("a")
    world.submit("b")
    world.gone("c")
    assert weights(world.merge()) == [("a", 0), ("b", 0)]


def test_a_buffer_below_min_updates_waits_for_somebody() -> None:
    world = started(buffer_size=3, min_updates=3)
    world.submit("a")
    world.submit("b")
    world.gone("c")
    assert world.waiting == []
    assert "2 of 3 updates; in training: nobody" in world.machine.waiting_for()
    world.join("d")
    world.submit("d")
    assert weights(world.merge()) == [("a", 0), ("b", 0), ("d", 0)]


def test_a_task_past_its_deadline_is_called_off_and_given_anew_from_the_newest_version() -> None:
    world = started(count=9)
    world.now = 60.0
    world.submit("a")
    world.submit("b")
    world.merge()
    world.pass_time(40.0)  # c's task is 100 s old, those of a and b 40 s
    assert [(item.participant, item.reason) for item in world.cancelled] == [("c", "deadline")]
    assert world.in_training() == {"a": 1, "b": 1, "c": 1}
    assert world.machine.state.rounds[1].seats["c"].outcome == "late"
    world.submit("c", "run/1.1/c")
    assert world.said()[-1] == ("c", False, "task-closed")


def test_a_buffer_past_its_deadline_is_merged_if_it_has_min_updates() -> None:
    world = started(buffer_size=3)
    world.submit("a")
    world.submit("b")
    world.pass_time(100.0)
    assert weights(world.merge()) == [("a", 0), ("b", 0)]
    assert world.in_training() == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(("outcome", "code"), [("refused", "update-not-finite"), ("declined", "policy")])
def test_who_fails_is_not_asked_again_before_the_next_version(outcome: Any, code: str) -> None:
    world = started()
    world.fail("c", outcome, code)
    assert "c" not in world.in_training(), "a site that fails at once would be asked without end"
    world.submit("a")
    world.submit("b")
    order = world.merge()
    assert [name for name, _ in order.rejected] == (["c"] if outcome == "refused" else [])
    assert world.in_training()["c"] == 1


def test_who_fails_is_asked_again_at_the_deadline_of_a_buffer_that_is_short() -> None:
    world = started(min_updates=2)
    for name in ("a", "b", "c"):
        world.fail(name)
    assert world.in_training() == {}
    world.pass_time(100.0)
    assert world.in_training() == {"a": 0, "b": 0, "c": 0}
    assert [item.seed for item in world.issued[-3:]] == [attempt_seed(7, 2)] * 3


def test_a_run_ends_when_too_few_have_any_budget_left() -> None:
    world = started(min_updates=2)
    for name in ("a", "b"):
        world.fail(name, "declined", BUDGET_EXHAUSTED)
    assert world.machine.state.finished is not None
    assert world.machine.state.finished.reason == "out of budget"


def test_the_last_version_ends_all_training_and_a_round_of_scoring_ends_the_run() -> None:
    world = started(count=1, evaluate_every=1)
    assert all(item.evaluate for item in world.issued)
    world.submit("a")
    world.submit("b")
    world.merge()
    assert [item.participant for item in world.cancelled] == ["c"]
    scoring = {name: task for name, task in world.tasks.items() if task.purpose == "evaluate"}
    assert sorted(scoring) == ["a", "b", "c"]
    for name, task in sorted(scoring.items()):
        decision = world.carry(world.machine.scored(name, task.task_id, 5, {"accuracy": 0.5}, world.now))
    assert [item.reason for item in decision.effects if isinstance(item, AnnounceFinish)] == ["completed"]
    assert world.machine.waiting_for() == "The run is completed."


def test_an_update_after_the_last_buffer_was_sealed_is_too_late() -> None:
    world = started(count=1)
    world.submit("a")
    world.submit("b")
    world.submit("c")
    assert world.said()[-1] == ("c", False, "task-closed")
    world.merge()
    assert world.machine.state.finished is not None


def test_the_correction_is_by_the_last_updates_of_those_who_take_part() -> None:
    world = started(count=9)
    assert world.machine.state.pace.kept == {}
    world.submit("a", examples=30)
    world.submit("b")
    assert world.merge().kept == ()
    world.submit("a")
    world.submit("c")
    order = world.merge()
    assert [(item.participant, item.examples, item.version) for item in order.kept] == [("a", 30, 1), ("b", 10, 1)]
    world.gone("b")
    world.submit("a")
    world.submit("c")
    assert [item.participant for item in world.merge().kept] == ["a", "c"], "who is gone speaks for nobody"
    assert sorted(world.machine.state.pace.kept) == ["a", "c"]


def test_what_the_gate_rejected_is_not_kept_and_clipping_is_remembered() -> None:
    world = started(count=9)
    world.submit("a")
    world.submit("b")
    report = [
        {"participant": "a", "verdict": "clipped", "factor": 0.5},
        {"participant": "b", "verdict": "rejected", "factor": 1.0},
    ]
    world.merge(participants=report)
    assert [(item.participant, item.factor) for item in world.machine.state.pace.kept.values()] == [("a", 0.5)]


def test_an_earlier_update_that_was_never_followed_by_another_is_forgotten() -> None:
    world = started(max_staleness=1, count=20)
    world.submit("a")
    world.submit("c")
    world.merge()
    for _ in range(3):
        world.submit("a")
        world.submit("b")
        last = world.merge()
    assert [item.participant for item in last.kept] == ["a", "b", "c"]
    world.submit("a")
    world.submit("b")
    assert [item.participant for item in world.merge().kept] == ["a", "b"]


def test_without_correction_nothing_is_kept() -> None:
    world = started(correction="none")
    world.submit("a")
    world.submit("b")
    world.merge()
    assert world.machine.state.pace.kept == {}


def test_a_restart_in_mid_buffer_loses_nothing() -> None:
    world = started()
    world.submit("a")
    trained = world.tasks["b"].task_id
    world.restart()
    assert world.in_training() == {"b": 0, "c": 0}
    assert world.tasks["b"].task_id == trained
    world.submit("a", "run/1.1/a")
    assert world.said()[-1] == ("a", True, "")
    world.submit("b")
    world.restart()
    assert weights(world.waiting[0]) == [("a", 0), ("b", 0)], "the merge that is owed"
    assert world.waiting[0] == world.orders[0], "the same merge, to the last digit"
    world.merge()
    assert world.in_training() == {"a": 1, "b": 1, "c": 0}


def test_tasks_and_seeds_are_those_of_synchronous_rounds_where_the_buffer_takes_all() -> None:
    asynchronous = spec(buffer_size=3, evaluate_every=2)
    synchronous = RoundsSpec(
        count=3, min_participants=3, min_updates=1, deadline_s=100.0, evaluate_every=2, seed=asynchronous.seed
    )
    said = [
        _whole(machine)
        for machine in (
            AsyncRounds("run", asynchronous, RunState()),
            SynchronousRounds("run", synchronous, RunState()),
        )
    ]
    assert said[0] == said[1]
    assert len(said[0]) > 20


def _whole(machine: SynchronousRounds) -> list[object]:
    """A whole run, as the sequence of what was asked, merged and answered."""
    found: list[object] = []
    waiting: list[IssueTask] = []

    def carry(decision: Decision) -> None:
        for effect in decision.effects:
            if isinstance(effect, IssueTask | SendReceipt | BeginMerge | AnnounceFinish):
                found.append(effect)
            if isinstance(effect, IssueTask):
                waiting.append(effect)
            if isinstance(effect, BeginMerge):
                report = {
                    "participants": [
                        {"participant": item.participant, "verdict": "kept", "factor": 1.0}
                        for item in effect.contributions
                    ]
                }
                carry(machine.committed(effect, digest_of(str(effect.round)), 100, 5.0, report))

    for name in ("a", "b", "c"):
        carry(machine.available(name, 0.0))
    while waiting:
        task = waiting.pop()
        if task.purpose == "evaluate":
            carry(machine.scored(task.participant, task.task_id, 5, {"accuracy": 1.0}, 5.0))
        else:
            update = Contribution(participant=task.participant, digest=digest_of(task.task_id), examples=10)
            carry(machine.submitted(task.participant, task.task_id, update, {}, {}, 5.0))
    # What the correction would be by is handed along; where everyone is in the buffer it weighs nothing.
    return [_without_kept(item) if isinstance(item, BeginMerge) else item for item in found]


def _without_kept(order: BeginMerge) -> tuple[object, ...]:
    return (order.round, order.base_version, order.contributions, order.rejected, order.step_scale)


@pytest.mark.parametrize(
    "row",
    [
        ("TaskIssued", '{"attempt":1,"base_version":0,"closes_s":1.0,"evaluate":false,"participant":"a"}'),
        (
            "UpdateBuffered",
            '{"digest":"","evaluation":{},"examples":1,"metrics":{},"participant":"stranger","round":1}',
        ),
    ],
)
def test_a_log_that_contradicts_itself_is_damaged(row: tuple[str, str]) -> None:
    world = started()
    state = world.replayed()
    with pytest.raises(ValueError, match="task in flight"):
        state.apply(from_row(*row))


def test_a_declined_task_of_somebody_else_changes_nothing() -> None:
    world = started()
    before = list(world.log)
    error = RefusedError("policy", "no")
    world.carry(world.machine.rejected("a", "run/1.1/b", "declined", error, 1.0))
    assert world.log == before


def test_it_asks_to_be_woken_at_the_next_deadline() -> None:
    world = started(min_updates=2)
    assert world.pass_time(1.0).effects == [WakeAt(at_s=100.0)]
    for name in ("a", "b", "c"):
        world.gone(name)
    assert world.pass_time(100.0).effects == [WakeAt(at_s=201.0)], "the buffer is short: it gets another deadline"
    assert world.machine.resume(150.0).effects == [WakeAt(at_s=201.0)]


def test_a_buffer_that_cannot_be_merged_goes_on_with_what_came_meanwhile() -> None:
    world = AsynchronousWorld(min_participants=4, min_updates=2)
    world.join("a", "b", "c", "d")
    world.submit("a")
    world.submit("b")
    world.submit("c")  # into the next buffer
    assert [item.number for item in world.machine.state.open_rounds()] == [1, 2]
    world.spoil("a")
    # b's and c's make a buffer again; who can't be merged gets no task before the next version.
    (order,) = world.waiting
    assert [item.participant for item in order.contributions] == ["b", "c"]
    assert order.rejected == (("a", "update-shape: the file of a is damaged"),)
    assert sorted(world.in_training()) == ["d"]
    world.merge()
    assert world.in_training() == {"a": 1, "b": 1, "c": 1, "d": 0}


def test_a_buffer_of_which_nothing_can_be_merged_fills_again() -> None:
    world = AsynchronousWorld(min_updates=2)
    world.join("a", "b", "c")
    world.submit("a")
    world.submit("b")
    world.spoil()
    assert world.waiting == []
    assert world.in_training() == {"c": 0}
    world.submit("c")
    assert "1 of 2 updates; in training: nobody" in world.machine.waiting_for()
    world.pass_time(101)
    assert world.in_training() == {"a": 0, "b": 0}
    world.submit("a")
    assert [item.participant for item in world.merge().contributions] == ["a", "c"]
