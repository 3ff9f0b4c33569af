"""What a participant's machine hands to its driver: lines to remember, statements to send, work to do."""

from __future__ import annotations

import dataclasses
from typing import Literal

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.errors import Refusal
from privacy.secure_aggregation.sharing import MaskTerm
from privacy.secure_aggregation.statements import Signed


@dataclasses.dataclass(frozen=True)
class Note:
    """A line of the participant's own memory. ``context`` is H_R, or empty for what outlives an attempt."""

    kind: str
    context: bytes
    body: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Forget:
    """Erase notes: of this context and, where given, of this kind alone."""

    context: bytes
    kind: str = ""
    body: bytes = dataclasses.field(default=b"", repr=False)


@dataclasses.dataclass(frozen=True)
class Expand:
    """Add up these mask streams for a whole update, then call :meth:`Participant.expanded`."""

    context: RoundContext
    terms: tuple[MaskTerm, ...]


@dataclasses.dataclass(frozen=True)
class Mask:
    """Encode the trained update, add the expanded mask and these terms, then call :meth:`Participant.masked`.

    ``terms`` take the masks of participants out again that dropped before the freeze.
    """

    context: RoundContext
    terms: tuple[MaskTerm, ...]


@dataclasses.dataclass(frozen=True)
class Deliver:
    """Upload the masked update of this digest, then call :meth:`Participant.delivered`."""

    context: RoundContext
    digest: bytes


@dataclasses.dataclass(frozen=True)
class Discard:
    """The masks of this attempt are no longer needed: delete them."""

    context: bytes


Work = Expand | Mask | Deliver | Discard


@dataclasses.dataclass
class Step:
    """What the machine decided. Write ``changes`` durably first, then send ``answers``, then do ``work``."""

    changes: list[Note | Forget] = dataclasses.field(default_factory=list)
    answers: list[Signed] = dataclasses.field(default_factory=list)
    work: list[Work] = dataclasses.field(default_factory=list)
    refusal: Refusal | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """The task that the site was given: what a plan must be about for the site to take part.

    Attributes:
        run_id: The run.
        plan_hash: Of the run's plan, as the site pinned it.
        purpose: Train or score.
        round: From 1.
        task_attempt: Which training of the round.
        group_size: That the run's plan asks for; 0 for one sum.
        base_digest: SHA-256 of the checkpoint to start from.
        dimension: Coordinates of an update; 0 for scoring.
        asynchronous: Whether the updates of a sum may be trained from different versions.
    """

    run_id: str
    plan_hash: bytes
    purpose: Literal["train", "evaluate"]
    round: int
    task_attempt: int
    group_size: int
    base_digest: bytes
    dimension: int
    asynchronous: bool = False
