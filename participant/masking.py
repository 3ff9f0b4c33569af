"""The numeric work of a site's secure sums, on files: expand masks, write masked updates, keep what rounding lost.

Masks and residuals lie in the site's own folder, readable by its owner alone. A mask exists from the moment the
cohort is known until its update is masked; a residual from one round to the next.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from participant.actions import ExpandMask, MaskUpdate
from participant.store import ParticipantStore, TaskRecord, TaskState
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.encoding import Encoder
from privacy.secure_aggregation.integers import IntegerEncoder
from privacy.secure_aggregation.masking import dither_seed, expand_mask, masked_upload, split_mask
from privacy.secure_aggregation.sharing import MaskTerm
from privacy.secure_aggregation.tail import encode_tail
from wire import BlobStore, DataError

_log = logging.getLogger("fedloom.participant")

MASKS: Final = "masks"

EVALUATION: Final = "evaluation/"
"""In front of the names of held-out metrics."""

# Up to so many bytes of keystream (a tenth of a second) the mask is expanded in this process. More would hold its
# interpreter lock while the model trains.
_HERE: Final = 256 << 20
_LOW_PRIORITY: Final = 10


class Masking:
    """A site's masks and residuals.

    Args:
        folder: Where they lie; made if missing. Masks that a killed process left are removed.
        name: The participant's; it enters the random rounding.
        store: The journal, which says what became of earlier updates.
        blobs: Holds the trained updates, takes the masked ones.
    """

    def __init__(self, folder: Path, name: str, store: ParticipantStore, blobs: BlobStore) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in folder.glob("*.mask*"):
            path.unlink()
        self._folder = folder
        self._name = name
        self._store = store
        self._blobs = blobs
        self._pool: ProcessPoolExecutor | None = None

    def expand(self, action: ExpandMask) -> None:
        """Expand a mask into its file; in a process of low priority where it is long."""
        context, path = action.context, self._mask(action.context.hash)
        work = len(action.terms) * context.dimension * context.encoding.ring_bits // 8
        if work <= _HERE:
            expand_to(path, context.canonical(), action.terms)
            return
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=os.nice, initargs=(_LOW_PRIORITY,))
        self._pool.submit(expand_to, path, context.canonical(), action.terms).result()

    def mask(self, action: MaskUpdate) -> bytes:
        """Write the masked update of a trained task; its digest.

        The same task, mask and residual give the same bytes again.

        Raises:
            DataError: The trained update or the mask is gone.
            SecureAggregationError: "update-not-finite".
        """
        context, record = action.context, action.record
        residuals = _Residuals(self._folder, record, context.dimension)
        try:
            content = np.fromfile(self._mask(context.hash), np.uint8)
        except OSError as error:
            raise DataError(f"the mask of round {context.round} is gone: {error.strerror}") from error
        encoder: Encoder | IntegerEncoder | None = None
        lost: NDArray[np.float32] | None = None
        if context.purpose == "train":
            if action.integers:
                encoder = IntegerEncoder(context.encoding, self._update(record).view("<i4"))
            else:
                lost = np.empty(context.dimension, np.float32)
                encoder = self._rounded(action, residuals.before(self._store))
        values = {**record.metrics, **{EVALUATION + name: value for name, value in record.evaluation.items()}}
        wanted = {name: value for name, value in values.items() if name in context.metrics}
        tail = encode_tail(context.layout, context.encoding.weight(self._counted(context, record)), wanted)
        main, end = masked_upload(context, encoder, tail, split_mask(context, content), action.terms, lost)
        with self._blobs.writer(main.nbytes + len(end)) as writer:
            writer.write(main)
            writer.write(end)
            digest = writer.commit(sync=False)  # lost in a power cut, the sum is made without this site
        if lost is not None:
            residuals.after(lost)
        return digest

    def drop(self, context: bytes) -> None:
        """A mask is no longer needed."""
        self._mask(context).unlink(missing_ok=True)

    def close(self) -> None:
        """End the process for long masks."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _mask(self, context: bytes) -> Path:
        return self._folder / f"{context.hex()}.mask"

    def _rounded(self, action: MaskUpdate, kept: NDArray[np.float32] | None) -> Encoder:
        """The encoder that rounds an update at random, what rounding lost before included."""
        context, record = action.context, action.record
        update = self._update(record)
        dither = dither_seed(action.seed, context.round, self._name)
        encoder = context.encoding.encoder(update, self._counted(context, record), dither, kept)
        _warn_of_clipping(context, encoder, update)
        return encoder

    def _counted(self, context: RoundContext, record: TaskRecord) -> int:
        """The examples that the update counts for, after its age."""
        position = context.position(self._name)
        assert position is not None
        return context.counted(position, record.examples)

    def _update(self, record: TaskRecord) -> NDArray[np.float32]:
        path = self._blobs.path(record.update_digest)
        try:
            return np.fromfile(path, "<f4")
        except OSError as error:
            raise DataError(f"the trained update {path} is gone: {error.strerror}") from error


def _warn_of_clipping(context: RoundContext, encoder: Encoder, update: NDArray[np.float32]) -> None:
    """Clipping that bites changes what is learnt: the site's log says so, and which setting would help."""
    encoding = context.encoding
    if encoder.clip_factor < 1.0:
        text = "round %d: the update was scaled by %.3g to norm %g ([secure_aggregation] clip_norm of the federation)"
        _log.warning(text, context.round, encoder.clip_factor, encoding.clip_norm)
    largest = float(max(update.max(), -update.min())) * encoder.clip_factor * encoder.weight / encoding.weight_cap
    if largest > encoding.clip_value:
        text = "round %d: values of the weighted update up to %.3g were cut to %g ([secure_aggregation] clip_value)"
        _log.warning(text, context.round, largest, encoding.clip_value)


def expand_to(path: Path, context: bytes, terms: Sequence[MaskTerm]) -> None:
    """Expand a mask into a file that exists whole or not at all."""
    main, tail = expand_mask(RoundContext.parse(context), terms)
    part = path.with_suffix(".mask-part")
    with _private(part) as file:
        file.write(main.data.cast("B") if main.size else b"")
        file.write(tail.tobytes())
    part.rename(path)


def _private(path: Path) -> BinaryIO:
    """A file to write that only its owner may read."""
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


class _Residuals:
    """What rounding has lost of one run's updates: error feedback (Seide et al. 2014; Karimireddy et al. 2019).

    The next round's update gets it back. Whether an update's own loss counts depends on what became of the update: it
    replaces the one before only once the coordinator has taken it, which the journal knows; so it is looked up when the
    next update is made.
    """

    def __init__(self, folder: Path, record: TaskRecord, dimension: int) -> None:
        self._record = record
        self._dimension = dimension
        self._kept = folder / f"{record.run_id}.residual"
        self._new = folder / f"{record.run_id}.residual-new"
        self._task = folder / f"{record.run_id}.residual-task"

    def before(self, store: ParticipantStore) -> NDArray[np.float32] | None:
        """The residual to add to this task's update; None before the first."""
        if self._task.exists() and self._new.exists():
            task_id = self._task.read_text(encoding="utf-8")
            made_for = store.get(task_id)
            if task_id != self._record.task_id and made_for is not None and made_for.state is TaskState.RECEIPTED:
                self._new.rename(self._kept)
                self._task.unlink()
        if not self._kept.exists():
            return None
        kept = np.fromfile(self._kept, "<f4")
        return kept if len(kept) == self._dimension else None

    def after(self, lost: NDArray[np.float32]) -> None:
        """Remember what rounding this task's update has lost."""
        self._task.unlink(missing_ok=True)
        with _private(self._new) as file:
            file.write(lost.astype("<f4", copy=False).data.cast("B"))
        self._task.write_text(self._record.task_id, encoding="utf-8")
