"""What became of a result, by the log: the same answer whenever it is asked for, and after any restart."""

from __future__ import annotations

from coordinator.rounds.effects import SendReceipt
from coordinator.rounds.state import RunState
from coordinator.rounds.tasks import seat_task


def receipt_of(state: RunState, run_id: str, name: str, task: str, digest: str | None) -> SendReceipt:
    """The receipt for a result that came before, or too late.

    Args:
        state: The run's.
        run_id: Names its tasks.
        name: Whose result.
        task: The task that it is for.
        digest: Of the update that was handed in, in hex; None for whatever was.
    """
    for item in reversed(state.rounds):
        seat = item.seats.get(name)
        if seat is None or task != seat_task(run_id, item, name):
            continue
        known = seat.outcome == "done" and digest in (None, seat.digest)
        return SendReceipt(
            participant=name,
            task_id=task,
            accepted=known,
            code="" if known else "task-closed",
            message="" if known else f"round {item.number} closed without it ({seat.outcome})",
        )
    return SendReceipt(
        participant=name,
        task_id=task,
        accepted=False,
        code="task-unknown",
        message="no such task was given to you in this run",
    )
