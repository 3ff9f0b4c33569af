"""Attacks that push the merged update in a direction: against the honest mean, or to one side of it."""

from __future__ import annotations

import dataclasses
from statistics import NormalDist

import numpy as np

from simulation.attacks.base import Attack, Float32, Float64, Situation, check
from simulation.attacks.search import most_harmful


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignFlip(Attack):
    """Sign flipping: each attacker hands in ``-scale`` times its own update (Li et al. 2019).

    The attacker knows its own data only. It is the weakest attack here: with a minority of attackers the mean still
    points the right way.
    """

    knows = "own data"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check("scale", self.scale, 0.0, 1e30)

    def __call__(self, situation: Situation) -> Float32:
        """``-scale * own_i``."""
        with np.errstate(over="ignore"):
            return (-self.scale * situation.trained).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerProduct(Attack):
    """Inner-product manipulation (Xie, Koyejo, Gupta, UAI 2019): ``-scale * mu``, mu the honest mean.

    The inner product of mean and mu becomes negative where ``f * scale > h``; a small scale hides among the honest
    updates from rules that look at distances. The attackers know the honest updates.
    """

    scale: float = 2.0

    def __post_init__(self) -> None:
        check("scale", self.scale, 0.0, 1e30)

    def __call__(self, situation: Situation) -> Float32:
        """``-scale * mu``."""
        return situation.copies(-self.scale * situation.mean)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimisedInnerProduct(Attack):
    """Inner-product manipulation with the scale that harms the rule at hand most, by line search.

    As in Allouah et al. (ICML 2023): maximise ``|F(x_1 .. x_h, -s mu, .., -s mu) - mu|`` over s. The attackers know the
    honest updates and the rule.

    Args:
        largest: The largest scale tried.
        candidates: Scales tried on a logarithmic grid from 0.1 to ``largest``, beside that of :class:`InnerProduct`.
        refinements: Scales tried around the best of them.
    """

    largest: float = 100.0
    candidates: int = 13
    refinements: int = 8

    def __post_init__(self) -> None:
        check("largest", self.largest, InnerProduct().scale, 1e30)
        check("candidates", self.candidates, 2, 1_000)
        check("refinements", self.refinements, 0, 1_000)

    def scale(self, situation: Situation) -> float:
        """The scale it uses."""
        grid = np.geomspace(0.1, self.largest, self.candidates).tolist()
        mean = situation.mean
        return most_harmful(situation, lambda s: -s * mean, [*grid, InnerProduct().scale], self.refinements)

    def __call__(self, situation: Situation) -> Float32:
        """``-s * mu`` with the best s."""
        return InnerProduct(scale=self.scale(situation))(situation)


def alie_z(honest: int, attackers: int) -> float:
    """The z of *A Little Is Enough*: how many deviations are safe, for h honest participants and f attackers.

    ``z = inverse normal ((n - f - s) / (n - f))`` with ``n = h + f`` and ``s = floor(n / 2 + 1) - f`` supporters, who
    are honest participants further out than the attackers; 0 where that is negative. A majority of attackers needs no
    supporters; it is given one, so that z is finite.

    >>> round(alie_z(10, 3), 3)
    0.253
    """
    supporters = max(1, (honest + attackers) // 2 + 1 - attackers)
    share = (honest - supporters) / honest
    return max(0.0, NormalDist().inv_cdf(share)) if share > 0.0 else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alie(Attack):
    """A Little Is Enough (Baruch, Baruch, Goldberg, NeurIPS 2019): ``mu - z * sigma`` in each coordinate.

    With mean mu and deviation sigma of the honest updates. The attackers stay inside the spread of the honest updates,
    on the same side in every coordinate. They know the honest updates (the paper estimates mu and sigma from their
    own).

    Args:
        z: Deviations from the mean; 0 takes the paper's (:func:`alie_z`). A negative one goes to the other side.
    """

    z: float = 0.0

    def __post_init__(self) -> None:
        check("z", self.z, -1e30, 1e30)

    def __call__(self, situation: Situation) -> Float32:
        """``mu - z * sigma``."""
        z = self.z or alie_z(len(situation.honest), situation.attackers)
        return situation.copies(situation.mean - z * situation.deviation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimisedAlie(Attack):
    """A Little Is Enough with the z, of either sign, that harms the rule at hand most, by line search.

    The attackers know the honest updates and the rule.

    Args:
        largest: The largest ``|z|`` tried.
        candidates: Values tried on a logarithmic grid from 0.1 to ``largest`` on each side, beside the paper's.
        refinements: Values tried around the best of them.
    """

    largest: float = 100.0
    candidates: int = 13
    refinements: int = 8

    def __post_init__(self) -> None:
        check("largest", self.largest, 0.2, 1e30)
        check("candidates", self.candidates, 2, 1_000)
        check("refinements", self.refinements, 0, 1_000)

    def z(self, situation: Situation) -> float:
        """The z it uses."""
        mean, deviation = situation.mean, situation.deviation
        grid = np.geomspace(0.1, self.largest, self.candidates)
        paper = alie_z(len(situation.honest), situation.attackers)
        return most_harmful(
            situation, lambda z: _shifted(mean, deviation, z), [*(-grid), *grid, paper], self.refinements
        )

    def __call__(self, situation: Situation) -> Float32:
        """``mu - z * sigma`` with the best z."""
        return situation.copies(_shifted(situation.mean, situation.deviation, self.z(situation)))


def _shifted(mean: Float64, deviation: Float64, z: float) -> Float64:
    shifted: Float64 = mean - z * deviation
    return shifted
