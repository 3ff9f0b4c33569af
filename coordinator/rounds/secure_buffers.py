"""Asynchronous rounds whose updates are summed securely: everyone trains at its own pace, and the buffer is a cohort.

A participant trains its task and says that it has; the update stays on its own disk. When K of those who are there have
trained, a secure sum is proposed to all of them, and what it reveals becomes the next version. Who trains meanwhile, or
drops out of the sum, keeps its update for the next one; nothing is ever sent unmasked. Each update is scaled down for
its age by its own participant (``RoundContext.counted``), and which versions the updates come from stands in the
context that all of them sign.

Masks are made when the training is over, not beside it: a sum then waits for no training, and who is slow holds
nobody up. The price is the quick answers of the protocol (four in a row, and the upload) between buffer and version.

Formal Guarantees:
    Those of :class:`coordinator.rounds.asynchronous.AsyncRounds` on tasks and staleness. An update is in at most one
    revealed sum. What secure sums promise, and what they don't when versions differ, is in
    :func:`privacy.secure_aggregation.policy.check_base` and ``docs/asynchrony.md``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from coordinator.rounds.effects import BeginMerge, Decision, SendReceipt, WakeAt
from coordinator.rounds.facts import AttemptFailed, BufferExtended, BufferSealed, Excuse, UpdateTrained
from coordinator.rounds.paced import STALE, Paced
from coordinator.rounds.secure import SecureRounds
from coordinator.rounds.state import Round
from coordinator.rounds.sums import MAY_BE_REVEALED
from coordinator.rounds.tasks import seat_task
from coordinator.rounds.waiting import buffered, merging, pausing, sentences, under_way
from privacy.secure_aggregation.coordinator import Attempt, Failed
from wire import RefusedError

NEXT_SUM: Final = "next-sum"
"""Code of who is "late" because a sum was made without it: its update is kept for the next one."""

_NO_MORE: Final = "the run has all its versions"


class SecureBuffers(SecureRounds, Paced):
    """The rounds of one run whose plan asks for asynchronous rounds and secure sums.

    A run ends with a round of scoring, which is that of synchronous rounds.

    Args:
        plan: The run's plan, which says ``buffer_size``.
    """

    # ---- commands ---------------------------------------------------------------------------------------------------

    def resume(self, now_s: float) -> Decision:
        """What is owed after a restart. Tasks in flight are sent again as their participants come back."""
        decision = super().resume(now_s)
        if not self._scoring():
            self._wake(decision)
        return decision

    def available(self, name: str, now_s: float) -> Decision:
        """A participant is connected and ready, and its prekeys are here.

        It is sent the task that it has in flight, or has trained, again: it may have forgotten over a restart.
        """
        if self._scoring():
            return super().available(name, now_s)
        return self._come_back(name, now_s)

    def absent(self, name: str, until_s: float, reason: str, now_s: float, *, working: bool) -> Decision:
        """A connected participant takes no tasks until a time, by its own word. What it has trained is summed."""
        if self._scoring():
            return super().absent(name, until_s, reason, now_s, working=working)
        return self._step_away(name, until_s, reason, now_s, working=working)

    def recall(self, name: str, now_s: float) -> Decision:
        """A participant is connected again: it is told what it missed, and asked once more for what it owes."""
        if self._scoring():
            return super().recall(name, now_s)
        decision = Decision()
        self._remind(decision, name)
        pace = self.state.pace
        known, lapsed = pace.tasks.get(name) or pace.trained.get(name), pace.lapsed.get(name)
        if known is not None:
            decision.effects.append(self._issue(name, known))
        elif lapsed is not None and self._takes(lapsed):
            self._give(decision, name, lapsed.base_version, lapsed.attempt, False, now_s)
        if self.attempt is not None and name in self.attempt.context.names:
            self._take(decision, self.attempt.back(name, now_s), now_s)
        return decision

    def gone(self, name: str, outcome: Excuse, message: str, now_s: float) -> Decision:
        """A participant went away. What it has trained waits for it; of an open sum it may still be a keeper."""
        if self._scoring():
            return super().gone(name, outcome, message, now_s)
        decision = Decision()
        self._forget(name)
        pace = self.state.pace
        over = name in pace.tasks or (name in pace.trained and outcome == "revoked")
        if over and self.state.finished is None:
            self._end(decision, name, outcome, outcome, message, again=True)
        if self.attempt is not None:
            self._take(decision, self.attempt.gone(name, now_s), now_s)
        if self.attempt is not None and self.attempt.stranded():
            # The updates are kept: another sum, with others, is better than to wait for who went away.
            self._take(decision, self.attempt.abort("too-few-left", f"{name} is gone: {message}", now_s), now_s)
        self._advance(decision, now_s)
        return decision

    def trained(self, name: str, task_id: str, now_s: float) -> Decision:
        """A participant has trained a task. Said again it changes nothing; of a task that is over it gets a receipt."""
        decision = Decision()
        if not self._in_flight(name, task_id):
            if not self._holds_trained(name, task_id):
                self._receipt_again(decision, name, task_id, "")
            return decision
        stale = self.refusal(name, task_id)
        if stale is not None:
            return self.rejected(name, task_id, "refused", stale, now_s)
        if self._buffer().sealed and self._buffer().number == self.spec.count:
            refused = RefusedError("task-closed", _NO_MORE)
            return self.rejected(name, task_id, "refused", refused, now_s)
        self._record(decision, UpdateTrained(participant=name))
        self._advance(decision, now_s)
        return decision

    def rejected(self, name: str, task_id: str, outcome: Excuse, error: RefusedError, now_s: float) -> Decision:
        """A participant would not, or could not, do its task or mask its result; or its result is too old."""
        if self._scoring():
            return super().rejected(name, task_id, outcome, error, now_s)
        decision = Decision()
        if self._in_flight(name, task_id) or self._holds_trained(name, task_id):
            self._end(decision, name, outcome, error.code, error.message, again=error.code == STALE)
            if outcome == "refused":
                decision.effects.append(
                    SendReceipt(
                        participant=name, task_id=task_id, accepted=False, code=error.code, message=error.message
                    )
                )
            if self._out_of_budget(self._buffer()):
                self._finish(decision, "out of budget", now_s)
            elif self.attempt is not None:
                reason = f"{name} {outcome} the task: {error.code}: {error.message}"
                self._take(decision, self.attempt.excuse(name, reason, now_s), now_s)
        self._advance(decision, now_s)
        return decision

    def tick(self, now_s: float) -> Decision:
        """Time has passed: end the tasks whose deadline is over, and go on with the sum, or without who is missing."""
        if self._scoring():
            return super().tick(now_s)
        decision = Decision()
        if self.state.rounds and self.state.finished is None:
            for name, task in sorted(self.state.pace.tasks.items()):
                if task.closes_s <= now_s:
                    self._drop(decision, name, "late", "the task's deadline passed", "deadline")
            if self.attempt is not None:
                self._take(decision, self.attempt.tick(now_s), now_s)
        self._advance(decision, now_s)
        self._wake(decision)
        return decision

    def committed(
        self, order: BeginMerge, digest: str, size: int, now_s: float, report: Mapping[str, Any] | None = None
    ) -> Decision:
        """The merge is on disk. With the last version what is in training, or waits, is called off."""
        over = Decision()
        merged = self.state.merging()
        last = self.state.version + 1 == self.spec.count and self.state.finished is None
        if merged is not None and merged.number == order.round and last:
            for name in sorted({*self.state.pace.tasks, *self.state.pace.trained}):
                self._drop(over, name, "late", _NO_MORE, "late")
        decision = super().committed(order, digest, size, now_s, report)
        decision.facts = over.facts + decision.facts
        decision.effects = over.effects + decision.effects
        return decision

    # ---- what the machine says of itself --------------------------------------------------------------------------

    def waiting_for(self) -> str:
        """What has to happen next, for a person; and who is there in vain."""
        current = self.state.open_round()
        if self.state.finished is not None or current is None or self._scoring():
            return super().waiting_for()
        idle = self.proposals.sitting_out(self.state, frozenset(self._available))
        if current.sealed:
            return sentences(merging(current), idle)
        pace = self.state.pace
        there = sorted(pace.trained.keys() & self._available)
        away = sorted(pace.trained.keys() - self._available)
        have = buffered(current.number, there, self.spec.buffer_size, sorted(pace.tasks), away)
        if self.attempt is not None:
            return sentences(under_way(current, self.attempt), idle)
        failed = pausing(current) if current.attempts else ""
        return sentences(have, failed, idle)

    def pending(self) -> list[str]:
        """Whose results are awaited, sorted."""
        return super().pending() if self._scoring() else sorted(self.state.pace.tasks)

    def expects(self, name: str, task_id: str) -> bool:
        """Whether a result of this participant for this task is still wanted, or waits to be summed."""
        waited = self._in_flight(name, task_id) or self._holds_trained(name, task_id)
        return waited or (self._scoring() and super().expects(name, task_id))

    # ---- inside: tasks ----------------------------------------------------------------------------------------------

    def _holds_trained(self, name: str, identifier: str) -> bool:
        task = self.state.pace.trained.get(name)
        return task is not None and self._name(name, task) == identifier

    def _advance(self, decision: Decision, now_s: float) -> None:
        """Go as far as the facts allow: open a buffer, hand out tasks, propose a sum, score, or finish."""
        if self.state.finished is not None:
            return
        if self._scoring() or self.state.version >= self.spec.count:
            super()._advance(decision, now_s)
            return
        if self.state.open_round() is None:
            if not self.state.rounds and len(self._ready()) < self.spec.min_participants:
                return
            self._open_buffer(decision, now_s)
        current = self._buffer()
        if current.sealed or current.revealed is not None:
            return  # whoever is idle soon begins from the version that is being made
        busy = self.attempt.context.names if self.attempt is not None else ()
        for name, task in sorted(self.state.pace.trained.items()):
            if name not in busy and self._staleness(task) > self.spec.max_staleness:
                self._drop(decision, name, STALE, f"{self._staleness(task)} versions behind", STALE)
        self._hand_out(decision, current, now_s, evaluate=False)
        if self.attempt is None:
            self._try_again(decision, current, now_s)

    # ---- inside: attempts -------------------------------------------------------------------------------------------

    def _seat(self, decision: Decision, current: Round, name: str, attempt: Attempt) -> None:
        """Who is asked for a sum has its task, and has trained it."""
        if current.purpose != "train":
            super()._seat(decision, current, name, attempt)

    def _try_again(self, decision: Decision, current: Round, now_s: float) -> None:
        """Propose a sum once the buffer is full; or, when nobody can fill it or its time is over, with fewer."""
        if current.purpose != "train":
            super()._try_again(decision, current, now_s)
            return
        if (pause_s := self._pause_until(current)) > now_s:
            decision.effects.append(WakeAt(at_s=pause_s))
            return
        least = self.spec.buffer_size
        overdue = current.closes_s <= now_s
        if overdue or not self.state.pace.tasks:
            least = self.proposals.settings.min_cohort
        there = frozenset(self.state.pace.trained.keys() & self._available)
        roster = self.proposals.buffer(self.state, current, there, least, now_s)
        if roster:
            self._begin(decision, current, roster, now_s)
        elif overdue:
            closes_s = now_s + self.spec.deadline_s
            self._record(decision, BufferExtended(round=current.number, closes_s=closes_s))
            self._advance(decision, now_s)

    def _lose(self, decision: Decision, failed: Failed, now_s: float) -> None:
        """The attempt failed. Its updates wait for the next one; those that may be known in a sum are trained anew."""
        current = self.state.open_round()
        assert current is not None and self.attempt is not None
        if current.purpose != "train":
            super()._lose(decision, failed, now_s)
            return
        roster, context = self.attempt.context.names, self.attempt.context
        spent = roster if failed.spent else [name for name in roster if name in self._respenders]
        self.attempt = None
        self._record(
            decision,
            AttemptFailed(
                round=current.number,
                attempt=context.attempt,
                code=failed.code,
                message=failed.message,
                excluded=tuple(sorted(failed.excluded)),
                spent=failed.spent,
                failed_s=now_s,
            ),
        )
        for name in spent:
            if name in self.state.pace.trained:
                self._drop(decision, name, MAY_BE_REVEALED, "its update may be known in a sum", MAY_BE_REVEALED)
        self._advance(decision, now_s)

    # ---- inside: the end of a sum -----------------------------------------------------------------------------------

    def _settle(self, decision: Decision, current: Round, now_s: float, in_vain: frozenset[str] = frozenset()) -> None:
        """The sum is known: receipts for those in it, and on to the merge. The others wait for the next one."""
        if current.purpose != "train":
            super()._settle(decision, current, now_s, in_vain)
            return
        for name in current.done():
            task = seat_task(self.run_id, current, name)
            decision.effects.append(SendReceipt(participant=name, task_id=task, accepted=True))
        for name in current.pending():
            message = "the sum was made without it; its update waits for the next one"
            self._excuse(decision, current, name, "late", NEXT_SUM, message)
        pace = self.state.pace
        present = {*current.done(), *pace.tasks, *(pace.trained.keys() & self._available), *self._idle(current)}
        self._record(decision, BufferSealed(round=current.number, present=tuple(sorted(present)), kept=False))
        decision.effects.append(self._merge_order(current))

    def _merge_order(self, current: Round) -> BeginMerge:
        """A sum over K of C moves the model by K / C of the server's step; see ``AsyncRounds``."""
        order = super()._merge_order(current)
        if current.purpose != "train":
            return order
        return dataclasses.replace(order, step_scale=len(current.done()) / len(current.present))

    def _remembered(self, name: str) -> Round | None:
        """The last round whose sum holds an update of this participant; others may have followed."""
        found = (item for item in reversed(self.state.rounds) if item.revealed is not None and name in item.done())
        return next(found, None)
