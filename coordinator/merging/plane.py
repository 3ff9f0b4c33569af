"""The Gram plane: all that linear rules and pre-aggregators need to know of the updates.

Every such rule is translation- and rotation-invariant, or depends on norms and angles only, so the dot products of the
updates determine its result up to the updates themselves. Pre-aggregators are matrices: n updates become the m rows
``M @ X``, whose Gram matrix is ``M G M^T``. So a composition costs nothing but work on n x n numbers in float64.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The coordinator's own vector, in the plane.

    Attributes:
        dots: [m] Its dot products with the rows.
        square: Its squared norm.
    """

    dots: Floats
    square: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """m rows, made of n updates.

    Attributes:
        gram: [m, m] dot products of the rows; None where the recipe asks for none.
        lengths: [m] Norms of the rows, for recipes that ask for no more; None where ``gram`` tells them.
        bad: How many of the rows may be bad.
        shares: [m] Each row's share of the examples; they add up to 1.
        mixing: [m, n] The rows as combinations of the updates; None while they are the updates.
        home: [n] The row that stands for each update.
        factors: [n] By how much clipping has scaled each update so far.
        reference: The coordinator's own vector, where there is one.
        seed: For rules that shuffle; the same for everybody who repeats the round.
    """

    gram: Floats | None
    lengths: Floats | None = None
    bad: int
    shares: Floats
    mixing: Floats | None = None
    home: Indices
    factors: Floats
    reference: Reference | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.shares)

    @property
    def dots(self) -> Floats:
        """The Gram matrix [m, m]."""
        if self.gram is None:
            raise ValueError("this recipe was planned without a Gram matrix")
        return self.gram

    @functools.cached_property
    def norms(self) -> Floats:
        """L2 norms [m]."""
        if self.gram is None and self.lengths is not None:
            return self.lengths
        found: Floats = np.sqrt(np.maximum(np.diagonal(self.dots), 0.0))
        return found

    @functools.cached_property
    def squared_distances(self) -> Floats:
        """Squared distances [m, m] of the rows; symmetric, with a diagonal of exact zeros."""
        squares = np.diagonal(self.dots)
        found: Floats = np.maximum(squares[:, None] + squares[None, :] - 2 * self.dots, 0.0)
        np.fill_diagonal(found, 0.0)
        return found

    @functools.cached_property
    def centred(self) -> Floats:
        """The Gram matrix [m, m] with the row in the middle as the origin.

        What depends on differences only is better computed here: rows that are large and nearly equal become small,
        and a single huge row doesn't swallow the others' digits, as it would if the mean were the origin.
        """
        origin = int(np.argmin(np.median(np.sqrt(self.squared_distances), axis=1)))
        # Not from the distances: those to a huge row have lost what its dot products still tell.
        to_origin = self.dots[origin]
        found: Floats = self.dots - to_origin[:, None] - to_origin[None, :] + self.dots[origin, origin]
        return found

    def mixed(self, matrix: Floats, *, shares: Floats | None = None, home: Indices | None = None) -> Plane:
        """The plane of the rows ``matrix @ rows``; ``matrix`` is [k, m]."""
        reference = self.reference
        if reference is not None:
            reference = Reference(dots=matrix @ reference.dots, square=reference.square)
        gram = matrix @ self.dots @ matrix.T
        return dataclasses.replace(
            self,
            gram=0.5 * (gram + gram.T),
            mixing=matrix if self.mixing is None else matrix @ self.mixing,
            shares=self.shares if shares is None else shares,
            home=self.home if home is None else home,
            reference=reference,
        )

    def scaled(self, factors: Floats) -> Plane:
        """The plane of the rows, each times its factor [m]."""
        if np.all(factors == 1.0):
            return self
        so_far = self.factors * factors[self.home]
        if self.gram is not None:
            return dataclasses.replace(self.mixed(np.diag(factors)), factors=so_far)
        mixing = np.diag(factors) if self.mixing is None else factors[:, None] * self.mixing
        return dataclasses.replace(self, lengths=self.norms * factors, mixing=mixing, factors=so_far)

    def in_updates(self, weights: Floats) -> Floats:
        """Weights of the rows [m] as weights of the updates [n]."""
        if self.mixing is None:
            return weights
        found: Floats = weights @ self.mixing
        return found
