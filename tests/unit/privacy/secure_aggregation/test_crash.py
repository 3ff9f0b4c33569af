"""Killed between any two steps: the sum comes all the same, and no promise is ever made twice in two ways."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_world import World

from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.coordinator import Failed, Unmask

NAMED = {"too-few-accepts", "too-few-ready", "too-few-uploads", "quorum-short", "release-short"}


@pytest.fixture(autouse=True)
def few_prekeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prekeys, "STOCK", 3)
    monkeypatch.setattr(prekeys, "LOW", 1)


def points_of_a_site(freeze: bool = True) -> int:
    world = World(3, dimension=3, freeze=freeze)
    site = world.sites["site-001"]
    before = site.points
    world.run()
    world.finish()
    return site.points - before


def points_of_the_coordinator() -> int:
    world = World(4, dimension=3)
    world.run()
    return world.points


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("freeze", [True, False])
def test_a_participant_killed_anywhere_comes_back_and_nothing_is_lost(count: int, freeze: bool) -> None:
    for point in range(points_of_a_site(freeze)):
        world = World(count, dimension=3, freeze=freeze)
        site = world.sites["site-001"]
        site.fuse = point
        world.run()
        world.conclude()
        world.assert_exact(world.names)
        world.finish()
        assert site.life == 1
        world.hear(site.name, world.result().signed(world.key))  # whoever was away is told the end again
        world.assert_promises_kept()
        assert world.refused == []
        assert site.refusals == []
        assert {note.context for note in site.store.notes} == {b""}
        # What it holds afterwards serves the next round as well.
        world.next_attempt(1, round=2, base_digest=b"2" * 32)
        world.assert_exact(world.names)
        world.assert_promises_kept()


def test_all_participants_killed_at_one_point_still_sum_exactly() -> None:
    for point in range(points_of_a_site()):
        world = World(4, dimension=3)
        for site in world.sites.values():
            site.fuse = point
        world.run()
        world.conclude()
        world.assert_exact(world.names)
        world.assert_promises_kept()


@pytest.mark.parametrize("drop", ["nobody", "before the freeze", "after the freeze"])
def test_a_coordinator_killed_between_any_two_records_goes_on(drop: str) -> None:
    for point in range(points_of_the_coordinator()):
        world = World(4, dimension=3)
        world.fuse = point
        world.begin()
        world.settle()
        lost = world.names[2]
        if drop == "after the freeze":
            world.hold = {"freeze"}
        world.train_all(but={lost} if drop == "before the freeze" else ())
        if drop == "before the freeze":
            world.kill(lost)
        world.settle()
        if drop == "after the freeze":
            if not world.held:
                world.pass_time(100)
            world.kill(lost)
            world.released()
        world.conclude()
        world.assert_promises_kept()
        world.assert_exact(set(world.names) - ({lost} if drop != "nobody" else set()))
        assert world.refused == []
        assert all(site.refusals == [] for site in world.sites.values())


def test_a_coordinator_that_was_down_waits_for_those_who_are_not_back_yet() -> None:
    world = World(5, dimension=3)
    world.begin()
    world.settle()
    world.train_all(but={"site-003"})
    world.settle()
    assert world.attempt is not None
    attempt = world._make(world.attempt.context)
    attempt.replay(world.records)
    world.attempt = attempt
    assert attempt.phase == "training"
    # Nobody is connected: that four of five are ready is no reason to cut the fifth off at once.
    world.now += 20
    world.perform(attempt.resume(world.now))
    assert attempt.phase == "training"
    for name in world.names:
        world.perform(attempt.back(name, world.now))
    world.settle()
    assert attempt.phase == "training"
    world.train_all()
    world.settle()
    world.assert_exact(world.names)


def test_a_failure_is_still_known_after_a_restart_with_everyone_who_is_to_blame() -> None:
    world = World(4, dimension=3)
    world.begin()
    world.settle()
    assert world.attempt is not None
    world.perform(world.attempt.excuse("site-001", "no data", world.now))
    world.perform(world.attempt.abort("stopped", "the operator stopped it", world.now))
    before = world.outcome
    assert isinstance(before, Failed)
    assert before.excluded == {"site-001"}
    world.outcome = None
    world.restart_coordinator()
    assert world.outcome == before
    assert world.attempt.failed == before


def test_an_order_to_unmask_comes_once_after_a_restart_and_says_the_same() -> None:
    world = World(4, dimension=3)
    world.run()
    assert isinstance(world.outcome, Unmask)
    before, record = world.outcome, world.attempt.public_record() if world.attempt else None
    attempt = world._make(before.context)
    attempt.replay(world.records)
    orders = [item for item in attempt.resume(world.now).effects if isinstance(item, Unmask)]
    assert orders == [before]
    assert attempt.public_record() == record
    assert [item for item in attempt.resume(world.now).effects if isinstance(item, Unmask)] == [before]
    failed = [
        item for item in attempt.abort("sum-implausible", "rubbish", world.now).effects if isinstance(item, Failed)
    ]
    assert [item.spent for item in failed] == [True]


def ended_well(world: World) -> Unmask | Failed:
    """The exact sum over the survivors, or a named reason; and nobody has refused anything but a freeze without it."""
    outcome = world.conclude()
    world.assert_promises_kept()
    # A participant that was away when the others were frozen, and says so, is the only one with a reason.
    assert {code for site in world.sites.values() for code in site.refusals} <= {"freeze-without-me"}
    if isinstance(outcome, Unmask):
        context = outcome.context
        world.assert_exact(context.names[item] for group in outcome.groups for item in group.members)
    else:
        assert outcome.code in NAMED
        assert outcome.spent == (outcome.code == "release-short")
    return outcome


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(3, 6),
    fuses=st.dictionaries(st.integers(0, 5), st.integers(0, 24), max_size=4),
    coordinator=st.none() | st.integers(0, 40),
    twice=st.booleans(),
)
@settings(max_examples=60)
def test_any_order_of_messages_with_any_crashes_keeps_every_promise(
    seed: int, count: int, fuses: dict[int, int], coordinator: int | None, twice: bool
) -> None:
    world = World(count, dimension=3)
    world.shuffle = random.Random(seed)
    world.fuse = coordinator
    for position, fuse in fuses.items():
        if position < count:
            world.sites[world.names[position]].fuse = fuse
    if twice:
        world.filter_up = lambda name, item: [item] * world.shuffle.choice((1, 1, 2)) if world.shuffle else [item]
        world.filter_down = world.filter_up
    world.run()
    ended_well(world)


@given(
    seed=st.integers(0, 2**32),
    fuses=st.dictionaries(st.integers(0, 6), st.integers(0, 24), max_size=4),
    coordinator=st.none() | st.integers(0, 60),
    lost=st.sampled_from([0.0, 0.05]),
)
@settings(max_examples=25)
def test_sums_of_groups_hold_whole_atoms_in_any_order_of_messages_with_any_crashes(
    seed: int, fuses: dict[int, int], coordinator: int | None, lost: float
) -> None:
    chance = random.Random(seed)
    world = World(7, dimension=3, group_size=3)
    world.shuffle = chance
    world.fuse = coordinator
    world.filter_up = lambda name, item: [item] if chance.random() >= lost else []
    for position, fuse in fuses.items():
        world.sites[world.names[position]].fuse = fuse
    world.run()
    outcome = ended_well(world)
    if isinstance(outcome, Unmask):
        members = frozenset(item for group in outcome.groups for item in group.members)
        assert all(atom <= members or not atom & members for atom in outcome.context.atom_members)
    world.assert_promises_kept()


@given(seed=st.integers(0, 2**32), count=st.integers(4, 6), lost=st.floats(0.0, 0.3))
@settings(max_examples=60)
def test_messages_that_get_lost_end_in_the_exact_sum_or_in_a_named_reason(seed: int, count: int, lost: float) -> None:
    chance = random.Random(seed)
    world = World(count, dimension=3)
    world.shuffle = chance
    world.filter_up = lambda name, item: [item] if chance.random() >= lost else []
    world.filter_down = world.filter_up
    world.run()
    outcome = ended_well(world)
    # Whatever happened, the next attempt over a good network is exact, or refused so that nothing can leak.
    world.filter_up = world.filter_down = lambda name, item: [item]
    world.shuffle = None
    if isinstance(outcome, Failed):
        before = len(world.names) - len(world.attempt.survivors()) if world.attempt else 0
        world.next_attempt(2, task_attempt=2 if outcome.spent else 1)
        if isinstance(world.conclude(), Unmask):
            world.assert_exact(world.names)
        else:
            refusals = {code for site in world.sites.values() for code in site.refusals}
            assert refusals & {"update-may-be-revealed", "survivors-change"}, (before, world.outcome)
    world.assert_promises_kept()
