"""Whole attempts in memory: every sum exact, whoever drops whenever, or a named reason."""

from __future__ import annotations

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
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.statements import Signed, kind_of, positions_of

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
        pytest.param(5, 1, id="5, all"),
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
