"""Whole secure sums in memory: real participants, a real coordinator, a network that a test can cut, bend or replay."""

from __future__ import annotations

import hashlib
import os
import random as randomness
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.secure_aggregation.atoms import draw_atoms
from privacy.secure_aggregation.context import RoundContext, Seat
from privacy.secure_aggregation.coordinator import Attempt, Decision, Failed, Record, Tell, Unmask
from privacy.secure_aggregation.encoding import Encoding
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.masking import expand_mask, masked_upload, streams
from privacy.secure_aggregation.members import FederationRoot, MemberList, Role
from privacy.secure_aggregation.memory import Assignment, Deliver, Discard, Expand, Forget, Mask, Note, Step, Work
from privacy.secure_aggregation.participant import Participant
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.prekeys import check_offered, offered
from privacy.secure_aggregation.statements import (
    RELEASES,
    Accept,
    Plan,
    PrekeyBatch,
    Release,
    Result,
    Signed,
    Statement,
    Survived,
    Upload,
    kind_of,
    positions_bytes,
)
from privacy.secure_aggregation.streams import MAIN, TAIL, add_streams
from privacy.secure_aggregation.tail import TailSum, decode_tail, encode_tail, split_upload

NOW = 1_000_000.0
STEP_S = 30.0
DEADLINE_S = 600.0
PLAN_HASH = b"p" * 32
BASE = b"m" * 32
METRICS = ("loss",)
ZEROS = bytes(32)

ENCODING = Encoding(ring_bits=32, wire_bits=32, value_bits=20, clip_norm=10.0, clip_value=1.0, weight_cap=50)
SMALL = Encoding(ring_bits=16, wire_bits=16, value_bits=12, clip_norm=10.0, clip_value=1.0, weight_cap=50)


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

    def kinds(self, context: bytes = b"") -> list[str]:
        return [note.kind for note in self.notes if note.context == context]


class Site:
    """One participant with its disk.

    ``fuse`` counts down the points at which it can be killed: before the notes of a step are stored, before its answers
    are sent, before its work is done. At zero it is killed there and comes back at once.
    """

    def __init__(self, world: World, name: str, key: SigningKey) -> None:
        self.world = world
        self.name = name
        self.key = key
        self.store = Store()
        self.life = 0
        self.fuse: int | None = None
        self.points = 0
        self.machine = self._machine()
        self.masks: dict[bytes, Any] = {}
        self.files: dict[bytes, bytes] = {}
        self.refusals: list[str] = []
        self.task: Assignment | None = None

    def _machine(self) -> Participant:
        random = self.world.random(f"{self.name}/{self.life}")
        return Participant(self.name, self.key, self.world.members, self.world.policy, random)

    def restart(self) -> None:
        """kill -9: what isn't in the notes is gone."""
        self.life += 1
        self.machine = self._machine()
        self.masks = {}
        self.perform(self.machine.restore(list(self.store.notes)))
        if self.task is not None:
            self.perform(self.machine.trained(self.task))

    def train(self, task: Assignment) -> None:
        self.task = task
        self.perform(self.machine.trained(task))

    def _killed(self) -> bool:
        self.points += 1
        if self.fuse is None:
            return False
        self.fuse -= 1
        if self.fuse >= 0:
            return False
        self.fuse = None
        self.world.reborn(self.name)
        return True

    def perform(self, step: Step) -> None:
        if (step.changes or step.answers or step.work) and self._killed():
            return
        self.store.change(step.changes)
        if step.refusal is not None:
            self.refusals.append(step.refusal.code)
        if step.answers and self._killed():
            return
        for answer in step.answers:
            self.world.send(self.name, answer)
        if step.work and self._killed():
            return
        for work in step.work:
            self.world.at_site(self, lambda work=work: self._do(work))

    def _do(self, work: Work) -> None:
        if isinstance(work, Expand):
            self.world.expansions[work.context.hash].append(work.terms)
            self.masks[work.context.hash] = expand_mask(work.context, work.terms)
            self.perform(self.machine.expanded(work.context.hash))
        elif isinstance(work, Mask):
            digest = self._masked(work)
            self.perform(self.machine.masked(work.context.hash, digest))
        elif isinstance(work, Deliver):
            content = self.world.filter_blob(self.name, self.files[work.digest])
            if len(content) == upload_bytes(work.context) and hashlib.sha256(content).digest() == work.digest:
                self.world.uploads[work.digest] = content
                self.perform(self.machine.delivered(work.context.hash))
            else:
                self.world.refused.append((self.name, "upload-malformed"))
        else:
            assert isinstance(work, Discard)
            self.masks.pop(work.context, None)

    def _masked(self, work: Mask) -> bytes:
        update, examples, metrics = self.world.inputs[self.name]
        position = work.context.position(self.name)
        assert position is not None
        examples = work.context.counted(position, examples)
        encoding = work.context.encoding
        trains = work.context.dimension > 0
        encoder = encoding.encoder(update, examples, self.name.encode().ljust(32, b"d")) if trains else None
        tail = encode_tail(work.context.layout, encoding.weight(examples), metrics)
        main, end = masked_upload(work.context, encoder, tail, self.masks.pop(work.context.hash), work.terms)
        content = bytes(main) + end
        digest = hashlib.sha256(content).digest()
        self.files[digest] = content
        return digest


def upload_bytes(context: RoundContext) -> int:
    return context.encoding.upload_bytes(context.dimension, context.layout)


class World:
    """A federation in memory.

    ``inputs`` holds (update, examples, metrics) of each participant. ``filter_up`` and ``filter_down`` may change, drop
    or multiply messages: they get (name, statement) and return a list of statements. ``filter_blob`` may change an
    upload on its way. ``hold`` names kinds of the coordinator's statements that are kept back in ``held``. ``deaf``
    lets the coordinator's machine hear nothing: a test speaks in its place. ``fuse`` counts down the points at which
    the coordinator can be killed.
    """

    def __init__(
        self, count: int, *, dimension: int = 7, policy: SitePolicy | None = None, golden: bool = False, **changes: Any
    ) -> None:
        self.golden = golden
        self.policy = policy or SitePolicy()
        self.dimension = dimension
        self.changes = changes
        self.atoms: dict[str, int] = {}
        self.names = [f"site-{index:03}" for index in range(count)]
        self.root = FederationRoot("clinics", SigningKey.generate(self.random("root")))
        self.key = SigningKey.generate(self.random("coordinator"))
        keys = {name: SigningKey.generate(self.random(f"key/{name}")) for name in self.names}
        members = self.root.empty()
        members = members.extend([self.root.add(members, Role.COORDINATOR, "coordinator", self.key.public)])
        for name in self.names:
            members = members.extend([self.root.add(members, Role.PARTICIPANT, name, keys[name].public)])
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
        self.dead: set[str] = set()
        self.uploads: dict[bytes, bytes] = {}
        self.records: list[Record] = []
        self.outcome: Unmask | Failed | None = None
        self.refused: list[tuple[str, str]] = []
        self.now = NOW
        self.filter_up: Callable[[str, Signed], list[Signed]] = lambda name, statement: [statement]
        self.filter_down: Callable[[str, Signed], list[Signed]] = lambda name, statement: [statement]
        self.filter_blob: Callable[[str, bytes], bytes] = lambda name, content: content
        self.deaf = False
        self.hold: set[str] = set()
        self.held: list[tuple[str, Signed]] = []
        self.queue: list[tuple[Site | None, int, Callable[[], None]]] = []
        self.shuffle: randomness.Random | None = None
        self.sent: list[tuple[str, str, Signed]] = []
        self.expansions: dict[bytes, list[Any]] = defaultdict(list)
        self.prekeys: dict[str, list[Seat]] = {}
        self.attempt: Attempt | None = None
        self.contexts: dict[bytes, RoundContext] = {}
        self.task: dict[str, Any] = {}
        self.fuse: int | None = None
        self.points = 0
        self.sites = {name: Site(self, name, keys[name]) for name in self.names}
        for site in self.sites.values():
            site.perform(site.machine.offer(self.now))
        self.settle()

    def random(self, label: str) -> Callable[[int], bytes]:
        return fixed_random(label) if self.golden else os.urandom

    # ---- network ----------------------------------------------------------------------------------------------------

    def later(self, what: Callable[[], None]) -> None:
        """A message on its way."""
        self.queue.append((None, 0, what))

    def at_site(self, site: Site, what: Callable[[], None]) -> None:
        """Work that a site's process has before it; lost when the process dies."""
        self.queue.append((site, site.life, what))

    def settle(self) -> None:
        while self.queue:
            index = self.shuffle.randrange(len(self.queue)) if self.shuffle is not None else 0
            site, life, what = self.queue.pop(index)
            if site is None or (site.life == life and site.name not in self.dead):
                what()

    def send(self, name: str, statement: Signed) -> None:
        """Up."""
        for item in self.filter_up(name, statement):
            self.sent.append(("up", name, item))
            self.later(lambda item=item: self.arrive(name, item))

    def arrive(self, name: str, statement: Signed) -> None:
        if name in self.dead:
            return
        if statement.body[:32].find(b"prekeys") >= 0 and kind_of(statement.body) == "prekeys":
            batch = PrekeyBatch.parse(statement.body)
            self.prekeys[name] = check_offered(offered(batch, name), "clinics", self.sites[name].key.public)
            return
        if self.attempt is None or self.deaf:
            return
        try:
            decision = self.attempt.receive(name, statement, self.now)
        except SecureAggregationError as error:
            self.refused.append((name, error.code))
            return
        self.perform(decision)

    def _killed(self) -> bool:
        self.points += 1
        if self.fuse is None:
            return False
        self.fuse -= 1
        if self.fuse >= 0:
            return False
        self.fuse = None
        self.restart_coordinator()
        return True

    def perform(self, decision: Decision) -> None:
        for record in decision.records:
            if self.records and self._killed():
                return
            self.records.append(record)
        if decision.effects and self._killed():
            return
        for effect in decision.effects:
            if isinstance(effect, Tell):
                self.tell(effect.name, effect.statement)
            elif isinstance(effect, Unmask | Failed):
                self.outcome = effect

    def tell(self, name: str, statement: Signed) -> None:
        """Down."""
        if kind_of(statement.body) in self.hold:
            self.held.append((name, statement))
            return
        for item in self.filter_down(name, statement):
            self.sent.append(("down", name, item))
            self.later(lambda item=item: self.hear(name, item))

    def hear(self, name: str, statement: Signed) -> Step:
        """A statement reaches a participant's machine, whoever sent it."""
        if name in self.dead:
            return Step()
        site = self.sites[name]
        if _is_plan(statement):
            step = site.machine.plan(statement, self.assignment(), self.now)
        else:
            step = site.machine.receive(statement, self.now)
        site.perform(step)
        return step

    def whisper(self, name: str, statement: Statement) -> Step:
        """The coordinator says something to one participant that its machine never would."""
        return self.hear(name, statement.signed(self.key))

    def released(self) -> None:
        """Let go what was held."""
        held, self.held, self.hold = self.held, [], set()
        for name, statement in held:
            self.tell(name, statement)
        self.settle()

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
            "group_size": 0,
        }
        values.update({key: value for key, value in self.changes.items() if key in values})
        return Assignment(**{**values, **self.task, **changes})

    def context(self, names: Iterable[str] | None = None, **changes: Any) -> RoundContext:
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
            "base_digest": task.base_digest,
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
        if values["group_size"] and "atoms" not in values:
            values["atoms"] = self.place([seat.name for seat in values["roster"]], values["group_size"])
        return RoundContext(**values)

    def place(self, names: list[str], group_size: int) -> tuple[int, ...]:
        """The atom of each of these, the same in every attempt."""
        new = set(names) - set(self.atoms)
        self.atoms.update(draw_atoms(new, group_size, "run-1", max(self.atoms.values(), default=0) + 1))
        return tuple(self.atoms[name] for name in names)

    def _make(self, context: RoundContext) -> Attempt:
        return Attempt(context, self.members, self.key, step_s=STEP_S, deadline_s=DEADLINE_S)

    def begin(self, context: RoundContext | None = None, absent: Iterable[str] = ()) -> Attempt:
        self.records, self.outcome = [], None
        context = context or self.context()
        self.contexts[context.hash] = context
        self.attempt = self._make(context)
        self.perform(self.attempt.begin(set(self.names) - self.dead - set(absent), self.now))
        return self.attempt

    def train_all(self, but: Iterable[str] = ()) -> None:
        for name in self.names:
            if name not in self.dead and name not in but:
                self.sites[name].train(self.assignment())

    def run(self, **changes: Any) -> None:
        """A whole attempt in which everyone that is alive takes part."""
        self.begin(self.context(**changes))
        self.settle()
        self.train_all()
        self.settle()

    def next_attempt(self, attempt: int, **task: Any) -> None:
        """Another attempt; with ``task`` the participants' next task."""
        self.task.update(task)
        self.run(attempt=attempt)

    def kill(self, name: str) -> None:
        self.dead.add(name)
        if self.attempt is not None:
            self.perform(self.attempt.gone(name, self.now))

    def revive(self, name: str) -> None:
        self.dead.discard(name)
        self.sites[name].restart()
        if self.attempt is not None:
            self.perform(self.attempt.back(name, self.now))

    def reconnect(self, name: str) -> None:
        """Killed and started again at once."""
        if self.attempt is not None:
            self.perform(self.attempt.gone(name, self.now))
        self.revive(name)

    def reborn(self, name: str) -> None:
        """A site was killed, and is back before anybody noticed."""
        self.reconnect(name)

    def restart_coordinator(self) -> None:
        """kill -9 of the coordinator: the attempt comes back from its records; what was on its way is lost."""
        assert self.attempt is not None
        self.attempt = self._make(self.attempt.context)
        self.attempt.replay(self.records)
        self.queue = [item for item in self.queue if item[0] is not None]
        for name in self.names:
            if name not in self.dead:
                self.perform(self.attempt.back(name, self.now))
        self.perform(self.attempt.resume(self.now))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        assert self.attempt is not None
        self.perform(self.attempt.tick(self.now))
        self.settle()

    def conclude(self) -> Unmask | Failed:
        """Let deadlines pass until the attempt is over."""
        for _ in range(12):
            if self.outcome is not None:
                return self.outcome
            self.pass_time(DEADLINE_S / 2)
        raise AssertionError("the attempt doesn't end")

    def result(self, index: int = 0) -> Result:
        assert self.attempt is not None
        survivors = positions_bytes(self.attempt.survivors())
        return Result(index, ZEROS, self.attempt.context.hash, survivors, ZEROS, ZEROS, ZEROS, ZEROS)

    def finish(self, index: int = 0) -> Result:
        """Tell everyone the result, as the hub does once the sum is committed."""
        assert self.attempt is not None
        result = self.result(index)
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
            examples = context.counted(position, examples)
            if context.dimension:
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

    # ---- what must hold whatever happens ----------------------------------------------------------------------------

    def assert_promises_kept(self) -> None:
        """No participant has said two things in one attempt that contradict each other, or used a prekey twice."""
        once: dict[tuple[str, str, bytes], set[bytes]] = defaultdict(set)
        used: dict[tuple[str, int], set[bytes]] = defaultdict(set)
        masked: dict[str, dict[bytes, bytes]] = defaultdict(dict)
        for way, name, signed in self.sent:
            if way != "up":
                continue
            kind = kind_of(signed.body)
            if kind == "accept":
                accept = Accept.parse(signed.body)
                once[name, kind, accept.context].add(signed.body)
                seat = self.contexts[accept.context].roster[accept.position]
                used[name, seat.index].add(accept.context)
            elif kind == "upload":
                upload = Upload.parse(signed.body)
                once[name, kind, upload.context].add(signed.body)
                masked[name][upload.context] = upload.digest
            elif kind == "survived":
                once[name, kind, Survived.parse(signed.body).context].add(signed.body)
            elif kind == "release":
                release = Release.parse(signed.body)
                once[name, kind, release.context].add(signed.body)
                seeds = {row[0] for row in RELEASES.read(release.seeds)}
                assert seeds.isdisjoint(row[0] for row in RELEASES.read(release.mask_keys))
        for key, bodies in once.items():
            assert len(bodies) == 1, (key[:2], len(bodies))
        for place, contexts in used.items():
            assert len(contexts) == 1, place
        for name, uploads in masked.items():
            assert len(set(uploads.values())) == len(uploads), name


def _is_plan(statement: Signed) -> bool:
    try:
        return kind_of(statement.body) == Plan.KIND
    except SecureAggregationError:
        return False
