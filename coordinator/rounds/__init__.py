"""Round logic: a pure state machine over an event log."""

from coordinator.rounds.facts import Fact, from_row, to_row
from coordinator.rounds.machine import (
    AnnounceFinish,
    AnnounceVersion,
    BeginMerge,
    CancelTask,
    Contribution,
    Decision,
    Effect,
    IssueTask,
    SendReceipt,
    SynchronousRounds,
    WakeAt,
)
from coordinator.rounds.state import Round, RunState, Seat

__all__ = [
    "AnnounceFinish",
    "AnnounceVersion",
    "BeginMerge",
    "CancelTask",
    "Contribution",
    "Decision",
    "Effect",
    "Fact",
    "IssueTask",
    "Round",
    "RunState",
    "Seat",
    "SendReceipt",
    "SynchronousRounds",
    "WakeAt",
    "from_row",
    "to_row",
]
