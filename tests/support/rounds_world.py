"""Whole runs of secure sums in memory: the coordinator's round machine above the participants of ``secure_world``."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from typing import Any

from secure_world import STEP_S, World

from coordinator.rounds import (
    BeginMerge,
    BeginUnmask,
    CancelTask,
    Decision,
    Effect,
    GroupRevealed,
    IssueTask,
    Line,
    Revealed,
    RunState,
    SecureBuffers,
    SecureRounds,
    SendReceipt,
    SendStatement,
    WakeAt,
    from_row,
    to_row,
)
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.coordinator import Record, Unmask
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.memory import Assignment, Step
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.statements import Signed, kind_of
from privacy.secure_aggregation.summing import joined, plausible, sums_hash
from privacy.secure_aggregation.tail import decode_tail
from wire import AggregationSpec, InitialModel, RefusedError, RunPlan, SecureSpec

BASE_DIGEST = b"m" * 32


def make_plan(dimension: int, rounds: dict[str, Any], secure: dict[str, Any]) -> RunPlan:
    """Of a run with secure sums."""
    table = {"count": 1, "min_updates": 3, "deadline_s": 600.0, "evaluate_every": 0, **rounds}
    return RunPlan.model_validate(
        {
            "federation": "clinics",
            "run_id": "run-1",
            "learning": {},
            "rounds": table,
            "aggregation": AggregationSpec(mode="secure"),
            "secure": SecureSpec.model_validate({"wire_bits": 32, "weight_cap": 50, "clip_value": 1.0, **secure}),
            "metrics": ("loss",),
            "initial": InitialModel(
                digest=BASE_DIGEST.hex(), size=4 * dimension + 64, dimension=dimension, manifest_hash="cd" * 32
            ),
        }
    )


class RoundsWorld(World):
    """A run. Participants train at once unless they are ``slow``; sums and merges come back at once unless held.

    Everything that a hub would store is in ``log`` (rows of facts), ``stored`` (statements by context) and ``lines``.
    """

    def __init__(
        self,
        count: int,
        *,
        dimension: int = 7,
        policy: SitePolicy | None = None,
        secure: dict[str, Any] | None = None,
        rounds: dict[str, Any] | None = None,
    ) -> None:
        self.plan = make_plan(dimension, {"min_participants": count, **(rounds or {})}, secure or {})
        self.machine: SecureRounds | None = None
        self.log: list[tuple[str, str]] = []
        self.stored: dict[bytes, list[Record]] = {}
        self.lines: list[Line] = []
        self.batches: dict[str, Signed] = {}
        self.tasks: dict[str, IssueTask] = {}
        self.trained: list[str] = []
        self.slow: set[str] = set()
        self.hold_unmask = False
        self.hold_merge = False
        self.effects: list[Effect] = []
        self.orders: list[BeginUnmask] = []
        self.orders_merged: list[BeginMerge] = []
        self.reveals: list[tuple[BeginUnmask, Revealed]] = []
        self.check_replay = False
        self.here: set[str] = set()
        super().__init__(count, dimension=dimension, policy=policy)
        self.machine = self._rounds()

    def _rounds(self, state: RunState | None = None) -> SecureRounds:
        fresh = RunState(digest=self.plan.initial.digest, size=self.plan.initial.size)
        machine = SecureBuffers if self.plan.rounds.asynchronous else SecureRounds
        return machine(self.plan, state or fresh, members=self.members, key=self.key, step_s=STEP_S)

    @property
    def rounds(self) -> SecureRounds:
        assert self.machine is not None
        return self.machine

    @property
    def state(self) -> RunState:
        return self.rounds.state

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.log]

    def facts(self, kind: str) -> list[Any]:
        return [from_row(name, body) for name, body in self.log if name == kind]

    # ---- the hub's part ---------------------------------------------------------------------------------------------

    def join(self, *names: str) -> None:
        """These participants connect; their prekeys are here."""
        for name in names or self.names:
            self.dead.discard(name)
            self.here.add(name)
            self.rounds.offer(name, self.batches[name])
            self.carry(self.rounds.available(name, self.now))
        self.settle()

    def carry(self, decision: Decision) -> None:
        """Store, compare with a replay, carry out."""
        self.log += [to_row(fact) for fact in decision.facts]
        for context, record in decision.records:
            self.stored.setdefault(context, []).append(record)
        self.lines += decision.lines
        self.attempt = self.rounds.attempt
        if self.attempt is not None:
            self.contexts[self.attempt.context.hash] = self.attempt.context
        if self.check_replay:
            self.assert_replayed()
        if self._crashed():
            return
        self.effects += decision.effects
        for effect in decision.effects:
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, SendStatement):
            self.tell(effect.participant, effect.statement)
        elif isinstance(effect, IssueTask):
            self.later(lambda: self._task(effect))
        elif isinstance(effect, BeginUnmask):
            self.orders.append(effect)
            if not self.hold_unmask:
                self.later(lambda: self.unmask(effect))
        elif isinstance(effect, BeginMerge) and not self.hold_merge:
            self.later(lambda: self.merge(effect))

    def unmask(self, order: BeginUnmask) -> None:
        """What ``aggregation.reveal`` does, on arrays."""
        self.outcome = order.order
        assert isinstance(self.outcome, Unmask)
        try:
            revealed = self._revealed(order)
        except SecureAggregationError as error:
            self.carry(self.rounds.implausible(order, error, self.now))
            return
        self.reveals.append((order, revealed))
        self.carry(self.rounds.unmasked(order, revealed, self.now))

    def _revealed(self, order: BeginUnmask) -> Revealed:
        context, found = order.order.context, self.sums()
        groups, good = [], []
        for group, (positions, main, tail) in zip(order.order.groups, found, strict=True):
            members = tuple(context.names[item] for item in positions)
            try:
                said = plausible(context, group, main, tail)
            except SecureAggregationError as error:
                if not context.group_size:
                    raise
                groups.append(GroupRevealed(members=members, weight=0, digest="", reason=error.code))
                continue
            groups.append(GroupRevealed(members=members, weight=said.weight, digest=_mean(context, main, said.weight)))
            good.append((positions, main, tail))
        members = sum(len(positions) for positions, _, _ in good)
        if members < context.floor:
            raise SecureAggregationError("tail-implausible", "too few groups are left")
        main, tail = joined([(main, tail) for _, main, tail in good])
        said = decode_tail(context.layout, tail, participants=members, weight_cap=context.encoding.weight_cap)
        return Revealed(
            digest="" if context.group_size else _mean(context, main, said.weight),
            weight=said.weight,
            metrics=said.means,
            sum_hash=sums_hash(context, [(main, tail) for _, main, tail in found]).hex(),
            record=hashlib.sha256(repr(order.record).encode()).hexdigest(),
            groups=tuple(groups) if context.group_size else (),
        )

    def merge(self, order: BeginMerge) -> None:
        self.orders_merged.append(order)
        self.carry(self.rounds.committed(order, _version(order.round), self.plan.initial.size, self.now))

    def restored(self) -> SecureRounds:
        """The machine as a hub would make it from what is stored."""
        state = RunState(digest=self.plan.initial.digest, size=self.plan.initial.size)
        for kind, body in self.log:
            state.apply(from_row(kind, body))
        machine = self._rounds(state)
        for name, batch in self.batches.items():
            if self.members.participant(name) is not None:
                machine.offer(name, batch)
        current = state.open_round()
        context = bytes.fromhex(current.attempts[-1].opened.context) if current and current.attempts else b""
        machine.restore(self.stored.get(context, []), self.lines)
        return machine

    def assert_replayed(self) -> None:
        """Facts and statements give the machine back, whenever it was killed."""
        other, machine = self.restored(), self.rounds
        assert other.state == machine.state
        assert (other.results.count, other.results.head) == (machine.results.count, machine.results.head)
        ours, theirs = machine.attempt, other.attempt
        assert (ours is None) == (theirs is None), (self.kinds()[-3:], ours, theirs)
        if ours is None or theirs is None:
            return
        assert (ours.context, ours.survivors(), ours.digests()) == (
            theirs.context,
            theirs.survivors(),
            theirs.digests(),
        )
        if ours.phase == "unmasking":
            # That it has begun is no statement: ``resume`` works it out again.
            assert theirs.phase == "releasing"
            return
        assert theirs.phase == ours.phase
        positions = range(len(ours.context.roster))
        assert [_told(theirs.owed(item)) for item in positions] == [_told(ours.owed(item)) for item in positions]

    def _crashed(self) -> bool:
        self.points += 1
        if self.fuse is None:
            return False
        self.fuse -= 1
        if self.fuse >= 0:
            return False
        self.fuse = None
        self.restart_coordinator()
        return True

    def restart_coordinator(self) -> None:
        """kill -9 of the coordinator; what was on its way is lost, and everyone that is there connects again."""
        self.machine = self.restored()
        self.queue = [item for item in self.queue if item[0] is not None]
        self.carry(self.rounds.resume(self.now))
        for name in sorted(self.here - self.dead):
            self.carry(self.rounds.available(name, self.now))

    # ---- network ----------------------------------------------------------------------------------------------------

    def arrive(self, name: str, statement: Signed) -> None:
        if name in self.dead:
            return
        if statement.body[:32].find(b"prekeys") >= 0 and kind_of(statement.body) == "prekeys":
            self.batches[name] = statement
            if self.machine is not None:
                self.machine.offer(name, statement)
                self.carry(self.machine.available(name, self.now))
            return
        try:
            decision = self.rounds.said(name, statement, self.now)
        except RefusedError as error:
            self.refused.append((name, error.code))
            return
        self.carry(decision)

    def hear(self, name: str, statement: Signed) -> Step:
        if kind_of(statement.body) == "plan" and name not in self.tasks:
            return Step()
        self.task = assigned(self.tasks[name], self.plan, self.state) if name in self.tasks else {}
        step = super().hear(name, statement)
        site = self.sites[name]
        if name not in self.dead and site.machine.stock.low(self.now):
            site.perform(site.machine.offer(self.now))
        return step

    def _task(self, issued: IssueTask) -> None:
        name = issued.participant
        if name in self.dead:
            return
        self.tasks[name] = issued
        if name not in self.slow:
            self.train(name)

    def train(self, *names: str) -> None:
        """These have the result of the task that they were given last."""
        for name in names:
            issued = self.tasks[name]
            self.trained.append(issued.task_id)
            self.sites[name].train(Assignment(**assigned(issued, self.plan, self.state)))
            if isinstance(self.machine, SecureBuffers) and issued.purpose == "train":
                self.later(functools.partial(self._trained, name, issued.task_id))

    def _trained(self, name: str, task_id: str) -> None:
        assert isinstance(self.machine, SecureBuffers)
        if name not in self.dead:
            self.carry(self.machine.trained(name, task_id, self.now))

    def decline(self, name: str, code: str = "training") -> None:
        error = RefusedError(code, f"{name} can't train")
        self.carry(self.rounds.rejected(name, self.tasks[name].task_id, "declined", error, self.now))
        self.settle()

    # ---- people -----------------------------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """Its process dies, and its lease lapses."""
        self.dead.add(name)
        self.here.discard(name)
        self.carry(self.rounds.gone(name, "vanished", f"no sign of life of {name}", self.now))

    def revive(self, name: str) -> None:
        self.dead.discard(name)
        self.sites[name].restart()
        self.join(name)

    def reconnect(self, name: str) -> None:
        self.carry(self.rounds.available(name, self.now))

    def reborn(self, name: str) -> None:
        """A site was killed, and is back before anybody noticed."""
        self.sites[name].restart()
        self.reconnect(name)

    def remove(self, name: str) -> None:
        """The root removes a member; everybody pins the longer list."""
        self.members = self.members.extend([self.root.remove(self.members, name)])
        self.rounds.members = self.members
        for site in self.sites.values():
            site.machine.members = self.members

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.carry(self.rounds.tick(self.now))
        self.settle()

    # ---- what has been said -----------------------------------------------------------------------------------------

    def receipts(self) -> list[tuple[str, str, bool]]:
        return [
            (item.participant, item.task_id, item.accepted) for item in self.effects if isinstance(item, SendReceipt)
        ]

    def cancelled(self) -> list[tuple[str, str]]:
        return [(item.participant, item.reason) for item in self.effects if isinstance(item, CancelTask)]

    def wakes(self) -> list[float]:
        return [item.at_s for item in self.effects if isinstance(item, WakeAt)]

    def assert_revealed(self, survivors: Iterable[str], index: int = -1) -> None:
        """The sum of this round is the exact one over these."""
        order, revealed = self.reveals[index]
        keep, self.outcome, self.attempt = (self.outcome, self.attempt), order.order, _Attempt(order)  # type: ignore[assignment]
        found = self.assert_exact(survivors)
        self.outcome, self.attempt = keep
        assert revealed.weight == sum(item.weight for item in found)


def _mean(context: RoundContext, main: Any, weight: int) -> str:
    if not context.dimension:
        return ""
    return hashlib.sha256(context.encoding.decode(main, weight).tobytes()).hexdigest()


class _Attempt:
    """As much of an attempt as is left when it is over."""

    def __init__(self, order: BeginUnmask) -> None:
        self.context = order.order.context


def _version(number: int) -> str:
    """Digest of what the merge of a round gives."""
    return hashlib.sha256(f"version {number}".encode()).hexdigest()


def assigned(issued: IssueTask, plan: RunPlan, state: RunState) -> dict[str, Any]:
    paced = plan.rounds.asynchronous and issued.purpose == "train"
    trained_from = plan.initial.digest if not issued.base_version else _version(issued.base_version)
    return {
        "run_id": plan.run_id,
        "plan_hash": plan.hash,
        "purpose": issued.purpose,
        "round": issued.round,
        "task_attempt": issued.attempt,
        "base_digest": bytes.fromhex(trained_from if paced else state.digest),
        "asynchronous": paced,
        "dimension": plan.initial.dimension if issued.purpose == "train" else 0,
        "group_size": plan.secure.group_size if plan.secure is not None else 0,
    }


def _told(statements: list[Signed]) -> list[bytes]:
    return [item.body for item in statements]
