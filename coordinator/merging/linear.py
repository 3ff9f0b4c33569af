"""Rules whose result is a weighted sum of the updates, decided in the Gram plane."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Final

import numpy as np

from coordinator.merging.plane import Floats, Indices, Plane
from coordinator.merging.rule import Combination, Rule
from coordinator.merging.tolerance import require, require_majority

_ITERATIONS: Final = 10_000
_CONVERGED: Final = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean(Rule):
    """The mean, weighted by examples (McMahan et al. 2017). It stands no bad participant.

    Args:
        times_equal: At least 1. No participant counts for more than one would that has so many times the examples of
            each other one; None for no such cap where f is 0.
    """

    name: ClassVar[str] = "mean"
    needs_gram: ClassVar[bool] = False
    times_equal: float | None = None

    def __post_init__(self) -> None:
        """Refuse a cap that equal participants would exceed."""
        super().__post_init__()
        if self.times_equal is not None and not 1 <= self.times_equal < math.inf:
            raise ValueError(f"times_equal is {self.times_equal}, but must be a finite number of at least 1")

    def largest_share(self, participants: int, bad: int) -> float:
        """``k / (n - 1 + k)`` for ``times_equal=k``, and no more than any rule allows."""
        most = super().largest_share(participants, bad)
        if self.times_equal is None:
            return most
        return min(most, self.times_equal / (participants - 1 + self.times_equal))

    def require(self, participants: int, bad: int) -> None:
        """Needs 2 f < n, so that a declared f is at least possible; it isn't stood all the same."""
        require_majority(self.name, participants, bad)

    def kappa(self, participants: int, bad: int) -> float | None:
        """0 without bad participants, else infinite."""
        return math.inf if bad else 0.0

    def plan(self, plane: Plane) -> Combination:
        """The shares themselves."""
        warning = f"the mean stands no bad participant, and {plane.bad} may be: one can move it anywhere"
        return Combination(weights=plane.shares, warnings=(warning,) if plane.bad else ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeometricMedian(Rule):
    """The point whose weighted distances to the updates add up to the least, found by Weiszfeld's iteration.

    Chen, Su, Xu 2017; Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", IEEE TSP 2022. It runs
    to convergence, for in the Gram plane an iteration costs n^2 operations. Where it meets an update it takes Vardi's
    and Zhang's step (PNAS 2000), so an update that is itself the median is found exactly.

    Formal Guarantees:
        (f, 4 (1 + f / (n - 2 f))^2)-robust for 2 f < n and equal shares. With unequal shares the same argument holds as
        long as bad participants have less than half of them, which the cap on shares sees to.
    """

    name: ClassVar[str] = "geometric-median"

    def require(self, participants: int, bad: int) -> None:
        """Needs 2 f < n."""
        require_majority(self.name, participants, bad)

    def kappa(self, participants: int, bad: int) -> float | None:
        """``4 (1 + f / (n - 2 f))^2``."""
        return 4 * (1 + bad / (participants - 2 * bad)) ** 2

    def plan(self, plane: Plane) -> Combination:
        """Iterate in the plane."""
        weights, steps = weiszfeld(plane.centred, plane.shares)
        away = distances_to(plane.centred, weights)
        warnings = () if steps < _ITERATIONS else (f"the geometric median didn't converge in {steps} steps",)
        return Combination(weights=weights, scores=away, warnings=warnings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiKrum(Rule):
    """The mean of the ``m`` updates whose nearest neighbours are nearest; ``m=1`` is Krum.

    Blanchard et al., "Machine Learning with Adversaries", NeurIPS 2017. An update's score is the sum of its squared
    distances to its n - f - 2 nearest others.

    Formal Guarantees:
        Krum is (f, 6 (1 + f / (n - 2 f)))-robust for 2 f + 2 < n.

    Args:
        m: How many to average; at least 1, at most n - f. None for n - f.
        neighbours: Over how many others a score goes. None for n - f - 2; some papers and libraries take n - f - 1.
    """

    name: ClassVar[str] = "multi-krum"
    m: int | None = None
    neighbours: int | None = None

    def __post_init__(self) -> None:
        """Refuse less than one."""
        Rule.__post_init__(self)
        for what, value in (("m", self.m), ("neighbours", self.neighbours)):
            if value is not None and value < 1:
                raise ValueError(f"{what} is {value}, but must be at least 1")

    def require(self, participants: int, bad: int) -> None:
        """Needs n > 2 f + 2, and m <= n - f."""
        require(self.name, participants, bad, max(2 * bad + 3, (self.m or 0) + bad, (self.neighbours or 0) + 1))

    def kappa(self, participants: int, bad: int) -> float | None:
        """``6 (1 + f / (n - 2 f))`` for Krum; none is known to us for the mean of several."""
        return 6 * (1 + bad / (participants - 2 * bad)) if self.m == 1 else None

    def plan(self, plane: Plane) -> Combination:
        """Score and take the best."""
        size = len(plane)
        near = min(self.neighbours or size - plane.bad - 2, size - 1)
        scores = krum_scores(plane.squared_distances, near)
        order = krum_order(plane.squared_distances, scores)
        kept = self.m or size - plane.bad
        weights = np.zeros(size)
        weights[order[:kept]] = plane.shares[order[:kept]]
        if weights.sum() <= 0:
            weights[order[:kept]] = 1.0
        return Combination(
            weights=weights / weights.sum(),
            scores=np.sqrt(scores / near),
            dropped=tuple(int(row) for row in np.sort(order[kept:])),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenteredClipping(Rule):
    """Averages what updates differ by from a centre, clipped: ``v += mean(clip(x_i - v, radius))``, several times.

    Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021. The centre starts at
    the coordinator's own vector (the last merged update, say) where there is one, else at zero.

    Formal Guarantees:
        No participant moves the centre by more than its share times ``radius`` in a step.

    Args:
        radius: Above 0. None for the median distance from the centre, anew in each step.
        steps: At least 1.
    """

    name: ClassVar[str] = "centered-clipping"
    radius: float | None = None
    steps: int = 3

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        Rule.__post_init__(self)
        if self.radius is not None and not 0 < self.radius < math.inf:
            raise ValueError(f"radius is {self.radius}, but must be a finite number above 0")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, but must be at least 1")

    def require(self, participants: int, bad: int) -> None:
        """Needs 2 f < n."""
        require_majority(self.name, participants, bad)

    def plan(self, plane: Plane) -> Combination:
        """Move the centre in the plane; its coordinates are weights of the rows and of the starting point."""
        size = len(plane)
        gram = np.zeros((size + 1, size + 1))
        gram[:size, :size] = plane.dots
        if plane.reference is not None:
            gram[size, :size] = gram[:size, size] = plane.reference.dots
            gram[size, size] = plane.reference.square
        centre = np.zeros(size + 1)
        centre[size] = 1.0
        away = np.zeros(size)
        for _ in range(self.steps):
            away = distances_to(gram, centre)[:size]
            radius = float(np.median(away)) if self.radius is None else self.radius
            with np.errstate(divide="ignore", invalid="ignore"):
                factors = np.where(away > radius, radius / away, 1.0)
            moves = plane.shares * factors
            centre *= 1.0 - moves.sum()
            centre[:size] += moves
        own = float(centre[size]) if plane.reference is not None else 0.0
        return Combination(weights=centre[:size], reference_weight=own, scores=away)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FLTrust(Rule):
    """Weighs updates by how far they point the coordinator's own way, each scaled to the length of its update.

    Cao et al., "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021. The coordinator's
    own vector is its update from a small clean data set.

    Formal Guarantees:
        The result is no longer than the coordinator's own update, and has no negative component along it. Example
        counts are not looked at.
    """

    name: ClassVar[str] = "fltrust"
    needs_reference: ClassVar[bool] = True

    def require(self, participants: int, bad: int) -> None:
        """Stands any number, as long as the root data are good."""
        require(self.name, participants, bad, max(bad, 1))

    def plan(self, plane: Plane) -> Combination:
        """Trust is the cosine, or 0 where it is negative."""
        reference = plane.reference
        assert reference is not None
        length = math.sqrt(reference.square)
        scale = plane.norms * length
        cosines = np.divide(reference.dots, scale, out=np.zeros(len(plane)), where=scale > 0)
        trust = np.clip(cosines, 0.0, 1.0)
        dropped = tuple(int(row) for row in np.flatnonzero(trust == 0))
        if trust.sum() == 0:
            warning = "no update points the coordinator's own way: its own update is taken alone"
            return Combination(
                weights=np.zeros(len(plane)),
                reference_weight=1.0,
                scores=-cosines,
                dropped=dropped,
                warnings=(warning,),
            )
        norms = plane.norms
        weights = np.divide(trust * length, norms, out=np.zeros(len(plane)), where=norms > 0) / trust.sum()
        return Combination(weights=weights, scores=-cosines, dropped=dropped)


def krum_scores(squared_distances: Floats, near: int) -> Floats:
    """Each row's sum of squared distances [m] to its ``near`` nearest others."""
    others = squared_distances + np.diag(np.full(len(squared_distances), np.inf))
    found: Floats = np.sort(others, axis=1)[:, :near].sum(axis=1)
    return found


def krum_order(squared_distances: Floats, scores: Floats) -> Indices:
    """Rows from best to worst score; at equal scores the one nearer to all rows, then the earlier name.

    Scores over a single neighbour are always equal for two rows at least: those that are each other's nearest.
    """
    found: Indices = np.lexsort((squared_distances.sum(axis=1), scores))
    return found


def distances_to(gram: Floats, weights: Floats) -> Floats:
    """Distances [m] of the rows to their combination by ``weights``.

    Where ``gram`` is centred, the weights must add up to 1.
    """
    products = gram @ weights
    found: Floats = np.sqrt(np.maximum(np.diagonal(gram) - 2 * products + weights @ products, 0.0))
    return found


def weiszfeld(gram: Floats, shares: Floats) -> tuple[Floats, int]:
    """Weights [m] of the geometric median, and the steps taken.

    Starts between the half of the rows nearest the middle one, which no minority can move away.
    """
    squares = np.diagonal(gram)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0))
    middle = int(np.argmin(distances @ shares))
    inner = np.argsort(distances[middle], kind="stable")[: len(gram) // 2 + 1]
    weights = np.zeros(len(gram))
    weights[inner] = 1 / len(inner)
    scale = float(np.median(distances[middle])) or float(distances[middle].max())
    if scale == 0:
        return shares, 0
    for step in range(1, _ITERATIONS + 1):
        away = distances_to(gram, weights)
        there = away <= 1e-9 * scale
        pulls = np.where(there, 0.0, shares / np.where(there, 1.0, away))
        target = pulls / pulls.sum()
        if there.any():
            # Vardi and Zhang: stay if the others' pull is weaker than the weight of the rows here.
            difference = target - weights
            pull = pulls.sum() * math.sqrt(max(float(difference @ gram @ difference), 0.0))
            held = float(shares[there].sum())
            if held >= pull:
                return weights, step
            target = (1 - held / pull) * target + (held / pull) * weights
        moved = float(np.abs(target - weights).sum())
        weights = target
        if moved < _CONVERGED:
            return weights, step
    return weights, _ITERATIONS
