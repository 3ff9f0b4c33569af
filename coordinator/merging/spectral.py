"""Rules that look for the direction in which updates spread most, by exact eigenvectors of n x n matrices."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from coordinator.merging.plane import Floats, Plane
from coordinator.merging.rule import Combination, Rule
from coordinator.merging.tolerance import require_majority


@dataclasses.dataclass(frozen=True, kw_only=True)
class CAF(Rule):
    """Covariance-bound agnostic filter: weighs down what spreads most, and keeps the mean that spread least.

    Allouah et al., "Towards Trustworthy Federated Learning with Untrusted Participants", ICML 2025. While the weights
    c add up to more than n - 2 f: take the direction of largest variance, let tau_i be the squared deviation of update
    i along it, and set ``c_i *= 1 - tau_i / max tau``, so that each step brings one weight at least to 0. The result is
    the weighted mean of the step at which that variance was least.

    It bounds the error by the honest updates' variance along one direction, not by their total variance, so privacy
    noise, which is spread over all directions, costs it little. Deterministic, for its eigenvectors are exact.
    """

    name: ClassVar[str] = "caf"

    def require(self, participants: int, bad: int) -> None:
        """Needs 2 f < n."""
        require_majority(self.name, participants, bad)

    def plan(self, plane: Plane) -> Combination:
        """Filter in the plane."""
        size = len(plane)
        counts = np.ones(size)
        best = counts / size
        least = math.inf
        scores = np.zeros(size)
        while counts.sum() > size - 2 * plane.bad:
            weights = counts / counts.sum()
            variance, deviations = principal(plane.centred, weights)
            if variance < least:
                least, best = variance, weights
            scores = np.maximum(scores, np.abs(deviations))
            taus = deviations**2
            # Over what still counts: measured against an update that is out already, nobody would lose weight.
            highest = taus[counts > 0].max()
            if highest <= 0:
                break
            counts *= np.maximum(1 - taus / highest, 0.0)
        dropped = tuple(int(row) for row in np.flatnonzero(best == 0))
        return Combination(weights=best, scores=scores, dropped=dropped)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DnC(Rule):
    """Divide and conquer: drops the ``factor`` f updates that lie farthest out along the direction of largest spread.

    Shejwalkar, Houmansadr, "Manipulating the Byzantine", NDSS 2021. The paper samples coordinates to save time and
    repeats; here all coordinates count and the singular vector is exact, so once is enough. It is blind to attackers
    who spread over several directions.

    Args:
        factor: Above 0. How many updates to drop for each that may be bad.
    """

    name: ClassVar[str] = "dnc"
    factor: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        Rule.__post_init__(self)
        if not 0 < self.factor < math.inf:
            raise ValueError(f"factor is {self.factor}, but must be a finite number above 0")

    def require(self, participants: int, bad: int) -> None:
        """Needs 2 f < n, and that an update is left."""
        require_majority(self.name, participants, max(bad, 0))
        if math.floor(self.factor * bad) >= participants:
            require_majority(f"{self.name} that drops {self.factor} f", participants, participants)

    def plan(self, plane: Plane) -> Combination:
        """Drop along the principal direction."""
        size = len(plane)
        _, deviations = principal(plane.centred, np.full(size, 1 / size))
        scores = np.abs(deviations)
        order = np.argsort(scores, kind="stable")
        kept = size - math.floor(self.factor * plane.bad)
        weights = np.zeros(size)
        weights[order[:kept]] = 1 / kept
        return Combination(weights=weights, scores=scores, dropped=tuple(int(row) for row in np.sort(order[kept:])))


def principal(gram: Floats, weights: Floats) -> tuple[float, Floats]:
    """The largest variance of the rows, weighted, and each row's deviation [m] along its direction.

    With ``B = diag(sqrt(w)) (X - mean)``, the covariance B^T B and the m x m matrix B B^T have the same largest
    eigenvalue, and ``v = B^T u / sqrt(lambda)``.
    """
    products = gram @ weights
    centred = gram - products[:, None] - products[None, :] + weights @ products
    roots = np.sqrt(weights)
    values, vectors = np.linalg.eigh(roots[:, None] * centred * roots[None, :])
    largest = float(values[-1])
    if largest <= 0:
        return 0.0, np.zeros(len(weights))
    deviations: Floats = centred @ (roots * vectors[:, -1]) / math.sqrt(largest)
    return largest, deviations
