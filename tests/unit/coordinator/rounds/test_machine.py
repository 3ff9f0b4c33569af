"""The round machine: every path through a round, as commands in and facts out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.rounds import (
    AnnounceFinish,
    AnnounceVersion,
    BeginMerge,
    CancelTask,
    Contribution,
    Decision,
    IssueTask,
    RunState,
    SendReceipt,
    SynchronousRounds,
    WakeAt,
    from_row,
    to_row,
)
from coordinator.rounds.tasks import attempt_seed, sample, task_id
from privacy.ledger import BUDGET_EXHAUSTED
from wire import RefusedError, RoundsSpec


def spec(**changes: object) -> RoundsSpec:
    values: dict[str, object] = {
        "count": 2,
        "min_participants": 2,
        "min_updates": 2,
        "deadline_s": 100.0,
        "evaluate_every": 1,
        "seed": 7,
    }
    return RoundsSpec.model_validate({**values, **changes})


class Bench:
    """A machine with a log that can be replayed at any moment."""

    def __init__(self, **changes: object) -> None:
        self.spec = spec(**changes)
        self.machine = SynchronousRounds("run", self.spec, RunState())
        self.log: list[tuple[str, str]] = []

    def take(self, decision: Decision) -> Decision:
        self.log += [to_row(fact) for fact in decision.facts]
        return decision

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.log]

    def available(self, *names: str, at: float = 0.0) -> Decision:
        decision = Decision()
        for name in names:
            decision = self.take(self.machine.available(name, at))
        return decision

    def submit(self, name: str, number: int, *, attempt: int = 1, examples: int = 10, at: float = 1.0) -> Decision:
        update = Contribution(participant=name, digest=f"{number:02d}{attempt:02d}" * 16, examples=examples)
        task = task_id("run", number, attempt, name)
        return self.take(self.machine.submitted(name, task, update, {"loss": 1.0}, {}, at))

    def score(self, name: str, number: int, at: float = 2.0) -> Decision:
        task = task_id("run", number, 1, name)
        return self.take(self.machine.scored(name, task, 5, {"accuracy": 0.5}, at))

    def commit(self, decision: Decision, at: float = 3.0) -> Decision:
        order = next(effect for effect in decision.effects if isinstance(effect, BeginMerge))
        return self.take(self.machine.committed(order, "ab" * 32, 100, at))

    def restarted(self) -> SynchronousRounds:
        state = RunState()
        for kind, body in self.log:
            state.apply(from_row(kind, body))
        return SynchronousRounds("run", self.spec, state)


def tasks(decision: Decision) -> list[str]:
    return [effect.participant for effect in decision.effects if isinstance(effect, IssueTask)]


def receipts(decision: Decision) -> list[tuple[str, bool, str]]:
    return [
        (effect.participant, effect.accepted, effect.code)
        for effect in decision.effects
        if isinstance(effect, SendReceipt)
    ]


def test_a_whole_run_goes_from_waiting_to_finished() -> None:
    bench = Bench()
    assert bench.available("a").facts == []
    assert tasks(bench.available("b")) == ["a", "b"]
    assert receipts(bench.submit("a", 1)) == [("a", True, "")]
    second = bench.commit(bench.submit("b", 1))
    announced = [effect for effect in second.effects if isinstance(effect, AnnounceVersion)]
    assert [(item.version, item.updates) for item in announced] == [(1, 2)]
    assert tasks(second) == ["a", "b"]
    bench.submit("b", 2)
    scoring = bench.commit(bench.submit("a", 2))
    assert [effect.purpose for effect in scoring.effects if isinstance(effect, IssueTask)] == ["evaluate", "evaluate"]
    bench.score("a", 3)
    last = bench.score("b", 3)
    assert any(isinstance(effect, AnnounceFinish) and effect.reason == "completed" for effect in last.effects)
    assert bench.machine.state.version == 2
    assert bench.machine.state.finished is not None


def test_contributions_are_sorted_by_participant_whatever_the_order_of_arrival() -> None:
    bench = Bench(min_participants=3)
    bench.available("c", "a", "b")
    bench.submit("b", 1)
    bench.submit("c", 1)
    order = next(effect for effect in bench.submit("a", 1).effects if isinstance(effect, BeginMerge))
    assert [item.participant for item in order.contributions] == ["a", "b", "c"]


def test_no_scoring_round_where_evaluation_is_off() -> None:
    bench = Bench(count=1, evaluate_every=0)
    bench.available("a", "b")
    bench.submit("a", 1)
    bench.commit(bench.submit("b", 1))
    assert bench.kinds()[-1] == "RunFinished"


def test_evaluation_comes_with_training_every_so_many_versions() -> None:
    bench = Bench(count=3, evaluate_every=2)
    decision = bench.available("a", "b")
    asked = [[effect.evaluate for effect in decision.effects if isinstance(effect, IssueTask)]]
    for number in (1, 2):
        bench.submit("a", number)
        decision = bench.commit(bench.submit("b", number))
        asked.append([effect.evaluate for effect in decision.effects if isinstance(effect, IssueTask)])
    assert asked == [[True, True], [False, False], [True, True]]


def test_a_repeated_update_is_receipted_again_and_changes_nothing() -> None:
    bench = Bench()
    bench.available("a", "b")
    bench.submit("a", 1)
    before = list(bench.log)
    assert receipts(bench.submit("a", 1)) == [("a", True, "")]
    assert bench.log == before


def test_another_update_for_an_answered_task_is_refused() -> None:
    bench = Bench()
    bench.available("a", "b")
    bench.submit("a", 1)
    other = Contribution(participant="a", digest="ff" * 32, examples=10)
    decision = bench.machine.submitted("a", task_id("run", 1, 1, "a"), other, {}, {}, 2.0)
    assert decision.facts == []
    assert receipts(decision) == [("a", False, "task-closed")]


def test_an_update_for_a_task_that_was_never_given_is_refused() -> None:
    bench = Bench()
    bench.available("a", "b")
    assert receipts(bench.submit("stranger", 1)) == [("stranger", False, "task-unknown")]
    assert receipts(bench.submit("a", 9)) == [("a", False, "task-unknown")]


def test_a_vanished_participant_does_not_hold_up_the_others() -> None:
    bench = Bench(min_participants=3)
    bench.available("a", "b", "c")
    bench.submit("a", 1)
    bench.submit("b", 1)
    decision = bench.take(bench.machine.gone("c", "vanished", "no sign of life", 50.0))
    order = next(effect for effect in decision.effects if isinstance(effect, BeginMerge))
    assert [item.participant for item in order.contributions] == ["a", "b"]


def test_a_vanished_participant_that_comes_back_in_time_gets_a_second_attempt() -> None:
    bench = Bench(min_participants=3)
    bench.available("a", "b", "c")
    bench.take(bench.machine.gone("c", "vanished", "", 50.0))
    decision = bench.available("c", at=60.0)
    issued = [effect for effect in decision.effects if isinstance(effect, IssueTask)]
    assert [(effect.participant, effect.attempt) for effect in issued] == [("c", 2)]
    assert issued[0].seed == attempt_seed(7, 2) != 7
    assert receipts(bench.submit("c", 1, attempt=2)) == [("c", True, "")]


def test_a_late_result_of_a_first_attempt_is_turned_away_after_a_second_was_issued() -> None:
    bench = Bench(min_participants=3)
    bench.available("a", "b", "c")
    bench.take(bench.machine.gone("c", "vanished", "", 50.0))
    bench.available("c", at=60.0)
    assert receipts(bench.submit("c", 1, attempt=1)) == [("c", False, "task-unknown")]


def test_a_reconnected_participant_is_given_its_open_task_again() -> None:
    bench = Bench()
    bench.available("a", "b")
    decision = bench.available("a", at=5.0)
    assert decision.facts == []
    assert tasks(decision) == ["a"]


def test_the_deadline_closes_a_round_that_has_enough() -> None:
    bench = Bench(min_participants=3)
    bench.available("a", "b", "c")
    bench.submit("a", 1)
    bench.submit("b", 1)
    early = bench.machine.tick(99.0)
    assert early.facts == []
    assert early.effects == [WakeAt(at_s=100.0)]
    decision = bench.take(bench.machine.tick(100.0))
    assert [effect.participant for effect in decision.effects if isinstance(effect, CancelTask)] == ["c"]
    assert any(isinstance(effect, BeginMerge) for effect in decision.effects)
    assert bench.machine.state.rounds[0].seats["c"].outcome == "late"


def test_the_deadline_extends_a_round_that_has_too_few_and_asks_the_newcomers() -> None:
    bench = Bench()
    bench.available("a", "b")
    bench.submit("a", 1)
    bench.available("late-riser", at=10.0)
    decision = bench.take(bench.machine.tick(100.0))
    assert tasks(decision) == ["late-riser"]
    assert bench.machine.state.rounds[0].closes_s == 200.0
    assert any(isinstance(effect, BeginMerge) for effect in self_merge(bench))


def self_merge(bench: Bench) -> list[object]:
    """The newcomer's update completes the round as soon as the missing one is given up."""
    bench.submit("late-riser", 1, at=110.0)
    return list(bench.take(bench.machine.gone("b", "vanished", "", 120.0)).effects)


def test_a_refused_participant_is_asked_again_when_the_round_is_short() -> None:
    bench = Bench()
    bench.available("a", "b")
    bench.submit("a", 1)
    error = RefusedError("update-not-finite", "NaN in the update of b")
    decision = bench.take(bench.machine.rejected("b", task_id("run", 1, 1, "b"), "refused", error, 5.0))
    assert receipts(decision) == [("b", False, "update-not-finite")]
    assert "1 of the 2 updates" in bench.machine.waiting_for()
    assert tasks(bench.take(bench.machine.tick(100.0))) == ["b"]
    assert bench.machine.state.rounds[0].seats["b"].attempt == 2


def test_a_declined_task_is_no_receipt_and_does_not_hold_up_the_round() -> None:
    bench = Bench(min_participants=3)
    bench.available("a", "b", "c")
    bench.submit("a", 1)
    bench.submit("b", 1)
    error = RefusedError("policy", "not on Sundays")
    decision = bench.take(bench.machine.rejected("c", task_id("run", 1, 1, "c"), "declined", error, 5.0))
    assert receipts(decision) == []
    assert any(isinstance(effect, BeginMerge) for effect in decision.effects)


def test_a_run_ends_when_too_few_have_any_budget_left() -> None:
    """Waiting doesn't bring a budget back; a participant that has only gone away may return."""
    bench = Bench(min_participants=3, min_updates=2)
    bench.available("a", "b", "c")
    spent = RefusedError(BUDGET_EXHAUSTED, "needs 1, and 0.5 is left")
    bench.take(bench.machine.rejected("a", task_id("run", 1, 1, "a"), "declined", spent, 5.0))
    bench.take(bench.machine.gone("b", "vanished", "", 6.0))
    assert bench.machine.state.finished is None, "b may come back"
    decision = bench.take(bench.machine.rejected("c", task_id("run", 1, 1, "c"), "declined", spent, 7.0))
    assert bench.machine.state.finished is not None
    assert bench.machine.state.finished.reason == "out of budget"
    assert [item.reason for item in decision.effects if isinstance(item, AnnounceFinish)] == ["out of budget"]
    assert bench.machine.waiting_for() == "The run is out of budget."
    assert not any(isinstance(item, IssueTask) for item in bench.available("d", at=8.0).effects)


def test_a_new_participant_fills_a_round_that_is_short() -> None:
    bench = Bench()
    bench.available("a", "b")
    bench.submit("a", 1)
    bench.take(bench.machine.gone("b", "left", "", 5.0))
    assert tasks(bench.available("c", at=6.0)) == ["c"]
    assert any(isinstance(effect, BeginMerge) for effect in bench.submit("c", 1).effects)


def test_a_round_that_becomes_short_asks_those_who_are_idle_at_once_and_no_more_than_are_missing() -> None:
    bench = Bench()
    bench.available("a", "b")
    bench.available("c", "d", at=1.0)
    bench.submit("a", 1)
    decision = bench.take(bench.machine.gone("b", "revoked", "", 5.0))
    asked = tasks(decision)
    assert len(asked) == 1
    assert asked[0] in ("c", "d")
    assert any(isinstance(effect, BeginMerge) for effect in bench.submit(asked[0], 1).effects)


def test_stopping_ends_the_run_once() -> None:
    bench = Bench()
    bench.available("a", "b")
    assert [type(effect) for effect in bench.take(bench.machine.stop(4.0)).effects] == [AnnounceFinish]
    assert bench.machine.stop(5.0).facts == []
    assert bench.machine.waiting_for() == "The run is stopped."


def test_a_merge_that_is_reported_twice_commits_once() -> None:
    bench = Bench(count=3)
    bench.available("a", "b")
    bench.submit("a", 1)
    decision = bench.submit("b", 1)
    bench.commit(decision)
    order = next(effect for effect in decision.effects if isinstance(effect, BeginMerge))
    assert bench.machine.committed(order, "cd" * 32, 100, 9.0).facts == []
    assert bench.machine.state.version == 1


def test_a_round_whose_merge_is_refused_goes_on_without_the_update_at_fault() -> None:
    bench = Bench(count=1, min_participants=3, min_updates=2, evaluate_every=0)
    bench.available("a", "b", "c")
    bench.submit("a", 1)
    bench.submit("b", 1)
    order = next(item for item in bench.submit("c", 1).effects if isinstance(item, BeginMerge))
    error = RefusedError("update-shape", "the file of b was damaged")
    again = bench.take(bench.machine.unmergeable(order, error, "b", 2.0))
    (order,) = (item for item in again.effects if isinstance(item, BeginMerge))
    assert [item.participant for item in order.contributions] == ["a", "c"]
    assert order.rejected == (("b", "update-shape: the file of b was damaged"),)
    assert bench.restarted().state == bench.machine.state
    bench.commit(again)
    assert bench.machine.state.finished is not None
    # Said late, it changes nothing.
    assert bench.machine.unmergeable(order, error, "b", 9.0).facts == []


def test_a_round_that_nothing_can_be_merged_of_asks_everyone_again_at_its_deadline() -> None:
    bench = Bench(count=1)
    bench.available("a", "b")
    bench.submit("a", 1)
    order = next(item for item in bench.submit("b", 1).effects if isinstance(item, BeginMerge))
    decision = bench.take(bench.machine.unmergeable(order, RefusedError("merge-empty", "none is left"), "", 2.0))
    assert [type(item) for item in decision.effects] == [WakeAt]
    assert "0 of the 2 updates" in bench.machine.waiting_for()
    assert bench.machine.state.open_round().complaints == ["none is left"]  # type: ignore[union-attr]
    assert tasks(bench.take(bench.machine.tick(100.0))) == ["a", "b"]
    bench.submit("a", 1, attempt=2)
    bench.commit(bench.submit("b", 1, attempt=2))
    assert bench.machine.state.version == 1
    assert bench.restarted().state == bench.machine.state


def test_after_a_restart_a_sealed_round_is_merged_again() -> None:
    bench = Bench()
    bench.available("a", "b")
    bench.submit("a", 1)
    before = bench.submit("b", 1)
    after = bench.restarted().resume(50.0)
    assert [effect for effect in after.effects if isinstance(effect, BeginMerge)] == [
        effect for effect in before.effects if isinstance(effect, BeginMerge)
    ]


def test_after_a_restart_an_open_round_waits_for_its_deadline_and_keeps_what_it_has() -> None:
    bench = Bench()
    bench.available("a", "b")
    bench.submit("a", 1)
    machine = bench.restarted()
    assert machine.resume(50.0).effects == [WakeAt(at_s=100.0)]
    assert tasks(machine.available("b", 51.0)) == ["b"]
    assert receipts(machine.submitted("a", task_id("run", 1, 1, "a"), _update("a"), {}, {}, 52.0)) == [("a", True, "")]


def _update(name: str) -> Contribution:
    return Contribution(participant=name, digest="0101" * 16, examples=10)


def test_sampling_is_fair_enough_and_does_not_depend_on_order() -> None:
    names = [f"site-{index}" for index in range(10)]
    counts = dict.fromkeys(names, 0)
    for number in range(1, 2001):
        chosen = sample(names, 3, 5, number)
        assert chosen == sample(names[::-1], 3, 5, number)
        for name in chosen:
            counts[name] += 1
    assert all(abs(count - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5 for count in counts.values())


def test_a_sampled_round_asks_only_the_sample() -> None:
    bench = Bench(min_participants=4, participants_per_round=2)
    assert len(tasks(bench.available("a", "b", "c", "d"))) == 2


@pytest.mark.parametrize(("kind", "body"), [("Nonsense", "{}"), ("RoundSealed", '{"round": 1, "extra": 2}')])
def test_a_damaged_row_is_named(kind: str, body: str) -> None:
    with pytest.raises(ValueError, match=kind):
        from_row(kind, body)


def test_facts_out_of_order_are_refused() -> None:
    bench = Bench()
    bench.available("a", "b")
    opened = from_row(*bench.log[0])
    state = RunState()
    state.apply(opened)
    with pytest.raises(ValueError, match="can't open"):
        state.apply(opened)


_STEP = st.tuples(
    st.sampled_from(["available", "submit", "vanish", "decline", "tick", "restart", "spoil"]), st.sampled_from("abc")
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_STEP, max_size=60))
def test_whatever_happens_the_log_replays_to_the_same_state_and_versions_never_skip(
    steps: list[tuple[str, str]],
) -> None:
    bench = Bench(count=3, min_participants=2)
    now, spoilt = 0.0, False
    for what, name in steps:
        now += 40.0 if what == "tick" else 1.0
        machine = bench.machine
        current = machine.state.open_round()
        decision = Decision()
        if what == "spoil":
            spoilt = not spoilt
        elif what == "restart":
            machine = bench.machine = bench.restarted()
            decision = machine.resume(now)
        elif what == "available":
            decision = machine.available(name, now)
        elif what == "vanish":
            decision = machine.gone(name, "vanished", "", now)
        elif what == "tick":
            decision = machine.tick(now)
        elif current is not None and name in current.seats:
            task = task_id("run", current.number, current.seats[name].attempt, name)
            if what == "decline":
                decision = machine.rejected(name, task, "declined", RefusedError("policy", "no"), now)
            elif current.purpose == "train":
                decision = machine.submitted(name, task, _update(name), {}, {}, now)
            else:
                decision = machine.scored(name, task, 1, {}, now)
        bench.take(decision)
        for effect in decision.effects:
            if isinstance(effect, BeginMerge):
                assert len(effect.contributions) >= bench.spec.min_updates
                if spoilt:
                    culprit, spoilt = effect.contributions[0].participant, False
                    decision.effects += bench.take(
                        machine.unmergeable(effect, RefusedError("update-missing", "gone"), culprit, now)
                    ).effects
                else:
                    bench.take(machine.committed(effect, "ab" * 32, 100, now))
    assert bench.restarted().state == bench.machine.state
    committed = [item.version for item in bench.machine.state.rounds if item.version is not None]
    assert committed == list(range(1, len(committed) + 1))


def test_after_a_stop_no_deadline_and_no_restart_asks_anybody_again() -> None:
    bench = Bench()
    bench.available("a", "b")
    bench.take(bench.machine.stop(5.0))
    log = list(bench.log)
    for machine in (bench.machine, bench.restarted()):
        for decision in (machine.tick(1_000.0), machine.resume(1_000.0)):
            assert (decision.facts, tasks(decision)) == ([], [])
    assert bench.log == log
