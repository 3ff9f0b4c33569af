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

    Formal Guarantees:
        For 3 f < n it is (f, kappa)-robust with ``kappa = 2 f / (n - 3 f) (1 + sqrt(2 (n - f) / (n - 2 f)))^2``; in
        place of the honest updates' mean squared distance, their variance v along one direction may stand. Our own
        proof, for any set S of n - f updates, with B the others and c(.) the sum of weights:

        1. In a step, let lambda be the largest variance, along u. S's part of ``sum c_i tau_i`` is at most
           (n - f) v + lambda c(B), since the two groups' means are no further apart than lambda allows; B's part is the
           rest of lambda (c(S) + c(B)). So B loses more weight than S as long as lambda (c(S) - c(B)) >= 2 (n - f) v.
        2. While B has lost more, c(S) - c(B) >= n - 2 f. So some step has lambda <= 2 (n - f) / (n - 2 f) v: else B
           would be out, and lambda at most (n - f) / (n - 2 f) v. The step that is returned has no larger one.
        3. There the weights add up to more than n - 2 f, so, divided by their sum, they have more than
           p = (n - 3 f) / (n - f) in common with equal weights on S. Two means of variances a and b with p in common
           differ by at most sqrt((1 - p) / p) (sqrt(a) + sqrt(b)) in any direction.
    """

    name: ClassVar[str] = "caf"

    def require(self, participants: int, bad: int) -> None:
        """Needs 2 f < n."""
        require_majority(self.name, participants, bad)

    def kappa(self, participants: int, bad: int) -> float | None:
        """``2 f / (n - 3 f) (1 + sqrt(2 (n - f) / (n - 2 f)))^2``; none is known to us for 3 f >= n."""
        if 3 * bad >= participants:
            return None
        root = 1 + math.sqrt(2 * (participants - bad) / (participants - 2 * bad))
        return 2 * bad / (participants - 3 * bad) * root**2

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
