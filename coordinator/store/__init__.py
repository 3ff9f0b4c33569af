"""What the coordinator remembers: the runs' event logs, checkpoints, roster and refusals."""

from coordinator.store.base import (
    Checkpoint,
    Invitation,
    Member,
    MemberState,
    Run,
    Store,
    StoredResult,
    StoredStatement,
    Transition,
)
from coordinator.store.opening import open_store

__all__ = [
    "Checkpoint",
    "Invitation",
    "Member",
    "MemberState",
    "Run",
    "Store",
    "StoredResult",
    "StoredStatement",
    "Transition",
    "open_store",
]
