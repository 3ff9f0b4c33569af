"""The merge: base checkpoint + the updates' one vector, through the server optimizer, to a new checkpoint.

Which vector the updates become is decided by a recipe (``coordinator.merging``) from norms and dot products; here it is
carried out. A function over files: it goes through the coordinates once, slice by slice, and holds a few slices
whatever the size of the model or the number of updates. The files it writes depend neither on the order of arrival nor
on the slice size.

Cost for n updates of d parameters, s vectors of optimizer state and c earlier updates to correct by: reads
4 d (n + 1 + s + c) bytes, and 4 d n more where
norms and dot products aren't there yet; writes and hashes 4 d (1 + s).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregation.check import UpdateRefused, open_update, read_update
from coordinator.aggregation.correction import Earlier, correction_weights
from coordinator.aggregation.files import ITEM, VectorFile
from coordinator.aggregation.optimizer import ServerOptimizer
from coordinator.merging import Decision, Merger, MergeReport, Recipe, careful
from kernels.rows import Rows
from kernels.weighted_sum import weighted_sum
from wire import BlobStore, BlobWriter, CheckpointHeader, DataError, RefusedError, read_header
from wire.codec import all_finite

# Coordinates that the optimizer handles at a time: mean, two scratch rows and base take 1 MiB, which a level-2 cache
# holds.
SLICE: Final = 1 << 15

# Coordinates that the rule handles at a time. So many that it is worth its while to write out a selection network; the
# result of a slice takes 4 MiB, the updates are staged in pieces.
_RULE_SLICE: Final = 1 << 19

# Past this many updates, files are opened for each read: 1,024 descriptors is the usual limit of a process.
OPEN_FILES: Final = 256

_THREADS: Final = len(os.sched_getaffinity(0))


class OptimizerOverflow(DataError):
    """The server optimizer left the range of float32; nothing was written."""

    code = "merge-overflow"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """One accepted update: whose, its file (raw float32 differences to a version), and the examples behind it.

    ``staleness`` says how many versions that one is behind the base of the merge.
    """

    participant: str
    path: Path
    examples: int
    staleness: int = 0

    @property
    def discount(self) -> float:
        """By which its share is lowered for its age: ``1 / sqrt(1 + staleness)`` (FedBuff)."""
        return 1.0 / math.sqrt(1.0 + self.staleness)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeJob:
    """What to merge.

    Attributes:
        base: The checkpoint that the updates are differences to.
        updates: At least one, in any order, one for each participant.
        optimizer: What turns the merged difference into the next version.
        state: The optimizer's vectors as the last merge left them (raw float32 files), or empty before the first.
        recipe: What makes one difference of the updates.
        max_norm: Longer updates are rejected; None for what float32 can't add up.
        rejected: Who was turned away before, and why: they count against the recipe's f.
        seed: Of the round, for rules that shuffle.
        earlier: Updates that were merged last, to correct the mean of a buffer by; see
            :mod:`coordinator.aggregation.correction`.
    """

    base: Path
    updates: tuple[Update, ...]
    optimizer: ServerOptimizer
    state: tuple[Path, ...] = ()
    recipe: Recipe = dataclasses.field(default_factory=careful)
    max_norm: float | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    seed: int = 0
    earlier: tuple[Earlier, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeResult:
    """What a merge has left among the blobs.

    Attributes:
        digest: SHA-256 of the new checkpoint.
        size: Its bytes.
        state: SHA-256 of each of the optimizer's vectors.
        examples: Behind the updates that were merged.
        report: What became of each update.
    """

    digest: bytes
    size: int
    state: tuple[bytes, ...]
    examples: int
    report: MergeReport


def merge(job: MergeJob, blobs: BlobStore, *, merger: Merger | None = None, slice_size: int = SLICE) -> MergeResult:
    """Merge updates into the next checkpoint; may run in a worker thread.

    Args:
        job: What to merge.
        blobs: Where the new files go. When this returns they are durable; when it raises there is no new checkpoint.
        merger: One that has taken exactly these updates; made here where None.
        slice_size: Coordinates at a time. Changes speed and memory, never the result.

    Raises:
        UpdateRefused: An update is missing, has the wrong size, or claims a negative count.
        MergeRefused: The recipe can't keep its promise with what the gate has left: see `Merger.decide`.
        RefusedError: "examples-invalid" when the updates count no examples together.
        OptimizerOverflow: The optimizer's result is too large for float32.
        DataError: The base or a state file is missing, damaged, or holds NaN or infinity.
        ResourceError: "disk-full".
        ValueError: Two updates of one participant, or a number of state files that isn't the optimizer's.
    """
    updates = sorted(job.updates, key=lambda update: update.participant)
    _check_counts(updates)
    if job.state and len(job.state) != len(job.optimizer.state_names):
        raise ValueError(f"the optimizer has {len(job.optimizer.state_names)} vectors of state, not {len(job.state)}")
    header = _base_header(job.base)
    with ExitStack() as stack:
        keep_open = len(updates) <= OPEN_FILES
        files = {
            item.participant: stack.enter_context(
                open_update(item.path, header.dimension, item.participant, keep_open=keep_open)
            )
            for item in updates
        }
        if merger is None:
            merger = new_merger(job.recipe, header.dimension, job.max_norm)
            merger.add_all([(item.participant, files[item.participant], item.examples) for item in updates])
        for name, reason in job.rejected:
            merger.reject(name, reason)
        decision = merger.decide(seed=job.seed, discounts={item.participant: item.discount for item in updates})
        corrections = []
        if job.earlier:
            counts = {item.participant: item.examples for item in updates}
            corrections = correction_weights(decision, job.recipe.rule, counts, job.earlier)
        inputs = _Inputs(
            base=stack.enter_context(_open_own(job.base, header.data_offset, header.dimension)),
            state=[stack.enter_context(_open_own(path, 0, header.dimension)) for path in job.state],
            updates=files,
            decision=decision,
            corrections=[
                (stack.enter_context(open_update(item.path, header.dimension, item.participant)), item, factor)
                for item, factor in corrections
            ],
        )
        checkpoint = stack.enter_context(blobs.writer(header.size))
        vectors = [stack.enter_context(blobs.writer(ITEM * header.dimension)) for _ in job.optimizer.state_names]
        checkpoint.write(_header_bytes(job.base, header))
        _run(inputs, job.optimizer, header.dimension, [checkpoint, *vectors], slice_size)
        # The checkpoint last: where it exists, all of the merge does.
        state = tuple(vector.commit() for vector in vectors)
        digest = checkpoint.commit()
        return MergeResult(
            digest=digest,
            size=header.size,
            state=state,
            examples=sum(item.examples for item in updates if item.participant in decision.names),
            report=decision.report,
        )


def new_merger(recipe: Recipe, dimension: int, max_norm: float | None) -> Merger:
    """A merger that has taken no update yet; see :class:`MergeJob`."""
    return Merger(recipe, dimension, max_norm=max_norm, threads=_THREADS)


@dataclasses.dataclass
class _Inputs:
    """Open files of one merge, and what to make of the updates."""

    base: VectorFile
    state: list[VectorFile]
    updates: dict[str, VectorFile]
    decision: Decision
    corrections: list[tuple[VectorFile, Earlier, float]]

    def merged(self, start: int, count: int) -> NDArray[np.float64]:
        """The updates' one vector from coordinate ``start`` on, [count]."""
        rows = Rows([_From(self.updates[name], name, start) for name in self.decision.names], count)
        if self.decision.weights is not None:
            mean = self.decision.write(rows, np.empty(count), threads=_THREADS)
            if self.corrections:
                before = Rows([_From(file, item.participant, start) for file, item, _ in self.corrections], count)
                factors = [factor for _, _, factor in self.corrections]
                mean += weighted_sum(factors, before, np.empty(count), threads=_THREADS)
            return mean
        return self.decision.write(rows, np.empty(count, np.float32), threads=_THREADS).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class _From:
    """An update's file from a coordinate on, as a row; errors name the participant."""

    file: VectorFile
    participant: str
    start: int

    def read(self, start: int, out: NDArray[np.float32], /) -> None:
        """Fill ``out`` [m]."""
        read_update(self.file, self.start + start, out, self.participant)


def _run(
    inputs: _Inputs, optimizer: ServerOptimizer, dimension: int, outputs: Sequence[BlobWriter], slice_size: int
) -> None:
    """Stream all coordinates from the inputs to the outputs (the checkpoint, then the state)."""
    width = min(slice_size, dimension)
    whole = max(_RULE_SLICE // width, 1) * width
    vectors = np.empty((len(outputs), width), dtype="<f4")
    scratch = np.empty((2, width), dtype=np.float64)
    for first in range(0, dimension, whole):
        merged = inputs.merged(first, min(whole, dimension - first))
        for start in range(first, first + len(merged), width):
            count = min(width, dimension - start)
            if count < width:
                # Fresh arrays for the short last slice keep every row contiguous.
                vectors, scratch = (np.empty((len(a), count), dtype=a.dtype) for a in (vectors, scratch))
            model, *state = vectors
            _read_own(inputs.base, start, model)
            if inputs.state:
                for file, vector in zip(inputs.state, state, strict=True):
                    _read_own(file, start, vector)
            else:
                for value, vector in zip(optimizer.fresh(), state, strict=True):
                    vector.fill(value)
            optimizer.step(model, merged[start - first : start - first + count], state, scratch)
            if not all(all_finite(vector) for vector in vectors):
                _explain(inputs, optimizer, start, count)
            for writer, vector in zip(outputs, vectors, strict=True):
                writer.write(vector.data.cast("B"))


def _explain(inputs: _Inputs, optimizer: ServerOptimizer, start: int, count: int) -> NoReturn:
    """Find out whose fault a result is that isn't finite; the updates are, or the gate had rejected them."""
    part = np.empty(count, "<f4")
    for file in (inputs.base, *inputs.state):
        _read_own(file, start, part)
        if not all_finite(part):
            raise DataError(
                f"{file.path}: holds NaN or infinity from coordinate {start} on",
                "Start a new run from an older version: `fedloom coordinator export --version N`.",
            )
    raise OptimizerOverflow(
        f"The server optimizer {type(optimizer).__name__} left the range of float32 "
        f"among coordinates {start} to {start + count - 1}.",
        "Lower aggregation.learning_rate in federation.toml and start a new run.",
    )


def _check_counts(updates: Sequence[Update]) -> None:
    """Refuse example counts that make no weights."""
    for one, other in itertools.pairwise(updates):
        if one.participant == other.participant:
            raise ValueError(f"two updates of {one.participant} in one merge")
    for update in updates:
        if update.examples < 0:
            raise UpdateRefused(
                "examples-invalid", update.participant, f"{update.participant} claims {update.examples} examples."
            )
    if not any(update.examples for update in updates):
        raise RefusedError(
            "examples-invalid",
            f"{len(updates)} updates count no examples together, so there is nothing to weight them by.",
            "Look at the participants' data: `fedloom coordinator status` shows how many records each has.",
        )


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
