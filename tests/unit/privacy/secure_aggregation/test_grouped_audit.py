"""Recomputing a round with sums of groups: the sums, what was made of each, and that no atom was split."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
from secure_world import SMALL, World

from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.audit import check_record, check_sum
from privacy.secure_aggregation.coordinator import Unmask
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.statements import Result
from privacy.secure_aggregation.summing import GroupMean, group_mean, sums_hash, unmask_group, uploads_hash
from privacy.transcript import encode


@pytest.fixture(autouse=True)
def few_prekeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prekeys, "STOCK", 2)
    monkeypatch.setattr(prekeys, "LOW", 1)


class Published:
    """What the coordinator has published of a round: its line, its record's parts, the uploads."""

    def __init__(self, world: World) -> None:
        assert isinstance(world.outcome, Unmask) and world.attempt is not None
        self.world = world
        self.order = world.outcome
        context = world.outcome.context
        self.uploads = {digest: np.frombuffer(content, np.uint8) for digest, content in world.uploads.items()}
        sums = [
            unmask_group(context, group, [self.uploads[item] for item in group.digests])
            for group in world.outcome.groups
        ]
        found = zip(world.outcome.groups, sums, strict=True)
        self.means = tuple(group_mean(context, group, main, tail) for group, (main, tail) in found)
        digests = world.attempt.digests()
        uploads = uploads_hash([digests[item] for item in sorted(world.attempt.survivors())])
        self.result: Result = dataclasses.replace(
            world.result(), sum_hash=sums_hash(context, sums), uploads_hash=uploads
        )

    def check(self, *means: Any) -> None:
        """What an auditor does with the record that states these."""
        assert self.world.attempt is not None
        record = encode((*self.world.attempt.public_record(), *means))
        claim = check_record(self.result, record, self.world.members)
        assert claim.order == self.order
        check_sum(self.result, claim, self.uploads.__getitem__)

    def refused(self, *means: Any) -> SecureAggregationError:
        with pytest.raises(SecureAggregationError) as caught:
            self.check(*means)
        return caught.value


def rows(means: tuple[GroupMean, ...]) -> tuple[tuple[object, ...], ...]:
    return tuple(dataclasses.astuple(item) for item in means)


@pytest.mark.parametrize("dimension", [7, 0])
def test_an_honest_record_passes_and_each_lie_about_a_group_is_found(dimension: int) -> None:
    world = World(6, dimension=dimension, group_size=3, encoding=SMALL)
    world.run()
    published = Published(world)
    published.check(rows(published.means))
    one, other = published.means
    assert bool(one.digest) == bool(dimension) and one.weight > 0 and one.code == ""
    for lie in (
        dataclasses.replace(other, weight=other.weight + 1),
        dataclasses.replace(other, digest=bytes(32)),
        GroupMean(0, b"", "sum-implausible"),
    ):
        error = published.refused(rows((one, lie)))
        assert error.code == "mean-wrong"
        names = "+".join(world.names[item] for item in published.order.groups[1].members)
        assert names in error.message and "round 1" in error.message
    for missing in ((), ((),), (rows((one,)),), (rows((one, other, other)),)):
        assert published.refused(*missing).code == "record-foreign"
    for malformed in (((1, b"", 2),) * 2, ((True, b"", ""),) * 2, ((1, "", ""),) * 2, ((1, b""),) * 2, 7):
        assert published.refused(malformed).code == "record-malformed"
    assert published.refused(rows(published.means), ()).code == "record-malformed"


def test_one_sum_has_no_means_of_groups_in_its_record() -> None:
    world = World(4, encoding=SMALL)
    world.run()
    published = Published(world)
    published.check()
    published.check(())
    assert published.refused(rows(published.means)).code == "record-foreign"


def test_a_group_that_was_taken_into_the_merge_although_its_sum_is_garbage_is_found() -> None:
    world = World(6, group_size=3, encoding=SMALL)
    site = world.sites["site-004"]
    masked = site._masked

    def garbage(work: Any) -> bytes:
        main, tail = site.masks[work.context.hash]
        site.masks[work.context.hash] = (main, tail + (np.uint64(1) << np.uint64(62)))
        return masked(work)

    site._masked = garbage  # type: ignore[method-assign]
    world.run()
    published = Published(world)
    published.check(rows(published.means))
    (bad,) = [item for item in published.means if item.code]
    assert bad == GroupMean(0, b"", "tail-implausible")
    taken = tuple(GroupMean(9, bytes(32)) if item.code else item for item in published.means)
    assert published.refused(rows(taken)).code == "mean-wrong"


def test_a_split_atom_is_found_even_if_all_keepers_have_signed_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = sys.modules["privacy.secure_aggregation.participant"]
    coordinator = sys.modules["privacy.secure_aggregation.coordinator"]
    world = World(6, group_size=3, encoding=SMALL)
    world.hold = {"freeze"}
    world.begin()
    world.settle()
    world.train_all()
    world.settle()
    monkeypatch.setattr(machine, "check_published", lambda *arguments: None)
    monkeypatch.setattr(coordinator, "publishable", lambda groups, survivors: survivors)
    world.kill("site-004")
    world.released()
    world.conclude()
    world.assert_exact(sorted(set(world.names) - {"site-004"}))
    published = Published(world)
    error = published.refused(rows(published.means))
    assert error.code == "group-floor" and "part of an atom" in error.message
