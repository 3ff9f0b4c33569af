"""One plan for a private training: what is sampled, clipped, drawn and accounted belongs together.

A step's noise, its clipping norm and the event that goes to the ledger come from the same :class:`PrivacyPlan`, so that
no caller can put together a sampler, a norm, an amount of noise and a claim that don't fit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import InitVar
from typing import Any, Final

from privacy.accounting.accountant import Accountant
from privacy.accounting.events import Event, GaussianEvent, Placement, Unit, merged
from privacy.accounting.filters import GdpFilter, RdpFilter
from privacy.mechanisms.adaptive import AdaptiveNoise, Filter, NoiseControl
from privacy.mechanisms.calibration import events_of, noise_multiplier_for, planned_epsilon, steps_until
from privacy.mechanisms.clipping import ClippingRule
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.quantile import QuantileClipping
from privacy.mechanisms.rules import EQUAL, Share, check_budget, check_plan, read_plan
from privacy.mechanisms.schedules import NoiseSchedule
from privacy.mechanisms.statement import statement

__all__ = ["LATTICE_SLACK", "PrivacyPlan", "Share", "StepPlan", "solve"]

LATTICE_SLACK: Final = 1 / 200
"""How much rounding to the lattice may add to the sensitivity of a local sum, relative to the clipping norm."""

SEAL: Final = object()
"""What ``solve`` and ``parse`` show to make a plan. It is no secret; it keeps a plan from being made by mistake."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What one noisy step does.

    Attributes:
        number: From 0.
        noise_multiplier: What is accounted: noise relative to sensitivity.
        gradient_multiplier: Of the gradient's own noise; larger where a count is released beside it.
        count_std: Standard deviation of that count's noise; None where there is none.
        event: What the ledger is charged with.
        honest: For shared noise, the fewest honest sites that the noise multiplier is true for.
        share_multiplier: For shared noise, one site's share of it, relative to the sensitivity.
    """

    number: int
    noise_multiplier: float
    gradient_multiplier: float
    count_std: float | None
    event: Event
    honest: int | None = None
    share_multiplier: float = 0.0

    def event_for(self, survivors: int, corrupt: int) -> Event:
        """What the step has cost, given the set of sites whose shares are in the published sum.

        Formal Guarantees:
            Corrupt sites know their own shares, so the others' n - c shares are what hides a unit: their sum has
            sqrt(n - c) times the standard deviation of one. Never less noise is claimed than the plan promises, and
            never more than those shares make.

        Args:
            survivors: n, sites in the sum.
            corrupt: c, how many of them may work together against a unit.

        Raises:
            PrivacyError: "share-too-few" if the honest ones are fewer than the plan counts on.
        """
        if self.honest is None:
            return self.event
        honest = survivors - corrupt
        if corrupt < 0 or honest < self.honest:
            raise PrivacyError(
                "share-too-few",
                f"a sum of {survivors} sites, of which {corrupt} may be corrupt, holds the noise of {honest} honest "
                f"ones; the plan needs {self.honest}",
                "Such a sum must not be published. Lower corrupt_percent, or wait for more sites.",
            )
        # The plan's own multiplier may be a hair larger by rounding.
        sigma = max(self.share_multiplier * math.sqrt(honest), self.noise_multiplier)
        return dataclasses.replace(self.event, noise_multiplier=sigma)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """A private training, solved for its budget. Made by :func:`solve`, or read by :meth:`parse`, and by nothing else.

    Formal Guarantees:
        The releases of all steps together are (``epsilon``, ``delta``)-differentially private for adding or removing
        one ``unit``, if each step (1) samples every unit independently with probability ``sampling_rate``; (2) clips
        each unit's contribution by ``rule`` to the step's norm; (3) adds normal noise of standard deviation
        ``gradient_multiplier * sensitivity(norm)`` to the sum, on its lattice. For shared noise (3) is true of the
        secure sum, as long as ``share.honest`` of its sites add their share. Every plan that exists has passed the
        checks of :func:`solve`.

    Attributes:
        unit: Whose presence is hidden.
        placement: Where noise is added.
        records: Units at this site, a public number.
        epsilon: Bound for the whole training.
        delta: Of that bound.
        sampling_rate: q.
        clip_norm: C of the first step, and of all if it doesn't adapt.
        rule: How a contribution is clipped.
        group_factor: Sensitivity in clipping norms: 2 where a record's absence changes its group's gradient.
        schedule: Of the noise.
        multiplier: Accounted noise multiplier of the first step.
        rounds: Of the run.
        steps_per_round: Noisy steps of a round.
        dimension: Trained parameters d.
        adaptive: How the norm follows the data; None for a fixed one.
        share: For shared noise.
        noise: How the noise follows what is released; None where it was fixed beforehand.
        guard: The filter that noise which follows is bound by.
    """

    unit: Unit
    placement: Placement
    records: int
    epsilon: float
    delta: float
    sampling_rate: float
    clip_norm: float
    rule: ClippingRule
    group_factor: int
    schedule: NoiseSchedule
    multiplier: float
    rounds: int
    steps_per_round: int
    dimension: int
    adaptive: QuantileClipping | None
    share: Share | None
    noise: AdaptiveNoise | None
    guard: Filter | None
    seal: InitVar[object] = None

    def __post_init__(self, seal: object) -> None:
        """Refuse a plan that wasn't solved, and one that contradicts itself."""
        if seal is not SEAL:
            raise PrivacyError("plan-inconsistent", "a privacy plan is made by solve() or parse(), not put together")
        check_plan(self)

    @property
    def steps(self) -> int:
        """Noisy steps of the whole run."""
        return self.rounds * self.steps_per_round

    def grid(self, clip_norm: float) -> float:
        """The lattice of a step's sum."""
        if self.share is not None:
            return self.share.grid
        return LATTICE_SLACK * self.group_factor * clip_norm / math.sqrt(self.dimension)

    def sensitivity(self, clip_norm: float) -> float:
        """How far one unit can move a sum on its lattice, in L2 norm: its contribution, and two roundings."""
        return self.group_factor * clip_norm + self.grid(clip_norm) * math.sqrt(self.dimension)

    def step(self, number: int) -> StepPlan:
        """The plan of a step, from 0. After the last one the noise stays as it was."""
        return self._step(number, self.multiplier * self.schedule.relative(min(number, self.steps - 1), self.steps))

    def _step(self, number: int, multiplier: float) -> StepPlan:
        share = self.share
        return StepPlan(
            number=number,
            noise_multiplier=multiplier,
            gradient_multiplier=self.adaptive.gradient_multiplier(multiplier) if self.adaptive else multiplier,
            count_std=self.adaptive.count_std(multiplier) if self.adaptive else None,
            event=GaussianEvent(noise_multiplier=multiplier, sampling_rate=self.sampling_rate),
            honest=None if share is None else share.honest,
            share_multiplier=0.0 if share is None else share.std / self.sensitivity(self.clip_norm),
        )

    def round_steps(self, number: int) -> range:
        """The steps of round ``number`` (from 1)."""
        return range((number - 1) * self.steps_per_round, number * self.steps_per_round)

    def round_events(self, number: int) -> list[Event]:
        """What round ``number`` (from 1) costs, or costs again if it is repeated.

        Where noise follows what is released that isn't known beforehand: see ``NoiseControl.most``.
        """
        return merged([self.step(step).event for step in self.round_steps(number)])

    def survivors_events(self, number: int, honest: int) -> list[Event]:
        """What round ``number`` has cost, given how many honest sites' shares its published sum holds.

        Raises:
            PrivacyError: "share-too-few" if they are fewer than the plan counts on.
        """
        if self.share is None:
            return self.round_events(number)
        return merged([self.step(step).event_for(honest, 0) for step in self.round_steps(number)])

    def events(self) -> list[Event]:
        """What the whole run costs, as planned."""
        return events_of(self.multiplier, self.sampling_rate, self.steps, self.schedule)

    def cost(self, rounds: int) -> float:
        """Epsilon of the first ``rounds`` rounds as planned, at the plan's delta."""
        events = [self.step(step).event for step in range(min(rounds, self.rounds) * self.steps_per_round)]
        return planned_epsilon(events, self.delta)

    def control(self, spent: Iterable[Event] = ()) -> NoiseControl:
        """The noise of the run's steps, where it follows what is released.

        Args:
            spent: What the run has released before, if it is taken up again: from the ledger.

        Raises:
            PrivacyError: "plan-inconsistent" if the plan's noise was fixed beforehand.
        """
        if self.noise is None or self.guard is None:
            raise PrivacyError("plan-inconsistent", "the noise of this plan was fixed before the run")
        return NoiseControl(
            self.noise, self.guard, planned=self.multiplier, sampling_rate=self.sampling_rate, spent=spent
        )

    def controlled_step(self, number: int, control: NoiseControl) -> StepPlan | None:
        """The plan of a step whose noise follows what was released; None if the budget is exhausted."""
        multiplier = control.multiplier()
        return None if multiplier is None else self._step(number, multiplier)

    def statement(self) -> str:
        """The promise in words, for a person."""
        return statement(self)

    def plain(self) -> dict[str, Any]:
        """The plan as strings, whole numbers and lists, for the ledger and for hashes; floats as ``float.hex()``."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> PrivacyPlan:
        """Read a plan that :meth:`plain` wrote, and check all that :func:`solve` promises.

        Formal Guarantees:
            ``parse(plan.plain()) == plan``, and ``parse(plain).plain()`` encodes to the same bytes as ``plain``. A plan
            that costs more than it says isn't read.

        Raises:
            PrivacyError: "plan-invalid" for any other form; what :func:`solve` raises for its contents.
        """
        plan = cls(**read_plan(plain), seal=SEAL)
        if not same(plan.plain(), plain):
            raise PrivacyError(
                "plan-invalid",
                "a privacy plan isn't in the form in which this release writes it",
                "Let it be made anew.",
            )
        if plan.guard is None and planned_epsilon(plan.events(), plan.delta) > plan.epsilon * (1 + EQUAL):
            raise PrivacyError("plan-invalid", f"a privacy plan says epsilon {plan.epsilon:.4g} and costs more")
        return plan


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two plain values encode alike; lists and tuples do."""
    from privacy.transcript import TranscriptError, encode

    try:
        return encode(one) == encode(other)
    except TranscriptError:
        return False


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            found[key] = _plain(item)
        elif isinstance(item, float):
            found[key] = item.hex()
        elif isinstance(item, tuple):
            found[key] = [part.hex() if isinstance(part, float) else part for part in item]
        else:
            found[key] = str(item) if isinstance(item, Unit | Placement) else item
    return found


def solve(
    *,
    unit: Unit,
    placement: Placement,
    target_epsilon: float,
    delta: float,
    records: int,
    sampling_rate: float,
    clip_norm: float,
    rounds: int | None,
    steps_per_round: int,
    dimension: int,
    rule: ClippingRule | None = None,
    group_factor: int = 1,
    schedule: NoiseSchedule | None = None,
    multiplier: float = 0.0,
    adaptive: QuantileClipping | None = None,
    share: Share | None = None,
    noise: AdaptiveNoise | None = None,
    sampler: str = "poisson",
) -> PrivacyPlan:
    """Solve a plan for its budget.

    Args:
        unit: Whose presence is hidden.
        placement: Where noise is added.
        target_epsilon: Budget of the run.
        delta: Budget of the run; under 1 / ``records``.
        records: Units at this site.
        sampling_rate: Of Poisson sampling, the only kind whose amplification is claimed.
        clip_norm: C.
        rounds: Of the run; None for as many as the budget lasts with noise ``multiplier``.
        steps_per_round: Noisy steps of a round.
        dimension: Trained parameters.
        rule: Of clipping; flat without it.
        group_factor: 2 where records are clipped in groups.
        schedule: Of the noise; constant without it.
        multiplier: Noise of the first step; 0 solves it.
        adaptive: Lets the norm follow the data.
        share: For shared noise.
        noise: Lets the noise follow what is released, within a filter.
        sampler: How a step's units are really drawn.

    Returns:
        The plan; its ``epsilon`` is what it costs, at most the target. Where noise follows what is released it is the
        target itself, which the filter keeps.

    Raises:
        PrivacyError: naming what can't be promised and what to change.
    """
    check_budget(target_epsilon, delta, records)
    if not 0 < sampling_rate <= 1:
        raise PrivacyError("sampling-invalid", f"the sampling rate is {sampling_rate}; it must lie above 0, at most 1")
    if sampler != "poisson" and sampling_rate < 1:
        raise PrivacyError(
            "sampling-not-poisson",
            f"units are drawn by {sampler!r} sampling, and a rate of {sampling_rate:g} claims the privacy of Poisson "
            "sampling, which other samplers don't have",
            'Draw every unit by itself (sampler "poisson"), or claim nothing: sampling_rate = 1.',
        )
    schedule = schedule or NoiseSchedule()
    if rounds is None:
        rounds = _rounds_until(target_epsilon, delta, sampling_rate, multiplier, steps_per_round, schedule)
    steps = rounds * steps_per_round
    if steps < 1:
        raise PrivacyError("plan-inconsistent", "a training has at least one step")
    if not multiplier:
        by: Accountant = "pld" if noise is None or sampling_rate == 1.0 else "rdp"
        multiplier = noise_multiplier_for(target_epsilon, delta, sampling_rate, steps, schedule, accountant=by)
    if not 0 < multiplier < math.inf:
        raise PrivacyError("noise-invalid", f"noise_multiplier is {multiplier}; it must be positive")
    events = events_of(multiplier, sampling_rate, steps, schedule)
    cost = planned_epsilon(events, delta)
    if cost > target_epsilon:
        raise PrivacyError(
            "budget-too-small",
            f"the plan costs epsilon {cost:.4g} at delta {delta:g}; {target_epsilon:g} is allowed",
            "Take a larger noise_multiplier, fewer rounds, or a smaller sampling rate.",
        )
    return PrivacyPlan(
        unit=unit,
        placement=placement,
        records=records,
        epsilon=cost if noise is None else target_epsilon,
        delta=delta,
        sampling_rate=sampling_rate,
        clip_norm=clip_norm,
        rule=rule or ClippingRule(),
        group_factor=group_factor,
        schedule=schedule,
        multiplier=multiplier,
        rounds=rounds,
        steps_per_round=steps_per_round,
        dimension=dimension,
        adaptive=adaptive,
        share=share,
        noise=noise,
        guard=None if noise is None else _filter(events, target_epsilon, delta, sampling_rate),
        seal=SEAL,
    )


def _filter(events: list[Event], target: float, delta: float, sampling_rate: float) -> Filter:
    if sampling_rate == 1.0:
        return GdpFilter(epsilon=target, delta=delta)
    return RdpFilter.best(events, target, delta)


def _rounds_until(
    target: float, delta: float, sampling_rate: float, multiplier: float, steps_per_round: int, schedule: NoiseSchedule
) -> int:
    """How many rounds the budget lasts with this noise."""
    if not multiplier or schedule.kind != "constant":
        raise PrivacyError(
            "plan-inconsistent",
            "a training that goes on until its budget is exhausted needs a noise_multiplier that stays as it is",
            "Name the number of rounds, or a noise_multiplier and no schedule.",
        )
    rounds = steps_until(target, delta, sampling_rate, multiplier) // max(steps_per_round, 1)
    if rounds < 1:
        raise PrivacyError(
            "budget-too-small",
            f"noise_multiplier {multiplier:g} costs more than epsilon {target:g} in the first round",
            "Take more noise, a smaller sampling rate, fewer steps a round, or a larger epsilon.",
        )
    return rounds
