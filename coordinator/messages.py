"""From the round machine's effects to messages on the participant's stream, and the checks on what comes back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

from coordinator.rounds import AnnounceFinish, AnnounceVersion, CancelTask, IssueTask, SendReceipt
from privacy.secure_aggregation.members import MemberList
from protos import session_pb2 as pb
from wire import RefusedError, pack_members
from wire.root import MAX_ENTRIES

MAX_METRICS: Final = 64
MAX_METRIC_NAME: Final = 64

_KIND: Final = {"train": pb.TASK_KIND_TRAIN, "evaluate": pb.TASK_KIND_EVALUATE}


def blob(digest: str, size: int) -> pb.Blob:
    """A blob's name on the wire; ``digest`` in hex."""
    return pb.Blob(digest=bytes.fromhex(digest), size=size)


def task(effect: IssueTask, base: pb.Blob, now_s: float) -> pb.FromCoordinator:
    """The message for a task, with the base version's blob and the time left."""
    return pb.FromCoordinator(
        task=pb.Task(
            task_id=effect.task_id,
            kind=_KIND[effect.purpose],
            round=effect.round,
            attempt=effect.attempt,
            base_version=effect.base_version,
            base=base,
            seed=effect.seed,
            evaluate=effect.evaluate,
            deadline_s=max(0.0, effect.closes_s - now_s),
        )
    )


def receipt(effect: SendReceipt) -> pb.FromCoordinator:
    """The message that says what became of a result."""
    return pb.FromCoordinator(
        receipt=pb.Receipt(task_id=effect.task_id, accepted=effect.accepted, code=effect.code, message=effect.message)
    )


def cancel(effect: CancelTask) -> pb.FromCoordinator:
    """The message that calls a task off."""
    return pb.FromCoordinator(cancel=pb.Cancel(task_id=effect.task_id, reason=effect.reason))


def committed(effect: AnnounceVersion) -> pb.FromCoordinator:
    """The message that a new version is there."""
    return pb.FromCoordinator(
        committed=pb.Committed(
            round=effect.round,
            version=effect.version,
            model=blob(effect.digest, effect.size),
            updates=effect.updates,
        )
    )


def finished(run_id: str, effect: AnnounceFinish, model: pb.Blob) -> pb.FromCoordinator:
    """The message that the run is over."""
    return pb.FromCoordinator(
        run_finished=pb.RunFinished(run_id=run_id, version=effect.version, model=model, reason=effect.reason)
    )


def members(known: MemberList, after: int) -> Iterator[pb.FromCoordinator]:
    """The messages that show the member list from index ``after`` on; at least one, with the list's end."""
    entries, head = known.entries, known.head
    for start in range(after, max(len(entries), after + 1), MAX_ENTRIES):
        part = pack_members(entries[start : start + MAX_ENTRIES])
        yield pb.FromCoordinator(members=pb.Members(entries=part, total=len(entries), head=head))


def rejection(error: RefusedError) -> pb.FromCoordinator:
    """The message that ends a stream, with the reason."""
    return pb.FromCoordinator(rejection=pb.Rejection(code=error.code, message=error.message, hint=error.hint))


def checked_metrics(peer: str, field: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """A participant's numbers as a dictionary, if they may enter the log.

    Raises:
        RefusedError: "metrics-invalid" for too many, too long a name, or a value that isn't finite.
    """
    if len(metrics) > MAX_METRICS:
        raise RefusedError(
            "metrics-invalid", f"{peer} sent {len(metrics)} entries in {field}; at most {MAX_METRICS} are taken"
        )
    for name, value in metrics.items():
        if not 0 < len(name) <= MAX_METRIC_NAME or not name.isprintable():
            raise RefusedError(
                "metrics-invalid", f"{peer} sent a name in {field} that is empty, too long or unprintable"
            )
        if not math.isfinite(value):
            raise RefusedError("metrics-invalid", f"{peer} sent {field}[{name!r}] = {value}, which isn't finite")
    return dict(metrics)


def checked_examples(peer: str, examples: int, announced: int) -> int:
    """A participant's claimed example count, if its weight may enter the average.

    Raises:
        RefusedError: "examples-invalid" for zero, or for more than it said it has.
    """
    if not 0 < examples <= announced:
        raise RefusedError(
            "examples-invalid", f"{peer} claims {examples} examples for its update but announced {announced}"
        )
    return examples
