"""What the coordinator's machine hands to its driver: records to store, statements to send, a sum to unmask."""

from __future__ import annotations

import dataclasses
from typing import Literal

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.sharing import MaskTerm
from privacy.secure_aggregation.statements import Signed

Phase = Literal["accepting", "training", "uploading", "signing", "releasing", "unmasking", "ended"]


@dataclasses.dataclass(frozen=True)
class Record:
    """A line of the attempt's log: who said what when. ``sender`` is empty for the coordinator's own statements."""

    sender: str
    statement: Signed
    at_s: float


@dataclasses.dataclass(frozen=True)
class Tell:
    """Send this statement to a participant."""

    name: str
    statement: Signed


@dataclasses.dataclass(frozen=True)
class GroupSum:
    """One group's uploads, and the masks to add so that their sum is left.

    Attributes:
        members: Positions of the survivors, ascending.
        digests: Of their masked updates, in the same order.
        terms: Streams to add to the sum of the uploads.
    """

    members: tuple[int, ...]
    digests: tuple[bytes, ...]
    terms: tuple[MaskTerm, ...]


@dataclasses.dataclass(frozen=True)
class Unmask:
    """Add up and unmask these groups; then the attempt is over."""

    context: RoundContext
    groups: tuple[GroupSum, ...]


@dataclasses.dataclass(frozen=True)
class Failed:
    """The attempt is over without a sum.

    Attributes:
        code: Why, kebab-case.
        message: Why, in words that name the participants.
        excluded: Participants that the next attempt should do without. Leave them in its roster and don't invite them:
            a roster that differs by one member is refused.
        spent: True where shares may have been released: the updates may be known in a sum, so that no other attempt
            may take them; they have to be trained anew.
    """

    code: str
    message: str
    excluded: frozenset[str]
    spent: bool


@dataclasses.dataclass(frozen=True)
class WakeAt:
    """Call :meth:`Attempt.tick` at this time at the latest."""

    at_s: float


Effect = Tell | Unmask | Failed | WakeAt


@dataclasses.dataclass
class Decision:
    """Records to store first, effects to carry out afterwards."""

    records: list[Record] = dataclasses.field(default_factory=list)
    effects: list[Effect] = dataclasses.field(default_factory=list)
