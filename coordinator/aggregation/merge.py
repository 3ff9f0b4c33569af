"""The merge: base checkpoint + example-weighted mean of the updates, through the server optimizer, to a new checkpoint.

A function over files. It goes through the coordinates once, slice by slice, and holds a few slices whatever the size of
the model or the number of updates. All arithmetic is coordinate-wise with a fixed order of operations (updates sorted
by participant), so the files it writes depend neither on the order of arrival nor on the slice size.

Cost for n updates of d parameters and s vectors of optimizer state: reads 4 d (n + 1 + s) bytes, writes and hashes
4 d (1 + s).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregation.check import UpdateRefused, not_finite, open_update, read_update
from coordinator.aggregation.files import ITEM, VectorFile
from coordinator.aggregation.optimizer import ServerOptimizer
from kernels.weighted_sum import weighted_sum
from wire import BlobStore, BlobWriter, CheckpointHeader, DataError, RefusedError, read_header
from wire.codec import all_finite

# Coordinates in a slice: mean, two scratch rows, base and a row take 1 MiB together, which a level-2 cache holds.
SLICE: Final = 1 << 15

# Updates read before they are added up; bounds the memory when there are thousands.
_BATCH: Final = 8

# Past this many updates, files are opened for each read: 1,024 descriptors is the usual limit of a process.
_OPEN_FILES: Final = 256


class OptimizerOverflow(DataError):
    """The server optimizer left the range of float32; nothing was written."""

    code = "merge-overflow"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """One accepted update: whose, its file (raw float32 differences to the base), and the examples behind it."""

    participant: str
    path: Path
    examples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeJob:
    """What to merge.

    Attributes:
        base: The checkpoint that the updates are differences to.
        updates: At least one, in any order, one for each participant.
        optimizer: What turns the mean difference into the next version.
        state: The optimizer's vectors as the last merge left them (raw float32 files), or empty before the first.
    """

    base: Path
    updates: tuple[Update, ...]
    optimizer: ServerOptimizer
    state: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeResult:
    """What a merge has left among the blobs.

    Attributes:
        digest: SHA-256 of the new checkpoint.
        size: Its bytes.
        state: SHA-256 of each of the optimizer's vectors.
        examples: Behind all updates together.
    """

    digest: bytes
    size: int
    state: tuple[bytes, ...]
    examples: int


def merge(job: MergeJob, blobs: BlobStore, *, slice_size: int = SLICE) -> MergeResult:
    """Merge updates into the next checkpoint; may run in a worker thread.

    Args:
        job: What to merge.
        blobs: Where the new files go. When this returns they are durable; when it raises there is no new checkpoint.
        slice_size: Coordinates at a time. Changes speed and memory, never the result.

    Raises:
        UpdateRefused: An update is missing, has the wrong size, holds NaN or infinity, or claims a negative count.
        RefusedError: "examples-invalid" when the updates count no examples together.
        OptimizerOverflow: The optimizer's result is too large for float32.
        DataError: The base or a state file is missing, damaged, or holds NaN or infinity.
        ResourceError: "disk-full".
        ValueError: Two updates of one participant, or a number of state files that isn't the optimizer's.
    """
    updates = sorted(job.updates, key=lambda update: update.participant)
    weights, total = _weights(updates)
    if job.state and len(job.state) != len(job.optimizer.state_names):
        raise ValueError(f"the optimizer has {len(job.optimizer.state_names)} vectors of state, not {len(job.state)}")
    header = _base_header(job.base)
    with ExitStack() as stack:
        keep_open = len(updates) <= _OPEN_FILES
        inputs = _Inputs(
            base=stack.enter_context(_open_own(job.base, header.data_offset, header.dimension)),
            state=[stack.enter_context(_open_own(path, 0, header.dimension)) for path in job.state],
            updates=[
                stack.enter_context(open_update(item.path, header.dimension, item.participant, keep_open=keep_open))
                for item in updates
            ],
            names=[item.participant for item in updates],
            weights=weights,
        )
        checkpoint = stack.enter_context(blobs.writer(header.size))
        vectors = [stack.enter_context(blobs.writer(ITEM * header.dimension)) for _ in job.optimizer.state_names]
        checkpoint.write(_header_bytes(job.base, header))
        _run(inputs, job.optimizer, header.dimension, [checkpoint, *vectors], slice_size)
        # The checkpoint last: where it exists, all of the merge does.
        state = tuple(vector.commit() for vector in vectors)
        digest = checkpoint.commit()
        return MergeResult(digest=digest, size=header.size, state=state, examples=total)


@dataclasses.dataclass
class _Inputs:
    """Open files of one merge, updates in the order of their participants' names."""

    base: VectorFile
    state: list[VectorFile]
    updates: list[VectorFile]
    names: list[str]
    weights: NDArray[np.float64]

    def mean(self, start: int, rows: NDArray[np.float32], out: NDArray[np.float64]) -> None:
        """The weighted mean [m] of the updates from coordinate ``start`` on; ``rows`` [batch, m] is working space."""
        for first in range(0, len(self.updates), len(rows)):
            batch = rows[: len(self.updates) - first]
            for index, row in enumerate(batch, start=first):
                read_update(self.updates[index], start, row, self.names[index])
            weighted_sum(self.weights[first : first + len(batch)], batch, out, accumulate=first > 0)


def _run(
    inputs: _Inputs, optimizer: ServerOptimizer, dimension: int, outputs: Sequence[BlobWriter], slice_size: int
) -> None:
    """Stream all coordinates from the inputs to the outputs (the checkpoint, then the state)."""
    width = min(slice_size, dimension)
    vectors = np.empty((len(outputs), width), dtype="<f4")
    rows = np.empty((min(_BATCH, len(inputs.updates)), width), dtype="<f4")
    wide = np.empty((3, width), dtype=np.float64)
    for start in range(0, dimension, width):
        count = min(width, dimension - start)
        if count < width:
            # Fresh arrays for the short last slice keep every row contiguous.
            vectors, rows, wide = (np.empty((len(a), count), dtype=a.dtype) for a in (vectors, rows, wide))
        model, *state = vectors
        inputs.mean(start, rows, wide[0])
        _read_own(inputs.base, start, model)
        if inputs.state:
            for file, vector in zip(inputs.state, state, strict=True):
                _read_own(file, start, vector)
        else:
            for value, vector in zip(optimizer.fresh(), state, strict=True):
                vector.fill(value)
        optimizer.step(model, wide[0], state, wide[1:])
        if not all(all_finite(vector) for vector in vectors):
            _explain(inputs, optimizer, start, rows[0])
        for writer, vector in zip(outputs, vectors, strict=True):
            writer.write(vector.data.cast("B"))


def _explain(inputs: _Inputs, optimizer: ServerOptimizer, start: int, part: NDArray[np.float32]) -> NoReturn:
    """Find out whose fault a result is that isn't finite; ``part`` [m] is working space."""
    for name, file in zip(inputs.names, inputs.updates, strict=True):
        read_update(file, start, part, name)
        if not all_finite(part):
            raise not_finite(name, start, part)
    for file in (inputs.base, *inputs.state):
        _read_own(file, start, part)
        if not all_finite(part):
            raise DataError(
                f"{file.path}: holds NaN or infinity from coordinate {start} on",
                "Start a new run from an older version: `fedloom coordinator export --version N`.",
            )
    raise OptimizerOverflow(
        f"The server optimizer {type(optimizer).__name__} left the range of float32 "
        f"among coordinates {start} to {start + len(part) - 1}.",
        "Lower aggregation.learning_rate in federation.toml and start a new run.",
    )


def _weights(updates: Sequence[Update]) -> tuple[NDArray[np.float64], int]:
    """Each update's share of all examples [n], and their number."""
    for one, other in itertools.pairwise(updates):
        if one.participant == other.participant:
            raise ValueError(f"two updates of {one.participant} in one merge")
    for update in updates:
        if update.examples < 0:
            raise UpdateRefused(
                "examples-invalid", update.participant, f"{update.participant} claims {update.examples} examples."
            )
    total = sum(update.examples for update in updates)
    if total == 0:
        raise RefusedError(
            "examples-invalid",
            f"{len(updates)} updates count no examples together, so there is nothing to weight them by.",
            "Look at the participants' data: `fedloom coordinator status` shows how many records each has.",
        )
    return np.array([update.examples / total for update in updates]), total


def _base_header(path: Path) -> CheckpointHeader:
    try:
        return read_header(path)
    except RefusedError as error:
        raise _damaged(path, error.message) from error


def _header_bytes(path: Path, header: CheckpointHeader) -> bytes:
    with path.open("rb") as file:
        return file.read(header.data_offset)


def _open_own(path: Path, offset: int, dimension: int) -> VectorFile:
    """Open a vector that the coordinator has written itself."""
    try:
        file = VectorFile(path, offset)
    except OSError as error:
        raise _damaged(path, error.strerror or "can't be opened") from error
    if file.size != offset + ITEM * dimension:
        file.close()
        raise _damaged(path, f"has {file.size} bytes, not {offset + ITEM * dimension}")
    return file


def _read_own(file: VectorFile, start: int, out: NDArray[np.float32]) -> None:
    try:
        file.read(start, out)
    except EOFError as error:
        raise _damaged(file.path, "became shorter while it was read") from error


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"{path}: {what}", "The coordinator's blob folder is damaged: restore the file, or start a new run."
    )
