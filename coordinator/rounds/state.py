"""The state of a run: a fold over its facts."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from coordinator.rounds.facts import (
    AttemptFailed,
    AttemptOpened,
    BufferExtended,
    BufferSealed,
    CohortExtended,
    EvaluationAccepted,
    EvaluationClosed,
    Excuse,
    Fact,
    MergeFailed,
    ParticipantExcused,
    Purpose,
    RoundOpened,
    RoundSealed,
    RunFinished,
    SeatOpened,
    SumRevealed,
    TaskEnded,
    TaskIssued,
    UpdateAccepted,
    UpdateBuffered,
    UpdateTrained,
    VersionCommitted,
)
from coordinator.rounds.pace import Kept, Pace, Task

Outcome = Literal["pending", "done"] | Excuse


@dataclasses.dataclass(kw_only=True)
class Seat:
    """A participant's place in a round. ``attempt`` counts from 1; ``base_version`` is set in asynchronous rounds."""

    attempt: int = 1
    base_version: int | None = None
    outcome: Outcome = "pending"
    code: str = ""
    message: str = ""
    digest: str = ""
    examples: int = 0
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(kw_only=True)
class SecureAttempt:
    """An attempt at a round's secure sum; ``failed`` is None while it goes on or where it succeeded."""

    opened: AttemptOpened
    failed: AttemptFailed | None = None


@dataclasses.dataclass(kw_only=True)
class Round:
    """A round and everyone's seat in it.

    ``version`` is what it committed, None while open or for scoring rounds, and ``report`` what its merge says of each
    update. ``complaints`` are the messages of refused
    and declined attempts, also of those that a later attempt replaced. ``attempts`` and ``revealed`` are for secure
    sums. An asynchronous round is a buffer: its seats are those of updates in it, and of tasks that failed while it was
    open; ``present`` and ``kept`` are as in :class:`coordinator.rounds.facts.BufferSealed`.
    """

    number: int
    purpose: Purpose
    base_version: int
    evaluate: bool
    opened_s: float
    closes_s: float
    seats: dict[str, Seat]
    sealed: bool = False
    complaints: list[str] = dataclasses.field(default_factory=list)
    attempts: list[SecureAttempt] = dataclasses.field(default_factory=list)
    revealed: SumRevealed | None = None
    version: int | None = None
    digest: str = ""
    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    closed_s: float | None = None
    present: tuple[str, ...] = ()
    kept: bool = False

    def pending(self) -> list[str]:
        """Names still expected to answer, sorted."""
        return sorted(name for name, seat in self.seats.items() if seat.outcome == "pending")

    def done(self) -> list[str]:
        """Names whose result was accepted, sorted: the order of merging."""
        return sorted(name for name, seat in self.seats.items() if seat.outcome == "done")

    def staleness(self, name: str) -> int:
        """Versions that were made since the base of this participant's update; 0 in synchronous rounds."""
        base = self.seats[name].base_version
        return self.number - 1 - base if base is not None else 0


@dataclasses.dataclass
class RunState:
    """All that the log says. ``version`` is the last committed one; ``rounds`` holds every round in order.

    ``atoms`` says whom the run's sums of groups never part: each participant's atom, for good.
    """

    version: int = 0
    digest: str = ""
    size: int = 0
    rounds: list[Round] = dataclasses.field(default_factory=list)
    finished: RunFinished | None = None
    atoms: dict[str, int] = dataclasses.field(default_factory=dict)
    pace: Pace = dataclasses.field(default_factory=Pace)

    def open_round(self) -> Round | None:
        """The round in progress, or None; of two, the one that still takes updates."""
        return self.rounds[-1] if self.rounds and self.rounds[-1].closed_s is None else None

    def open_rounds(self) -> list[Round]:
        """All rounds in progress: one, or none; two where a buffer is being merged while the next one fills."""
        return [item for item in self.rounds[-2:] if item.closed_s is None]

    def merging(self) -> Round | None:
        """The round whose updates are being merged, or None."""
        return next((item for item in self.open_rounds() if item.sealed), None)

    def trained_rounds(self) -> int:
        """How many training rounds have committed a version."""
        return sum(1 for item in self.rounds if item.purpose == "train" and item.version is not None)

    def apply(self, fact: Fact) -> None:
        """Take a fact in.

        Raises:
            ValueError: the fact can't follow what is known, so the log is damaged.
        """
        if isinstance(fact, RoundOpened):
            self._open(fact)
            return
        if isinstance(fact, RunFinished):
            self.finished = fact
            return
        if isinstance(fact, TaskIssued):
            self.pace.issued(fact)
            return
        if isinstance(fact, UpdateTrained):
            self.pace.finished(fact.participant)
            return
        current = next((item for item in self.open_rounds() if item.number == fact.round), None)
        if current is None:
            raise ValueError(f"{type(fact).__name__} names round {fact.round}, which isn't open")
        if isinstance(fact, UpdateAccepted | EvaluationAccepted | ParticipantExcused):
            _answer(current, fact)
        elif isinstance(fact, CohortExtended):
            for name in fact.asked:
                before = current.seats.get(name)
                current.seats[name] = Seat(attempt=before.attempt + 1 if before else 1)
            current.closes_s = fact.closes_s
        elif isinstance(fact, SeatOpened):
            current.seats[fact.participant] = Seat(attempt=fact.attempt)
        elif isinstance(fact, AttemptOpened):
            current.attempts.append(SecureAttempt(opened=fact))
            self.atoms.update(zip(fact.roster, fact.atoms, strict=bool(fact.atoms)))
            _seat_trained(current, fact)
        elif isinstance(fact, AttemptFailed):
            current.attempts[-1].failed = fact
            current.complaints.append(fact.message)
        elif isinstance(fact, SumRevealed):
            _reveal(current, fact)
            self.pace.summed(fact.survivors)
        elif isinstance(fact, RoundSealed):
            current.sealed = True
        elif isinstance(fact, MergeFailed):
            self._reopen(current, fact)
        elif isinstance(fact, UpdateBuffered):
            _buffer(current, self.pace.answered(fact.participant), fact)
        elif isinstance(fact, TaskEnded):
            _end(current, self.pace.ended(fact), fact)
        elif isinstance(fact, BufferExtended):
            current.closes_s = fact.closes_s
            self.pace.failed.clear()
        elif isinstance(fact, BufferSealed):
            current.sealed, current.present, current.kept = True, fact.present, fact.kept
        elif isinstance(fact, VersionCommitted):
            if fact.version != self.version + 1:
                raise ValueError(f"version {fact.version} can't follow version {self.version}")
            current.version, current.digest, current.closed_s = fact.version, fact.digest, fact.committed_s
            current.report = fact.report
            self.version, self.digest, self.size = fact.version, fact.digest, fact.size
            self.pace.failed.clear()
            self._keep(current)
        elif isinstance(fact, EvaluationClosed):
            current.closed_s = fact.closed_s

    def _keep(self, merged: Round) -> None:
        """Keep what was merged of those who take part, to correct later versions by."""
        if not merged.kept:
            return
        accepted = {
            item["participant"]: item["factor"]
            for item in merged.report.get("participants", ())
            if item["verdict"] != "rejected"
        }
        assert merged.version is not None
        for name in merged.done():
            seat = merged.seats[name]
            if name in accepted:
                self.pace.kept[name] = Kept(
                    participant=name,
                    digest=seat.digest,
                    examples=seat.examples,
                    factor=accepted[name],
                    version=merged.version,
                )
        self.pace.kept = {name: kept for name, kept in self.pace.kept.items() if name in merged.present}

    def _reopen(self, current: Round, fact: MergeFailed) -> None:
        """The round isn't sealed any more; who can't be merged is as good as refused on arrival.

        A buffer that was filling meanwhile is given up: what is in it comes into this one.
        """
        current.sealed, current.present, current.kept = False, (), False
        current.complaints.append(fact.message)
        if self.rounds[-1] is not current:
            following = self.rounds.pop()
            current.seats.update(following.seats)
            current.complaints += following.complaints
            current.closes_s = following.closes_s
        for name in fact.refused:
            seat = current.seats[name]
            seat.outcome, seat.code, seat.message = "refused", fact.code, fact.message
        self.pace.failed.update(fact.refused)

    def _open(self, fact: RoundOpened) -> None:
        before = self.open_round()
        in_order = before is None or (before.sealed and before.present and fact.purpose == "train")
        if not in_order or fact.round != len(self.rounds) + 1:
            raise ValueError(f"round {fact.round} can't open now")
        self.rounds.append(
            Round(
                number=fact.round,
                purpose=fact.purpose,
                base_version=fact.base_version,
                evaluate=fact.evaluate,
                opened_s=fact.opened_s,
                closes_s=fact.closes_s,
                seats={name: Seat() for name in fact.cohort},
            )
        )


def _seat_trained(current: Round, fact: AttemptOpened) -> None:
    """In asynchronous rounds those who have trained get their seats when a sum is proposed to them."""
    if not fact.base_versions:
        return
    for name, version, attempt in zip(fact.roster, fact.base_versions, fact.base_attempts, strict=True):
        current.seats[name] = Seat(attempt=attempt, base_version=version)


def _reveal(current: Round, fact: SumRevealed) -> None:
    """Whoever is in the sum is done; of no one is known what it contributed. A group that is left out says why."""
    current.revealed = fact
    left_out = {name: group.reason for group in fact.groups for name in group.members}
    for name in fact.survivors:
        seat = current.seats.setdefault(name, Seat())
        seat.outcome, seat.message = "done", left_out.get(name, "")
        seat.code = seat.message.partition(":")[0]


def _answer(current: Round, fact: UpdateAccepted | EvaluationAccepted | ParticipantExcused) -> None:
    seat = current.seats.get(fact.participant)
    if seat is None or seat.outcome != "pending":
        raise ValueError(f"{fact.participant} has no open seat in round {current.number}")
    if isinstance(fact, ParticipantExcused):
        seat.outcome, seat.code, seat.message = fact.outcome, fact.code, fact.message
        if fact.outcome in ("refused", "declined"):
            current.complaints.append(fact.message)
        return
    seat.outcome, seat.examples, seat.evaluation = "done", fact.examples, dict(fact.evaluation)
    if isinstance(fact, UpdateAccepted):
        seat.digest, seat.metrics = fact.digest, dict(fact.metrics)


def _buffer(current: Round, task: Task, fact: UpdateBuffered) -> None:
    """An update has its place. One from a participant that has one already would be merged twice."""
    seat = current.seats.get(fact.participant)
    if current.sealed or (seat is not None and seat.outcome == "done"):
        raise ValueError(f"round {current.number} has no place for an update of {fact.participant}")
    current.seats[fact.participant] = Seat(
        attempt=task.attempt,
        base_version=task.base_version,
        outcome="done",
        digest=fact.digest,
        examples=fact.examples,
        metrics=dict(fact.metrics),
        evaluation=dict(fact.evaluation),
    )


def _end(current: Round, task: Task, fact: TaskEnded) -> None:
    if fact.outcome in ("refused", "declined"):
        current.complaints.append(fact.message)
    # What a buffer is merged from doesn't change any more once it is sealed.
    if not current.sealed:
        current.seats[fact.participant] = Seat(
            attempt=task.attempt,
            base_version=task.base_version,
            outcome=fact.outcome,
            code=fact.code,
            message=fact.message,
        )
