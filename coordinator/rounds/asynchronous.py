"""Asynchronous rounds as a pure state machine: everyone trains at its own pace, a version is made of every K updates.

Buffered asynchronous aggregation (FedBuff; Nguyen et al., AISTATS 2022): each participant has one task in flight, from
the version that was the newest when it was issued. Its update goes into the open buffer; when K are there the buffer is
sealed and merged into the newest version, and who was in it gets its next task. A round is a buffer here: round r makes
version r of version r - 1, and an update in it that was trained from version b is ``r - 1 - b`` versions stale.

The contract is that of :class:`coordinator.rounds.machine.SynchronousRounds`: facts are stored first, effects are
carried out afterwards, and each of them may be carried out twice.

Formal Guarantees:
    A participant has at most one task in flight, at most one update in a buffer, and each of its updates is in at most
    one version. Staleness follows from the task that the coordinator issued, and from nothing that a participant says.
    With a buffer for all participants that are there, and none that fails, rounds, tasks, seeds and merges are those
    of synchronous rounds, whatever the participants' speeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from coordinator.rounds.effects import (
    AnnounceVersion,
    BeginMerge,
    Contribution,
    Decision,
    SendReceipt,
)
from coordinator.rounds.facts import (
    BufferExtended,
    BufferSealed,
    Excuse,
    UpdateBuffered,
    VersionCommitted,
)
from coordinator.rounds.pace import Kept
from coordinator.rounds.paced import STALE, Paced
from coordinator.rounds.state import Round
from coordinator.rounds.tasks import turned_away
from wire import RefusedError

_NO_MORE: Final = "the run has all its versions"


class AsyncRounds(Paced):
    """The rounds of one run whose plan says ``mode = "asynchronous"``; ``spec`` has its ``buffer_size``.

    A run ends with a round of scoring, which is that of synchronous rounds; before, participants score the version that
    they are given along with their training.

    Example:
        >>> from coordinator.rounds.state import RunState
        >>> from wire import RoundsSpec
        >>> spec = RoundsSpec(mode="asynchronous", min_participants=2, min_updates=1, buffer_size=1, correction="none")
        >>> machine = AsyncRounds("demo", spec, RunState())
        >>> machine.available("bank", now_s=0.0).facts
        []
        >>> [type(fact).__name__ for fact in machine.available("clinic", now_s=1.0).facts]
        ['RoundOpened', 'TaskIssued', 'TaskIssued']
    """

    # ---- commands -------------------------------------------------------------------------------------------------

    def resume(self, now_s: float) -> Decision:
        """What is owed after a restart: the merge of a sealed buffer, and a wake-up for the next deadline.

        Tasks in flight are sent again as their participants come back.
        """
        if self._scoring():
            return super().resume(now_s)
        decision = Decision()
        merging = self.state.merging()
        if merging is not None:
            decision.effects.append(self._merge_order(merging))
        self._wake(decision)
        return decision

    def available(self, name: str, now_s: float) -> Decision:
        """A participant is connected and ready for tasks. Calling it again is allowed (a reconnection).

        Whoever was taken for gone in the middle of a task is given the same task again, as long as its update would
        be taken: it may have trained it already.
        """
        if self._scoring():
            return super().available(name, now_s)
        return self._come_back(name, now_s)

    def absent(self, name: str, until_s: float, reason: str, now_s: float, *, working: bool) -> Decision:
        """A connected participant takes no tasks until a time, by its own word. Nobody waits for it.

        Unless it goes on ``working``, its task is free; it gets the same one when it is back.
        """
        if self._scoring():
            return super().absent(name, until_s, reason, now_s, working=working)
        return self._step_away(name, until_s, reason, now_s, working=working)

    def recall(self, name: str, now_s: float) -> Decision:
        """A participant is connected again: ask once more for the result that it owes, if it would be taken."""
        if self._scoring():
            return super().recall(name, now_s)
        decision = Decision()
        pace = self.state.pace
        lapsed = pace.lapsed.get(name)
        if name in pace.tasks and (stale := self.refusal(name, self._name(name, pace.tasks[name]))) is not None:
            # Too old meanwhile: it shall neither go on training it nor pay for it.
            self._drop(decision, name, stale.code, stale.message, stale.code)
        elif name in pace.tasks:
            decision.effects.append(self._issue(name, pace.tasks[name]))
        elif lapsed is not None and self._takes(lapsed):
            self._give(decision, name, lapsed.base_version, lapsed.attempt, lapsed.evaluate, now_s)
        return decision

    def gone(self, name: str, outcome: Excuse, message: str, now_s: float) -> Decision:
        """A participant's lease lapsed ("vanished"), it said goodbye ("left") or it was revoked ("revoked").

        What it has in a buffer stays there.
        """
        if self._scoring():
            return super().gone(name, outcome, message, now_s)
        decision = Decision()
        self._forget(name)
        if name in self.state.pace.tasks and self.state.finished is None:
            self._end(decision, name, outcome, outcome, message, again=True)
            self._advance(decision, now_s)
        return decision

    def submitted(
        self,
        name: str,
        task_id: str,
        contribution: Contribution,
        metrics: Mapping[str, float],
        evaluation: Mapping[str, float],
        now_s: float,
    ) -> Decision:
        """A checked update arrived. A repetition of an accepted one is receipted again; a stranger's is refused."""
        decision = Decision()
        if not self._in_flight(name, task_id):
            self._receipt_again(decision, name, task_id, contribution.digest)
            return decision
        if self._buffer().sealed:
            self._end(decision, name, "late", "late", _NO_MORE, again=True)
            decision.effects.append(
                SendReceipt(participant=name, task_id=task_id, accepted=False, code="task-closed", message=_NO_MORE)
            )
            return decision
        stale = self.refusal(name, task_id)
        if stale is not None:
            return self.rejected(name, task_id, "refused", stale, now_s)
        self._record(
            decision,
            UpdateBuffered(
                round=self._buffer().number,
                participant=name,
                digest=contribution.digest,
                examples=contribution.examples,
                metrics=dict(metrics),
                evaluation=dict(evaluation),
            ),
        )
        decision.effects.append(SendReceipt(participant=name, task_id=task_id, accepted=True))
        self._advance(decision, now_s)
        return decision

    def rejected(self, name: str, task_id: str, outcome: Excuse, error: RefusedError, now_s: float) -> Decision:
        """A result was turned away ("refused"), or the participant would not do the task ("declined").

        It gets another task with the next version, and at once if all that was wrong with its update is its age.
        """
        if self._scoring():
            return super().rejected(name, task_id, outcome, error, now_s)
        decision = Decision()
        if self._in_flight(name, task_id):
            self._end(decision, name, outcome, error.code, error.message, again=error.code == STALE)
            if self._out_of_budget(self._buffer()):
                self._finish(decision, "out of budget", now_s)
        if outcome == "refused":
            decision.effects.append(
                SendReceipt(participant=name, task_id=task_id, accepted=False, code=error.code, message=error.message)
            )
        self._advance(decision, now_s)
        return decision

    def tick(self, now_s: float) -> Decision:
        """Time has passed: end the tasks whose deadline is over, and merge a buffer that has waited long enough."""
        if self._scoring():
            return super().tick(now_s)
        decision = Decision()
        if not self.state.rounds or self.state.finished is not None:
            return decision
        for name, task in sorted(self.state.pace.tasks.items()):
            if task.closes_s <= now_s:
                self._drop(decision, name, "late", "the task's deadline passed", "deadline")
        buffer = self.state.open_round()
        overdue = buffer is not None and not buffer.sealed and buffer.closes_s <= now_s
        if buffer is not None and overdue and len(buffer.done()) < self.spec.min_updates:
            closes_s = now_s + self.spec.deadline_s
            self._record(decision, BufferExtended(round=buffer.number, closes_s=closes_s))
        self._advance(decision, now_s)
        self._wake(decision)
        return decision

    def committed(
        self, order: BeginMerge, digest: str, size: int, now_s: float, report: Mapping[str, Any] | None = None
    ) -> Decision:
        """The merge that :class:`BeginMerge` asked for is on disk; ``report`` says what became of each update."""
        decision = Decision()
        merging = self.state.merging()
        if merging is None or merging.number != order.round:
            return decision
        version = self.state.version + 1
        if version == self.spec.count and self.state.finished is None:
            for name in sorted(self.state.pace.tasks):
                self._drop(decision, name, "late", _NO_MORE, "late")
        self._record(
            decision,
            VersionCommitted(
                round=merging.number,
                version=version,
                digest=digest,
                size=size,
                committed_s=now_s,
                report=dict(report or {}),
            ),
        )
        # Whoever trains from an older version isn't told: it will hear of the newest one with its next task.
        names = tuple(merging.done())
        decision.effects.append(
            AnnounceVersion(
                round=merging.number, version=version, digest=digest, size=size, updates=len(names), to=names
            )
        )
        self._advance(decision, now_s)
        return decision

    # ---- what the machine says of itself --------------------------------------------------------------------------

    def waiting_for(self) -> str:
        """One sentence for a person: what has to happen next."""
        buffer = self.state.open_round()
        if self.state.finished is not None or buffer is None or self._scoring():
            return super().waiting_for()
        if buffer.sealed:
            return super().waiting_for()
        names = sorted(self.state.pace.tasks)
        shown = f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}" or "nobody"
        have = f"{len(buffer.done())} of {self.spec.buffer_size} updates"
        return f"Version {buffer.number} has {have}; in training: {shown}."

    def pending(self) -> list[str]:
        """Whose results are awaited, sorted."""
        return super().pending() if self._scoring() else sorted(self.state.pace.tasks)

    def uploads_wanted(self, name: str) -> bool:
        """Whether an update of this participant is awaited."""
        return name in self.state.pace.tasks

    def expects(self, name: str, task_id: str) -> bool:
        """Whether a result of this participant for this task is still wanted."""
        return self._in_flight(name, task_id) or (self._scoring() and super().expects(name, task_id))

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _advance(self, decision: Decision, now_s: float) -> None:
        """Go as far as the facts allow: open the first buffer, hand out tasks, seal, score, or finish."""
        if self.state.finished is not None:
            return
        if self._scoring() or self.state.version >= self.spec.count:
            super()._advance(decision, now_s)
            return
        if not self.state.rounds:
            if len(self._ready()) < self.spec.min_participants:
                return
            self._open_buffer(decision, now_s)
        if self.state.merging() is not None:
            return  # whoever is idle soon begins from the version that is being made
        buffer = self._buffer()
        done = len(buffer.done())
        enough = done >= self.spec.min_updates
        if done >= self.spec.buffer_size or (enough and buffer.closes_s <= now_s):
            self._seal(decision, buffer, now_s)
            return
        self._hand_out(decision, buffer, now_s, evaluate=self._scored_along())
        if enough and not self.state.pace.tasks:
            # Nobody is left who could fill it.
            self._seal(decision, buffer, now_s)

    def _seal(self, decision: Decision, buffer: Round, now_s: float) -> None:
        """Merge what is in the buffer; the next one takes what comes meanwhile."""
        present = {*buffer.done(), *self.state.pace.tasks, *self._idle(buffer)}
        kept = self.spec.correction == "ca2fl"
        self._record(decision, BufferSealed(round=buffer.number, present=tuple(sorted(present)), kept=kept))
        decision.effects.append(self._merge_order(buffer))
        if buffer.number < self.spec.count:
            self._open_buffer(decision, now_s)

    def _merge_order(self, current: Round) -> BeginMerge:
        """K updates of a concurrency of C move the model by K / C of the server's step.

        One that was trained beside C - 1 others moves it 1 / C of the way, as it does in a synchronous round of C. With
        the whole step, versions chase the data of whoever came last where participants' data differ much.
        """
        done = current.done()
        return BeginMerge(
            round=current.number,
            base_version=current.base_version,
            contributions=tuple(
                Contribution(
                    participant=name,
                    digest=current.seats[name].digest,
                    examples=current.seats[name].examples,
                    staleness=current.staleness(name),
                )
                for name in done
            ),
            rejected=turned_away(current),
            step_scale=len(done) / len(current.present),
            kept=tuple(kept for _, kept in sorted(self.state.pace.kept.items()) if self._counts(kept, current)),
        )

    def _counts(self, kept: Kept, current: Round) -> bool:
        """Whether an earlier update still speaks for its participant: it takes part, and hands in more now and then."""
        age = current.number - 1 - kept.version
        return current.kept and kept.participant in current.present and age <= self.spec.max_staleness + 1
