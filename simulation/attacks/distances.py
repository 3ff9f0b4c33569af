"""Attacks that keep as far out as honest participants are from one another, and one that hides behind one of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, TypeAlias

import numpy as np

from simulation.attacks.base import Attack, Float32, Float64, Situation, check

Direction: TypeAlias = Literal["mean", "deviation", "sign"]

_BISECTIONS = 100


def direction_of(kind: Direction, situation: Situation) -> Float64:
    """The direction p [d] of min-max and min-sum: ``-mu / |mu|``, ``-sigma``, or ``-sign(mu)``."""
    if kind == "deviation":
        return -situation.deviation
    mean = situation.mean
    if kind == "sign":
        return -np.sign(mean)
    norm = float(np.linalg.norm(mean))
    return -mean / norm if norm else np.zeros_like(mean)


def _check_direction(direction: str) -> None:
    if direction not in ("mean", "deviation", "sign"):
        raise ValueError(f"direction is {direction!r}; one of mean, deviation, sign")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Room:
    """What is needed of a situation to find gamma: all distances follow from a few inner products.

    ``|mu + g p - x_i|^2 = away_i + 2 g across_i + g^2 length``.
    """

    mean: Float64
    direction: Float64
    away: Float64
    across: Float64
    length: float
    distances: Float64

    @classmethod
    def of(cls, situation: Situation, kind: Direction) -> _Room:
        """Measure the honest updates."""
        mean, direction = situation.mean, direction_of(kind, situation)
        centred = situation.honest - mean
        gram = centred @ centred.T
        away = np.diag(gram).copy()
        distances = np.maximum(away[:, None] + away[None, :] - 2.0 * gram, 0.0)
        np.fill_diagonal(distances, 0.0)
        return cls(
            mean=mean,
            direction=direction,
            away=away,
            across=-(centred @ direction),
            length=float(direction @ direction),
            distances=distances,
        )

    def squared(self, gamma: float) -> Float64:
        """[h] Squared distances of ``mu + gamma p`` to the honest updates."""
        result: Float64 = self.away + 2.0 * gamma * self.across + gamma * gamma * self.length
        return result


def largest_gamma(room: _Room, measure: Literal["max", "sum"]) -> float:
    """The largest gamma within the bound, by bisection; the feasible ones are an interval that begins at 0.

    Distances grow with gamma from some point on, and the mean itself is within either bound.
    """
    bound = float(room.distances.max() if measure == "max" else room.distances.sum(axis=1).max())
    if not room.length or not bound:
        return 0.0

    def inside(gamma: float) -> bool:
        squared = room.squared(gamma)
        return float(squared.max() if measure == "max" else squared.sum()) <= bound

    low, high = 0.0, math.sqrt(bound / room.length)
    while inside(high):
        low, high = high, 2.0 * high
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (middle, high) if inside(middle) else (low, middle)
    return low


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinMax(Attack):
    """Min-max (Shejwalkar, Houmansadr, NDSS 2021): as far from the mean as two honest updates are from each other.

    ``m = mu + gamma p`` with the largest gamma for which ``max_i |m - x_i| <= max_ij |x_i - x_j|``. The attackers know
    the honest updates, and not the rule.

    Args:
        direction: p: "mean" is ``-mu / |mu|``, "deviation" ``-sigma``, "sign" ``-sign(mu)``.
    """

    direction: Direction = "deviation"

    def __post_init__(self) -> None:
        _check_direction(self.direction)

    def __call__(self, situation: Situation) -> Float32:
        """``mu + gamma p``."""
        room = _Room.of(situation, self.direction)
        return situation.copies(room.mean + largest_gamma(room, "max") * room.direction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinSum(Attack):
    """Min-sum (Shejwalkar, Houmansadr, NDSS 2021): no further from all honest updates together than one of them is.

    ``m = mu + gamma p`` with the largest gamma for which ``sum_i |m - x_i|^2 <= max_i sum_j |x_i - x_j|^2``. The
    attackers know the honest updates, and not the rule.

    Args:
        direction: p, as for :class:`MinMax`.
    """

    direction: Direction = "deviation"

    def __post_init__(self) -> None:
        _check_direction(self.direction)

    def __call__(self, situation: Situation) -> Float32:
        """``mu + gamma p``."""
        room = _Room.of(situation, self.direction)
        return situation.copies(room.mean + largest_gamma(room, "sum") * room.direction)


def mimicked(honest: Float32) -> int:
    """The honest participant that mimic copies: the one that stands out most along the direction of largest variance.

    z is the unit vector that maximises ``sum_i <z, x_i - mu>^2``, here by the eigenvectors of the Gram matrix; the
    choice is ``argmax_i |<z, x_i>|``, the first of equals.
    """
    rows = honest.astype(np.float64)
    centred = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    if values[-1] <= 0.0:
        return 0
    projections = np.abs(rows @ (centred.T @ vectors[:, -1]))
    return int(np.argmax(projections))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mimic(Attack):
    """Mimic (Karimireddy, He, Jaggi, ICLR 2022): all attackers copy one honest participant.

    Nothing in the update is wrong, so that no rule can tell; where data differ between participants, the one's data
    count several times. The attackers know the honest updates.

    Args:
        index: Which honest participant; -1 chooses it by variance (:func:`mimicked`), in each round anew.
    """

    index: int = -1

    def __post_init__(self) -> None:
        check("index", self.index, -1)

    def __call__(self, situation: Situation) -> Float32:
        """``x_i`` for each attacker."""
        index = mimicked(situation.honest) if self.index < 0 else self.index % len(situation.honest)
        return np.repeat(situation.honest[index][None], situation.attackers, axis=0).astype(np.float32, copy=False)
