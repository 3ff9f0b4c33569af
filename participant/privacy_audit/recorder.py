"""Private training as an auditor watches it: every release, what went into it, and what was claimed of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from core_model import Manifest, TrainingConfig
from participant.privacy_audit.canaries import PREFIX, CanaryTask
from participant.training.private.loop import ClipState, Keys, PrivateTraining
from privacy.accounting.events import Event
from privacy.mechanisms.lattice import Lattice
from privacy.mechanisms.noise import NoiseKey
from privacy.mechanisms.plan import LATTICE_SLACK, PrivacyPlan

_NEVER: Final = 1 << 40
_LOOKED_AT: Final = 64  # of each tensor

Release: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What the ledger says of a step, worked out from the accounted event and the site's settings alone.

    Attributes:
        event: What was accounted.
        sensitivity: How far one unit may move the sum, in the gradients' units.
        gradient_multiplier: Noise of the sum, relative to that.
        count_std: Noise of the count beside it, in units; 0 where there is none.
        grid: What one lattice unit is worth.
    """

    event: Event
    sensitivity: float
    gradient_multiplier: float
    count_std: float
    grid: float

    @classmethod
    def of(cls, plan: PrivacyPlan, event: Event, clip_norm: float) -> Claim:
        """Work it out anew, without the plan's own methods: an auditor doesn't ask the audited.

        Args:
            plan: Its settings.
            event: As accounted.
            clip_norm: Of this step.
        """
        root = math.sqrt(plan.dimension)
        grid = LATTICE_SLACK * plan.group_factor * clip_norm / root if plan.share is None else plan.share.grid
        accounted = event.noise_multiplier
        multiplier, count_std = accounted, 0.0
        if plan.adaptive is not None:
            count_std = plan.adaptive.count_multiplier * accounted
            multiplier = 1 / math.sqrt(accounted**-2 - (2 * count_std) ** -2)
        return cls(
            event=event,
            sensitivity=plan.group_factor * clip_norm + grid * root,
            gradient_multiplier=multiplier,
            count_std=count_std * plan.group_factor,
            grid=grid,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched:
    """One step.

    Attributes:
        claim: What was claimed of it.
        clip_norm: That it began with.
        rows: [m] The released sum's part of each canary, in the gradients' units.
        release: Some of the release's numbers as they left, of every tensor, float32 or int32.
        scale: What one unit of ``release`` is worth in the sum: expected batch size, or grid.
        here: [m] Whether a canary was in the sample.
        anchors: [m] How many anchors of each row were.
        sample: Records of the sample.
        below: Noisy count of units within the norm less half of all; NaN where there is none, or where it isn't known
            what it should be without its noise.
        above: Units known to be beyond the norm.
        units: Units in the sample, of which all others are within it.
    """

    claim: Claim
    clip_norm: float
    rows: npt.NDArray[np.float64]
    release: Release
    scale: float
    here: npt.NDArray[np.bool_]
    anchors: npt.NDArray[np.int64]
    sample: npt.NDArray[np.int64]
    below: float
    above: int
    units: int


class Recorder:
    """Runs private training on a task with canaries and records every release.

    Args:
        task: With canaries.
        plan: For the model with the canaries' tables.
        max_chunk: As in training.
        keys: Where noise comes from.
        model: To train; the task's own without it.
    """

    def __init__(
        self,
        task: CanaryTask,
        plan: PrivacyPlan,
        *,
        max_chunk: int,
        keys: Keys = NoiseKey.fresh,
        model: nn.Module | None = None,
    ) -> None:
        self._task = task
        self._plan = plan
        self._model = task.build_model(0) if model is None else model
        self._training = PrivateTraining(self._model, task, plan, max_chunk=max_chunk, keys=keys)
        self._places = canary_places(self._model)
        self._looked_at = looked_at(self._model)
        self._control = None if plan.noise is None else plan.control()
        self.clip = ClipState(plan.clip_norm)
        self.steps: list[Watched] = []

    def rounds(
        self,
        settings: TrainingConfig,
        numbers: list[int],
        progress: Callable[[int], None] = lambda done: None,
        most: int = _NEVER,
    ) -> None:
        """Train rounds with these numbers (from 1) and record their steps, up to so many in all.

        Args:
            settings: Of the optimizer.
            numbers: Rounds.
            progress: Called after each step with the number of steps recorded so far.
            most: Steps after which it stops.
        """
        for number in numbers:
            norms = [self.clip.norm]

            def after(done: int, total: int, norms: list[float] = norms) -> None:
                self._record(norms[-1])
                norms.append(self.clip.norm)
                progress(len(self.steps))

            self._task.seen.clear()
            self._training.steps(
                settings,
                round_number=number,
                rounds=self._plan.rounds,
                clip=self.clip,
                progress=after,
                cancelled=lambda: len(self.steps) >= most,
                control=self._control,
            )

    def _record(self, clip_norm: float) -> None:
        """Take down what :meth:`PrivateTraining.steps` has just released: the gradients of its optimizer's step."""
        sample = _together(self._task.seen)
        here, anchors = self._task.whereabouts(sample)
        gradients = [p.grad for p in self._model.parameters() if p.requires_grad and p.grad is not None]
        release = torch.cat([gradient.reshape(-1) for gradient in gradients]).numpy()
        scale = expected_units(self._task, self._plan)
        claim = Claim.of(self._plan, self._training.released[-1], clip_norm)
        above, units = self._known(sample)
        self.steps.append(
            Watched(
                claim=claim,
                clip_norm=clip_norm,
                rows=canary_rows(release, self._places) * scale,
                release=release[self._looked_at],
                scale=scale,
                here=here,
                anchors=anchors,
                sample=sample,
                below=self._below(clip_norm, scale),
                above=above,
                units=units,
            )
        )

    def _below(self, before: float, expected: float) -> float:
        """The noisy count that the norm's change tells of; NaN where it was cut to its range."""
        adaptive = self._plan.adaptive
        if adaptive is None or not self._task.quiet:
            return math.nan
        share = adaptive.target - math.log(self.clip.norm / before) / adaptive.learning_rate
        return (share - 0.5) * expected if 1e-9 < share < 1 - 1e-9 else math.nan

    def _known(self, sample: npt.NDArray[np.int64]) -> tuple[int, int]:
        """Units beyond any norm, which are the canaries', and units in all."""
        ordinary = sample[sample < self._task.base.examples]
        here, anchors = self._task.whereabouts(sample)
        if self._task.group_count is not None:
            above = int((here | (anchors > 0)).sum())
            return above, above + len(np.unique(self._task.groups(ordinary)))
        above = int(here.sum()) + int(anchors.sum())
        persons = self._task.base.persons
        return above, above + (len(ordinary) if persons is None else len(np.unique(persons[ordinary])))


def watch_shared(
    training: PrivateTraining,
    others: Sequence[npt.NDArray[np.int32]],
    task: CanaryTask,
    model: nn.Module,
    plan: PrivacyPlan,
    limit: int,
) -> Watched:
    """One step whose noise is shared: the sum that a secure aggregation publishes.

    Args:
        training: The audited site's.
        others: What the other sites add [d], noise and nothing else.
        task: The audited site's.
        model: The audited site's.
        plan: Of all.
        limit: Largest integer of a site.
    """
    task.seen.clear()
    mine = _trained(model, training.shared_step(limit, 1.0))
    # What is published is a sum in a ring, whose elements carry all of these.
    release: npt.NDArray[np.int32] = np.stack([mine, *others]).sum(axis=0, dtype=np.int64).astype(np.int32)
    sample = _together(task.seen)
    here, anchors = task.whereabouts(sample)
    assert plan.share is not None
    return Watched(
        claim=Claim.of(plan, training.released[-1], plan.clip_norm),
        clip_norm=plan.clip_norm,
        # Steps go downhill.
        rows=-canary_rows(release, canary_places(model)) * plan.share.grid,
        release=release[looked_at(model)],
        scale=plan.share.grid,
        here=here,
        anchors=anchors,
        sample=sample,
        below=math.nan,
        above=0,
        units=0,
    )


def noise_shares(plan: PrivacyPlan, limit: int, keys: Keys) -> list[npt.NDArray[np.int32]]:
    """What the other honest sites add to a sum, if what they know of their records is taken out of it: noise, [d]."""
    assert plan.share is not None
    lattice, nothing = Lattice(plan.share.grid, plan.dimension), np.zeros(plan.dimension)
    return [lattice.share(nothing, plan.share.std, keys(), limit) for _ in range(plan.share.honest - 1)]


def _trained(model: nn.Module, whole: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The trained parameters' part of a vector over all of a model's tensors."""
    entries = {entry.name: entry for entry in Manifest.of(model).entries}
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return np.concatenate([whole[entries[n].offset : entries[n].offset + entries[n].size] for n in names])


def canary_places(model: nn.Module) -> list[slice]:
    """Where the tables lie among the trained parameters, without their last rows."""
    places, offset = [], 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith(PREFIX):
            places.append(slice(offset, offset + len(parameter) - 1))
        offset += parameter.numel()
    return places


def looked_at(model: nn.Module) -> npt.NDArray[np.int64]:
    """Places of some numbers of every trained tensor, evenly spread: what is compared from release to release."""
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    places, offset = [], 0
    for size in sizes:
        places.append(offset + np.unique(np.linspace(0, size - 1, min(size, _LOOKED_AT)).astype(np.int64)))
        offset += size
    return np.concatenate(places)


def canary_rows(release: Release, places: list[slice]) -> npt.NDArray[np.float64]:
    """The part of a release along each canary's gradient, [m]: of unit length, across the tables."""
    rows = np.zeros(places[0].stop - places[0].start)
    for place in places:
        rows += release[place]
    found: npt.NDArray[np.float64] = rows / math.sqrt(len(places))
    return found


def expected_units(task: CanaryTask, plan: PrivacyPlan) -> float:
    """What a sum is divided by: owners that a step is expected to have, from public numbers."""
    units = task.examples if task.persons is None else len(np.unique(task.persons))
    groups = task.group_count
    if groups is None:
        return plan.sampling_rate * units
    return groups * (1 - (1 - plan.sampling_rate / groups) ** units)


def _together(chunks: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    sample = np.concatenate(chunks) if chunks else np.empty(0, np.int64)
    chunks.clear()
    return sample
