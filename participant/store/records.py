"""A task as the journal knows it."""

from __future__ import annotations

import dataclasses
import enum
from typing import Literal


class TaskState(enum.StrEnum):
    """How far a task has come at this site.

    RECEIVED, TRAINED and ANNOUNCED are open. RECEIPTED (the coordinator took the result) and DROPPED (nobody wants it,
    or it couldn't be done) are settled.
    """

    RECEIVED = "received"
    TRAINED = "trained"
    ANNOUNCED = "announced"
    RECEIPTED = "receipted"
    DROPPED = "dropped"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Day:
    """What a site has done on one of its days.

    Attributes:
        rounds: Trainings that it began.
        sent: Bytes of updates.
        received: Bytes of models.
    """

    rounds: int = 0
    sent: int = 0
    received: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """One task and what became of it.

    Attributes:
        task_id: Unique in the federation.
        run_id: The run it belongs to.
        kind: What was asked for.
        round: From 1.
        attempt: From 1.
        base_version: Of the model to start from.
        base_digest: SHA-256 of that version's checkpoint.
        seed: Of the round; unsigned, 64 bits.
        evaluate: Whether the base was to be scored on local data.
        state: How far it has come.
        code: Why it was dropped; empty otherwise.
        update_digest: SHA-256 of the update's file; empty while there is no result, and where nothing was trained.
        update_size: Bytes of that file.
        examples: Records trained on or scored.
        metrics: Of training.
        evaluation: Of the base on local data.
        at_s: When its state last changed, in seconds since the epoch.
    """

    task_id: str
    run_id: str
    kind: Literal["train", "evaluate"]
    round: int
    attempt: int
    base_version: int
    base_digest: bytes
    seed: int
    evaluate: bool
    state: TaskState
    code: str = ""
    update_digest: bytes = b""
    update_size: int = 0
    examples: int = 0
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)
    at_s: float = 0.0
