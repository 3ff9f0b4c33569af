"""Mask groups: cliques of a large cohort, buckets of a robust merge, and how few may remain in them."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secure_world import SMALL, World

from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.coordinator import Failed, Unmask
from privacy.secure_aggregation.encoding import Encoding
from privacy.secure_aggregation.graph import Group, groups, publishable
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.statements import Freeze, Survivors, kind_of, positions_bytes
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
    values = {"encoding": SMALLEST, "corrupt_percent": 10, **changes}
    return dataclasses.replace(World(3).context(), roster=seats, **values)


def beacons(accepted: range | list[int], salt: int = 0) -> dict[int, bytes]:
    return {item: (item + salt).to_bytes(32, "big") for item in accepted}


@given(
    count=st.integers(3, 400),
    group_size=st.sampled_from([0, 3, 5, 10, 40]),
    out=st.sets(st.integers(0, 399), max_size=50),
    salt=st.integers(0, 2**64),
)
def test_groups_partition_the_accepted_participants_evenly(
    count: int, group_size: int, out: set[int], salt: int
) -> None:
    context = CONTEXTS.setdefault((count, group_size), roster_of(count, group_size=group_size))
    accepted = sorted(set(range(count)) - out) or [0]
    found = groups(context, beacons(accepted, salt))
    assert sorted(item for group in found for item in group.members) == accepted
    assert all(list(group.members) == sorted(group.members) for group in found)
    sizes = [len(group.members) for group in found]
    assert max(sizes) - min(sizes) <= 1
    if group_size and len(found) > 1:
        assert group_size <= min(sizes) <= max(sizes) < 2 * group_size
    if not group_size:
        assert max(sizes) <= 128
        assert len(found) == 1 or min(sizes) >= 64


CONTEXTS: dict[tuple[int, int], RoundContext] = {}


def test_another_beacon_of_one_participant_draws_other_groups() -> None:
    context = roster_of(40, group_size=5)
    one = groups(context, beacons(range(40)))
    assert one == groups(context, beacons(range(40)))
    assert one != groups(context, {**beacons(range(40)), 39: bytes(32)})
    assert one != groups(dataclasses.replace(context, attempt=2), beacons(range(40)))


def test_a_group_below_its_floor_goes_whole_and_the_others_stay() -> None:
    found = (Group((0, 1, 2), 3), Group((3, 4, 5, 6), 3))
    assert publishable(found, frozenset(range(7))) == frozenset(range(7))
    assert publishable(found, frozenset({0, 1, 3, 4, 5})) == frozenset({3, 4, 5})
    assert publishable(found, frozenset({0, 1, 3, 4})) == frozenset()


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


def test_one_group_that_a_large_group_size_makes_is_not_safer_than_its_floor() -> None:
    context = roster_of(500, group_size=400, corrupt_percent=20)
    (only,) = groups(context, beacons(range(500)))
    assert only.floor >= 102


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
    assert isinstance(world.outcome, Failed)
    assert world.outcome.code == "too-few-ready"


def test_a_participant_refuses_a_freeze_that_leaves_too_few_in_its_own_bucket() -> None:
    world, buckets = bucketed()
    assert world.attempt is not None
    world.train_all()
    victim, mate = buckets[0][0], buckets[0][1]
    members = [item for item, name in enumerate(world.names) if name != mate]
    step = world.whisper(victim, Freeze(world.attempt.context.hash, positions_bytes(members)))
    assert step.refusal is not None
    assert (step.refusal.code, step.refusal.setting) == ("group-floor", "[secure_aggregation] min_group")
    assert step.changes == []


def test_the_sites_own_smallest_group_counts_at_every_step() -> None:
    policy = SitePolicy(min_group=4)
    world = World(8, group_size=4, encoding=SMALL, policy=policy)
    attempt = world.begin()
    world.settle()
    found = groups(attempt.context, {i: a.beacon for i, a in attempt._book.accepts.items()})
    assert {group.floor for group in found} == {3}
    world.hold = {"freeze"}
    world.train_all()
    world.settle()
    lost = found[0].members[0]
    world.kill(world.names[lost])
    world.released()
    world.conclude()
    # Three of four would be published by the plan's own rule; those in that bucket refuse, the others can't tell.
    assert isinstance(world.outcome, Failed)
    refused = [name for name, site in world.sites.items() if "group-floor" in site.refusals]
    assert refused == [world.names[item] for item in found[0].members[1:]]


def test_no_survivor_set_may_hold_a_bucket_below_its_floor() -> None:
    world, buckets = bucketed()
    world.hold = {"survivors"}
    world.train_all()
    world.settle()
    _, held = world.held[0]
    opened = Survivors.parse(held.body)
    lost = world.names.index(buckets[0][0]).to_bytes(2, "big")
    rows = [opened.uploads[at : at + 98] for at in range(0, len(opened.uploads), 98)]
    fewer = b"".join(row for row in rows if not row.startswith(lost))
    for witness in (buckets[0][1], buckets[3][0]):
        step = world.whisper(witness, dataclasses.replace(opened, uploads=fewer))
        assert step.refusal is not None and step.refusal.code == "group-floor"
    world.released()
    world.assert_exact(world.names)
