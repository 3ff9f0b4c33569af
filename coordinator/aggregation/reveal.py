"""From masked uploads to the mean update, or to one of each group: add up, unmask, check, decode.

Cost for n uploads of d coordinates of b bytes in the ring and t mask streams: reads n times the bytes on the wire,
makes t * d * b bytes of AES-256-CTR, keeps one accumulator of d * b bytes, and writes 4 d bytes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.rounds import BeginUnmask, GroupRevealed, Revealed
from coordinator.unmasking import unmask_slices
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.decisions import GroupSum
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.masking import streams, sum_hash
from privacy.secure_aggregation.streams import MAIN, RingVector
from privacy.secure_aggregation.summing import (
    GroupMean,
    Upload,
    joined,
    joined_hashes,
    mean_slices,
    plausible,
    sums_hash,
    unmask_group,
    unmask_tail,
    weighty,
)
from privacy.secure_aggregation.tail import TailSum, decode_tail
from privacy.transcript import encode
from wire import BlobStore, DataError

# Below so many bytes of keystream a process of its own costs more than it saves.
_WORTH_A_PROCESS: Final = 512 << 20


def reveal(blobs: BlobStore, order: BeginUnmask) -> Revealed:
    """Unmask a round's sum and leave the mean update among the blobs; may run in a worker thread.

    Where the plan asks for sums of groups, each group's mean is a blob of its own, and a group whose sum isn't one of
    well-formed updates is left out by name, as long as the others are enough for the round.

    Args:
        blobs: Holds the uploads; takes the mean update and the public record.
        order: What to add up.

    Raises:
        SecureAggregationError: "sum-implausible" or "tail-implausible": what is left isn't a sum of well-formed
            updates, so someone uploaded garbage. "upload-malformed": an upload's file has another size.
        DataError: An upload's file is gone.
        ResourceError: "disk-full".
    """
    return _groups(blobs, order) if order.order.context.group_size else _one_sum(blobs, order)


def _one_sum(blobs: BlobStore, order: BeginUnmask) -> Revealed:
    """One mean of all; the cliques of a large cohort are added up."""
    context = order.order.context
    sums = []
    for group in order.order.groups:
        main, tail = unmask(context, group, [blobs.path(item) for item in group.digests])
        plausible(context, group, main, tail)
        sums.append((main, tail))
    hashed = sums_hash(context, sums)
    total, tail = joined(sums)
    members = sum(len(group.members) for group in order.order.groups)
    said = decode_tail(context.layout, tail, participants=members, weight_cap=context.encoding.weight_cap)
    record = _put(blobs, encode(order.record))
    mean = _write_mean(blobs, context, total, said) if context.purpose == "train" else b""
    return Revealed(
        digest=mean.hex(), weight=said.weight, metrics=said.means, sum_hash=hashed.hex(), record=record.hex()
    )


def _groups(blobs: BlobStore, order: BeginUnmask) -> Revealed:
    """A mean of each group. One accumulator is held at a time."""
    context = order.order.context
    hashes, found, means, errors = [], [], [], []
    kept, tails = 0, np.zeros(context.layout.size, np.uint64)
    for group in order.order.groups:
        main, tail = unmask(context, group, [blobs.path(item) for item in group.digests])
        hashes.append(sum_hash(main, tail, context.encoding.wire_bits))
        names = tuple(context.names[item] for item in group.members)
        try:
            said = plausible(context, group, main, tail)
        except SecureAggregationError as error:
            errors.append(error)
            means.append(GroupMean(0, b"", error.code))
            found.append(GroupRevealed(members=names, weight=0, digest="", reason=f"{error.code}: {error.message}"))
            continue
        mean = _write_mean(blobs, context, main, said) if context.purpose == "train" else b""
        means.append(GroupMean(said.weight, mean))
        found.append(GroupRevealed(members=names, weight=said.weight, digest=mean.hex()))
        kept += len(group.members)
        tails += tail
    if errors and kept < context.floor:
        raise errors[0]
    said = decode_tail(context.layout, tails, participants=kept, weight_cap=context.encoding.weight_cap)
    # What was made of each sum stands in the record, whose digest the coordinator signs.
    record = _put(blobs, encode((*order.record, tuple(dataclasses.astuple(item) for item in means))))
    return Revealed(
        digest="",
        weight=said.weight,
        metrics=said.means,
        sum_hash=joined_hashes(hashes).hex(),
        record=record.hex(),
        groups=tuple(found),
    )


def unmask(context: RoundContext, group: GroupSum, paths: Sequence[Path]) -> tuple[RingVector, NDArray[np.uint64]]:
    """One group's unmasked sum from its uploads' files, in as many processes as it is worth.

    Returns:
        The main vector [d] in the ring (only its low ``wire_bits`` count) and the tail.

    Raises:
        SecureAggregationError: "upload-malformed".
        DataError: A file is gone.
    """
    uploads = [map_upload(path) for path in paths]
    work = len(group.terms) * context.dimension * context.encoding.ring_bits // 8
    processes = len(os.sched_getaffinity(0)) if work >= _WORTH_A_PROCESS else 1
    if processes == 1:
        return unmask_group(context, group, uploads)
    tail = unmask_tail(context, group, uploads)
    return unmask_slices(context, streams(group.terms, MAIN), paths, processes), tail


def map_upload(path: Path) -> Upload:
    """A masked update's bytes as a memory map: packed planes lie far apart, and the pages are used once.

    Raises:
        DataError: The file is gone.
    """
    try:
        return np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}", "The coordinator's blob folder is damaged: restore it.") from error


def _write_mean(blobs: BlobStore, context: RoundContext, total: RingVector, said: TailSum) -> bytes:
    weighty(said)
    with blobs.writer(4 * context.dimension) as writer:
        for part in mean_slices(context, total, said.weight):
            writer.write(part.data.cast("B"))
        return writer.commit()


def _put(blobs: BlobStore, content: bytes) -> bytes:
    with blobs.writer(len(content)) as writer:
        writer.write(content)
        return writer.commit()
