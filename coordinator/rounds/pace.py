"""What a run with asynchronous rounds knows beside its rounds: who trains what, and who was merged last with what."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from coordinator.rounds.facts import TaskEnded, TaskIssued


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A training that a participant was asked for: its base version, and which one from that version (from 1)."""

    base_version: int
    attempt: int
    evaluate: bool
    closes_s: float

    @property
    def round(self) -> int:
        """The round that its update is for, if no version is made meanwhile."""
        return self.base_version + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """The update of a participant that was merged last.

    Attributes:
        participant: Whose.
        digest: Of its blob, in hex.
        examples: Behind it.
        factor: By which clipping scaled it.
        version: Which it was merged into.
    """

    participant: str
    digest: str
    examples: int
    factor: float
    version: int


@dataclasses.dataclass
class Pace:
    """Everyone's training.

    Attributes:
        tasks: In flight, by participant; at most one each.
        trained: Whose result waits at its participant to be summed securely, by participant.
        lapsed: Of those who were taken for gone in the middle of a task, or are away: they may come back with its
            result.
        last: The task that each participant was given last.
        failed: Who gets no further task until the next version, or the buffer's next deadline.
        kept: Merged updates by participant, to correct later versions by.
    """

    tasks: dict[str, Task] = dataclasses.field(default_factory=dict)
    trained: dict[str, Task] = dataclasses.field(default_factory=dict)
    lapsed: dict[str, Task] = dataclasses.field(default_factory=dict)
    last: dict[str, Task] = dataclasses.field(default_factory=dict)
    failed: set[str] = dataclasses.field(default_factory=set)
    kept: dict[str, Kept] = dataclasses.field(default_factory=dict)

    def issued(self, fact: TaskIssued) -> None:
        """A participant has a task.

        Raises:
            ValueError: It has one already, so the log is damaged.
        """
        name = fact.participant
        if name in self.tasks or name in self.trained:
            raise ValueError(f"{name} has a task in flight already")
        self.lapsed.pop(name, None)
        self.tasks[name] = self.last[name] = Task(
            base_version=fact.base_version, attempt=fact.attempt, evaluate=fact.evaluate, closes_s=fact.closes_s
        )

    def answered(self, name: str) -> Task:
        """A participant's task is over; which it was.

        Raises:
            ValueError: It has none, so the log is damaged.
        """
        task = self.tasks.pop(name, None)
        if task is None:
            raise ValueError(f"{name} has no task in flight")
        return task

    def finished(self, name: str) -> None:
        """A participant has trained its task."""
        self.trained[name] = self.answered(name)

    def summed(self, names: Iterable[str]) -> None:
        """The results of these are in a revealed sum."""
        for name in names:
            self.trained.pop(name, None)

    def ended(self, fact: TaskEnded) -> Task:
        """A task is over without a result that counts; which it was."""
        task = self.trained.pop(fact.participant, None) or self.answered(fact.participant)
        if fact.outcome in ("vanished", "left", "away"):
            self.lapsed[fact.participant] = task
        if not fact.again:
            self.failed.add(fact.participant)
        return task
