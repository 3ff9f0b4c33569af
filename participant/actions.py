"""What a participant's agent asks its driver to do."""

from __future__ import annotations

import dataclasses

from participant.store import TaskRecord
from participant.work import Job
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.sharing import MaskTerm
from protos import session_pb2 as pb
from wire import RefusedError, RunPlan


@dataclasses.dataclass(frozen=True)
class Say:
    """Put this message on the stream."""

    message: pb.FromParticipant


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Build the plan's model and open the data, then call :meth:`Agent.prepared`."""

    plan: RunPlan


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Bring the base version onto this machine, then call :meth:`Agent.fetched`."""

    job: Job


@dataclasses.dataclass(frozen=True)
class Work:
    """Do the job, then call :meth:`Agent.worked` or :meth:`Agent.failed`."""

    job: Job


@dataclasses.dataclass(frozen=True)
class Push:
    """Upload this update, then call :meth:`Agent.pushed`."""

    task_id: str
    digest: bytes
    size: int


@dataclasses.dataclass(frozen=True)
class Abandon:
    """The result of this task is no longer wanted: stop working on it."""

    task_id: str


@dataclasses.dataclass(frozen=True)
class Pause:
    """Hold the training of this task until :class:`Resume` or :class:`Abandon`."""

    task_id: str


@dataclasses.dataclass(frozen=True)
class Resume:
    """Go on with the training of this task."""

    task_id: str


@dataclasses.dataclass(frozen=True)
class Finished:
    """The run is over."""

    run_id: str
    version: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Reconnect:
    """End this connection and begin another: the coordinator has lost sight of us."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Stop:
    """Leave the federation: the coordinator, or this site's policy, says no."""

    error: RefusedError


@dataclasses.dataclass(frozen=True)
class ExpandMask:
    """Expand the mask of this attempt, at low priority beside the training, then call :meth:`Agent.expanded`."""

    context: RoundContext
    terms: tuple[MaskTerm, ...]


@dataclasses.dataclass(frozen=True)
class MaskUpdate:
    """Write the masked update of this trained task, then call :meth:`Agent.masked`."""

    context: RoundContext
    terms: tuple[MaskTerm, ...]
    record: TaskRecord
    seed: int
    integers: bool  # the trained update is integers with a share of a noise


@dataclasses.dataclass(frozen=True)
class PushMasked:
    """Upload the masked update of this digest, then call :meth:`Agent.masked_pushed`."""

    context: bytes
    digest: bytes
    size: int


@dataclasses.dataclass(frozen=True)
class DropMask:
    """The masks and masked updates of this attempt are no longer needed."""

    context: bytes


Action = (
    Say
    | Prepare
    | Fetch
    | Work
    | Push
    | Abandon
    | Pause
    | Resume
    | Finished
    | Reconnect
    | Stop
    | ExpandMask
    | MaskUpdate
    | PushMasked
    | DropMask
)
