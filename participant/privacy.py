"""From a run's plan to this site's privacy plan: its own number of records, steps and noise."""

from __future__ import annotations

import dataclasses
import functools

from privacy.accounting.events import Event, Placement, Unit
from privacy.mechanisms.adaptive import AdaptiveNoise
from privacy.mechanisms.clipping import ClippingRule
from privacy.mechanisms.plan import PrivacyPlan, Share, solve
from privacy.mechanisms.quantile import QuantileClipping
from privacy.mechanisms.schedules import NoiseSchedule
from wire import RunPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """What the ledger knows of a run when a task begins: what training may go on from.

    Noise and clipping norms that follow what is released must follow nothing else: not a round whose result never left
    this site, and was never paid for.

    Attributes:
        task_id: The task that begins.
        spent: What the run has cost this site, without that task.
        released: The run's tasks whose results may have left.
    """

    task_id: str
    spent: tuple[Event, ...] = ()
    released: frozenset[str] = frozenset()


def site_plan(
    run: RunPlan,
    *,
    unit: Unit,
    units: int,
    records: int,
    batch_size: int,
    steps_per_round: int,
    dimension: int,
    layers: int,
    group_factor: int,
) -> PrivacyPlan:
    """Solve a run's privacy for one site.

    Args:
        run: Its ``privacy`` isn't "off".
        unit: RECORD, or PERSON where the site's data say whose records they are; PARTICIPANT for that placement.
        units: How many of them this site has.
        records: Of this site.
        batch_size: Records of a step, where the run sets no sampling rate.
        steps_per_round: Noisy steps of a round with local noise.
        dimension: Numbers that are trained here.
        layers: How many layers they belong to.
        group_factor: 2 where the loss compares records in groups.

    Raises:
        PrivacyError: The promise can't be kept with this site's data, and what to change.
    """
    spec, shared = run.privacy, run.shared_noise
    placement = Placement(spec.placement)
    rate = spec.sampling_rate or min(1.0, batch_size / max(records, 1))
    solved = functools.partial(
        solve,
        unit=unit,
        placement=placement,
        target_epsilon=spec.epsilon,
        delta=spec.delta,
        # A site as a whole is one unit; that delta is small must be judged by the number of sites.
        records=run.rounds.min_participants if placement is Placement.PARTICIPANT else units,
        sampling_rate=1.0 if placement is Placement.PARTICIPANT else rate,
        clip_norm=spec.clip_norm,
        steps_per_round=steps_per_round if placement is Placement.LOCAL else 1,
        dimension=dimension,
        rule=ClippingRule.layers(layers) if spec.clipping == "layers" else ClippingRule(kind=spec.clipping),
        group_factor=group_factor if placement is not Placement.PARTICIPANT else 1,
        schedule=None
        if spec.schedule == "until-exhausted"
        else NoiseSchedule(kind=spec.schedule, end=spec.schedule_end),
        multiplier=shared.multiplier if shared is not None else spec.noise_multiplier,
        adaptive=QuantileClipping(target=spec.quantile) if spec.quantile else None,
        share=None if shared is None else Share(std=shared.share_std, honest=shared.honest, grid=shared.grid),
        noise=AdaptiveNoise(target=spec.adaptive_noise) if spec.adaptive_noise else None,
    )
    if spec.schedule == "until-exhausted" and (plan := solved(rounds=None)).rounds < run.rounds.count:
        return plan
    return solved(rounds=run.rounds.count)
