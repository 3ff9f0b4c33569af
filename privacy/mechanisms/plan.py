"""One plan for a private training: what is sampled, clipped, drawn and accounted belongs together.

A step's noise, its clipping norm and the event that goes to the ledger come from the same :class:`StepPlan`, so that no
caller can put together a sampler, a norm, an amount of noise and a claim that don't fit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final

from privacy.accounting.events import Event, GaussianEvent, Placement, Unit, merged
from privacy.mechanisms.calibration import noise_multiplier_for, reported_epsilon
from privacy.mechanisms.clipping import ClippingRule
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.quantile import QuantileClipping
from privacy.mechanisms.schedules import NoiseSchedule

LATTICE_SLACK: Final = 1 / 200
"""How much rounding to the lattice may add to the sensitivity of a local sum, relative to the clipping norm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """One site's share of a noise that only a secure sum completes.

    Attributes:
        std: Standard deviation of a site's share, in the gradients' units.
        honest: The fewest honest sites in a sum.
        grid: What one integer is worth, in the gradients' units.
    """

    std: float
    honest: int
    grid: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What one noisy step does.

    Attributes:
        number: From 0.
        noise_multiplier: What is accounted: noise relative to sensitivity.
        gradient_multiplier: Of the gradient's own noise; larger where a count is released beside it.
        count_std: Standard deviation of that count's noise; None where there is none.
        event: What the ledger is charged with.
    """

    number: int
    noise_multiplier: float
    gradient_multiplier: float
    count_std: float | None
    event: Event


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """A private training, solved for its budget. Made by :func:`solve`.

    Formal Guarantees:
        The releases of all steps together are (``epsilon``, ``delta``)-differentially private for adding or removing
        one ``unit``, if each step (1) samples every unit independently with probability ``sampling_rate``; (2) clips
        each unit's contribution by ``rule`` to the step's norm; (3) adds normal noise of standard deviation
        ``gradient_multiplier * sensitivity(norm)`` to the sum, on its lattice. For shared noise (3) is true of the
        secure sum, as long as ``share.honest`` of its sites add their share.

    Attributes:
        unit: Whose presence is hidden.
        placement: Where noise is added.
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
    """

    unit: Unit
    placement: Placement
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
        multiplier = self.multiplier * self.schedule.relative(min(number, self.steps - 1), self.steps)
        event = GaussianEvent(noise_multiplier=multiplier, sampling_rate=self.sampling_rate)
        return StepPlan(
            number=number,
            noise_multiplier=multiplier,
            gradient_multiplier=self.adaptive.gradient_multiplier(multiplier) if self.adaptive else multiplier,
            count_std=self.adaptive.count_std(multiplier) if self.adaptive else None,
            event=event,
        )

    def round_steps(self, number: int) -> range:
        """The steps of round ``number`` (from 1)."""
        return range((number - 1) * self.steps_per_round, number * self.steps_per_round)

    def round_events(self, number: int) -> list[Event]:
        """What round ``number`` (from 1) costs, or costs again if it is repeated."""
        return merged([self.step(step).event for step in self.round_steps(number)])

    def survivors_events(self, number: int, honest: int) -> list[Event]:
        """What round ``number`` has cost, given how many honest sites' shares its published sum holds.

        Raises:
            PrivacyError: "share-too-few" if they are fewer than the plan counts on.
        """
        if self.share is None:
            return self.round_events(number)
        if honest < self.share.honest:
            raise PrivacyError(
                "share-too-few", f"a sum holds the noise of {honest} honest sites; the plan needs {self.share.honest}"
            )
        multiplier = self.share.std * math.sqrt(honest) / self.sensitivity(self.clip_norm)
        # The plan's own multiplier may be a hair larger by rounding; less noise is never claimed for more sites.
        multiplier = max(multiplier, self.step((number - 1) * self.steps_per_round).noise_multiplier)
        return [GaussianEvent(noise_multiplier=multiplier, sampling_rate=self.sampling_rate)]

    def events(self) -> list[Event]:
        """What the whole run costs, as planned."""
        return merged([self.step(step).event for step in range(self.steps)])

    def statement(self) -> str:
        """The promise in words, for a person."""
        unit = {
            Unit.RECORD: "one record",
            Unit.PERSON: "all records of one person",
            Unit.PARTICIPANT: "all data of one site",
        }[self.unit]
        who = {
            Placement.LOCAL: "This site adds all of the noise itself and has to trust nobody for it.",
            Placement.SHARED: "The noise is shared: it protects as promised if "
            f"{self.share.honest if self.share else 0} honest sites at least are in each published sum.",
            Placement.PARTICIPANT: "The noise is shared: it protects as promised if "
            f"{self.share.honest if self.share else 0} honest sites at least are in each published sum.",
        }[self.placement]
        sampled = (
            f"Each step uses each record with probability {self.sampling_rate:.4g}, independently (Poisson sampling)."
            if self.sampling_rate < 1
            else "Each step uses all of it, so nothing is gained by sampling."
        )
        return (
            f"Whether {unit} is in the data changes the probability of anything that leaves this site by a factor of "
            f"at most e^{self.epsilon:.4g}, but for a probability of {self.delta:.3g}: ({self.epsilon:.4g}, "
            f"{self.delta:.3g})-differential privacy for adding or removing {unit}, over {self.steps} noisy steps in "
            f"{self.rounds} rounds, by the privacy loss distribution of their events. {sampled} {who} Not covered: "
            "the number of records, which counts as public, and scores on held-out records if they are told."
        )

    def plain(self) -> dict[str, Any]:
        """The plan as strings and numbers, for the ledger and for hashes."""
        return _plain(dataclasses.asdict(self))


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
    rounds: int,
    steps_per_round: int,
    dimension: int,
    rule: ClippingRule | None = None,
    group_factor: int = 1,
    schedule: NoiseSchedule | None = None,
    multiplier: float = 0.0,
    adaptive: QuantileClipping | None = None,
    share: Share | None = None,
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
        rounds: Of the run.
        steps_per_round: Noisy steps of a round.
        dimension: Trained parameters.
        rule: Of clipping; flat without it.
        group_factor: 2 where records are clipped in groups.
        schedule: Of the noise; constant without it.
        multiplier: Noise of the first step; 0 solves it.
        adaptive: Lets the norm follow the data.
        share: For shared noise.

    Raises:
        PrivacyError: naming what can't be promised and what to change.
    """
    schedule = schedule or NoiseSchedule()
    _check(target_epsilon, delta, records, sampling_rate, clip_norm, rounds * steps_per_round)
    if (share is None) == (placement is not Placement.LOCAL):
        raise PrivacyError("plan-inconsistent", f"a share of the noise doesn't fit placement {placement}")
    if group_factor not in (1, 2) or dimension < 1:
        raise PrivacyError("plan-inconsistent", f"group factor {group_factor}, dimension {dimension}")
    if not multiplier:
        multiplier = noise_multiplier_for(target_epsilon, delta, sampling_rate, rounds * steps_per_round, schedule)
    plan = PrivacyPlan(
        unit=unit,
        placement=placement,
        epsilon=target_epsilon,
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
    )
    if share is not None:
        real = share.std * math.sqrt(share.honest) / plan.sensitivity(clip_norm)
        if real < multiplier * (1 - 1e-9):
            raise PrivacyError(
                "share-too-small",
                f"shares of {share.std:.4g} from {share.honest} honest sites make a noise multiplier of {real:.4g}; "
                f"the plan claims {multiplier:.4g}",
                "The coordinator's plan is wrong: don't take part.",
            )
    cost = reported_epsilon(plan.events(), target_epsilon, delta)
    if cost > target_epsilon:
        raise PrivacyError(
            "budget-too-small",
            f"the plan costs epsilon {cost:.4g} at delta {delta:g}; {target_epsilon:g} is allowed",
            "Take a larger noise_multiplier, fewer rounds, or a smaller sampling rate.",
        )
    return dataclasses.replace(plan, epsilon=cost)


def _check(target: float, delta: float, records: int, sampling_rate: float, clip_norm: float, steps: int) -> None:
    if not 0 < target < math.inf:
        raise PrivacyError("epsilon-invalid", f"epsilon is {target}; it must be positive")
    if records < 1:
        raise PrivacyError("records-none", "there are no records to protect", "Point --data at some.")
    if not 0 < delta < 1 / records:
        raise PrivacyError(
            "delta-too-large",
            f"delta is {delta:g}; with {records} records it must be under {1 / records:.3g}, or publishing a record "
            "whole would be allowed",
            f"Set [privacy] delta to {0.1 / records:.1g} or less.",
        )
    if not 0 < sampling_rate <= 1:
        raise PrivacyError("sampling-invalid", f"the sampling rate is {sampling_rate}; it must lie above 0, at most 1")
    if not 0 < clip_norm < math.inf:
        raise PrivacyError("clipping-invalid", f"clip_norm is {clip_norm}; it must be positive")
    if steps < 1:
        raise PrivacyError("plan-inconsistent", "a training has at least one step")
