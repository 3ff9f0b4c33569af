"""Asynchronous rounds with secure sums as a state machine, with real participants' machines behind it."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from rounds_world import RoundsWorld
from secure_world import DEADLINE_S, STEP_S

from coordinator.rounds import BeginMerge, SendReceipt
from coordinator.rounds.roster import choose_buffer
from coordinator.rounds.secure_buffers import NEXT_SUM, SecureBuffers
from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.statements import UPLOADS, Freeze, Survivors, Upload, kind_of, positions_bytes
from wire import RefusedError, SecureSpec


@pytest.fixture(autouse=True)
def few_prekeys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making 32 prekeys takes longer than a round of them."""
    monkeypatch.setattr(prekeys, "STOCK", 5)
    monkeypatch.setattr(prekeys, "LOW", 2)


def started(count: int = 5, size: int = 3, **options: Any) -> RoundsWorld:
    """Everyone is there; nobody trains until told to."""
    rounds = {
        "mode": "asynchronous",
        "buffer_size": size,
        "correction": "none",
        "count": 9,
        **options.pop("rounds", {}),
    }
    world = RoundsWorld(count, rounds=rounds, **options)
    world.check_replay = True
    world.slow = set(world.names)
    world.join()
    return world


def finish(world: RoundsWorld, *numbers: int) -> None:
    """These sites end their trainings, one after the other."""
    for number in numbers:
        world.train(f"site-{number:03}")
    world.settle()


def summed(world: RoundsWorld) -> list[str]:
    """Who is in each revealed sum, by last digits."""
    return ["".join(str(int(name[-3:])) for name in fact.survivors) for fact in world.facts("SumRevealed")]


def check(world: RoundsWorld) -> None:
    """Every sum is exact over its survivors, and no training is in two of them."""
    for index, fact in enumerate(world.facts("SumRevealed")):
        world.assert_revealed(fact.survivors, index)
    world.assert_promises_kept()
    tasks = [
        (name, item.seats[name].base_version, item.seats[name].attempt)
        for item in world.state.rounds
        if item.revealed is not None and item.purpose == "train"
        for name in item.done()
    ]
    assert len(tasks) == len(set(tasks))
    # Two sums hold no two trainings of a site from one version.
    assert max(Counter((name, base) for name, base, _ in tasks).values(), default=0) <= 1
    for item in world.state.rounds:
        for name in item.done():
            assert 0 <= item.staleness(name) <= world.plan.rounds.max_staleness


def training(world: RoundsWorld) -> dict[str, int]:
    return {name[-1]: task.base_version for name, task in sorted(world.state.pace.tasks.items())}


# ---- a run that goes well -------------------------------------------------------------------------------------------


def test_a_full_buffer_is_summed_and_the_others_go_on_training() -> None:
    world = started()
    assert world.state.pace.trained == {}
    finish(world, 0, 1)
    assert world.facts("AttemptOpened") == []
    assert "Version 1: 2 of 3 updates are trained (site-000, site-001); in training: " in world.rounds.waiting_for()
    finish(world, 4)
    one = ["AttemptOpened", "SumRevealed", "BufferSealed", "VersionCommitted", "RoundOpened"]
    assert [kind for kind in world.kinds() if not kind.startswith(("Task", "Update"))] == ["RoundOpened", *one]
    assert summed(world) == ["014"]
    assert training(world) == {"0": 1, "1": 1, "2": 0, "3": 0, "4": 1}
    check(world)
    assert all(site.refusals == [] for site in world.sites.values())


def test_late_members_are_in_the_next_sum_and_count_for_less() -> None:
    world = started()
    finish(world, 0, 1, 4)
    finish(world, 0, 1, 4)
    finish(world, 2, 3, 0)
    assert summed(world) == ["014", "014", "023"]
    last = world.state.rounds[2]
    assert {name[-1]: last.staleness(name) for name in last.done()} == {"0": 0, "2": 2, "3": 2}
    found, context = (
        world.facts("SumRevealed")[-1],
        world.contexts[bytes.fromhex(world.facts("AttemptOpened")[-1].context)],
    )
    counts = {name: min(examples, 50) for name, (_, examples, _) in world.inputs.items()}
    expected = counts["site-000"] + sum(max(1, round(counts[f"site-00{n}"] / 3**0.5)) for n in (2, 3))
    assert found.weight == expected < sum(counts[name] for name in context.names)
    check(world)


def test_the_servers_step_is_that_of_the_buffers_part_of_all() -> None:
    world = started()
    finish(world, 0, 1, 4)
    (order,) = world.orders_merged
    assert (order.round, order.base_version, order.step_scale) == (1, 0, 3 / 5)
    assert [item.participant for item in order.contributions] == ["secure sum"]


def test_with_everyone_in_each_sum_the_rounds_are_the_synchronous_ones() -> None:
    names: list[dict[str, Any]] = []
    for options in ({"mode": "synchronous"}, {"mode": "asynchronous", "buffer_size": 4, "correction": "none"}):
        world = RoundsWorld(4, rounds={"count": 3, "evaluate_every": 1, **options})
        world.join()
        names.append(
            {
                "tasks": sorted(world.trained),
                "orders": [(item.round, item.base_version, item.step_scale) for item in world.orders_merged],
                "weights": [fact.weight for fact in world.facts("SumRevealed")],
                "finished": world.state.finished is not None and world.state.finished.reason,
            }
        )
    assert names[0] == names[1]
    assert names[0]["finished"] == "completed"


def test_the_run_ends_with_a_round_of_scoring_and_calls_off_what_is_in_training() -> None:
    world = started(rounds={"count": 1, "evaluate_every": 1})
    world.hold_merge = True
    finish(world, 0, 1, 2, 3)
    assert [name[-1] for name in world.state.pace.trained] == ["3"]
    (order,) = (item for item in world.effects if isinstance(item, BeginMerge))
    world.hold_merge, world.slow = False, set()
    finish(world, 4)  # too late: the last sum is made
    assert ("site-004", "run-1/1.1/site-004", False) in world.receipts()
    world.merge(order)
    world.settle()
    assert ("site-003", "late") in world.cancelled()
    assert world.state.finished is not None and world.state.finished.reason == "completed"
    assert world.state.pace.tasks == world.state.pace.trained == {}
    world.assert_revealed(world.names)


# ---- who drops out --------------------------------------------------------------------------------------------------


def test_who_dies_before_its_upload_keeps_its_update_for_the_next_sum() -> None:
    world = started(6, size=4)
    world.hold = {"freeze"}
    finish(world, 0, 1, 2, 3)
    world.held = [item for item in world.held if item[0] != "site-003"]
    world.kill("site-003")
    world.released()
    assert summed(world) == ["012"]
    seat = world.state.rounds[0].seats["site-003"]
    assert (seat.outcome, seat.code) == ("late", NEXT_SUM)
    world.revive("site-003")
    assert [name for name in world.state.pace.trained] == ["site-003"]
    before = Counter(world.trained)
    finish(world, 4, 5, 0)
    assert summed(world) == ["012", "0345"]
    assert Counter(world.trained)["run-1/1.1/site-003"] == before["run-1/1.1/site-003"], "not trained again"
    check(world)
    assert all(site.refusals == [] for site in world.sites.values())


def test_who_uploads_too_late_is_told_by_the_quorum_and_its_update_goes_into_the_next_sum() -> None:
    world = started(6, size=4)
    late: list[Any] = []

    def hold_upload(name: str, statement: Any) -> list[Any]:
        if name == "site-003" and kind_of(statement.body) == Upload.KIND and not late:
            late.append(statement)
            return []
        return [statement]

    world.filter_up = hold_upload
    finish(world, 0, 1, 2, 3)
    assert summed(world) == []
    world.pass_time(DEADLINE_S)  # the uploads' deadline: the sum is made of the others; site-003 signs as a keeper
    assert summed(world) == ["012"]
    assert "site-003" in world.state.pace.trained
    assert len(late) == 1
    world.train("site-004", "site-005", "site-000")
    world.settle()
    assert summed(world) == ["012", "0345"]
    check(world)
    assert all(site.refusals == [] for site in world.sites.values())


def test_too_few_left_make_another_attempt_of_the_same_updates() -> None:
    world = started(5, size=3)
    world.hold = {"freeze"}
    finish(world, 0, 1, 2)
    world.kill("site-002")
    assert [fact.code for fact in world.facts("AttemptFailed")] == ["too-few-left"]
    world.released()
    finish(world, 3)
    assert summed(world) == ["013"]
    assert Counter(world.trained) == {f"run-1/1.1/site-00{n}": 1 for n in (0, 1, 2, 3)}
    check(world)


def test_a_sum_that_is_no_sum_of_updates_is_trained_anew_and_never_merged() -> None:
    world = started(4, size=4)
    world.hold_unmask = True
    finish(world, 0, 1, 2, 3)
    (order,) = world.orders
    world.hold_unmask = False
    world.carry(world.rounds.implausible(order, SecureAggregationError("sum-implausible", "coordinate 3"), world.now))
    world.settle()
    assert [name for name, reason in world.cancelled() if reason == "update-may-be-revealed"] == world.names
    assert {task.attempt for task in world.state.pace.tasks.values()} == {2}
    finish(world, 0, 1, 2, 3)
    assert summed(world) == ["0123"]
    check(world)
    assert all(site.refusals == [] for site in world.sites.values())


def test_who_is_away_for_good_holds_up_nobody_and_who_is_left_is_enough_after_a_while() -> None:
    world = started(5, size=5, rounds={"min_updates": 3})
    for name in ("site-003", "site-004"):
        world.kill(name)
    finish(world, 0, 1, 2)  # nobody is left in training
    assert summed(world) == ["012"]
    world.revive("site-004")
    finish(world, 0, 1, 2)
    assert summed(world) == ["012"]
    world.pass_time(DEADLINE_S - 1)
    assert summed(world) == ["012"]
    world.pass_time(2)
    assert summed(world) == ["012", "012"]
    check(world)


def test_a_task_whose_deadline_is_over_is_called_off_and_given_anew() -> None:
    world = started()
    finish(world, 0, 1, 2)
    world.pass_time(DEADLINE_S + 1)
    assert [name for name, reason in world.cancelled() if reason == "deadline"] == ["site-003", "site-004"] + [
        f"site-00{n}" for n in (0, 1, 2)
    ] or Counter(world.cancelled()) == Counter((f"site-00{n}", "deadline") for n in range(5))
    assert training(world) == {str(n): 1 for n in range(5)}


def test_an_update_that_is_too_old_is_dropped_wherever_it_waits() -> None:
    world = started(7, size=3, rounds={"max_staleness": 1})
    world.train("site-005")
    world.settle()
    world.kill("site-005")  # trained, and away
    for _ in range(3):
        finish(world, 0, 1, 2)
    assert ("site-005", "update-stale") in world.cancelled()
    finish(world, 6)  # trained from version 0, three versions ago
    assert ("site-006", "run-1/1.1/site-006", False) in world.receipts()
    assert training(world)["6"] == 3
    world.revive("site-005")
    assert training(world)["5"] == 3
    check(world)


def test_what_is_said_twice_or_of_a_task_that_is_over_changes_nothing() -> None:
    world = started()
    machine = world.rounds
    assert isinstance(machine, SecureBuffers)
    finish(world, 0)
    assert machine.trained("site-000", "run-1/1.1/site-000", world.now).facts == []
    unknown = machine.trained("site-000", "run-1/7.1/site-000", world.now)
    assert [(type(item), item.accepted) for item in unknown.effects if isinstance(item, SendReceipt)] == [
        (SendReceipt, False)
    ]
    finish(world, 1, 2)
    again = machine.trained("site-000", "run-1/1.1/site-000", world.now)
    assert again.facts == []
    assert [item.accepted for item in again.effects if isinstance(item, SendReceipt)] == [True]
    # Whoever missed the receipt is told when it comes back, also rounds later.
    world.effects.clear()
    finish(world, 3, 4, 0)
    world.reconnect("site-001")
    assert ("site-001", "run-1/1.1/site-001", True) in world.receipts()


def test_declining_ends_a_task_also_in_a_sum() -> None:
    world = started(5, size=4)
    world.hold = {"freeze"}
    finish(world, 0, 1, 2, 3)
    error = RefusedError("disk-full", "site-003 can't mask its update")
    world.carry(world.rounds.rejected("site-003", "run-1/1.1/site-003", "declined", error, world.now))
    world.released()
    assert summed(world) == ["012"]
    seat = world.state.rounds[0].seats["site-003"]
    assert (seat.outcome, seat.code) == ("declined", "disk-full")
    assert training(world)["3"] == 1, "asked again with the next version"
    check(world)


def test_a_revoked_site_loses_what_it_has_trained() -> None:
    world = started()
    finish(world, 0)
    world.carry(world.rounds.gone("site-000", "revoked", "its certificate is revoked", world.now))
    world.settle()
    assert world.state.pace.trained == {}


# ---- whose sums -----------------------------------------------------------------------------------------------------


def test_sites_that_ask_for_company_are_summed_with_others_of_the_same_version() -> None:
    secure = {"min_same_base": 3}
    world = started(6, size=3, secure=secure, policy=SitePolicy(min_same_base=3))
    finish(world, 0, 1, 2)
    finish(world, 0, 1, 3)  # two of version 1, one of version 0: nobody is summed
    assert summed(world) == ["012"]
    finish(world, 4)
    assert summed(world) == ["012"]
    finish(world, 5)
    assert summed(world) == ["012", "345"]
    finish(world, 2)
    assert summed(world) == ["012", "345", "012"]
    check(world)
    assert all(site.refusals == [] for site in world.sites.values())


def test_a_site_refuses_to_be_alone_with_its_version() -> None:
    world = started(6, size=3, policy=SitePolicy(min_same_base=2))  # and the plan asks for 1
    finish(world, 0, 1, 2)
    assert world.sites["site-000"].refusals[0] == "base-alone"
    assert summed(world) == []
    assert "asks for 2 at least" in world.facts("AttemptFailed")[0].message


def test_company_is_kept_when_somebody_drops_out_of_the_sum() -> None:
    secure, policy = {"min_same_base": 2}, SitePolicy(min_same_base=2)
    world = started(10, size=7, secure=secure, policy=policy)
    finish(world, *range(7))
    world.hold = {"freeze"}
    finish(world, 0, 1, 2, 3, 4, 7, 8)  # five of version 1, two of version 0
    world.held = [item for item in world.held if item[0] != "site-008"]
    world.kill("site-008")
    world.released()
    world.pass_time(DEADLINE_S)
    # 7 has uploaded, and is left out: of its version it would be alone.
    assert summed(world) == ["0123456", "01234"]
    assert all(site.refusals == [] for site in world.sites.values())
    check(world)


@pytest.mark.parametrize("kind", ["freeze", "survivors"])
def test_sites_refuse_a_set_in_which_somebody_is_alone(kind: str) -> None:
    secure, policy = {"min_same_base": 2}, SitePolicy(min_same_base=2)
    world = started(10, size=7, secure=secure, policy=policy)
    finish(world, *range(7))
    world.hold = {kind}
    finish(world, 0, 1, 2, 3, 4, 7, 8)
    context = world.contexts[bytes.fromhex(world.facts("AttemptOpened")[-1].context)]
    lonely = [item for item, name in enumerate(context.names) if name != "site-008"]
    if kind == "freeze":
        lie: Any = Freeze(context.hash, positions_bytes(lonely))
    else:
        (_, honest) = world.held[0]
        rows = UPLOADS.read(Survivors.parse(honest.body).uploads)
        lie = Survivors(context.hash, UPLOADS.write(row for row in rows if int.from_bytes(row[0], "big") in lonely))
    said = [world.whisper(name, lie) for name in context.names]
    refused = [step.refusal.code for step in said if step.refusal is not None]
    # Before the upload each judges for itself; whoever keeps shares judges for all.
    expected = ["base-alone"] if kind == "freeze" else ["base-alone"] * 7
    assert [code for code in refused if code == "base-alone"] == expected


def test_groups_are_made_of_whole_atoms_that_have_trained() -> None:
    world = started(12, size=6, secure={"group_size": 3}, rounds={"min_updates": 6})
    finish(world, *range(12))
    assert len(summed(world)) in (1, 2)
    atoms = world.state.atoms
    for fact in world.facts("SumRevealed"):
        for group in fact.groups:
            mates = {name for name, atom in atoms.items() if atom in {atoms[item] for item in group.members}}
            assert mates == set(group.members)
    check(world)


def test_slow_sites_are_left_enough_newcomers_for_an_atom_of_their_own() -> None:
    world = started(11, size=6, secure={"group_size": 3}, rounds={"min_updates": 6})
    finish(world, *range(9))
    finish(world, *range(6))  # with 6, 7 and 8 in an atom the two slow ones could never be in one
    assert set(summed(world)) == {"012345"}
    finish(world, 9, 10)
    finish(world, *range(6))
    atoms = world.state.atoms
    assert set(world.names) == atoms.keys()
    assert min(Counter(atoms.values()).values()) >= 3
    check(world)


@pytest.mark.parametrize(
    ("trained", "earlier", "found"),
    [
        ("abc", [], "abc"),
        ("abcd", ["abc"], "abc"),  # d, who trained from the newest version, waits
        ("abcde", ["abc"], "abcde"),
        ("abd", ["abc"], "abd"),
        ("abcd", ["abce", "abc"], "abd"),
        ("abcd", ["xyz"] * 9 + ["abc"], "abc"),
        ("abcd", ["abc", *["bxy", "bxz", "byz", "bwx", "bwy"]], "abc"),  # a was in no sum since
        (
            "abcd",
            [
                "abc",
                *["ab" + chr(item) for item in range(110, 120)],
                *["c" + chr(item) + "z" for item in range(110, 120)],
            ],
            "abcd",
        ),
        ("ab", [], ""),
    ],
)
def test_the_roster_of_a_buffer(trained: str, earlier: list[str], found: str) -> None:
    settings = SecureSpec.model_validate({"wire_bits": 32})
    roster = choose_buffer(
        trained=frozenset(trained),
        least=3,
        age={name: ord(name) for name in trained},
        earlier=[frozenset(names) for names in earlier],
        settings=settings,
        encoding=settings.encoding,
    )
    assert "".join(roster) == found


# ---- crashes --------------------------------------------------------------------------------------------------------


def scenario(world: RoundsWorld) -> None:
    """Two versions of three of four sites, the slow ones late; all goes on after whatever died."""
    world.slow = set()
    world.join()
    for _ in range(40):
        if world.state.finished is not None:
            return
        world.pass_time(STEP_S)
    raise AssertionError(world.rounds.waiting_for())


def fresh() -> RoundsWorld:
    rounds = {"mode": "asynchronous", "buffer_size": 3, "correction": "none", "count": 2, "evaluate_every": 1}
    return RoundsWorld(4, rounds=rounds)


STEPS = [7, pytest.param(1, marks=pytest.mark.slow)]  # every so many points


@pytest.mark.parametrize("step", STEPS)
def test_the_coordinator_may_be_killed_at_any_point(step: int) -> None:
    whole = fresh()
    scenario(whole)
    for fuse in range(0, whole.points, step):
        world = fresh()
        world.fuse = fuse
        scenario(world)
        assert world.state.version == 2
        check(world)
        assert max(Counter(world.state.rounds[0].done()).values()) == 1


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("victim", ["site-000", "site-003"])
def test_a_site_may_be_killed_at_any_point(victim: str, step: int) -> None:
    whole = fresh()
    scenario(whole)
    for fuse in range(0, whole.sites[victim].points, step):
        world = fresh()
        world.sites[victim].fuse = fuse
        scenario(world)
        assert world.state.version == 2
        check(world)


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 60))])
def test_whatever_happens_no_update_is_in_two_sums_and_the_run_ends(seed: int) -> None:
    dice = random.Random(seed)
    world = started(6, size=3, rounds={"count": 4, "max_staleness": dice.choice([1, 20]), "evaluate_every": seed % 2})
    world.check_replay = seed % 3 == 0
    for _ in range(60):
        if world.state.finished is not None:
            break
        name = dice.choice(world.names)
        match dice.randrange(9):
            case 0:
                world.kill(name) if name in world.here else world.revive(name)
            case 1:
                world.restart_coordinator()
            case 2:
                world.sites[name].fuse = dice.randrange(6)
            case 3:
                world.fuse = dice.randrange(12)
            case 4:
                world.pass_time(dice.choice([1.0, STEP_S, DEADLINE_S]))
            case _:
                if name in world.state.pace.tasks and name in world.tasks and name not in world.dead:
                    world.train(name)
        world.settle()
        check(world)
    world.slow, world.fuse = set(), None
    for name in world.names:
        world.sites[name].fuse = None
        if name not in world.here:
            world.revive(name)
        elif name in world.tasks:
            world.reconnect(name)
    world.settle()
    for _ in range(200):
        if world.state.finished is not None:
            break
        world.pass_time(STEP_S)
    assert world.state.finished is not None, world.rounds.waiting_for()
    assert world.state.version == 4
    check(world)
