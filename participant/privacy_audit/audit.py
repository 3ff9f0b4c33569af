"""A run's own training with canaries in it: what its releases tell, beside what the accountant says they may."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import nn

from core_model import LearningConfig
from core_model.tasks.base import LearningTask
from participant.privacy import site_plan
from participant.privacy_audit.canaries import Canaries, CanaryTask
from participant.privacy_audit.recorder import Recorder, Watched, noise_shares, watch_shared
from participant.privacy_audit.verdicts import Finding, examine, faults
from participant.training.private.checks import check_decomposes, freeze_unused
from participant.training.private.engine import RecordGradients, trained_layers
from participant.training.private.loop import Keys, PrivateTraining
from participant.training.private.population import Population
from privacy.accounting.accountant import epsilon
from privacy.accounting.events import Placement, Unit, merged
from privacy.auditing import OneRun, largest_refuted, one_run
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.noise import NoiseKey
from privacy.mechanisms.plan import PrivacyPlan
from wire import RunPlan
from wire.noise import shares

CONFIDENCE: Final = 0.95
_FRACTIONS: Final = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingAudit:
    """What an audited training showed.

    Attributes:
        lower: The one-run audit: epsilon is at least ``lower.epsilon``, with its confidence.
        upper: What the accountant says of the same steps, at the same delta.
        steps: Noisy steps that were watched.
        findings: Of the mechanism, step by step.
        statement: The plan's promise in words.
        seconds: The audit took.
    """

    lower: OneRun
    upper: float
    steps: int
    findings: list[Finding]
    statement: str
    seconds: float

    @property
    def good(self) -> bool:
        """Whether the lower bound stays under the upper one, and no finding speaks against the training."""
        return self.lower.epsilon <= self.upper and not faults(self.findings)


def audit_training(
    run: RunPlan,
    config: LearningConfig,
    task: LearningTask,
    *,
    canaries: int,
    steps: int,
    keys: Keys = NoiseKey.fresh,
    coins: npt.NDArray[np.bool_] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrainingAudit:
    """Train a run's model privately on a site's data with canaries among them.

    The plan is solved for the model with the canaries' tables; data, model, loss, optimizer, sampling rate, clipping
    and noise are the run's. Where noise is shared, the other honest sites take part with noise alone. Nothing leaves
    this machine, and nothing is spent: the trained model is thrown away.

    Formal Guarantees:
        ``lower.epsilon`` exceeds the training's true epsilon with probability at most 1 - 0.95 (see
        :func:`privacy.auditing.one_run`): each canary is one more record, there by a toss of a coin, and the guesses
        come from the releases alone. How many coins are guessed is fixed before.

    Args:
        run: Its plan, with noise at the record.
        config: Its learning tables.
        task: The site's side of it.
        canaries: m; the more, the closer can the lower bound get to the upper one.
        steps: Noisy steps, at most those of the run.
        keys: Where noise comes from.
        coins: [m] Which canaries are in; tossed without it.
        progress: Called after each step with (steps done, steps in all).

    Raises:
        PrivacyError: The plan's promise can't be kept with this model, loss or data; "audit-participant" for noise that
            hides sites, which only several sites can audit.
    """
    started = time.monotonic()
    placement = Placement(run.privacy.placement)
    if placement is Placement.PARTICIPANT:
        raise PrivacyError(
            "audit-participant",
            "this run hides whole sites, which training at one site can't show",
            "Audit the installed software instead: leave --config out.",
        )
    included = np.random.default_rng().random(canaries) < 0.5 if coins is None else coins
    # A group's canary needs somebody there whose gradient it turns around.
    chosen = Canaries(included=included, anchors=0 if task.group_count is None else 1)
    audited = CanaryTask(task, chosen, run.privacy.clip_norm)
    model = audited.build_model(run.rounds.seed)
    dimension = freeze_unused(model, audited)
    plan = _plan(run, config, audited, dimension, len(trained_layers(model)))
    check_decomposes(model, audited, RecordGradients(model, rule=plan.rule), Population(audited, plan.unit))
    count = min(steps, plan.steps)
    audited.seen.clear()
    if plan.placement is Placement.SHARED:
        watched = _shared(run, audited, model, plan, count, keys, progress)
    else:
        recorder = Recorder(audited, plan, max_chunk=run.privacy.max_chunk, keys=keys, model=model)
        recorder.rounds(
            config.training,
            list(range(1, plan.rounds + 1)),
            progress=lambda done: progress(done, count),
            most=count,
        )
        watched = recorder.steps
    events = merged([step.claim.event for step in watched])
    return TrainingAudit(
        lower=one_run(
            totals(watched),
            included,
            guesses=guesses(plan, len(watched), canaries),
            delta=plan.delta,
            confidence=CONFIDENCE,
        ),
        upper=epsilon(events, plan.delta),
        steps=len(watched),
        findings=examine(
            watched, rate=plan.sampling_rate if plan.unit is Unit.RECORD else 1.0, records=audited.examples
        ),
        statement=plan.statement(),
        seconds=time.monotonic() - started,
    )


def totals(steps: list[Watched]) -> npt.NDArray[np.float64]:
    """A score for each canary [m] from all releases of a training: weighted by what they could tell.

    It is the best score where every step uses every record, and close to it where few do.
    """
    found = np.zeros(len(steps[0].rows))
    for step in steps:
        std = step.claim.gradient_multiplier * step.claim.sensitivity
        found += step.clip_norm * step.rows / std**2
    return found


def guesses(plan: PrivacyPlan, steps: int, canaries: int) -> int:
    """How many coins to guess: what promises the largest bound if the training is as private as it says.

    That depends on public numbers alone, so no confidence is lost by choosing.
    """
    multipliers = [plan.step(number).noise_multiplier for number in range(steps)]
    rate = plan.sampling_rate
    # The central limit of subsampled Gaussian steps: mu^2 is the sum of q^2 (e^(1 / sigma^2) - 1).
    squared = sum(rate**2 * math.expm1(min(100.0, sigma**-2)) if rate < 1 else sigma**-2 for sigma in multipliers)
    mu = math.sqrt(squared)
    generator = np.random.default_rng(0)
    scores = np.sort(np.abs(generator.normal(mu / 2, 1.0, 20_000)))[::-1]
    best, found = 2, -1.0
    for fraction in _FRACTIONS:
        count = max(2, int(canaries * fraction / 2) * 2)
        if count > canaries:
            continue
        kept = scores[: max(1, int(len(scores) * fraction))]
        # With a score of x from the middle between both worlds, the likelier coin is right with this probability.
        accuracy = float(np.mean(1 / (1 + np.exp(-mu * kept))))
        right = math.floor(count * accuracy - math.sqrt(count * accuracy * (1 - accuracy)))
        promised = largest_refuted(canaries, count, max(0, right), plan.delta, CONFIDENCE)
        if promised > found:
            best, found = count, promised
    return best


def _plan(run: RunPlan, config: LearningConfig, task: CanaryTask, dimension: int, layers: int) -> PrivacyPlan:
    """The site's plan, for its own number of records and the model with the canaries' tables."""
    base = task.base
    unit = Unit.RECORD if base.persons is None else Unit.PERSON
    people = Population(base, unit)
    return site_plan(
        with_dimension(run, dimension, people.factor),
        unit=unit,
        units=people.units,
        records=base.examples,
        batch_size=config.training.batch_size,
        steps_per_round=config.training.steps(base.examples),
        dimension=dimension,
        layers=layers,
        group_factor=people.factor,
    )


def with_dimension(run: RunPlan, dimension: int, factor: int) -> RunPlan:
    """The run with its shared noise on a lattice for so many parameters; as it is where noise is local.

    The noise multiplier and the number of honest sites stay.
    """
    noise = run.shared_noise
    if noise is None:
        return run
    changed = shares(
        run.privacy,
        dimension,
        batch=noise.grid / noise.quantum,
        factor=factor,
        multiplier=noise.multiplier,
        honest=noise.honest,
    )
    return run.model_copy(update={"shared_noise": changed})


def _shared(
    run: RunPlan,
    task: CanaryTask,
    model: nn.Module,
    plan: PrivacyPlan,
    steps: int,
    keys: Keys,
    progress: Callable[[int, int], None],
) -> list[Watched]:
    """Steps with this site's data, and with the noise of as many sites as the plan counts on."""
    assert run.shared_noise is not None
    training = PrivateTraining(model, task, plan, max_chunk=run.privacy.max_chunk, keys=keys)
    limit = (1 << (run.shared_noise.value_bits - 1)) - 1
    found = []
    for done in range(steps):
        others = noise_shares(plan, limit, keys)
        found.append(watch_shared(training, others, task, model, plan, limit))
        progress(done + 1, steps)
    return found
