"""One institution's training between two versions of the model."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from core_model import (
    RNG_LOCK,
    Evaluation,
    GalleryRow,
    LearningConfig,
    Manifest,
    TrainingError,
    derive,
    difference,
    gallery,
    load,
    make_task,
    read_vector,
)
from core_model.data.examples import Alteration
from core_model.manifest import Vector
from core_model.tasks import RetrievalTask
from participant.privacy import History
from participant.training.optimizer import learning_rate, make_optimizer
from participant.training.private.optimizers import WeightAverage
from participant.training.private.rounds import Integers, PrivateRounds
from privacy.accounting.events import Event, Placement, merged
from privacy.mechanisms.plan import PrivacyPlan
from wire import RunPlan

_NONE: Final = np.empty(0, np.float32)


class TrainingCancelled(Exception):
    """Training stopped because ``cancelled()`` said so; there is no update."""


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """An update float32 [d], the number of examples behind it, and the means of what the steps reported.

    Where the update carries a share of a noise, it is ``share``, int32 [d], and ``update`` is empty. Private training
    reports no metrics; ``released`` is what it has cost, where noise is added at the record.
    """

    update: Vector
    examples: int
    metrics: dict[str, float]
    share: Integers | None = None
    released: tuple[Event, ...] = ()

    @property
    def content(self) -> memoryview:
        """The bytes that the coordinator is to get, or to get into its sum."""
        return (self.update if self.share is None else self.share).data.cast("B")


class LocalTrainer:
    """Trains and scores versions of one model on one institution's data; the model is built once and reused.

    The result depends on base, seed, round, rounds, name and the plan's number of threads, and on nothing else: not on
    the process, the thread, or what was trained before. Private training is the exception: samples and noise come from
    the operating system, and a round that is repeated gives another update. Torch's global generator and thread number
    are set while it works and restored afterwards, under one lock for the whole process: to train in parallel, use
    several processes.

    Args:
        config: What the plan asks for.
        data: The site's data source.
        name: The participant's name; it enters the seeds.
        allow: User code that this site lets be imported.
        run: The plan, where training is private.
        alteration: Done to the data first.

    Raises:
        CoreModelError: If data, user code or model don't fit.
        PrivacyError: If the plan's privacy can't be had with them.
    """

    def __init__(
        self,
        config: LearningConfig,
        data: str,
        *,
        name: str,
        allow: frozenset[str] = frozenset(),
        run: RunPlan | None = None,
        alteration: Alteration | None = None,
    ) -> None:
        self._config = config
        self._name = name
        self._task = make_task(config, data, allow=allow, alteration=alteration)
        self._model = self._task.build_model(0)
        self._manifest = Manifest.of(self._model)
        private = run is not None and run.privacy.placement != "off"
        self._private = PrivateRounds(run, config, self._task, self._model) if run is not None and private else None
        # What doesn't travel (integer buffers) starts each round as the constructor left it.
        self._local = {
            key: value.clone()
            for key, value in self._model.state_dict().items()
            if isinstance(value, torch.Tensor) and not value.is_floating_point()
        }

    @property
    def privacy(self) -> PrivacyPlan | None:
        """The site's privacy plan for this run; None where training isn't private."""
        return self._private.plan if self._private is not None else None

    @property
    def manifest_hash(self) -> bytes:
        """SHA-256 of the checkpoint header: 32 bytes."""
        return self._manifest.digest

    @property
    def manifest(self) -> Manifest:
        """The model's tensors."""
        return self._manifest

    @property
    def examples(self) -> int:
        """Number of local training examples."""
        return self._task.examples

    def read(self, checkpoint: Path) -> Vector:
        """The flat vector float32 [d] of a checkpoint file of this model.

        Raises:
            ManifestError: If the file is of another model, truncated or too long.
        """
        return read_vector(checkpoint, self._manifest)

    def train(
        self,
        base: Vector,
        *,
        seed: int,
        round_number: int,
        rounds: int,
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
        history: History | None = None,
    ) -> TrainingResult:
        """Train from ``base`` float32 [d] for one round.

        Args:
            base: The version to start from; not changed.
            seed: The run's or task's seed.
            round_number: From 1.
            rounds: Rounds planned, for the learning-rate schedule.
            progress: Called after each step with (steps done, steps in all).
            cancelled: Asked before each step.
            history: Where training is private: what the ledger knows of the run.

        Raises:
            TrainingCancelled: If ``cancelled()`` returned True.
            TrainingError: If the loss or the update isn't finite; there is no update then.
            ManifestError: If ``base`` doesn't fit the model.
        """
        self._manifest.check(base)
        if self._private is not None and self._private.plan.placement is not Placement.PARTICIPANT:
            return self._train_privately(self._private, base, round_number, rounds, progress, cancelled, history)
        settings = self._config.training
        steps = settings.steps(self.examples)
        stream = derive(seed, "round", round_number, "participant", self._name)
        with self._prepared(base, derive(stream, "torch")) as model:
            model.train()
            optimizer = make_optimizer(model, settings)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            average = WeightAverage(parameters, settings.average) if settings.average else None
            sums: dict[str, float] = {}
            for step, batch in enumerate(self._task.batches(derive(stream, "batches"), steps)):
                if cancelled():
                    raise TrainingCancelled(f"round {round_number} after {step} of {steps} steps")
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(settings, round_number, rounds, step, steps)
                optimizer.zero_grad(set_to_none=True)
                loss, figures = self._task.loss(model, batch)
                value = loss.item()
                if not math.isfinite(value):
                    raise self._not_finite("loss", round_number, step + 1)
                loss.backward()  # type: ignore[no-untyped-call]
                if settings.clip_norm:
                    nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
                optimizer.step()
                if average is not None:
                    average.update()
                for key, figure in {**figures, "loss": value}.items():
                    sums[key] = sums.get(key, 0.0) + figure / steps
                progress(step + 1, steps)
            if average is not None:
                average.store()
            update = difference(model, base)
        # A sum of squares is one pass without a temporary; only where it overflows is each element looked at.
        with np.errstate(over="ignore", invalid="ignore"):
            square = float(np.dot(update, update))
        if not math.isfinite(square) and not np.isfinite(update).all():
            raise self._not_finite("update", round_number, steps)
        if self._private is not None:
            return TrainingResult(_NONE, self.examples, {}, self._private.share(update))
        return TrainingResult(update, self.examples, {k: v for k, v in sums.items() if math.isfinite(v)})

    def _train_privately(
        self,
        private: PrivateRounds,
        base: Vector,
        round_number: int,
        rounds: int,
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
        history: History | None,
    ) -> TrainingResult:
        """Noise is drawn afresh each time: the same round twice gives two updates."""
        # Dropout, too, needs a seed that nobody knows: with a known one, who is in a batch decides about others' masks.
        with self._prepared(base, int.from_bytes(os.urandom(7), "big")) as model:
            update = private.train(
                model,
                base,
                round_number=round_number,
                rounds=rounds,
                progress=progress,
                cancelled=cancelled,
                history=history,
            )
        released = tuple(merged(private.released))
        if update is None:
            raise TrainingCancelled(f"round {round_number}")
        if update.dtype == np.int32:
            return TrainingResult(_NONE, self.examples, {}, update.astype(np.int32, copy=False), released)
        update = update.astype(np.float32, copy=False)
        if not np.isfinite(update).all():
            raise self._not_finite("update", round_number, private.plan.steps_per_round)
        return TrainingResult(update, self.examples, {}, released=released)

    def evaluate(self, base: Vector) -> Evaluation:
        """Score ``base`` float32 [d] on the institution's held-out examples; figures that aren't finite are left out.

        Raises:
            ManifestError: If ``base`` doesn't fit the model.
        """
        with self._prepared(base, 0) as model:
            found = self._task.evaluate(model)
        return Evaluation({k: v for k, v in found.metrics.items() if math.isfinite(v)}, found.examples)

    def gallery(self, checkpoint: Path, count: int, seed: int = 0) -> list[GalleryRow]:
        """Retrieval examples for the report, see :func:`core_model.gallery`; none where the task isn't retrieval.

        Raises:
            ManifestError: If the file isn't a checkpoint of this model.
        """
        if not isinstance(self._task, RetrievalTask):
            return []
        with self._prepared(self.read(checkpoint), 0) as model:
            return gallery(self._task, model, count, seed)

    @contextlib.contextmanager
    def _prepared(self, base: Vector, seed: int) -> Iterator[nn.Module]:
        with RNG_LOCK, torch.random.fork_rng(devices=[]):
            threads = torch.get_num_threads()
            torch.set_num_threads(self._config.training.threads)
            torch.manual_seed(seed)  # For dropout and the like in a user's own module.
            try:
                load(self._model, base)
                if self._local:
                    self._model.load_state_dict(self._local, strict=False)
                yield self._model
            finally:
                torch.set_num_threads(threads)
                self._model.zero_grad(set_to_none=True)

    def _not_finite(self, what: str, round_number: int, step: int) -> TrainingError:
        return TrainingError(
            f"{self._name}: the {what} is not finite in round {round_number}, step {step}; no update is sent.",
            "Lower learning_rate or set clip_norm in [training]; check the data for values that aren't finite.",
        )
