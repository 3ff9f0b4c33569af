"""Laws of privacy loss: against the mechanism itself, against sums that are known, and on the safe side throughout."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from privacy.accounting.losses import (
    LossLaw,
    _Laws,
    composed,
    epsilon_of,
    gaussian_laws,
    reach,
    spread,
    window,
)


def divergence(law: LossLaw, epsilon: float) -> float:
    """Hockey-stick divergence of a law."""
    losses = np.arange(law.low, law.high + 1) * law.interval
    over = losses > epsilon
    return law.infinite + float(np.sum(-np.expm1(epsilon - losses[over]) * law.chances[over]))


def true_divergence(sigma: float, rate: float, epsilon: float, *, added: bool) -> float:
    """Of the mechanism, by integration over its output."""
    without = stats.norm(0, sigma).pdf

    def mixed(x: float) -> float:
        return float((1 - rate) * without(x) + rate * without(x - 1))

    first, second = (without, mixed) if added else (mixed, without)

    def excess(x: float) -> float:
        return max(0.0, float(first(x)) - math.exp(epsilon) * float(second(x)))

    ends = (-12 * sigma, 1 + 12 * sigma)
    return float(integrate.quad(excess, *ends, limit=400, epsabs=1e-12, points=[0.0, 0.5, 1.0])[0])


@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.01), (2.0, 0.5), (0.7, 1.0)])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.5])
def test_the_law_of_a_release_is_the_mechanisms(sigma: float, rate: float, added: bool, epsilon: float) -> None:
    law = gaussian_laws(sigma, rate, 1e-3)[added]
    truth = true_divergence(sigma, rate, epsilon, added=added)
    assert divergence(law, epsilon) == pytest.approx(truth, rel=1e-5, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    sigma=st.floats(0.5, 5.0),
    rate=st.floats(0.005, 1.0),
    epsilon=st.floats(-1.0, 3.0),
    added=st.booleans(),
    interval=st.sampled_from([1e-1, 1e-2, 1e-3]),
)
def test_a_coarser_lattice_never_says_less(
    sigma: float, rate: float, epsilon: float, added: bool, interval: float
) -> None:
    finest = divergence(gaussian_laws(sigma, rate, 1e-4)[added], epsilon)
    assert divergence(gaussian_laws(sigma, rate, interval)[added], epsilon) >= finest - 1e-10


@settings(max_examples=40, deadline=None)
@given(sigma=st.floats(0.1, 50.0), rate=st.floats(1e-6, 1.0), interval=st.sampled_from([1e-2, 1e-3]))
def test_a_law_is_a_distribution(sigma: float, rate: float, interval: float) -> None:
    for law in gaussian_laws(sigma, rate, interval):
        assert (law.chances >= 0).all()
        assert law.chances.sum() + law.infinite == pytest.approx(1.0, abs=1e-6)
        assert law.infinite < 1e-18
        # Without the unit it is one, too: no loss lies outside of what the other world can do.
        # (Far below, float64's rounding of a chance is blown up.)
        losses = np.arange(law.low, law.high + 1) * law.interval
        near = losses > -8.0
        assert float(np.sum(law.chances[near] * np.exp(-losses[near]))) <= 1.0 + 1e-6


def test_the_losses_of_a_sample_have_an_end_below() -> None:
    """Whatever is released, a unit that is in with probability q can't have made it less likely than 1 - q times."""
    bottom, top = reach(1.0, 0.01)
    assert bottom >= math.log1p(-0.01)
    assert top > 5.0
    assert reach(1.0, 1.0)[0] < -9.0


def test_the_spread_is_about_the_standard_deviation() -> None:
    for sigma, rate in ((1.5, 0.02), (4.0, 0.1), (2.0, 1.0)):
        law = gaussian_laws(sigma, rate, 1e-4)[1]
        losses = np.arange(law.low, law.high + 1) * law.interval
        mean = float(np.sum(law.chances * losses))
        deviation = math.sqrt(float(np.sum(law.chances * (losses - mean) ** 2)))
        assert spread(sigma, rate) == pytest.approx(deviation, rel=0.15)
    assert spread(0.01, 0.5) == 100.0


# ---- composition -----------------------------------------------------------------------------------------------------


def compose(parts: list[tuple[LossLaw, int]], sigma: float, tail: float = 1e-12) -> LossLaw:
    low, high = window(parts, sigma, tail)
    return composed(parts, low, high, tail)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_composition_is_the_convolution(count: int) -> None:
    law = gaussian_laws(1.3, 0.2, 1e-2)[0]
    plain = law.chances
    for _ in range(count - 1):
        plain = np.convolve(plain, law.chances)
    found = compose([(law, count)], math.sqrt(count) * spread(1.3, 0.2))
    start = found.low - count * law.low
    assert start >= 0
    inside = plain[start : start + len(found.chances)]
    np.testing.assert_allclose(found.chances[: len(inside)], inside, atol=1e-12)
    assert abs(found.chances.sum() + found.infinite - 1.0) < 1e-6


def test_a_composition_of_different_laws() -> None:
    one, other = gaussian_laws(1.3, 0.2, 1e-2)[0], gaussian_laws(0.9, 0.05, 1e-2)[0]
    plain = np.convolve(np.convolve(one.chances, one.chances), other.chances)
    found = compose([(one, 2), (other, 1)], 0.5)
    start = found.low - (2 * one.low + other.low)
    inside = plain[start : start + len(found.chances)]
    np.testing.assert_allclose(found.chances[: len(inside)], inside, atol=1e-12)


def test_gaussian_releases_add_up_to_a_gaussian_release() -> None:
    many = compose([(gaussian_laws(10.0, 1.0, 1e-3)[0], 100)], 1.0)
    once = gaussian_laws(1.0, 1.0, 1e-3)[0]
    for epsilon in (0.0, 1.0, 3.0):
        assert divergence(many, epsilon) == pytest.approx(divergence(once, epsilon), rel=3e-4)
        assert divergence(many, epsilon) >= divergence(once, epsilon) * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(
    sigma=st.floats(0.5, 4.0), rate=st.floats(1e-4, 1.0), count=st.integers(1, 3_000), need=st.sampled_from([5, 10, 14])
)
def test_the_window_holds_all_but_what_it_says(sigma: float, rate: float, count: int, need: int) -> None:
    tail = 10.0**-need
    for law in gaussian_laws(sigma, rate, 5e-3):
        deviation = math.sqrt(count) * spread(sigma, rate)
        parts = [(law, count)]
        low, high = window(parts, deviation, tail)
        assert count * law.low <= low <= high <= count * law.high
        wide = composed(parts, *window(parts, deviation, 1e-15), 1e-15)
        losses = np.arange(wide.low, wide.high + 1)
        assert wide.chances[losses > high].sum() <= 1.01 * tail + 1e-11
        assert wide.chances[losses < low].sum() <= 1.01 * tail + 1e-11


def test_infinite_losses_add_up() -> None:
    law = LossLaw(interval=0.1, low=-1, chances=np.array([0.3, 0.3, 0.3]), infinite=0.1)
    found = compose([(law, 3)], 0.3, tail=1e-9)
    assert found.infinite == pytest.approx(1 - 0.9**3, abs=1e-8)
    assert found.infinite > 1 - 0.9**3


def test_a_window_narrower_than_one_law() -> None:
    """What wraps around the circle lands on losses that are too high, or is paid for as infinite."""
    law = LossLaw(interval=0.1, low=-50, chances=np.r_[1e-9, np.zeros(49), 1 - 2e-9, np.zeros(49), 1e-9], infinite=0.0)
    found = composed([(law, 2)], -5, 5, 4e-9)
    assert found.chances.sum() + found.infinite >= 1.0
    assert found.chances[5] == pytest.approx(1.0, abs=1e-8)
    assert found.infinite >= 4e-9


# ---- epsilon ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    chances=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=12).filter(lambda values: sum(values) > 0),
    low=st.integers(-12, 6),
    infinite=st.sampled_from([0.0, 1e-6, 1e-3]),
    delta=st.floats(1e-8, 0.5),
)
def test_epsilon_is_where_the_divergence_falls_to_delta(
    chances: list[float], low: int, infinite: float, delta: float
) -> None:
    scaled = np.array(chances) / sum(chances) * (1 - infinite)
    law = LossLaw(interval=0.25, low=low, chances=scaled, infinite=infinite)
    found = epsilon_of(law, delta)
    if infinite >= delta:
        assert found == math.inf
        return
    assert divergence(law, found) <= delta * (1 + 1e-9) + 1e-15
    if found > 0:
        assert divergence(law, found - 1e-6) > delta * (1 - 1e-9) - 1e-15


def test_epsilon_of_losses_that_no_float_holds_the_exponential_of() -> None:
    law = LossLaw(interval=1.0, low=0, chances=np.r_[0.5, np.zeros(2_000), 0.5], infinite=0.0)
    assert 700.0 <= epsilon_of(law, 1e-3) <= 2_001.0
    assert epsilon_of(law, 0.6) == 0.0


def test_no_loss_is_no_cost() -> None:
    assert epsilon_of(LossLaw(interval=0.1, low=-3, chances=np.array([0.5, 0.5]), infinite=0.0), 1e-9) == 0.0
    assert epsilon_of(LossLaw(interval=0.1, low=0, chances=np.array([1.0]), infinite=0.0), 1e-9) == 0.0


# ---- what is kept ----------------------------------------------------------------------------------------------------


def law_of(size: int) -> tuple[LossLaw, LossLaw]:
    law = LossLaw(interval=1.0, low=0, chances=np.zeros(size), infinite=0.0)
    return law, law


def test_laws_are_kept_as_long_as_there_is_room() -> None:
    known = _Laws(100)
    for number in range(3):
        known.put((float(number), 1.0, 1.0), law_of(20))
    known.get((0.0, 1.0, 1.0))
    assert known.get((1.0, 1.0, 1.0)) is None or known.get((2.0, 1.0, 1.0)) is not None
    known.put((3.0, 1.0, 1.0), law_of(500))
    assert known.get((3.0, 1.0, 1.0)) is not None  # the latest stays, however large
    assert known.get((0.0, 1.0, 1.0)) is None


def test_threads_may_share_what_is_kept() -> None:
    known = _Laws(1_000)

    def work() -> None:
        for number in range(200):
            known.put((float(number % 17), 1.0, 1.0), law_of(30))
            known.get((float(number % 13), 1.0, 1.0))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(known.get((float(number), 1.0, 1.0)) is not None for number in range(17)) <= 16


def test_a_law_that_was_computed_is_found_again() -> None:
    assert gaussian_laws(1.234, 0.25, 1e-2) is gaussian_laws(1.234, 0.25, 1e-2)
