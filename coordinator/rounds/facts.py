"""What can happen in a run, as immutable facts, and their stored form.

A fact is a row of the run's log (``coordinator.store``). Facts are past tense and carry all that replay needs: the
state is a fold over them, never a second decision. A fact's shape is never redefined, because a log outlives the code
that wrote it; a new meaning gets a new class.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any, Literal

Purpose = Literal["train", "evaluate"]
FinishReason = Literal["completed", "stopped", "out of budget"]
Excuse = Literal["refused", "declined", "vanished", "late", "left", "revoked", "away"]

ATOM_INCOMPLETE = "atom-incomplete"
"""Code of who is "late" because another one of its atom was missing, with sums of groups."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundOpened:
    """A round began: these participants are asked to train from (or to score) ``base_version``."""

    round: int
    purpose: Purpose
    base_version: int
    cohort: tuple[str, ...]
    evaluate: bool
    opened_s: float
    closes_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateAccepted:
    """An update is on the coordinator's disk, well-formed and finite, and will be merged."""

    round: int
    participant: str
    digest: str
    examples: int
    metrics: dict[str, float]
    evaluation: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationAccepted:
    """A participant scored the base version on its own data."""

    round: int
    participant: str
    examples: int
    evaluation: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParticipantExcused:
    """A participant's task ended without a result.

    ``outcome`` is "refused" (its result was turned away), "declined" (it would not do the task), "vanished" (its lease
    lapsed), "late" (the round closed), "left" (it said goodbye), "revoked", or "away": by its own rules it takes no
    tasks for a while, and may come back with this one's result.
    """

    round: int
    participant: str
    outcome: Excuse
    code: str
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CohortExtended:
    """The round goes on to a new deadline, and these participants are asked (again)."""

    round: int
    asked: tuple[str, ...]
    closes_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeatOpened:
    """A participant is asked to train (again) for the open round; ``attempt`` is its task's."""

    round: int
    participant: str
    attempt: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttemptOpened:
    """A secure sum was proposed to these participants, using up these prekeys of theirs (in the same order).

    ``task_attempt`` says which training of the round it sums; ``context`` is the hash of all that was proposed, in hex.
    ``atoms`` says, in the order of the roster, who is summed together for the whole run; empty where there is one sum.
    ``base_versions`` and ``base_attempts`` say from which version, and in which training from it, each update comes
    in asynchronous rounds; else they are empty.
    """

    round: int
    attempt: int
    task_attempt: int
    context: str
    roster: tuple[str, ...]
    prekeys: tuple[int, ...]
    opened_s: float
    atoms: tuple[int, ...] = ()
    base_versions: tuple[int, ...] = ()
    base_attempts: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttemptFailed:
    """A secure sum ended without a result.

    ``excluded`` are participants that the round goes on without. ``spent`` says that the updates may be known in a sum,
    so that the next attempt needs new ones.
    """

    round: int
    attempt: int
    code: str
    message: str
    excluded: tuple[str, ...]
    spent: bool
    failed_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupRevealed:
    """The sum of one group of a round with sums of groups.

    Attributes:
        members: Whose updates are in it.
        weight: Sum of their (capped) example counts; 0 where the group is left out.
        digest: Of the group's mean update, in hex; empty where the round only scored, or the group is left out.
        reason: Why the group is left out of the merge; empty if it isn't.
    """

    members: tuple[str, ...]
    weight: int
    digest: str
    reason: str = ""

    @property
    def label(self) -> str:
        """How the merge and its report name the group: its members' names, joined by "+"."""
        return "+".join(self.members)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SumRevealed:
    """A secure sum is unmasked: the mean update is on the coordinator's disk, and nothing about any single one.

    Attributes:
        round: The round.
        attempt: Which attempt succeeded.
        survivors: Whose updates are in the sum.
        positions: Their places in the roster.
        weight: Sum of their (capped) example counts.
        metrics: Weighted means over them; held-out ones are called ``evaluation/...``.
        digest: Of the mean update's blob, in hex; empty where the round only scored, and for sums of groups.
        sum_hash: Of the sum itself, in hex.
        uploads_hash: Over the survivors' uploads, in hex.
        record: Of the blob with the public material from which anyone can recompute the sum, in hex.
        uploads: Digests of the uploads, in hex, in the order of ``survivors``.
        groups: The sum of each group; empty where there is one sum.
    """

    round: int
    attempt: int
    survivors: tuple[str, ...]
    positions: tuple[int, ...]
    weight: int
    metrics: dict[str, float]
    digest: str
    sum_hash: str
    uploads_hash: str
    record: str
    uploads: tuple[str, ...]
    groups: tuple[GroupRevealed, ...] = ()

    def means(self) -> tuple[bytes, ...]:
        """Digests of the mean updates: one, one for each group, or none where the round only scored."""
        found = (self.digest, *(group.digest for group in self.groups))
        return tuple(bytes.fromhex(item) for item in found if item)

    def blobs(self) -> tuple[bytes, ...]:
        """Digests of the record and of the uploads: all that recomputing the sum needs."""
        return tuple(bytes.fromhex(item) for item in (self.record, *self.uploads))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundSealed:
    """The set of updates is fixed and is being merged."""

    round: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeFailed:
    """The updates of a sealed round couldn't be merged. The round goes on without those of ``refused``."""

    round: int
    code: str
    message: str
    refused: tuple[str, ...]
    failed_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersionCommitted:
    """The merged model is on disk; it is the global model from now on.

    ``report`` is what the merge has to say of each update (``coordinator.merging.MergeReport``, as JSON values); empty
    where there was one sum to merge.
    """

    round: int
    version: int
    digest: str
    size: int
    committed_s: float
    report: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationClosed:
    """A round of scoring ended with what had arrived."""

    round: int
    closed_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskIssued:
    """Asynchronous rounds: a participant is asked to train from ``base_version``, the newest at that moment.

    ``attempt`` counts its trainings from that version, from 1. The same task may be issued again, with a later end, to
    a participant that was taken for gone and came back: what it has trained is then not lost.
    """

    participant: str
    base_version: int
    attempt: int
    evaluate: bool
    closes_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateBuffered:
    """Asynchronous rounds: a participant's update is well-formed and finite, and has its place in a buffer.

    It is the answer to the participant's task in flight, whose base tells its staleness: the buffer of round r is
    merged into version r - 1.
    """

    round: int
    participant: str
    digest: str
    examples: int
    metrics: dict[str, float]
    evaluation: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateTrained:
    """Asynchronous rounds with secure sums: a participant has trained its task; its update waits there to be summed."""

    participant: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskEnded:
    """Asynchronous rounds: a participant's task in flight ended without a result; see ParticipantExcused.

    ``again`` says that the participant may be given another task while the buffer of ``round`` is open.
    """

    round: int
    participant: str
    outcome: Excuse
    code: str
    message: str
    again: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class BufferExtended:
    """Asynchronous rounds: a buffer has too few updates at its deadline. Those that failed are asked again."""

    round: int
    closes_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class BufferSealed:
    """Asynchronous rounds: what is in the buffer is merged, and nothing else.

    Attributes:
        round: The round, whose version it makes.
        present: Who takes part in the run at this moment: in the buffer, with a task in flight, or waiting for one.
            They make the concurrency, and of them alone earlier updates are kept.
        kept: Whether their merged updates are kept, to correct later versions by.
    """

    round: int
    present: tuple[str, ...]
    kept: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFinished:
    """Nothing more will happen in this run."""

    reason: FinishReason
    finished_s: float


Fact = (
    RoundOpened
    | UpdateAccepted
    | EvaluationAccepted
    | ParticipantExcused
    | CohortExtended
    | SeatOpened
    | AttemptOpened
    | AttemptFailed
    | SumRevealed
    | RoundSealed
    | MergeFailed
    | VersionCommitted
    | EvaluationClosed
    | TaskIssued
    | UpdateBuffered
    | UpdateTrained
    | TaskEnded
    | BufferExtended
    | BufferSealed
    | RunFinished
)

_CLASSES: dict[str, type[Any]] = {cls.__name__: cls for cls in typing.get_args(Fact)}


def to_row(fact: Fact) -> tuple[str, str]:
    """A fact's stored form: its class name and canonical JSON."""
    return type(fact).__name__, json.dumps(dataclasses.asdict(fact), sort_keys=True, separators=(",", ":"))


def from_row(kind: str, body: str) -> Fact:
    """The fact that was stored.

    Raises:
        ValueError: the row was written by a newer version, or is damaged.
    """
    cls = _CLASSES.get(kind)
    if cls is None:
        raise ValueError(f"the log holds a fact of kind {kind!r}, which this version of fedloom doesn't know")
    table = json.loads(body)
    try:
        if "groups" in table:
            table["groups"] = [GroupRevealed(**_tuples(item)) for item in table["groups"]]
        return typing.cast(Fact, cls(**_tuples(table)))
    except TypeError as error:
        raise ValueError(f"a stored fact of kind {kind!r} is damaged: {error}") from None


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists only, facts have tuples only."""
    return {name: tuple(item) if isinstance(item, list) else item for name, item in table.items()}
