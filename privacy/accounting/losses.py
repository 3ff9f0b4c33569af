"""Privacy loss distributions on a lattice: the law of one release, and of many together.

The privacy loss of a release is the logarithm of how much likelier it is with one unit than without. Its law says all
there is to say about the release's cost, and the losses of independent releases add up, so that laws are convolved
(Meiser & Mohammadi 2018; Koskela et al. 2020). Every law here is pessimistic: the pair of distributions that it belongs
to dominates the mechanism's own ("connect the dots", Doroshenko et al. 2022, arXiv 2207.04380).

This is the method of dp-accounting's PLD accountant, in a form that composes hundreds of different amounts of noise at
once and needs no more than numpy and scipy; the tests hold both against each other.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import threading
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_CELLS: Final = 1 << 20
"""The most lattice points of one release's law; a coarser lattice is taken where the losses spread further."""

MAX_WINDOW: Final = 1 << 22
"""The most lattice points of a composed law."""

# Standard deviations at which the noise is cut off, on the safe side: what lies beyond has probability e^-50.
_CUT: Final = 9.77
# Float64 rounding of a spectrum of n releases that are multiplied, over what is near enough to matter.
_ROUNDING: Final = 4 * 2.0**-53
# Beyond, e^loss isn't a float64.
_LARGEST_LOSS: Final = 700.0


@dataclasses.dataclass(frozen=True, eq=False)
class LossLaw:
    """The law of a privacy loss.

    Attributes:
        interval: Distance of neighbouring lattice points, in units of privacy loss (nats).
        low: The lowest loss, in lattice points.
        chances: [m] Probability of loss ``(low + i) * interval``.
        infinite: Probability of an infinite loss.
    """

    interval: float
    low: int
    chances: Floats
    infinite: float

    @property
    def high(self) -> int:
        """The highest finite loss, in lattice points."""
        return self.low + len(self.chances) - 1

    @functools.cached_property
    def _moments(self) -> dict[float, float]:
        return {}

    def log_moment(self, power: float) -> float:
        """The logarithm of the mean of e^(power * loss), over finite losses."""
        if power not in self._moments:
            losses = np.arange(self.low, self.high + 1) * self.interval
            with np.errstate(divide="ignore"):
                exponents = power * losses + np.log(self.chances)
            top = float(exponents.max())
            self._moments[power] = top + math.log(float(np.exp(exponents - top).sum()))
        return self._moments[power]


def spread(sigma: float, rate: float) -> float:
    """About the standard deviation of one release's privacy loss; small losses decide how fine a lattice must be."""
    plain = 1.0 / sigma
    if rate == 1.0 or plain > 20.0:
        return plain
    return min(plain, rate * math.sqrt(math.expm1(plain * plain)))


def reach(sigma: float, rate: float) -> tuple[float, float]:
    """The losses at which the noise of one release is cut off: the lowest and the highest where a unit is removed."""
    # x is the coordinate along the unit's contribution, which has length 1; the loss grows with it.
    return _loss(-_CUT * sigma, sigma, rate), _loss(1.0 + _CUT * sigma, sigma, rate)


class _Laws:
    """Laws that were computed, the latest used last; as many as fit into a bounded memory."""

    def __init__(self, cells: int) -> None:
        self._room = cells
        self._laws: collections.OrderedDict[tuple[float, float, float], tuple[LossLaw, LossLaw]] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

    def get(self, key: tuple[float, float, float]) -> tuple[LossLaw, LossLaw] | None:
        with self._lock:
            found = self._laws.get(key)
            if found is not None:
                self._laws.move_to_end(key)
            return found

    def put(self, key: tuple[float, float, float], laws: tuple[LossLaw, LossLaw]) -> None:
        with self._lock:
            if key not in self._laws:
                self._laws[key] = laws
                self._room -= _cells(laws)
            while self._room < 0 and len(self._laws) > 1:
                _, oldest = self._laws.popitem(last=False)
                self._room += _cells(oldest)


def _cells(laws: tuple[LossLaw, LossLaw]) -> int:
    return sum(len(law.chances) for law in laws)


_KNOWN: Final = _Laws(1 << 24)


def gaussian_laws(sigma: float, rate: float, interval: float) -> tuple[LossLaw, LossLaw]:
    """The laws of one release with Gaussian noise, over a Poisson sample: for removing a unit, and for adding it.

    Formal Guarantees:
        For every epsilon, the hockey-stick divergence of each law is at least that of the mechanism, and equal to it at
        the lattice points (up to float64 rounding).

    Args:
        sigma: Noise multiplier.
        rate: q in (0, 1].
        interval: Of the lattice.
    """
    key = (sigma, rate, interval)
    known = _KNOWN.get(key)
    if known is None:
        bottom, top = reach(sigma, rate)
        removing = _connected(sigma, rate, interval, bottom, top, added=False)
        known = removing, removing
        if rate < 1.0:
            known = removing, _connected(sigma, rate, interval, -top, -bottom, added=True)
        _KNOWN.put(key, known)
    return known


def window(parts: Sequence[tuple[LossLaw, int]], sigma: float, tail: float) -> tuple[int, int]:
    """Lattice points outside of which a sum of losses hardly ever lies.

    Formal Guarantees:
        The sum is below the first, or above the second, with a probability of at most ``tail`` each (Chernoff's bound).

    Args:
        parts: Laws on one lattice, and how often each counts.
        sigma: About the standard deviation of the sum, to know where to look.
        tail: Above 0.
    """
    interval = parts[0][0].interval
    low = sum(count * law.low for law, count in parts)
    high = sum(count * law.high for law, count in parts)
    need = -math.log(tail)
    # The best power is about this for a normal law, and less, down to 1, for one with a heavy tail. Even powers of 2,
    # so that the moments of a law are computed once for all sums that it is part of.
    best = 2 * round(math.log2(math.sqrt(2.0 * need) / sigma) / 2)
    for exponent in range(min(0, best - 4), best + 3, 2):
        power = 2.0**exponent
        above = math.fsum(count * law.log_moment(power) for law, count in parts)
        below = math.fsum(count * law.log_moment(-power) for law, count in parts)
        high = min(high, math.ceil((above + need) / power / interval))
        low = max(low, math.floor(-(below + need) / power / interval))
    return low, max(high, low)


def composed(parts: Sequence[tuple[LossLaw, int]], low: int, high: int, tail: float) -> LossLaw:
    """The law of independent releases' losses together.

    Formal Guarantees:
        The result dominates the composition, provided that losses above ``high`` have a probability of at most
        ``tail``: that is added to the infinite loss, as is a bound of the rounding; losses below ``low`` come out as
        higher ones.

    Args:
        parts: Laws on one lattice, and how often each counts.
        low: Lowest lattice point of the result.
        high: Its highest.
        tail: As for :func:`window`.
    """
    from scipy import fft

    size = int(fft.next_fast_len(high - low + 1, real=True))
    spectrum = np.ones(size // 2 + 1, np.complex128)
    for law, count in parts:
        spectrum *= _power(np.asarray(fft.rfft(_folded(law.chances, size))), count)
    # The convolution is cyclic: index 0 stands for all lattice points that differ from the sum of the lowest losses by
    # a multiple of the size, and the window says which of them is meant.
    start = sum(count * law.low for law, count in parts)
    chances = np.roll(np.asarray(fft.irfft(spectrum, size)), -((low - start) % size))
    releases = sum(count for _, count in parts)
    infinite = -math.expm1(math.fsum(count * math.log1p(-law.infinite) for law, count in parts))
    return LossLaw(
        interval=parts[0][0].interval,
        low=low,
        chances=np.maximum(chances, 0.0),
        infinite=min(1.0, infinite + tail + _ROUNDING * (releases + 16)),
    )


def epsilon_of(law: LossLaw, delta: float) -> float:
    """The smallest epsilon >= 0 at which the law's hockey-stick divergence is at most ``delta``.

    Returns:
        Epsilon; infinite if more than ``delta`` of the loss is.
    """
    if law.infinite >= delta:
        return math.inf
    first = max(0, 1 - law.low)
    chances = law.chances[first:][::-1]
    losses = np.arange(law.high, law.low + first - 1, -1) * law.interval
    # From the highest loss downwards: the probability of losses so high with the unit, and without it.
    above = np.cumsum(chances) + law.infinite
    below = np.cumsum(chances * np.exp(-losses))
    finite = np.minimum(losses, _LARGEST_LOSS)
    # Cutting the factor makes the divergence of the largest losses larger than it is, which is the safe side.
    over = np.flatnonzero(above - np.exp(finite) * below > delta)
    end = int(over[0]) if len(over) else len(losses)
    # Epsilon lies between the first lattice point where the divergence exceeds delta and the one above it.
    with_unit, without = (float(above[end - 1]), float(below[end - 1])) if end else (law.infinite, 0.0)
    if with_unit <= delta or without == 0.0:
        return float(losses[end]) if end < len(losses) else 0.0
    return max(0.0, math.log((with_unit - delta) / without))


def _loss(x: float, sigma: float, rate: float) -> float:
    """log(1 - q + q e^((2x - 1) / (2 sigma^2))), the loss at x where a unit is removed."""
    exponent = (2.0 * x - 1.0) / (2.0 * sigma * sigma)
    if rate == 1.0:
        return exponent
    return float(np.logaddexp(math.log1p(-rate), math.log(rate) + exponent))


def _connected(sigma: float, rate: float, interval: float, bottom: float, top: float, *, added: bool) -> LossLaw:
    """The law whose hockey-stick divergence is the chord of the mechanism's between lattice points."""
    low, high = math.floor(bottom / interval), math.ceil(top / interval)
    epsilons: Floats = np.arange(low, max(high, low + 1) + 1, dtype=np.float64) * interval
    deltas = _adding(epsilons, sigma, rate) if added else _removing(epsilons, sigma, rate)
    # Rounding may make a tail rise by an ulp.
    deltas = np.minimum.accumulate(np.clip(deltas, 0.0, 1.0))
    steps = np.diff(deltas)
    chances = np.zeros_like(deltas)
    chances[0] = 1.0 - deltas[0] + steps[0] / math.expm1(interval)
    chances[1:-1] = (steps[1:] - steps[:-1] * math.exp(interval)) / math.expm1(interval)
    chances[-1] = steps[-1] / math.expm1(-interval)
    return LossLaw(interval=interval, low=low, chances=np.maximum(chances, 0.0), infinite=float(deltas[-1]))


def _removing(epsilons: Floats, sigma: float, rate: float) -> Floats:
    """Hockey-stick divergence of (1 - q) N(0, s^2) + q N(1, s^2) from N(0, s^2)."""
    from scipy.special import ndtr

    # What the sample with the unit must exceed, relative to the sample without.
    ratio = np.expm1(epsilons) + rate
    everywhere = ratio <= 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = sigma * sigma * np.log(ratio / rate) + 0.5
        deltas = rate * ndtr((1.0 - cut) / sigma) - ratio * ndtr(-cut / sigma)
    return np.where(everywhere, -np.expm1(epsilons), deltas)


def _adding(epsilons: Floats, sigma: float, rate: float) -> Floats:
    """Hockey-stick divergence of N(0, s^2) from (1 - q) N(0, s^2) + q N(1, s^2)."""
    from scipy.special import ndtr

    ratio = np.expm1(-epsilons) + rate
    nowhere = ratio <= 0.0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        cut = sigma * sigma * np.log(ratio / rate) + 0.5
        deltas = np.exp(epsilons) * (ratio * ndtr(cut / sigma) - rate * ndtr((cut - 1.0) / sigma))
    return np.where(nowhere, 0.0, deltas)


def _folded(chances: Floats, size: int) -> Floats:
    """Wrapped around a circle of ``size`` points, as a cyclic convolution would."""
    if len(chances) <= size:
        return np.pad(chances, (0, size - len(chances)))
    folded: Floats = np.pad(chances, (0, -len(chances) % size)).reshape(-1, size).sum(axis=0)
    return folded


def _power(spectrum: NDArray[np.complex128], count: int) -> NDArray[np.complex128]:
    """``spectrum ** count`` by squaring: quicker and more exact than by logarithms."""
    result: NDArray[np.complex128] | None = None
    while True:
        if count & 1:
            result = spectrum.copy() if result is None else result * spectrum
        count >>= 1
        if not count:
            assert result is not None
            return result
        spectrum = spectrum * spectrum
