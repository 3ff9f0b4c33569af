"""How a run's coordinator merges, as a function of rows: what attacks are tuned against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulation.attacks import Rule
from simulation.attacks.base import Float32, Float64
from wire import RunPlan


def rule_of(plan: RunPlan, examples: Sequence[int]) -> Rule:
    """The rule of a run, for updates [n, d] with these example counts [n].

    It is the one place that knows which rule a plan asks for. Today that is the weighted mean; under secure sums, of
    updates that the participants' own machines clip, and with capped weights. Rounding is left out.
    """
    counts = np.asarray(examples, np.float64)
    if plan.secure is None:
        shares = counts / counts.sum()
        return lambda rows: np.asarray(shares @ rows.astype(np.float64))
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
