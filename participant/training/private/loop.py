"""Private training of a round: sample, clip each record, add noise, step; and what a site adds to a shared noise.

What is private stays here: losses, norms, counts and the size of a sample are used and forgotten. Only noisy sums, and
what follows from them, are given back.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from core_model import Manifest, TrainingConfig
from core_model.manifest import Vector
from core_model.tasks import LearningTask
from participant.training.optimizer import learning_rate, make_optimizer
from participant.training.private.checks import check_decomposes, check_losses, state_error, unchanged
from participant.training.private.engine import RecordGradients
from participant.training.private.optimizers import DPAdamBC, WeightAverage
from participant.training.private.population import Index, Population
from privacy.accounting.events import Event, Placement
from privacy.mechanisms.adaptive import NoiseControl
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.lattice import Lattice
from privacy.mechanisms.noise import NoiseKey, gaussian_integers
from privacy.mechanisms.plan import PrivacyPlan
from privacy.mechanisms.sampling import PoissonSampler

_log = logging.getLogger("fedloom.participant")

_SMALLEST_MOMENT = 1e-30

_Number = TypeVar("_Number", np.float64, np.int32)

Keys = Callable[[], NoiseKey]
Integers = npt.NDArray[np.int32]


@dataclasses.dataclass
class ClipState:
    """The clipping norm as it follows the data from step to step. It is made of noisy counts, so it isn't private."""

    norm: float


@dataclasses.dataclass(frozen=True)
class _Clipped:
    """The clipped sum over a sample [d], how many owners' gradients were within the norm, and how many there are."""

    total: npt.NDArray[np.float64]
    below: int
    owners: int

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a sum without noise is private and never leaves the process")


class PrivateTraining:
    """A model and a site's data under a privacy plan.

    Args:
        model: In the state to train from; changed in place.
        task: The site's side of the task; its losses must decompose by record, or by group.
        plan: Sampler, clipping and noise.
        max_chunk: Views of records that pass through the model at a time. A chunk is never noised by itself.
        keys: Where noise comes from: the operating system, but in tests.
        noised: Names of the parameters that a shared noise covers; those that are trained here without it. All sites
            must name the same: a site's share is missing where it isn't added.

    Raises:
        PrivacyError: For a model or loss that the plan's promise can't be kept with.
        CoupledLossError: For a loss that compares records.
    """

    def __init__(
        self,
        model: nn.Module,
        task: LearningTask,
        plan: PrivacyPlan,
        *,
        max_chunk: int,
        keys: Keys = NoiseKey.fresh,
        noised: Sequence[str] | None = None,
    ) -> None:
        self._model = model
        self._task = task
        self._plan = plan
        self._max_chunk = max_chunk
        self._keys = keys
        self._gradients = RecordGradients(model, rule=plan.rule)
        self._population = Population(task, plan.unit)
        self.released: list[Event] = []
        covered = set(self._gradients.names if noised is None else noised)
        self._sizes = {name: p.numel() for name, p in model.named_parameters() if name in covered}
        if sum(self._sizes.values()) != plan.dimension or not covered.issuperset(self._gradients.names):
            raise PrivacyError(
                "model-untrained",
                f"the plan is for {plan.dimension} parameters; {self._gradients.dimension} of the model's are trained",
            )
        if self._population.factor != plan.group_factor:
            raise PrivacyError("plan-inconsistent", "the plan's sensitivity isn't that of the task's loss")

    def check(self) -> None:
        """Test that no record's loss or gradient depends on another record (of another group).

        Raises:
            PrivacyError: "loss-coupled", naming by how much; "loss-shape", "model-state".
            CoupledLossError: The task says so itself.
        """
        check_decomposes(self._model, self._task, self._gradients, self._population)

    def steps(
        self,
        settings: TrainingConfig,
        *,
        round_number: int,
        rounds: int,
        clip: ClipState,
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
        control: NoiseControl | None = None,
    ) -> bool:
        """Take the noisy steps of a round; the model holds the result. False if ``cancelled()`` said to stop.

        Formal Guarantees:
            What the model holds afterwards, and ``clip``, are functions of what they were before, of public settings,
            and of the steps' releases: for each step a Poisson sample's clipped sum with noise of
            ``gradient_multiplier * sensitivity`` and, where the norm follows the data, a count with noise of its own.
            So they are as private as the plan says. Noise is drawn afresh whenever a round is repeated; each
            repetition costs what the first one did. What the steps have cost is in ``released``, each step's event
            before its noise is drawn.

        Args:
            settings: Optimizer and learning rate.
            round_number: From 1.
            rounds: Of the run, for the learning-rate schedule.
            clip: The norm to begin with; where the plan lets it follow the data, the norm to go on with.
            progress: Called after each step with (steps done, steps in all).
            cancelled: Asked before each step.
            control: Where the plan's noise follows what is released: it knows all of the run's releases so far. The
                round ends early once it says that the budget is exhausted.
        """
        plan = self._plan
        if (control is None) != (plan.noise is None):
            raise PrivacyError("plan-inconsistent", "noise that follows what is released needs the run's control of it")
        optimizer = _optimizer(self._model, settings)
        average = WeightAverage(self._gradients.parameters, settings.average) if settings.average else None
        sampler = PoissonSampler(self._population.units, plan.sampling_rate, self._keys())
        expected = self._population.expected(plan.sampling_rate)
        numbers = plan.round_steps(round_number)
        for done, number in enumerate(numbers):
            if cancelled():
                return False
            step = plan.step(number) if control is None else plan.controlled_step(number, control)
            if step is None:
                break
            self.released.append(step.event)
            clipped = self._clipped(sampler.sample(), clip.norm)
            lattice = Lattice(plan.grid(clip.norm), plan.dimension)
            std = step.gradient_multiplier * plan.sensitivity(clip.norm)
            noisy = lattice.values(lattice.release(clipped.total, std, self._keys()))
            if control is not None:
                energy = float(np.dot(noisy, noisy))
                control.released(step.noise_multiplier, energy=energy, std=std, dimension=plan.dimension)
            self._assign(noisy / expected + self._public(clip.norm))
            _set(optimizer, learning_rate(settings, round_number, rounds, done, len(numbers)), std / expected, done + 1)
            optimizer.step()
            if average is not None:
                average.update()
            if plan.adaptive is not None and step.count_std is not None:
                # In halves, so that it is an integer: an owner adds or takes one, and turns from one side to the
                # other, by two, where it is a group.
                noise = gaussian_integers(self._keys(), 1, 2.0 * plan.group_factor * step.count_std)
                halves = 2 * clipped.below - clipped.owners + int(noise[0])
                clip.norm = plan.adaptive.next_norm(clip.norm, halves / 2, expected)
            progress(done + 1, len(numbers))
        if average is not None:
            average.store()
        return True

    def shared_step(self, limit: int, batch: float) -> Integers:
        """One step's clipped sum, downhill, on the plan's lattice, with this site's share of the noise.

        Args:
            limit: Largest integer that the secure sum has room for.
            batch: What the sum is divided by for each site, to become a mean gradient.

        Returns:
            int32 [d], for a secure sum, over all tensors of the model: zero where no site trains. Where this site
            doesn't train but others may, its share of the noise is there all the same.
        """
        plan = self._plan
        if plan.share is None or plan.placement is not Placement.SHARED:
            raise PrivacyError("plan-inconsistent", "the plan doesn't share the noise of a step")
        self.released.append(plan.step(0).event)
        sampler = PoissonSampler(self._population.units, plan.sampling_rate, self._keys())
        clipped = self._clipped(sampler.sample(), plan.clip_norm)
        trained = {name: p.numel() for name, p in zip(self._gradients.names, self._gradients.parameters, strict=True)}
        downhill = -clipped.total - batch * self._public(plan.clip_norm)
        total = _placed(downhill, trained, _places(self._sizes), plan.dimension)
        shared = Lattice(plan.share.grid, plan.dimension).share(total, plan.share.std, self._keys(), limit)
        manifest = Manifest.of(self._model)
        whole = {entry.name: slice(entry.offset, entry.offset + entry.size) for entry in manifest.entries}
        return _placed(shared, self._sizes, whole, manifest.dimension)

    def check_untrained(self, update: Vector) -> None:
        """Test that a round's update float32 [d] is zero wherever no noise was added.

        Raises:
            PrivacyError: "model-state".
        """
        trained = set(self._gradients.names)
        for entry in Manifest.of(self._model).entries:
            if entry.name not in trained and update[entry.offset : entry.offset + entry.size].any():
                raise state_error(entry.name)

    def _clipped(self, units: Index, norm: float) -> _Clipped:
        """The clipped sum over the records of these units."""
        records = self._population.records(units)
        total = np.zeros(self._gradients.dimension, np.float64)
        below = owners = 0
        self._model.train()
        with unchanged(self._model):
            for chunk, keys in self._population.chunks(records, self._max_chunk):
                # Random changes to the records come from a secret seed: with a known one, who is in a batch would
                # decide about the changes to all others.
                batch = self._task.sampled(chunk, int.from_bytes(os.urandom(7), "big"))
                found = self._gradients.clipped_sum(
                    functools.partial(self._losses, batch, len(chunk)), norm, owners=self._rows(keys)
                )
                total += self._gradients.flat(found.total).numpy()
                below += found.below
                owners += len(found.norms)
        if owners and below == owners:
            _log.info("clipping to %g cut no record's gradient: a smaller norm would need less noise", norm)
        return _Clipped(total, below, owners)

    def _public(self, norm: float) -> npt.NDArray[np.float64]:
        """The gradient of the task's loss on public data [d], no longer than a record's may be."""
        with unchanged(self._model):
            loss = self._task.public_loss(self._model, int.from_bytes(os.urandom(7), "big"))
        if loss is None:
            return np.zeros(self._gradients.dimension)
        found = torch.autograd.grad(loss, self._gradients.parameters, materialize_grads=True)
        gradient = self._gradients.flat(found).double().numpy()
        length = float(np.linalg.norm(gradient))
        return gradient * min(1.0, norm / length) if 0 < length < math.inf else np.zeros(len(gradient))

    def _losses(self, batch: object, records: int) -> torch.Tensor:
        losses = self._task.record_losses(self._model, batch)
        check_losses(losses, records * self._task.views)
        return losses

    def _rows(self, keys: Index | None) -> torch.Tensor | None:
        """Each row's owner, numbered within the chunk."""
        if keys is None:
            return None
        return torch.from_numpy(np.repeat(np.unique(keys, return_inverse=True)[1], self._task.views))

    def _assign(self, gradient: npt.NDArray[np.float64]) -> None:
        offset = 0
        for parameter in self._gradients.parameters:
            part = gradient[offset : offset + parameter.numel()]
            parameter.grad = torch.from_numpy(part.astype(np.float32)).view_as(parameter)
            offset += parameter.numel()


def participant_share(
    update: npt.NDArray[np.float32], plan: PrivacyPlan, limit: int, keys: Keys = NoiseKey.fresh
) -> Integers:
    """A whole update, clipped to the plan's norm, with this site's share of a noise that hides the site.

    Args:
        update: float32 [d].
        plan: For placement PARTICIPANT.
        limit: Largest integer that the secure sum has room for.
        keys: Where noise comes from.

    Returns:
        int32 [d], for a secure sum.
    """
    if plan.share is None or plan.placement is not Placement.PARTICIPANT:
        raise PrivacyError("plan-inconsistent", "the plan doesn't hide whole participants")
    wide = update.astype(np.float64)
    norm = math.sqrt(float(np.dot(wide, wide)))
    if norm > plan.clip_norm:
        _log.info("the update was scaled to the clipping norm %g", plan.clip_norm)
        wide *= plan.clip_norm / norm
    return Lattice(plan.share.grid, plan.dimension).share(wide, plan.share.std, keys(), limit)


def _optimizer(model: nn.Module, settings: TrainingConfig) -> torch.optim.Optimizer:
    ordinary = make_optimizer(model, settings)
    if not isinstance(ordinary, torch.optim.AdamW):
        return ordinary
    groups = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in ordinary.param_groups]
    return DPAdamBC(groups, settings.learning_rate, betas=ordinary.defaults["betas"])


def _set(optimizer: torch.optim.Optimizer, rate: float, noise_std: float, step: int) -> None:
    """Step size and, for DP-AdamBC, the noise in the gradient and the smallest second moment that is told from it.

    The second moment of noise alone has the mean s^2 and, as an average of t squares with weights beta^(t - k), the
    standard deviation s^2 sqrt(2 (1 - beta) / (1 + beta) (1 + beta^t) / (1 - beta^t)). What is left of a moment once
    s^2 is taken out means something above that.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
        if isinstance(optimizer, DPAdamBC):
            beta = group["betas"][1]
            spread = 2 * (1 - beta) / (1 + beta) * (1 + beta**step) / (1 - beta**step)
            group["noise_std"] = noise_std
            group["floor"] = max(_SMALLEST_MOMENT, noise_std**2 * math.sqrt(spread))


def _places(sizes: dict[str, int]) -> dict[str, slice]:
    ends = np.cumsum(list(sizes.values())).tolist()
    return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


def _placed(
    values: npt.NDArray[_Number], sizes: dict[str, int], places: dict[str, slice], length: int
) -> npt.NDArray[_Number]:
    """Parts of these sizes, one after the other in ``values``, where they belong in a longer vector of zeros."""
    whole = np.zeros(length, values.dtype)
    offset = 0
    for name, size in sizes.items():
        whole[places[name]] = values[offset : offset + size]
        offset += size
    return whole
