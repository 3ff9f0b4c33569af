"""Rounds with sums of groups: the same atoms in every attempt of a run, whoever drops, joins, leaves or is killed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random

import pytest
from rounds_world import RoundsWorld
from secure_world import DEADLINE_S, STEP_S

from coordinator.rounds import ATOM_INCOMPLETE, BeginMerge, GroupRevealed, from_row, to_row
from coordinator.rounds.facts import AttemptOpened, SumRevealed
from coordinator.status import outcome
from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.statements import kind_of


@pytest.fixture(autouse=True)
def few_prekeys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making 32 prekeys takes longer than a round of them."""
    monkeypatch.setattr(prekeys, "STOCK", 6)
    monkeypatch.setattr(prekeys, "LOW", 2)


def grouped(sites: int = 9, *, least: int = 6, group_size: int = 3, **rounds: int) -> RoundsWorld:
    world = RoundsWorld(sites, rounds={"min_participants": least, **rounds}, secure={"group_size": group_size})
    world.check_replay = True
    return world


def atoms(world: RoundsWorld) -> list[frozenset[str]]:
    """The run's atoms, after a look whether each attempt had the same ones."""
    found: dict[str, int] = {}
    for fact in world.facts("AttemptOpened"):
        for name, atom in zip(fact.roster, fact.atoms, strict=True):
            assert found.setdefault(name, atom) == atom
    assert found == world.state.atoms == world.restored().state.atoms
    return [frozenset(name for name in found if found[name] == atom) for atom in sorted(set(found.values()))]


def check(world: RoundsWorld) -> None:
    """In each sum that was revealed every atom is whole or absent, and each group is large enough."""
    parts = atoms(world)
    size = world.plan.secure.group_size if world.plan.secure is not None else 0
    for fact in world.facts("SumRevealed"):
        for group in fact.groups:
            members = frozenset(group.members)
            assert all(atom <= members or not atom & members for atom in parts)
            assert len(members) >= size
        assert sorted(name for group in fact.groups for name in group.members) == sorted(fact.survivors)
    for index, (order, _) in enumerate(world.reveals):
        context = order.order.context
        names = [context.names[item] for group in order.order.groups for item in group.members]
        world.assert_revealed(names, index)


def merges(world: RoundsWorld) -> list[BeginMerge]:
    return [item for item in world.effects if isinstance(item, BeginMerge)]


@pytest.mark.parametrize(("sites", "group_size"), [(9, 3), (11, 3), (10, 5), (12, 6)])
def test_a_run_of_training_and_scoring_merges_the_means_of_its_groups(sites: int, group_size: int) -> None:
    world = grouped(sites, least=sites, group_size=group_size, count=2, evaluate_every=1)
    world.join()
    assert world.state.finished is not None and world.state.finished.reason == "completed"
    check(world)
    assert all(site.refusals == [] for site in world.sites.values())
    scored = world.facts("SumRevealed")[-1]
    assert all(group.digest == "" and group.weight > 0 for group in scored.groups)
    for order, fact in zip(merges(world), world.facts("SumRevealed"), strict=False):
        assert [item.participant for item in order.contributions] == sorted(group.label for group in fact.groups)
        assert {item.participant: (item.digest, item.examples) for item in order.contributions} == {
            group.label: (group.digest, group.weight) for group in fact.groups
        }
        assert sum(item.examples for item in order.contributions) == fact.weight
        assert order.rejected == ()
        assert {bytes.fromhex(group.digest) for group in fact.groups} <= world.rounds.public_blobs(9)


def test_larger_groups_are_drawn_anew_from_the_same_atoms() -> None:
    world = grouped(12, least=12, group_size=6, count=10, evaluate_every=0)
    world.check_replay = False
    world.join()
    check(world)
    drawn = [frozenset(frozenset(group.members) for group in fact.groups) for fact in world.facts("SumRevealed")]
    assert len(set(drawn)) > 1
    assert len(atoms(world)) == 4


def test_who_drops_in_training_takes_its_atom_along_and_the_others_are_merged() -> None:
    world = grouped(count=1, least=9)
    world.slow = {"site-004"}
    world.join()
    world.pass_time(DEADLINE_S)
    atom = next(item for item in atoms(world) if "site-004" in item)
    (fact,) = world.facts("SumRevealed")
    assert set(fact.survivors) == set(world.names) - atom
    check(world)
    assert all(site.refusals == [] for site in world.sites.values())
    late = {name for name, reason in world.cancelled()}
    assert late == atom


@pytest.mark.parametrize("absent", ["before it is ready", "before its upload"])
def test_mates_of_one_that_is_late_sat_out_and_werent_late(absent: str) -> None:
    world = grouped(count=1, least=9)
    if absent == "before it is ready":
        world.slow = {"site-004", "site-005"}
    else:
        world.filter_up = lambda name, item: (
            [] if name in ("site-004", "site-005") and kind_of(item.body) == "upload" else [item]
        )
    world.join()
    world.pass_time(DEADLINE_S)
    (fact,) = world.facts("SumRevealed")
    (done,) = world.state.rounds
    found = {name: outcome(done, seat) for name, seat in done.seats.items() if name not in fact.survivors}
    lost = frozenset().union(*(atom for atom in atoms(world) if atom & {"site-004", "site-005"}))
    assert set(found) == lost
    assert found == {name: "late" if name in ("site-004", "site-005") else "sat out" for name in lost}
    assert {item.code for item in world.facts("ParticipantExcused")} == {"late", ATOM_INCOMPLETE}


def test_mates_of_one_that_is_away_sit_out_and_the_operator_sees_why() -> None:
    world = grouped(count=4)
    world.hold_merge = True
    world.join()
    atom = next(item for item in atoms(world) if "site-004" in item)
    mates = ", ".join(sorted(atom - {"site-004"}))
    world.kill("site-004")
    world.merge(merges(world)[-1])
    world.settle()
    assert set(world.facts("AttemptOpened")[-1].roster) == set(world.names) - atom
    assert f"{mates} sit out until site-004 of their atom is back." in world.rounds.waiting_for()
    world.revive("site-004")
    assert "sit out" not in world.rounds.waiting_for()
    for _ in range(2):
        world.merge(merges(world)[-1])
        world.settle()
    assert set(world.facts("AttemptOpened")[-1].roster) == set(world.names)
    check(world)


def test_newcomers_wait_until_they_are_an_atom_and_join_no_other() -> None:
    world = grouped(9, count=4)
    world.hold_merge = True
    world.join(*world.names[:6])
    world.join("site-006", "site-007")
    assert "site-006, site-007 would be in a sum with 1 more newcomers." in world.rounds.waiting_for()
    world.merge(merges(world)[-1])
    world.settle()
    assert world.facts("AttemptOpened")[-1].roster == tuple(world.names[:6])
    world.join("site-008")
    assert "newcomers" not in world.rounds.waiting_for()
    world.merge(merges(world)[-1])
    world.settle()
    assert world.facts("AttemptOpened")[-1].roster == tuple(world.names)
    assert atoms(world)[-1] == frozenset(world.names[6:])
    check(world)


def test_who_is_removed_for_good_takes_its_atom_out_of_the_run() -> None:
    world = grouped(count=3)
    world.hold_merge = True
    world.join()
    atom = next(item for item in atoms(world) if "site-004" in item)
    world.kill("site-004")
    world.remove("site-004")
    world.merge(merges(world)[-1])
    world.settle()
    assert set(world.facts("AttemptOpened")[-1].roster) == set(world.names) - atom
    assert "can be in no sum of this run any more: site-004 of their atom left for good." in world.rounds.waiting_for()
    check(world)


def test_a_group_whose_sum_is_garbage_is_named_in_the_merge_order_and_its_members_are_done() -> None:
    world = grouped(count=1, least=9)
    site = world.sites["site-004"]
    perform = site._masked

    def garbage(work: object) -> bytes:
        context = work.context  # type: ignore[attr-defined]
        main, tail = site.masks[context.hash]
        site.masks[context.hash] = (main, tail + (1 << 62))
        return perform(work)  # type: ignore[arg-type]

    site._masked = garbage  # type: ignore[method-assign]
    world.join()
    (order,), (fact,) = merges(world), world.facts("SumRevealed")
    ((label, reason),) = order.rejected
    assert "site-004" in label.split("+") and reason == "tail-implausible"
    assert len(order.contributions) == 2
    assert label not in {item.participant for item in order.contributions}
    assert sum(item.examples for item in order.contributions) == fact.weight
    # Their updates are known in a sum, good or bad: they have their receipts, and are not used again.
    assert set(fact.survivors) == set(world.names)
    assert {(name, accepted) for name, _, accepted in world.receipts()} == {(name, True) for name in world.names}
    item = world.state.rounds[0]
    said = {name: outcome(item, seat) for name, seat in item.seats.items()}
    spoilt = label.split("+")
    assert said == {name: "left out: tail-implausible" if name in spoilt else "merged" for name in world.names}


def test_too_few_accept_and_the_attempt_ends_before_anybody_trains_in_vain() -> None:
    world = grouped(count=1, least=9)
    first = {"site-000"}
    world.filter_up = lambda name, item: [] if (kind_of(item.body) == "accept" and name in first) else [item]
    world.join()
    world.pass_time(STEP_S)
    (fact,) = world.facts("SumRevealed")
    gone = next(atom for atom in atoms(world) if "site-000" in atom)
    assert set(fact.survivors) == set(world.names) - gone
    check(world)


def test_an_attempt_that_fails_is_followed_by_one_with_the_same_atoms() -> None:
    world = grouped(count=1, least=9)
    world.filter_up = lambda name, item: [] if kind_of(item.body) == "survived" else [item]
    world.join()
    world.filter_up = lambda name, item: [item]
    world.pass_time(STEP_S)
    world.settle()
    assert len(world.facts("AttemptOpened")) == 2
    assert len(world.facts("SumRevealed")) == 1
    check(world)
    assert all(site.refusals == [] for site in world.sites.values())


# ---- crashes and disorder -------------------------------------------------------------------------------------------


def test_a_coordinator_killed_after_any_decision_goes_on_with_the_same_atoms() -> None:
    whole = grouped(6, count=2, evaluate_every=0)
    whole.join()
    for fuse in range(0, whole.points, 11):
        world = grouped(6, count=2, evaluate_every=0)
        world.fuse = fuse
        world.join()
        for _ in range(8):
            if world.state.finished is None:
                world.pass_time(STEP_S)
        assert world.state.finished is not None, (fuse, world.kinds(), world.rounds.waiting_for())
        check(world)
        world.assert_promises_kept()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_sites_and_coordinator_come_and_go_no_atom_is_ever_split(seed: int) -> None:
    chance = random.Random(seed)
    world = grouped(9, count=3, evaluate_every=0)
    world.check_replay = False
    world.join()
    for _, name in zip(range(12), itertools.cycle(chance.sample(world.names, 3)), strict=False):
        if world.state.finished is not None:
            break
        if name in world.dead:
            world.revive(name)
        elif chance.random() < 0.5:
            world.kill(name)
            world.settle()
        world.pass_time(chance.choice((STEP_S, DEADLINE_S)))
        if chance.random() < 0.3:
            world.restart_coordinator()
            world.settle()
    for name in sorted(world.dead):
        world.revive(name)
    for _ in range(40):
        if world.state.finished is None:
            world.pass_time(DEADLINE_S / 2)
    assert world.state.finished is not None, world.rounds.waiting_for()
    check(world)
    world.assert_promises_kept()


# ---- the log --------------------------------------------------------------------------------------------------------


def test_facts_of_groups_come_back_and_those_of_older_logs_still_load() -> None:
    world = grouped(6, count=1)
    world.join()
    for kind in (AttemptOpened, SumRevealed):
        for fact in world.facts(kind.__name__):
            name, body = to_row(fact)
            assert from_row(name, body) == fact
            new = {"atoms", "groups"}
            older = {key: value for key, value in json.loads(body).items() if key not in new}
            cleared = {field.name: () for field in dataclasses.fields(fact) if field.name in new}
            assert from_row(name, json.dumps(older)) == dataclasses.replace(fact, **cleared)
    damaged = json.loads(to_row(world.facts("SumRevealed")[0])[1])
    damaged["groups"][0]["colour"] = "blue"
    with pytest.raises(ValueError, match="damaged"):
        from_row("SumRevealed", json.dumps(damaged))


def test_a_group_is_called_by_its_members() -> None:
    assert GroupRevealed(members=("a", "b", "c-d"), weight=1, digest="").label == "a+b+c-d"
