"""An attack that learns from what a round made of it: each round it goes on from the last merged update."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from simulation.attacks.base import Attack, Float32, Float64, Situation, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelocatedOrthogonal(Attack):
    """Relocated orthogonal perturbation, ROP (Ozfatura, Ozfatura, Küpçü, Gündüz, IEEE TIFS 2024, arXiv:2208.09894).

    Against rules that trust the last merged update m, such as centered clipping, which clips what differs from m and is
    blind to its direction. With mu the honest mean, r = reference m + (1 - reference) mu, p the part of the vector of
    ones that is orthogonal to r, and a hat for division by the norm::

        place + size * (sin(angle) p^ + cos(angle) r^),    place = relocation m + (1 - relocation) mu

    At 90 degrees it neither helps nor hinders this round's descent, so that tests by angle or inner product see
    nothing; as p hardly changes from round to round, it adds up over them. In the first round m is mu.

    The attackers know the honest updates and the versions of the model that they were sent, m is what the last round
    changed in it. The paper gives ``size`` as a number, the radius of the clipping; here it is a multiple of the median
    distance from ``place`` to the honest updates, so that it means the same for each model: at 1 the attackers are no
    further out than half of the honest.

    Args:
        relocation: 1 perturbs the last merged update, 0 the honest mean.
        reference: Share of the last merged update in what the perturbation is orthogonal to.
        angle: From the reference, in degrees; 180 goes against it.
        size: Length of the perturbation.
    """

    remembers = True
    relocation: float = 1.0
    reference: float = 0.9
    angle: float = 90.0
    size: float = 1.0

    def __post_init__(self) -> None:
        check("relocation", self.relocation, 0.0, 1.0)
        check("reference", self.reference, 0.0, 1.0)
        check("angle", self.angle, 0.0, 360.0)
        check("size", self.size, 0.0, 1e30)

    def __call__(self, situation: Situation) -> Float32:
        """The perturbed place, for each attacker."""
        mean = situation.mean
        last = mean if situation.last is None else situation.last.astype(np.float64)
        place = self.relocation * last + (1.0 - self.relocation) * mean
        along = _unit(self.reference * last + (1.0 - self.reference) * mean)
        ones = np.ones(situation.dimension)
        across = _unit(ones - (ones @ along) * along)
        radians = math.radians(self.angle)
        away = float(np.median(np.linalg.norm(situation.honest - place, axis=1)))
        return situation.copies(place + self.size * away * (math.sin(radians) * across + math.cos(radians) * along))


def _unit(vector: Float64) -> Float64:
    """The vector divided by its norm; zeros where it is nothing but what rounding leaves."""
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm > 1e-12 * math.sqrt(len(vector)) else np.zeros_like(vector)
