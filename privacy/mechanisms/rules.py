"""What every privacy plan must fulfil, and how one is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from privacy.accounting.events import Placement, Unit
from privacy.accounting.filters import GdpFilter, RdpFilter
from privacy.mechanisms.adaptive import AdaptiveNoise, Filter
from privacy.mechanisms.clipping import ClippingRule
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.quantile import QuantileClipping
from privacy.mechanisms.schedules import NoiseSchedule

if TYPE_CHECKING:
    from privacy.mechanisms.plan import PrivacyPlan

EQUAL: Final = 1e-9
"""Two roundings of the same number, no more."""


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


def check_budget(epsilon: float, delta: float, records: int) -> None:
    """Refuse a budget that promises nothing.

    Args:
        epsilon: Of the run.
        delta: Of the run.
        records: Units at this site.

    Raises:
        PrivacyError: "epsilon-invalid", "records-none", "delta-too-large".
    """
    if not 0 < epsilon < math.inf:
        raise PrivacyError("epsilon-invalid", f"epsilon is {epsilon}; it must be positive")
    _check_delta(delta, records)


def _check_delta(delta: float, records: int) -> None:
    if records < 1:
        raise PrivacyError("records-none", "there are no records to protect", "Point --data at some.")
    if not 0 < delta < 1 / records:
        raise PrivacyError(
            "delta-too-large",
            f"delta is {delta:g}; with {records} records it must be under {1 / records:.3g}, or publishing a record "
            "whole would be allowed",
            f"Set [privacy] delta to {0.1 / records:.1g} or less.",
        )


def check_plan(plan: PrivacyPlan) -> None:
    """Refuse a plan that couldn't keep its promise.

    Raises:
        PrivacyError: Naming what can't be promised and what to change.
    """
    # What a plan costs may be so little that it is no more than 0.
    if not 0 <= plan.epsilon < math.inf:
        raise PrivacyError("epsilon-invalid", f"epsilon is {plan.epsilon}; it must be positive")
    _check_delta(plan.delta, plan.records)
    if not 0 < plan.sampling_rate <= 1:
        raise PrivacyError(
            "sampling-invalid", f"the sampling rate is {plan.sampling_rate}; it must lie above 0, at most 1"
        )
    if not 0 < plan.clip_norm < math.inf:
        raise PrivacyError("clipping-invalid", f"clip_norm is {plan.clip_norm}; it must be positive")
    if plan.rounds < 1 or plan.steps_per_round < 1:
        raise _inconsistent("a training has at least one step")
    if plan.group_factor not in (1, 2) or plan.dimension < 1:
        raise _inconsistent(f"group factor {plan.group_factor}, dimension {plan.dimension}")
    if not 0 < plan.multiplier < math.inf:
        raise PrivacyError("noise-invalid", f"noise_multiplier is {plan.multiplier}; it must be positive")
    _check_unit(plan)
    _check_adaptation(plan)
    _check_share(plan)


def _check_unit(plan: PrivacyPlan) -> None:
    if (plan.unit is Unit.PARTICIPANT) != (plan.placement is Placement.PARTICIPANT):
        raise _inconsistent(
            f"noise at placement {plan.placement} can't hide one {plan.unit}",
            "Placement participant hides whole sites; local and shared hide records or persons.",
        )
    if plan.unit is Unit.PARTICIPANT and plan.sampling_rate != 1.0:
        raise PrivacyError(
            "sampling-visible",
            f"a sampling rate of {plan.sampling_rate:g} is claimed for whole sites; but the coordinator and the other "
            "sites see who takes part, so that nothing is amplified",
            "Leave sampling_rate out: every round counts in full for the sites that are in it.",
        )
    if plan.unit is Unit.PARTICIPANT and plan.group_factor != 1:
        raise _inconsistent("records that are compared in groups don't matter where whole sites are hidden")


def _check_adaptation(plan: PrivacyPlan) -> None:
    if plan.adaptive is not None and plan.rule.kind == "automatic":
        raise _inconsistent(
            "automatic clipping has no norm that could follow a quantile", "Choose one of them: [privacy] quantile = 0."
        )
    if (plan.noise is None) != (plan.guard is None):
        raise PrivacyError(
            "filter-missing",
            "noise that follows what was released needs a privacy filter; ordinary composition isn't valid for it",
            "Solve the plan with the noise, so that its filter is fixed before the run.",
        )
    if plan.noise is not None and plan.schedule.kind != "constant":
        raise _inconsistent("noise can't follow both a schedule and what was released", "Choose one of them.")
    if plan.guard is not None:
        if (plan.guard.epsilon, plan.guard.delta) != (plan.epsilon, plan.delta):
            raise _inconsistent("the privacy filter is for another budget than the plan")
        if isinstance(plan.guard, GdpFilter) != (plan.sampling_rate == 1.0):
            raise _inconsistent("a GDP filter is for plans without sampling, an RDP filter for those with it")


def _check_share(plan: PrivacyPlan) -> None:
    share = plan.share
    if (share is None) != (plan.placement is Placement.LOCAL):
        raise _inconsistent(f"a share of the noise doesn't fit placement {plan.placement}")
    if share is None:
        return
    if not (0 < share.std < math.inf and 0 < share.grid < math.inf and share.honest >= 1):
        raise _inconsistent(f"a share of {share.std} of {share.honest} honest sites on a lattice of {share.grid}")
    if plan.steps_per_round != 1:
        raise _inconsistent("noise is shared once a round, so that a round has one step")
    if plan.schedule.kind != "constant" or plan.adaptive is not None or plan.noise is not None:
        raise _inconsistent(
            "noise that is shared is the same in every round, and so is its clipping norm",
            'Only placement = "local" has a noise schedule, a quantile and adaptive noise.',
        )
    real = share.std * math.sqrt(share.honest) / plan.sensitivity(plan.clip_norm)
    if real < plan.multiplier * (1 - EQUAL):
        raise PrivacyError(
            "share-too-small",
            f"shares of {share.std:.4g} from {share.honest} honest sites make a noise multiplier of {real:.4g}; "
            f"the plan claims {plan.multiplier:.4g}",
            "The coordinator's plan is wrong: don't take part.",
        )


def _inconsistent(message: str, hint: str = "") -> PrivacyError:
    return PrivacyError("plan-inconsistent", message, hint)


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_plan(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a plan from its plain form, by name.

    Raises:
        PrivacyError: "plan-invalid" if a field is missing, unknown or of another type.
    """
    try:
        fields = {name: read(plain[name]) for name, read in _FIELDS.items()}
        if set(plain) != set(fields):
            raise KeyError(*sorted(set(plain) - set(fields)))
        return fields
    except PrivacyError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PrivacyError(
            "plan-invalid", f"a privacy plan can't be read: {error!r}", "Was it written by a newer release of fedloom?"
        ) from None


def _number(value: Any) -> float:
    return float.fromhex(value)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value


def _clipping(value: Any) -> ClippingRule:
    return ClippingRule(kind=value["kind"], shares=tuple(_number(share) for share in value["shares"]))


def _schedule(value: Any) -> NoiseSchedule:
    return NoiseSchedule(kind=value["kind"], end=_number(value["end"]))


def _share(value: Any) -> Share:
    return Share(std=_number(value["std"]), honest=_whole(value["honest"]), grid=_number(value["grid"]))


def _guard(value: Any) -> Filter:
    budget = {"epsilon": _number(value["epsilon"]), "delta": _number(value["delta"])}
    return RdpFilter(order=_number(value["order"]), **budget) if "order" in value else GdpFilter(**budget)


def _optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def _numbers(kind: type[QuantileClipping | AdaptiveNoise]) -> Callable[[Any], Any]:
    return lambda value: kind(**{name: _number(item) for name, item in value.items()})


_FIELDS: Final[dict[str, Callable[[Any], Any]]] = {
    "unit": Unit,
    "placement": Placement,
    "records": _whole,
    "epsilon": _number,
    "delta": _number,
    "sampling_rate": _number,
    "clip_norm": _number,
    "rule": _clipping,
    "group_factor": _whole,
    "schedule": _schedule,
    "multiplier": _number,
    "rounds": _whole,
    "steps_per_round": _whole,
    "dimension": _whole,
    "adaptive": _optional(_numbers(QuantileClipping)),
    "share": _optional(_share),
    "noise": _optional(_numbers(AdaptiveNoise)),
    "guard": _optional(_guard),
}
