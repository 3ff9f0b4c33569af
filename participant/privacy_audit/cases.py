"""Every way of training privately, on made-up data: what an audit of the installed software goes through."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import numpy as np

from core_model import TrainingConfig
from participant.privacy_audit.canaries import Canaries, CanaryTask
from participant.privacy_audit.recorder import (
    Claim,
    Recorder,
    Watched,
    canary_rows,
    noise_shares,
    watch_shared,
)
from participant.privacy_audit.reference import Loss, ReferenceTask
from participant.privacy_audit.verdicts import ERROR, Finding, examine
from participant.training.private.checks import repeatable
from participant.training.private.loop import Keys, PrivateTraining, participant_share
from privacy.accounting.events import Placement, Unit
from privacy.mechanisms.adaptive import AdaptiveNoise
from privacy.mechanisms.clipping import ClippingRule
from privacy.mechanisms.noise import NoiseKey
from privacy.mechanisms.plan import PrivacyPlan, Share, solve
from privacy.mechanisms.quantile import QuantileClipping
from privacy.mechanisms.schedules import NoiseSchedule

Rule = Literal["flat", "automatic", "layers"]
Schedule = Literal["constant", "linear", "step"]

_CLIP: Final = 0.3
_TABLES: Final = 4
_LAYERS: Final = 2  # of the reference network
_HONEST: Final = 3
_SITES: Final = 8  # that hide a whole one
_LIMIT: Final = (1 << 30) - 1
_STEPS: Final = 4  # of a round
_BASE: Final = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One way of training.

    Attributes:
        placement: Of the noise.
        rule: Of clipping.
        loss: Of the reference task.
        schedule: Of the noise.
        adaptive: Whether the clipping norm follows the data.
        following: Whether the noise follows what is released.
        virtual: Whether a batch passes through the model in several chunks.
        unit: RECORD or PERSON.
        views: Of each record.
        rate: Of sampling.
        alone: One canary against eight anchors, in two runs, instead of many canaries in one: sees what becomes of a
            record in a small sum, and takes several times as long.
        optimizer: Of the steps.
    """

    placement: Placement = Placement.LOCAL
    rule: Rule = "flat"
    loss: Loss = "classification"
    schedule: Schedule = "constant"
    adaptive: bool = False
    following: bool = False
    virtual: bool = False
    unit: Unit = Unit.RECORD
    views: int = 1
    rate: float = 1.0
    alone: bool = False
    optimizer: Literal["sgd", "adamw"] = "sgd"

    def __str__(self) -> str:
        """The settings that aren't the usual ones."""
        usual = Case()
        parts = [self.placement.value]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value != getattr(usual, field.name):
                parts.append(field.name if value is True else f"{field.name} {value}")
        return ", ".join(str(part) for part in parts)

    @property
    def possible(self) -> bool:
        """Whether a plan can ask for it."""
        if self.placement is not Placement.LOCAL and (self.adaptive or self.schedule != "constant"):
            return False
        return not (self.adaptive and self.rule == "automatic")


def all_cases() -> Iterator[Case]:
    """Each rule with each loss, schedule, norm and batch; and each special way once."""
    found = list(short_cases())
    for rule, loss, schedule, adaptive, virtual in itertools.product(
        ("flat", "automatic", "layers"),
        ("classification", "regression", "contrastive"),
        ("constant", "linear", "step"),
        (False, True),
        (False, True),
    ):
        case = Case(rule=rule, loss=loss, schedule=schedule, adaptive=adaptive, virtual=virtual)  # type: ignore[arg-type]
        if case.possible and case not in found:
            found.append(case)
    yield from found


def short_cases() -> Iterator[Case]:
    """A dozen that between them meet every setting."""
    yield Case()
    yield Case(rule="layers", loss="regression", schedule="linear", virtual=True, optimizer="adamw")
    yield Case(loss="contrastive", schedule="step", adaptive=True, virtual=True)
    yield Case(rule="automatic", unit=Unit.PERSON, virtual=True)
    yield Case(unit=Unit.PERSON, views=2, adaptive=True)
    yield Case(views=3, loss="regression", optimizer="adamw", schedule="step")
    yield Case(rate=0.2, virtual=True)
    yield Case(rate=0.05, adaptive=True)
    yield Case(loss="contrastive", rule="layers")
    yield Case(following=True)
    yield Case(placement=Placement.SHARED)
    yield Case(placement=Placement.SHARED, loss="contrastive", rule="automatic", virtual=True, rate=0.5)
    yield Case(placement=Placement.PARTICIPANT)
    yield Case(alone=True)


def run_case(case: Case, keys: Keys = NoiseKey.fresh, error: float = ERROR) -> list[Finding]:
    """Train as the case says, with canaries, and compare releases with claims.

    Args:
        case: A possible one.
        keys: Where noise comes from.
        error: Probability of a false alarm.
    """
    if case.placement is Placement.PARTICIPANT:
        return examine(_hidden_sites(keys), rate=1.0, records=0, error=error)
    steps: list[Watched] = []
    records = 0
    for included in _coins(case):
        canaries = Canaries(
            included=included,
            anchors=8 if case.alone else 1,
            tables=_TABLES if case.rule == "layers" else 1,
            records=2 if case.unit is Unit.PERSON else 1,
        )
        count = 2 if case.alone else _BASE
        persons = np.arange(count) // 3 if case.unit is Unit.PERSON else None
        base = ReferenceTask(count, case.loss, views=case.views, persons=persons)
        task = CanaryTask(base, canaries, _CLIP, quiet=case.adaptive)
        records = task.examples
        found = _shared(case, task, keys) if case.placement is Placement.SHARED else _local(case, task, keys)
        steps.extend(found)
    return examine(steps, rate=case.rate if case.unit is Unit.RECORD else 1.0, records=records, error=error)


def check_seeds(keys: Keys = NoiseKey.fresh) -> Finding:
    """Whoever knows the seeds of all common generators doesn't know the noise: two such trainings differ everywhere."""
    case = Case()
    canaries = Canaries(included=np.arange(8) % 2 == 0)
    releases = []
    for _ in range(2):
        task = CanaryTask(ReferenceTask(_BASE), canaries, _CLIP)
        with repeatable(1):
            recorder = Recorder(task, _plan(case, task), max_chunk=_chunk(case, task), keys=keys)
            recorder.rounds(_settings(case), [1])
        releases.append(np.concatenate([step.release for step in recorder.steps]))
    equal = float(np.mean(releases[0] == releases[1]))
    good = equal < 0.05
    return Finding(
        name="seeds",
        good=good,
        measured=equal,
        bound=0.05,
        words="noise doesn't follow from the seeds of common generators"
        if good
        else "noise follows from the seed of a common generator: whoever guesses that takes it off",
    )


def _coins(case: Case) -> list[np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Which canaries are in the data, for each run. Half of them: fixed ones, so that there are as many of each."""
    if case.alone:
        return [np.array([False]), np.array([True])]
    return [np.arange(_canaries(case)) % 2 == 0]


def _canaries(case: Case) -> int:
    return 24 if case.rate < 0.1 else 64 if case.rate < 1 else 128


def _rounds(case: Case) -> int:
    if case.alone:
        return 160
    rounds = 60 if case.schedule != "constant" or case.following else 12
    return rounds if case.rate == 1 else int(rounds / case.rate)


def _local(case: Case, task: CanaryTask, keys: Keys) -> list[Watched]:
    recorder = Recorder(task, _plan(case, task), max_chunk=_chunk(case, task), keys=keys)
    count = _rounds(case)
    recorder.rounds(_settings(case), list(range(1, count + 1)) if case.following else [1] * count)
    return recorder.steps


def _shared(case: Case, task: CanaryTask, keys: Keys) -> list[Watched]:
    plan, model = _plan(case, task), task.build_model(0)
    site = PrivateTraining(model, task, plan, max_chunk=_chunk(case, task), keys=keys)
    return [
        watch_shared(site, noise_shares(plan, _LIMIT, keys), task, model, plan, _LIMIT)
        for _ in range(int(60 / case.rate))
    ]


def _plan(case: Case, task: CanaryTask) -> PrivacyPlan:
    """What a site's plan of this case would be, at a noise that shows faults quickly."""
    noise = 0.35 if case.alone else 0.5
    dimension = sum(parameter.numel() for parameter in task.build_model(0).parameters())
    local = case.placement is Placement.LOCAL
    factor = 1 if task.group_count is None else 2
    schedule = {"constant": 1.0, "linear": 1.6, "step": 1.6}[case.schedule]
    units = len(np.unique(task.persons)) if task.persons is not None else task.examples
    return solve(
        unit=case.unit,
        placement=case.placement,
        target_epsilon=1e4,
        delta=1e-6,
        records=units,
        sampling_rate=case.rate,
        clip_norm=_CLIP,
        rounds=_rounds(case) if case.following else 1,
        steps_per_round=_STEPS if local else 1,
        dimension=dimension,
        rule=_rule(case),
        group_factor=factor,
        schedule=NoiseSchedule(kind=case.schedule, end=schedule),
        multiplier=noise,
        adaptive=_quantile(case, task, units) if case.adaptive else None,
        # The canaries' signal is weak beside this target, so that the noise falls.
        noise=AdaptiveNoise(target=1e3, smoothing=0.0) if case.following else None,
        share=None if local else _share(noise, factor * _CLIP, dimension, _HONEST),
    )


def _quantile(case: Case, task: CanaryTask, units: int) -> QuantileClipping:
    """A quantile a little over that of the units within the norm, so that the norm grows tenfold during the audit.

    Base records stay within any norm, canaries and anchors don't.
    """
    loud = task.canaries.count * task.canaries.anchors + int(task.canaries.included.sum())
    quiet, expected = units - loud, float(units)
    if task.group_count is not None and task.base.group_count is not None:
        loud, quiet = task.canaries.count, task.base.group_count
        expected = task.group_count * (1 - (1 - case.rate / task.group_count) ** units)
    within = 0.5 + (quiet - loud) / 2 / expected
    usual = QuantileClipping()
    growth = math.log(10) / (usual.learning_rate * _rounds(case) * _STEPS)
    return QuantileClipping(target=within + growth, count_multiplier=1.0)


def _share(noise: float, norm: float, dimension: int, honest: int) -> Share:
    grid = norm / 200 / math.sqrt(dimension)
    return Share(std=noise * (norm * 201 / 200) / math.sqrt(honest) * (1 + 1e-9), honest=honest, grid=grid)


def _rule(case: Case) -> ClippingRule:
    if case.rule != "layers":
        return ClippingRule(kind=case.rule)
    # Nearly all of the norm for the canaries' tables: there a record moves the sum the most.
    small = 0.01
    large = math.sqrt((1 - _LAYERS * small**2) / _TABLES)
    return ClippingRule(kind="layers", shares=(small,) * _LAYERS + (large,) * _TABLES)


def _settings(case: Case) -> TrainingConfig:
    """Steps so small that the model stays where it is."""
    return TrainingConfig(
        optimizer=case.optimizer,
        learning_rate=1e-9,
        momentum=0.0,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
    )


def _chunk(case: Case, task: CanaryTask) -> int:
    return max(7, task.examples // 3) if case.virtual else task.examples * task.views


def _hidden_sites(keys: Keys, steps: int = 1_000, dimension: int = 40) -> list[Watched]:
    """Sums of whole updates with and without one more site, which pulls where another one pushes."""
    plan = solve(
        unit=Unit.PARTICIPANT,
        placement=Placement.PARTICIPANT,
        target_epsilon=1e4,
        delta=1e-6,
        records=_SITES,
        sampling_rate=1.0,
        clip_norm=_CLIP,
        rounds=1,
        steps_per_round=1,
        dimension=dimension,
        multiplier=0.3,
        share=_share(0.3, _CLIP, dimension, _SITES),
    )
    assert plan.share is not None
    updates = np.zeros((_SITES + 1, dimension), np.float32)
    updates[0, 0], updates[-1, 0] = -50 * _CLIP, 50 * _CLIP
    places, claim = [slice(0, 1)], Claim.of(plan, plan.step(0).event, _CLIP)
    found = []
    for here in (False, True):
        sites: Sequence[np.ndarray[tuple[int], np.dtype[np.float32]]] = list(updates if here else updates[:-1])
        # The site that may be there brings noise of its own.
        more = math.sqrt(len(sites) / _SITES)
        for _ in range(steps):
            shares = [participant_share(update, plan, _LIMIT, keys) for update in sites]
            release = np.stack(shares).sum(axis=0, dtype=np.int64).astype(np.int32)
            found.append(
                Watched(
                    claim=dataclasses.replace(claim, gradient_multiplier=claim.gradient_multiplier * more),
                    clip_norm=_CLIP,
                    rows=canary_rows(release, places) * plan.share.grid,
                    release=release,
                    scale=plan.share.grid,
                    here=np.array([here]),
                    anchors=np.array([1]),
                    sample=np.empty(0, np.int64),
                    below=math.nan,
                    above=0,
                    units=0,
                )
            )
    return found
