"""The participant without its network: messages and completions in, actions out.

The agent joins the coordinator's stream and the site's journal. It does no I/O but the journal's small transactions:
the gRPC daemon and the simulator drive the same object. Its one promise: a task is trained at most once. The result is
in the journal before anything leaves the site, so a participant killed at any moment sends the same update again
instead of training again.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Final

from participant.accounts import Accounts
from participant.actions import (
    Abandon,
    Action,
    Fetch,
    Finished,
    Prepare,
    Push,
    Reconnect,
    Say,
    Stop,
    Work,
)
from participant.admission import admitted
from participant.attendance import Attendance
from participant.budget import SiteBudget
from participant.membership import PinnedMembers
from participant.rules import SiteRules
from participant.schedule import DAY_OVER, Schedule
from participant.secure import SecureSums
from participant.store import ParticipantStore, TaskRecord, TaskState
from participant.work import Job, Outcome, Prepared
from privacy.ledger import LedgerError
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import End
from protos import session_pb2 as pb
from wire import PROTOCOL_VERSION, RefusedError, RunPlan, unpack_members

_log = logging.getLogger("fedloom.participant")

_WITH_RESULT: Final = frozenset({TaskState.TRAINED, TaskState.ANNOUNCED, TaskState.RECEIPTED})

_BEFORE_READY: Final = frozenset({"check_in", "ready", "progress", "availability", "leave"})

_MOST_OWED: Final = 256  # tasks that are asked about at once

# Failures whose message can't hold a file's name or a record: all others stay in the site's log.
_TELLABLE: Final = frozenset({"training", "disk-full", "blob-unknown", "blob-digest", "blob-size"})


class Agent:
    """One participant's side of a federation's runs.

    Args:
        name: The participant's name in the roster.
        store: The site's journal.
        members: The member list that the site has pinned.
        key: The site's signing key.
        rules: What the site demands of a run.
        software: What it calls itself to the operator.
        clock: Seconds since the epoch; read for the deadlines of secure sums, and for the site's hours and days.
        budget: The site's privacy budget; without it private runs are refused.

    Attributes:
        schedule: The site's hours and days; transfers are counted with it.
    """

    def __init__(
        self,
        name: str,
        store: ParticipantStore,
        members: PinnedMembers,
        *,
        key: SigningKey,
        rules: SiteRules,
        software: str,
        clock: Callable[[], float] = time.time,
        budget: SiteBudget | None = None,
    ) -> None:
        self.name = name
        self.members = members
        self.lease_s = 30.0
        self.secure = SecureSums(name, key, members.list, rules.secure, store, clock)
        self.schedule = Schedule(rules.schedule, store, clock)
        self._rules = rules
        self._budget = budget
        self._accounts = Accounts(store, budget, self.secure.published)
        self._attendance = Attendance(self.schedule, clock)
        self._store = store
        self._software = software
        self._plan: RunPlan | None = None
        self._prepared: Prepared | None = None
        self._active: Job | None = None
        self._stage = "idle"
        self._ready = False

    @property
    def task_id(self) -> str:
        """The task in hand; empty without one."""
        return self._active.task_id if self._active is not None else ""

    # ---- connection -------------------------------------------------------------------------------------------------

    def connected(self) -> list[Action]:
        """A stream is open."""
        self._stage = self._stage if self._active is not None else "idle"
        self._ready = False
        self._attendance.connected()
        self._accounts.connected()
        known = self.members.list.count
        check_in = pb.CheckIn(protocol_version=PROTOCOL_VERSION, software=self._software, members=known)
        return [Say(pb.FromParticipant(check_in=check_in))]

    def may_say(self, message: pb.FromParticipant) -> bool:
        """Whether the coordinator would listen: to a result, only once this connection has said that the site is ready.

        Work that ends while a new connection is being made has its answer too early. Nothing is lost: whoever is ready
        is asked again for all that it owes.
        """
        return self._ready or message.WhichOneof("body") in _BEFORE_READY

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
        if body == "members":
            return self._members_shown(message.members)
        if body == "statement":
            return self.secure.heard(message.statement)
        if body == "task":
            return self._task(message.task)
        if body == "receipt":
            return self._receipt(message.receipt)
        if body == "cancel":
            return self._cancel(message.cancel)
        if body == "run_finished":
            return self._finished(message.run_finished)
        if body == "budget_known":
            return self._accounts.known(message.budget_known)
        if body == "committed":
            _log.info("version %d is committed (%d updates)", message.committed.version, message.committed.updates)
        return []

    # ---- completions ------------------------------------------------------------------------------------------------

    def prepared(self, prepared: Prepared) -> list[Action]:
        """Model and data are ready."""
        self._prepared = prepared
        if self._budget is not None and self._plan is not None:
            try:
                self._budget.begin(self._plan, prepared.privacy, prepared.examples)
            except LedgerError as error:
                return [Stop(RefusedError(error.code, error.message, error.hint))]
            self._accounts.catch_up()
        return self._say_ready()

    def interrupted(self, job: Job) -> None:
        """The base version couldn't be fetched over this connection: the task is begun anew when it is asked again."""
        if job == self._active:
            self._put_down()

    def fetched(self, job: Job) -> list[Action]:
        """The base version is on this machine."""
        if job != self._active:
            return []
        self._stage = "training" if job.train else "evaluating"
        self._attendance.began()
        return [Work(job), *self.tick()]

    def worked(self, job: Job, outcome: Outcome) -> list[Action]:
        """The job is done; from here on the result survives any crash."""
        if job != self._active:
            return []
        self._attendance.worked()
        record = self._store.trained(
            job.task_id,
            update_digest=outcome.digest,
            update_size=outcome.size,
            examples=outcome.examples,
            metrics=outcome.metrics,
            evaluation=outcome.evaluation,
        )
        if self._budget is not None:
            self._budget.trained(job, outcome.released)
        return self._deliver(record)

    def failed(self, job: Job, error: Exception) -> list[Action]:
        """The job can't be done here: tell the coordinator the code, and no text that may speak of the data."""
        if job != self._active:
            return []
        if getattr(error, "code", "") == DAY_OVER:
            return self.postponed(job.task_id)
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

    def expanded(self, context: bytes) -> list[Action]:
        """The mask of this attempt is expanded."""
        return self.secure.expanded(context)

    def masked(self, context: bytes, digest: bytes) -> list[Action]:
        """The masked update is on this site's disk."""
        return self.secure.masked(context, digest)

    def masked_pushed(self, context: bytes) -> list[Action]:
        """The masked update is on the coordinator's disk."""
        return self.secure.pushed(context)

    def unmaskable(self, context: bytes, error: Exception) -> list[Action]:
        """The masked update of this attempt can't be made or handed over."""
        if not self.secure.in_hand(context):
            return []  # the attempt ended meanwhile, and its masks are gone
        task_id = self.task_id
        code = str(getattr(error, "code", "failed"))
        _log.error("the masked update of %s: %s: %s", task_id, code, error)
        if code in ("blob-not-expected", "blob-size", "replaced"):
            return []  # the attempt is over; another one follows
        if code == DAY_OVER:
            return self.postponed(task_id)
        self._settle(task_id, accepted=False, code=code)
        return [_declined(task_id, code, f"the update can't be masked: {type(error).__name__}")]

    def undeliverable(self, task_id: str, error: RefusedError) -> list[Action]:
        """The update can't be handed over: the coordinator won't take it any more, or its file is gone."""
        self._settle(task_id, accepted=False, code=error.code)
        return [_declined(task_id, error.code, error.message)]

    # ---- messages ---------------------------------------------------------------------------------------------------

    def _welcome(self, message: pb.Welcome) -> list[Action]:
        try:
            plan = admitted(message, self._store, self._rules, self.schedule, ledger=self._budget is not None)
        except RefusedError as error:
            return [Stop(error)]
        if message.lease_s > 0:
            self.lease_s = message.lease_s
        if self._plan is not None and self._plan.hash == plan.hash and self._prepared is not None:
            return self._say_ready()
        self._plan, self._prepared = plan, None
        _log.info("run %s: %s", plan.run_id, plan.visibility)
        return [Prepare(plan)]

    def _members_shown(self, message: pb.Members) -> list[Action]:
        try:
            self.members.shown(unpack_members(message.entries), End(message.total, message.head))
        except RefusedError as error:
            _log.error("the coordinator's member list is refused: %s: %s", error.code, error.message)
            return [Stop(error)]
        self.secure.members_grew(self.members.list)
        # Prekeys that were offered before this site was certified have been turned away: offer them again.
        return self.secure.offer() if self._prepared is not None and self._summed() else []

    def _summed(self) -> bool:
        """Whether the run's plan asks for secure sums."""
        return self._plan is not None and self._plan.secure is not None

    def _say_ready(self) -> list[Action]:
        assert self._plan is not None and self._prepared is not None
        ready = pb.Ready(
            plan_hash=self._plan.hash,
            manifest_hash=self._prepared.manifest_hash,
            examples=0 if self._summed() else self._prepared.examples,
            owed=[item.task_id for item in self._store.open_tasks(self._plan.run_id)][-_MOST_OWED:],
        )
        self._ready = True
        said: list[Action] = [*self._say_absence(), Say(pb.FromParticipant(ready=ready))]
        return said + self.secure.offer() if self._summed() else said

    def _task(self, message: pb.Task) -> list[Action]:
        if self._plan is None or self._prepared is None:
            return []
        actions: list[Action] = []
        if self._active is not None:
            if self._active.task_id == message.task_id:
                # Asked again after a reconnection while still at it: the answer will come.
                record = self._store.get(message.task_id)
                if record is not None and _has_result(record):
                    return self._deliver(record)
                return self._say_absence(again=True) if self._attendance.paused else []
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
            evaluate=self._tells_scores() and (message.evaluate or message.kind == pb.TASK_KIND_EVALUATE),
        )
        if not job.train and not job.evaluate:
            text = "this run is private, and its plan doesn't let sites tell scores on held-out records"
            return [_declined(job.task_id, "scores-private", text)]
        known = self._store.get(job.task_id)
        if (known is None or not _has_result(known)) and self._attendance.absence(self._plan) is not None:
            # What isn't trained isn't begun. A secure sum may still keep shares of others here.
            self._put_down()
            self.secure.begin(job, self._plan)
            return [*actions, *self._say_absence(again=True)]
        try:
            if known is None and job.train:
                self.schedule.begin()
            record = self._store.accept(job)
        except ValueError as error:
            # Only a coordinator that lost part of its log can ask the same task in another way.
            _log.error("task %s contradicts the journal: %s", job.task_id, error)
            self._put_down()
            return [*actions, _declined(job.task_id, "task-closed", "this task was given before, differently")]
        self._active = job
        self.secure.begin(job, self._plan)
        if _has_result(record):
            return actions + self._deliver(record)
        if (refused := self._pay(job, release=False)) is not None:
            if known is None and job.train:
                self.schedule.begin(-1)
            return [*actions, refused]
        if self._budget is not None:
            job = self._active = dataclasses.replace(job, history=self._budget.history(job))
        self._stage = "downloading"
        return [*actions, Fetch(job)]

    def _tells_scores(self) -> bool:
        return self._plan is None or self._plan.privacy.placement == "off" or self._plan.privacy.scores

    def _pay(self, job: Job, *, release: bool) -> Say | None:
        """Reserve, or spend, what a task costs; the refusal of the task where that isn't there."""
        if self._budget is None:
            return None
        try:
            self._budget.pay(job, release=release)
        except LedgerError as error:
            _log.error("task %s: %s %s", job.task_id, error.message, error.hint)
            self._settle(job.task_id, accepted=False, code=error.code)
            # Who asked learns the figures of the budget, which say nothing about a record.
            return _declined(job.task_id, error.code, error.message)
        return None

    def _deliver(self, record: TaskRecord) -> list[Action]:
        if not self._summed() and not self.schedule.affords(record.update_size):
            return self.postponed(record.task_id)
        # Money is spent before the goods are handed over.
        if self._active is not None and (refused := self._pay(self._active, release=True)) is not None:
            return [refused]
        if self._summed():
            self._stage = "summing"
            said: list[Action] = []
            if self._plan is not None and self._plan.rounds.asynchronous and self._active is not None:
                # A sum is proposed to those who have trained, where each trains at its own pace.
                train = self._active.train
                said = [Say(pb.FromParticipant(trained=pb.Trained(task_id=record.task_id)))] if train else []
            return said + self.secure.trained(record)
        if record.update_digest:
            self._stage = "uploading"
            return [Push(record.task_id, record.update_digest, record.update_size)]
        self._store.announced(record.task_id)
        ready = pb.EvaluationReady(task_id=record.task_id, evaluation=record.evaluation, examples=record.examples)
        return [Say(pb.FromParticipant(evaluation_ready=ready))]

    def _receipt(self, message: pb.Receipt) -> list[Action]:
        record = self._store.get(message.task_id)
        if record is None:
            return []
        if message.accepted:
            _log.info("task %s was accepted", message.task_id)
        else:
            _log.warning("task %s was not accepted: %s: %s", message.task_id, message.code, message.message)
        in_training = message.task_id == self.task_id and not _has_result(record)
        self._settle(message.task_id, accepted=message.accepted, code=message.code)
        if in_training:
            return [Abandon(message.task_id)]  # nobody wants it: it shall not be paid for
        # Also where this task isn't in hand any more: the journal knows it, and a restart may have come between.
        return self._accounts.taken(message.task_id) if message.accepted and _has_result(record) else []

    def _cancel(self, message: pb.Cancel) -> list[Action]:
        _log.info("task %s was called off: %s", message.task_id, message.reason)
        self._settle(message.task_id, accepted=False, code=message.reason[:64])
        return [Abandon(message.task_id)]

    def _settle(self, task_id: str, *, accepted: bool, code: str) -> None:
        record = self._store.get(task_id)
        if record is not None and (not accepted or _has_result(record)):
            self._store.settled(task_id, accepted, code)
        if not accepted:
            self._accounts.dropped(task_id)
        if task_id == self.task_id:
            self._put_down()

    def _put_down(self) -> None:
        """No task is in hand any more."""
        self._active, self._stage = None, "idle"
        self._attendance.put_down()

    def _finished(self, message: pb.RunFinished) -> list[Action]:
        """Nobody wants anything more of this run; what was only reserved for it is free."""
        if self._prepared is None:
            return []  # what the run has cost isn't known yet; who is ready is told again
        actions: list[Action] = [Abandon(self.task_id)] if self._active is not None else []
        for record in self._store.open_tasks(message.run_id):
            self._settle(record.task_id, accepted=False, code="run-over")
        return actions + self._accounts.finished(Finished(message.run_id, message.version, message.reason))

    # ---- hours and days ---------------------------------------------------------------------------------------------

    def tick(self) -> list[Action]:
        """Time passes: see whether the site's own rules say something else than before. Call it every few seconds."""
        if self._plan is None or self._prepared is None:
            return []
        working = self._active is not None and self._stage in ("training", "evaluating")
        return (self._attendance.hold(self.task_id) if working else []) + self._say_absence()

    def postponed(self, task_id: str) -> list[Action]:
        """A transfer of this task would take more than is left of the day; the coordinator may ask again tomorrow."""
        if task_id == self.task_id:
            self._put_down()
        return self._say_absence(again=True)

    def _say_absence(self, *, again: bool = False) -> list[Action]:
        assert self._plan is not None
        return self._attendance.say(self._plan, busy=self._active is not None, again=again)


def _has_result(record: TaskRecord) -> bool:
    return record.state in _WITH_RESULT


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
