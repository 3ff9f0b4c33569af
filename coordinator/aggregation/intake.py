"""A run's updates by digests: from their arrival to the merge that the round machine orders."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from typing import TYPE_CHECKING

from coordinator.aggregation.check import UpdateRefused, open_update
from coordinator.aggregation.correction import Earlier
from coordinator.aggregation.files import VectorFile
from coordinator.aggregation.merge import OPEN_FILES, MergeJob, MergeResult, Update, merge, new_merger
from coordinator.aggregation.optimizer import server_optimizer
from coordinator.merging import Merger
from coordinator.merging.planning import plan_recipe
from wire import BlobStore, RunPlan, check_update

if TYPE_CHECKING:
    from coordinator.rounds import BeginMerge, Contribution
    from coordinator.store import Checkpoint


class _Arrived:
    """The updates that have arrived for one round, and what is known of them."""

    def __init__(self, merger: Merger) -> None:
        self.merger = merger
        self.taken: dict[str, tuple[Contribution, VectorFile]] = {}

    def close(self) -> None:
        """Close the files."""
        for _, file in self.taken.values():
            file.close()


class Intake:
    """One run's updates, from their arrival to their merge.

    An update is read when it arrives, for its norm and, where the recipe compares updates, with the earlier ones for
    their dot products: what is left for the merge is one pass. All that is kept in memory only; after a restart the
    merge begins with a pass for norms and dot products, and comes to the same result.

    Its methods may run in worker threads; one update is taken at a time.

    Args:
        blobs: Holds base, optimizer state and updates; takes the new files.
        plan: The run's.
    """

    def __init__(self, blobs: BlobStore, plan: RunPlan) -> None:
        self._blobs = blobs
        self._plan = plan
        self._recipe = plan_recipe(plan)
        self._lock = threading.Lock()
        # By round: where rounds are asynchronous, one is merged while the next one's updates arrive.
        self._rounds: dict[int, _Arrived] = {}

    def take(self, number: int, new: Contribution) -> None:
        """Look at an update that has arrived for round ``number``.

        Raises:
            RefusedError: "update-missing", "update-shape", "update-not-finite" or "update-norm".
            DataError: The file can't be read.
        """
        dimension, name = self._plan.initial.dimension, new.participant
        path = self._blobs.path(bytes.fromhex(new.digest))
        open_update(path, dimension, name).close()
        check_update(path, dimension)
        with self._lock:
            self._forget(number - 2)
            if number not in self._rounds:
                self._rounds[number] = _Arrived(new_merger(self._recipe, dimension, self._plan.merging.max_norm))
            arrived = self._rounds[number]
            if name in arrived.taken:
                return  # which of two answers counts, the round machine decides; the merge looks whether it is this one
            file = open_update(path, dimension, name, keep_open=len(arrived.taken) < OPEN_FILES)
            fault = arrived.merger.offer(name, file, new.examples)
            if fault:
                file.close()
                raise UpdateRefused(
                    "update-norm",
                    name,
                    f"The update of {name} is turned away: {fault}.",
                    "Training diverged there, or [merging] max_norm of the federation is too low.",
                )
            arrived.taken[name] = (new, file)

    def merge(self, order: BeginMerge, base: Checkpoint) -> MergeResult:
        """Do the merge that a sealed round asks for.

        Args:
            order: Whose updates.
            base: The version they are merged into, with the optimizer's state as of it.

        Raises:
            FedloomError: As :func:`coordinator.aggregation.merge`.
        """
        job = MergeJob(
            base=self._blobs.path(base.digest),
            updates=tuple(
                Update(
                    participant=item.participant,
                    path=self._blobs.path(bytes.fromhex(item.digest)),
                    examples=item.examples,
                    staleness=item.staleness,
                )
                for item in order.contributions
            ),
            optimizer=server_optimizer(self._plan.aggregation, order.step_scale),
            state=tuple(self._blobs.path(digest) for digest in base.state),
            recipe=self._recipe,
            max_norm=self._plan.merging.max_norm,
            rejected=order.rejected,
            seed=_seed(self._plan.run_id, order.round),
            earlier=tuple(
                Earlier(
                    participant=item.participant,
                    path=self._blobs.path(bytes.fromhex(item.digest)),
                    examples=item.examples,
                    factor=item.factor,
                )
                for item in order.kept
            ),
        )
        with self._lock:
            try:
                merged = merge(job, self._blobs, merger=self._known(order))
            except BaseException:
                # A round whose merge is refused goes on under its number, with what has come for the next one.
                self._forget(order.round + 1)
                raise
            self._forget(order.round)
            return merged

    def _known(self, order: BeginMerge) -> Merger | None:
        """What is known of exactly the updates to be merged, if it is."""
        arrived = self._rounds.get(order.round)
        if arrived is None:
            return None
        taken = sorted((item for item, _ in arrived.taken.values()), key=lambda item: item.participant)
        # How old an update is, only the order tells.
        ordered = [dataclasses.replace(item, staleness=0) for item in order.contributions]
        return arrived.merger if taken == ordered else None

    def _forget(self, last: int) -> None:
        """Of the rounds up to this one nothing more is needed."""
        for number in [number for number in self._rounds if number <= last]:
            self._rounds.pop(number).close()


def _seed(run_id: str, number: int) -> int:
    """Of what a rule draws in a round: the same after a restart."""
    return int.from_bytes(hashlib.sha256(f"fedloom/merge/{run_id}/{number}".encode()).digest()[:8], "big") >> 1
