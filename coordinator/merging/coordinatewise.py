"""Rules that select at each coordinate. They don't look at example counts: a rank has no weight."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from coordinator.merging.linear import krum_order, krum_scores
from coordinator.merging.plane import Plane
from coordinator.merging.rule import Rule, Selection
from coordinator.merging.tolerance import require, require_majority


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrimmedMean(Rule):
    """Drops the f smallest and the f largest values at each coordinate and averages the rest.

    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018.

    Formal Guarantees:
        (f, 6 f / (n - 2 f) (1 + f / (n - 2 f)))-robust for 2 f < n.
    """

    name: ClassVar[str] = "trimmed-mean"
    needs_gram: ClassVar[bool] = False

    def require(self, participants: int, bad: int) -> None:
        """Needs 2 f < n."""
        require_majority(self.name, participants, bad)

    def kappa(self, participants: int, bad: int) -> float | None:
        """``6 f / (n - 2 f) (1 + f / (n - 2 f))``."""
        ratio = bad / (participants - 2 * bad)
        return 6 * ratio * (1 + ratio)

    def plan(self, plane: Plane) -> Selection:
        """Trim by f."""
        return Selection(trim=plane.bad)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Median(Rule):
    """The median of each coordinate; the mean of the two middle values where n is even.

    Yin et al., ICML 2018. On heterogeneous data the median of honest updates isn't their mean: put NNM in front.

    Formal Guarantees:
        (f, 4 (1 + f / (n - 2 f))^2)-robust for 2 f < n.
    """

    name: ClassVar[str] = "median"
    needs_gram: ClassVar[bool] = False

    def require(self, participants: int, bad: int) -> None:
        """Needs 2 f < n."""
        require_majority(self.name, participants, bad)

    def kappa(self, participants: int, bad: int) -> float | None:
        """``4 (1 + f / (n - 2 f))^2``."""
        return 4 * (1 + bad / (participants - 2 * bad)) ** 2

    def plan(self, plane: Plane) -> Selection:
        """Trim all but the middle."""
        return Selection(trim=(len(plane) - 1) // 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bulyan(Rule):
    """Picks n - 2 f updates by repeated Krum, then averages at each coordinate the n - 4 f values around their median.

    El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018.

    Formal Guarantees:
        For n >= 4 f + 3 every coordinate lies between honest values, near the median of the picked ones.
    """

    name: ClassVar[str] = "bulyan"

    def require(self, participants: int, bad: int) -> None:
        """Needs n >= 4 f + 3."""
        require(self.name, participants, bad, 4 * bad + 3)

    def plan(self, plane: Plane) -> Selection:
        """Pick, then select around the median."""
        size = len(plane)
        chosen = size - 2 * plane.bad
        distances = plane.squared_distances
        left = np.arange(size)
        picked = []
        scores = np.full(size, np.nan)
        for _ in range(chosen):
            near = max(len(left) - plane.bad - 2, 1)
            between = distances[np.ix_(left, left)]
            found = krum_scores(between, near)
            best = int(krum_order(between, found)[0])
            scores[left] = found
            picked.append(int(left[best]))
            left = np.delete(left, best)
        dropped = tuple(int(row) for row in left)
        return Selection(
            around=chosen - 2 * plane.bad, rows=np.sort(np.array(picked)), scores=np.sqrt(scores), dropped=dropped
        )
