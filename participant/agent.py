"""The participant without its network: messages and completions in, actions out.

The agent joins the coordinator's stream and the site's journal. It does no I/O but the journal's small transactions:
the gRPC daemon and the simulator drive the same object. Its one promise: a task is trained at most once. The result is
in the journal before anything leaves the site, so a participant killed at any moment sends the same update again
instead of training again.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Final

from participant.store import ParticipantStore, TaskRecord, TaskState
from participant.work import Job, Outcome, Prepared
from protos import session_pb2 as pb
from wire import PROTOCOL_VERSION, RefusedError, RunPlan

_log = logging.getLogger("fedloom.participant")

_WITH_RESULT: Final = frozenset({TaskState.TRAINED, TaskState.ANNOUNCED, TaskState.RECEIPTED})

# Failures whose message can't hold a file's name or a record: all others stay in the site's log.
_TELLABLE: Final = frozenset({"training", "disk-full", "blob-unknown", "blob-digest", "blob-size"})


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


Action = Say | Prepare | Fetch | Work | Push | Abandon | Finished | Reconnect | Stop


class Agent:
    """One participant's side of a federation's runs.

    Args:
        name: The participant's name in the roster.
        store: The site's journal.
        software: What it calls itself to the operator.
    """

    def __init__(self, name: str, store: ParticipantStore, *, software: str) -> None:
        self.name = name
        self.lease_s = 30.0
        self._store = store
        self._software = software
        self._plan: RunPlan | None = None
        self._prepared: Prepared | None = None
        self._active: Job | None = None
        self._stage = "idle"

    # ---- connection -------------------------------------------------------------------------------------------------

    def connected(self) -> list[Action]:
        """A stream is open."""
        self._stage = self._stage if self._active is not None else "idle"
        check_in = pb.CheckIn(protocol_version=PROTOCOL_VERSION, software=self._software)
        return [Say(pb.FromParticipant(check_in=check_in))]

    def heartbeat(self, done: int = 0, total: int = 0) -> list[Action]:
        """Renew the lease, saying what is being done. Call at least three times in ``lease_s``."""
        progress = pb.Progress(
            task_id=self._active.task_id if self._active else "", stage=self._stage, done=done, total=total
        )
        return [Say(pb.FromParticipant(progress=progress))]

    def received(self, message: pb.FromCoordinator) -> list[Action]:
        """A message arrived on the stream."""
        body = message.WhichOneof("body")
        if body == "welcome":
            return self._welcome(message.welcome)
        if body == "rejection":
            said = message.rejection
            if said.code == "lease-lapsed":
                return [Reconnect(said.message)]
            return [Stop(RefusedError(said.code, said.message, said.hint))]
        if body == "task":
            return self._task(message.task)
        if body == "receipt":
            return self._receipt(message.receipt)
        if body == "cancel":
            return self._cancel(message.cancel)
        if body == "run_finished":
            said_finished = message.run_finished
            return [Finished(said_finished.run_id, said_finished.version, said_finished.reason)]
        if body == "committed":
            _log.info("version %d is committed (%d updates)", message.committed.version, message.committed.updates)
        return []

    # ---- completions ------------------------------------------------------------------------------------------------

    def prepared(self, prepared: Prepared) -> list[Action]:
        """Model and data are ready."""
        self._prepared = prepared
        return self._say_ready()

    def interrupted(self, job: Job) -> None:
        """The base version couldn't be fetched over this connection: the task is begun anew when it is asked again."""
        if job == self._active:
            self._active, self._stage = None, "idle"

    def fetched(self, job: Job) -> list[Action]:
        """The base version is on this machine."""
        if job != self._active:
            return []
        self._stage = "training" if job.train else "evaluating"
        return [Work(job)]

    def worked(self, job: Job, outcome: Outcome) -> list[Action]:
        """The job is done; from here on the result survives any crash."""
        if job != self._active:
            return []
        record = self._store.trained(
            job.task_id,
            update_digest=outcome.digest,
            update_size=outcome.size,
            examples=outcome.examples,
            metrics=outcome.metrics,
            evaluation=outcome.evaluation,
        )
        return self._deliver(record)

    def failed(self, job: Job, error: Exception) -> list[Action]:
        """The job can't be done here: tell the coordinator the code, and no text that may speak of the data."""
        if job != self._active:
            return []
        self._settle(job.task_id, accepted=False, code="declined")
        code = str(getattr(error, "code", "failed"))
        _log.error("task %s failed: %s", job.task_id, error)
        text = f"the task failed with {type(error).__name__}; the site's log says more"
        if code in _TELLABLE:
            text = str(getattr(error, "message", text))
        return [_declined(job.task_id, code, text)]

    def pushed(self, task_id: str) -> list[Action]:
        """The update is on the coordinator's disk: announce it."""
        self._store.announced(task_id)
        record = self._store.get(task_id)
        return [Say(_update_ready(record))] if record is not None else []

    def undeliverable(self, task_id: str, error: RefusedError) -> list[Action]:
        """The update can't be handed over: the coordinator won't take it any more, or its file is gone."""
        self._settle(task_id, accepted=False, code=error.code)
        return [_declined(task_id, error.code, error.message)]

    # ---- messages ---------------------------------------------------------------------------------------------------

    def _welcome(self, message: pb.Welcome) -> list[Action]:
        try:
            plan = RunPlan.parse(message.plan)
            if plan.hash != message.plan_hash or plan.run_id != message.run_id:
                raise RefusedError(
                    "plan-mismatch", "the coordinator's plan doesn't have the hash it was announced with"
                )
            if not self._store.pin_plan(plan.run_id, plan.hash):
                raise RefusedError(
                    "plan-mismatch",
                    f"the coordinator changed the plan of run {plan.run_id} since this site first saw it",
                    "Ask the operator for a new run; a run's plan never changes.",
                )
        except RefusedError as error:
            return [Stop(error)]
        if message.lease_s > 0:
            self.lease_s = message.lease_s
        if self._plan is not None and self._plan.hash == plan.hash and self._prepared is not None:
            return self._say_ready()
        self._plan, self._prepared = plan, None
        return [Prepare(plan)]

    def _say_ready(self) -> list[Action]:
        assert self._plan is not None and self._prepared is not None
        ready = pb.Ready(
            plan_hash=self._plan.hash,
            manifest_hash=self._prepared.manifest_hash,
            examples=self._prepared.examples,
        )
        return [Say(pb.FromParticipant(ready=ready))]

    def _task(self, message: pb.Task) -> list[Action]:
        if self._plan is None or self._prepared is None:
            return []
        actions: list[Action] = []
        if self._active is not None:
            if self._active.task_id == message.task_id:
                # Asked again after a reconnection while still at it: the answer will come.
                record = self._store.get(message.task_id)
                return self._deliver(record) if record is not None and record.state in _WITH_RESULT else []
            actions.append(Abandon(self._active.task_id))
            self._settle(self._active.task_id, accepted=False, code="superseded")
        job = Job(
            task_id=message.task_id,
            run_id=self._plan.run_id,
            train=message.kind == pb.TASK_KIND_TRAIN,
            round=message.round,
            rounds=self._plan.rounds.count,
            attempt=message.attempt,
            base_version=message.base_version,
            base_digest=message.base.digest,
            base_size=message.base.size,
            seed=message.seed,
            evaluate=message.evaluate or message.kind == pb.TASK_KIND_EVALUATE,
        )
        try:
            record = self._store.accept(job)
        except ValueError as error:
            # Only a coordinator that lost part of its log can ask the same task in another way.
            _log.error("task %s contradicts the journal: %s", job.task_id, error)
            self._active = None
            return [*actions, _declined(job.task_id, "task-closed", "this task was given before, differently")]
        self._active = job
        if record.state in _WITH_RESULT:
            return actions + self._deliver(record)
        self._stage = "downloading"
        return [*actions, Fetch(job)]

    def _deliver(self, record: TaskRecord) -> list[Action]:
        if record.update_digest:
            self._stage = "uploading"
            return [Push(record.task_id, record.update_digest, record.update_size)]
        self._store.announced(record.task_id)
        ready = pb.EvaluationReady(task_id=record.task_id, evaluation=record.evaluation, examples=record.examples)
        return [Say(pb.FromParticipant(evaluation_ready=ready))]

    def _receipt(self, message: pb.Receipt) -> list[Action]:
        if message.accepted:
            _log.info("task %s was accepted", message.task_id)
        else:
            _log.warning("task %s was not accepted: %s: %s", message.task_id, message.code, message.message)
        self._settle(message.task_id, accepted=message.accepted, code=message.code)
        return []

    def _cancel(self, message: pb.Cancel) -> list[Action]:
        _log.info("task %s was called off: %s", message.task_id, message.reason)
        self._settle(message.task_id, accepted=False, code=message.reason[:64])
        return [Abandon(message.task_id)]

    def _settle(self, task_id: str, *, accepted: bool, code: str) -> None:
        record = self._store.get(task_id)
        if record is not None and (not accepted or record.state in _WITH_RESULT):
            self._store.settled(task_id, accepted, code)
        if self._active is not None and self._active.task_id == task_id:
            self._active, self._stage = None, "idle"


def _declined(task_id: str, code: str, message: str) -> Say:
    return Say(pb.FromParticipant(declined=pb.Declined(task_id=task_id, code=code, message=message)))


def _update_ready(record: TaskRecord) -> pb.FromParticipant:
    return pb.FromParticipant(
        update_ready=pb.UpdateReady(
            task_id=record.task_id,
            update=pb.Blob(digest=record.update_digest, size=record.update_size),
            examples=record.examples,
            metrics=record.metrics,
            evaluation=record.evaluation,
        )
    )
