"""Clipped sums on a lattice of integers, with noise: what leaves a site, or enters a secure sum.

A clipped sum S is rounded to integers, round(S / grid), before noise is added, and the noise is integer, too. Rounding
to the nearest moves each of two neighbouring sums by at most grid / 2 a coordinate, so the integers' sensitivity in
units of S is C + grid * sqrt(d).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.noise import NoiseKey, gaussian_integers, reach

SMALLEST_SHARE: Final = 8.0
"""Lattice units that a share's standard deviation must have; then shares add up to one Gaussian (see ``share``)."""

_EXACT: Final = 2.0**40

Float: TypeAlias = NDArray[np.float32] | NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Lattice:
    """Multiples of ``grid`` in ``dimension`` coordinates.

    Example:
        >>> lattice = Lattice(0.5, 2)
        >>> lattice.sensitivity(1.0)
        1.7071067811865475
        >>> lattice.values(np.array([3, -1])).tolist()
        [1.5, -0.5]

    Args:
        grid: What one integer is worth, positive.
        dimension: d, at least 1.

    Raises:
        PrivacyError: "lattice-invalid".
    """

    grid: float
    dimension: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.grid < math.inf or self.dimension < 1:
            raise PrivacyError("lattice-invalid", f"a lattice of {self.dimension} coordinates of {self.grid} is none")

    @classmethod
    def for_clip(cls, clip_norm: float, dimension: int, slack: float = 1 / 200) -> Lattice:
        """The lattice whose rounding adds ``slack`` of the clipping norm to the sensitivity."""
        if dimension < 1:
            raise PrivacyError("lattice-invalid", "a lattice has at least one coordinate")
        return cls(slack * clip_norm / math.sqrt(dimension), dimension)

    def sensitivity(self, norm: float) -> float:
        """L2 sensitivity of a sum on the lattice, where one unit moves the sum itself by at most ``norm``."""
        return norm + self.grid * math.sqrt(self.dimension)

    def release(self, total: Float, std: float, key: NoiseKey) -> NDArray[np.int64]:
        """Round a clipped sum and add all of the noise.

        Formal Guarantees:
            x + round(N) = round(x + N) for integers x and N ~ Normal(0, std^2), so the result is post-processing of the
            Gaussian mechanism on a sum of sensitivity :meth:`sensitivity`, whatever is sampled before. Noise of more
            than 1,024 lattice units is made of two parts, which changes that by less than 1e-130 of total variation;
            see :func:`~privacy.mechanisms.noise.gaussian_integers` for the proof, and
            :func:`~privacy.mechanisms.noise.slack` for what finite precision changes.

        Args:
            total: [d] The clipped sum.
            std: Standard deviation of the noise, in the sum's units.
            key: Of this release alone.

        Returns:
            [d] Integers; :meth:`values` gives them the sum's units.

        Raises:
            PrivacyError: "sum-not-finite".
        """
        rounded = self._rounded(total)
        rounded += gaussian_integers(key, self.dimension, std / self.grid)
        return rounded

    def share(self, total: Float, std: float, key: NoiseKey, limit: int) -> NDArray[np.int32]:
        """Round a clipped sum and add a share of the noise, for a secure sum.

        Formal Guarantees:
            Let the sums of n sites carry N_i ~ Normal(0, s^2), s = std / grid, each rounded. The kernel that maps a
            real z to the integer k with probability B_n(k - z), B_n the n-fold convolution of the uniform density on
            [-1/2, 1/2], is a Markov kernel, since B_n is a partition of unity on the integers. It turns x + Normal(0,
            n s^2) into a law from which that of x + sum of round(N_i) differs by less than 40 sqrt(n) s
            exp(-pi^2 s^2) in total variation a coordinate (Poisson's summation formula, applied to the convolution of
            the n lattice laws). With s >= 8 that is below 1e-270. Fine noise (see
            :func:`~privacy.mechanisms.noise.gaussian_integers`) has a uniform number on [-M/2, M/2] in its kernel
            besides, n of them in a sum, and 1e-130 for 1e-270. So the secure sum is post-processing of one Gaussian
            mechanism of standard deviation sqrt(n) std, and any accountant for that applies.

            Coordinates are cut to what the limit leaves for the largest noise that there is, before the noise is added.
            Cutting integers to a range moves two vectors no further apart than they are, so the sensitivity stays.
            Cutting a share after its noise would not be post-processing of the sum, and is never done.

        Args:
            total: [d] The clipped sum.
            std: Standard deviation of this site's share, in the sum's units.
            key: Of this release alone.
            limit: Largest integer that the secure sum has room for, under 2^31.

        Raises:
            PrivacyError: "share-too-fine" if the share is under eight lattice units; "lattice-too-fine" if the limit
                has no room for the noise; "sum-not-finite".
        """
        units = std / self.grid
        if units < SMALLEST_SHARE:
            raise PrivacyError(
                "share-too-fine",
                f"a share of the noise is {units:.3g} lattice units; {SMALLEST_SHARE:g} at least are needed",
                "Use a finer lattice ([privacy] value_bits), or more noise.",
            )
        room = limit - reach(units)
        if room < 1:
            raise PrivacyError(
                "lattice-too-fine",
                f"noise of {units:.3g} lattice units doesn't fit into +-{limit}",
                "Raise [privacy] value_bits.",
            )
        rounded = self._rounded(total)
        np.clip(rounded, -room, room, out=rounded)
        rounded += gaussian_integers(key, self.dimension, units)
        return rounded.astype("<i4")

    def values(self, integers: NDArray[np.int64] | NDArray[np.int32]) -> NDArray[np.float64]:
        """Integers in the sum's units, [d]."""
        return np.multiply(integers, self.grid, dtype=np.float64)

    def _rounded(self, total: Float) -> NDArray[np.int64]:
        if total.shape != (self.dimension,):
            raise PrivacyError("lattice-invalid", f"a sum of shape {total.shape} isn't on {self.dimension} coordinates")
        units = np.divide(total, self.grid, dtype=np.float64)
        np.rint(units, out=units)
        # NaN fails this comparison, too. Beyond 2^40 the division isn't exact enough for the sensitivity to be what is
        # stated (one part in a thousand of a rounding), and a sum of clipped parts never gets there.
        if not (units.min() >= -_EXACT and units.max() <= _EXACT):
            raise PrivacyError(
                "sum-not-finite", "a clipped sum isn't finite, or is far too large; no noise was drawn and nothing left"
            )
        return units.astype(np.int64)
