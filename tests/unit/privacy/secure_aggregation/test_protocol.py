"""Whole attempts in memory: every sum exact, whoever drops whenever, or a named reason."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest
from secure_world import ENCODING, SMALL, World

from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.coordinator import Failed, Unmask
from privacy.secure_aggregation.encoding import Encoding
from privacy.secure_aggregation.keys import AgreementKey
from privacy.secure_aggregation.sharing import pair_seed
from privacy.secure_aggregation.statements import Signed, kind_of

STEPS = ("accept", "deliver", "ready", "freeze", "upload", "sign")
"""Before accepting; after it; trained, but before saying so; at the freeze; after the upload; after signing."""
NEVER = len(STEPS)


@pytest.fixture(autouse=True)
def few_prekeys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making 32 prekeys takes longer than a round of them."""
    monkeypatch.setattr(prekeys, "STOCK", 4)
    monkeypatch.setattr(prekeys, "LOW", 2)


def dropping(count: int, pattern: tuple[int, ...], **changes: object) -> World:
    """A world whose participants die at these steps."""
    world = World(count, dimension=5, **changes)
    steps = dict(zip(world.names, pattern, strict=True))
    arrive, hear = world.arrive, world.hear

    def up(name: str, statement: Signed) -> list[Signed]:
        if kind_of(statement.body) == "ready" and steps[name] == 2:
            world.kill(name)
            return []
        return [statement]

    def arriving(name: str, statement: Signed) -> None:
        arrive(name, statement)
        if (kind_of(statement.body), steps[name]) in {("accept", 1), ("upload", 4), ("survived", 5)}:
            world.kill(name)

    def hearing(name: str, statement: Signed) -> object:
        if kind_of(statement.body) == "freeze" and steps[name] == 3:
            world.kill(name)
        return hear(name, statement)

    world.filter_up, world.arrive, world.hear = up, arriving, hearing  # type: ignore[method-assign, assignment]
    world.dead |= {name for name, step in steps.items() if step == 0}
    world.run()
    world.conclude()
    steps.update(dict.fromkeys(steps, NEVER))
    return world


def foretold(world: World, pattern: tuple[int, ...]) -> tuple[str, set[str]]:
    """The reason with which an attempt must end (empty where a sum must come), and whose updates are in the sum."""
    assert world.attempt is not None
    numbers = world.attempt.context.numbers
    left = [sum(1 for step in pattern if step > lost) for lost in range(NEVER)]
    uploaded = {name for name, step in zip(world.names, pattern, strict=True) if step >= 4}
    for code, have, need in (
        ("too-few-accepts", left[0], numbers.floor),
        ("too-few-ready", left[2], numbers.floor),
        ("too-few-uploads", left[3], numbers.floor),
        ("quorum-short", left[4], numbers.quorum),
        ("release-short", left[5], numbers.threshold),
    ):
        if have < need:
            return code, uploaded
    return "", uploaded


def check(count: int, pattern: tuple[int, ...], encoding: Encoding, retried: bool = True) -> str:
    world = dropping(count, pattern, encoding=encoding)
    code, uploaded = foretold(world, pattern)
    world.assert_promises_kept()
    assert world.refused == []
    if not code:
        world.assert_exact(uploaded)
        return code
    assert isinstance(world.outcome, Failed)
    assert (world.outcome.code, world.outcome.excluded) == (code, frozenset())
    assert world.outcome.spent == (code == "release-short")
    assert all(name in world.outcome.message for name in uploaded if code == "too-few-uploads")
    if retried:
        again(world, uploaded)
    return code


def again(world: World, before: set[str]) -> None:
    """Everyone comes back, keeps its update, and the next attempt has fresh masks."""
    spent = isinstance(world.outcome, Failed) and world.outcome.spent
    for name in sorted(world.dead):
        world.revive(name)
    world.next_attempt(2, task_attempt=2 if spent else 1)
    world.conclude()
    world.assert_promises_kept()
    if spent and len(set(world.names) ^ before) == 1 and isinstance(world.outcome, Failed):
        # Some have released shares for the others' sum already, and one more name would tell that one's update.
        assert world.outcome.code == "quorum-short"
        assert "survivors-change" in world.outcome.message
        return
    world.assert_exact(world.names)


def placed(count: int, every: int) -> Iterator[tuple[int, ...]]:
    """All ways to drop up to the order of the participants, in a random order each; every so manieth."""
    chance = random.Random(count)
    for kept in itertools.islice(itertools.combinations_with_replacement(range(NEVER + 1), count), 0, None, every):
        yield tuple(chance.sample(kept, count))


@pytest.mark.parametrize("encoding", [ENCODING, SMALL], ids=["32 bits", "16 bits"])
@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_the_sum_is_exact(count: int, encoding: Encoding) -> None:
    world = World(count, encoding=encoding)
    world.run()
    world.assert_exact(world.names)
    world.finish()
    assert world.refused == []
    assert all(site.refusals == [] for site in world.sites.values())
    world.assert_promises_kept()


@pytest.mark.parametrize(
    ("count", "every"),
    [
        pytest.param(3, 1, id="3, all"),
        pytest.param(4, 1, id="4, all"),
        pytest.param(5, 1, id="5, all", marks=pytest.mark.slow),
        pytest.param(6, 11, id="6, sampled"),
    ],
)
def test_every_pattern_of_drops_gives_the_exact_sum_of_the_survivors_or_a_named_reason(count: int, every: int) -> None:
    codes = {
        check(count, pattern, (ENCODING, SMALL)[index % 2], retried=count < 4 or index % 4 < 1)
        for index, pattern in enumerate(placed(count, every))
    }
    assert codes == {"", "too-few-accepts", "too-few-ready", "too-few-uploads", "quorum-short", "release-short"}


@pytest.mark.parametrize("step", range(NEVER), ids=STEPS)
def test_each_single_participant_may_drop_at_each_step_in_both_rings(step: int) -> None:
    for position, encoding in itertools.product(range(5), (ENCODING, SMALL)):
        pattern = tuple(step if item == position else NEVER for item in range(5))
        assert check(5, pattern, encoding) == ""


# ---- other shapes of a round -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ring_bits", "wire_bits", "value_bits"), [(16, 16, 12), (32, 20, 16), (32, 24, 20), (32, 32, 26)]
)
def test_every_width_on_the_wire_gives_the_exact_sum(ring_bits: int, wire_bits: int, value_bits: int) -> None:
    encoding = Encoding(
        ring_bits=ring_bits,
        wire_bits=wire_bits,
        value_bits=value_bits,
        clip_norm=10.0,
        clip_value=1.0,
        weight_cap=50,
    )
    for dimension in (1, 7, 1_001):
        world = World(5, dimension=dimension, encoding=encoding)
        world.run()
        world.assert_exact(world.names)


def test_a_round_that_only_scores_sums_metrics_alone() -> None:
    world = World(4, dimension=0)
    world.run()
    (tail,) = world.assert_exact(world.names)
    weights = [min(world.inputs[name][1], 50) for name in world.names]
    losses = [world.inputs[name][2]["loss"] for name in world.names]
    assert tail.weight == sum(weights)
    assert tail.means["loss"] == pytest.approx(np.average(losses, weights=weights), abs=1e-5)


@pytest.mark.parametrize("late", [set(), {1}, {0, 4}])
def test_without_a_freeze_whoever_uploads_in_time_is_in_the_sum(late: set[int]) -> None:
    world = World(7, freeze=False)
    for position in late:
        world.dead.add(world.names[position])
    world.begin()
    world.settle()
    missing = world.names[6]
    world.train_all(but={missing})
    world.settle()
    assert world.outcome is None
    world.pass_time(700)
    if len(late) + 1 > 2:
        assert isinstance(world.outcome, Failed)
        assert world.outcome.code == "too-few-uploads"
    else:
        world.assert_exact([name for item, name in enumerate(world.names[:6]) if item not in late])
    assert not any(kind_of(item.body) == "freeze" for _, _, item in world.sent)


def test_who_is_not_trained_at_the_deadline_costs_no_key_and_still_keeps_shares() -> None:
    world = World(5)
    world.begin()
    world.settle()
    slow = world.names[2]
    world.train_all(but={slow})
    world.settle()
    world.pass_time(600)
    world.assert_exact(sorted(set(world.names) - {slow}))
    assert isinstance(world.outcome, Unmask)
    assert all(len(group.terms) == len(group.members) for group in world.outcome.groups)
    assert world.sites[slow].refusals == []
    world.sites[slow].train(world.assignment())
    world.settle()
    assert world.sites[slow].files == {}


def test_a_participant_that_cannot_train_is_excused_and_the_rest_go_on() -> None:
    world = World(5)
    attempt = world.begin()
    world.settle()
    world.perform(attempt.excuse(world.names[0], "no data \x1b[2J", world.now))
    world.train_all(but={world.names[0]})
    world.settle()
    world.assert_exact(world.names[1:])


# ---- repetitions -----------------------------------------------------------------------------------------------------


def test_the_same_statement_again_gets_the_same_bytes_again() -> None:
    world = World(5)
    world.run()
    asked = [(name, item) for way, name, item in world.sent if way == "down"]
    answers = {(name, item.body): item for way, name, item in world.sent if way == "up"}
    before = {name: list(site.store.notes) for name, site in world.sites.items()}
    for name, statement in asked:
        step = world.hear(name, statement)
        assert step.refusal is None
        assert step.changes == []
        assert all((name, item.body) in answers for item in step.answers)
        assert all(answers[name, item.body] == item for item in step.answers)
    kinds = {kind_of(item.body) for name, statement in asked for item in world.hear(name, statement).answers}
    assert kinds == {"survived", "release"}
    assert {name: site.store.notes for name, site in world.sites.items()} == before
    world.settle()
    world.assert_exact(world.names)


def test_all_statements_twice_give_the_same_sum() -> None:
    world = World(5)
    world.filter_up = lambda name, statement: [statement, statement]
    world.filter_down = lambda name, statement: [statement, statement]
    world.run()
    world.assert_exact(world.names)
    world.finish()
    world.assert_promises_kept()
    assert world.refused == []
    assert all(site.refusals == [] for site in world.sites.values())


def test_each_upload_gets_a_receipt_which_outlives_the_attempt() -> None:
    world = World(4)
    world.run()
    world.finish()
    for site in world.sites.values():
        assert site.store.kinds().count("receipt") == 1
        # What remains: unused prekeys, the place in time, and what the rules about a second sum need.
        assert set(site.store.kinds()) == {"prekey", "prekey-last", "attempted", "entered", "published", "receipt"}
        assert {note.context for note in site.store.notes} == {b""}


# ---- masks -----------------------------------------------------------------------------------------------------------


def as_ring(world: World, name: str) -> np.ndarray:
    """What a participant uploaded last, as the ring's elements."""
    content = list(world.sites[name].files.values())[-1]
    assert world.attempt is not None
    return world.attempt.context.encoding.unpack(content[: 4 * world.dimension], world.dimension)


def test_a_second_attempt_masks_the_same_update_anew() -> None:
    world = World(4, dimension=20_000)
    world.filter_up = lambda name, item: [] if kind_of(item.body) == "survived" else [item]
    world.run()
    assert isinstance(world.conclude(), Failed)
    first = as_ring(world, "site-001")
    terms = set(itertools.chain.from_iterable(*world.expansions.values()))
    world.filter_up = lambda name, item: [item]
    world.next_attempt(2)
    world.assert_exact(world.names)
    second = as_ring(world, "site-001")
    fresh = set(itertools.chain.from_iterable(*list(world.expansions.values())[1:]))
    assert terms.isdisjoint(fresh)
    for masked in (first, second, second - first):
        counts = np.bincount(masked.view(np.uint8), minlength=256)
        chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        assert chi_square < 255 + 8 * (2 * 255) ** 0.5
    centred = [np.asarray(item, np.float64) - 2.0**31 for item in (first, second)]
    assert abs(np.corrcoef(*centred)[0, 1]) < 6 / 20_000**0.5


def test_one_upload_differs_from_uniform_noise_in_nothing_that_bytes_show() -> None:
    world = World(3, dimension=50_000)
    world.run()
    for name in world.names:
        counts = np.bincount(as_ring(world, name).view(np.uint8), minlength=256)
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 255 + 8 * (2 * 255) ** 0.5


def test_masks_of_two_contexts_that_differ_in_one_bit_do_not_cancel() -> None:
    world = World(3, dimension=64)
    one = world.context()
    other = dataclasses.replace(one, base_digest=bytes([one.base_digest[0] ^ 1]) + one.base_digest[1:])
    key, peer = AgreementKey(bytes(range(32))), one.roster[1].mask_key
    assert one.hash != other.hash
    assert pair_seed(key, peer, one.hash, 0, 1) != pair_seed(key, peer, other.hash, 0, 1)
