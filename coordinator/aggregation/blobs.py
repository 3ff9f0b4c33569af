"""The merge by digests: from what the round machine orders to what the store records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.aggregation.merge import MergeJob, MergeResult, Update, merge
from coordinator.aggregation.optimizer import server_optimizer
from wire import BlobStore, RunPlan

if TYPE_CHECKING:
    from coordinator.rounds import BeginMerge
    from coordinator.store import Checkpoint


def merge_blobs(blobs: BlobStore, plan: RunPlan, order: BeginMerge, base: Checkpoint) -> MergeResult:
    """Do the merge that a sealed round asks for; may run in a worker thread.

    Args:
        blobs: Holds the base, its optimizer state and the updates; takes the new files.
        plan: Says which optimizer.
        order: Whose updates.
        base: The version they are differences to, with the optimizer's state as of it.

    Raises:
        FedloomError: As :func:`coordinator.aggregation.merge`.
    """
    updates = tuple(
        Update(participant=item.participant, path=blobs.path(bytes.fromhex(item.digest)), examples=item.examples)
        for item in order.contributions
    )
    job = MergeJob(
        base=blobs.path(base.digest),
        updates=updates,
        optimizer=server_optimizer(plan.aggregation),
        state=tuple(blobs.path(digest) for digest in base.state),
    )
    return merge(job, blobs)
