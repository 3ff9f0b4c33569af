"""From a run's plan to the recipe that merges its updates."""

from __future__ import annotations

import math
from typing import Final

from coordinator.merging.errors import MergeRefused
from coordinator.merging.recipes import build, careful, robust
from coordinator.merging.rule import Recipe
from coordinator.merging.tolerance import Tolerance, bad_count
from wire import ConfigError, RunPlan
from wire.merging import MergingSpec

_FRACTIONS: Final = 20_000  # participants; see below


def recipe_of(spec: MergingSpec) -> Recipe:
    """The recipe that a plan asks for, its ``f`` included.

    Args:
        spec: Section [merging].

    Raises:
        ConfigError: A setting that the rule doesn't have, or a value that can't be.
    """
    if spec.rule == "careful":
        return careful()
    if spec.rule == "robust":
        return robust(spec.tolerance)
    try:
        return build(
            spec.rule, f=spec.tolerance, before=[(step.name, step.settings) for step in spec.before], **spec.settings
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"[merging] {error}", "docs/robustness.md lists rules, steps and their settings.") from None


def guarantee(plan: RunPlan) -> str:
    """What the merging rule of a run stands, for a person: with as many updates as its smallest first round has."""
    spec = plan.merging
    recipe = recipe_of(spec)
    if not spec.robust:
        what = "the mean of what comes"
        if plan.secure is not None:
            what = "one sum, for which each site's own machine limits norm and weight"
        elif spec.rule == "careful":
            what = "the mean of updates no longer than three median norms, with weights up to three equal ones"
        return f"Merging: {what}. It stands mishaps, and no participant that is hostile on purpose."
    count = plan.rounds.participants_per_round or plan.rounds.min_participants
    bad = bad_count(spec.tolerance, count)
    kappa = recipe.kappa(count, bad)
    bound = (
        f" The result is then no further from the honest mean than {math.sqrt(kappa):.2g} times the honest updates' "
        "root-mean-square distance from it."
        if kappa is not None
        else ""
    )
    return f"Merging: {recipe.name}. Of {count} updates it stands {bad} hostile ones, whatever is in them.{bound}"


def fewest_updates(recipe: Recipe) -> int:
    """The fewest updates with which the recipe stands the ``f`` that it declares: one at least, unless f is 0.

    Formal Guarantees:
        A round that merges so many updates or more is never refused for its tolerance, also if more were handed in
        and turned away: what is turned away counts against ``f``.

    Raises:
        ConfigError: No number is enough.
    """
    f = recipe.rule.f or 0
    # A fraction's whole part jumps, so that a number may be enough and the next one not; beyond the last one that
    # isn't, all are. 0.4999 of n and 2 / 0.0002 is the worst that configuration can name.
    last = _FRACTIONS if isinstance(f, float) else 8 * f + 16
    refusal = _refusal(recipe, f, last)
    if refusal is not None:
        raise ConfigError(
            f"[merging] {recipe.name} can't stand f = {f} hostile participants, however many there are",
            "Lower f, or choose another rule.",
        )
    for count in range(last, 0, -1):
        if (f and bad_count(f, count) == 0) or _refusal(recipe, f, count) is not None:
            return count + 1
    return 1


def _refusal(recipe: Recipe, f: Tolerance, participants: int) -> MergeRefused | None:
    try:
        recipe.require(participants, bad_count(f, participants))
    except MergeRefused as error:
        return error
    return None
