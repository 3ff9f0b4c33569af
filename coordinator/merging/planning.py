"""From a run's plan to the recipe that merges its updates."""

from __future__ import annotations

import math
from typing import Final, Literal

from coordinator.merging.errors import MergeRefused
from coordinator.merging.recipes import build, careful, robust
from coordinator.merging.rule import Recipe
from coordinator.merging.tolerance import Tolerance, bad_count
from privacy.secure_aggregation.atoms import atoms_per_group
from privacy.secure_aggregation.thresholds import MIN_COHORT
from wire import ConfigError, RoundsSpec, RunPlan
from wire.merging import MergingSpec

MIN_GROUPS: Final = 5
"""Fewer groups than these tell too little about which of them is spoilt; that takes 15 participants at least."""

_LARGEST_GROUP: Final = 10
_MANY: Final = 20  # participants
_FEW: Final = 50  # participants
_FRACTIONS: Final = 20_000  # participants; see below


def recipe_of(spec: MergingSpec, *, participants: int | None = None) -> Recipe:
    """The recipe that a plan asks for, its ``f`` included.

    Args:
        spec: Section [merging].
        participants: Of whom a fraction ``f`` is, where that isn't whoever hands something in: the hostile ones of a
            whole run may be the fastest, and all be in one buffer.

    Raises:
        ConfigError: A setting that the rule doesn't have, or a value that can't be.
    """
    f = spec.tolerance if participants is None else _of_all(spec.tolerance, participants)
    if spec.rule == "careful":
        return careful()
    if spec.rule == "robust":
        return robust(f)
    try:
        return build(spec.rule, f=f, before=[(step.name, step.settings) for step in spec.before], **spec.settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"[merging] {error}", "docs/robustness.md lists rules, steps and their settings.") from None


def plan_recipe(plan: RunPlan) -> Recipe:
    """The recipe of a run."""
    participants = plan.rounds.min_participants if plan.rounds.asynchronous else None
    return recipe_of(plan.merging, participants=participants)


def _of_all(f: Tolerance, participants: int) -> int:
    """A fraction of the participants as a count: one at least, unless it is 0."""
    return max(bad_count(f, participants), 1) if f else 0


def fitting_buffer(rounds: RoundsSpec, spec: MergingSpec, least: int = 1) -> int:
    """How many updates make a version of asynchronous rounds where nothing is said.

    Half of the participants, or 10 from 20 participants on; more where f hostile ones may be among them, or where a
    round asks for more, or ``least``.
    """
    participants = rounds.min_participants
    half = 10 if participants >= _MANY else -(-participants // 2)
    return max(2 * _of_all(spec.tolerance, participants) + 1, half, rounds.min_updates, least)


def fitting_correction(rounds: RoundsSpec, spec: MergingSpec) -> Literal["ca2fl", "none"]:
    """Whether earlier updates are counted in where nothing is said: their files are as many as participants."""
    return "ca2fl" if rounds.min_participants <= _FEW and correctable(spec) else "none"


def correctable(spec: MergingSpec) -> bool:
    """Whether a rule is a mean, whose weights say how much of an earlier update a new one stands for."""
    return spec.rule == "careful" or (spec.rule == "mean" and all(step.name == "norm-clip" for step in spec.before))


def guarantee(plan: RunPlan) -> str:
    """What the merging rule of a run stands, for a person, in the smallest round that it begins with."""
    spec, recipe = plan.merging, plan_recipe(plan)
    count = plan.rounds.buffer_size or plan.rounds.participants_per_round or plan.rounds.min_participants
    groups = plan.secure.group_size if plan.secure is not None else 0
    if not spec.robust:
        what = "the mean of what comes"
        if plan.secure is not None and not groups:
            what = "one sum, for which each site's own machine limits norm and weight"
        elif spec.rule == "careful":
            what = "the mean of updates no longer than three median norms, with weights up to three equal ones"
        return f"Merging: {what}. It stands mishaps, and no participant that is hostile on purpose."
    what = f"{count} updates"
    if groups:
        per_group, atom = atoms_per_group(groups)
        count = group_count(count, groups)
        what = f"the means of {count} groups"
    bad = bad_count(recipe.rule.f or 0, count)
    text = (
        f"Merging: {recipe.name}. Of {what} it stands {bad} hostile {'one' if bad == 1 else 'ones'}, "
        "whatever is in them."
    )
    if groups:
        together = f"{per_group} atoms, drawn anew each round" if per_group > 1 else "the same participants always"
        text += (
            f" A hostile participant spoils its own group at most, so it stands {bad} of them, wherever they are. A "
            f"group is of {together}; a site hides among the {atom} or more of its atom, less those that work with "
            "the coordinator."
        )
    kappa = recipe.kappa(count, bad)
    if kappa is not None:
        honest = "honest groups' means'" if groups else "honest updates'"
        text += (
            f" The result is then no further from the honest mean than {math.sqrt(kappa):.2g} times the {honest} "
            "root-mean-square distance from it."
        )
    return text


def group_count(participants: int, group_size: int) -> int:
    """How many sums of groups so many participants make at least."""
    per_group, atom = atoms_per_group(group_size)
    return participants // atom // per_group


def fitting_group_size(participants: int, updates: int, f: Tolerance) -> int:
    """How large groups should be where nothing is said: at most a quarter of the groups is then spoilt.

    With a count, ``n / (4 f)``; with a fraction, which is of the groups, a tenth of the participants, so that there are
    ten groups; from 3, under which a sum hides nobody, to 10. Smaller where the groups were else too few to compare
    (:data:`MIN_GROUPS`), also in the smallest round.

    >>> [fitting_group_size(n, n, 1) for n in (15, 18, 20, 30, 60)]
    [3, 3, 4, 6, 10]

    Args:
        participants: Of a round, at least.
        updates: With which a round may end.
        f: How many groups may be spoilt.
    """
    wanted = participants // (4 * f) if isinstance(f, int) and f else participants // 10
    smallest = min(participants, updates)
    sizes = range(min(wanted, _LARGEST_GROUP), MIN_COHORT, -1)
    return next((size for size in sizes if group_count(smallest, size) >= MIN_GROUPS), MIN_COHORT)


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
