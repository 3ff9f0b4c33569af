"""Rounds with secure sums as a state machine, with real participants' machines behind it."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from rounds_world import RoundsWorld
from secure_world import DEADLINE_S, STEP_S

from coordinator.rounds import (
    AnnounceFinish,
    BeginMerge,
    BeginUnmask,
    IssueTask,
    SecureRounds,
    SendReceipt,
    SendStatement,
)
from coordinator.rounds.waiting import listed
from privacy.ledger import BUDGET_EXHAUSTED
from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.statements import Accept, Refused, Result, Signed, kind_of, positions_of
from privacy.secure_aggregation.summing import line_hash
from wire import RefusedError


@pytest.fixture(autouse=True)
def few_prekeys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making 32 prekeys takes longer than a round of them."""
    monkeypatch.setattr(prekeys, "STOCK", 5)
    monkeypatch.setattr(prekeys, "LOW", 2)


def started(count: int = 4, **options: object) -> RoundsWorld:
    """Everyone is there; nobody trains until told to."""
    world = RoundsWorld(count, **options)  # type: ignore[arg-type]
    world.slow = set(world.names)
    world.join()
    return world


# ---- a run that goes well -------------------------------------------------------------------------------------------


def test_a_run_of_training_and_scoring_goes_to_its_end_and_every_sum_is_exact() -> None:
    world = RoundsWorld(4, rounds={"count": 2, "evaluate_every": 1})
    world.check_replay = True
    world.join()
    one = ["RoundOpened", "AttemptOpened", "SumRevealed", "RoundSealed", "VersionCommitted"]
    last = ["RoundOpened", "AttemptOpened", "SumRevealed", "EvaluationClosed", "RunFinished"]
    assert world.kinds() == [*one, *one, *last]
    for index in range(3):
        world.assert_revealed(world.names, index)
    assert world.state.version == 2
    assert [seat.outcome for seat in world.state.rounds[2].seats.values()] == ["done"] * 4
    assert any(isinstance(item, AnnounceFinish) and item.reason == "completed" for item in world.effects)
    assert (world.refused, world.rounds.waiting_for()) == ([], "The run is completed.")
    assert all(site.refusals == [] for site in world.sites.values())
    # Nothing of the attempts is left at the sites but what they remember of the sums that they were in.
    kinds = {note.kind for site in world.sites.values() for note in site.store.notes}
    assert kinds.isdisjoint({"secrets", "share-key", "planned", "delivered", "masked", "released"})


def test_nobody_learns_a_participants_own_figures_from_the_log() -> None:
    world = RoundsWorld(4)
    world.join()
    (revealed,) = world.facts("SumRevealed")
    for seat in world.state.rounds[0].seats.values():
        assert (seat.examples, seat.metrics, seat.evaluation, seat.digest) == (0, {}, {}, "")
    weights = {name: min(examples, 50) for name, (_, examples, _) in world.inputs.items()}
    losses = {name: metrics["loss"] for name, (_, _, metrics) in world.inputs.items()}
    assert revealed.weight == sum(weights.values())
    mean = sum(weights[name] * losses[name] for name in world.names) / revealed.weight
    assert revealed.metrics["loss"] == pytest.approx(mean, abs=2.0**-20)


def test_receipts_come_before_the_merge_and_the_log_of_results_with_the_version() -> None:
    world = RoundsWorld(4)
    world.hold_merge = True
    world.join()
    order = [type(item) for item in world.effects if isinstance(item, SendReceipt | BeginMerge | BeginUnmask)]
    assert order == [BeginUnmask, *[SendReceipt] * 4, BeginMerge]
    assert world.receipts() == [(name, f"run-1/1.1/{name}", True) for name in world.names]
    assert (world.lines, world.kinds()[-1]) == ([], "RoundSealed")
    merge = next(item for item in world.effects if isinstance(item, BeginMerge))
    (contribution,) = merge.contributions
    assert (contribution.digest, contribution.examples) == (world.reveals[0][1].digest, 1)
    world.merge(merge)
    world.settle()
    (line,) = world.lines
    result = Result.parse(line.statement.body)
    assert (line.index, line.round, result.index, result.previous) == (0, 1, 0, bytes(32))
    assert result.model.hex() == world.state.digest
    assert positions_of(result.survivors) == (0, 1, 2, 3)
    told = [item.participant for item in world.effects if _is(item, "result")]
    assert told == world.names
    # A late repetition changes nothing.
    before = list(world.log)
    world.merge(merge)
    assert (world.log, len(world.lines)) == (before, 1)


def test_lines_of_the_log_of_results_form_a_chain_over_all_rounds() -> None:
    world = RoundsWorld(3, rounds={"count": 2, "evaluate_every": 1})
    world.join()
    results = [Result.parse(line.statement.body) for line in world.lines]
    assert [item.index for item in results] == [0, 1, 2]
    for before, after in itertools.pairwise(results):
        assert after.previous == line_hash(before.body())
    assert results[2].model == bytes(32)
    assert [line.round for line in world.lines] == [1, 2, 3]


def test_whatever_the_order_in_which_they_finish_the_sum_is_the_same() -> None:
    hashes = set()
    for names in ("012", "210", "102"):
        world = started(3)
        for digit in names:
            world.train(f"site-00{digit}")
            world.settle()
        world.assert_revealed(world.names)
        hashes.add(world.reveals[0][1].sum_hash)
    assert len(hashes) == 1


# ---- drops ----------------------------------------------------------------------------------------------------------


def test_who_vanishes_while_training_is_left_out_and_its_seat_is_late() -> None:
    world = started()
    world.kill("site-003")
    world.train(*world.names[:3])
    world.settle()
    world.assert_revealed(world.names[:3])
    outcomes = {name: seat.outcome for name, seat in world.state.rounds[0].seats.items()}
    assert outcomes == {"site-000": "done", "site-001": "done", "site-002": "done", "site-003": "late"}
    assert world.cancelled() == [("site-003", "late")]
    assert world.kinds().count("AttemptOpened") == 1


def test_who_vanishes_after_the_freeze_is_left_out_too() -> None:
    world = started()
    world.filter_up = lambda name, item: [] if name == "site-002" and kind_of(item.body) == "upload" else [item]
    world.train(*world.names)
    world.settle()
    assert world.attempt is not None
    assert world.attempt.phase == "uploading"
    world.kill("site-002")
    world.settle()
    world.assert_revealed(["site-000", "site-001", "site-003"])


def test_who_vanishes_and_comes_back_goes_on_with_the_same_task_and_the_sum_has_it() -> None:
    world = started()
    for kill in (False, True):  # before and after it was trained
        if kill:
            world.train("site-001")
        world.kill("site-001")
        world.revive("site-001")
    issued = [item.task_id for item in world.effects if isinstance(item, IssueTask) and item.participant == "site-001"]
    assert set(issued) == {"run-1/1.1/site-001"}
    world.train("site-000", "site-002", "site-003")
    world.settle()
    world.assert_revealed(world.names)


def test_who_said_goodbye_and_returns_in_the_same_round_gets_its_task_again() -> None:
    world = started()
    world.here.discard("site-001")
    world.carry(world.rounds.gone("site-001", "left", "closing for the night", world.now))
    assert world.state.rounds[0].seats["site-001"].outcome == "left"
    world.join("site-001")
    assert world.state.rounds[0].seats["site-001"].outcome == "pending"
    world.train(*world.names)
    world.settle()
    world.assert_revealed(world.names)


def test_a_deadline_goes_on_without_the_slow_ones_and_calls_their_tasks_off() -> None:
    world = started()
    world.train(*world.names[:3])
    world.settle()
    assert world.kinds()[-1] == "AttemptOpened"
    world.pass_time(DEADLINE_S)
    world.assert_revealed(world.names[:3])
    assert world.cancelled() == [("site-003", "late")]


def test_whoever_was_away_at_the_end_is_told_what_became_of_its_update() -> None:
    world = started(rounds={"count": 2})
    world.hold_unmask = True
    world.train(*world.names)
    world.settle()
    world.kill("site-000")
    world.unmask(world.orders[-1])
    world.settle()
    world.effects.clear()
    world.revive("site-000")
    assert world.receipts()[0] == ("site-000", "run-1/1.1/site-000", True)
    assert any(_is(item, "result") and item.participant == "site-000" for item in world.effects)
    assert not world.sites["site-000"].store.kinds(world.reveals[0][0].order.context.hash)


# ---- attempts that fail ---------------------------------------------------------------------------------------------


def failures(world: RoundsWorld) -> list[tuple[int, str, bool]]:
    return [(item.attempt, item.code, item.spent) for item in world.facts("AttemptFailed")]


def test_an_attempt_that_fails_is_made_again_at_once_then_after_growing_pauses() -> None:
    world = RoundsWorld(4)
    world.filter_up = lambda name, item: [] if kind_of(item.body) == "accept" else [item]
    world.join()
    begun = [world.now]
    for _ in range(7):
        before = world.kinds().count("AttemptOpened")
        while world.kinds().count("AttemptOpened") == before:
            later = [at_s for at_s in world.wakes() if at_s > world.now]
            assert later, "nothing would ever happen again"
            world.pass_time(min(later) - world.now)
        begun.append(world.now)
    assert {code for _, code, _ in failures(world)} == {"too-few-accepts"}
    # Each attempt waits STEP_S for answers; then comes the pause.
    pauses = [after - before - STEP_S for before, after in itertools.pairwise(begun)]
    assert pauses == [0.0, 30.0, 60.0, 120.0, 240.0, 480.0, 600.0]
    world.pass_time(STEP_S)
    assert world.rounds.waiting_for().startswith(
        "Round 1 waits to try again. Attempt 8 ended: nobody accepted; 3 are needed"
    )


def test_the_next_attempt_takes_the_same_updates_under_fresh_masks_and_unused_prekeys() -> None:
    world = started()
    world.filter_up = lambda name, item: [] if kind_of(item.body) == "survived" else [item]
    world.train(*world.names)
    world.settle()
    trained = list(world.trained)
    world.filter_up = lambda name, item: [item]
    world.pass_time(STEP_S)
    assert failures(world) == [(1, "quorum-short", False)]
    world.train(*world.names) if world.kinds()[-1] == "AttemptOpened" and not world.reveals else None
    world.settle()
    world.assert_revealed(world.names)
    first, second = world.facts("AttemptOpened")
    assert (first.task_attempt, second.task_attempt) == (1, 1)
    assert first.context != second.context
    assert all(after > before for before, after in zip(first.prekeys, second.prekeys, strict=True))
    assert set(trained) == set(world.trained)
    assert world.kinds().count("SeatOpened") == 0


def test_updates_that_may_be_known_in_a_sum_are_trained_anew_with_another_seed() -> None:
    world = started()
    world.filter_up = lambda name, item: [] if kind_of(item.body) == "release" else [item]
    world.train(*world.names)
    world.settle()
    world.filter_up = lambda name, item: [item]
    world.effects.clear()
    world.pass_time(STEP_S)
    assert failures(world) == [(1, "release-short", True)]
    tasks = [item for item in world.effects if isinstance(item, IssueTask)]
    assert [item.task_id for item in tasks] == [f"run-1/1.2/{name}" for name in world.names]
    assert {item.seed for item in tasks}.isdisjoint({world.plan.rounds.seed})
    assert [seat.attempt for seat in world.state.rounds[0].seats.values()] == [2, 2, 2, 2]
    world.train(*world.names)
    world.settle()
    world.assert_revealed(world.names)
    assert world.receipts() == [(name, f"run-1/1.2/{name}", True) for name in world.names]


def refuse(world: RoundsWorld, name: str, code: str) -> None:
    """A participant refuses to go on with the open attempt."""
    assert world.attempt is not None
    world.send(name, Refused(world.attempt.context.hash, code, "", "so it says").signed(world.sites[name].key))
    world.settle()


@pytest.mark.parametrize(("code", "spent"), [("update-may-be-revealed", True), ("clock-wrong", False)])
@pytest.mark.parametrize("killed", [False, True])
def test_a_refusal_because_the_update_may_be_known_leads_to_new_training_also_after_a_restart(
    code: str, spent: bool, killed: bool
) -> None:
    world = started(5)
    refuse(world, "site-004", code)
    assert failures(world) == []
    if killed:
        world.restart_coordinator()
    # With a second one gone, four of five can't come together any more.
    world.kill("site-003")
    world.train(*world.names[:3])
    world.settle()
    world.pass_time(DEADLINE_S)
    assert failures(world) == [(1, "too-few-ready", spent)]
    world.revive("site-003")
    world.effects.clear()
    world.train(*world.names[:4])
    world.pass_time(STEP_S)
    assert world.facts("AttemptOpened")[1].task_attempt == (2 if spent else 1)
    if not spent:
        # The one that refused is left alone for the rest of the training.
        world.assert_revealed(world.names[:4])
        assert world.facts("AttemptFailed")[0].excluded == ("site-004",)


def test_a_refusal_of_an_attempt_that_is_over_spends_nothing() -> None:
    world = started(5)
    old = Refused(b"o" * 32, "update-may-be-revealed", "", "late").signed(world.sites["site-004"].key)
    world.send("site-004", old)
    world.settle()
    for name in ("site-003", "site-004"):
        refuse(world, name, "clock-wrong")
    assert [(code, spent) for _, code, spent in failures(world)] == [("too-few-ready", True)]
    assert world.stored[bytes.fromhex(world.facts("AttemptOpened")[0].context)][-1].sender == ""


def _context(world: RoundsWorld) -> bytes:
    return bytes.fromhex(world.facts("AttemptOpened")[-1].context)


def test_who_cannot_train_is_left_out_and_named() -> None:
    world = started()
    world.decline("site-002")
    world.train("site-000", "site-001", "site-003")
    world.settle()
    world.assert_revealed(["site-000", "site-001", "site-003"])
    seat = world.state.rounds[0].seats["site-002"]
    assert (seat.outcome, seat.code, seat.message) == ("declined", "training", "site-002 can't train")


def test_where_too_many_cannot_train_all_are_asked_again_with_another_seed() -> None:
    world = started()
    world.decline("site-002")
    world.effects.clear()
    world.decline("site-001")
    ((attempt, code, spent),) = failures(world)
    assert (attempt, code, spent) == (1, "too-few-ready", True)
    assert "site-002 can't train" in world.facts("AttemptFailed")[0].message
    tasks = {item.participant: item.attempt for item in world.effects if isinstance(item, IssueTask)}
    assert tasks == dict.fromkeys(world.names, 2)
    world.train(*world.names)
    world.settle()
    world.assert_revealed(world.names)


def test_a_secure_run_ends_when_too_few_have_any_budget_left_and_reveals_nothing_of_the_open_sum() -> None:
    world = started()
    world.decline("site-002", BUDGET_EXHAUSTED)
    assert world.state.finished is None
    world.effects.clear()
    world.decline("site-001", BUDGET_EXHAUSTED)
    assert world.state.finished is not None and world.state.finished.reason == "out of budget"
    assert world.rounds.attempt is None
    assert not any(isinstance(item, IssueTask | BeginUnmask) for item in world.effects)
    world.train(*world.names)
    world.settle()
    assert world.state.version == 0 and world.state.rounds[0].revealed is None


def test_a_decline_of_an_earlier_training_changes_nothing() -> None:
    world = started()
    late = world.tasks["site-000"].task_id
    world.decline("site-002")
    world.decline("site-001")
    before = list(world.log)
    world.carry(world.rounds.rejected("site-000", late, "declined", RefusedError("x", "y"), world.now))
    assert world.log == before


def test_a_dealer_whose_parcels_cannot_be_read_is_left_out_of_the_round() -> None:
    world = RoundsWorld(7)

    def up(name: str, item: Signed) -> list[Signed]:
        if name != "site-006" or kind_of(item.body) != "accept":
            return [item]
        accept = Accept.parse(item.body)
        spoilt = bytes(82) + accept.parcels[82:]
        return [dataclasses.replace(accept, parcels=spoilt).signed(world.sites[name].key)]

    world.filter_up = up
    world.join()
    assert failures(world) == [(1, "parcel-unreadable", False)]
    (failed,) = world.facts("AttemptFailed")
    # Nobody can tell whether the dealer or its keeper lies: both go.
    assert failed.excluded == ("site-000", "site-006")
    assert rosters(world)[1] == tuple(world.names[1:6])
    world.assert_revealed(world.names[1:6])


def test_garbage_is_found_after_unmasking_and_the_updates_of_that_sum_are_never_used_again() -> None:
    world = started()
    world.train(*world.names)
    world.hold_unmask = True
    world.settle()
    order = world.orders[-1]
    digest = order.order.groups[0].digests[1]
    content = bytearray(world.uploads[digest])
    content[-1] ^= 0x40
    world.uploads[digest] = bytes(content)
    world.hold_unmask = False
    world.effects.clear()
    world.unmask(order)
    world.settle()
    assert failures(world) == [(1, "tail-implausible", True)]
    assert "site" not in world.rounds.waiting_for() or world.attempt is not None
    world.train(*world.names)
    world.settle()
    world.assert_revealed(world.names)
    # The order's second delivery finds another attempt in hand.
    before = list(world.log)
    world.unmask(order)
    assert world.log == before


# ---- rosters --------------------------------------------------------------------------------------------------------


def rosters(world: RoundsWorld) -> list[tuple[str, ...]]:
    return [item.roster for item in world.facts("AttemptOpened")]


def test_one_that_comes_later_waits_until_another_one_comes() -> None:
    world = RoundsWorld(6, rounds={"count": 4, "min_participants": 4})
    world.slow = set(world.names)
    world.join(*world.names[:4])
    world.join("site-004")
    assert "site-004" not in world.tasks
    world.train(*world.names[:4])
    world.settle()
    assert rosters(world) == [tuple(world.names[:4])] * 2
    world.join("site-005")
    world.train(*world.names[:4])
    world.settle()
    assert rosters(world)[2] == tuple(world.names)
    assert set(world.tasks) == set(world.names)
    world.train(*world.names)
    world.settle()
    world.assert_revealed(world.names)


def test_an_absent_member_stays_in_the_roster_and_uses_no_prekey_up_that_it_never_saw() -> None:
    world = RoundsWorld(5, rounds={"count": 6, "min_participants": 3})
    world.slow = set(world.names)
    world.join()
    world.train(*world.names[:3])
    world.settle()
    assert rosters(world) == [tuple(world.names[:3]), tuple(world.names)]
    world.kill("site-004")
    for _ in range(3):
        world.train(*world.names[:4])
        world.settle()
    assert rosters(world)[1:] == [tuple(world.names)] * 4
    used = [item.prekeys for item in world.facts("AttemptOpened")[1:]]
    assert [item[0] for item in used] == [2, 3, 4, 5]
    # The first of these it had seen, the others it hadn't.
    assert [item[4] for item in used] == [1, 2, 2, 2]
    for index in (1, 2, 3):
        world.assert_revealed(world.names[:4], index)
    # Back in the middle of a round, it is in the next one.
    world.revive("site-004")
    for number, survivors in ((4, world.names[:4]), (5, world.names)):
        world.train(*world.names)
        world.settle()
        world.assert_revealed(survivors, number)
    assert world.state.finished is not None
    assert all(site.refusals == [] for site in world.sites.values())


def test_whom_the_root_removed_does_not_count_as_a_change() -> None:
    world = RoundsWorld(5, rounds={"count": 2, "min_participants": 4})
    world.slow = set(world.names)
    for name in world.names[:4]:
        world.join(name)
    world.join("site-004")
    world.train(*world.names[:4])
    world.settle()
    world.kill("site-000")
    world.remove("site-000")
    # The open attempt still has it in its roster; the next one hasn't.
    world.pass_time(DEADLINE_S)
    world.train(*world.names[1:4])
    world.settle()
    world.assert_revealed(world.names[1:4])
    assert "site-000" in rosters(world)[1]


def test_participants_without_a_certificate_or_prekeys_are_said_to_be_missing() -> None:
    world = RoundsWorld(3)
    with pytest.raises(RefusedError) as refusal:
        world.rounds.offer("stranger", world.batches["site-000"])
    assert refusal.value.code == "participant-uncertified"
    assert "fedloom federation certify" in refusal.value.hint
    with pytest.raises(RefusedError) as refusal:
        world.rounds.offer("site-001", world.batches["site-000"])
    assert refusal.value.code == "signature-invalid"
    for name in world.names:
        world.carry(world.rounds.available(name, world.now))
    assert world.log == []
    assert "needs at least 3 certified participants with prekeys" in world.rounds.waiting_for()


def test_a_cohort_smaller_than_the_plans_updates_never_opens_a_round() -> None:
    world = RoundsWorld(3, rounds={"min_updates": 3, "min_participants": 3}, secure={"min_cohort": 4})
    world.join()
    assert world.log == []
    assert "needs at least 4 certified" in world.rounds.waiting_for()


# ---- crashes --------------------------------------------------------------------------------------------------------


def test_a_coordinator_killed_after_any_decision_ends_the_round_with_the_exact_sum() -> None:
    whole = RoundsWorld(4)
    whole.join()
    assert whole.points > 20
    for fuse in range(whole.points):
        world = RoundsWorld(4)
        world.fuse = fuse
        world.join()
        for _ in range(6):
            if world.state.finished is None:
                world.pass_time(STEP_S)
        assert world.state.finished is not None, (fuse, world.kinds(), world.rounds.waiting_for())
        world.assert_revealed(world.names)
        assert len(world.lines) == 1
        world.assert_promises_kept()


def test_a_coordinator_killed_before_the_sum_is_stored_unmasks_it_again_to_the_same() -> None:
    world = RoundsWorld(4)
    world.hold_unmask = True
    world.join()
    world.restart_coordinator()
    world.settle()
    first, second = world.orders
    assert first == second
    world.hold_unmask = False
    world.unmask(second)
    world.settle()
    world.assert_revealed(world.names)


def test_a_coordinator_killed_between_the_sum_and_the_merge_still_tells_everybody_that_it_has_the_update() -> None:
    world = RoundsWorld(4, rounds={"count": 2})
    world.hold_merge = True
    world.join()
    assert world.kinds()[-1] == "RoundSealed"
    world.effects.clear()  # nobody got a receipt: the coordinator was killed before it sent them
    world.restart_coordinator()
    world.settle()
    assert sorted(world.receipts()) == [(name, f"run-1/1.1/{name}", True) for name in world.names]
    # There is no line of the log for the round yet.
    assert not any(_is(item, "result") for item in world.effects)


def test_a_participant_killed_in_each_phase_comes_back_into_it() -> None:
    for kind in ("accept", "ready", "upload", "survived", "release"):
        world = RoundsWorld(4)
        arrive = world.arrive
        killed: list[str] = []

        def arriving(
            name: str, item: Signed, kind: str = kind, world: RoundsWorld = world, killed: list[str] = killed
        ) -> None:
            arrive(name, item)  # noqa: B023 - called within this turn of the loop
            if name == "site-001" and kind_of(item.body) == kind and not killed:
                killed.append(name)
                world.kill(name)
                world.later(lambda: world.revive(name))

        world.arrive = arriving  # type: ignore[method-assign]
        world.join()
        for _ in range(3):
            world.pass_time(STEP_S)
        assert killed, kind
        assert world.state.finished is not None, (kind, world.rounds.waiting_for())
        survivors = {name for name in world.facts("SumRevealed")[-1].survivors}
        world.assert_revealed(survivors)
        assert {"site-000", "site-002", "site-003"} <= survivors
        world.assert_promises_kept()


# ---- the end --------------------------------------------------------------------------------------------------------


def test_stopping_gives_an_open_attempt_up_for_good_and_nothing_begins_again() -> None:
    world = started()
    world.effects.clear()
    world.carry(world.rounds.stop(world.now))
    said = [
        (item.participant, Refused.parse(item.statement.body).code) for item in world.effects if _is(item, "refused")
    ]
    assert said == [(name, "stopped") for name in world.names]
    world.settle()
    for site in world.sites.values():
        assert not site.store.kinds(_context(world))
    log = list(world.log)
    for restarted in (False, True):
        if restarted:
            world.restart_coordinator()
        world.train(*world.names)
        world.join()
        world.pass_time(10 * DEADLINE_S)
        world.carry(world.rounds.resume(world.now))
        assert world.log == log
    assert world.rounds.waiting_for() == "The run is stopped."


def test_it_says_whom_it_waits_for() -> None:
    world = started()
    assert world.rounds.waiting_for() == (
        "Round 1, secure sum, waits for the training of: site-000, site-001, site-002, site-003."
    )
    world.train(*world.names[:3])
    world.settle()
    assert world.rounds.waiting_for() == "Round 1, secure sum, waits for the training of: site-003."
    assert listed([f"s{index}" for index in range(7)]) == "s0, s1, s2, s3, s4 and 2 more"
    world.hold = {"freeze"}
    world.train("site-003")
    world.settle()
    assert "waits for the masked updates of" in world.rounds.waiting_for()


def test_masked_updates_are_wanted_only_from_those_who_owe_one_and_in_the_attempts_size() -> None:
    world = started()
    assert world.rounds.upload_bytes() == 4 * 7 + 8 * 4
    assert not world.rounds.uploads_wanted("site-000")
    world.filter_up = lambda name, item: [] if (name, kind_of(item.body)) == ("site-000", "upload") else [item]
    world.train(*world.names)
    world.settle()
    assert world.rounds.uploads_wanted("site-000")
    assert not world.rounds.uploads_wanted("site-001")
    assert not world.rounds.uploads_wanted("stranger")
    held = world.rounds.uploads_held()
    assert len(held) == 3
    # What is here already may be brought again, now and when the sum is made.
    assert all(world.rounds.has_upload(digest) for digest in held)
    assert not world.rounds.has_upload(b"d" * 32)
    world.kill("site-000")
    world.settle()
    assert world.reveals
    assert all(world.rounds.has_upload(digest) for digest in held)


def test_uploads_and_records_of_the_last_rounds_are_public_and_older_ones_are_not() -> None:
    world = RoundsWorld(3, rounds={"count": 3})
    world.join()
    revealed = world.facts("SumRevealed")
    assert len(revealed) == 3
    public = world.rounds.public_blobs(2)
    for item in revealed[1:]:
        assert {bytes.fromhex(digest) for digest in (*item.uploads, item.record, item.digest)} <= public
    assert bytes.fromhex(revealed[0].record) not in public


def test_a_plan_with_plain_averaging_makes_no_secure_rounds() -> None:
    world = RoundsWorld(3)
    plain = world.plan.model_copy(update={"secure": None})
    with pytest.raises(ValueError, match="asks for plain averaging"):
        SecureRounds(plain, world.state, members=world.members, key=world.key, step_s=STEP_S)


def _is(effect: object, kind: str) -> bool:
    return isinstance(effect, SendStatement) and kind_of(effect.statement.body) == kind
