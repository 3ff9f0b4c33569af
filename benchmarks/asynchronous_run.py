"""One run of `benchmarks.asynchrony`: a round machine, its participants and a virtual clock.

The round machines, the merging rule, the correction and the simulated speeds are the platform's. Training is written
out in numpy, so that a run takes seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import heapq
import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregation.correction import Earlier, correction_weights
from coordinator.merging import Merger, careful
from coordinator.rounds import (
    AsyncRounds,
    BeginMerge,
    CancelTask,
    Contribution,
    Decision,
    IssueTask,
    RunState,
    SynchronousRounds,
)
from core_model import derive
from core_model.data.fashion_mnist import folder, read_idx
from core_model.data.partition import dirichlet
from privacy.secure_aggregation.context import discounted
from simulation.speeds import Speeds
from wire import RoundsSpec, SecureSpec, SimulationSection

Floats = NDArray[np.float32]

SITES: Final = 10
BUFFER: Final = 5
UPDATES: Final = 500
ALPHA: Final = 0.5

WAIT: Final = "synchronous, waits for all"
DROP: Final = "synchronous, drops the slowest 20 %"
CA2FL: Final = "asynchronous, ca2fl"
PLAIN: Final = "asynchronous, no correction"
SECURE: Final = "asynchronous, secure sums"
FEDBUFF: Final = "asynchronous, server rate 1 (FedBuff)"

DEFAULT_SERVER: Final = {
    WAIT: 1.0,
    DROP: 1.0,
    CA2FL: BUFFER / SITES,
    PLAIN: BUFFER / SITES,
    SECURE: BUFFER / SITES,
    FEDBUFF: 1.0,
}
"""The server's step without tuning: the platform's, and the paper's for FedBuff."""

DEFAULT_LOCAL: Final = 0.1

_ENOUGH: Final = 8  # updates with which a round that drops the slowest is over
_HIDDEN: Final = 100
_SHAPES: Final = ((784, _HIDDEN), (_HIDDEN,), (_HIDDEN, 10), (10,))
_STEPS: Final = 20
_BATCH: Final = 25
_EVERY: Final = 10  # updates between two evaluations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is run.

    Attributes:
        way: One of the names above.
        kind: Of simulated speeds.
        seed: Of the split, the speeds, the first version and the batches.
        server: The server's step, of the updates' weighted mean.
        local: Learning rate of the participants' SGD.
        validated: Score on 10,000 training pictures that nobody trains on, in place of the test pictures.
        updates: To be merged, at least.
        alpha: Of the Dirichlet split.
    """

    way: str
    kind: str
    seed: int
    server: float
    local: float = DEFAULT_LOCAL
    validated: bool = False
    updates: int = UPDATES
    alpha: float = ALPHA

    def rounds(self) -> RoundsSpec:
        """The plan's rounds."""
        same = {"min_participants": SITES, "min_updates": 2, "evaluate_every": 0, "deadline_s": 1e6}
        if self.way in (WAIT, DROP):
            each = SITES if self.way == WAIT else _ENOUGH
            return RoundsSpec.model_validate({**same, "count": math.ceil(self.updates / each)})
        correction = "ca2fl" if self.way == CA2FL else "none"
        count = math.ceil(self.updates / BUFFER)
        spec = {"mode": "asynchronous", "count": count, "buffer_size": BUFFER, "correction": correction}
        return RoundsSpec.model_validate({**same, **spec})


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        times: Virtual times of the evaluations, about one every ten updates. A training takes 1 at the median
            institution.
        accuracies: What they found.
        merged: Updates that were merged.
        trainings: That were begun; those that aren't merged were thrown away.
    """

    times: list[float]
    accuracies: list[float]
    merged: int
    trainings: int

    def reached(self, goal: float) -> float:
        """When three evaluations in a row were above the goal; infinite if that never was."""
        found = zip(self.times, *(self.accuracies[shift:] for shift in range(3)), strict=False)
        return next((at_s for at_s, *three in found if min(three) >= goal), math.inf)

    def final(self) -> float:
        """Mean accuracy over the last 100 updates."""
        return statistics.fmean(self.accuracies[-100 // _EVERY :])


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures [n, 784] in [0, 1], and their labels [n]."""

    values: Floats
    labels: NDArray[np.int64]

    @classmethod
    def read(cls, name: str) -> Pictures:
        """The training or the test pictures."""
        values = read_idx(folder() / f"{name}-images-idx3-ubyte.gz", 3)
        labels = read_idx(folder() / f"{name}-labels-idx1-ubyte.gz", 1)
        return cls(values.reshape(len(values), -1).astype(np.float32) / 255.0, labels.astype(np.int64))

    def take(self, chosen: NDArray[np.int64] | slice) -> Pictures:
        """These."""
        return Pictures(self.values[chosen], self.labels[chosen])


def parts(vector: Floats) -> list[Floats]:
    """A model's tensors, as views of its vector."""
    cuts = np.cumsum([math.prod(shape) for shape in _SHAPES])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(vector, cuts), _SHAPES, strict=True)]


def initial(seed: int) -> Floats:
    """Kaiming's normal draws for the matrices, zeros for the rest."""
    vector = np.zeros(sum(math.prod(shape) for shape in _SHAPES), dtype=np.float32)
    generator = np.random.default_rng(seed)
    for part in parts(vector)[::2]:
        part[...] = generator.normal(0.0, math.sqrt(2 / part.shape[0]), part.shape)
    return vector


def update(base: Floats, data: Pictures, rate: float, seed: int) -> Floats:
    """What training from a base changes."""
    vector = base.copy()
    first, bias, second, last = parts(vector)
    generator = np.random.default_rng(seed)
    for _ in range(_STEPS):
        batch = data.take(generator.integers(0, len(data.labels), _BATCH))
        hidden = np.maximum(batch.values @ first + bias, 0.0)
        logits = hidden @ second + last
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        chances[np.arange(_BATCH), batch.labels] -= 1.0
        chances /= _BATCH
        back = (chances @ second.T) * (hidden > 0)
        second -= rate * (hidden.T @ chances)
        last -= rate * chances.sum(axis=0)
        first -= rate * (batch.values.T @ back)
        bias -= rate * back.sum(axis=0)
    return vector - base


def accuracy(vector: Floats, data: Pictures) -> float:
    """Share of the pictures that are named rightly."""
    first, bias, second, last = parts(vector)
    logits = np.maximum(data.values @ first + bias, 0.0) @ second + last
    return float(np.mean(logits.argmax(axis=1) == data.labels))


class Run:
    """One run: a round machine, its participants, and a virtual clock.

    Args:
        case: What is run.
        sites: The participants' pictures.
        test: What versions are scored on.
        speeds: How long each training takes.
        rounds: In place of the case's own.
    """

    def __init__(
        self, case: Case, sites: list[Pictures], test: Pictures, speeds: Speeds, rounds: RoundsSpec | None = None
    ) -> None:
        spec = rounds or case.rounds()
        self._machine = (AsyncRounds if spec.asynchronous else SynchronousRounds)("bench", spec, RunState())
        # The plan's [aggregation] learning_rate, which asynchronous rounds multiply by K / concurrency.
        self._rate = case.server * SITES / spec.buffer_size if spec.asynchronous else case.server
        self._case, self._sites, self._test, self._speeds = case, sites, test, speeds
        self._updates: dict[str, Floats] = {}
        self._cancelled: set[str] = set()
        self._trainings = [0] * len(sites)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._merged = 0
        self.versions = [initial(case.seed)]
        self.now_s = 0.0
        self._times: list[float] = []
        self._accuracies: list[float] = []

    def go(self) -> Outcome:
        """To the last version."""
        for index in range(len(self._sites)):
            self._carry(self._machine.available(site_name(index), 0.0))
        while self._queue and self._machine.state.finished is None:
            self.now_s, _, what = heapq.heappop(self._queue)
            what()
        self._queue.clear()  # it refers to this run, whose updates would stay in memory
        return Outcome(self._times, self._accuracies, self._merged, sum(self._trainings))

    def _carry(self, decision: Decision) -> None:
        for effect in decision.effects:
            if isinstance(effect, IssueTask):
                self._train(effect)
            elif isinstance(effect, CancelTask):
                self._cancelled.add(effect.task_id)
            elif isinstance(effect, BeginMerge):
                self._merge(effect)

    def _train(self, task: IssueTask) -> None:
        index = int(task.participant.partition("-")[2])
        number, self._trainings[index] = self._trainings[index], self._trainings[index] + 1
        done: Callable[[], None] = functools.partial(self._trained, task, index, number)
        at_s = self.now_s + self._speeds.seconds(task.participant, number)
        heapq.heappush(self._queue, (at_s, next(self._order), done))

    def _trained(self, task: IssueTask, index: int, number: int) -> None:
        if task.task_id in self._cancelled:
            return
        data, base = self._sites[index], self.versions[task.base_version]
        seed = derive(self._case.seed, task.participant, number)
        self._updates[task.task_id] = update(base, data, self._case.local, seed)
        found = Contribution(participant=task.participant, digest=task.task_id, examples=len(data.labels))
        self._carry(self._machine.submitted(task.participant, task.task_id, found, {}, {}, self.now_s))
        current = self._machine.state.open_round()
        if self._case.way == DROP and current is not None and len(current.done()) >= _ENOUGH:
            # Over-selection: as if the round's deadline were now. Who isn't ready begins again with the others.
            self._carry(self._machine.tick(current.closes_s))

    def _merge(self, order: BeginMerge) -> None:
        if self._case.way == SECURE:
            self._commit(order, self._summed(order), {})
            return
        recipe, dimension = careful(), len(self.versions[0])
        merger = Merger(recipe, dimension)
        merger.add_all([(item.participant, self._updates[item.digest], item.examples) for item in order.contributions])
        discounts = {item.participant: 1 / math.sqrt(1 + item.staleness) for item in order.contributions}
        decision = merger.decide(discounts=discounts)
        moved = decision.write(merger.rows(decision.names), np.empty(dimension))
        kept = {item.participant: self._updates[item.digest] for item in order.kept}
        earlier = [
            Earlier(participant=item.participant, path=Path(), examples=item.examples, factor=item.factor)
            for item in order.kept
        ]
        counts = {item.participant: item.examples for item in order.contributions}
        for item, factor in correction_weights(decision, recipe.rule, counts, earlier):
            moved += factor * kept[item.participant]
        self._commit(order, moved, decision.report.as_json())

    def _summed(self, order: BeginMerge) -> NDArray[np.float64]:
        """The mean that a secure sum reveals: of integers, by discounted weights. Masks cancel, and are left out."""
        spec = SecureSpec()
        encoding = spec.encoding(len(order.contributions))
        total = np.zeros(len(self.versions[0]), encoding.dtype)
        weights = 0
        for item in order.contributions:
            weight = discounted(encoding.weight(item.examples), item.staleness)
            dither = hashlib.sha256(item.digest.encode()).digest()
            total += encoding.encode(self._updates[item.digest], weight, dither)
            weights += weight
        return encoding.decode(total, weights).astype(np.float64)

    def _commit(self, order: BeginMerge, moved: NDArray[np.float64], report: dict[str, Any]) -> None:
        """The next version; scored now and then."""
        self.versions.append((self.versions[-1] + self._rate * order.step_scale * moved).astype(np.float32))
        self._merged += len(order.contributions)
        if self._merged // _EVERY > len(self._times):
            self._times.append(self.now_s)
            self._accuracies.append(accuracy(self.versions[-1], self._test))
        size = 4 * len(moved)
        self._carry(self._machine.committed(order, f"version {order.round}", size, self.now_s, report))


def site_name(index: int) -> str:
    """A participant's."""
    return f"site-{index}"


def run(case: Case) -> Outcome:
    """Run a case on Fashion-MNIST."""
    train, test = _pictures(case.validated)
    sites = [train.take(part) for part in dirichlet(train.labels, SITES, case.alpha, case.seed)]
    institutions = [{"name": site_name(index), "data": "-"} for index in range(SITES)]
    table: dict[str, Any] = {"institutions": institutions, "speeds": case.kind, "speed_seed": case.seed}
    return Run(case, sites, test, Speeds(SimulationSection.model_validate(table))).go()


@functools.cache
def _pictures(validated: bool) -> tuple[Pictures, Pictures]:
    train = Pictures.read("train")
    if not validated:
        return train, Pictures.read("t10k")
    return train.take(slice(50_000)), train.take(slice(50_000, None))
