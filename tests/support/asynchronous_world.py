"""A run of asynchronous rounds in memory: the machine with its log, and sites that train, crash, come and go."""

from __future__ import annotations

import hashlib
from typing import Any

from coordinator.rounds import (
    AsyncRounds,
    BeginMerge,
    CancelTask,
    Contribution,
    Decision,
    Effect,
    IssueTask,
    RunState,
    SendReceipt,
    WakeAt,
    from_row,
    to_row,
)
from coordinator.rounds.facts import Excuse
from wire import RefusedError, RoundsSpec


def spec(**changes: object) -> RoundsSpec:
    values: dict[str, object] = {
        "mode": "asynchronous",
        "count": 3,
        "min_participants": 3,
        "min_updates": 1,
        "buffer_size": 2,
        "max_staleness": 20,
        "correction": "ca2fl",
        "deadline_s": 100.0,
        "evaluate_every": 0,
        "seed": 7,
    }
    return RoundsSpec.model_validate({**values, **changes})


def digest_of(task_id: str) -> str:
    """The update that training this task gives: always the same one, as in a site's journal."""
    return hashlib.sha256(task_id.encode()).hexdigest()


class AsynchronousWorld:
    """The machine, its driver and its sites. Merges wait until :meth:`merge` is called.

    Everything that a site is told is kept: ``tasks`` by participant (the last one), ``receipts``, ``cancelled``.
    """

    def __init__(self, **changes: object) -> None:
        self.spec = spec(**changes)
        self.machine = AsyncRounds("run", self.spec, RunState())
        self.log: list[tuple[str, str]] = []
        self.now = 0.0
        self.online: set[str] = set()
        self.away: dict[str, float] = {}
        self.tasks: dict[str, IssueTask] = {}
        self.issued: list[IssueTask] = []
        self.bases: dict[str, int] = {}  # by task, the version that was the newest when it was first issued
        self.receipts: list[SendReceipt] = []
        self.cancelled: list[CancelTask] = []
        self.orders: list[BeginMerge] = []
        self.waiting: list[BeginMerge] = []
        self.versions: list[BeginMerge] = []
        self.crash_after: int | None = None  # effects; None for never
        self.twice = False
        self.wakes: set[float] = set()

    # ---- the hub's part ---------------------------------------------------------------------------------------------

    def carry(self, decision: Decision) -> Decision:
        """Store, see that a replay gives the same, carry out."""
        self.log += [to_row(fact) for fact in decision.facts]
        assert self.replayed() == self.machine.state
        for effect in decision.effects:
            if self.crash_after is not None:
                self.crash_after -= 1
                if self.crash_after < 0:
                    self.crash_after = None
                    self.restart()
                    return decision
            self._carry_out(effect)
            if self.twice:
                self._carry_out(effect)
        return decision

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, IssueTask):
            self.bases.setdefault(effect.task_id, len(self.versions))
            self.issued.append(effect)
            if effect.participant in self.online:
                self.tasks[effect.participant] = effect
        elif isinstance(effect, SendReceipt):
            self.receipts.append(effect)
            self._drop(effect.participant, effect.task_id)
        elif isinstance(effect, CancelTask):
            self.cancelled.append(effect)
            self._drop(effect.participant, effect.task_id)
        elif isinstance(effect, WakeAt):
            self.wakes.add(effect.at_s)
        elif isinstance(effect, BeginMerge):
            self.orders.append(effect)
            if effect not in self.waiting:
                self.waiting.append(effect)

    def _drop(self, name: str, task_id: str) -> None:
        if name in self.tasks and self.tasks[name].task_id == task_id:
            del self.tasks[name]

    def replayed(self) -> RunState:
        state = RunState()
        for kind, body in self.log:
            state.apply(from_row(kind, body))
        return state

    def restart(self) -> None:
        """kill -9 of the coordinator: what isn't in the log is gone; who is online connects again."""
        self.machine = AsyncRounds("run", self.spec, self.replayed())
        self.waiting, self.wakes = [], set()
        self.carry(self.machine.resume(self.now))
        for name in sorted(self.online):
            self._connect(name)

    # ---- people and sites -------------------------------------------------------------------------------------------

    def join(self, *names: str) -> None:
        for name in names:
            self.online.add(name)
            self._connect(name)

    def _connect(self, name: str) -> None:
        """As the hub does with whoever is ready."""
        if name not in self.away:
            self.carry(self.machine.available(name, self.now))
            return
        self.carry(self.machine.absent(name, self.away[name], "hours", self.now, working=True))
        self.carry(self.machine.recall(name, self.now))

    def gone(self, name: str, outcome: Excuse = "vanished") -> None:
        self.online.discard(name)
        self.away.pop(name, None)
        self.tasks.pop(name, None)
        self.carry(self.machine.gone(name, outcome, f"{name} is {outcome}", self.now))

    def absent(self, name: str, seconds: float, *, working: bool = False) -> None:
        """A site says that it takes no tasks for a while."""
        self.online.add(name)
        self.away[name] = self.now + seconds
        if not working:
            self.tasks.pop(name, None)
        self.carry(self.machine.absent(name, self.away[name], "hours", self.now, working=working))

    def back(self, name: str) -> None:
        """It takes tasks again."""
        self.away.pop(name, None)
        self.join(name)

    def submit(self, name: str, task_id: str = "", *, digest: str = "", examples: int = 10) -> Decision:
        """A site hands in what it has trained for its last task, or for another one."""
        task = task_id or self.tasks[name].task_id
        update = Contribution(participant=name, digest=digest or digest_of(task), examples=examples)
        return self.carry(self.machine.submitted(name, task, update, {"loss": 1.0}, {}, self.now))

    def fail(self, name: str, outcome: Excuse = "refused", code: str = "update-not-finite") -> Decision:
        task = self.tasks.pop(name)
        error = RefusedError(code, f"{name} {outcome}")
        return self.carry(self.machine.rejected(name, task.task_id, outcome, error, self.now))

    def merge(self, **report: Any) -> BeginMerge:
        """The merge that was asked for first is on disk; the version's report is that of a plain mean."""
        order = self.waiting.pop(0)
        before = self.machine.state.version
        said = {
            "participants": [
                {"participant": item.participant, "verdict": "kept", "factor": 1.0} for item in order.contributions
            ]
        }
        decision = self.machine.committed(order, digest_of(f"version {order.round}"), 100, self.now, report or said)
        if self.machine.state.version > before:
            self.versions.append(order)
        self.carry(decision)
        return order

    def spoil(self, culprit: str = "") -> Decision:
        """The merge that was asked for first is refused, for the update of ``culprit`` or for all of them."""
        error = RefusedError("update-shape", f"the file of {culprit or 'everyone'} is damaged")
        return self.carry(self.machine.unmergeable(self.waiting.pop(0), error, culprit, self.now))

    def pass_time(self, seconds: float) -> Decision:
        self.now += seconds
        return self.carry(self.machine.tick(self.now))

    def sleep(self) -> None:
        """Until the machine wants to be woken: a driver has no other clock."""
        at_s = min(self.wakes)
        self.wakes.remove(at_s)
        self.pass_time(max(at_s - self.now, 0.0))

    # ---- what has been said -----------------------------------------------------------------------------------------

    def in_training(self) -> dict[str, int]:
        """Who trains, from which version."""
        return {name: task.base_version for name, task in sorted(self.machine.state.pace.tasks.items())}

    def said(self) -> list[tuple[str, bool, str]]:
        return [(item.participant, item.accepted, item.code) for item in self.receipts]

    def check(self) -> None:
        """What must hold at any moment."""
        merged = [(item.participant, item.digest) for order in self.versions for item in order.contributions]
        assert len(merged) == len(set(merged)), "an update was merged twice"
        bases = {digest_of(task): base for task, base in self.bases.items()}
        for number, order in enumerate(self.versions, 1):
            names = [item.participant for item in order.contributions]
            assert names == sorted(set(names)), "one place each"
            assert (order.round, order.base_version) == (number, number - 1)
            assert len(names) >= self.spec.min_updates
            assert 0 < order.step_scale <= 1
            for item in order.contributions:
                assert item.staleness == number - 1 - bases[item.digest]
                assert 0 <= item.staleness <= self.spec.max_staleness
        state = self.machine.state
        open_now = state.open_rounds()
        assert len(open_now) <= 2
        for name in state.pace.tasks:
            assert name not in self.away or self.tasks.get(name), "nobody who is away is given a new task"
            slots = [item.number for item in open_now if name in item.done()]
            assert not slots, "who is in a buffer waits for its version"
