"""A site's private rounds: the privacy plan, and the update that a round may give away."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from core_model import LearningConfig, Manifest, difference
from core_model.manifest import Vector
from core_model.tasks.base import LearningTask
from participant.privacy import site_plan
from participant.training.private.checks import freeze_unused
from participant.training.private.loop import ClipState, Integers, PrivateTraining, participant_share
from participant.training.private.population import Population
from privacy.accounting.events import Event, Placement, Unit
from privacy.mechanisms.plan import PrivacyPlan
from wire import RunPlan

__all__ = ["Integers", "PrivateRounds"]


class PrivateRounds:
    """Private training of one run at one site.

    ``released`` are the events of the last round's steps, as they were: what it has cost.

    Args:
        run: The run's plan; its ``privacy`` isn't "off".
        config: Its learning tables.
        task: The site's data and loss.
        model: As the trainer keeps it; parameters that the loss doesn't reach are frozen.
        spent: What the run has released before, where it is taken up again and its noise follows what is released.

    Raises:
        PrivacyError: The promise can't be kept with this model, loss or data.
        CoupledLossError: The loss compares records.
    """

    def __init__(
        self, run: RunPlan, config: LearningConfig, task: LearningTask, model: nn.Module, spent: Iterable[Event] = ()
    ) -> None:
        self._run = run
        self._config = config
        self._task = task
        self._clip = ClipState(run.privacy.clip_norm)
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
            group_factor=1 if whole else people.factor,
        )
        self._control = None if self.plan.noise is None else self.plan.control(spent)
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
    ) -> Vector | Integers | None:
        """The update of a round for noise that is added at the record; None if ``cancelled()`` said to stop.

        Args:
            model: Holds ``base``.
            base: float32 [d].
            round_number: From 1.
            rounds: Of the run.
            progress: Called with (steps done, steps in all).
            cancelled: Asked before each step.

        Returns:
            float32 [d] with local noise, int32 [d] with a share of it.
        """
        training = self._training(model)
        self.released = training.released
        if self.plan.placement is Placement.SHARED:
            shared = training.shared_step(self.limit, self._config.training.batch_size)
            progress(1, 1)
            return None if cancelled() else shared
        done = training.steps(
            self._config.training,
            round_number=round_number,
            rounds=rounds,
            clip=self._clip,
            progress=progress,
            cancelled=cancelled,
            control=self._control,
        )
        if not done:
            return None
        update = difference(model, base)
        training.check_untrained(update)
        return update

    def share(self, update: Vector) -> Integers:
        """A whole update with this site's share of the noise, for placement PARTICIPANT."""
        return participant_share(update, self.plan, self.limit)
