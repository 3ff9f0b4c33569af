"""Epsilon against published values, against closed forms, and against independent accountants."""

from __future__ import annotations

import math
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import COARSE, FINE, Composed, GaussianEvent, dp_event, epsilon, merged
from privacy.accounting.accountant import DISTINCT, gaussian_epsilon
from privacy.mechanisms.errors import PrivacyError


def gaussian(sigma: float, rate: float = 1.0, count: int = 1) -> GaussianEvent:
    return GaussianEvent(noise_multiplier=float(sigma), sampling_rate=float(rate), count=count)


GEOMETRIC = [gaussian(2.0 * 0.4 ** (step / 9), 0.02, 100) for step in range(10)]
HUNDRED = [gaussian(1.5 - 0.6 * step / 99, 0.01, 3) for step in range(100)]

# (events, delta, epsilon by PLD at 1e-4, by Renyi differential privacy)
TABLE = {
    "A": ([gaussian(1.1, 256 / 60_000, 14_040)], 1e-5, 2.3796, 2.5944),
    "B": ([gaussian(4, 0.01, 10_000)], 1e-5, 0.9470, 1.0355),
    "C": ([gaussian(1, 0.01, 1_000)], 1e-5, 1.8282, 2.1014),
    "D": ([gaussian(2.15, 4_096 / 60_000, 586)], 1e-5, 3.5638, 3.8810),
    "E": ([gaussian(0.8, 0.001, 20_000)], 1e-6, 1.2862, 1.8972),
    "F": ([gaussian(30, 1.0, 100)], 1e-5, 1.2711, 1.3863),
    "G": ([gaussian(3, 0.25, 100)], 1e-5, 3.8169, 4.1616),
    "H": ([gaussian(6, 0.05, 2_000)], 1e-6, 1.6594, 1.7868),
    "I": (GEOMETRIC, 1e-5, 3.6345, 4.2451),
    "J": ([gaussian(1.5, 0.01, 500), gaussian(1.0, 0.01, 500)], 1e-5, 1.4719, 1.7725),
    "K": ([gaussian(1.2, rate, 250) for rate in (0.01, 0.02, 0.03, 0.04)], 1e-5, 4.0144, 4.4167),
    # The first figure is of a lattice of 1e-3; another one for a finer lattice isn't known.
    "L": (HUNDRED, 1e-5, 0.8935, 1.4785),
}
SLOW = {"I", "K"}


def rows(names: str = "ABCDEFGHIJK") -> list[object]:
    return [pytest.param(row, marks=[pytest.mark.slow] if row in SLOW else []) for row in names]


# ---- the oracle table ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", TABLE)
def test_the_oracle_table(row: str) -> None:
    events, delta, pld, rdp = TABLE[row]
    fine = epsilon(events, delta)
    assert fine == pytest.approx(pld, abs=1.01e-4 if row != "L" else 4e-4)
    assert epsilon(events, delta, "rdp") == pytest.approx(rdp, abs=1e-4)
    assert fine <= epsilon(events, delta, "rdp")


@pytest.mark.parametrize("row", TABLE)
def test_the_coarse_figure_is_within_a_third_of_a_per_cent(row: str) -> None:
    events, delta, _, _ = TABLE[row]
    fine = epsilon(events, delta)
    assert fine * (1 - 1e-9) <= epsilon(events, delta, interval=COARSE) <= 1.003 * fine


@pytest.mark.parametrize("row", rows())
def test_the_reference_is_the_same_figure_by_other_hands(row: str) -> None:
    """dp-accounting composes the same laws with other code; ours only adds the rounding that it lets pass."""
    events, delta, _, _ = TABLE[row]
    reference = epsilon(events, delta, "reference")
    assert epsilon(events, delta) == pytest.approx(reference, rel=2e-6)
    if row != "F":  # without sampling ours is exact
        assert epsilon(events, delta) >= reference * (1 - 1e-9)


@pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha", "ignore:divide by zero encountered in log")
@pytest.mark.parametrize("row", TABLE)
def test_a_second_accountant_agrees(row: str) -> None:
    """Opacus's PRV accountant (Gopi et al. 2021) is another algorithm in other hands; its figure is an upper bound."""
    from opacus.accountants import PRVAccountant

    events, delta, _, _ = TABLE[row]
    if row == "L":
        events = events[::10]
    second = PRVAccountant()
    second.history = [(event.noise_multiplier, event.sampling_rate, event.count) for event in events]
    theirs = second.get_epsilon(delta=delta, eps_error=0.01)
    assert abs(theirs - epsilon(events, delta)) <= 0.01 + 0.003


@pytest.mark.parametrize("row", ["A", "C", "D", "E", "G", "J", "K"])
def test_renyi_is_opacus_renyi(row: str) -> None:
    from opacus.accountants import RDPAccountant

    events, delta, _, _ = TABLE[row]
    second = RDPAccountant()
    second.history = [(event.noise_multiplier, event.sampling_rate, event.count) for event in events]
    assert epsilon(events, delta, "rdp") == pytest.approx(second.get_epsilon(delta=delta), rel=1e-8)


# ---- published values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "published"),
    [
        (0.8, 0.001, 20_000, 1.2960),
        (1.5, 0.05, 1_000, 6.20997),
        (3.0, 0.05, 100, 0.767934),
        (2.0, 0.2, 100, 5.67206),
    ],
)
def test_the_grid_of_the_prv_paper(sigma: float, rate: float, steps: int, published: float) -> None:
    """Published are upper bounds with an error of 0.01 (tests of Opacus, after Gopi et al. 2021), delta 1e-6."""
    assert published - 0.0115 <= epsilon([gaussian(sigma, rate, steps)], 1e-6) <= published


def test_opacus_published_values() -> None:
    events = [gaussian(1.5, 0.04, 2_250)]
    assert epsilon(events, 1e-5, "rdp") == pytest.approx(7.32911117, abs=1e-7)
    # Their normal approximation says 6.7774, and is no bound.
    assert 6.70 < epsilon(events, 1e-5) < 6.7774


@pytest.mark.parametrize(
    ("rate", "sigma", "epochs", "published"),
    [(256 / 60_000, 1.1, 60, 3.0083), (256 / 60_000, 1.3, 15, 1.1921), (256 / 60_000, 0.7, 45, 7.1003)],
)
def test_published_values_with_the_conversion_of_their_time(
    rate: float, sigma: float, epochs: int, published: float
) -> None:
    """The tutorial of TensorFlow Privacy: a looser conversion, so ours must be below, and not by much."""
    steps = epochs * 60_000 // 256
    assert 0.8 * published < epsilon([gaussian(sigma, rate, steps)], 1e-5, "rdp") < published


@pytest.mark.parametrize(
    ("steps", "rate", "published"), [(2_000, 0.01, 2.5850), (200, 0.1, 9.9713), (20, 1.0, 28.3735)]
)
def test_banded_matrices_amplified(steps: int, rate: float, published: float) -> None:
    """Bands of 1, 10 and 100 over 2000 steps are so many steps at so many times the rate (Choquette-Choo 2023)."""
    assert epsilon([gaussian(1, rate, steps)], 1e-5) == pytest.approx(published, rel=6e-4)


@pytest.mark.parametrize(
    ("sigma", "delta", "exact"),
    [
        (3.730632, 1e-5, 1.0),  # Balle & Wang 2018
        (1.0, 1e-5, 4.377178),
        (1 / math.sqrt(2 * 0.15068403), 1e-10, 3.4240074),  # two models of Gboard, by their zCDP
        (1 / math.sqrt(2 * 0.01434257), 1e-10, 0.9935501),
    ],
)
def test_the_gaussian_mechanism_is_exact(sigma: float, delta: float, exact: float) -> None:
    assert epsilon([gaussian(sigma)], delta) == pytest.approx(exact, rel=1e-6)


def test_a_tree_of_gboard() -> None:
    """Its squared sensitivity is 79 at noise 7: published is 8.90 by zero-concentrated privacy."""
    assert epsilon([gaussian(7 / math.sqrt(79))], 1e-10, "rdp") == pytest.approx(8.90, abs=5e-3)


# ---- exact cases -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0, 10.0, 1e4])
@pytest.mark.parametrize("delta", [1e-2, 1e-6, 1e-12])
def test_the_analytic_gaussian_against_dp_accounting(sigma: float, delta: float) -> None:
    import dp_accounting

    exact = dp_accounting.get_epsilon_gaussian(sigma, delta)
    assert gaussian_epsilon(sigma, delta) == pytest.approx(exact, rel=1e-8, abs=1e-10)


def test_releases_to_everybody_are_one_gaussian_release() -> None:
    many = epsilon([gaussian(10, 1.0, 16), gaussian(5, 1.0, 4)], 1e-6)
    assert many == pytest.approx(epsilon([gaussian(1 / math.sqrt(16 / 100 + 4 / 25))], 1e-6), rel=1e-9)


def test_releases_to_everybody_beside_samples() -> None:
    events = [gaussian(10, 1.0, 16), gaussian(1.5, 0.02, 300)]
    assert epsilon(events, 1e-6) == pytest.approx(epsilon(events, 1e-6, "reference"), rel=1e-5)
    assert epsilon(events, 1e-6) > max(epsilon([event], 1e-6) for event in events)


def test_a_release_that_says_almost_nothing_costs_almost_nothing() -> None:
    """Where losses are far below the lattice, a fixed lattice would say thousands of times too much."""
    faint = [gaussian(10_000, 0.01, 1_000)]
    assert epsilon(faint, 1e-5) < 1e-5
    small = [gaussian(100, 0.01, 1_000)]
    assert epsilon(small, 1e-5) < 0.93 * epsilon(small, 1e-5, "reference")
    assert 0.8 * epsilon(small, 1e-5, "rdp") < epsilon(small, 1e-5) < epsilon(small, 1e-5, "rdp")


@pytest.mark.parametrize(
    ("sigma", "rate", "count"),
    [(1e-6, 0.5, 1 << 40), (0.01, 0.01, 10), (0.03, 1.0, 10), (0.05, 0.001, 3), (1e6, 1e-9, 1 << 40), (1.0, 1e-7, 1)],
)
def test_whatever_a_ledger_holds_has_a_cost(sigma: float, rate: float, count: int) -> None:
    """A hostile plan must not stall the accountant, or make it fail."""
    begin = time.process_time()
    cost = epsilon([gaussian(sigma, rate, count)], 1e-5)
    assert 0.0 <= cost <= epsilon([gaussian(sigma, rate, count)], 1e-5, "rdp") * (1 + 1e-12)
    assert math.isfinite(cost)
    assert time.process_time() - begin < 5.0


def test_a_delta_below_rounding_falls_back_to_the_bound() -> None:
    events = [gaussian(2, 0.01, 10_000)]
    assert epsilon(events, 1e-14) == epsilon(events, 1e-14, "rdp")


def test_small_deltas_cost_little_for_rounding() -> None:
    events = [gaussian(1, 0.01, 1_000)]
    reference = epsilon(events, 1e-10, "reference")
    assert reference <= epsilon(events, 1e-10) <= 1.001 * reference


def test_nothing_costs_nothing() -> None:
    for accountant in ("pld", "rdp", "reference"):
        assert epsilon([], 1e-5, accountant) == 0.0  # type: ignore[arg-type]
    assert Composed().epsilon(1e-5) == 0.0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_without_meaning(delta: float) -> None:
    with pytest.raises(PrivacyError) as caught:
        epsilon([gaussian(1)], delta)
    assert caught.value.code == "delta-invalid"


# ---- many different events -------------------------------------------------------------------------------------------


def test_many_different_amounts_of_noise_cost_less_than_a_per_cent_more() -> None:
    """They are rounded down to a grid, which never says less."""
    events = [gaussian(2.0 - 1.0 * step / (2 * DISTINCT), 0.01, 3) for step in range(2 * DISTINCT)]
    many = epsilon(events, 1e-5)
    from privacy.accounting import accountant

    exact = accountant._composed_epsilon([(e.noise_multiplier, e.sampling_rate, e.count) for e in events], 1e-5, COARSE)
    assert exact <= many <= 1.01 * exact


def test_many_different_rates_are_bounded_too() -> None:
    chance = random.Random(4)
    events = [gaussian(chance.uniform(1, 8), chance.uniform(1e-3, 0.2)) for _ in range(400)]
    assert epsilon(events, 1e-5) < epsilon(events, 1e-5, "rdp")


def test_ten_thousand_different_events_in_five_seconds_and_one_more_round_in_one() -> None:
    chance = random.Random(1)
    spent = Composed()
    begin = time.process_time()
    for _ in range(10_000):
        spent.add(gaussian(chance.uniform(0.8, 1.6), 0.01))
    before = spent.epsilon(1e-5)
    all_of_them, begin = time.process_time() - begin, time.process_time()
    spent.add(gaussian(0.79, 0.01, 5))
    after = spent.epsilon(1e-5)
    one_round = time.process_time() - begin
    assert before < after
    assert all_of_them < 5.0
    assert one_round < 1.0


def test_ten_thousand_events_are_accounted_together() -> None:
    events = [gaussian(1.0 + (step % 7) / 10, 0.001) for step in range(10_000)]
    assert len(merged(events)) == 7
    assert epsilon(events, 1e-6, interval=COARSE) < epsilon(events, 1e-6, "rdp")


def test_events_as_they_come() -> None:
    spent = Composed([gaussian(1.2, 0.02, 10)])
    for _ in range(9):
        spent.add(gaussian(1.2, 0.02, 10))
    assert spent.events == [gaussian(1.2, 0.02, 100)]
    assert spent.epsilon(1e-5) == epsilon([gaussian(1.2, 0.02, 100)], 1e-5, interval=COARSE)
    assert spent.with_more([gaussian(1.2, 0.02)], 1e-5) > spent.epsilon(1e-5)
    assert spent.events == [gaussian(1.2, 0.02, 100)]


# ---- properties ------------------------------------------------------------------------------------------------------

SIGMAS = st.sampled_from([0.8, 1.0, 1.7, 4.0])
RATES = st.sampled_from([0.01, 0.1, 1.0])
EVENTS = st.builds(gaussian, SIGMAS, RATES, st.integers(1, 50))
# The lattice follows the losses, so that two lists may be looked at through different lattices, each on the safe side.
LATTICES = 2e-3


@settings(max_examples=25, deadline=None)
@given(events=st.lists(EVENTS, min_size=1, max_size=4), more=EVENTS, order=st.randoms())
def test_composition(events: list[GaussianEvent], more: GaussianEvent, order: random.Random) -> None:
    shuffled = list(events)
    order.shuffle(shuffled)
    cost = epsilon(events, 1e-5, interval=COARSE)
    assert epsilon(shuffled, 1e-5, interval=COARSE) == cost
    assert epsilon(merged(events), 1e-5, interval=COARSE) == cost
    assert epsilon([*events, more], 1e-5, interval=COARSE) >= cost * (1 - LATTICES)
    assert epsilon(events, 1e-6, interval=COARSE) >= cost
    assert cost <= epsilon(events, 1e-5, "rdp") * (1 + LATTICES)
    assert epsilon(events, 1e-5, interval=FINE) <= cost * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(
    sigma=st.floats(0.6, 6.0),
    rate=st.floats(1e-3, 0.5),
    count=st.integers(1, 400),
    more=st.floats(1.02, 2.0),
    accountant=st.sampled_from(["pld", "rdp"]),
)
def test_less_noise_a_higher_rate_and_more_steps_cost_more(
    sigma: float, rate: float, count: int, more: float, accountant: str
) -> None:
    def cost(sigma: float, rate: float, count: int) -> float:
        return epsilon([gaussian(sigma, rate, count)], 1e-5, accountant, interval=COARSE)  # type: ignore[arg-type]

    base = cost(sigma, rate, count) * (1 - LATTICES)
    assert cost(sigma / more, rate, count) >= base
    assert cost(sigma, min(1.0, rate * more), count) >= base
    assert cost(sigma, rate, math.ceil(count * more)) >= base


def test_other_accountants_can_read_the_events() -> None:
    from dp_accounting.pld import PLDAccountant

    events = TABLE["J"][0]
    assert PLDAccountant().compose(dp_event(events)).get_epsilon(1e-5) == pytest.approx(1.4719, abs=1e-3)


def test_an_import_loads_no_accounting_library(repository: object) -> None:
    """A daemon answers at once; scipy comes with the first epsilon, dp-accounting only with the reference."""
    import subprocess
    import sys

    code = (
        "import privacy.accounting as a, privacy.mechanisms.plan, sys; loaded = set(sys.modules)\n"
        "a.epsilon([a.GaussianEvent(noise_multiplier=2.0, sampling_rate=0.1)], 1e-5)\n"
        "assert not loaded & {'scipy', 'dp_accounting'}, 'at import'\n"
        "assert 'dp_accounting' not in sys.modules, 'at work'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=str(repository), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
