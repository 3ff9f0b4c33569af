"""A site's private rounds: the privacy plan, and the update that a round may give away."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

from torch import nn

from core_model import LearningConfig, Manifest, difference
from core_model.manifest import Vector
from core_model.tasks.base import LearningTask
from participant.privacy import History, site_plan
from participant.training.private.checks import freeze_unused
from participant.training.private.engine import trained_layers
from participant.training.private.loop import ClipState, Integers, PrivateTraining, participant_share
from participant.training.private.population import Population
from privacy.accounting.events import Event, Placement, Unit
from privacy.mechanisms.adaptive import NoiseControl
from privacy.mechanisms.plan import PrivacyPlan
from wire import RunPlan

__all__ = ["Integers", "PrivateRounds"]


@dataclasses.dataclass
class _Followed:
    """What follows the releases from step to step: the clipping norm and, where it isn't planned, the noise."""

    clip: ClipState
    control: NoiseControl | None


class PrivateRounds:
    """Private training of one run at one site.

    ``released`` are the events of the last round's steps, as they were: what it has cost.

    Args:
        run: The run's plan; its ``privacy`` isn't "off".
        config: Its learning tables.
        task: The site's data and loss.
        model: As the trainer keeps it; parameters that the loss doesn't reach are frozen.

    Raises:
        PrivacyError: The promise can't be kept with this model, loss or data.
        CoupledLossError: The loss compares records.
    """

    def __init__(self, run: RunPlan, config: LearningConfig, task: LearningTask, model: nn.Module) -> None:
        self._run = run
        self._config = config
        self._task = task
        placement = Placement(run.privacy.placement)
        whole = placement is Placement.PARTICIPANT
        unit = Unit.PARTICIPANT if whole else Unit.RECORD if task.persons is None else Unit.PERSON
        people = Population(task, unit)
        trainable = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
        dimension = Manifest.of(model).dimension if whole else freeze_unused(model, task)
        # Which parameters a loss doesn't reach may differ from site to site, so a shared noise covers them all.
        self._noised = list(trainable) if placement is Placement.SHARED else None
        self.plan: PrivacyPlan = site_plan(
            run,
            unit=unit,
            units=people.units,
            records=task.examples,
            batch_size=config.training.batch_size,
            steps_per_round=config.training.steps(task.examples),
            dimension=sum(trainable.values()) if self._noised is not None else dimension,
            layers=len(trained_layers(model)),
            group_factor=1 if whole else people.factor,
        )
        control = None if self.plan.noise is None else self.plan.control()
        self._followed = _Followed(ClipState(run.privacy.clip_norm), control)
        self._trained: tuple[str, _Followed] | None = None
        self.released: list[Event] = []
        if not whole:
            self._training(model).check()

    def _training(self, model: nn.Module) -> PrivateTraining:
        return PrivateTraining(model, self._task, self.plan, max_chunk=self._run.privacy.max_chunk, noised=self._noised)

    @property
    def limit(self) -> int:
        """Largest integer of a share of the noise."""
        noise = self._run.shared_noise
        return (1 << (noise.value_bits - 1)) - 1 if noise is not None else 0

    def train(
        self,
        model: nn.Module,
        base: Vector,
        *,
        round_number: int,
        rounds: int,
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
        history: History | None = None,
    ) -> Vector | Integers | None:
        """The update of a round for noise that is added at the record; None if ``cancelled()`` said to stop.

        Formal Guarantees:
            What follows the releases goes on from a round only if ``history`` says that its result was paid for.

        Args:
            model: Holds ``base``.
            base: float32 [d].
            round_number: From 1.
            rounds: Of the run.
            progress: Called with (steps done, steps in all).
            cancelled: Asked before each step.
            history: Of the run; without it, all rounds that were trained here count as released.

        Returns:
            float32 [d] with local noise, int32 [d] with a share of it.
        """
        training = self._training(model)
        self.released = training.released
        if self.plan.placement is Placement.SHARED:
            shared = training.shared_step(self.limit, self._config.training.batch_size)
            progress(1, 1)
            return None if cancelled() else shared
        followed = self._go_on(history)
        done = training.steps(
            self._config.training,
            round_number=round_number,
            rounds=rounds,
            clip=followed.clip,
            progress=progress,
            cancelled=cancelled,
            control=followed.control,
        )
        if not done:
            return None
        self._trained = "" if history is None else history.task_id, followed
        update = difference(model, base)
        training.check_untrained(update)
        return update

    def _go_on(self, history: History | None) -> _Followed:
        """A state for the next round, after all rounds that were paid for."""
        if self._trained is not None and (history is None or self._trained[0] in history.released):
            self._followed = self._trained[1]
        self._trained = None
        found = copy.deepcopy(self._followed)
        if found.control is not None and history is not None:
            found.control = found.control.resumed(history.spent)
        return found

    def share(self, update: Vector) -> Integers:
        """A whole update with this site's share of the noise, for placement PARTICIPANT."""
        return participant_share(update, self.plan, self.limit)
