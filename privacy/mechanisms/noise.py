"""Normal noise as integers, from a keyed AES-256-CTR stream.

The noise of every release is ``round(N(0, std^2))`` on a lattice, std in units of the lattice. Added to an integer it
equals the rounding of the integer plus N, so a release is post-processing of the Gaussian mechanism in exact real
arithmetic: no floating-point number with traces of what it was made from (Mironov 2012; Jin et al. 2022) ever leaves.

Normal numbers come from the Box-Muller transform in float64: the radius from 64 random bits, so that it reaches
9.4 standard deviations, the angle from another 64. See :func:`gaussian_integers` for what that approximation costs.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.mechanisms.errors import PrivacyError
from privacy.secure_aggregation.keys import Secret
from privacy.secure_aggregation.keystream import keystream

KEY_BYTES: Final = 32

# Pairs of normal numbers made at a time: keystream, radius and angle stay in the second-level cache.
_PAIRS: Final = 8192
_PAIR_BYTES: Final = 16
_LARGEST_STD: Final = 2.0**40
_ZEROS: Final = memoryview(bytes(_PAIRS * _PAIR_BYTES))


@dataclasses.dataclass(frozen=True)
class NoiseKey(Secret):
    """The key of one stream of random numbers. It makes one release and is forgotten; two releases never share one.

    Args:
        secret: 32 bytes.

    Raises:
        PrivacyError: "noise-key" if it hasn't 32 bytes.
    """

    secret: bytes = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        """Refuse a key of another length."""
        if len(self.secret) != KEY_BYTES:
            raise PrivacyError("noise-key", f"a noise key has {KEY_BYTES} bytes, not {len(self.secret)}")

    @classmethod
    def fresh(cls) -> NoiseKey:
        """A new key from the operating system."""
        return cls(os.urandom(KEY_BYTES))

    def uniform(self, count: int, start: int = 0) -> NDArray[np.uint64]:
        """``count`` uniform 64-bit numbers of the stream, from the ``start``-th on."""
        out = np.empty(count, "<u8")
        if count:
            generate = keystream(self.secret, bytes(16), 8 * start, out.nbytes)
            generate(memoryview(bytes(out.nbytes)), out.view(np.uint8).data)
        return out


def gaussian_integers(
    key: NoiseKey, count: int, std: float, *, out: NDArray[np.int64] | None = None, start: int = 0
) -> NDArray[np.int64]:
    """Independent normal numbers, rounded to the nearest integers.

    Formal Guarantees:
        In real arithmetic the result is exactly round(N(0, std^2)), if AES-256 is a pseudorandom permutation. What
        float64 changes: (a) the radius ends at 9.4 standard deviations, 2^-64 of total variation for a pair; (b) the
        roundings of logarithm, root, sine and cosine shift the boundary between k and k + 1 by less than 2^-49 |k|, so
        that probabilities within six standard deviations change by a factor within 1 +- 2^-45 std; (c) radii are
        spaced by 2^-38 of their probability there, by 2^-16 up to eight standard deviations, which a pair exceeds with
        probability 2^-46. If all of it conspired, a vector of d numbers would cost d (2^-44 std + 2^-37) of epsilon and
        d 2^-25 2^-16 + d 2^-46 of delta more than is accounted: 0.008 and 1e-6 for a million numbers of std 2^17.
        Since the errors of different numbers have independent signs, their root is what is to be expected: 1e-5.

    Cost: 8 bytes of keystream, and half a logarithm, root, sine and cosine a number; two tiles of working space.

    Args:
        key: Of this release alone.
        count: How many.
        std: Standard deviation in units of the lattice; positive, at most 2^40.
        out: Shape [count], int64, overwritten; a new array without it.
        start: The first number's place in the key's stream; even.

    Raises:
        PrivacyError: "noise-std" for a standard deviation without meaning.
        ValueError: ``start`` is odd or negative.
    """
    if not 0 < std <= _LARGEST_STD:
        raise PrivacyError("noise-std", f"noise of {std} lattice units can't be drawn; up to 2^40 can")
    if start % 2 or start < 0:
        raise ValueError(f"the {start}th number isn't the first of a pair")
    result = np.empty(count, np.int64) if out is None else out
    if not count:
        return result
    pairs = -(-count // 2)
    generate = keystream(key.secret, bytes(16), start // 2 * _PAIR_BYTES, pairs * _PAIR_BYTES)
    size = min(_PAIRS, pairs)
    random = np.empty((2, size), "<u8")
    radius, angle, normal = np.empty(size), np.empty(size), np.empty(2 * size)
    for first in range(0, pairs, size):
        width = min(size, pairs - first)
        if width < size:
            random, normal = np.empty((2, width), "<u8"), np.empty(2 * width)
            radius, angle = radius[:width], angle[:width]
        generate(_ZEROS[: random.nbytes], random.reshape(-1).view(np.uint8).data)
        _box_muller(random, radius, angle, normal, std)
        end = min(2 * (first + width), count)
        result[2 * first : end] = normal[: end - 2 * first]
    return result


def _box_muller(
    random: NDArray[np.uint64],
    radius: NDArray[np.float64],
    angle: NDArray[np.float64],
    normal: NDArray[np.float64],
    std: float,
) -> None:
    """Write 2 m rounded normal numbers, of m radii and m angles [2, m]."""
    width = radius.shape[0]
    # (x + 1/2) / 2^64 is never 0; where the float is 2^64, the radius is a hair over 0.
    np.add(random[0], 0.5, out=radius, casting="unsafe")
    np.multiply(radius, 2.0**-64, out=radius)
    np.log(radius, out=radius)
    np.multiply(radius, -2.0 * std * std, out=radius)
    np.maximum(radius, 0.0, out=radius)
    np.sqrt(radius, out=radius)
    np.multiply(random[1], 2.0 * math.pi * 2.0**-64, out=angle, casting="unsafe")
    np.cos(angle, out=normal[:width])
    np.sin(angle, out=normal[width:])
    np.multiply(normal[:width], radius, out=normal[:width])
    np.multiply(normal[width:], radius, out=normal[width:])
    np.rint(normal, out=normal)
