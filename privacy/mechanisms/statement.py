"""A privacy plan in words, for a hospital's data officer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.accounting.events import Placement, Unit
from privacy.accounting.filters import RdpFilter

if TYPE_CHECKING:
    from privacy.mechanisms.plan import PrivacyPlan


def statement(plan: PrivacyPlan) -> str:
    """What a plan promises, to whom, by what means, and what it doesn't cover.

    Args:
        plan: The plan.

    Returns:
        Some sentences: the unit of privacy and the neighbouring relation, epsilon and delta, the accountant, how units
        are sampled, who adds the noise, what is left out.
    """
    return " ".join((_promise(plan), _accountant(plan), _sampling(plan), _noise(plan), _uncovered(plan)))


def _unit(plan: PrivacyPlan) -> str:
    return {
        Unit.RECORD: "one record",
        Unit.PERSON: "all records of one person",
        Unit.PARTICIPANT: "all data of one site",
    }[plan.unit]


def _promise(plan: PrivacyPlan) -> str:
    # Words for what a person wants to know: what can somebody learn who tries to find out whether a unit is in it?
    who = "that leaves this site" if plan.unit is not Unit.PARTICIPANT else "that is published"
    return (
        f"Whether {_unit(plan)} is in the data changes the probability of anything {who} by a factor of at most "
        f"e^{plan.epsilon:.4g}, but for a probability of {plan.delta:.3g}: ({plan.epsilon:.4g}, {plan.delta:.3g})-"
        f"differential privacy for adding or removing {_unit(plan)}, over {plan.steps} noisy "
        f"{'step' if plan.steps == 1 else 'steps'} in {plan.rounds} {'round' if plan.rounds == 1 else 'rounds'}."
    )


def _accountant(plan: PrivacyPlan) -> str:
    if isinstance(plan.guard, RdpFilter):
        return (
            "Noise follows what was released, so the budget is kept by a privacy filter on the Renyi divergence of "
            f"order {plan.guard.order:.4g}, which stops the training in time."
        )
    if plan.guard is not None:
        return (
            "Noise follows what was released, so the budget is kept by a privacy filter on the noise's inverse "
            "variance, which stops the training in time."
        )
    return "Epsilon is computed from the privacy loss distribution (PLD) of the steps' events and is an upper bound."


def _sampling(plan: PrivacyPlan) -> str:
    if plan.unit is Unit.PARTICIPANT:
        return "Every site in a round counts in full; nothing is gained by sampling."
    if plan.sampling_rate < 1:
        return (
            f"Each step uses each {plan.unit} with probability {plan.sampling_rate:.4g}, independently and in secret "
            "(Poisson sampling)."
        )
    return "Each step uses all of it, so nothing is gained by sampling."


def _noise(plan: PrivacyPlan) -> str:
    if plan.placement is Placement.LOCAL or plan.share is None:
        return "This site adds all of the noise itself and has to trust nobody for it."
    return (
        "The noise is shared between the sites, and nobody sees more than their secure sum: it protects as promised, "
        f"against the coordinator and the other sites too, if {plan.share.honest} honest sites at least are in each "
        "published sum."
    )


def _uncovered(plan: PrivacyPlan) -> str:
    count = {
        Unit.RECORD: "the number of records",
        Unit.PERSON: "the number of persons and of records",
        Unit.PARTICIPANT: "which sites take part",
    }[plan.unit]
    several = (
        ""
        if plan.unit is not Unit.RECORD
        else " A person with several records, or with records at several sites, is protected less than one record is."
    )
    return (
        f"Not covered: {count}, which counts as public; scores on held-out data if they are told; and other trainings "
        f"on the same data, which this site's ledger adds up.{several}"
    )
