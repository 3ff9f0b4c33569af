"""What the round machines ask their driver to do, and what it has to store first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from coordinator.rounds.facts import Fact, GroupRevealed, Purpose, SumRevealed
from coordinator.rounds.pace import Kept
from privacy.secure_aggregation.coordinator import Record, Unmask
from privacy.secure_aggregation.statements import Signed


@dataclasses.dataclass(frozen=True, kw_only=True)
class IssueTask:
    """Ask a participant to train from, or to score, the base version."""

    participant: str
    task_id: str
    purpose: Purpose
    round: int
    attempt: int
    base_version: int
    seed: int
    evaluate: bool
    closes_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contribution:
    """An accepted update: whose, which blob, how many examples stand behind it, how many versions it is behind."""

    participant: str
    digest: str
    examples: int
    staleness: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeginMerge:
    """Merge these updates, sorted by participant, into ``base_version`` and report with :meth:`committed`.

    With sums of groups each contribution is a group's mean update, under its members' names joined by "+". ``rejected``
    are those who handed in what can't be merged, or groups whose sum is no sum of well-formed updates, each with the
    reason: a rule counts them as bad. With asynchronous rounds the server optimizer's step is ``step_scale`` times its
    learning rate, and ``kept`` are the updates to correct by.
    """

    round: int
    base_version: int
    contributions: tuple[Contribution, ...]
    rejected: tuple[tuple[str, str], ...] = ()
    step_scale: float = 1.0
    kept: tuple[Kept, ...] = ()


def merge_order(base_version: int, revealed: SumRevealed) -> BeginMerge:
    """Merge the mean update of one sum, or those of the groups whose sums are sums of well-formed updates."""
    contributions = [Contribution(participant="secure sum", digest=revealed.digest, examples=1)]
    groups = sorted(revealed.groups, key=lambda group: group.label)
    if groups:
        contributions = [
            Contribution(participant=group.label, digest=group.digest, examples=group.weight)
            for group in groups
            if not group.reason
        ]
    return BeginMerge(
        round=revealed.round,
        base_version=base_version,
        contributions=tuple(contributions),
        rejected=tuple((group.label, group.reason) for group in groups if group.reason),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SendReceipt:
    """Tell a participant what became of its result."""

    participant: str
    task_id: str
    accepted: bool
    code: str = ""
    message: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CancelTask:
    """Tell a participant that its result is no longer wanted."""

    participant: str
    task_id: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnounceVersion:
    """A new version is committed: tell ``to``, sorted; None is everyone."""

    round: int
    version: int
    digest: str
    size: int
    updates: int
    to: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnounceFinish:
    """The run is over: tell everyone."""

    version: int
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class WakeAt:
    """Call :meth:`SynchronousRounds.tick` at this time at the latest."""

    at_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SendStatement:
    """Send a signed statement of the secure sum to a participant."""

    participant: str
    statement: Signed


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeginUnmask:
    """Add up and unmask, then call :meth:`SecureRounds.unmasked` or :meth:`SecureRounds.implausible`."""

    round: int
    attempt: int
    order: Unmask
    record: tuple[object, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Revealed:
    """What unmasking gave.

    Attributes:
        digest: Of the mean update's blob, in hex; empty where the round only scored, and for sums of groups.
        weight: Sum of the survivors' weights.
        metrics: Weighted means by name.
        sum_hash: Of the sums, in hex.
        record: Of the blob with the public material, in hex.
        groups: The sum of each group; empty where there is one sum. Weight and metrics are over the plausible ones.
    """

    digest: str
    weight: int
    metrics: Mapping[str, float]
    sum_hash: str
    record: str
    groups: tuple[GroupRevealed, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the log of results: its place, the round it is about, the statement."""

    index: int
    round: int
    statement: Signed


Effect = (
    IssueTask
    | BeginMerge
    | SendReceipt
    | CancelTask
    | AnnounceVersion
    | AnnounceFinish
    | WakeAt
    | SendStatement
    | BeginUnmask
)


@dataclasses.dataclass
class Decision:
    """Facts to store first, effects to carry out afterwards.

    ``records`` (statements of secure sums, each with its attempt's context hash) and ``lines`` (of the log of their
    results) are stored with the facts.
    """

    facts: list[Fact] = dataclasses.field(default_factory=list)
    records: list[tuple[bytes, Record]] = dataclasses.field(default_factory=list)
    lines: list[Line] = dataclasses.field(default_factory=list)
    effects: list[Effect] = dataclasses.field(default_factory=list)
