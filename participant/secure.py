"""Secure sums at a site: the pure machine joined with the journal, and the agent's actions for its work."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable

from participant.actions import Action, DropMask, ExpandMask, MaskUpdate, PushMasked, Say
from participant.store import ParticipantStore, TaskRecord
from participant.work import Job
from privacy.secure_aggregation.history import ATOM, atom_of
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import MemberList
from privacy.secure_aggregation.memory import Assignment, Deliver, Discard, Expand, Mask, Note, Step
from privacy.secure_aggregation.participant import Participant
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.statements import Plan, Signed, kind_of
from protos import session_pb2 as pb
from wire import RunPlan

_log = logging.getLogger("fedloom.participant")


class SecureSums:
    """The site's part in the secure sums of a federation.

    Args:
        name: The participant's name.
        key: The site's signing key.
        members: The pinned member list.
        policy: The site's rules.
        store: The journal, which keeps the machine's notes.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        name: str,
        key: SigningKey,
        members: MemberList,
        policy: SitePolicy,
        store: ParticipantStore,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._name = name
        self._machine = Participant(name, key, members, policy)
        self._store = store
        self._clock = clock
        self._task: tuple[Assignment, TaskRecord | None] | None = None
        self._owed = self._machine.restore(store.notes())
        self._integers = False
        self.refusal = ""
        self.digest = b""

    def members_grew(self, members: MemberList) -> None:
        """The pinned list is longer."""
        self._machine.members = members

    def offer(self) -> list[Action]:
        """Offer prekeys; and do what a restart left undone."""
        owed, self._owed = self._owed, Step()
        return self._carry(self._machine.offer(self._clock())) + self._carry(owed)

    def begin(self, job: Job, plan: RunPlan) -> None:
        """This task is in hand."""
        self._task = (_assignment(job, plan), None)
        self._integers = plan.shared_noise is not None
        honest = plan.shared_noise.honest if plan.shared_noise is not None else 0
        self._machine.policy = dataclasses.replace(self._machine.policy, min_honest=honest)

    def trained(self, record: TaskRecord) -> list[Action]:
        """The task in hand has its result in the journal."""
        if self._task is None:
            return []
        self._task = (self._task[0], record)
        return self._carry(self._machine.trained(self._task[0]))

    def heard(self, message: pb.Statement) -> list[Action]:
        """A statement of the coordinator."""
        signed = Signed(message.body, message.signature)
        if _is_plan(signed):
            if self._task is None:
                return []  # of a round whose task this site doesn't do (any more)
            step = self._machine.plan(signed, self._task[0], self._clock())
        else:
            step = self._machine.receive(signed, self._clock())
        actions = self._carry(step)
        if self._machine.stock.low(self._clock()):
            actions += self._carry(self._machine.offer(self._clock()))
        return actions

    def expanded(self, context: bytes) -> list[Action]:
        """The mask is expanded."""
        return self._carry(self._machine.expanded(context))

    def masked(self, context: bytes, digest: bytes) -> list[Action]:
        """The masked update is on this site's disk."""
        return self._carry(self._machine.masked(context, digest))

    def published(self, round_number: int) -> tuple[int, int]:
        """How many were asked for a round's sum and how many are in it, as this site has signed; 0 if it hasn't."""
        number, participants, survivors = self._machine.published
        return (participants, survivors) if number == round_number else (0, 0)

    def in_hand(self, context: bytes) -> bool:
        """Whether this attempt still goes on here."""
        return self._machine.in_hand(context)

    def pushed(self, context: bytes) -> list[Action]:
        """The masked update is on the coordinator's disk."""
        return self._carry(self._machine.delivered(context))

    def _carry(self, step: Step) -> list[Action]:
        self._store.change_notes(step.changes)
        for change in step.changes:
            if isinstance(change, Note) and change.kind == ATOM:
                run_id, names = atom_of(change)
                mates = ", ".join(sorted(names - {self._name}))
                _log.info("run %s sums this site's updates with those of %s, together or not at all", run_id, mates)
        if step.refusal is not None:
            self.refusal = step.refusal.code
            _log.error("refused: %s: %s %s", step.refusal.code, step.refusal.message, step.refusal.hint)
        actions: list[Action] = [
            Say(pb.FromParticipant(statement=pb.Statement(body=item.body, signature=item.signature)))
            for item in step.answers
        ]
        for work in step.work:
            actions += self._work(work)
        return actions

    def _work(self, work: Expand | Mask | Deliver | Discard) -> list[Action]:
        if isinstance(work, Expand):
            return [ExpandMask(work.context, work.terms)]
        if isinstance(work, Mask):
            assert self._task is not None and self._task[1] is not None
            return [MaskUpdate(work.context, work.terms, self._task[1], self._task[1].seed, self._integers)]
        if isinstance(work, Deliver):
            self.digest = work.digest
            size = work.context.encoding.upload_bytes(work.context.dimension, work.context.layout)
            return [PushMasked(work.context.hash, work.digest, size)]
        if self.digest:
            self.digest = b""
        return [DropMask(work.context)]


def _is_plan(signed: Signed) -> bool:
    try:
        return kind_of(signed.body) == Plan.KIND
    except ValueError:
        return False  # the machine refuses it, with a signed reason


def _assignment(job: Job, plan: RunPlan) -> Assignment:
    return Assignment(
        run_id=job.run_id,
        plan_hash=plan.hash,
        purpose="train" if job.train else "evaluate",
        round=job.round,
        task_attempt=job.attempt,
        base_digest=job.base_digest,
        dimension=plan.initial.dimension if job.train else 0,
        group_size=plan.secure.group_size if plan.secure is not None else 0,
        asynchronous=job.train and plan.rounds.asynchronous,
    )
