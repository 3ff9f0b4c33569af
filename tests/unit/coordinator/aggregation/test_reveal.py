"""From masked uploads on disk to the mean update: exact, or refused by name."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from secure_world import Site, World

from coordinator.aggregation import reveal, unmask
from coordinator.rounds import BeginUnmask, Revealed
from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.coordinator import GroupSum, Unmask
from privacy.secure_aggregation.encoding import Encoding
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.memory import Mask
from privacy.secure_aggregation.summing import sums_hash
from privacy.secure_aggregation.tail import encode_tail
from privacy.transcript import decode
from wire import BlobStore, DataError, ResourceError

DIMENSION = 1_003


@pytest.fixture(autouse=True)
def few_prekeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prekeys, "STOCK", 3)
    monkeypatch.setattr(prekeys, "LOW", 1)


def encoding(wire_bits: int) -> Encoding:
    return Encoding(
        ring_bits=16 if wire_bits == 16 else 32,
        wire_bits=wire_bits,
        value_bits=min(wire_bits - 4, 28),
        clip_norm=10.0,
        clip_value=1.0,
        weight_cap=50,
    )


def summed(
    count: int = 4, *, dimension: int = DIMENSION, wire_bits: int = 32, drop: str = "", **changes: object
) -> World:
    """A world whose attempt has come to its sum; ``drop`` vanishes between freeze and upload."""
    world = World(count, dimension=dimension, encoding=encoding(wire_bits), **changes)
    world.filter_blob = lambda name, content: b"" if name == drop else content
    world.run()
    if drop:
        world.kill(drop)
        world.settle()
    return world


def ordered(world: World, folder: Path) -> tuple[BlobStore, BeginUnmask]:
    """The order that the hub would give, and the uploads on disk."""
    assert isinstance(world.outcome, Unmask)
    assert world.attempt is not None
    blobs = BlobStore(folder)
    for content in world.uploads.values():
        put(blobs, content)
    return blobs, BeginUnmask(round=1, attempt=1, order=world.outcome, record=world.attempt.public_record())


def put(blobs: BlobStore, content: bytes) -> bytes:
    with blobs.writer(len(content)) as writer:
        writer.write(content)
        return writer.commit()


def exact(world: World, revealed: Revealed, blobs: BlobStore, survivors: list[int]) -> None:
    """What was revealed is what the clear sum over these positions gives, to the last bit."""
    assert world.attempt is not None
    context = world.attempt.context
    main, _ = world.expected(survivors)
    weights = {item: min(world.inputs[context.names[item]][1], 50) for item in survivors}
    assert revealed.weight == sum(weights.values())
    mean = np.fromfile(blobs.path(bytes.fromhex(revealed.digest)), "<f4")
    assert mean.tobytes() == context.encoding.decode(main, revealed.weight, np.empty(len(main), "<f4")).tobytes()
    wanted = sum(world.inputs[context.names[item]][0].astype(float) * weights[item] for item in survivors)
    bound = context.encoding.error_bound(len(survivors), revealed.weight)
    assert np.abs(mean - wanted / revealed.weight).max() <= bound + 1e-7
    losses = sum(world.inputs[context.names[item]][2]["loss"] * weights[item] for item in survivors)
    assert revealed.metrics == {"loss": pytest.approx(losses / revealed.weight, abs=2.0**-20)}


@pytest.mark.parametrize("wire_bits", [16, 20, 24, 32])
@pytest.mark.parametrize("drop", ["", "site-001"], ids=["all", "one dropped late"])
def test_the_mean_is_the_clear_sums_to_the_last_bit(tmp_path: Path, wire_bits: int, drop: str) -> None:
    world = summed(wire_bits=wire_bits, drop=drop)
    blobs, order = ordered(world, tmp_path)
    survivors = [0, 2, 3] if drop else [0, 1, 2, 3]
    exact(world, reveal(blobs, order), blobs, survivors)


def test_doing_it_again_gives_the_same_and_leaves_the_uploads_for_audits(tmp_path: Path) -> None:
    blobs, order = ordered(summed(), tmp_path)
    assert reveal(blobs, order) == reveal(blobs, order)
    assert all(blobs.has(digest) for group in order.order.groups for digest in group.digests)


def test_the_public_record_is_a_blob_that_reads_back_to_what_was_ordered(tmp_path: Path) -> None:
    blobs, order = ordered(summed(), tmp_path)
    revealed = reveal(blobs, order)
    assert decode(blobs.path(bytes.fromhex(revealed.record)).read_bytes()) == order.record


def test_each_group_has_a_mean_of_its_own_exact_to_the_last_bit(tmp_path: Path) -> None:
    world = summed(9, wire_bits=20, group_size=3, drop="site-004")
    blobs, order = ordered(world, tmp_path)
    context, groups = order.order.context, order.order.groups
    assert len(groups) == 2
    revealed = reveal(blobs, order)
    assert (revealed.digest, len(revealed.groups)) == ("", 2)
    assert all("site-004" not in group.members and not group.reason for group in revealed.groups)
    weights = []
    for group, found in zip(groups, revealed.groups, strict=True):
        assert found.members == tuple(context.names[item] for item in group.members)
        one = Revealed(digest=found.digest, weight=found.weight, metrics=revealed.metrics, sum_hash="", record="")
        main, _ = world.expected(group.members)
        assert one.weight == sum(min(world.inputs[name][1], 50) for name in found.members)
        mean = np.fromfile(blobs.path(bytes.fromhex(one.digest)), "<f4")
        assert mean.tobytes() == context.encoding.decode(main, one.weight, np.empty(len(main), "<f4")).tobytes()
        weights.append(one.weight)
    assert revealed.weight == sum(weights)
    names = [name for group in revealed.groups for name in group.members]
    losses = sum(world.inputs[name][2]["loss"] * min(world.inputs[name][1], 50) for name in names)
    assert revealed.metrics == {"loss": pytest.approx(losses / revealed.weight, abs=2.0**-20)}
    sums = [unmask(context, group, [blobs.path(item) for item in group.digests]) for group in groups]
    assert revealed.sum_hash == sums_hash(context, sums).hex()
    assert sums_hash(context, sums[::-1]) != sums_hash(context, sums)
    # The public record says what was made of each sum.
    *material, means = decode(blobs.path(bytes.fromhex(revealed.record)).read_bytes())
    assert tuple(material) == order.record
    assert means == tuple((group.weight, bytes.fromhex(group.digest), "") for group in revealed.groups)


def test_the_merge_of_the_groups_means_is_that_of_one_sum(tmp_path: Path) -> None:
    grouped = summed(9, group_size=3)
    blobs, order = ordered(grouped, tmp_path / "groups")
    groups = reveal(blobs, order).groups
    means = [np.fromfile(blobs.path(bytes.fromhex(group.digest)), "<f4").astype(float) for group in groups]
    joined = sum(group.weight * mean for group, mean in zip(groups, means, strict=True))
    blobs, order = ordered(summed(9), tmp_path / "one")
    one = reveal(blobs, order)
    mean = np.fromfile(blobs.path(bytes.fromhex(one.digest)), "<f4")
    assert sum(group.weight for group in groups) == one.weight
    assert np.abs(joined / one.weight - mean).max() <= 2.0**-23 * np.abs(mean).max()


def spoilt(world: World, *names: str) -> World:
    """These sites put garbage in place of their masks' tails."""

    def spoil(site: Site) -> None:
        masked = site._masked

        def garbage(work: Mask) -> bytes:
            main, tail = site.masks[work.context.hash]
            site.masks[work.context.hash] = (main, tail + (np.uint64(1) << np.uint64(62)))
            return masked(work)

        site._masked = garbage  # type: ignore[method-assign]

    for name in names:
        spoil(world.sites[name])
    world.run()
    return world


@pytest.mark.parametrize("dimension", [DIMENSION, 0])
def test_a_group_with_garbage_in_it_is_left_out_by_name_and_the_others_are_exact(
    tmp_path: Path, dimension: int
) -> None:
    world = spoilt(World(9, dimension=dimension, encoding=encoding(32), group_size=3), "site-004")
    blobs, order = ordered(world, tmp_path)
    revealed = reveal(blobs, order)
    bad = [group for group in revealed.groups if group.reason]
    assert len(bad) == 1 and len(revealed.groups) == 3
    assert "site-004" in bad[0].members
    assert (bad[0].weight, bad[0].digest) == (0, "")
    assert bad[0].reason.startswith("tail-implausible: ")
    good = [name for group in revealed.groups if not group.reason for name in group.members]
    assert revealed.weight == sum(min(world.inputs[name][1], 50) for name in good)


def test_garbage_in_so_many_groups_that_too_few_are_left_ends_the_attempt(tmp_path: Path) -> None:
    world = World(9, dimension=DIMENSION, encoding=encoding(32), group_size=3, min_cohort=6)
    names = [world.names[min(atom)] for atom in world.context().atom_members]
    blobs, order = ordered(spoilt(world, *names[:1]), tmp_path / "one")
    assert [bool(group.reason) for group in reveal(blobs, order).groups].count(True) == 1
    world = World(9, dimension=DIMENSION, encoding=encoding(32), group_size=3, min_cohort=6)
    blobs, order = ordered(spoilt(world, *names[:2]), tmp_path / "two")
    with pytest.raises(SecureAggregationError) as caught:
        reveal(blobs, order)
    assert caught.value.code == "tail-implausible"


def test_a_round_of_scoring_gives_metrics_and_no_update(tmp_path: Path) -> None:
    blobs, order = ordered(summed(dimension=0), tmp_path)
    revealed = reveal(blobs, order)
    assert revealed.digest == ""
    assert (revealed.weight > 0, set(revealed.metrics)) == (True, {"loss"})


def test_several_processes_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs, order = ordered(summed(wire_bits=20, drop="site-000"), tmp_path)
    one = reveal(blobs, order)
    monkeypatch.setattr(sys.modules["coordinator.aggregation.reveal"], "_WORTH_A_PROCESS", 0)
    assert reveal(blobs, order) == one


# ---- refusals -------------------------------------------------------------------------------------------------------


def replaced(world: World, folder: Path, change: Callable[[bytearray], bytes]) -> tuple[BlobStore, BeginUnmask]:
    """The order with one participant's upload changed: as if it had announced that from the beginning."""
    blobs, order = ordered(world, folder)
    group = order.order.groups[0]
    content = change(bytearray(world.uploads[group.digests[1]]))
    digests = (group.digests[0], put(blobs, content), *group.digests[2:])
    unmask_order = Unmask(order.order.context, (dataclasses.replace(group, digests=digests),))
    return blobs, dataclasses.replace(order, order=unmask_order)


def garbage(content: bytearray) -> bytes:
    return np.random.default_rng(3).bytes(len(content))


def garbage_before_the_tail(content: bytearray) -> bytes:
    return np.random.default_rng(3).bytes(len(content) - 32) + bytes(content[-32:])


def one_bit_of_the_count(content: bytearray) -> bytes:
    content[-32] ^= 1
    return bytes(content)


def one_byte_more(content: bytearray) -> bytes:
    return bytes(content) + b"\0"


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (garbage, "tail-implausible", "can't be right"),
        (garbage_before_the_tail, "sum-implausible", "of the sum of 4 participants is"),
        (one_bit_of_the_count, "tail-implausible", "it counts"),
        (one_byte_more, "upload-malformed", "site-001"),
    ],
)
def test_garbage_is_refused_by_name_and_leaves_no_mean(
    tmp_path: Path, change: Callable[[bytearray], bytes], code: str, text: str
) -> None:
    world = summed(wire_bits=20)
    blobs, order = replaced(world, tmp_path, change)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SecureAggregationError, match=text) as refusal:
        reveal(blobs, order)
    assert refusal.value.code == code
    assert sorted(tmp_path.iterdir()) == before


def test_a_sum_that_counts_no_examples_has_no_mean(tmp_path: Path) -> None:
    blobs, order = ordered(summed(), tmp_path)
    context = order.order.context
    empty = bytes(context.encoding.wire_bytes(DIMENSION)) + encode_tail(context.layout, 0, {}).tobytes()
    clear = GroupSum((0, 1, 2), (put(blobs, empty),) * 3, ())
    with pytest.raises(SecureAggregationError, match="count no examples together") as refusal:
        reveal(blobs, dataclasses.replace(order, order=Unmask(context, (clear,))))
    assert refusal.value.code == "sum-implausible"


def test_a_file_that_is_gone_or_empty_names_itself(tmp_path: Path) -> None:
    blobs, order = ordered(summed(), tmp_path)
    path = blobs.path(order.order.groups[0].digests[2])
    path.write_bytes(b"")
    with pytest.raises(DataError, match=path.name):
        reveal(blobs, order)
    path.unlink()
    with pytest.raises(DataError, match="blob folder is damaged|" + path.name):
        reveal(blobs, order)


def test_a_full_disk_is_said_plainly(tmp_path: Path) -> None:
    _, order = ordered(summed(), tmp_path)
    full = BlobStore(tmp_path, reserve_bytes=1 << 60)
    with pytest.raises(ResourceError) as failure:
        reveal(full, order)
    assert failure.value.code == "disk-full"
