"""Synchronous rounds as a pure state machine: commands in, facts and effects out. No clock, no socket, no file.

A round selects a cohort, waits for its updates up to a deadline, merges them and commits a version (FedAvg's loop,
McMahan et al. 2017). The caller MUST make the facts of a :class:`Decision` durable before it carries out the effects.
After a crash, :meth:`SynchronousRounds.resume` turns the replayed state back into the effects still owed: every effect
may therefore be carried out twice, and carrying it out twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from coordinator.rounds.effects import (
    AnnounceFinish,
    AnnounceVersion,
    BeginMerge,
    CancelTask,
    Contribution,
    Decision,
    IssueTask,
    SendReceipt,
    WakeAt,
)
from coordinator.rounds.facts import (
    CohortExtended,
    EvaluationAccepted,
    EvaluationClosed,
    Excuse,
    Fact,
    FinishReason,
    MergeFailed,
    ParticipantExcused,
    Purpose,
    RoundOpened,
    RoundSealed,
    RunFinished,
    SeatOpened,
    UpdateAccepted,
    VersionCommitted,
)
from coordinator.rounds.receipts import receipt_of
from coordinator.rounds.state import Round, RunState
from coordinator.rounds.tasks import attempt_seed, away_text, sample, task_id, turned_away
from coordinator.rounds.waiting import listed, merging
from privacy.ledger import BUDGET_EXHAUSTED
from wire import RefusedError, RoundsSpec


class SynchronousRounds:
    """The rounds of one run.

    Args:
        run_id: Names tasks.
        spec: The plan's rules.
        state: What the log says so far.

    Attributes:
        away: Who is connected and takes no tasks, by its own word, and until when.

    Example:
        >>> machine = SynchronousRounds("demo", RoundsSpec(count=1, min_participants=2), RunState())
        >>> machine.available("bank", now_s=0.0).facts
        []
        >>> [type(fact).__name__ for fact in machine.available("clinic", now_s=1.0).facts]
        ['RoundOpened']
    """

    def __init__(self, run_id: str, spec: RoundsSpec, state: RunState) -> None:
        self.run_id = run_id
        self.spec = spec
        self.state = state
        self._available: set[str] = set()
        self.away: dict[str, float] = {}

    # ---- commands -------------------------------------------------------------------------------------------------

    def resume(self, now_s: float) -> Decision:
        """What is owed after a restart: the merge of a sealed round, or a wake-up for the open one's deadline."""
        decision = Decision()
        current = self.state.open_round()
        if current is None:
            return decision
        if current.sealed:
            decision.effects.append(self._merge_order(current))
        elif self.state.finished is None:
            decision.effects.append(WakeAt(at_s=max(now_s, current.closes_s)))
        return decision

    def available(self, name: str, now_s: float) -> Decision:
        """A participant is connected and ready for tasks. Calling it again is allowed (a reconnection)."""
        decision = Decision()
        self._available.add(name)
        self.away.pop(name, None)
        current = self.state.open_round()
        if current is None or current.sealed or self.state.finished is not None:
            self._advance(decision, now_s)
            return decision
        seat = current.seats.get(name)
        if seat is not None and seat.outcome == "away":
            # The same task: it may have trained it, or be in the middle of it.
            self._record(decision, SeatOpened(round=current.number, participant=name, attempt=seat.attempt))
            decision.effects.append(self._task(current, name))
        elif seat is not None and seat.outcome == "pending":
            decision.effects.append(self._task(current, name))
        elif (seat is not None and seat.outcome in ("vanished", "left")) or (seat is None and self._short(current)):
            self._extend(decision, current, [name], current.closes_s)
        return decision

    def absent(self, name: str, until_s: float, reason: str, now_s: float, *, working: bool) -> Decision:
        """A connected participant takes no tasks until a time, by its own word; :meth:`available` ends that.

        Where it goes on ``working`` at the task in hand, its answer is waited for as before. Else it is waited for only
        if it is back before the round closes.
        """
        decision = Decision()
        self._available.add(name)
        self.away[name] = until_s
        current = self.state.open_round()
        if current is None or current.sealed or working or not self._is_pending(current, name):
            return decision
        if until_s > current.closes_s:
            self._excuse(decision, current, name, "away", reason, away_text(name, reason))
            self._advance(decision, now_s)
        return decision

    def recall(self, name: str, now_s: float) -> Decision:
        """A participant that takes no further tasks is connected again: ask once more for the result it owes."""
        decision = Decision()
        current = self.state.open_round()
        if current is not None and not current.sealed and self._is_pending(current, name):
            decision.effects.append(self._task(current, name))
        return decision

    def became_of(self, name: str, task_id: str) -> Decision:
        """What became of a task whose end a participant doesn't know; nothing while its result may be awaited."""
        decision = Decision()
        if not self.expects(name, task_id) and not self._may_return(name, task_id):
            self._receipt_again(decision, name, task_id, None)
        return decision

    def remember(self, name: str, until_s: float | None) -> None:
        """Take a participant as connected, and as away until a time, without acting on it.

        Presence isn't in the log, so a replay must be told.
        """
        self._available.add(name)
        if until_s is not None:
            self.away[name] = until_s

    def gone(self, name: str, outcome: Excuse, message: str, now_s: float) -> Decision:
        """A participant's lease lapsed ("vanished"), it said goodbye ("left") or it was revoked ("revoked")."""
        decision = Decision()
        self._forget(name)
        current = self.state.open_round()
        if current is not None and not current.sealed and self._is_pending(current, name):
            self._excuse(decision, current, name, outcome, outcome, message)
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
        current = self._seat_or_receipt(decision, name, task_id, contribution.digest)
        if current is not None:
            fact = UpdateAccepted(
                round=current.number,
                participant=name,
                digest=contribution.digest,
                examples=contribution.examples,
                metrics=dict(metrics),
                evaluation=dict(evaluation),
            )
            self._record(decision, fact)
            decision.effects.append(SendReceipt(participant=name, task_id=task_id, accepted=True))
            self._advance(decision, now_s)
        return decision

    def scored(self, name: str, task_id: str, examples: int, evaluation: Mapping[str, float], now_s: float) -> Decision:
        """A participant scored the base version."""
        decision = Decision()
        current = self._seat_or_receipt(decision, name, task_id, "")
        if current is not None:
            fact = EvaluationAccepted(
                round=current.number, participant=name, examples=examples, evaluation=dict(evaluation)
            )
            self._record(decision, fact)
            decision.effects.append(SendReceipt(participant=name, task_id=task_id, accepted=True))
            self._advance(decision, now_s)
        return decision

    def rejected(self, name: str, task_id: str, outcome: Excuse, error: RefusedError, now_s: float) -> Decision:
        """A result was turned away ("refused"), or the participant would not do the task ("declined")."""
        decision = Decision()
        current = self.state.open_round()
        if current is not None and not current.sealed and self._holds(current, name, task_id):
            self._excuse(decision, current, name, outcome, error.code, error.message)
            if self._out_of_budget(current):
                self._finish(decision, "out of budget", now_s)
            self._advance(decision, now_s)
        if outcome == "refused":
            decision.effects.append(
                SendReceipt(participant=name, task_id=task_id, accepted=False, code=error.code, message=error.message)
            )
        return decision

    def tick(self, now_s: float) -> Decision:
        """Time has passed: close the round whose deadline is behind us, or give it another."""
        decision = Decision()
        current = self.state.open_round()
        if current is None or current.sealed or self.state.finished is not None:
            return decision
        if now_s < current.closes_s:
            decision.effects.append(WakeAt(at_s=current.closes_s))
            return decision
        if current.purpose == "evaluate" or len(current.done()) >= self.spec.min_updates:
            for name in current.pending():
                task = self._task(current, name)
                self._excuse(decision, current, name, "late", "late", "the round's deadline passed")
                decision.effects.append(CancelTask(participant=name, task_id=task.task_id, reason="deadline"))
            self._advance(decision, now_s)
        else:
            again = [name for name in sorted(self._ready()) if not self._settled(current, name)]
            self._extend(decision, current, again, now_s + self.spec.deadline_s)
        return decision

    def committed(
        self, order: BeginMerge, digest: str, size: int, now_s: float, report: Mapping[str, Any] | None = None
    ) -> Decision:
        """The merge that :class:`BeginMerge` asked for is on disk; ``report`` says what became of each update."""
        decision = Decision()
        current = self.state.open_round()
        if current is None or not current.sealed or current.number != order.round:
            return decision
        version = self.state.version + 1
        self._record(
            decision,
            VersionCommitted(
                round=current.number,
                version=version,
                digest=digest,
                size=size,
                committed_s=now_s,
                report=dict(report or {}),
            ),
        )
        updates = len(current.done())
        decision.effects.append(
            AnnounceVersion(round=current.number, version=version, digest=digest, size=size, updates=updates)
        )
        self._advance(decision, now_s)
        return decision

    def unmergeable(self, order: BeginMerge, error: RefusedError, culprit: str, now_s: float) -> Decision:
        """The merge that :class:`BeginMerge` asked for is refused, for want of enough sound updates.

        The round goes on without the update of ``culprit``; where that is nobody (""), without all of them. Whoever
        isn't merged is asked again when the round's time is over, if the others aren't enough.
        """
        decision = Decision()
        current = self.state.merging()
        if current is None or current.number != order.round:
            return decision
        refused = (culprit,) if culprit else tuple(current.done())
        fact = MergeFailed(
            round=current.number, code=error.code, message=error.message, refused=refused, failed_s=now_s
        )
        self._record(decision, fact)
        self._advance(decision, now_s)
        if not any(isinstance(effect, BeginMerge) for effect in decision.effects):
            decision.effects.append(WakeAt(at_s=max(now_s, current.closes_s)))
        return decision

    def stop(self, now_s: float) -> Decision:
        """The operator ends the run; what is committed stays."""
        decision = Decision()
        self._finish(decision, "stopped", now_s)
        return decision

    # ---- what the machine says of itself --------------------------------------------------------------------------

    def waiting_for(self) -> str:
        """One sentence for a person: what has to happen next."""
        if self.state.finished is not None:
            return f"The run is {self.state.finished.reason}."
        current = self.state.open_round()
        if current is None:
            have, need = len(self._ready()), self.spec.min_participants
            away = f" Away by their own rules: {listed(sorted(self.away))}." if self.away else ""
            return f"Waiting for participants: {have} of at least {need} are ready.{away}"
        if current.sealed:
            return merging(current)
        pending = current.pending()
        if pending:
            return f"Round {current.number} waits for {listed(pending)}."
        return (
            f"Round {current.number} has {len(current.done())} of the {self.spec.min_updates} updates it needs; "
            "it asks again at its deadline."
        )

    def pending(self) -> list[str]:
        """Whose results are awaited, sorted."""
        current = self.state.open_round()
        return current.pending() if current is not None else []

    def uploads_wanted(self, name: str) -> bool:
        """Whether an update of this participant is awaited."""
        current = self.state.open_round()
        return current is not None and current.purpose == "train" and name in current.pending()

    def refusal(self, name: str, task_id: str) -> RefusedError | None:
        """Why the update of an expected task isn't wanted whatever is in it; None where it is."""
        return None

    def expects(self, name: str, task_id: str) -> bool:
        """Whether a result of this participant for this task is still wanted."""
        current = self.state.open_round()
        return current is not None and not current.sealed and self._holds(current, name, task_id)

    def present(self) -> frozenset[str]:
        """Who is connected and has prepared the run, whether it takes tasks now or not."""
        return frozenset(self._available)

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _ready(self) -> set[str]:
        """Who takes tasks now."""
        return self._available - self.away.keys()

    def _forget(self, name: str) -> None:
        """A participant isn't connected any more."""
        self._available.discard(name)
        self.away.pop(name, None)

    def _record(self, decision: Decision, fact: Fact) -> None:
        self.state.apply(fact)
        decision.facts.append(fact)

    def _advance(self, decision: Decision, now_s: float) -> None:
        """Go as far as the facts allow: seal or close the open round, open the next, or finish."""
        if self.state.finished is not None:
            return
        current = self.state.open_round()
        if current is not None:
            if current.sealed or current.pending():
                return
            if current.purpose == "train":
                if self._short(current):
                    self._ask_idle(decision, current)
                else:
                    self._call_off(decision, current)
                    self._record(decision, RoundSealed(round=current.number))
                    decision.effects.append(self._merge_order(current))
                return
            self._call_off(decision, current)
            self._record(decision, EvaluationClosed(round=current.number, closed_s=now_s))
        if self.state.trained_rounds() < self.spec.count:
            self._open(decision, "train", now_s)
        elif self.state.rounds[-1].purpose == "train" and self.spec.evaluate_every > 0:
            self._open(decision, "evaluate", now_s)
        else:
            self._finish(decision, "completed", now_s)

    def _finish(self, decision: Decision, reason: FinishReason, now_s: float) -> None:
        """The run ends; what is committed stays."""
        if self.state.finished is None:
            self._record(decision, RunFinished(reason=reason, finished_s=now_s))
            decision.effects.append(AnnounceFinish(version=self.state.version, reason=reason))

    def _out_of_budget(self, current: Round) -> bool:
        """Whether so many have spent their privacy budget that all who ever took part can't make a round any more.

        A budget doesn't come back by waiting, unlike a participant. Who hasn't taken part yet isn't waited for.
        """
        spent = {
            name for name, seat in current.seats.items() if (seat.outcome, seat.code) == ("declined", BUDGET_EXHAUSTED)
        }
        seen = self._available.union(self.state.pace.tasks, *(item.seats for item in self.state.rounds))
        return current.purpose == "train" and bool(spent) and len(seen - spent) < self.spec.min_updates

    def _open(self, decision: Decision, purpose: Purpose, now_s: float) -> None:
        # Who will be back in good time has a seat; its task waits for it.
        back = {name for name, until_s in self.away.items() if until_s < now_s + self.spec.deadline_s}
        cohort = sorted(self._ready() | back)
        if not self._ready() or len(cohort) < (self.spec.min_participants if purpose == "train" else 1):
            return
        number = len(self.state.rounds) + 1
        if purpose == "train" and 0 < self.spec.participants_per_round < len(cohort):
            cohort = sample(cohort, self.spec.participants_per_round, self.spec.seed, number)
        cohort = self._cohort_for(cohort, now_s)
        if not cohort:
            return
        every = self.spec.evaluate_every
        fact = RoundOpened(
            round=number,
            purpose=purpose,
            base_version=self.state.version,
            cohort=tuple(cohort),
            evaluate=purpose == "evaluate" or (every > 0 and self.state.version % every == 0),
            opened_s=now_s,
            closes_s=now_s + self.spec.deadline_s,
        )
        self._record(decision, fact)
        self._opened(decision, self.state.rounds[-1], now_s)

    def _cohort_for(self, cohort: list[str], now_s: float) -> list[str]:
        """Whom of these a round may begin with; nobody where it can't begin now."""
        return cohort

    def _opened(self, decision: Decision, current: Round, now_s: float) -> None:
        """A round is open: hand out its tasks."""
        decision.effects.extend(self._task(current, name) for name in current.seats if name not in self.away)
        decision.effects.append(WakeAt(at_s=current.closes_s))

    def _ask_idle(self, decision: Decision, current: Round) -> None:
        """Too few updates will come: ask as many as are missing of those who are ready and weren't asked yet."""
        idle = [name for name in sorted(self._ready()) if name not in current.seats]
        missing = self.spec.min_updates - len(current.done())
        if idle:
            asked = sample(idle, missing, self.spec.seed, current.number)
            self._extend(decision, current, asked, current.closes_s)

    def _extend(self, decision: Decision, current: Round, asked: Iterable[str], closes_s: float) -> None:
        fact = CohortExtended(round=current.number, asked=tuple(asked), closes_s=closes_s)
        self._record(decision, fact)
        decision.effects.extend(self._task(current, name) for name in fact.asked)
        decision.effects.append(WakeAt(at_s=closes_s))

    def _excuse(self, decision: Decision, current: Round, name: str, outcome: Excuse, code: str, message: str) -> None:
        self._record(
            decision,
            ParticipantExcused(round=current.number, participant=name, outcome=outcome, code=code, message=message),
        )

    def _task(self, current: Round, name: str) -> IssueTask:
        attempt = current.seats[name].attempt
        return IssueTask(
            participant=name,
            task_id=task_id(self.run_id, current.number, attempt, name),
            purpose=current.purpose,
            round=current.number,
            attempt=attempt,
            base_version=current.base_version,
            seed=attempt_seed(self.spec.seed, attempt),
            evaluate=current.evaluate,
            closes_s=current.closes_s,
        )

    def _merge_order(self, current: Round) -> BeginMerge:
        seats = current.seats
        return BeginMerge(
            round=current.number,
            base_version=current.base_version,
            contributions=tuple(
                Contribution(participant=name, digest=seats[name].digest, examples=seats[name].examples)
                for name in current.done()
            ),
            rejected=turned_away(current),
        )

    def _seat_or_receipt(self, decision: Decision, name: str, task: str, digest: str) -> Round | None:
        """The open round if this result fills a pending seat; otherwise a receipt that says what became of it."""
        current = self.state.open_round()
        if current is not None and not current.sealed and self._holds(current, name, task):
            return current
        self._receipt_again(decision, name, task, digest)
        return None

    def _receipt_again(self, decision: Decision, name: str, task: str, digest: str | None) -> None:
        """A receipt that says what became of a result that came before, or too late; without a digest, of any."""
        decision.effects.append(receipt_of(self.state, self.run_id, name, task, digest))

    def _may_return(self, name: str, task: str) -> bool:
        """Whether this task of one who was taken for gone, or is away, would be asked for again."""
        current = self.state.open_round()
        seat = current.seats.get(name) if current is not None and not current.sealed else None
        if current is None or seat is None or seat.outcome not in ("vanished", "left", "away"):
            return False
        return task == task_id(self.run_id, current.number, seat.attempt, name)

    def _call_off(self, decision: Decision, current: Round) -> None:
        """The round closes without who is away: what they have paused is of no more use, and shall cost nothing."""
        for name, seat in sorted(current.seats.items()):
            if seat.outcome == "away" and name in self._available:
                task = self._task(current, name).task_id
                decision.effects.append(CancelTask(participant=name, task_id=task, reason="late"))

    def _holds(self, current: Round, name: str, task: str) -> bool:
        if not self._is_pending(current, name):
            return False
        return task == task_id(self.run_id, current.number, current.seats[name].attempt, name)

    def _short(self, current: Round) -> bool:
        """Nobody is pending any more and too few updates are there: the round needs more participants."""
        return current.purpose == "train" and not current.pending() and len(current.done()) < self.spec.min_updates

    @staticmethod
    def _is_pending(current: Round, name: str) -> bool:
        seat = current.seats.get(name)
        return seat is not None and seat.outcome == "pending"

    @staticmethod
    def _settled(current: Round, name: str) -> bool:
        seat = current.seats.get(name)
        return seat is not None and seat.outcome in ("pending", "done")
