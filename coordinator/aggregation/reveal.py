"""From masked uploads to the mean update: add up, unmask, check, decode.

Cost for n uploads of d coordinates of b bytes in the ring and t mask streams: reads n times the bytes on the wire,
makes t * d * b bytes of AES-256-CTR, keeps one accumulator of d * b bytes, and writes 4 d bytes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.rounds import BeginUnmask, Revealed
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.coordinator import GroupSum
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.masking import streams, sum_hash
from privacy.secure_aggregation.streams import MAIN, TAIL, RingVector, Term, add_streams, slices
from privacy.secure_aggregation.tail import TailSum, decode_tail, split_upload
from privacy.transcript import digest, encode
from wire import BlobStore, DataError

_SUMS_LABEL: Final = "fedloom/secure-aggregation/sums/1"

# Below so many bytes of keystream a process of its own costs more than it saves.
_WORTH_A_PROCESS: Final = 512 << 20
_SLICE: Final = 1 << 16  # coordinates that are decoded and written at a time


def reveal(blobs: BlobStore, order: BeginUnmask) -> Revealed:
    """Unmask a round's sum and leave the mean update among the blobs; may run in a worker thread.

    Args:
        blobs: Holds the uploads; takes the mean update and the public record.
        order: What to add up.

    Raises:
        SecureAggregationError: "sum-implausible" or "tail-implausible": what is left isn't a sum of well-formed
            updates, so someone uploaded garbage. "upload-malformed": an upload's file has another size.
        DataError: An upload's file is gone.
        ResourceError: "disk-full".
    """
    context = order.order.context
    mains: list[RingVector] = []
    tails: list[NDArray[np.uint64]] = []
    for group in order.order.groups:
        paths = [blobs.path(item) for item in group.digests]
        main, tail = unmask(context, group, paths)
        decode_tail(context.layout, tail, participants=len(group.members), weight_cap=context.encoding.weight_cap)
        context.encoding.check_sum(main, len(group.members))
        mains.append(main)
        tails.append(tail)
    hashed = sums_hash(context, mains, tails)
    total, tail = _added(mains), _added(tails)
    members = sum(len(group.members) for group in order.order.groups)
    said = decode_tail(context.layout, tail, participants=members, weight_cap=context.encoding.weight_cap)
    record = _put(blobs, encode(order.record))
    mean = _write_mean(blobs, context, total, said) if context.purpose == "train" else b""
    return Revealed(
        digest=mean.hex(), weight=said.weight, metrics=said.means, sum_hash=hashed.hex(), record=record.hex()
    )


def unmask(context: RoundContext, group: GroupSum, paths: Sequence[Path]) -> tuple[RingVector, NDArray[np.uint64]]:
    """One group's unmasked sum.

    Args:
        context: Of the attempt.
        group: Its terms; ``paths`` are its uploads in the same order.
        paths: The uploads' files.

    Returns:
        The main vector [d] in the ring (only its low ``wire_bits`` count) and the tail.
    """
    tail = np.zeros(context.layout.size, "<u8")
    for path in paths:
        tail += _tail(context, path)
    add_streams(tail, streams(group.terms, TAIL))
    if not context.dimension:
        return np.zeros(0, context.encoding.dtype), tail
    terms = streams(group.terms, MAIN)
    work = len(terms) * context.dimension * context.encoding.ring_bits // 8
    processes = len(os.sched_getaffinity(0)) if work >= _WORTH_A_PROCESS else 1
    if processes == 1:
        total: RingVector = np.zeros(context.dimension, context.encoding.dtype)
        _sum_slice(context, total, terms, paths, 0)
        return total, tail
    return _in_processes(context, terms, paths, processes), tail


def sums_hash(context: RoundContext, mains: Sequence[RingVector], tails: Sequence[NDArray[np.uint64]]) -> bytes:
    """Hash over all groups' sums, 32 bytes: what the log of results names."""
    each = (sum_hash(main, tail, context.encoding.wire_bits) for main, tail in zip(mains, tails, strict=True))
    return digest(_SUMS_LABEL, tuple(each))


def _sum_slice(
    context: RoundContext, out: RingVector, terms: Sequence[Term], paths: Sequence[Path], start: int
) -> None:
    """Add the uploads' coordinates from ``start`` on, and the streams that unmask them, to ``out`` [m]."""
    for path in paths:
        # A map and not a read: packed planes lie far apart, and the pages are used once.
        with path.open("rb") as file:
            content = np.memmap(file, np.uint8, "r")
            main, _ = split_upload(content, context.layout)
            np.add(out, context.encoding.unpack(main, context.dimension, start, start + len(out)), out=out)
    add_streams(out, terms, start=start)


def _in_processes(context: RoundContext, terms: Sequence[Term], paths: Sequence[Path], processes: int) -> RingVector:
    """The same by slices, each in a process of its own, into shared memory."""
    size = context.dimension * context.encoding.dtype.itemsize
    memory = SharedMemory(create=True, size=size)
    try:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
            jobs = [
                pool.submit(_slice_job, memory.name, context.canonical(), terms, paths, start, stop)
                for start, stop in slices(context.dimension, processes)
            ]
            for job in jobs:
                job.result()
        total: RingVector = np.ndarray(context.dimension, context.encoding.dtype, memory.buf).copy()
        return total
    finally:
        memory.close()
        memory.unlink()


def _slice_job(
    memory: str, context: bytes, terms: Sequence[Term], paths: Sequence[Path], start: int, stop: int
) -> None:
    shared = SharedMemory(name=memory)
    try:
        parsed = RoundContext.parse(context)
        out: RingVector = np.ndarray(parsed.dimension, parsed.encoding.dtype, shared.buf)[start:stop]
        out.fill(0)
        _sum_slice(parsed, out, terms, paths, start)
        del out
    finally:
        shared.close()


def _tail(context: RoundContext, path: Path) -> NDArray[np.uint64]:
    """The last bytes of an upload."""
    size = context.encoding.upload_bytes(context.dimension, context.layout)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                raise SecureAggregationError(
                    "upload-malformed", f"{path.name} has another size than an upload of this round ({size} bytes)"
                )
            file.seek(size - context.layout.wire_bytes)
            return np.frombuffer(file.read(), "<u8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "The coordinator's blob folder is damaged.") from error


def _added(vectors: Sequence[Any]) -> Any:
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total


def _write_mean(blobs: BlobStore, context: RoundContext, total: RingVector, said: TailSum) -> bytes:
    if said.weight == 0:
        raise SecureAggregationError(
            "sum-implausible", "the updates of a sum count no examples together, so there is nothing to weight them by"
        )
    out = np.empty(min(_SLICE, context.dimension), "<f4")
    with blobs.writer(4 * context.dimension) as writer:
        for start in range(0, context.dimension, _SLICE):
            part = total[start : start + _SLICE]
            context.encoding.decode(part, said.weight, out[: len(part)])
            writer.write(out[: len(part)].data.cast("B"))
        return writer.commit()


def _put(blobs: BlobStore, content: bytes) -> bytes:
    with blobs.writer(len(content)) as writer:
        writer.write(content)
        return writer.commit()
