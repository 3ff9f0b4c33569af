"""A whole secure sum in memory: real participants, a real coordinator, a network that a test can cut, bend or replay."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.secure_aggregation.context import RoundContext, Seat
from privacy.secure_aggregation.coordinator import Attempt, Decision, Failed, Record, Tell, Unmask
from privacy.secure_aggregation.encoding import Encoding
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.masking import expand_mask, masked_upload, streams
from privacy.secure_aggregation.members import FederationRoot, MemberList, Role
from privacy.secure_aggregation.memory import Assignment, Deliver, Expand, Forget, Mask, Note, Step
from privacy.secure_aggregation.participant import Participant
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.prekeys import offered
from privacy.secure_aggregation.statements import PrekeyBatch, Result, Signed, kind_of, positions_bytes
from privacy.secure_aggregation.streams import MAIN, TAIL, add_streams
from privacy.secure_aggregation.tail import TailSum, decode_tail, encode_tail, split_upload

NOW = 1_000_000.0
PLAN_HASH = b"p" * 32
BASE = b"m" * 32
METRICS = ("loss",)


def fixed_random(label: str) -> Callable[[int], bytes]:
    """Bytes that look random and are the same every time, for golden transcripts."""
    state = {"count": 0}

    def draw(length: int) -> bytes:
        state["count"] += 1
        return hashlib.shake_256(f"{label}/{state['count']}".encode()).digest(length)

    return draw


class Store:
    """What a participant's journal does with notes."""

    def __init__(self) -> None:
        self.notes: list[Note] = []

    def change(self, changes: Iterable[Note | Forget]) -> None:
        for change in changes:
            if isinstance(change, Note):
                self.notes.append(change)
                continue
            self.notes = [
                note
                for note in self.notes
                if not (
                    note.context == change.context
                    and (not change.kind or note.kind == change.kind)
                    and (not change.body or note.body == change.body)
                )
            ]


class Site:
    """One participant with its disk."""

    def __init__(self, world: World, name: str, key: SigningKey) -> None:
        self.world = world
        self.name = name
        self.key = key
        self.store = Store()
        self.machine = self._machine()
        self.masks: dict[bytes, Any] = {}
        self.files: dict[bytes, bytes] = {}
        self.refusals: list[str] = []
        self.task: Assignment | None = None

    def _machine(self) -> Participant:
        random = self.world.random(self.name)
        return Participant(self.name, self.key, self.world.members, self.world.policy, random)

    def restart(self) -> None:
        """kill -9: what isn't in the notes is gone."""
        self.machine = self._machine()
        self.masks = {}
        self.perform(self.machine.restore(list(self.store.notes)))
        if self.task is not None:
            self.perform(self.machine.trained(self.task))

    def train(self, task: Assignment) -> None:
        self.task = task
        self.perform(self.machine.trained(task))

    def perform(self, step: Step) -> None:
        self.store.change(step.changes)
        if step.refusal is not None:
            self.refusals.append(step.refusal.code)
        for answer in step.answers:
            self.world.send(self.name, answer)
        for work in step.work:
            self.world.later(lambda work=work: self._do(work))

    def _do(self, work: Any) -> None:
        if self.name in self.world.dead:
            return
        if isinstance(work, Expand):
            self.masks[work.context.hash] = expand_mask(work.context, work.terms)
            self.perform(self.machine.expanded(work.context.hash))
        elif isinstance(work, Mask):
            update, examples, metrics = self.world.inputs[self.name]
            encoding = work.context.encoding
            encoder = encoding.encoder(update, examples, self.name.encode().ljust(32, b"d")) if len(update) else None
            tail = encode_tail(work.context.layout, encoding.weight(examples), metrics)
            main, end = masked_upload(work.context, encoder, tail, self.masks.pop(work.context.hash), work.terms)
            content = bytes(main) + end
            digest = hashlib.sha256(content).digest()
            self.files[digest] = content
            self.perform(self.machine.masked(work.context.hash, digest))
        elif isinstance(work, Deliver):
            self.world.uploads[work.digest] = self.files[work.digest]
            self.perform(self.machine.delivered(work.context.hash))


class World:
    """A federation in memory.

    ``inputs`` holds (update, examples, metrics) of each participant. ``filter_up`` and ``filter_down`` may change, drop
    (None) or multiply messages: they get (name, statement) and return a list of statements.
    """

    def __init__(
        self, count: int, *, dimension: int = 7, policy: SitePolicy | None = None, golden: bool = False, **changes: Any
    ) -> None:
        self.golden = golden
        self.policy = policy or SitePolicy()
        self.dimension = dimension
        self.changes = changes
        self.names = [f"site-{index:03}" for index in range(count)]
        root = FederationRoot("clinics", SigningKey.generate(self.random("root")))
        self.root = root
        self.key = SigningKey.generate(self.random("coordinator"))
        keys = {name: SigningKey.generate(self.random(f"key/{name}")) for name in self.names}
        members = root.empty()
        members = members.extend([root.add(members, Role.COORDINATOR, "coordinator", self.key.public)])
        for name in self.names:
            members = members.extend([root.add(members, Role.PARTICIPANT, name, keys[name].public)])
        self.members: MemberList = members
        generator = np.random.default_rng(count * 1000 + dimension)
        self.inputs: dict[str, tuple[NDArray[np.float32], int, dict[str, float]]] = {
            name: (
                generator.normal(0, 0.1, dimension).astype(np.float32),
                int(generator.integers(1, 100)),
                {"loss": float(generator.uniform(0, 3))},
            )
            for name in self.names
        }
        self.sites = {name: Site(self, name, keys[name]) for name in self.names}
        self.dead: set[str] = set()
        self.uploads: dict[bytes, bytes] = {}
        self.records: list[Record] = []
        self.outcome: Unmask | Failed | None = None
        self.refused: list[tuple[str, str]] = []
        self.now = NOW
        self.filter_up: Callable[[str, Signed], list[Signed]] = lambda name, statement: [statement]
        self.filter_down: Callable[[str, Signed], list[Signed]] = lambda name, statement: [statement]
        self.queue: list[Callable[[], None]] = []
        self.sent: list[tuple[str, str, Signed]] = []
        self.prekeys: dict[str, list[Seat]] = {}
        self.attempt: Attempt | None = None
        for site in self.sites.values():
            site.perform(site.machine.offer(self.now))
        self.settle()

    def random(self, label: str) -> Any:
        import os

        return fixed_random(label) if self.golden else os.urandom

    # ---- network ----------------------------------------------------------------------------------------------------

    def later(self, what: Callable[[], None]) -> None:
        self.queue.append(what)

    def settle(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def send(self, name: str, statement: Signed) -> None:
        """Up."""
        for item in self.filter_up(name, statement):
            self.sent.append(("up", name, item))
            self.later(lambda item=item: self._arrive(name, item))

    def _arrive(self, name: str, statement: Signed) -> None:
        if name in self.dead:
            return
        if kind_of(statement.body) == "prekeys":
            batch = PrekeyBatch.parse(statement.body)
            self.prekeys[name] = list(offered(batch, name))
            return
        if self.attempt is None:
            return
        try:
            self.perform(self.attempt.receive(name, statement, self.now))
        except Exception as error:
            self.refused.append((name, getattr(error, "code", repr(error))))

    def perform(self, decision: Decision) -> None:
        self.records += decision.records
        for effect in decision.effects:
            if isinstance(effect, Tell):
                self.tell(effect.name, effect.statement)
            elif isinstance(effect, Unmask | Failed):
                self.outcome = effect

    def tell(self, name: str, statement: Signed) -> None:
        """Down."""
        for item in self.filter_down(name, statement):
            self.sent.append(("down", name, item))
            self.later(lambda item=item: self._hear(name, item))

    def _hear(self, name: str, statement: Signed) -> None:
        if name in self.dead:
            return
        site = self.sites[name]
        if kind_of(statement.body) == "plan":
            site.perform(site.machine.plan(statement, self.assignment(), self.now))
        else:
            site.perform(site.machine.receive(statement, self.now))

    # ---- rounds -----------------------------------------------------------------------------------------------------

    def assignment(self, **changes: Any) -> Assignment:
        values: dict[str, Any] = {
            "run_id": "run-1",
            "plan_hash": PLAN_HASH,
            "purpose": "train" if self.dimension else "evaluate",
            "round": 1,
            "task_attempt": 1,
            "base_digest": BASE,
            "dimension": self.dimension,
        }
        values.update({key: value for key, value in self.changes.items() if key in values})
        return Assignment(**{**values, **changes})

    def context(self, names: list[str] | None = None, **changes: Any) -> RoundContext:
        roster = tuple(self.prekeys[name].pop(0) for name in sorted(names or self.names))
        task = self.assignment()
        values: dict[str, Any] = {
            "federation": "clinics",
            "members_count": self.members.count,
            "members_head": self.members.head,
            "run_id": task.run_id,
            "plan_hash": PLAN_HASH,
            "purpose": task.purpose,
            "round": task.round,
            "attempt": 1,
            "task_attempt": task.task_attempt,
            "base_version": 0,
            "base_digest": BASE,
            "dimension": self.dimension,
            "encoding": ENCODING,
            "metrics": METRICS,
            "group_size": 0,
            "corrupt_percent": 20,
            "min_cohort": 3,
            "roster_change": 2,
            "freeze": True,
            "expires_s": int(self.now) + 3_600,
            "roster": roster,
        }
        values.update(self.changes)
        values.update(changes)
        return RoundContext(**values)

    def begin(self, context: RoundContext | None = None) -> Attempt:
        self.records, self.outcome = [], None
        self.attempt = Attempt(context or self.context(), self.members, self.key, step_s=30.0, deadline_s=600.0)
        self.perform(self.attempt.begin(set(self.names) - self.dead, self.now))
        return self.attempt

    def train_all(self, but: Iterable[str] = ()) -> None:
        for name in self.names:
            if name not in self.dead and name not in but:
                self.sites[name].train(self.assignment())

    def run(self) -> None:
        """A whole attempt in which everyone that is alive takes part."""
        self.begin()
        self.settle()
        self.train_all()
        self.settle()

    def kill(self, name: str) -> None:
        self.dead.add(name)
        if self.attempt is not None:
            self.perform(self.attempt.gone(name, self.now))

    def revive(self, name: str) -> None:
        self.dead.discard(name)
        self.sites[name].restart()
        if self.attempt is not None:
            self.perform(self.attempt.back(name, self.now))

    def restart_coordinator(self) -> None:
        """kill -9 of the coordinator: the attempt comes back from its records."""
        assert self.attempt is not None
        context = self.attempt.context
        self.attempt = Attempt(context, self.members, self.key, step_s=30.0, deadline_s=600.0)
        self.attempt.replay(self.records)
        self.queue.clear()
        for name in self.names:
            if name not in self.dead:
                self.perform(self.attempt.back(name, self.now))
        self.perform(self.attempt.resume(self.now))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        assert self.attempt is not None
        self.perform(self.attempt.tick(self.now))
        self.settle()

    def finish(self, index: int = 0) -> Result:
        """Tell everyone the result, as the hub does once the sum is committed."""
        assert self.attempt is not None
        zeros = bytes(32)
        survivors = positions_bytes(self.attempt.survivors())
        result = Result(index, zeros, self.attempt.context.hash, survivors, zeros, zeros, zeros, zeros)
        signed = result.signed(self.key)
        self.attempt.end()
        for name in self.names:
            self.tell(name, signed)
        self.settle()
        return result

    # ---- the sum ----------------------------------------------------------------------------------------------------

    def sums(self) -> list[tuple[tuple[int, ...], NDArray[Any], NDArray[np.uint64]]]:
        """Unmasked sums of the outcome, a group a line."""
        assert isinstance(self.outcome, Unmask), self.outcome
        context = self.outcome.context
        found = []
        for group in self.outcome.groups:
            main = np.zeros(context.dimension, context.encoding.dtype)
            tail = np.zeros(context.layout.size, "<u8")
            for digest in group.digests:
                packed, part = split_upload(self.uploads[digest], context.layout)
                if context.dimension:
                    main += context.encoding.unpack(packed, context.dimension)
                tail += part
            add_streams(main, streams(group.terms, MAIN))
            add_streams(tail, streams(group.terms, TAIL))
            found.append((group.members, main, tail))
        return found

    def expected(self, members: Iterable[int]) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        """The sum that these positions should give, computed in the clear."""
        assert self.attempt is not None
        context = self.attempt.context
        main = np.zeros(context.dimension, context.encoding.dtype)
        tail = np.zeros(context.layout.size, "<u8")
        for position in members:
            name = context.names[position]
            update, examples, metrics = self.inputs[name]
            if len(update):
                main += context.encoding.encode(update, examples, name.encode().ljust(32, b"d"))
            tail += encode_tail(context.layout, context.encoding.weight(examples), metrics)
        return main, tail

    def assert_exact(self, survivors: Iterable[str]) -> list[TailSum]:
        """The outcome is the exact sum over these participants."""
        assert self.attempt is not None
        context = self.attempt.context
        found = []
        seen: set[str] = set()
        mask = (1 << context.encoding.wire_bits) - 1
        for members, main, tail in self.sums():
            right, right_tail = self.expected(members)
            assert (main.astype(np.int64) & mask).tolist() == (right.astype(np.int64) & mask).tolist()
            assert tail.tolist() == right_tail.tolist()
            found.append(decode_tail(context.layout, tail, participants=len(members)))
            seen.update(context.names[item] for item in members)
        assert seen == set(survivors)
        return found


ENCODING = Encoding(ring_bits=32, wire_bits=32, value_bits=20, clip_norm=10.0, clip_value=1.0, weight_cap=50)
