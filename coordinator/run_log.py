"""One run's memory: its machine out of the store, and every decision into it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Protocol

from coordinator.merging.planning import fewest_updates, plan_recipe
from coordinator.rounds import (
    AsyncRounds,
    Decision,
    Line,
    RunState,
    SecureBuffers,
    SecureRounds,
    SynchronousRounds,
    from_row,
    to_row,
)
from coordinator.rounds.facts import EvaluationClosed, VersionCommitted
from coordinator.store import Checkpoint, Store, StoredResult, StoredStatement, Transition
from privacy.secure_aggregation.coordinator import Record
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import MemberList
from privacy.secure_aggregation.statements import Signed
from wire import RefusedError, RunPlan


class Federation(Protocol):
    """What the hub needs to know of the federation's members, and to sign with (``coordinator.membership``)."""

    @property
    def members(self) -> MemberList:
        """The member list as it is now."""

    @property
    def signing_key(self) -> SigningKey:
        """The coordinator's own."""


@dataclasses.dataclass
class _Waiting:
    """What is to be stored together; ``keep`` has the attempt whose statements are still needed, once a round ended."""

    rows: list[Transition] = dataclasses.field(default_factory=list)
    statements: list[StoredStatement] = dataclasses.field(default_factory=list)
    results: list[StoredResult] = dataclasses.field(default_factory=list)
    keep: list[bytes] = dataclasses.field(default_factory=list)


class RunLog:
    """What the store holds of one run.

    Args:
        store: Where the run and its log are.
        plan: The run's plan.
        federation: Its members, and the coordinator's signing key.
        step_s: Seconds that a quick answer in a secure sum is waited for.

    Attributes:
        versions: All committed versions, in order.
        digests: Theirs.
        earlier: Digests of the versions of other runs.
    """

    def __init__(self, store: Store, plan: RunPlan, federation: Federation, *, step_s: float) -> None:
        self.versions: list[Checkpoint] = []
        self.digests: set[bytes] = set()
        self.earlier: set[bytes] = set()
        self._store = store
        self._plan = plan
        self._federation = federation
        self._step_s = step_s
        self._sequence = 0
        self._held = False
        self._waiting = _Waiting()

    @property
    def last(self) -> int:
        """The number of the last row, stored or gathered."""
        return self._sequence

    def replay(self) -> SynchronousRounds:
        """The run's machine as the log leaves it.

        Raises:
            ValueError: the run has no initial model in the store, or its log is damaged.
        """
        state, run_id = RunState(), self._plan.run_id
        self.versions = self._store.checkpoints(run_id)
        self.digests = {item.digest for item in self.versions}
        others = [run.run_id for run in self._store.runs() if run.run_id != run_id]
        self.earlier = {item.digest for other in others for item in self._store.checkpoints(other)}
        if not self.versions:
            raise ValueError(f"run {run_id} has no initial model in the store")
        state.digest, state.size = self.versions[0].digest.hex(), self.versions[0].size
        self._sequence = 0
        for row in self._store.transitions(run_id):
            state.apply(from_row(row.kind, row.body))
            self._sequence = row.sequence
        if self._plan.secure is None:
            rounds = AsyncRounds if self._plan.rounds.asynchronous else SynchronousRounds
            return rounds(run_id, self._plan.rounds, state)
        return self._secure(state)

    def _secure(self, state: RunState) -> SecureRounds:
        federation = self._federation
        rounds = SecureBuffers if self._plan.rounds.asynchronous else SecureRounds
        machine = rounds(
            self._plan,
            state,
            members=federation.members,
            key=federation.signing_key,
            step_s=self._step_s,
            fewest_groups=fewest_updates(plan_recipe(self._plan)),
        )
        for name, (body, signature) in self._store.prekeys().items():
            with contextlib.suppress(RefusedError):  # of a member that the root has removed since
                machine.offer(name, Signed(body, signature))
        current = state.open_round()
        context = bytes.fromhex(current.attempts[-1].opened.context) if current and current.attempts else b""
        records = [
            Record(item.sender, Signed(item.body, item.signature), item.at_s)
            for item in self._store.statements(self._plan.run_id, context)
        ]
        lines = [
            Line(index=item.index, round=item.round, statement=Signed(item.body, item.signature))
            for item in self._store.results()
        ]
        machine.restore(records, lines)
        return machine

    def append(self, decision: Decision, checkpoint: Checkpoint | None, now_s: float) -> None:
        """Make a decision durable, with the version that it commits; nothing happens for one that decides nothing.

        Inside :meth:`held` it waits for :meth:`flush`, and commits no version.

        Raises:
            ResourceError: the disk is full. Nothing of the decision is stored then.
        """
        rows = [to_row(fact) for fact in decision.facts]
        if not (rows or decision.records or decision.lines):
            return
        for kind, body in rows:
            self._sequence += 1
            self._waiting.rows.append(Transition(sequence=self._sequence, kind=kind, body=body, at_s=now_s))
        self._waiting.statements += [
            StoredStatement(
                context=context,
                sender=record.sender,
                body=record.statement.body,
                signature=record.statement.signature,
                at_s=record.at_s,
            )
            for context, record in decision.records
        ]
        self._waiting.results += [
            StoredResult(
                index=line.index,
                run_id=self._plan.run_id,
                round=line.round,
                body=line.statement.body,
                signature=line.statement.signature,
            )
            for line in decision.lines
        ]
        if any(isinstance(fact, VersionCommitted | EvaluationClosed) for fact in decision.facts):
            self._waiting.keep = [context for context, _ in decision.records][-1:] or [b""]
        if not self._held:
            self.flush(checkpoint)
        elif checkpoint is not None:
            raise ValueError("a version is committed by itself")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block decisions are gathered for one transaction, which :meth:`flush` writes behind it."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def flush(self, checkpoint: Checkpoint | None = None) -> None:
        """Store what was gathered, all or nothing.

        Raises:
            ResourceError: the disk is full.
        """
        waiting, self._waiting = self._waiting, _Waiting()
        if not (waiting.rows or waiting.statements or waiting.results):
            return
        run_id = self._plan.run_id
        self._store.append(run_id, waiting.rows, checkpoint, statements=waiting.statements, results=waiting.results)
        if checkpoint is not None:
            self.versions.append(checkpoint)
            self.digests.add(checkpoint.digest)
        for context in waiting.keep:
            self._store.forget_statements(run_id, keep=context)
