"""Pre-aggregators: what is done to the updates before a rule sees them."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from coordinator.merging.plane import Plane
from coordinator.merging.rule import PreAggregator
from coordinator.merging.tolerance import require_majority


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormClip(PreAggregator):
    """Scales updates down to a norm: fixed, adaptive, or some multiple of the median norm. Exactly one of the three.

    Adaptive clipping (ARC; Allouah et al., "Adaptive Gradient Clipping for Robust Federated Learning", ICLR 2025)
    clips the ``floor(2 f (n - f) / n)`` longest updates to the norm of the next one.

    Formal Guarantees:
        No update comes out longer than the bound. Adaptive clipping in front of an (f, kappa)-robust rule gives an
        (f, 3 kappa)-robust one. Clipping alone is not robust: it doesn't look at directions.

    Args:
        norm: Above 0. The bound.
        adaptive: Clip by rank.
        times_median: Above 0. The bound is this many median norms.
    """

    name: ClassVar[str] = "norm-clip"
    needs_gram: ClassVar[bool] = False
    norm: float | None = None
    adaptive: bool = False
    times_median: float | None = None

    def __post_init__(self) -> None:
        """Refuse more or less than one way."""
        if (self.norm is not None) + self.adaptive + (self.times_median is not None) != 1:
            raise ValueError("NormClip takes exactly one of `norm`, `adaptive` and `times_median`")
        for value in (self.norm, self.times_median):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"the bound is {value}, but must be a finite number above 0")

    def require(self, participants: int, bad: int) -> None:
        """Needs 2 f < n."""
        require_majority(self.name, participants, bad)

    def bound(self, kappa: float | None, participants: int, bad: int) -> float | None:
        """3 kappa where clipping is adaptive; a fixed bound may cut honest updates, too."""
        return 3 * kappa if self.adaptive and kappa is not None else None

    def apply(self, plane: Plane) -> Plane:
        """Scale the rows."""
        norms, limit = plane.norms, self._limit(plane)
        return plane.scaled(np.divide(limit, norms, out=np.ones_like(norms), where=norms > limit))

    def _limit(self, plane: Plane) -> float:
        if self.norm is not None:
            return self.norm
        ordered = np.sort(plane.norms)
        if self.times_median is not None:
            return float(self.times_median * np.median(ordered))
        size = len(ordered)
        clipped = 2 * plane.bad * (size - plane.bad) // size
        return float(ordered[size - clipped - 1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class NNM(PreAggregator):
    """Nearest-neighbour mixing: each update becomes the mean of the n - f updates nearest to it, itself among them.

    Allouah et al., "Fixing by Mixing", AISTATS 2023. It is what makes simple rules work on heterogeneous data.

    Formal Guarantees:
        In front of an (f, kappa)-robust rule it gives an (f, 8 f / (n - f) (kappa + 1))-robust one.
    """

    name: ClassVar[str] = "nnm"

    def require(self, participants: int, bad: int) -> None:
        """Needs 2 f < n."""
        require_majority(self.name, participants, bad)

    def bound(self, kappa: float | None, participants: int, bad: int) -> float | None:
        """``8 f / (n - f) (kappa + 1)``."""
        return None if kappa is None else 8 * bad / (participants - bad) * (kappa + 1)

    def apply(self, plane: Plane) -> Plane:
        """Mix; where two updates are as near, the earlier name wins."""
        size = len(plane)
        near = size - plane.bad
        if plane.bad == 0:
            return plane.mixed(np.full((size, size), 1 / size))
        order = np.argsort(plane.squared_distances, axis=1, kind="stable")[:, :near]
        matrix = np.zeros((size, size))
        np.put_along_axis(matrix, order, 1 / near, axis=1)
        return plane.mixed(matrix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucketing(PreAggregator):
    """Shuffles the updates and averages them by buckets of ``size``; the order follows the round's seed.

    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022.

    Formal Guarantees:
        At most f of the ``ceil(n / size)`` buckets hold a bad update. The variance of honest buckets falls by ``size``.

    Args:
        per_bucket: At least 1.
    """

    name: ClassVar[str] = "bucketing"
    per_bucket: int = 2

    def __post_init__(self) -> None:
        """Refuse empty buckets."""
        if self.per_bucket < 1:
            raise ValueError(f"per_bucket is {self.per_bucket}, but must be at least 1")

    def size(self, participants: int) -> int:
        """The number of buckets."""
        return -(-participants // self.per_bucket)

    def require(self, participants: int, bad: int) -> None:
        """Needs more than 2 f buckets."""
        require_majority(f"{self.name} of {self.per_bucket} (which leaves buckets)", self.size(participants), bad)

    def apply(self, plane: Plane) -> Plane:
        """Average the buckets."""
        order = np.random.default_rng(plane.seed).permutation(len(plane))
        count = self.size(len(plane))
        bucket_of = np.empty(len(plane), dtype=np.intp)
        bucket_of[order] = np.arange(len(plane)) // self.per_bucket
        matrix = (bucket_of[None, :] == np.arange(count)[:, None]).astype(np.float64)
        shares = matrix @ plane.shares
        matrix /= matrix.sum(axis=1, keepdims=True)
        return plane.mixed(matrix, shares=shares, home=bucket_of[plane.home])
