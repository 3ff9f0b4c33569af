"""How a run's coordinator merges, as a function of rows: what attacks are tuned against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coordinator.merging import MergeRefused, Recipe
from coordinator.merging.planning import plan_recipe
from simulation.attacks import Rule
from simulation.attacks.base import Float32, Float64
from wire import RunPlan, SecureSpec


def rule_of(plan: RunPlan, examples: Sequence[int], groups: Sequence[Sequence[int]] = ()) -> Rule:
    """The rule of a run, for updates [n, d] with these example counts [n].

    Where updates are visible it is the recipe of the plan; what the recipe refuses to merge moves nothing. Under secure
    sums, participants' own machines clip updates and cap weights, and what the recipe sees are the means of
    ``groups``, each a set of rows. Rounding is left out.

    Args:
        plan: Of the run.
        examples: [n] Behind each row.
        groups: With sums of groups: the rows of each.
    """
    counts = np.asarray(examples, np.float64)
    recipe = plan_recipe(plan)
    if plan.secure is None:
        return lambda rows: _merged(recipe, rows, counts, plan.merging.max_norm)
    spec = plan.secure
    weights = np.minimum(counts, spec.weight_cap)
    if not spec.group_size:
        return lambda rows: _mean(_weighted(rows, weights, spec), weights, spec)

    def merged(rows: Float32) -> Float32 | Float64:
        wide = _weighted(rows, weights, spec)
        means = [_mean(wide[list(group)], weights[list(group)], spec) for group in groups]
        shares = np.array([weights[list(group)].sum() for group in groups])
        return _merged(recipe, np.stack(means).astype(np.float32), shares, plan.merging.max_norm)

    return merged


def _merged(recipe: Recipe, rows: Float32, counts: Float64, max_norm: float | None) -> Float32:
    try:
        return recipe(rows, examples=counts, max_norm=max_norm).value
    except MergeRefused:
        return np.zeros(rows.shape[1], np.float32)


def _weighted(rows: Float32, weights: Float64, spec: SecureSpec) -> Float64:
    """What each participant's machine would mask: its update, clipped, times its weight."""
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    factors = np.minimum(1.0, spec.clip_norm / np.where(norms > 0.0, norms, 1.0))
    wide *= (factors * weights / spec.weight_cap)[:, None]
    return np.clip(wide, -spec.clip_value, spec.clip_value)


def _mean(weighted: Float64, weights: Float64, spec: SecureSpec) -> Float64:
    total: Float64 = weighted.sum(axis=0)
    total *= spec.weight_cap / weights.sum()
    return total
