"""Add up masked uploads and take the masks off: what the coordinator does, and whoever checks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.decisions import GroupSum
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.masking import streams, sum_hash
from privacy.secure_aggregation.streams import MAIN, TAIL, RingVector, Term, add_streams
from privacy.secure_aggregation.tail import split_upload
from privacy.transcript import digest

_SUMS_LABEL: Final = "fedloom/secure-aggregation/sums/1"
_UPLOADS_LABEL: Final = "fedloom/secure-aggregation/uploads/1"
_RESULT_LABEL: Final = "fedloom/secure-aggregation/result/1"

# Uploads are added by tiles that stay in the cache, so that each byte of them is all that is read.
_TILE: Final = 1 << 17

Upload = NDArray[np.uint8]
"""The bytes of a masked update, in memory or in a memory map."""


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


def sums_hash(context: RoundContext, sums: Sequence[tuple[RingVector, NDArray[np.uint64]]]) -> bytes:
    """Hash over all groups' sums, 32 bytes: what a line of the log of results names."""
    each = tuple(sum_hash(main, tail, context.encoding.wire_bits) for main, tail in sums)
    return digest(_SUMS_LABEL, each)


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
