"""A whole round of a cohort on one machine: the real state machines, in worker processes, real masks and uploads.

Each process has a part of the participants: their machines, their encoding, their uploads. Masks are expanded by
slices: each process makes its slice of everyone's masks, the stream of each pair once, added at one end and subtracted
at the other (``streams.add_pairs``). On machines of their own, participants would make it at both ends; what that
costs one of them stands in ``secure_masks``.

All participants have the same trained update, so that the mean that comes out can be checked.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from benchmarks.secure_context import EXAMPLES, FEDERATION, NOW_S, round_context
from benchmarks.secure_host import UPDATE, Answer, Message, Row, mask_path, serve
from benchmarks.timing import tree_cpu_s
from coordinator.aggregation import reveal
from coordinator.rounds import BeginUnmask
from privacy.secure_aggregation.context import RoundContext, Seat
from privacy.secure_aggregation.coordinator import Attempt, Decision, Failed, Tell, Unmask
from privacy.secure_aggregation.identities import Role
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.masking import mask_bytes
from privacy.secure_aggregation.members import FederationRoot, MemberList
from privacy.secure_aggregation.memory import Assignment
from privacy.secure_aggregation.prekeys import STOCK, check_offered, offered
from privacy.secure_aggregation.sharing import MaskTerm
from privacy.secure_aggregation.statements import PrekeyBatch, Result, Signed, kind_of, positions_bytes
from privacy.secure_aggregation.streams import slices
from protos import session_pb2 as pb
from wire import BlobStore

PHASES: Final = ("keys and shares", "masks", "encoding and uploads", "survivors and release", "sum and mean")

_LARGEST: Final = 4e-3  # of the update; far inside the clipping bounds
_STEP_S: Final = 30.0
_DEADLINE_S: Final = 3_600.0


@dataclasses.dataclass
class Traffic:
    """Bytes of one kind of statement from all participants and to them, and of the messages' frames around them."""

    up: int = 0
    down: int = 0
    frames: int = 0


@dataclasses.dataclass(frozen=True)
class Round:
    """What a round took.

    Attributes:
        participants: How many.
        seconds: Of each of ``PHASES``, wall.
        cpu_s: Processor seconds of all processes.
        streams: Distinct mask streams.
        traffic: By kind of statement; "prekey" is what an attempt uses up of a batch.
    """

    participants: int
    seconds: Mapping[str, float]
    cpu_s: float
    streams: int
    traffic: Mapping[str, Traffic]

    @property
    def whole_s(self) -> float:
        """Wall seconds from plan to result."""
        return sum(self.seconds.values())


def run(participants: int, dimension: int, ring_bits: int, folder: Path, *, processes: int = 2) -> Round:
    """Run one round without a drop, and check the mean that comes of it.

    Args:
        participants: How many, at least 3.
        dimension: Coordinates.
        ring_bits: 16 or 32; also on the wire, since a mask becomes the upload where it lies.
        folder: For masks and uploads.
        processes: How many share the participants' work.
    """
    cohort = _Cohort(participants, dimension, ring_bits, folder, processes)
    try:
        return cohort.round()
    finally:
        cohort.close()


def bytes_needed(participants: int, dimension: int, ring_bits: int) -> int:
    """Of the folder."""
    return (participants + 2) * dimension * ring_bits // 8 + 8 * dimension


class _Cohort:
    """The coordinator of a round, and the processes in which the participants are."""

    def __init__(self, participants: int, dimension: int, ring_bits: int, folder: Path, processes: int) -> None:
        self._names = [f"site-{index:03}" for index in range(participants)]
        self._dimension = dimension
        self._ring_bits = ring_bits
        self._folder = folder
        self._blobs = BlobStore(folder)
        self._key = SigningKey.generate()
        keys = {name: SigningKey.generate() for name in self._names}
        self._members = _members(self._key, keys)
        self._update = np.random.default_rng(5).uniform(-_LARGEST, _LARGEST, dimension).astype("<f4")
        self._update.tofile(folder / UPDATE)
        self._outcome: Unmask | Failed | None = None
        self._traffic: dict[str, Traffic] = defaultdict(Traffic)
        self._down: list[Message] = []
        self._up: list[Message] = []
        self._expansions: dict[str, tuple[MaskTerm, ...]] = {}
        self._hosts: list[tuple[Any, Connection, frozenset[str]]] = []
        spawn = multiprocessing.get_context("spawn")
        for number in range(processes):
            mine = self._names[number::processes]
            ours, theirs = spawn.Pipe()
            secrets = {name: keys[name].secret for name in mine}
            arguments = (theirs, secrets, list(self._members.entries), self._members.root, folder)
            process = spawn.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._hosts.append((process, ours, frozenset(mine)))

    def close(self) -> None:
        """End the processes."""
        for process, connection, _ in self._hosts:
            connection.close()  # which ends it
            process.join()

    def round(self) -> Round:
        """Plan to result."""
        context = self._context()
        task = _assignment(context)
        for name in self._names:
            with mask_path(self._folder, name).open("wb") as file:
                file.truncate(mask_bytes(context))
        attempt = Attempt(context, self._members, self._key, step_s=_STEP_S, deadline_s=_DEADLINE_S)
        cpu, clock = tree_cpu_s(), [time.perf_counter()]
        self._perform(attempt.begin(self._names, NOW_S))
        self._exchange(attempt, task)
        clock.append(time.perf_counter())
        rows = _rows(context, self._expansions)
        cuts = slices(context.dimension, len(self._hosts))
        cuts += [(context.dimension, context.dimension)] * (len(self._hosts) - len(cuts))
        self._ask("expand", [(context.canonical(), rows, start, stop) for start, stop in cuts])
        clock.append(time.perf_counter())
        self._ask("expanded", [(context.hash,)] * len(self._hosts))
        self._ask("trained", [(task,)] * len(self._hosts))
        self._exchange(attempt, task, until="signing")
        clock.append(time.perf_counter())
        self._exchange(attempt, task)
        clock.append(time.perf_counter())
        if not isinstance(self._outcome, Unmask):
            raise AssertionError(f"the round ended with {self._outcome}")
        order = BeginUnmask(round=1, attempt=1, order=self._outcome, record=attempt.public_record())
        revealed = reveal(self._blobs, order)
        self._tell_result(attempt, task, revealed.sum_hash)
        clock.append(time.perf_counter())
        cpu = tree_cpu_s() - cpu
        self._check(context, self._blobs.path(bytes.fromhex(revealed.digest)), revealed.weight)
        seconds = {name: end - begin for name, begin, end in zip(PHASES, clock[:-1], clock[1:], strict=True)}
        return Round(len(self._names), seconds, cpu, len(rows), dict(self._traffic))

    def _context(self) -> RoundContext:
        """Collect prekeys, and propose."""
        self._ask("offer", [()] * len(self._hosts))
        seats: dict[str, Seat] = {}
        for name, signed in self._up:
            member = self._members.participant(name)
            assert member is not None
            rows = offered(PrekeyBatch.parse(signed.body), name)
            seats[name] = check_offered(rows, FEDERATION, member.public_key)[0]
            self._traffic["prekey"].up += (len(signed.body) + len(signed.signature)) // STOCK
        self._up = []
        return round_context(
            self._dimension,
            self._ring_bits,
            [seats[name] for name in self._names],
            members_count=self._members.count,
            members_head=self._members.head,
        )

    def _ask(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        """Call a method in all processes at once, and take what they answer."""
        for (_, connection, _), given in zip(self._hosts, arguments, strict=True):
            connection.send((method, given))
        for _, connection, _ in self._hosts:
            answer = connection.recv()
            if isinstance(answer, Answer):
                self._up += answer.messages
                self._expansions.update(answer.expansions)

    def _exchange(self, attempt: Attempt, task: Assignment, until: str = "") -> None:
        """Carry statements until there are none, or the attempt has come so far."""
        while self._up or self._down:
            up, self._up = self._up, []
            for name, signed in up:
                self._count("up", signed)
                self._perform(attempt.receive(name, signed, NOW_S))
            if attempt.phase == until:
                return
            down, self._down = self._down, []
            parts = [[item for item in down if item[0] in mine] for _, _, mine in self._hosts]
            self._ask("hear", [(part, task) for part in parts])

    def _perform(self, decision: Decision) -> None:
        for effect in decision.effects:
            if isinstance(effect, Tell):
                self._count("down", effect.statement)
                self._down.append((effect.name, effect.statement))
            elif isinstance(effect, Unmask | Failed):
                self._outcome = effect

    def _count(self, way: Literal["up", "down"], signed: Signed) -> None:
        traffic, size = self._traffic[kind_of(signed.body)], len(signed.body) + len(signed.signature)
        statement = pb.Statement(body=signed.body, signature=signed.signature)
        if way == "up":
            traffic.up += size
            traffic.frames += pb.FromParticipant(statement=statement).ByteSize() - size
        else:
            traffic.down += size
            traffic.frames += pb.FromCoordinator(statement=statement).ByteSize() - size

    def _tell_result(self, attempt: Attempt, task: Assignment, sum_hash: str) -> None:
        zeros, survivors = bytes(32), positions_bytes(attempt.survivors())
        result = Result(0, zeros, attempt.context.hash, survivors, zeros, bytes.fromhex(sum_hash), zeros, zeros).signed(
            self._key
        )
        attempt.end()
        self._perform(Decision(effects=[Tell(name, result) for name in self._names]))
        self._exchange(attempt, task)

    def _check(self, context: RoundContext, path: Path, weight: int) -> None:
        mean = np.fromfile(path, "<f4").astype(np.float64)
        bound = context.encoding.error_bound(len(self._names), weight) + 2.0**-24 * _LARGEST
        if weight != len(self._names) * EXAMPLES or float(np.abs(mean - self._update).max()) > bound:
            raise AssertionError("the mean isn't that of the updates")


def _members(coordinator: SigningKey, keys: Mapping[str, SigningKey]) -> MemberList:
    root = FederationRoot(FEDERATION, SigningKey.generate())
    members = root.empty()
    members = members.extend([root.add(members, Role.COORDINATOR, "coordinator", coordinator.public)])
    for name, key in keys.items():
        members = members.extend([root.add(members, Role.PARTICIPANT, name, key.public)])
    return members


def _assignment(context: RoundContext) -> Assignment:
    """The task that the context is about."""
    names = [field.name for field in dataclasses.fields(Assignment) if field.name != "asynchronous"]
    return Assignment(**{name: getattr(context, name) for name in names})


def _rows(context: RoundContext, expansions: Mapping[str, tuple[MaskTerm, ...]]) -> list[Row]:
    """All participants' streams, those of pairs with both ends."""
    plus: dict[bytes, int] = {}
    minus: dict[bytes, int] = {}
    for position, name in enumerate(context.names):
        for term in expansions[name]:
            (plus if term.sign > 0 else minus)[term.seed] = position
    return [(seed, position, minus.get(seed)) for seed, position in plus.items()]
