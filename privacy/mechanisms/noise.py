"""Normal noise as integers, from a keyed AES-256-CTR stream.

The noise of every release is normal noise rounded to a lattice, its standard deviation given in units of the lattice.
Added to an integer it equals the rounding of the integer plus normal noise, so a release is post-processing of the
Gaussian mechanism in exact real arithmetic: no floating-point number with traces of what it was made from (Mironov
2012; Jin et al. 2022) ever leaves.

**From bits to numbers.** A pair of independent normal numbers is made of 128 bits by the Box-Muller transform in
float64: 75 bits for the radius, which so reaches 10.2 standard deviations; 53 for the angle, of which two choose its
quarter and 51 a place in it. Sine and cosine of an eighth of a turn at most are polynomials of our own, since numpy's
take five times as long; everything is one vector operation on a tile that stays in the second-level cache. No branch
and no memory address depends on a drawn number, so time tells nothing of it.

**Fine noise.** A float64 has 53 bits. If the standard deviation s is a million lattice units, twenty of them are left
of the binary point, and what rounding errors do to the probability of one integer begins to show (see
:func:`gaussian_integers`). Noise of more than ``FINE`` units is therefore the sum of two, ``M * round(N1) +
round(N2)``, with M about sqrt(s) / 2 and standard deviations of about 2 sqrt(s) for both: each has its own few thousand
integers. One pair then makes one number instead of two.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Final, Literal

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from numpy.typing import NDArray

from privacy.keystream import Generator, keystream
from privacy.mechanisms.errors import PrivacyError
from privacy.secure_aggregation.keys import Secret

KEY_BYTES: Final = 32

FINE: Final = 1024.0
"""Standard deviation in lattice units from which noise is made of a coarse and a fine part."""

OVERLAP: Final = 4.0
"""Standard deviation of the fine part in steps of the coarse one: exp(-2 pi^2 4^2) is 1e-137."""

_REACH: Final = 10.27  # sqrt(-2 log 2^-76) standard deviations is the largest radius, with the roundings of float64

_LARGEST_STD: Final = 2.0**40
_PAIRS: Final = 8192  # a tile
_PAIR_BYTES: Final = 16
_ZEROS: Final = memoryview(bytes(_PAIRS * _PAIR_BYTES))

# sin(2 pi y) / y and cos(2 pi y) as polynomials in y^2, for |y| <= 1/8: interpolated in the Chebyshev nodes, with a
# relative error below 2^-54 and 2^-55. The tests compare them with 80-bit arithmetic.
_SINE: Final = (
    6.283185307179586,
    -41.341702240399634,
    81.60524927594804,
    -76.70585970427454,
    42.058685020160894,
    -15.093804209987114,
    3.7808689593022957,
)
_COSINE: Final = (
    1.0,
    -19.739208802178716,
    64.93939402266795,
    -85.45681720652271,
    60.244641328867296,
    -26.426250908622137,
    7.903091687751697,
    -1.6968494702918826,
)

Purpose = Literal[b"noise", b"uniform"]


@dataclasses.dataclass(frozen=True)
class NoiseKey(Secret):
    """The key of random numbers for one release: it is made, used once and forgotten.

    Formal Guarantees:
        Whoever doesn't know the key can't tell its numbers from independent uniform bits, if AES-256 is a pseudorandom
        permutation and HKDF-Expand a pseudorandom function; those of normal noise and of uniform draws are unrelated.
        A key gives no number twice: it can't be copied or pickled, and asking for numbers that it has given is an
        error, so that two releases never carry the same noise (their difference would be without any).

    Example:
        >>> key = NoiseKey(bytes(32))
        >>> gaussian_integers(key, 3, 10.0).shape
        (3,)
        >>> gaussian_integers(key, 3, 10.0)
        Traceback (most recent call last):
        ...
        privacy.mechanisms.errors.PrivacyError: these random numbers were drawn before, and noise is never used twice

    Args:
        secret: 32 bytes.

    Raises:
        PrivacyError: "noise-key" if it hasn't 32 bytes.
    """

    secret: bytes = dataclasses.field(repr=False)
    _given: dict[Purpose, int] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a key of another length."""
        if len(self.secret) != KEY_BYTES:
            raise PrivacyError("noise-key", f"a noise key has {KEY_BYTES} bytes, not {len(self.secret)}")

    @classmethod
    def fresh(cls) -> NoiseKey:
        """A new key from the operating system."""
        return cls(os.urandom(KEY_BYTES))

    def uniform(self, count: int, start: int = 0) -> NDArray[np.uint64]:
        """``count`` uniform 64-bit numbers of the stream, from the ``start``-th on.

        Raises:
            PrivacyError: "noise-reused" if some of them were given before.
        """
        out = np.empty(count, "<u8")
        if count:
            generate = self._open(b"uniform", start, count, 8)
            generate(memoryview(bytes(out.nbytes)), out.view(np.uint8).data)
        return out

    def _open(self, purpose: Purpose, first: int, count: int, width: int) -> Generator:
        """The keystream of items ``first`` to ``first + count`` of ``width`` bytes, which are then used up."""
        given = self._given.get(purpose, 0)
        if first < given:
            raise PrivacyError(
                "noise-reused",
                "these random numbers were drawn before, and noise is never used twice",
                "Make a new key for each release.",
            )
        self._given[purpose] = first + count
        material = HKDFExpand(hashes.SHA256(), KEY_BYTES + 16, b"fedloom/" + purpose).derive(self.secret)
        return keystream(material[:KEY_BYTES], material[KEY_BYTES:], first * width, count * width)


def gaussian_integers(
    key: NoiseKey, count: int, std: float, *, out: NDArray[np.int64] | None = None, start: int = 0
) -> NDArray[np.int64]:
    """Independent normal numbers, rounded to integers.

    Formal Guarantees:
        **In exact arithmetic**, with s = ``std``: (1) up to ``FINE`` units the result is round(N), N ~ Normal(0, s^2).
        For an integer x, x + round(N) = round(x + N), a function of the Gaussian mechanism's x + N. (2) Above, it is
        M round(N1) + round(N2), with M^2 s1^2 + s2^2 = s^2 and s2 = 4 M. Consider the kernel that adds to a real z a
        uniform number from [-M/2, M/2] and takes each integer k around with the probability that box(k - z) says, box
        being the uniform density on [-1/2, 1/2]; it is a Markov kernel, since integer shifts of a density convolved
        with the box add up to 1. It turns x + Normal(0, s^2) into a law from which that of x + M round(N1) + round(N2)
        differs by less than 1e-130 in total variation a number: by Poisson's summation formula the characteristic
        function of round(N1) is the sum of the Gaussian's, times the box's, over all shifts by 2 pi; at frequency
        2 pi j / M the fine part's is exp(-2 pi^2 4^2 j^2). So the result is post-processing of the Gaussian mechanism
        of standard deviation s there, too; that M widens it by a factor of 1 + 1 / (96 s) isn't counted.

        **What float64 and finite bits change** is bounded by :func:`slack`.

    Cost: 16 bytes of keystream, a logarithm and a root a number (half of it up to ``FINE``) and some forty additions
    and multiplications; half a megabyte of working space.

    Args:
        key: Of this release alone.
        count: How many.
        std: Standard deviation in units of the lattice; positive, at most 2^40.
        out: Shape [count], int64, overwritten; a new array without it.
        start: The first number's place in the key's stream, so that a vector can be made in slices, in order; even.

    Raises:
        PrivacyError: "noise-std" for a standard deviation without meaning, "noise-reused" for numbers that the key has
            given before.
        ValueError: ``start`` is odd or negative.
    """
    if not 0 < std <= _LARGEST_STD:
        raise PrivacyError("noise-std", f"noise of {std} lattice units can't be drawn; up to 2^40 can")
    if start % 2 or start < 0:
        raise ValueError(f"the {start}th number isn't the first of a pair")
    result = np.empty(count, np.int64) if out is None else out
    if not count:
        return result
    fine = std > FINE
    of_pair = 1 if fine else 2
    pairs = -(-count // of_pair)
    generate = key._open(b"noise", start // of_pair, pairs, _PAIR_BYTES)
    work = _Work(min(_PAIRS, pairs))
    for first in range(0, pairs, _PAIRS):
        tile = result[of_pair * first : of_pair * (first + _PAIRS)]
        work.draw(generate, -(-len(tile) // of_pair))
        if fine:
            work.combined(tile, std)
        else:
            work.interleaved(tile, std)
    return result


def slack(count: int, std: float) -> float:
    """How far, in total variation, ``count`` numbers are from what :func:`gaussian_integers` states of exact ones.

    It comes on top of delta, at most 1 + e^epsilon times. Releases of one noise add up as their numbers do: T of d
    numbers are T d numbers. For the noise of :meth:`~privacy.mechanisms.lattice.Lattice.for_clip` at sigma = 1, which
    is 200 sqrt(d) lattice units:

    ==================  =======  =======  =======  =======
    d                   10^3     10^6     10^8     10^9
    std                 6.3e3    2e5      2e6      6.3e6
    one release         3.6e-11  6.4e-9   2.0e-7   1.1e-6
    1,000 releases      1.1e-9   2.0e-7   6.4e-6   3.7e-5
    ==================  =======  =======  =======  =======

    >>> f"{slack(10**6, 2e5):.2g} {slack(1000 * 10**9, 6.3e6):.2g}"
    '6.4e-09 3.7e-05'

    Formal Guarantees:
        Let u = 2^-53. At radius r the computed coordinate is within (13.2 r + 2 / r) u of the exact one: logarithm
        within four units in the last place, 5 r u + 2 u / r of the radius; polynomials 3 r u; two products 2 r u; 51
        bits of angle 3.2 r u. So the borders between lattice points move by that times s1 in one direction of the plane
        and times s2 in the other (parts of the noise, or both numbers of a pair), and the probability of the point
        (k1, k2) changes by a factor within 1 +- 2 (s1 + s2) (13.2 r + 2 / r) u, below which the spacing of radii, 2^-75
        exp(r^2 / 2) / r, stays up to r = 8.8. The mean square of that bounds the relative entropy, which adds up over
        pairs; by Pinsker's inequality n pairs are within sqrt(n) (s1 + s2) 30 u. What lies beyond r = 8.8 adds
        n (s1 + s2) 2^-73, and 2^-76 n beyond the largest radius. That is the worst that errors could do if all of
        them conspired.

    Args:
        count: Numbers drawn.
        std: Standard deviation in units of the lattice.
    """
    if std > FINE:
        _, coarse, fine = parts(std)
        pairs, scale = count, coarse + fine
    else:
        pairs, scale = -(-count // 2), 2 * std
    return math.sqrt(pairs) * scale * 2.0**-48 + pairs * (scale * 2.0**-73 + 2.0**-76)


def reach(std: float) -> int:
    """The largest absolute value that noise of this standard deviation can take, a hair more.

    >>> reach(8.0)
    83
    """
    return math.ceil(_REACH * std) + (parts(std)[0] if std > FINE else 0)


def parts(std: float) -> tuple[int, float, float]:
    """How fine noise is divided: the coarse part's step M, its standard deviation in steps, and the fine part's.

    >>> step, coarse, fine = parts(10_000.0)
    >>> step, fine, round(math.hypot(step * coarse, fine), 6)
    (50, 200.0, 10000.0)
    """
    step = max(1, round(math.sqrt(std) / 2))
    fine = OVERLAP * step
    return step, math.sqrt(std * std - fine * fine) / step, fine


class _Work:
    """The working space of a tile: up to ``size`` pairs of normal numbers, (radius * cosine, radius * sine)."""

    def __init__(self, size: int) -> None:
        self._random = np.empty((size, 2), "<u8")
        self._words = np.empty(size, np.uint64)
        self._radius, self._square, self._angle = np.empty(size), np.empty(size), np.empty(size)
        self._one, self._other = np.empty(size), np.empty(size)
        self._size = size

    def draw(self, generate: Generator, size: int) -> None:
        """Make the next pairs."""
        self._size = size
        random = self._random[:size]
        generate(_ZEROS[: random.nbytes], random.reshape(-1).view(np.uint8).data)
        self._make_radius(random[:, 0], random[:, 1])
        self._make_angle(random[:, 1])
        self._turn(random[:, 1])

    def interleaved(self, out: NDArray[np.int64], std: float) -> None:
        """Both numbers of each pair, rounded."""
        radius, one, other = self._radius[: self._size], self._one[: self._size], self._other[: self._size]
        np.multiply(radius, std, out=radius)
        for place, values in ((0, one), (1, other)):
            np.multiply(values, radius, out=values)
            np.rint(values, out=values)
            # An odd count leaves the last pair's second number out.
            np.copyto(out[place::2], values[: len(out[place::2])], casting="unsafe")

    def combined(self, out: NDArray[np.int64], std: float) -> None:
        """One number of each pair: the first coarse, the second fine."""
        radius, one, other = self._radius[: self._size], self._one[: self._size], self._other[: self._size]
        step, coarse, fine = parts(std)
        for values, scale in ((one, coarse), (other, fine)):
            np.multiply(values, radius, out=values)
            np.multiply(values, scale, out=values)
            np.rint(values, out=values)
        np.multiply(one, float(step), out=one)
        np.add(one, other, out=one)
        np.copyto(out, one, casting="unsafe")

    def _make_radius(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> None:
        """sqrt(-2 log u), with u = (high * 2^11 + low's last 11 bits + 1/2) / 2^75: never 0, and 1 at most."""
        radius, words, part = self._radius[: self._size], self._words[: self._size], self._square[: self._size]
        np.bitwise_and(low, 0x7FF, out=words)
        np.copyto(part, words.view(np.int64), casting="unsafe")
        np.add(part, 0.5, out=part)
        np.multiply(part, 2.0**-11, out=part)
        np.add(high, part, out=radius, casting="unsafe")
        np.multiply(radius, 2.0**-64, out=radius)
        np.log(radius, out=radius)
        np.multiply(radius, -2.0, out=radius)
        np.sqrt(radius, out=radius)

    def _make_angle(self, low: NDArray[np.uint64]) -> None:
        """Cosine and sine of y turns, y evenly within an eighth of a turn on either side, from bits 11 to 61."""
        words, angle, square = self._words[: self._size], self._angle[: self._size], self._square[: self._size]
        np.left_shift(low, 2, out=words)
        signed = words.view(np.int64)
        np.right_shift(signed, 13, out=signed)
        np.copyto(angle, signed, casting="unsafe")
        np.add(angle, 0.5, out=angle)
        np.multiply(angle, 2.0**-53, out=angle)
        np.multiply(angle, angle, out=square)
        _polynomial(_COSINE, square, self._one[: self._size])
        sine = self._other[: self._size]
        _polynomial(_SINE, square, sine)
        np.multiply(sine, angle, out=sine)

    def _turn(self, low: NDArray[np.uint64]) -> None:
        """To the four quarters: the last bit but one swaps cosine and sine, the last negates both by the radius."""
        words, mask = self._words[: self._size], self._angle[: self._size].view(np.uint64)
        radius = self._radius[: self._size].view(np.uint64)
        np.bitwise_and(low, 1 << 63, out=words)
        np.bitwise_xor(radius, words, out=radius)
        np.left_shift(low, 1, out=mask)
        np.right_shift(mask.view(np.int64), 63, out=mask.view(np.int64))
        one, other = self._one[: self._size].view(np.uint64), self._other[: self._size].view(np.uint64)
        np.bitwise_xor(one, other, out=words)
        np.bitwise_and(words, mask, out=words)
        np.bitwise_xor(one, words, out=one)
        np.bitwise_xor(other, words, out=other)


def _polynomial(coefficients: tuple[float, ...], x: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Horner's rule."""
    np.multiply(x, coefficients[-1], out=out)
    for coefficient in coefficients[-2:0:-1]:
        np.add(out, coefficient, out=out)
        np.multiply(out, x, out=out)
    np.add(out, coefficients[0], out=out)
