"""Round logic: pure state machines over an event log."""

from coordinator.rounds.asynchronous import AsyncRounds
from coordinator.rounds.effects import (
    AnnounceFinish,
    AnnounceVersion,
    BeginMerge,
    BeginUnmask,
    CancelTask,
    Contribution,
    Decision,
    Effect,
    IssueTask,
    Line,
    Revealed,
    SendReceipt,
    SendStatement,
    WakeAt,
)
from coordinator.rounds.facts import ATOM_INCOMPLETE, Fact, GroupRevealed, from_row, to_row
from coordinator.rounds.machine import SynchronousRounds
from coordinator.rounds.pace import Kept, Task
from coordinator.rounds.secure import SecureRounds
from coordinator.rounds.secure_buffers import SecureBuffers
from coordinator.rounds.state import Round, RunState, Seat

__all__ = [
    "ATOM_INCOMPLETE",
    "AnnounceFinish",
    "AnnounceVersion",
    "AsyncRounds",
    "BeginMerge",
    "BeginUnmask",
    "CancelTask",
    "Contribution",
    "Decision",
    "Effect",
    "Fact",
    "GroupRevealed",
    "IssueTask",
    "Kept",
    "Line",
    "Revealed",
    "Round",
    "RunState",
    "Seat",
    "SecureBuffers",
    "SecureRounds",
    "SendReceipt",
    "SendStatement",
    "SynchronousRounds",
    "Task",
    "WakeAt",
    "from_row",
    "to_row",
]
