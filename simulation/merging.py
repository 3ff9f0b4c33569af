"""How a run's coordinator merges, as a function of rows: what attacks are tuned against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coordinator.merging import MergeRefused
from coordinator.merging.planning import recipe_of
from simulation.attacks import Rule
from simulation.attacks.base import Float32, Float64
from wire import RunPlan


def rule_of(plan: RunPlan, examples: Sequence[int]) -> Rule:
    """The rule of a run, for updates [n, d] with these example counts [n].

    Where updates are visible it is the recipe of the plan; what the recipe refuses to merge moves nothing. Under secure
    sums it is the weighted mean, with capped weights, of updates that the participants' own machines clip. Rounding is
    left out.
    """
    counts = np.asarray(examples, np.float64)
    if plan.secure is None:
        recipe = recipe_of(plan.merging)

        def merged(rows: Float32) -> Float32:
            try:
                return recipe(rows, examples=counts, max_norm=plan.merging.max_norm).value
            except MergeRefused:
                return np.zeros(rows.shape[1], np.float32)

        return merged
    spec = plan.secure
    weights = np.minimum(counts, spec.weight_cap)

    def clipped_mean(rows: Float32) -> Float64:
        wide = rows.astype(np.float64)
        norms = np.linalg.norm(wide, axis=1)
        factors = np.minimum(1.0, spec.clip_norm / np.where(norms > 0.0, norms, 1.0))
        wide *= (factors * weights / spec.weight_cap)[:, None]
        total: Float64 = np.clip(wide, -spec.clip_value, spec.clip_value).sum(axis=0)
        total *= spec.weight_cap / weights.sum()
        return total

    return clipped_mean
