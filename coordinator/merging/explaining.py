"""From a plan to the report: verdicts, reasons and warnings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from coordinator.merging.linear import distances_to
from coordinator.merging.plane import Floats, Plane
from coordinator.merging.report import OUTLYING, MergeReport, ParticipantReport, Verdict, robust_deviations
from coordinator.merging.rule import Combination, Plan, Recipe


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """All that a report is made from.

    Attributes:
        recipe: What was applied.
        tolerated: Bad participants declared.
        fraction: Where they were declared as one.
        names: [n] Who passed the gate.
        faults: Who didn't, and why.
        norms: Of all that have one.
        before: The plane of the updates.
        after: The plane that the rule saw.
        plan: What the rule decided.
        weights: [n] Factors of the updates, for a linear rule.
        sample: [n, s] Some coordinates of the updates.
    """

    recipe: Recipe
    tolerated: int
    fraction: float | None
    names: tuple[str, ...]
    faults: Mapping[str, str]
    norms: Mapping[str, float]
    before: Plane
    after: Plane
    plan: Plan
    weights: Floats | None
    sample: NDArray[np.float32]


def explain(facts: Facts) -> MergeReport:
    """The report of a merge."""
    accepted = _accepted(facts)
    rejected = [
        ParticipantReport(
            participant=name,
            verdict=Verdict.REJECTED,
            reason=fault,
            norm=facts.norms.get(name, float("nan")),
        )
        for name, fault in facts.faults.items()
    ]
    return MergeReport(
        rule=facts.recipe.name,
        tolerated=facts.tolerated,
        remaining=facts.before.bad,
        kappa=facts.recipe.kappa(len(facts.names), facts.before.bad),
        participants=tuple(sorted([*accepted, *rejected], key=lambda item: item.participant)),
        warnings=tuple(_warnings(facts)),
    )


def _accepted(facts: Facts) -> list[ParticipantReport]:
    home = facts.after.home
    scores = facts.plan.scores
    dropped = np.isin(home, facts.plan.dropped)
    deviations = robust_deviations(scores) if scores is not None else np.zeros(len(facts.after))
    rows_kept = None if isinstance(facts.plan, Combination) else kept_fractions(facts)
    kept = None if rows_kept is None else rows_kept[home]
    # What a selection keeps of the rows, it takes the mean of.
    weights = facts.after.in_updates(rows_kept / rows_kept.sum()) if rows_kept is not None else facts.weights
    assert weights is not None
    distances = _distances(facts)
    found = []
    for index, name in enumerate(facts.names):
        row = int(home[index])
        factor = float(facts.after.factors[index])
        weight = float(weights[index])
        verdict, reason = Verdict.KEPT, ""
        if dropped[index] or weight == 0.0:
            verdict = Verdict.REJECTED
            if scores is not None:
                reason = f"{facts.recipe.rule.name} score {scores[row]:.3g}, {deviations[row]:+.1f} sigma"
            else:
                reason = f"{facts.recipe.rule.name} took nothing of it{_standing_out(facts, name)}"
        elif factor < 1.0:
            verdict, reason = Verdict.CLIPPED, f"norm {facts.norms[name]:.3g} to {factor * facts.norms[name]:.3g}"
        found.append(
            ParticipantReport(
                participant=name,
                verdict=verdict,
                reason=reason,
                norm=facts.norms[name],
                share=float(facts.before.shares[index]),
                weight=weight,
                kept_fraction=None if kept is None else float(kept[index]),
                score=None if scores is None else float(scores[row]),
                distance=None if distances is None else float(distances[index]),
                factor=factor,
            )
        )
    return found


def _standing_out(facts: Facts, name: str) -> str:
    """By how much an update is longer than the others, where that tells something."""
    median = float(np.median([facts.norms[other] for other in facts.names]))
    times = facts.norms[name] / median if median else 0.0
    return f": its norm is {times:.3g} times the median" if times > OUTLYING else ""


def _distances(facts: Facts) -> Floats | None:
    """From each update to the result [n], where both are in the plane."""
    if facts.weights is None or facts.before.gram is None:
        return None
    if isinstance(facts.plan, Combination) and facts.plan.reference_weight:
        return None
    if abs(float(facts.weights.sum()) - 1.0) < 1e-12:
        return distances_to(facts.before.centred, facts.weights)
    return distances_to(facts.before.dots, facts.weights)


def kept_fractions(facts: Facts) -> Floats:
    """At how much of the sample each row's value [m] was among the selected ones."""
    plan = facts.plan
    assert not isinstance(plan, Combination)
    rows = facts.sample if facts.after.mixing is None else facts.after.mixing @ facts.sample
    chosen = np.arange(len(rows)) if plan.rows is None else plan.rows
    values = rows[chosen]
    if plan.around:
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.abs(values - np.median(values, axis=0))
    ranks = np.argsort(np.argsort(values, axis=0, kind="stable"), axis=0, kind="stable")
    inside = ranks < plan.around if plan.around else (ranks >= plan.trim) & (ranks < len(values) - plan.trim)
    found = np.zeros(len(rows))
    found[chosen] = inside.mean(axis=1) if inside.shape[1] else 1.0
    return found


def _warnings(facts: Facts) -> list[str]:
    found = list(facts.plan.warnings)
    gated = len(facts.faults)
    if gated > facts.tolerated:
        found.append(
            f"{gated} updates were rejected at the gate, but only {facts.tolerated} bad participants were declared: "
            "the rule is left with none to stand"
        )
    if facts.fraction and facts.tolerated == 0:
        found.append(f"{facts.fraction:g} of {len(facts.names) + gated} participants is less than one: none is stood")
    same = _same(facts)
    if len(same) == 1 and len(same[0]) == len(facts.names) > 1:
        found.append("all updates are identical: a replay, or participants that don't train")
    else:
        found += [f"{', '.join(group)} sent the same update" for group in same]
    if facts.plan.dropped and facts.plan.scores is not None and len(facts.after) > 2:
        highest = robust_deviations(facts.plan.scores)[list(facts.plan.dropped)].max()
        if highest < OUTLYING:
            found.append(
                f"no rejected update stands out (at most {highest:.1f} sigma): "
                "heterogeneity alone explains the distances"
            )
    return found


def _same(facts: Facts) -> list[list[str]]:
    """Groups of participants whose updates are equal and not zero."""
    plane = facts.before
    size = len(facts.names)
    if plane.gram is not None:
        equal = (plane.squared_distances == 0) & (np.diagonal(plane.gram) > 0)[:, None]
        # A distance of 0 may be rounding where updates are large and nearly equal; the sample then tells them apart.
        equal &= (facts.sample[:, None, :] == facts.sample[None, :, :]).all(axis=2) if size <= 64 else True
        first = np.argmax(equal, axis=1)
        alone = ~equal.any(axis=1)
    else:
        seen: dict[bytes, int] = {}
        first = np.array(
            [
                seen.setdefault(row.tobytes() + np.float64(facts.norms[name]).tobytes(), index)
                for index, (name, row) in enumerate(zip(facts.names, facts.sample, strict=True))
            ]
        )
        alone = np.array([facts.norms[name] == 0 for name in facts.names])
    groups: dict[int, list[str]] = {}
    for index in range(size):
        if not alone[index]:
            groups.setdefault(int(first[index]), []).append(facts.names[index])
    return [group for group in groups.values() if len(group) > 1]
