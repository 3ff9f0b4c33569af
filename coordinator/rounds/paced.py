"""What round machines have in common where everyone trains at its own pace: tasks, their age and their end."""

from __future__ import annotations

from typing import Final

from coordinator.rounds.effects import CancelTask, Decision, IssueTask, WakeAt
from coordinator.rounds.facts import Excuse, RoundOpened, TaskEnded, TaskIssued
from coordinator.rounds.machine import SynchronousRounds
from coordinator.rounds.pace import Task
from coordinator.rounds.state import Round
from coordinator.rounds.tasks import attempt_seed, away_text, task_id
from wire import RefusedError

STALE: Final = "update-stale"


class Paced(SynchronousRounds):
    """Tasks that a participant has alone, each from the version that was the newest when it was issued."""

    def refusal(self, name: str, task_id: str) -> RefusedError | None:
        """That an update is too old."""
        if not self._in_flight(name, task_id):
            return None
        staleness = self._staleness(self.state.pace.tasks[name])
        if staleness <= self.spec.max_staleness:
            return None
        return RefusedError(
            STALE,
            f"the update of {name} is {staleness} versions behind; this run takes those up to "
            f"{self.spec.max_staleness} behind",
            "It gets a new task. If that happens often: fewer local steps there, or a larger [rounds] max_staleness or "
            "buffer_size.",
        )

    def _may_return(self, name: str, task: str) -> bool:
        """Whether this task of one who was taken for gone, or is away, would be asked for again."""
        if self._scoring():
            return super()._may_return(name, task)
        lapsed = self.state.pace.lapsed.get(name)
        return lapsed is not None and self._name(name, lapsed) == task and self._takes(lapsed)

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _scoring(self) -> bool:
        """Whether the last round, of scoring, is open."""
        current = self.state.open_round()
        return current is not None and current.purpose == "evaluate"

    def _buffer(self) -> Round:
        """The newest buffer; there is one while a task is in flight."""
        current = self.state.open_round()
        assert current is not None
        return current

    def _staleness(self, task: Task) -> int:
        """How many versions an update of this task is behind, if it comes now."""
        return self._buffer().number - 1 - task.base_version

    def _takes(self, task: Task) -> bool:
        """Whether the run goes on and an update of this task would be taken."""
        current = self.state.open_round()
        goes_on = self.state.finished is None and current is not None and not current.sealed
        return goes_on and self._staleness(task) <= self.spec.max_staleness

    def _name(self, name: str, task: Task) -> str:
        return task_id(self.run_id, task.round, task.attempt, name)

    def _in_flight(self, name: str, identifier: str) -> bool:
        task = self.state.pace.tasks.get(name)
        return task is not None and self._name(name, task) == identifier

    def _issue(self, name: str, task: Task) -> IssueTask:
        return IssueTask(
            participant=name,
            task_id=self._name(name, task),
            purpose="train",
            round=task.round,
            attempt=task.attempt,
            base_version=task.base_version,
            seed=attempt_seed(self.spec.seed, task.attempt),
            evaluate=task.evaluate,
            closes_s=task.closes_s,
        )

    def _give(self, decision: Decision, name: str, base: int, attempt: int, evaluate: bool, now_s: float) -> None:
        closes_s = now_s + self.spec.deadline_s
        self._record(
            decision,
            TaskIssued(participant=name, base_version=base, attempt=attempt, evaluate=evaluate, closes_s=closes_s),
        )
        decision.effects.append(self._issue(name, self.state.pace.tasks[name]))
        decision.effects.append(WakeAt(at_s=closes_s))

    def _end(self, decision: Decision, name: str, outcome: Excuse, code: str, message: str, *, again: bool) -> None:
        fact = TaskEnded(
            round=self._buffer().number, participant=name, outcome=outcome, code=code, message=message, again=again
        )
        self._record(decision, fact)

    def _drop(self, decision: Decision, name: str, code: str, message: str, reason: str) -> None:
        """Call a participant's task off, trained or not; it may get another one."""
        pace = self.state.pace
        task = pace.tasks.get(name) or pace.trained[name]
        self._end(decision, name, "late", code, message, again=True)
        decision.effects.append(CancelTask(participant=name, task_id=self._name(name, task), reason=reason))

    def _come_back(self, name: str, now_s: float) -> Decision:
        """A participant takes tasks (again)."""
        self._available.add(name)
        self.away.pop(name, None)
        decision = self.recall(name, now_s)
        self._advance(decision, now_s)
        return decision

    def _step_away(self, name: str, until_s: float, reason: str, now_s: float, *, working: bool) -> Decision:
        """A connected participant takes no tasks; the one in flight is free unless it goes on ``working``."""
        decision = Decision()
        self._available.add(name)
        self.away[name] = until_s
        if not working and name in self.state.pace.tasks and self.state.finished is None:
            self._end(decision, name, "away", reason, away_text(name, reason), again=True)
            self._advance(decision, now_s)
        return decision

    def _hand_out(self, decision: Decision, buffer: Round, now_s: float, *, evaluate: bool) -> None:
        """Whoever is idle begins from the newest version."""
        for name in self._idle(buffer):
            last = self.state.pace.last.get(name)
            attempt = last.attempt + 1 if last is not None and last.base_version == self.state.version else 1
            self._give(decision, name, self.state.version, attempt, evaluate, now_s)

    def _wake(self, decision: Decision) -> None:
        """Be called at the next deadline."""
        if self.state.finished is not None:
            return
        deadlines = [task.closes_s for task in self.state.pace.tasks.values()]
        deadlines += [item.closes_s for item in self.state.open_rounds() if not item.sealed]
        if deadlines:
            decision.effects.append(WakeAt(at_s=min(deadlines)))

    def _scored_along(self) -> bool:
        """Whether the newest version is one that participants score as they begin to train from it."""
        every = self.spec.evaluate_every
        return every > 0 and self.state.version % every == 0

    def _idle(self, buffer: Round) -> list[str]:
        """Who is ready and has nothing to do, sorted."""
        pace = self.state.pace
        return sorted(self._ready() - pace.tasks.keys() - pace.trained.keys() - pace.failed - set(buffer.done()))

    def _open_buffer(self, decision: Decision, now_s: float) -> None:
        number = len(self.state.rounds) + 1
        fact = RoundOpened(
            round=number,
            purpose="train",
            base_version=number - 1,
            cohort=(),
            evaluate=False,
            opened_s=now_s,
            closes_s=now_s + self.spec.deadline_s,
        )
        self._record(decision, fact)
        decision.effects.append(WakeAt(at_s=fact.closes_s))
