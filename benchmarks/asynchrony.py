"""Time to an accuracy on a virtual clock: asynchronous rounds beside synchronous ones that wait for everybody.

``python -m benchmarks.asynchrony [--quick] [--json PATH]``. Ten participants hold Fashion-MNIST (Debian's package
``dataset-fashion-mnist``), each class divided among them by Dirichlet(0.5). A perceptron with 100 hidden units is
trained by SGD, 20 steps an update, and every run makes 500 updates. The round machines, the merging rule, the
correction and the simulated speeds are the platform's; training is written out in numpy, so that a run takes seconds.
Both kinds of rounds meet the same times, participant by participant and training by training.

A run has reached an accuracy when three evaluations in a row, ten updates apart, are above it. Medians are over speeds
and seeds. Synchronous rounds with over-selection aren't run here.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Report, Row
from coordinator.aggregation.correction import Earlier, correction_weights
from coordinator.merging import Merger, careful
from coordinator.rounds import AsyncRounds, BeginMerge, Contribution, Decision, IssueTask, RunState, SynchronousRounds
from core_model import derive
from core_model.data.fashion_mnist import folder, read_idx
from core_model.data.partition import dirichlet
from simulation.speeds import Speeds
from wire import RoundsSpec, SimulationSection

Floats = NDArray[np.float32]

_SITES: Final = 10
_UPDATES: Final = 500
_BUFFER: Final = 5
_HIDDEN: Final = 100
_SHAPES: Final = ((784, _HIDDEN), (_HIDDEN,), (_HIDDEN, 10), (10,))
_STEPS: Final = 20
_BATCH: Final = 25
_RATE: Final = 0.1
_GOAL: Final = 0.80
_CHOSEN: Final = "asynchronous, ca2fl"
_SPEEDS: Final = ("half-normal", "lognormal", "stragglers")


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to run the rounds; ``whole`` takes the server's whole step instead of K / concurrency."""

    name: str
    rounds: RoundsSpec
    whole: bool = False


def ways() -> tuple[Way, ...]:
    """Synchronous, and asynchronous with and without correction and scaled step."""
    same = {"min_participants": _SITES, "min_updates": 2, "evaluate_every": 0, "deadline_s": 1e6}
    spec = {**same, "mode": "asynchronous", "count": _UPDATES // _BUFFER, "buffer_size": _BUFFER}
    return (
        Way("synchronous, waits for all", RoundsSpec.model_validate({**same, "count": _UPDATES // _SITES})),
        Way(_CHOSEN, RoundsSpec.model_validate({**spec, "correction": "ca2fl"})),
        Way("asynchronous, no correction", RoundsSpec.model_validate({**spec, "correction": "none"})),
        Way("asynchronous, whole step", RoundsSpec.model_validate({**spec, "correction": "none"}), whole=True),
    )


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

    def take(self, chosen: NDArray[np.int64]) -> Pictures:
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


def update(base: Floats, data: Pictures, seed: int) -> Floats:
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
        second -= _RATE * (hidden.T @ chances)
        last -= _RATE * chances.sum(axis=0)
        first -= _RATE * (batch.values.T @ back)
        bias -= _RATE * back.sum(axis=0)
    return vector - base


def accuracy(vector: Floats, data: Pictures) -> float:
    """On the test pictures."""
    first, bias, second, last = parts(vector)
    logits = np.maximum(data.values @ first + bias, 0.0) @ second + last
    return float(np.mean(logits.argmax(axis=1) == data.labels))


class Run:
    """One run: a round machine, its participants, and a virtual clock."""

    def __init__(self, way: Way, sites: list[Pictures], test: Pictures, speeds: Speeds, seed: int) -> None:
        machine = AsyncRounds if way.rounds.asynchronous else SynchronousRounds
        self._machine = machine("bench", way.rounds, RunState())
        self._way, self._sites, self._test, self._speeds, self._seed = way, sites, test, speeds, seed
        self._versions = [initial(seed)]
        self._updates: dict[str, Floats] = {}
        self._trainings = [0] * len(sites)
        self._queue: list[tuple[float, int, Callable[[], Decision]]] = []
        self._order = itertools.count()
        self._merged = 0
        self.now_s = 0.0
        self.curve: list[tuple[float, float]] = []

    def go(self) -> None:
        """To the last version."""
        for index in range(len(self._sites)):
            self._carry(self._machine.available(_name(index), 0.0))
        while self._queue and self._machine.state.finished is None:
            self.now_s, _, what = heapq.heappop(self._queue)
            self._carry(what())

    def reached(self, goal: float) -> float:
        """When three evaluations in a row were above the goal; infinite if that never was."""
        for (at_s, one), (_, two), (_, three) in zip(self.curve, self.curve[1:], self.curve[2:], strict=False):
            if min(one, two, three) >= goal:
                return at_s
        return math.inf

    def final(self) -> float:
        """Mean accuracy over the last 100 updates."""
        return statistics.fmean(value for _, value in self.curve[-10:])

    def _carry(self, decision: Decision) -> None:
        for effect in decision.effects:
            if isinstance(effect, IssueTask):
                self._train(effect)
            elif isinstance(effect, BeginMerge):
                self._merge(effect)

    def _train(self, task: IssueTask) -> None:
        index = int(task.participant.partition("-")[2])
        number, self._trainings[index] = self._trainings[index], self._trainings[index] + 1
        data, base = self._sites[index], self._versions[task.base_version]

        def done() -> Decision:
            self._updates[task.task_id] = update(base, data, derive(self._seed, task.participant, number))
            found = Contribution(participant=task.participant, digest=task.task_id, examples=len(data.labels))
            return self._machine.submitted(task.participant, task.task_id, found, {}, {}, self.now_s)

        at_s = self.now_s + self._speeds.seconds(task.participant, number)
        heapq.heappush(self._queue, (at_s, next(self._order), done))

    def _merge(self, order: BeginMerge) -> None:
        recipe, dimension = careful(), len(self._versions[0])
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
        scale = 1.0 if self._way.whole else order.step_scale
        self._versions.append((self._versions[-1] + scale * moved).astype(np.float32))
        self._merged += len(order.contributions)
        if self._merged // 10 > len(self.curve):
            self.curve.append((self.now_s, accuracy(self._versions[-1], self._test)))
        report = decision.report.as_json()
        self._carry(self._machine.committed(order, f"version {order.round}", 4 * dimension, self.now_s, report))


def _name(index: int) -> str:
    return f"site-{index}"


def measure(kinds: tuple[str, ...], seeds: range) -> list[Row]:
    """Every way, with every kind of speed and seed."""
    train, test = Pictures.read("train"), Pictures.read("t10k")
    times: dict[str, list[float]] = {}
    finals: dict[str, list[float]] = {}
    for kind, seed in itertools.product(kinds, seeds):
        sites = [train.take(part) for part in dirichlet(train.labels, _SITES, 0.5, seed)]
        institutions = [{"name": _name(index), "data": "-"} for index in range(_SITES)]
        table: dict[str, Any] = {"institutions": institutions, "speeds": kind, "speed_seed": seed}
        speeds = Speeds(SimulationSection.model_validate(table))
        for way in ways():
            run = Run(way, sites, test, speeds, seed)
            run.go()
            times.setdefault(way.name, []).append(run.reached(_GOAL))
            finals.setdefault(way.name, []).append(run.final())
    return rows(times, finals)


def rows(times: dict[str, list[float]], finals: dict[str, list[float]]) -> list[Row]:
    """The figures; times of asynchronous ways are given in parts of the synchronous one's on the same trace."""
    base, *others = times
    found = [
        row(base, f"virtual time to {_GOAL:.2f}, median", statistics.median(times[base])),
        row(base, "final accuracy, mean", statistics.fmean(finals[base]), better="higher"),
    ]
    for name in others:
        shares = [1.0 if one == all_ else one / all_ for one, all_ in zip(times[name], times[base], strict=True)]
        lost = 100 * (statistics.fmean(finals[base]) - statistics.fmean(finals[name]))
        faster, close = (0.6, 1.0) if name == _CHOSEN else (None, None)
        found += [
            row(name, f"time to {_GOAL:.2f} / synchronous, median", statistics.median(shares), "x", target=faster),
            row(name, f"time to {_GOAL:.2f} / synchronous, worst", max(shares), "x"),
            row(name, "runs that never got there", sum(map(math.isinf, times[name])), f"of {len(shares)}"),
            row(name, "final accuracy lost, mean", lost, "points", target=close),
        ]
    return found


def row(
    case: str,
    metric: str,
    value: float,
    unit: str = "",
    *,
    better: Literal["higher", "lower"] = "lower",
    target: float | None = None,
) -> Row:
    """A figure."""
    return Row(case=case, metric=metric, value=value, unit=unit, better=better, target=target)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one kind of speed, one seed")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there, too")
    options = parser.parse_args()
    report = Report("asynchrony")
    for row in measure(_SPEEDS[:1] if options.quick else _SPEEDS, range(1 if options.quick else 5)):
        report.add(row)
    report.finish(options.json)


if __name__ == "__main__":
    main()
