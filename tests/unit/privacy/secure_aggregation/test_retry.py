"""One update, one sum: what may be used again after an attempt that failed, and what never again."""

from __future__ import annotations

import dataclasses

import pytest
from secure_world import World

from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.coordinator import Failed
from privacy.secure_aggregation.memory import Forget, Note
from privacy.secure_aggregation.statements import Accept, Plan, Refused, Signed, Survivors, kind_of


@pytest.fixture(autouse=True)
def few_prekeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prekeys, "STOCK", 8)
    monkeypatch.setattr(prekeys, "LOW", 1)


def stuck(count: int, kind: str = "survived", **changes: object) -> World:
    """A world whose first attempt failed because the participants' statements of this kind got lost."""
    world = World(count, dimension=5, **changes)
    world.filter_up = lambda name, item: [] if kind_of(item.body) == kind else [item]
    world.run()
    assert isinstance(world.conclude(), Failed)
    world.filter_up = lambda name, item: [item]
    return world


def silent(world: World, liars: list[str]) -> None:
    """These participants say of no attempt that they have erased their shares of it."""

    def up(name: str, statement: Signed) -> list[Signed]:
        if name not in liars or kind_of(statement.body) != "accept":
            return [statement]
        accept, key = Accept.parse(statement.body), world.sites[name].key
        acceptance = dataclasses.replace(accept.acceptance(), retired=())
        signature = acceptance.signed(key).signature
        return [dataclasses.replace(accept, retired=(), acceptance_signature=signature).signed(key)]

    world.filter_up = up


def refusals(world: World) -> set[str]:
    return {code for site in world.sites.values() for code in site.refusals}


def test_an_update_whose_attempt_was_given_up_enters_the_next_one() -> None:
    world = stuck(5)
    world.next_attempt(2)
    world.assert_exact(world.names)
    assert refusals(world) == set()


@pytest.mark.parametrize(("count", "needed"), [(3, 1), (4, 3), (5, 3), (6, 4), (10, 7)])
def test_so_many_keepers_must_have_erased_their_shares_that_too_few_are_left(count: int, needed: int) -> None:
    for erased in (needed, needed - 1):
        world = stuck(count)
        numbers = world.attempt.context.numbers if world.attempt else None
        assert numbers is not None
        # With c liars among those that say so, fewer than the threshold still hold a share.
        assert (numbers.keepers - (needed - numbers.corrupt) < numbers.threshold) and needed == (
            numbers.keepers - numbers.threshold + numbers.corrupt + 1
        )
        silent(world, world.names[: count - erased])
        world.next_attempt(2)
        if erased == needed:
            world.assert_exact(world.names)
        else:
            assert refusals(world) == {"update-may-be-revealed"}
            assert isinstance(world.conclude(), Failed)
            assert all(len(site.files) == 1 for site in world.sites.values())


def test_what_must_not_be_used_again_is_known_after_restarts_and_in_a_third_attempt() -> None:
    world = stuck(5)
    liars = world.names[:3]
    for attempt in (2, 3):
        silent(world, liars)
        for name in world.names:
            world.reconnect(name)
        world.settle()
        world.next_attempt(attempt)
        assert isinstance(world.conclude(), Failed)
        assert refusals(world) == {"update-may-be-revealed"}
    world.filter_up = lambda name, item: [item]
    for name in world.names:
        world.reconnect(name)
    world.settle()
    world.next_attempt(4)
    # Now all say so, of every attempt in which the update was masked.
    world.assert_exact(world.names)


def test_a_third_attempt_needs_the_erasure_of_both_earlier_ones() -> None:
    world = stuck(5)
    world.filter_up = lambda name, item: [] if kind_of(item.body) == "survived" else [item]
    world.next_attempt(2)
    assert isinstance(world.conclude(), Failed)
    first, second = world.contexts
    world.filter_up = lambda name, item: [item]
    world.next_attempt(3)
    world.assert_exact(world.names)
    accept = [Accept.parse(item.body) for way, _, item in world.sent if kind_of(item.body) == "accept"][-1]
    assert set(accept.retired) == {first, second}


def test_an_update_whose_shares_were_released_is_never_used_again() -> None:
    world = stuck(5, "release")
    world.next_attempt(2)
    assert isinstance(world.conclude(), Failed)
    assert refusals(world) == {"update-may-be-revealed"}
    first = next(iter(world.contexts))
    notes = [note for site in world.sites.values() for note in site.store.notes if note.kind == "retired"]
    assert notes and all(first not in note.body for note in notes)
    # Trained anew it may, since the sum is over the same participants.
    world.next_attempt(3, task_attempt=2)
    world.assert_exact(world.names)


def test_an_update_whose_sum_is_known_is_never_used_again() -> None:
    world = World(4, dimension=5)
    world.run()
    world.finish()
    for name in world.names:
        world.reconnect(name)
    world.next_attempt(2)
    assert refusals(world) == {"update-may-be-revealed"}
    assert isinstance(world.conclude(), Failed)


def test_a_round_of_scoring_is_another_task_than_the_training_before_it() -> None:
    world = World(4, dimension=5)
    world.run()
    world.finish()
    world.dimension = 0
    for name in world.names:
        world.inputs[name] = (world.inputs[name][0][:0], *world.inputs[name][1:])
    world.next_attempt(2, purpose="evaluate", dimension=0)
    world.assert_exact(world.names)


def test_another_run_in_between_makes_no_participant_forget() -> None:
    world = stuck(5, "release")
    world.next_attempt(1, run_id="run-2")
    world.assert_exact(world.names)
    world.finish()
    world.next_attempt(2, run_id="run-1")
    assert refusals(world) == {"update-may-be-revealed"}


def test_a_plan_that_is_refused_late_lets_nobody_say_that_it_erased_what_it_still_holds() -> None:
    world = World(4, dimension=5)
    world.hold = {"survivors"}
    world.run()
    # Everyone has uploaded. A second plan has a key of low order, which only dealing shares would notice.
    bad = world.context(attempt=2)
    spoilt = dataclasses.replace(bad.roster[3], share_key=bytes(32))
    again = spoilt.prekey("clinics")
    signature = world.sites[spoilt.name].key.sign(b"fedloom/secure-aggregation/statement/1\0" + again.body)
    roster = (*bad.roster[:3], dataclasses.replace(spoilt, signature=signature))
    plan = Plan(dataclasses.replace(bad, roster=roster).canonical())
    for name in world.names[:3]:
        step = world.whisper(name, plan)
        assert step.refusal is not None and step.refusal.code == "key-invalid"
        assert step.changes == [] and step.work == []
    world.released()
    world.assert_exact(world.names)  # the first attempt went on, and shares were released
    first = next(iter(world.contexts))
    world.next_attempt(3)
    accepts = [Accept.parse(item.body) for way, _, item in world.sent if kind_of(item.body) == "accept"]
    assert all(first not in accept.retired for accept in accepts)
    assert refusals(world) == {"key-invalid", "update-may-be-revealed"}


def test_a_refusal_leaves_no_trace_in_memory_that_a_restart_would_lose() -> None:
    world = World(4, dimension=5)
    world.hold = {"delivery"}
    world.begin()
    world.settle()
    name, held = world.held[0]
    site = world.sites[name]
    other = next(item for to, item in world.held if to != name)
    step = world.hear(name, other)  # someone else's parcels
    assert [kind_of(item.body) for item in step.answers] == ["doubt"]
    assert step.changes == []
    notes = list(site.store.notes)
    world.reconnect(name)
    world.settle()
    assert site.store.notes == notes
    assert world.hear(name, held).refusal is None
    assert "delivered" in site.store.kinds(world.attempt.context.hash if world.attempt else b"")


def test_an_attempt_whose_time_is_over_is_erased_at_the_next_offer() -> None:
    world = World(3, dimension=5)
    attempt = world.begin()
    world.settle()
    site = world.sites["site-000"]
    h = attempt.context.hash
    assert set(site.store.kinds(h)) == {"planned", "secrets", "share-key", "delivered"}
    site.perform(site.machine.offer(attempt.context.expires_s + 1))
    assert site.store.kinds(h) == []
    assert "retired" in site.store.kinds()


# ---- two sums, one model ---------------------------------------------------------------------------------------------


def released_without(count: int, lost: int) -> World:
    """All but some upload and release, yet the coordinator says that it got too few shares."""
    world = World(count, dimension=5)
    world.hold = {"freeze"}
    world.run()
    for name in world.names[:lost]:
        world.kill(name)
    world.filter_up = lambda name, item: [] if kind_of(item.body) == "release" else [item]
    world.released()
    assert isinstance(world.conclude(), Failed)
    assert world.outcome is not None and world.outcome.spent  # type: ignore[union-attr]
    world.filter_up = lambda name, item: [item]
    for name in world.names[:lost]:
        world.revive(name)
    return world


def test_two_sums_over_one_model_never_differ_by_one_participant() -> None:
    # Training is repeatable: the second training of a round may give every participant the same update again.
    world = released_without(6, 1)
    world.next_attempt(2, task_attempt=2)
    outcome = world.conclude()
    assert isinstance(outcome, Failed)
    assert outcome.code == "quorum-short"
    assert "survivors-change" in outcome.message and "site-000" in outcome.message
    assert not outcome.spent
    # The same set again, or two more, tell nothing about one.
    world.kill("site-000")
    world.next_attempt(3)
    world.conclude()
    world.assert_exact(world.names[1:])


def test_two_sums_over_one_model_may_differ_by_two_participants() -> None:
    world = released_without(8, 2)
    world.next_attempt(2, task_attempt=2)
    world.conclude()
    world.assert_exact(world.names)


def test_two_sums_over_different_models_may_differ_by_one() -> None:
    world = World(5, dimension=5)
    world.run()
    world.finish()
    world.kill("site-004")
    world.next_attempt(1, round=2, base_digest=b"2" * 32)
    world.conclude()
    world.assert_exact(world.names[:4])


def test_what_was_revealed_is_known_after_a_restart() -> None:
    world = released_without(6, 1)
    for name in world.names:
        world.reconnect(name)
    world.hold = {"survivors"}
    world.next_attempt(2, task_attempt=2)
    for name, held in world.held:
        assert isinstance(Survivors.parse(held.body), Survivors)
        step = world.hear(name, held)
        expected = "survivors-change" if name != "site-000" else None
        assert (step.refusal.code if step.refusal else None) == expected


# ---- late and foreign words ------------------------------------------------------------------------------------------


def test_late_statements_of_an_earlier_attempt_put_nobody_out_of_the_next_one() -> None:
    world = stuck(4)
    late = [(name, item) for way, name, item in world.sent if way == "down"]
    world.begin(world.context(attempt=2))
    world.settle()
    assert world.attempt is not None
    for name, statement in late:
        world.hear(name, statement)
    world.settle()
    world.train_all()
    world.settle()
    world.assert_exact(world.names)
    # They were refused, but by their own name: the coordinator counts them for the attempt that they are of.
    refused = [
        Refused.parse(item.body) for way, _, item in world.sent if way == "up" and kind_of(item.body) == "refused"
    ]
    assert refused
    assert all(item.context != world.attempt.context.hash for item in refused)


def test_the_notes_say_what_is_erased_in_the_same_breath_as_what_is_said() -> None:
    world = stuck(3)
    site = world.sites["site-000"]
    seen: list[list[Note | Forget]] = []
    perform = site.perform
    site.perform = lambda step: (seen.append(step.changes), perform(step))[1]  # type: ignore[method-assign]
    world.next_attempt(2)
    (accepting,) = [changes for changes in seen if any(isinstance(c, Note) and c.kind == "planned" for c in changes)]
    kinds = [(type(item).__name__, item.kind) for item in accepting]
    assert ("Forget", "prekey") in kinds
    (masking,) = [changes for changes in seen if any(isinstance(c, Note) and c.kind == "masked" for c in changes)]
    assert [(type(item).__name__, item.kind) for item in masking] == [
        ("Note", "masked"),
        ("Note", "entered"),
        ("Forget", "secrets"),
    ]
    (releasing,) = [changes for changes in seen if any(isinstance(c, Note) and c.kind == "released" for c in changes)]
    assert ("Forget", "share-key") in [(type(item).__name__, item.kind) for item in releasing]
