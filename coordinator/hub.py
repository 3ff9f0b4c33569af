"""The coordinator without its network: messages in, actions out.

The hub joins the round machine, the store and the leases. It does no network I/O and reads no clock: the gRPC daemon
and the simulator both drive it, which is what makes a simulated federation equal to a deployed one. Its calls are
quick (one small transaction at most); slow work (checking an update's file, merging) is handed back as an action.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from coordinator import messages
from coordinator.actions import Action, Check, Close, Find, Merge, Published, Send, Unmask, Wake
from coordinator.budgets import Budgets
from coordinator.merging.planning import guarantee
from coordinator.past import Past
from coordinator.presence import Presence, announced
from coordinator.rounds import (
    AnnounceFinish,
    AnnounceVersion,
    BeginMerge,
    BeginUnmask,
    CancelTask,
    Contribution,
    Decision,
    Effect,
    IssueTask,
    Revealed,
    SecureBuffers,
    SecureRounds,
    SendReceipt,
    SendStatement,
    WakeAt,
)
from coordinator.run_log import Federation, RunLog
from coordinator.store import Checkpoint, Store
from privacy.ledger import Receipt
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.statements import PrekeyBatch, Refused, Signed, Upload, kind_of
from protos import session_pb2 as pb
from wire import PROTOCOL_VERSION, RefusedError, RunPlan

if TYPE_CHECKING:
    from coordinator.aggregation import MergeResult

_logger = logging.getLogger("fedloom.coordinator")

_UNLIMITED: Final = float("inf")
_MOST_OWED: Final = 256  # tasks that a participant may ask about at once
_SITE_CODES: Final = 64  # reasons of one participant's refusals that are counted apart


class Hub:
    """One run's coordinator, without sockets.

    Args:
        store: Where the run and its log are.
        plan: The run's plan; its run must exist in the store.
        federation: Its members, and the coordinator's signing key.
        lease_s: A participant that says nothing for so long is taken for gone.
        now_s: Seconds; any clock that doesn't go back.
    """

    def __init__(self, store: Store, plan: RunPlan, federation: Federation, *, lease_s: float, now_s: float) -> None:
        self.store = store
        self.plan = plan
        self.lease_s = lease_s
        self.guarantee = guarantee(plan)
        self._audited = plan.secure.audited_rounds if plan.secure is not None else 0
        self.past = Past()
        self.presence: dict[str, Presence] = {}
        self._plan_bytes, self._plan_hash = plan.canonical(), plan.hash
        self._site_codes: dict[str, set[str]] = {}
        self._federation = federation
        self._budgets = Budgets(store, lambda: self._federation.members, plan.run_id)
        self._log = RunLog(store, plan, federation, step_s=lease_s)
        self.machine = self._log.replay()
        # By participant, the update that it was allowed to bring: on the disk, and not in the log yet.
        self._arriving: dict[str, bytes] = {}
        # A participant whose result is awaited gets one lease's time to come back before it counts as gone.
        for name in self.machine.pending():
            self.presence[name] = Presence(expires_s=now_s + lease_s, heard_s=now_s, connected=False)

    # ---- inputs -----------------------------------------------------------------------------------------------------

    def start(self, now_s: float) -> list[Action]:
        """What is owed after a (re)start."""
        return self._carry(self.machine.resume(now_s), now_s) + self._lease_wake()

    def receive(self, peer: str, message: pb.FromParticipant, now_s: float) -> list[Action]:
        """A message arrived on ``peer``'s stream. A refusal becomes a message and a count, never an error."""
        body = message.WhichOneof("body")
        known = self.heard(peer, now_s)
        try:
            if body == "check_in":
                return self._check_in(peer, message.check_in, now_s)
            if known is None or not known.connected:
                raise RefusedError("protocol-order", f"{peer} sent {body or 'an unknown message'} before checking in")
            if body == "ready":
                return self._ready(peer, known, message.ready, now_s)
            if body == "progress":
                known.progress(message.progress)
                return []
            if body == "availability":
                return self._availability(peer, known, message.availability, now_s)
            if body == "leave":
                return self._carry(self._leave(peer, message.leave.reason, now_s), now_s)
            if not known.ready or body is None:
                raise RefusedError("protocol-order", f"{peer} sent {body or 'an unknown message'} before it was ready")
        except RefusedError as error:
            self.count(error, peer)
            return [Send(peer, messages.rejection(error)), Close(peer)]
        return self._result(peer, known, message, now_s)

    def heard(self, peer: str, now_s: float) -> Presence | None:
        """A sign of life renews the lease; what is known of the peer, if anything is."""
        known = self.presence.get(peer)
        if known is not None:
            known.heard_s, known.expires_s = now_s, now_s + self.lease_s
        return known

    def together(self, inputs: Iterable[Callable[[], list[Action]]]) -> list[list[Action] | Exception]:
        """Give several inputs, which become durable in one transaction: a crowd costs no sync for each message.

        Args:
            inputs: Calls of the methods around here; not of those that say that a merge is done.

        Returns:
            For each its actions, or what it raised. Where the transaction can't be written, that is what all of them
            raise that decided anything.
        """
        found: list[tuple[list[Action] | Exception, bool]] = []
        with self._log.held():
            for decide in inputs:
                before = self._log.last
                try:
                    actions: list[Action] | Exception = decide()
                except Exception as error:
                    actions = error
                found.append((actions, bool(actions) or self._log.last > before))
        try:
            self._durable(self._log.flush)
        except Exception as error:
            return [error if decided else actions for actions, decided in found]
        return [actions for actions, _ in found]

    def checked(self, check: Check, error: RefusedError | None, now_s: float) -> list[Action]:
        """The update of a :class:`Check` is sound (``error`` is None), or isn't."""
        error = error or self.machine.refusal(check.peer, check.task_id)
        if error is not None:
            return self._refuse(check.peer, check.task_id, error, now_s)
        decision = self.machine.submitted(
            check.peer, check.task_id, check.contribution, check.metrics, check.evaluation, now_s
        )
        return self._carry(decision, now_s)

    def merged(self, order: BeginMerge, merged: MergeResult, now_s: float) -> list[Action]:
        """The merge is on disk."""
        # Of one secure sum there is nothing to tell: whoever it is from, it is what the model changes by.
        one = self.plan.secure is not None and len(order.contributions) == 1
        report = {} if one else merged.report.as_json()
        decision = self.machine.committed(order, merged.digest.hex(), merged.size, now_s, report)
        version = self.machine.state.version
        checkpoint = Checkpoint(
            run_id=self.plan.run_id,
            version=version,
            digest=merged.digest,
            size=merged.size,
            state=merged.state,
            created_s=now_s,
        )
        return self._carry(decision, now_s, checkpoint if decision.facts else None)

    def unmergeable(self, order: BeginMerge, error: RefusedError, now_s: float) -> list[Action]:
        """The updates can't be merged: ask for others.

        Raises:
            RefusedError: The same, where a secure sum can't: what was revealed isn't asked for again.
        """
        if isinstance(self.machine, SecureRounds):
            raise error
        culprit = str(getattr(error, "participant", ""))
        self.count(error, culprit or "everyone")
        return self._carry(self.machine.unmergeable(order, error, culprit, now_s), now_s)

    def members_grew(self) -> list[Action]:
        """The stored member list is longer: show the new entries to everyone who is connected."""
        if isinstance(self.machine, SecureRounds):
            self.machine.members = self._federation.members
        present = [(name, known) for name, known in sorted(self.presence.items()) if known.connected]
        return [action for name, known in present for action in self._show_members(name, known)]

    def found(self, find: Find, error: RefusedError | None, now_s: float) -> list[Action]:
        """The masked update of a :class:`Find` is here (``error`` is None), or isn't."""
        if error is not None:
            self.count(error, find.peer)
            return []
        return self._said(find.peer, find.statement, now_s)

    def unmasked(self, order: BeginUnmask, revealed: Revealed, now_s: float) -> list[Action]:
        """The sum is on disk."""
        for group in revealed.groups:
            if group.reason:
                _logger.warning(
                    "the sum of %s is left out: %s", group.label, group.reason, extra=self._facts(group.label)
                )
        return self._carry(self._secure().unmasked(order, revealed, now_s), now_s)

    def implausible(self, order: BeginUnmask, error: SecureAggregationError, now_s: float) -> list[Action]:
        """What was left after unmasking isn't a sum of well-formed updates."""
        return self._carry(self._secure().implausible(order, error, now_s), now_s)

    def disconnected(self, peer: str, now_s: float) -> None:
        """The peer's stream broke. Its lease goes on: it may come back before anyone notices."""
        known = self.presence.get(peer)
        if known is not None:
            known.connected = False
            known.stage, known.done, known.total = "away", 0, 0

    def revoked(self, peer: str, reason: str, now_s: float) -> list[Action]:
        """The operator revoked this participant: end its stream and its part in the round."""
        error = RefusedError(
            "participant-revoked", f"{peer} was revoked by the operator: {reason or 'no reason given'}"
        )
        self.presence.pop(peer, None)
        decision = self.machine.gone(peer, "revoked", error.message, now_s)
        return [Send(peer, messages.rejection(error)), Close(peer), *self._carry(decision, now_s)]

    def tick(self, now_s: float) -> list[Action]:
        """Time passed: let leases lapse and deadlines close."""
        actions: list[Action] = []
        for name in [name for name, known in self.presence.items() if known.expires_s <= now_s]:
            del self.presence[name]
            _logger.warning(
                "%s said nothing for %.0f s; it is taken for gone", name, self.lease_s, extra={"participant": name}
            )
            text = f"no sign of life for {self.lease_s:.0f} s"
            actions += self._carry(self.machine.gone(name, "vanished", text, now_s), now_s)
            # It may only have been busy: where its stream still stands, it is told to begin again.
            lapsed = RefusedError("lease-lapsed", f"{name} said nothing for {self.lease_s:.0f} s", "Connect again.")
            actions += [Send(name, messages.rejection(lapsed)), Close(name)]
        return actions + self._carry(self.machine.tick(now_s), now_s) + self._lease_wake()

    def stop(self, now_s: float) -> list[Action]:
        """End the run early; what is committed stays."""
        return self._carry(self.machine.stop(now_s), now_s)

    # ---- what services ask ------------------------------------------------------------------------------------------

    def update_size(self) -> int:
        """Bytes of an update, or of a masked update of the open round."""
        if isinstance(self.machine, SecureRounds):
            return self.machine.upload_bytes()
        return 4 * self.plan.initial.dimension

    def may_upload(self, peer: str, digest: bytes, size: int) -> None:
        """Whether this peer may store a blob of this size now, or say again that it has.

        Raises:
            RefusedError: "blob-not-expected" or "blob-size".
        """
        if isinstance(self.machine, SecureRounds) and self.machine.has_upload(digest):
            return  # after a reconnection; nothing is transferred
        if not self.machine.uploads_wanted(peer):
            raise RefusedError("blob-not-expected", f"no update of {peer} is expected now", "Wait for the next task.")
        if size != self.update_size():
            raise RefusedError(
                "blob-size",
                f"{peer} wants to upload {size} bytes; an update of this run has {self.update_size()}",
                "Check that model and plan are those of this run.",
            )
        self._arriving[peer] = digest

    def may_download(self, peer: str, digest: bytes) -> None:
        """Whether this peer may read that blob.

        Versions of the model are for every member, and what a secure sum can be recomputed from; nothing else is.

        Raises:
            RefusedError: "blob-unknown".
        """
        public = isinstance(self.machine, SecureRounds) and digest in self.machine.public_blobs(self._audited)
        if not public and digest not in self._log.digests:
            raise RefusedError("blob-unknown", f"{peer} asked for a blob that isn't a version of the model")

    def published(self) -> list[Published]:
        """The log of results, each line with the blobs that still let anyone recompute its sum."""
        kept: dict[int, tuple[bytes, ...]] = {}
        if isinstance(self.machine, SecureRounds):
            kept = {item.round: item.blobs() for item in self.machine.revealed(self._audited)}
        return [
            Published(stored, kept.get(stored.round, ()) if stored.run_id == self.plan.run_id else ())
            for stored in self.store.results()
        ]

    def blobs_in_use(self) -> set[bytes]:
        """Digests that are still needed: of every version of every run, of the last one's state, and of updates.

        Updates are those of open rounds, those that asynchronous rounds correct by, and those that are arriving.
        """
        keep = self._log.digests | self._log.earlier
        keep.update(self._log.versions[-1].state)
        state = self.machine.state
        for current in state.open_rounds():
            keep.update(bytes.fromhex(seat.digest) for seat in current.seats.values() if seat.digest)
        keep.update(bytes.fromhex(kept.digest) for kept in state.pace.kept.values())
        keep.update(digest for name, digest in self._arriving.items() if self.machine.uploads_wanted(name))
        if isinstance(self.machine, SecureRounds):
            keep |= self.machine.uploads_held() | self.machine.public_blobs(self._audited)
        return keep

    def count(self, error: RefusedError, peer: str) -> None:
        """Log a refusal and add it to the counts that ``fedloom coordinator status`` shows."""
        _logger.warning("refused %s: %s: %s", peer, error.code, error.message, extra=self._facts(peer))
        self.store.count_refusal(error.code, peer)

    def _facts(self, peer: str) -> dict[str, object]:
        """What a line of the log is about."""
        current = self.machine.state.open_round()
        facts: dict[str, object] = {"run": self.plan.run_id, "participant": peer}
        return {**facts, "round": current.number} if current else facts

    # ---- messages ---------------------------------------------------------------------------------------------------

    def _check_in(self, peer: str, message: pb.CheckIn, now_s: float) -> list[Action]:
        if message.protocol_version != PROTOCOL_VERSION:
            raise RefusedError(
                "protocol-version",
                f"{peer} ({message.software or 'unknown software'}) speaks protocol {message.protocol_version}, "
                f"this coordinator speaks {PROTOCOL_VERSION}",
                "Install the same release of fedloom on both sides.",
            )
        known = Presence(expires_s=now_s + self.lease_s, heard_s=now_s, members=message.members)
        self.presence[peer] = known
        welcome = pb.Welcome(
            federation=self.plan.federation,
            run_id=self.plan.run_id,
            plan=self._plan_bytes,
            plan_hash=self._plan_hash,
            lease_s=self.lease_s,
        )
        return [Send(peer, pb.FromCoordinator(welcome=welcome)), *self._show_members(peer, known), *self._lease_wake()]

    def _show_members(self, peer: str, known: Presence) -> list[Action]:
        """What this peer doesn't have yet of the member list, and at least the list's end to compare."""
        sent = [Send(peer, part) for part in messages.members(self._federation.members, known.members)]
        known.members = self._federation.members.count
        return list(sent)

    def _ready(self, peer: str, known: Presence, message: pb.Ready, now_s: float) -> list[Action]:
        if message.plan_hash != self._plan_hash:
            raise RefusedError("plan-mismatch", f"{peer} prepared another plan than run {self.plan.run_id}'s")
        if message.manifest_hash.hex() != self.plan.initial.manifest_hash:
            raise RefusedError(
                "manifest-mismatch",
                f"{peer} built a model whose tensors differ from the plan's",
                "Install the same release of fedloom, and of your own model code, on both sides.",
            )
        secure = isinstance(self.machine, SecureRounds)
        if message.examples == 0 and not secure:
            raise RefusedError("examples-invalid", f"{peer} has no training examples", "Point --data at some.")
        known.ready, known.examples = True, 0 if secure else message.examples
        told: list[Action] = []
        if self.plan.privacy.placement != "off":
            told.append(Send(peer, pb.FromCoordinator(budget_known=self._budgets.answer(peer))))
        told += self._owed(peer, message.owed[:_MOST_OWED], now_s)
        if self.machine.state.finished is not None:
            effect = AnnounceFinish(version=self.machine.state.version, reason=self.machine.state.finished.reason)
            return [*told, Send(peer, messages.finished(self.plan.run_id, effect, self._model()))]
        if secure:
            return told  # its prekeys follow, and make it available
        return told + self._attend(peer, known, now_s)

    def _owed(self, peer: str, tasks: Iterable[str], now_s: float) -> list[Action]:
        """Receipts for the tasks that a participant doesn't know the end of."""
        return [action for task in tasks for action in self._carry(self.machine.became_of(peer, task), now_s)]

    def _attend(self, peer: str, known: Presence, now_s: float) -> list[Action]:
        """A participant is connected and can take part: it gets tasks, or says that it is away."""
        absence = known.absence
        if absence is None:
            return self._carry(self.machine.available(peer, now_s), now_s)
        decided = self.machine.absent(peer, absence.until_s, absence.reason, now_s, working=True)
        return self._carry(decided, now_s) + self._carry(self.machine.recall(peer, now_s), now_s)

    def _availability(self, peer: str, known: Presence, message: pb.Availability, now_s: float) -> list[Action]:
        """A participant is away by its own rules for a while, or is back."""
        before, known.absence = known.absence, announced(peer, message, now_s)
        absence = known.absence
        if not known.ready or peer not in self.machine.present():
            return []  # acted on when it can take part
        if absence is None:
            return self._carry(self.machine.available(peer, now_s), now_s) if before is not None else []
        text = "%s takes no tasks for %.0f s: %s"
        _logger.info(text, peer, absence.until_s - now_s, absence.reason, extra=self._facts(peer))
        decided = self.machine.absent(peer, absence.until_s, absence.reason, now_s, working=absence.working)
        return self._carry(decided, now_s)

    def _leave(self, peer: str, reason: str, now_s: float) -> Decision:
        self.presence.pop(peer, None)
        return self.machine.gone(peer, "left", reason[:200] or "the participant said goodbye", now_s)

    def _result(self, peer: str, known: Presence, message: pb.FromParticipant, now_s: float) -> list[Action]:
        body = message.WhichOneof("body")
        if body == "statement":
            return self._statement(peer, message.statement, now_s)
        if body == "budget":
            return self._budget(peer, message.budget)
        if body == "trained" and isinstance(self.machine, SecureBuffers):
            return self._carry(self.machine.trained(peer, message.trained.task_id, now_s), now_s)
        if isinstance(self.machine, SecureRounds) and body != "declined":
            self.count(RefusedError("protocol-order", f"{peer} sent {body} in a run with secure sums"), peer)
            return []
        known.stage, known.done, known.total = "idle", 0, 0
        if body == "update_ready":
            return self._update(peer, known, message.update_ready, now_s)
        if body == "evaluation_ready":
            return self._evaluation(peer, known, message.evaluation_ready, now_s)
        declined = message.declined
        error = RefusedError(declined.code[:64] or "policy", declined.message[:500] or "no reason given")
        text = "%s declined task %s: %s: %s"
        _logger.warning(text, peer, declined.task_id, error.code, error.message, extra=self._facts(peer))
        return self._carry(self.machine.rejected(peer, declined.task_id, "declined", error, now_s), now_s)

    def _budget(self, peer: str, message: pb.BudgetReceipt) -> list[Action]:
        """What the run has cost a site's data. A receipt that doesn't hold is counted; the stream goes on."""
        try:
            known = self._budgets.take(peer, message)
        except RefusedError as error:
            self.count(error, peer)
            known = self._budgets.answer(peer, error.code[:64])
        return [Send(peer, pb.FromCoordinator(budget_known=known))]

    def budgets(self) -> dict[str, Receipt]:
        """Each site's last receipt in this run, by name."""
        return self._budgets.known()

    def _update(self, peer: str, known: Presence, message: pb.UpdateReady, now_s: float) -> list[Action]:
        contribution = Contribution(participant=peer, digest=message.update.digest.hex(), examples=message.examples)
        if not self.machine.expects(peer, message.task_id):
            # Answered before a crash, or too late: the machine knows which, and nothing needs to be checked.
            return self._carry(self.machine.submitted(peer, message.task_id, contribution, {}, {}, now_s), now_s)
        try:
            if message.update.size != self.update_size() or len(message.update.digest) != 32:
                raise RefusedError(
                    "update-shape",
                    f"{peer} announced an update of {message.update.size} bytes; this run's have {self.update_size()}",
                )
            messages.checked_examples(peer, message.examples, known.examples)
            metrics = messages.checked_metrics(peer, "metrics", message.metrics)
            evaluation = messages.checked_metrics(peer, "evaluation", message.evaluation)
            unwanted = self.machine.refusal(peer, message.task_id)
            if unwanted is not None:
                raise unwanted
        except RefusedError as error:
            return self._refuse(peer, message.task_id, error, now_s)
        current = self.machine.state.open_round()
        assert current is not None  # it expects this update
        return [Check(peer, message.task_id, current.number, contribution, metrics, evaluation)]

    def _evaluation(self, peer: str, known: Presence, message: pb.EvaluationReady, now_s: float) -> list[Action]:
        try:
            evaluation = messages.checked_metrics(peer, "evaluation", message.evaluation)
        except RefusedError as error:
            return self._refuse(peer, message.task_id, error, now_s)
        decision = self.machine.scored(peer, message.task_id, message.examples, evaluation, now_s)
        return self._carry(decision, now_s)

    # ---- secure sums ------------------------------------------------------------------------------------------------

    def _secure(self) -> SecureRounds:
        if not isinstance(self.machine, SecureRounds):
            raise RefusedError("protocol-order", "this run's plan asks for plain averaging")
        return self.machine

    def _statement(self, peer: str, message: pb.Statement, now_s: float) -> list[Action]:
        """A signed statement of a secure sum. One that breaks a rule is counted; the stream goes on."""
        signed = Signed(message.body, message.signature)
        try:
            machine = self._secure()
            kind = _kind(signed)
            if kind == PrekeyBatch.KIND:
                machine.offer(peer, signed)
                self.store.put_prekeys(peer, signed.body, signed.signature)
                return self._attend(peer, self.presence[peer], now_s)
            if kind == Upload.KIND:
                with _refused():
                    upload = Upload.parse(signed.body)
                if not machine.in_hand(upload.context):
                    return []  # said again when its attempt was over
                return [Find(peer, signed, upload.digest, self.update_size())]
            if kind == Refused.KIND:
                self._count_refused(machine, peer, signed)
        except RefusedError as error:
            self.count(error, peer)
            return []
        return self._said(peer, signed, now_s)

    def _said(self, peer: str, signed: Signed, now_s: float) -> list[Action]:
        try:
            return self._carry(self._secure().said(peer, signed, now_s), now_s)
        except RefusedError as error:
            self.count(error, peer)
            return []

    def _count_refused(self, machine: SecureRounds, peer: str, signed: Signed) -> None:
        """A participant will not go on: who refused what is for the operator to see."""
        member = machine.members.participant(peer)
        if member is None:
            raise RefusedError("participant-uncertified", f"{peer} refuses something, and isn't a certified member")
        with _refused():
            refused = Refused.opened(signed, member.public_key, peer)
        setting = f" (its setting {refused.setting} decides)" if refused.setting else ""
        text = "%s refuses: %s: %s%s"
        _logger.warning(text, peer, refused.code, refused.message, setting, extra=self._facts(peer))
        # The code is the peer's own choice of words: it may not fill the table of counts with them.
        codes = self._site_codes.setdefault(peer, set())
        code = refused.code if refused.code in codes or len(codes) < _SITE_CODES else "other"
        codes.add(code)
        self.store.count_refusal(f"site-{code}", peer)

    def _refuse(self, peer: str, task_id: str, error: RefusedError, now_s: float) -> list[Action]:
        self.count(error, peer)
        return self._carry(self.machine.rejected(peer, task_id, "refused", error, now_s), now_s)

    # ---- log and effects --------------------------------------------------------------------------------------------

    def _carry(self, decision: Decision, now_s: float, checkpoint: Checkpoint | None = None) -> list[Action]:
        """Store what was decided, then turn the effects into actions."""
        self._durable(lambda: self._log.append(decision, checkpoint, now_s))
        return [action for effect in decision.effects for action in self._actions(effect, now_s)]

    def _durable(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception:
            # The machine is ahead of the disk: fall back to what is on it. Who was present comes back by itself,
            # since every peer's next message, or its lapsed lease, goes through the replayed machine.
            before, self.machine = self.machine, self._log.replay()
            for name in before.present():
                self.machine.remember(name, before.away.get(name))
            raise

    def _actions(self, effect: Effect, now_s: float) -> Iterable[Action]:
        if isinstance(effect, IssueTask):
            base = self._log.versions[effect.base_version]
            blob = pb.Blob(digest=base.digest, size=base.size)
            yield Send(effect.participant, messages.task(effect, blob, now_s))
        elif isinstance(effect, SendReceipt):
            yield Send(effect.participant, messages.receipt(effect))
        elif isinstance(effect, CancelTask):
            yield Send(effect.participant, messages.cancel(effect))
        elif isinstance(effect, AnnounceVersion):
            committed = messages.committed(effect)
            for name in sorted(self.machine.present()) if effect.to is None else effect.to:
                yield Send(name, committed)
        elif isinstance(effect, AnnounceFinish):
            finished = messages.finished(self.plan.run_id, effect, self._model())
            for name in sorted(self.machine.present()):
                yield Send(name, finished)
        elif isinstance(effect, SendStatement):
            statement = pb.Statement(body=effect.statement.body, signature=effect.statement.signature)
            yield Send(effect.participant, pb.FromCoordinator(statement=statement))
        elif isinstance(effect, BeginUnmask):
            yield Unmask(effect)
        elif isinstance(effect, WakeAt):
            yield Wake(effect.at_s)
        else:
            yield Merge(effect, self._log.versions[effect.base_version])

    def _model(self) -> pb.Blob:
        return messages.blob(self.machine.state.digest, self.machine.state.size)

    def _lease_wake(self) -> list[Action]:
        soonest = min((known.expires_s for known in self.presence.values()), default=_UNLIMITED)
        return [Wake(soonest)] if soonest < _UNLIMITED else []


def _kind(signed: Signed) -> str:
    with _refused():
        return kind_of(signed.body)


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """What secure aggregation refuses to read, as the refusal of a peer."""
    try:
        yield
    except SecureAggregationError as error:
        raise RefusedError(error.code, error.message, error.hint) from None
