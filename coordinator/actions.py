"""What the hub asks its driver to do, and what it shows of the log of results."""

from __future__ import annotations

import dataclasses

from coordinator.rounds import BeginMerge, BeginUnmask, Contribution
from coordinator.store import Checkpoint, StoredResult
from privacy.secure_aggregation.statements import Signed
from protos import session_pb2 as pb


@dataclasses.dataclass(frozen=True)
class Send:
    """Put this message on the participant's stream, if it has one."""

    peer: str
    message: pb.FromCoordinator


@dataclasses.dataclass(frozen=True)
class Close:
    """End the participant's stream once what was sent before is out."""

    peer: str


@dataclasses.dataclass(frozen=True)
class Check:
    """Look whether this blob is an update that can be merged (size, NaN, norm), then call :meth:`Hub.checked`."""

    peer: str
    task_id: str
    round: int
    contribution: Contribution
    metrics: dict[str, float]
    evaluation: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Find:
    """Look whether the masked update that this statement announces is here, then call :meth:`Hub.found`."""

    peer: str
    statement: Signed
    digest: bytes
    size: int


@dataclasses.dataclass(frozen=True)
class Unmask:
    """Unmask this sum, then call :meth:`Hub.unmasked`, or :meth:`Hub.implausible` where it can't be one."""

    order: BeginUnmask


@dataclasses.dataclass(frozen=True)
class Merge:
    """Merge these updates into that checkpoint, then call :meth:`Hub.merged`."""

    order: BeginMerge
    base: Checkpoint


@dataclasses.dataclass(frozen=True)
class Wake:
    """Call :meth:`Hub.tick` at this time at the latest."""

    at_s: float


Action = Send | Close | Check | Find | Unmask | Merge | Wake


@dataclasses.dataclass(frozen=True)
class Published:
    """A line of the log of results; ``blobs`` are the round's record and then its uploads, or nothing."""

    stored: StoredResult
    blobs: tuple[bytes, ...]
