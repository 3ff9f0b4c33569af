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
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from core_model import Manifest, TrainingConfig
from core_model.tasks.base import LearningTask
from participant.training.optimizer import learning_rate, make_optimizer
from participant.training.private.engine import RecordGradients
from privacy.accounting.events import Placement
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.lattice import Lattice
from privacy.mechanisms.noise import NoiseKey, gaussian_integers
from privacy.mechanisms.plan import PrivacyPlan
from privacy.mechanisms.sampling import PoissonSampler

_log = logging.getLogger("fedloom.participant")

_TOLERANCE = 1e-6

Keys = Callable[[], NoiseKey]
Integers = npt.NDArray[np.int32]


@dataclasses.dataclass
class ClipState:
    """The clipping norm as it follows the data from step to step. It is made of noisy counts, so it isn't private."""

    norm: float


def freeze_unused(model: nn.Module, task: LearningTask) -> int:
    """Freeze what the task's loss doesn't reach, such as the tower of a modality that the site hasn't; what is trained.

    Returns:
        Numbers that are trained, d.

    Raises:
        CoupledLossError: For a loss that compares records.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batch = task.sampled(np.arange(min(2, task.examples), dtype=np.int64), 0)
    with torch.random.fork_rng(devices=[]):
        gradients = torch.autograd.grad(task.record_losses(model, batch).sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class PrivateTraining:
    """A model and a site's data under a privacy plan.

    Args:
        model: In the state to train from; changed in place.
        task: The site's side of the task; its losses must decompose by record, or by group.
        plan: Sampler, clipping and noise.
        max_chunk: Records that pass through the model at a time. A chunk is never noised by itself.
        keys: Where noise comes from: the operating system, but in tests.

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
    ) -> None:
        self._model = model
        self._task = task
        self._plan = plan
        self._max_chunk = max_chunk
        self._keys = keys
        self._gradients = RecordGradients(model, rule=plan.rule)
        if self._gradients.dimension != plan.dimension:
            raise PrivacyError(
                "model-untrained",
                f"the plan is for {plan.dimension} parameters; {self._gradients.dimension} of the model's are trained",
            )
        grouped = task.groups(np.arange(min(task.examples, 2), dtype=np.int64)) is not None
        if grouped != (plan.group_factor == 2):
            raise PrivacyError("plan-inconsistent", "the plan's sensitivity isn't that of the task's loss")

    def steps(
        self,
        settings: TrainingConfig,
        *,
        round_number: int,
        rounds: int,
        clip: ClipState,
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
    ) -> bool:
        """Take the noisy steps of a round; the model holds the result. False if ``cancelled()`` said to stop.

        Args:
            settings: Optimizer and learning rate.
            round_number: From 1.
            rounds: Of the run, for the learning-rate schedule.
            clip: The norm to begin with; where the plan lets it follow the data, the norm to go on with.
            progress: Called after each step with (steps done, steps in all).
            cancelled: Asked before each step.
        """
        plan = self._plan
        optimizer = make_optimizer(self._model, settings)
        sampler = PoissonSampler(self._task.examples, plan.sampling_rate, self._keys())
        expected = plan.sampling_rate * self._task.examples
        numbers = plan.round_steps(round_number)
        for done, number in enumerate(numbers):
            if cancelled():
                return False
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, round_number, rounds, done, len(numbers))
            step = plan.step(number)
            total, below, size = self._clipped(sampler.sample(), clip.norm)
            lattice = Lattice(plan.grid(clip.norm), plan.dimension)
            std = step.gradient_multiplier * plan.sensitivity(clip.norm)
            noisy = lattice.values(lattice.release(total, std, self._keys()))
            self._assign(noisy / expected)
            optimizer.step()
            if plan.adaptive is not None and step.count_std is not None:
                # In halves, so that it is an integer: each record adds or takes one.
                halves = 2 * below - size + int(gaussian_integers(self._keys(), 1, 2.0 * step.count_std)[0])
                clip.norm = plan.adaptive.next_norm(clip.norm, halves / 2, expected)
            progress(done + 1, len(numbers))
        return True

    def shared_step(self, limit: int) -> Integers:
        """One step's clipped sum, downhill, on the plan's lattice, with this site's share of the noise.

        Returns:
            int32 [d], for a secure sum, over all tensors of the model: zero where nothing is trained.
        """
        plan = self._plan
        if plan.share is None or plan.placement is not Placement.SHARED:
            raise PrivacyError("plan-inconsistent", "the plan doesn't share the noise of a step")
        sampler = PoissonSampler(self._task.examples, plan.sampling_rate, self._keys())
        total, _, _ = self._clipped(sampler.sample(), plan.clip_norm)
        shared = Lattice(plan.share.grid, plan.dimension).share(-total, plan.share.std, self._keys(), limit)
        return self._spread(shared)

    def check(self) -> None:
        """Test that no record's loss or gradient depends on another record (of another group).

        Raises:
            PrivacyError: "loss-coupled", naming by how much.
            CoupledLossError: The task says so itself.
        """
        index = self._strangers()
        if index is None:
            return
        seed = int.from_bytes(os.urandom(7), "big")
        found = []
        for others in (index[1:3], index[2:4]):
            batch = self._task.sampled(np.array([index[0], *others], np.int64), seed)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed & 0x7FFFFFFF)
                loss = self._task.record_losses(self._model, batch)
                if loss.shape != (3,):
                    raise PrivacyError(
                        "loss-shape",
                        f"the loss of 3 records has the shape {list(loss.shape)}, not one value for each record",
                        "Return a tensor of shape (batch,): for example reduction='none'.",
                    )
                gradients = torch.autograd.grad(loss[0], self._gradients.parameters)
            found.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        largest = float(found[0].abs().max())
        moved = float((found[0] - found[1]).abs().max())
        if not moved <= _TOLERANCE * max(1.0, largest) + 1e-5 * largest:
            raise PrivacyError(
                "loss-coupled",
                f"replacing other records of a batch changes a record's gradient by {moved:.3g} (of {largest:.3g}): "
                "clipping wouldn't bound its influence",
                "Use a loss of each record alone; no batch statistics, no comparison within the batch.",
            )

    def _strangers(self) -> npt.NDArray[np.int64] | None:
        """Four records of four groups; None where there aren't so many."""
        index = np.arange(min(self._task.examples, 4_096), dtype=np.int64)
        groups = self._task.groups(index)
        if groups is not None:
            _, first = np.unique(groups, return_index=True)
            index = index[np.sort(first)]
        return index[:4] if len(index) >= 4 else None

    def _clipped(self, index: npt.NDArray[np.int64], norm: float) -> tuple[npt.NDArray[np.float64], int, int]:
        """The clipped sum [d] over these records, how many were within the norm, and how many there are."""
        total = np.zeros(self._plan.dimension, np.float64)
        below = 0
        self._model.train()
        for chunk in self._chunks(index):
            seed = int.from_bytes(os.urandom(7), "big")
            batch = self._task.sampled(chunk, seed)
            groups = self._task.groups(chunk)
            owners = None if groups is None else torch.from_numpy(np.unique(groups, return_inverse=True)[1])
            losses = functools.partial(self._task.record_losses, self._model, batch)
            found = self._gradients.clipped_sum(losses, norm, owners=owners)
            total += self._gradients.flat(found.total).numpy()
            below += found.below
        if len(index) and below == len(index):
            _log.info("clipping to %g cut no record's gradient: a smaller norm would need less noise", norm)
        return total, below, len(index)

    def _chunks(self, index: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        """Parts that pass through the model at a time; a group is never divided."""
        groups = self._task.groups(index) if len(index) else None
        if groups is None:
            for start in range(0, len(index), self._max_chunk):
                yield index[start : start + self._max_chunk]
            return
        order = np.argsort(groups, kind="stable")
        starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
        begin = 0
        for end in [*starts[1:], len(index)]:
            following = starts[np.searchsorted(starts, end, "right") :][:1]
            length = int(following[0]) if len(following) else len(index)
            if length - begin > self._max_chunk or end == len(index):
                yield index[order[begin:end]]
                begin = int(end)

    def _spread(self, trained: Integers) -> Integers:
        """A vector over the trained parameters as one over all of the model's tensors, in manifest order."""
        manifest = Manifest.of(self._model)
        places = {entry.name: slice(entry.offset, entry.offset + entry.size) for entry in manifest.entries}
        whole = np.zeros(manifest.dimension, np.int32)
        offset = 0
        for name, parameter in zip(self._gradients.names, self._gradients.parameters, strict=True):
            whole[places[name]] = trained[offset : offset + parameter.numel()]
            offset += parameter.numel()
        return whole

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
