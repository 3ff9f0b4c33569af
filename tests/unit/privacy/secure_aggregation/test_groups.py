"""Mask groups: cliques of a large cohort, unions of atoms, and how few may remain in them."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secure_world import NOW, SMALL, World

from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.atoms import atoms_per_group, draw_atoms, smallest_group
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.coordinator import Failed, Unmask
from privacy.secure_aggregation.encoding import Encoding
from privacy.secure_aggregation.graph import Group, groups, publishable
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.statements import Freeze, Plan, Signed, Survivors, kind_of, positions_bytes
from privacy.secure_aggregation.thresholds import corrupt_members


@pytest.fixture(autouse=True)
def few_prekeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prekeys, "STOCK", 2)
    monkeypatch.setattr(prekeys, "LOW", 1)


SMALLEST = Encoding(ring_bits=16, wire_bits=16, value_bits=8, clip_norm=10.0, clip_value=1.0, weight_cap=50)


def roster_of(count: int, **changes: object) -> RoundContext:
    """A context with so many seats; only names and counts matter here."""
    seat = World(3).context().roster[0]
    seats = tuple(dataclasses.replace(seat, name=f"site-{item:04}") for item in range(count))
    values: dict[str, Any] = {"encoding": SMALLEST, "corrupt_percent": 10, **changes}
    if values.get("group_size"):
        names = [item.name for item in seats]
        drawn = draw_atoms(names, values["group_size"], "run-1", 1)
        values.setdefault("atoms", tuple(drawn.get(name, 0) for name in names))
    return dataclasses.replace(World(3).context(), roster=seats, **values)


def beacons(accepted: range | list[int], salt: int = 0) -> dict[int, bytes]:
    return {item: (item + salt).to_bytes(32, "big") for item in accepted}


@given(count=st.integers(3, 400), out=st.sets(st.integers(0, 399), max_size=50), salt=st.integers(0, 2**64))
def test_cliques_partition_the_accepted_participants_evenly(count: int, out: set[int], salt: int) -> None:
    context = CONTEXTS.setdefault((count, 0), roster_of(count))
    accepted = sorted(set(range(count)) - out) or [0]
    found = groups(context, beacons(accepted, salt))
    assert sorted(item for group in found for item in group.members) == accepted
    assert all(list(group.members) == sorted(group.members) for group in found)
    sizes = [len(group.members) for group in found]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 128
    assert len(found) == 1 or min(sizes) >= 64


@given(
    count=st.integers(3, 120),
    group_size=st.integers(3, 40),
    out=st.sets(st.integers(0, 119), max_size=40),
    gone=st.sets(st.integers(0, 119), max_size=20),
    salt=st.integers(0, 2**64),
)
def test_groups_are_disjoint_unions_of_whole_atoms_and_stay_so_whoever_drops(
    count: int, group_size: int, out: set[int], gone: set[int], salt: int
) -> None:
    context = CONTEXTS.setdefault((count, group_size), roster_of(count, group_size=group_size))
    accepted = frozenset(range(count)) - out
    found = groups(context, beacons(sorted(accepted), salt))
    members = [item for group in found for item in group.members]
    assert len(members) == len(set(members))
    assert set(members) <= context.together(accepted)
    # Nobody whose atom is whole is left out, unless all of these are too few for one group.
    assert set(members) == context.together(accepted) or (not found and len(context.together(accepted)) < group_size)
    for group in found:
        assert group_size <= len(group.members) == sum(map(len, group.atoms))
        assert frozenset().union(*group.atoms) == frozenset(group.members)
        assert set(group.atoms) <= set(context.atom_members)
    left = publishable(found, accepted - gone)
    assert left <= accepted - gone
    for atom in context.atom_members:
        assert atom <= left or not atom & left
    for group in found:
        assert not left.intersection(group.members) or len(left.intersection(group.members)) >= group_size
    assert publishable(found, left) == left


@given(group_size=st.integers(3, 1024))
def test_atoms_are_of_three_to_five_and_groups_hardly_larger_than_asked_for(group_size: int) -> None:
    atoms, least = atoms_per_group(group_size)
    assert 3 <= least <= 5
    assert group_size <= atoms * least == smallest_group(group_size) <= group_size + 2
    assert group_size > 5 or (atoms, least) == (1, group_size)


@given(count=st.integers(0, 60), group_size=st.integers(3, 12), later=st.integers(0, 20))
def test_newcomers_form_atoms_of_their_own_as_soon_as_they_are_enough(count: int, group_size: int, later: int) -> None:
    least = atoms_per_group(group_size)[1]
    names = [f"site-{item:03}" for item in range(count)]
    first = draw_atoms(names, group_size, "run-1", 1)
    assert set(first) == (set(names) if count >= least else set())
    assert first == draw_atoms(reversed(names), group_size, "run-1", 1)
    sizes = [list(first.values()).count(atom) for atom in set(first.values())]
    assert all(least <= size < 2 * least for size in sizes)
    assert set(first.values()) == set(range(1, len(sizes) + 1))
    new = draw_atoms([f"new-{item:03}" for item in range(later)], group_size, "run-1", len(sizes) + 1)
    assert set(new.values()).isdisjoint(first.values())


def test_two_groups_come_of_as_many_as_two_smallest_groups() -> None:
    for group_size in range(3, 30):
        count = 2 * smallest_group(group_size)
        context = roster_of(count, group_size=group_size)
        assert len(groups(context, beacons(range(count)))) == 2


CONTEXTS: dict[tuple[int, int], RoundContext] = {}


def test_another_beacon_of_one_participant_draws_other_groups() -> None:
    context = roster_of(40, group_size=6)
    one = groups(context, beacons(range(40)))
    assert one == groups(context, beacons(range(40)))
    assert one != groups(context, {**beacons(range(40)), 39: bytes(32)})
    assert one != groups(dataclasses.replace(context, attempt=2), beacons(range(40)))


def test_a_group_below_its_floor_goes_whole_and_the_others_stay() -> None:
    found = (Group((0, 1, 2), 3), Group((3, 4, 5, 6), 3))
    assert publishable(found, frozenset(range(7))) == frozenset(range(7))
    assert publishable(found, frozenset({0, 1, 3, 4, 5})) == frozenset({3, 4, 5})
    assert publishable(found, frozenset({0, 1, 3, 4})) == frozenset()


def test_an_atom_that_loses_a_member_goes_whole_and_the_rest_of_its_group_stays_while_it_is_large_enough() -> None:
    atoms = (frozenset({0, 1, 2}), frozenset({3, 4, 5}), frozenset({6, 7, 8}))
    found = (Group(tuple(range(9)), 6, atoms),)
    assert publishable(found, frozenset(range(9))) == frozenset(range(9))
    assert publishable(found, frozenset(range(9)) - {4}) == frozenset({0, 1, 2, 6, 7, 8})
    assert publishable(found, frozenset(range(9)) - {4, 8}) == frozenset()


@pytest.mark.parametrize(("count", "percent"), [(130, 20), (300, 10), (500, 33), (1000, 10), (1000, 20)])
def test_two_honest_updates_stay_in_every_clique_however_the_accepted_were_chosen(count: int, percent: int) -> None:
    # The coordinator counts in every corrupt participant, and as few honest ones as it likes.
    context = roster_of(count, corrupt_percent=percent)
    corrupt = corrupt_members(count, percent)
    for accepted in (count, max(3, 3 * count // 10), corrupt + 2):
        bad = min(corrupt, accepted)
        for group in groups(context, beacons(range(accepted))):
            size = len(group.members)
            fewer = range(min(group.floor - 1, size + 1))
            ways = sum(math.comb(bad, item) * math.comb(accepted - bad, size - item) for item in fewer)
            assert Fraction(ways, math.comb(accepted, size)) >= 1 - Fraction(1, 2**44)


# ---- whole attempts --------------------------------------------------------------------------------------------------


def test_a_cohort_of_130_sums_in_cliques_with_drops_at_the_freeze_and_after_it() -> None:
    world = World(130, dimension=3, encoding=SMALLEST, corrupt_percent=10)
    world.begin()
    world.settle()
    slow, lost = world.names[7], world.names[11]
    world.train_all(but={slow})
    world.hold = {"freeze"}
    world.settle()
    world.pass_time(600)
    world.kill(lost)
    world.released()
    world.conclude()
    assert isinstance(world.outcome, Unmask)
    world.assert_exact(sorted(set(world.names) - {slow, lost}))
    sizes = sorted(len(group.members) for group in world.outcome.groups)
    assert len(sizes) == 2 and sum(sizes) == 128
    # The one that was lost after the freeze costs a stream for each survivor of its clique; the slow one costs none.
    extra = [len(group.terms) - len(group.members) for group in world.outcome.groups]
    assert sorted(extra)[0] == 0 and sorted(extra)[1] in sizes
    terms = [len(item) for found in world.expansions.values() for item in found]
    assert set(terms) == {65}
    assert world.refused == []
    assert all(site.refusals == [] for site in world.sites.values())
    keepers = set(world.outcome.context.keepers)
    signers = {name for way, name, item in world.sent if way == "up" and kind_of(item.body) == "survived"}
    assert signers <= {world.names[item] for item in keepers}
    assert len(keepers) == 100
    # Who keeps no shares has nothing to sign or to release.
    other = next(name for item, name in enumerate(world.names) if item not in keepers)
    asked = next(item for way, _, item in world.sent if way == "down" and kind_of(item.body) == "survivors")
    step = world.hear(other, asked)
    assert step.refusal is not None and step.refusal.code == "protocol-order"


@pytest.mark.parametrize("count", [6, 9, 11])
def test_buckets_are_summed_one_by_one(count: int) -> None:
    world = World(count, group_size=3, encoding=SMALL)
    world.run()
    assert isinstance(world.outcome, Unmask)
    assert len(world.outcome.groups) == count // 3
    world.assert_exact(world.names)


def bucketed() -> tuple[World, list[tuple[str, ...]]]:
    """Twelve participants in buckets of three, with the delivery out; and the buckets' names."""
    world = World(12, group_size=3, encoding=SMALL)
    attempt = world.begin()
    world.settle()
    found = groups(attempt.context, {i: a.beacon for i, a in attempt._book.accepts.items()})
    return world, [tuple(world.names[item] for item in group.members) for group in found]


def test_a_bucket_that_shrinks_in_training_is_left_out_whole_at_the_freeze() -> None:
    world, buckets = bucketed()
    gone = buckets[1][0]
    world.train_all(but={gone})
    world.settle()
    world.pass_time(600)
    world.assert_exact(sorted(set(world.names) - set(buckets[1])))


def test_a_bucket_that_shrinks_after_the_freeze_is_left_out_whole_and_none_of_its_secrets_is_released() -> None:
    world, buckets = bucketed()
    world.hold = {"freeze"}
    world.train_all()
    world.settle()
    world.kill(buckets[2][1])
    world.released()
    world.conclude()
    world.assert_exact(sorted(set(world.names) - set(buckets[2])))
    assert world.attempt is not None
    _, _, _, seeds, mask_keys = world.attempt.public_record()
    known = {world.names[item] for item, _ in (*seeds, *mask_keys)}
    assert known.isdisjoint(buckets[2])


def test_too_many_shrunken_buckets_end_the_attempt() -> None:
    world, buckets = bucketed()
    world.train_all(but={bucket[0] for bucket in buckets[:2]})
    world.settle()
    world.pass_time(600)
    world.assert_exact(sorted(buckets[2] + buckets[3]))
    world, buckets = bucketed()
    world.train_all(but={bucket[0] for bucket in buckets})
    world.settle()
    world.pass_time(600)
    assert isinstance(world.outcome, Failed)
    assert world.outcome.code == "too-few-ready"


def test_a_participant_refuses_a_freeze_that_leaves_a_mate_of_its_atom_out() -> None:
    world, buckets = bucketed()
    assert world.attempt is not None
    world.train_all()
    victim, mate = buckets[0][0], buckets[0][1]
    members = [item for item, name in enumerate(world.names) if name != mate]
    step = world.whisper(victim, Freeze(world.attempt.context.hash, positions_bytes(members)))
    assert step.refusal is not None
    assert (step.refusal.code, step.refusal.setting) == ("atom-split", "")
    assert mate in step.refusal.message
    assert step.changes == []


def test_who_is_ready_and_whose_mates_are_refuses_a_freeze_without_it() -> None:
    world, buckets = bucketed()
    assert world.attempt is not None
    world.train_all()
    victims = [world.names.index(name) for name in buckets[0]]
    for members, code in (
        (set(range(12)) - {victims[0]}, "freeze-without-me"),
        (set(range(12)) - set(victims), ""),  # a mate may not have been ready: nobody can tell
    ):
        step = world.whisper(buckets[0][0], Freeze(world.attempt.context.hash, positions_bytes(sorted(members))))
        assert (step.refusal.code if step.refusal else "") == code


def test_mates_of_one_that_never_accepts_keep_shares_and_mask_nothing() -> None:
    world = World(12, group_size=3, encoding=SMALL)
    world.kill("site-004")
    attempt = world.begin()
    world.settle()
    world.pass_time(31)
    world.train_all()
    world.settle()
    atom = next(item for item in attempt.context.atom_members if 4 in item)
    mates = {world.names[item] for item in atom} - {"site-004"}
    world.assert_exact(sorted(set(world.names) - {world.names[item] for item in atom}))
    assert all(site.refusals == [] for site in world.sites.values())
    said = {(name, kind_of(item.body)) for way, name, item in world.sent if way == "up" and name in mates}
    assert said >= {(name, kind) for name in mates for kind in ("accept", "survived", "release")}
    assert {kind for _, kind in said}.isdisjoint({"upload", "ready", "refused"})
    assert all("secrets" not in world.sites[name].store.kinds(attempt.context.hash) for name in mates)


def test_an_attempt_in_which_no_atom_is_whole_ends_before_the_training() -> None:
    world = World(9, group_size=3, encoding=SMALL)
    context = world.context()
    for atom in context.atom_members:
        world.kill(world.names[min(atom)])
    world.begin(context)
    world.settle()
    world.pass_time(31)
    assert isinstance(world.outcome, Failed)
    assert world.outcome.code == "too-few-accepts"
    assert "whole atom" in world.outcome.message


def test_the_smallest_atom_counts_for_a_site_and_not_the_group() -> None:
    world = World(12, group_size=6, encoding=SMALL, policy=SitePolicy(min_group=4))
    world.run()
    assert isinstance(world.outcome, Failed)
    assert {code for site in world.sites.values() for code in site.refusals} == {"group-floor"}


def test_no_survivor_set_may_split_an_atom_or_hold_a_group_below_its_floor() -> None:
    world = World(12, group_size=6, encoding=SMALL)
    attempt = world.begin()
    world.settle()
    world.hold = {"survivors"}
    world.train_all()
    world.settle()
    _, held = world.held[0]
    opened = Survivors.parse(held.body)
    rows = [opened.uploads[at : at + 98] for at in range(0, len(opened.uploads), 98)]
    group, other = attempt._book.groups
    for gone, code in ((min(group.atoms[0]), "atom-split"), (group.atoms[0], "group-floor")):
        lost = {item.to_bytes(2, "big") for item in (gone if isinstance(gone, frozenset) else [gone])}
        fewer = b"".join(row for row in rows if row[:2] not in lost)
        for witness in (max(group.atoms[0]), min(group.atoms[1]), min(other.members)):
            step = world.whisper(world.names[witness], dataclasses.replace(opened, uploads=fewer))
            assert step.refusal is not None and step.refusal.code == code
    world.released()
    world.assert_exact(world.names)


# ---- over the attempts of a run --------------------------------------------------------------------------------------


def test_an_atom_is_for_the_whole_run_and_each_change_is_refused_by_name() -> None:
    world = World(11, group_size=3, encoding=SMALL)
    world.run()
    world.finish()
    context = world.context(round=2, attempt=2)
    me = world.names[0]
    mate = next(item for item in context.atom_members if 0 in item) - {0}
    swapped = list(context.atoms)
    swapped[min(mate)], swapped[other(context)] = swapped[other(context)], swapped[min(mate)]
    joined = list(context.atoms)
    joined[other(context)] = context.atoms[0]
    for atoms in (swapped, joined):
        task = world.assignment(round=2)
        step = world.sites[me].machine.plan(
            plan_of(world, dataclasses.replace(context, atoms=tuple(atoms))), task, world.now
        )
        assert step.refusal is not None and step.refusal.code == "atom-changed"
        assert world.names[other(context)] in step.refusal.message
    # Another run has atoms of its own; and what a site remembers survives its restart.
    world.sites[me].restart()
    machine = world.sites[me].machine
    assert machine.plan(plan_of(world, dataclasses.replace(context, atoms=tuple(swapped))), task, NOW).refusal
    elsewhere = dataclasses.replace(context, run_id="run-2", atoms=tuple(swapped))
    step = machine.plan(plan_of(world, elsewhere), world.assignment(round=2, run_id="run-2"), NOW)
    assert step.refusal is None


def other(context: RoundContext) -> int:
    """A position in another atom than the first participant's, one that stays large enough without it."""
    return next(min(atom) for atom in context.atom_members if len(atom) == 4 and 0 not in atom)


def plan_of(world: World, context: RoundContext) -> Signed:
    return Plan(context.canonical()).signed(world.key)


def test_a_plan_with_other_groups_than_the_runs_plan_asks_for_is_refused() -> None:
    world = World(6, encoding=SMALL)
    context = world.context(group_size=3, atoms=(1, 1, 1, 2, 2, 2))
    step = world.sites["site-000"].machine.plan(plan_of(world, context), world.assignment(), NOW)
    assert step.refusal is not None and step.refusal.code == "task-mismatch"
    assert "group_size" in step.refusal.message
