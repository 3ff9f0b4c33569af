"""Recipes by name, for configuration; and the two that we recommend."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from coordinator.merging.coordinatewise import Bulyan, Median, TrimmedMean
from coordinator.merging.linear import CenteredClipping, FLTrust, GeometricMedian, Mean, MultiKrum
from coordinator.merging.preaggregation import NNM, Bucketing, NormClip
from coordinator.merging.rule import PreAggregator, Recipe, Rule
from coordinator.merging.spectral import CAF, DnC
from coordinator.merging.tolerance import Tolerance

Made = TypeVar("Made")

RULES: Final[Mapping[str, Callable[..., Rule]]] = {
    rule.name: rule
    for rule in (Mean, Median, TrimmedMean, GeometricMedian, MultiKrum, CenteredClipping, CAF, Bulyan, FLTrust, DnC)
}
"""Rules by canonical name."""

PREAGGREGATORS: Final[Mapping[str, Callable[..., PreAggregator]]] = {
    step.name: step for step in (NormClip, NNM, Bucketing)
}
"""Pre-aggregators by canonical name."""


def careful() -> Recipe:
    """Where nobody is suspected: the mean, of norms up to three median ones and weights up to three equal ones."""
    return Recipe(steps=(NormClip(times_median=3.0),), rule=Mean(f=0, times_equal=3.0))


def robust(f: Tolerance = 0.2) -> Recipe:
    """Where some may be bad: adaptive clipping, then the covariance filter.

    Chosen by measurement (`benchmarks.robust_accuracy`, docs/robustness.md): of all rules tried it keeps the most
    accuracy under attackers who search for the worst that can be done to that very rule. The filter alone keeps as much
    where data differ little, and less where they differ much. Privacy noise, spread over all directions, harms it
    little.

    Args:
        f: How many.
    """
    return Recipe(steps=(NormClip(adaptive=True),), rule=CAF(f=f))


def build(
    rule: str, *, f: Tolerance, before: Sequence[tuple[str, Mapping[str, object]]] = (), **settings: object
) -> Recipe:
    """A recipe from names and settings.

    Example:
        >>> build("trimmed-mean", f=0.2, before=[("norm-clip", {"adaptive": True}), ("nnm", {})]).name
        'norm-clip(adaptive=True) >> nnm >> trimmed-mean'

    Args:
        rule: One of `RULES`.
        f: How many may be bad.
        before: Names among `PREAGGREGATORS`, with their settings, first to last.
        settings: Of the rule.

    Raises:
        ValueError: An unknown name or setting, or a value that can't be.
    """
    steps = tuple(_made(PREAGGREGATORS, name, options) for name, options in before)
    return Recipe(steps=steps, rule=_made(RULES, rule, {**settings, "f": f}))


def _made(table: Mapping[str, Callable[..., Made]], name: str, settings: Mapping[str, object]) -> Made:
    if name not in table:
        raise ValueError(f"there is no {name!r}; there are {', '.join(table)}")
    made = table[name]
    known = [field.name for field in dataclasses.fields(cast(Any, made))]
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ValueError(
            f"{name} has no setting {unknown[0]!r}; it has {', '.join(item for item in known if item != 'f') or 'none'}"
        )
    try:
        return made(**settings)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
