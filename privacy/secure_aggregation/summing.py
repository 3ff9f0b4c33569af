"""Add up masked uploads and take the masks off: what the coordinator does, and whoever checks it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.decisions import GroupSum
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.masking import streams, sum_hash
from privacy.secure_aggregation.streams import MAIN, TAIL, RingVector, Term, add_streams
from privacy.secure_aggregation.tail import TailSum, decode_tail, split_upload
from privacy.transcript import digest

_SUMS_LABEL: Final = "fedloom/secure-aggregation/sums/1"
_UPLOADS_LABEL: Final = "fedloom/secure-aggregation/uploads/1"
_RESULT_LABEL: Final = "fedloom/secure-aggregation/result/1"

# Uploads are added by tiles that stay in the cache, so that each byte of them is all that is read.
_TILE: Final = 1 << 17

_SLICE: Final = 1 << 16  # coordinates that are decoded at a time

Upload = NDArray[np.uint8]
"""The bytes of a masked update, in memory or in a memory map."""


@dataclasses.dataclass(frozen=True)
class GroupMean:
    """What came of one group's sum, as the public record of a round with sums of groups states it.

    Attributes:
        weight: Sum of the members' weights; 0 where the sum is implausible.
        digest: SHA-256 of the mean update, float32; empty for one that is implausible, and where a round only scored.
        code: Why the group is left out of the merge: "tail-implausible", "sum-implausible"; empty if it isn't.
    """

    weight: int
    digest: bytes
    code: str = ""


def add_slice(
    context: RoundContext, out: RingVector, terms: Sequence[Term], uploads: Sequence[Upload], start: int = 0
) -> None:
    """Add a slice of all uploads, and the streams that unmask it, to ``out``.

    Args:
        context: Of the attempt.
        out: [m] Ring elements; coordinates [start, start + m) are added.
        terms: Streams for the whole vector.
        uploads: Of the right size each (see :func:`unmask_tail`).
        start: First coordinate.
    """
    # asarray: a slice of a memmap is an object of Python's making, dear beside a tile's sum.
    packed = [np.asarray(split_upload(upload, context.layout)[0]) for upload in uploads]
    for at in range(0, len(out), _TILE):
        tile = out[at : at + _TILE]
        for main in packed:
            values = context.encoding.unpack(main, context.dimension, start + at, start + at + len(tile))
            np.add(tile, values, out=tile)
    add_streams(out, terms, start=start)


def unmask_tail(context: RoundContext, group: GroupSum, uploads: Sequence[Upload]) -> NDArray[np.uint64]:
    """The unmasked sum of a group's tails, [layout.size].

    Raises:
        SecureAggregationError: "upload-malformed" if an upload has another size than this round's.
    """
    size = context.encoding.upload_bytes(context.dimension, context.layout)
    total = np.zeros(context.layout.size, "<u8")
    for position, upload in zip(group.members, uploads, strict=True):
        if len(upload) != size:
            raise SecureAggregationError(
                "upload-malformed",
                f"the masked update of {context.names[position]} has {len(upload)} bytes; this round's have {size}",
            )
        total += split_upload(upload, context.layout)[1]
    add_streams(total, streams(group.terms, TAIL))
    return total


def unmask_group(
    context: RoundContext, group: GroupSum, uploads: Sequence[Upload]
) -> tuple[RingVector, NDArray[np.uint64]]:
    """One group's unmasked sum.

    Args:
        context: Of the attempt.
        group: What to add up.
        uploads: In the order of its members.

    Returns:
        The main vector [d] in the ring, of which only the low ``wire_bits`` count, and the tail.

    Raises:
        SecureAggregationError: "upload-malformed".
    """
    tail = unmask_tail(context, group, uploads)
    total: RingVector = np.zeros(context.dimension, context.encoding.dtype)
    if context.dimension:
        add_slice(context, total, streams(group.terms, MAIN), uploads)
    return total, tail


def plausible(context: RoundContext, group: GroupSum, main: RingVector, tail: NDArray[np.uint64]) -> TailSum:
    """What a group's unmasked sum tells besides the updates, if it can be a sum of well-formed ones at all.

    Raises:
        SecureAggregationError: "tail-implausible" or "sum-implausible".
    """
    said = decode_tail(context.layout, tail, participants=len(group.members), weight_cap=context.encoding.weight_cap)
    if context.dimension:
        context.encoding.check_sum(main, len(group.members))
        weighty(said)
    return said


def weighty(said: TailSum) -> None:
    """Refuse a sum of updates that no examples stand behind: it has no mean.

    Raises:
        SecureAggregationError: "sum-implausible".
    """
    if said.weight == 0:
        raise SecureAggregationError(
            "sum-implausible", "the updates of a sum count no examples together, so there is nothing to weight them by"
        )


def mean_slices(context: RoundContext, total: RingVector, weight: int) -> Iterator[NDArray[np.float32]]:
    """The mean update, float32, slice by slice; a slice is overwritten by the next."""
    out = np.empty(min(_SLICE, context.dimension), "<f4")
    for start in range(0, context.dimension, _SLICE):
        part = total[start : start + _SLICE]
        context.encoding.decode(part, weight, out[: len(part)])
        yield out[: len(part)]


def group_mean(context: RoundContext, group: GroupSum, main: RingVector, tail: NDArray[np.uint64]) -> GroupMean:
    """What a group's sum comes to, for whoever checks it: the same bytes that the coordinator has to have written."""
    try:
        said = plausible(context, group, main, tail)
    except SecureAggregationError as error:
        return GroupMean(0, b"", error.code)
    if not context.dimension:
        return GroupMean(said.weight, b"")
    hashed = hashlib.sha256()
    for part in mean_slices(context, main, said.weight):
        hashed.update(part.data.cast("B"))
    return GroupMean(said.weight, hashed.digest())


def sums_hash(context: RoundContext, sums: Iterable[tuple[RingVector, NDArray[np.uint64]]]) -> bytes:
    """Hash over all groups' sums, 32 bytes: what a line of the log of results names."""
    return joined_hashes([sum_hash(main, tail, context.encoding.wire_bits) for main, tail in sums])


def joined_hashes(each: Sequence[bytes]) -> bytes:
    """:func:`sums_hash` from the hash of each group's sum."""
    return digest(_SUMS_LABEL, tuple(each))


def uploads_hash(digests: Sequence[bytes]) -> bytes:
    """Hash over the digests of a sum's uploads in the order of their positions, 32 bytes."""
    return digest(_UPLOADS_LABEL, tuple(digests))


def line_hash(body: bytes) -> bytes:
    """What the next line of the log of results names as the one before it, 32 bytes."""
    return digest(_RESULT_LABEL, body)


def joined(sums: Sequence[tuple[RingVector, NDArray[np.uint64]]]) -> tuple[RingVector, NDArray[np.uint64]]:
    """All groups' sums added up."""
    main: Any = sums[0][0]
    tail: Any = sums[0][1]
    for other, other_tail in sums[1:]:
        main, tail = main + other, tail + other_tail
    return main, tail
