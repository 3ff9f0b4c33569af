"""From events to epsilon: the privacy loss distribution as reference, Renyi differential privacy as a fast upper bound.

All figures are for adding or removing one unit, and pessimistic in every rounding. Events are composed as if their
parameters had been fixed beforehand; where noise is chosen from what has been released, see
``privacy.accounting.filters``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypeAlias

from privacy.accounting.events import Event, GaussianEvent, dp_event, merged
from privacy.accounting.losses import (
    MAX_CELLS,
    MAX_WINDOW,
    composed,
    epsilon_of,
    gaussian_laws,
    reach,
    spread,
    window,
)
from privacy.accounting.renyi import rdp_epsilon
from privacy.mechanisms.errors import PrivacyError

Accountant: TypeAlias = Literal["pld", "rdp", "reference"]

FINE: Final = 1e-4
"""Discretisation of privacy loss with which figures are reported."""
COARSE: Final = 1e-3
"""Discretisation for decisions while training goes on: quicker, and at most 0.3 % above the finer one."""

DISTINCT: Final = 128
"""More different amounts of noise than this are rounded to a geometric grid: each costs a convolution."""

# Ratios of neighbouring noise multipliers on that grid. The first raises epsilon by less than 1 %; coarser ones are for
# lists that differ in their sampling rates as well.
_GRIDS: Final = (1.004, 1.02, 1.1, 1.3)

# So many different sampling rates are kept as they are.
_RATES: Final = 4
# A lattice of this many standard deviations of one release's loss makes the variance of a composition, and with it
# epsilon, 0.2 % too large at most.
_FINENESS: Final = 0.155
# Noise so small protects nothing, and its losses spread so far that no lattice holds them.
_LOUD: Final = 0.04
# Share of delta that is given away for losses outside of the window.
_TAIL: Final = 1e-6


def epsilon(events: Sequence[Event], delta: float, accountant: Accountant = "pld", *, interval: float = FINE) -> float:
    """The epsilon that these events have cost together, at ``delta``.

    Formal Guarantees:
        The composition of the events is (epsilon, delta)-differentially private for adding or removing one unit,
        provided that their parameters didn't depend on the data. All accountants only ever round up. The result is the
        same for every order of the events, and for any way of counting equal ones together.

    Example:
        >>> events = [GaussianEvent(noise_multiplier=4.0, sampling_rate=0.01, count=10_000)]
        >>> round(epsilon(events, 1e-5), 3), round(epsilon(events, 1e-5, "rdp"), 3)
        (0.947, 1.035)

    Args:
        events: In any order; none cost nothing.
        delta: In (0, 1).
        accountant: "pld"; "rdp" for a quick upper bound, 8 to 65 % higher; "reference" for dp-accounting's PLD
            accountant, the same figure by other hands, some seconds slower.
        interval: Discretisation of the privacy loss, for "pld" and "reference". "pld" takes a finer one where the
            losses are small, and a coarser one where they are huge.

    Raises:
        PrivacyError: "delta-invalid".
    """
    if not 0 < delta < 1:
        raise PrivacyError("delta-invalid", f"delta is {delta}; it must lie between 0 and 1")
    if not events:
        return 0.0
    if accountant == "rdp":
        return rdp_epsilon(merged(events), delta)
    if accountant == "reference":
        from dp_accounting.pld import PLDAccountant

        reference = PLDAccountant(value_discretization_interval=interval).compose(dp_event(events))
        return max(0.0, float(reference.get_epsilon(delta)))
    return _pld_epsilon(tuple(merged(events)), delta, interval)


class Composed:
    """Events as they come, and what they cost so far; what was computed once is kept.

    >>> spent = Composed()
    >>> spent.add(GaussianEvent(noise_multiplier=30.0, count=100))
    >>> round(spent.epsilon(1e-5), 2)
    1.27
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._counts: dict[tuple[float, float], int] = {}
        self.add(*events)

    @property
    def events(self) -> list[Event]:
        """All so far, equal ones counted together."""
        return merged(
            [
                GaussianEvent(noise_multiplier=sigma, sampling_rate=rate, count=count)
                for (sigma, rate), count in self._counts.items()
            ]
        )

    def add(self, *events: Event) -> None:
        """Further releases."""
        for event in events:
            key = (event.noise_multiplier, event.sampling_rate)
            self._counts[key] = self._counts.get(key, 0) + event.count

    def epsilon(self, delta: float, *, interval: float = COARSE) -> float:
        """What all of them cost: the same figure as :func:`epsilon` gives for all at once."""
        return epsilon(self.events, delta, interval=interval)

    def with_more(self, events: Sequence[Event], delta: float, *, interval: float = COARSE) -> float:
        """What they would cost with ``events`` added."""
        return epsilon([*self.events, *events], delta, interval=interval)


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """Of one Gaussian release to everybody, exactly (Balle & Wang 2018, Theorem 8).

    >>> round(gaussian_epsilon(1.0, 1e-5), 4)
    4.3772
    """
    from scipy.special import log_ndtr

    mu = 1.0 / sigma

    def divergence(candidate: float) -> float:
        above = float(log_ndtr(mu / 2 - candidate / mu))
        below = candidate + float(log_ndtr(-mu / 2 - candidate / mu))
        return above + math.log(-math.expm1(min(below - above, -1e-300)))

    if divergence(0.0) <= math.log(delta):
        return 0.0
    # Phi(mu / 2 - epsilon / mu) is an upper bound of the divergence, and at most delta here.
    low, high = 0.0, mu * (mu / 2 + math.sqrt(-2.0 * math.log(delta)))
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if divergence(middle) <= math.log(delta):
            high = middle
        else:
            low = middle
    return high


@functools.lru_cache(maxsize=256)
def _pld_epsilon(events: tuple[Event, ...], delta: float, interval: float) -> float:
    if sum(event.sampling_rate < 1.0 for event in events) > DISTINCT:
        events, interval = tuple(_few(events)), max(interval, COARSE)
    # Gaussian releases to everybody are one Gaussian release: the inverse variances add up.
    precision = math.fsum(event.count / event.noise_multiplier**2 for event in events if event.sampling_rate == 1.0)
    sampled = [event for event in events if event.sampling_rate < 1.0]
    if not sampled:
        return gaussian_epsilon(1.0 / math.sqrt(precision), delta)
    releases = [(event.noise_multiplier, event.sampling_rate, event.count) for event in sampled]
    if precision:
        releases.append((1.0 / math.sqrt(precision), 1.0, 1))
    if min(sigma for sigma, _, _ in releases) < _LOUD:
        return rdp_epsilon(events, delta)
    found = _composed_epsilon(releases, delta, _lattice(releases, interval))
    # Only where delta is about as small as float64 rounding.
    return found if math.isfinite(found) else rdp_epsilon(events, delta)


def _composed_epsilon(releases: list[tuple[float, float, int]], delta: float, interval: float) -> float:
    """The larger one of removing a unit and adding it."""
    whole = math.sqrt(math.fsum(count * spread(sigma, rate) ** 2 for sigma, rate, count in releases))
    tail = _TAIL * delta
    worst = 0.0
    for direction in (0, 1):
        parts = [(gaussian_laws(sigma, rate, interval)[direction], count) for sigma, rate, count in releases]
        low, high = window(parts, whole, tail)
        if high - low > MAX_WINDOW:
            return _composed_epsilon(releases, delta, 4 * interval)
        worst = max(worst, epsilon_of(composed(parts, low, high, tail), delta))
    return worst


def _lattice(releases: list[tuple[float, float, int]], interval: float) -> float:
    """The lattice for these releases: finer than asked for small losses, coarser for losses that spread far."""
    count = sum(count for _, _, count in releases)
    usual = math.sqrt(math.fsum(count * spread(sigma, rate) ** 2 for sigma, rate, count in releases) / count)
    widest = max(top - bottom for bottom, top in (reach(sigma, rate) for sigma, rate, _ in releases))
    # Halving and doubling, so that a few lattices serve all events, and laws that were computed are found again.
    while interval > _FINENESS * usual and widest < interval * MAX_CELLS / 2:
        interval /= 2
    while widest > interval * MAX_CELLS:
        interval *= 2
    return interval


def _few(events: Sequence[Event]) -> list[Event]:
    """Few different releases: noise is rounded down and rates are rounded up, either of which can only raise epsilon.

    That a higher rate costs more is seen from the convexity of the hockey-stick divergence: a sample of rate q' < q is
    a mixture of one of rate q with one that leaves the unit out.
    """
    rounded: list[Event] = []
    rates = {event.sampling_rate for event in events}
    for grid in _GRIDS:
        rounded = merged(
            [
                GaussianEvent(
                    noise_multiplier=_below(event.noise_multiplier, grid),
                    sampling_rate=event.sampling_rate
                    if len(rates) <= _RATES
                    else min(1.0, 1.0 / _below(1.0 / event.sampling_rate, grid)),
                    count=event.count,
                )
                for event in events
            ]
        )
        if len(rounded) <= 4 * DISTINCT:
            break
    return rounded


def _below(value: float, grid: float) -> float:
    """The next power of ``grid`` below."""
    step = math.log(grid)
    return min(value, math.exp(math.floor(math.log(value) / step) * step))
