"""Epsilon against published values, against closed forms, and against a second, independent accountant."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import COARSE, Composed, GaussianEvent, dp_event, epsilon, merged
from privacy.mechanisms.errors import PrivacyError


def gaussian(sigma: float, rate: float = 1.0, count: int = 1) -> GaussianEvent:
    return GaussianEvent(noise_multiplier=float(sigma), sampling_rate=float(rate), count=count)


GEOMETRIC = [gaussian(2.0 * 0.4 ** (step / 9), 0.02, 100) for step in range(10)]

# (events, delta, epsilon by PLD at 1e-4, by Renyi differential privacy)
TABLE = {
    "A": ([gaussian(1.1, 256 / 60_000, 14_040)], 1e-5, 2.3796, 2.5944),
    "B": ([gaussian(4, 0.01, 10_000)], 1e-5, 0.9470, 1.0355),
    "C": ([gaussian(1, 0.01, 1_000)], 1e-5, 1.8282, 2.1014),
    "D": ([gaussian(2.15, 4_096 / 60_000, 586)], 1e-5, 3.5638, 3.8810),
    "F": ([gaussian(30, 1.0, 100)], 1e-5, 1.2711, 1.3863),
    "G": ([gaussian(3, 0.25, 100)], 1e-5, 3.8169, 4.1616),
    "H": ([gaussian(6, 0.05, 2_000)], 1e-6, 1.6594, 1.7868),
    "J": ([gaussian(1.5, 0.01, 500), gaussian(1.0, 0.01, 500)], 1e-5, 1.4719, 1.7725),
    "K": ([gaussian(1.2, rate, 250) for rate in (0.01, 0.02, 0.03, 0.04)], 1e-5, 4.0144, 4.4167),
    "I": (GEOMETRIC, 1e-5, 3.6345, 4.2451),
}


@pytest.mark.parametrize("row", TABLE)
def test_the_oracle_table(row: str) -> None:
    events, delta, pld, rdp = TABLE[row]
    assert epsilon(events, delta) == pytest.approx(pld, abs=1.01e-4)
    assert epsilon(events, delta, "rdp") == pytest.approx(rdp, abs=2e-3)


@pytest.mark.parametrize("row", ["C", "D", "G", "J", "K"])
def test_a_second_accountant_agrees(row: str) -> None:
    """Opacus's PRV accountant (Gopi et al. 2021) is another algorithm in other hands."""
    from opacus.accountants import PRVAccountant

    events, delta, _, _ = TABLE[row]
    second = PRVAccountant()
    second.history = [(event.noise_multiplier, event.sampling_rate, event.count) for event in events]
    theirs = second.get_epsilon(delta=delta, eps_error=0.01)
    assert abs(theirs - epsilon(events, delta)) <= 0.01 + 0.003


@pytest.mark.parametrize(
    ("rate", "sigma", "steps", "delta", "published"),
    [
        (256 / 60_000, 1.1, 60 * 60_000 // 256, 1e-5, 3.0083),  # the MNIST tutorial of TensorFlow Privacy
        (256 / 60_000, 1.3, 15 * 60_000 // 256, 1e-5, 1.1921),
        (256 / 60_000, 0.7, 45 * 60_000 // 256, 1e-5, 7.1003),
    ],
)
def test_published_values_with_the_conversion_of_their_time(
    rate: float, sigma: float, steps: int, delta: float, published: float
) -> None:
    """They are Renyi values with a looser conversion, so ours must be below, and not by much."""
    ours = epsilon([gaussian(sigma, rate, steps)], delta, "rdp")
    assert 0.8 * published < ours < published


@pytest.mark.parametrize(
    ("sigma", "delta", "exact"),
    [(3.730632, 1e-5, 1.0), (1.0, 1e-5, 4.377178), (1 / math.sqrt(2 * 0.15068403), 1e-10, 3.4240074)],
)
def test_the_gaussian_mechanism_is_exact(sigma: float, delta: float, exact: float) -> None:
    assert epsilon([gaussian(sigma)], delta) == pytest.approx(exact, rel=1e-5)


def test_releases_to_everybody_are_one_gaussian_release() -> None:
    many = epsilon([gaussian(10, 1.0, 16), gaussian(5, 1.0, 4)], 1e-6)
    assert many == pytest.approx(epsilon([gaussian(1 / math.sqrt(16 / 100 + 4 / 25))], 1e-6), rel=1e-9)


def test_nothing_costs_nothing() -> None:
    assert epsilon([], 1e-5) == 0.0
    assert Composed().epsilon(1e-5) == 0.0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_without_meaning(delta: float) -> None:
    with pytest.raises(PrivacyError) as caught:
        epsilon([gaussian(1)], delta)
    assert caught.value.code == "delta-invalid"


def test_many_different_amounts_of_noise_cost_little_more() -> None:
    """Rounding them down to a grid may cost one per cent, and never says less."""
    sigmas = [2.0 - 1.0 * step / 299 for step in range(300)]
    many = epsilon([gaussian(sigma, 0.01) for sigma in sigmas], 1e-5, interval=COARSE)
    lower = epsilon([gaussian(sigma * 1.004, 0.01) for sigma in sigmas], 1e-5, "rdp")
    assert many < epsilon([gaussian(sigma, 0.01) for sigma in sigmas], 1e-5, "rdp")
    few = [gaussian(sum(sigmas[at : at + 3]) / 3, 0.01, 3) for at in range(0, 300, 3)]
    close = epsilon(few, 1e-5, interval=COARSE)
    assert close * 0.999 <= many <= close * 1.01
    assert lower > 0


def test_events_as_they_come() -> None:
    spent = Composed([gaussian(1.2, 0.02, 10)])
    for _ in range(9):
        spent.add(gaussian(1.2, 0.02, 10))
    assert spent.events == [gaussian(1.2, 0.02, 100)]
    assert spent.epsilon(1e-5) == epsilon([gaussian(1.2, 0.02, 100)], 1e-5, interval=COARSE)
    assert spent.with_more([gaussian(1.2, 0.02)], 1e-5) > spent.epsilon(1e-5)
    assert spent.events == [gaussian(1.2, 0.02, 100)]


def test_ten_thousand_events_are_accounted_together() -> None:
    events = [gaussian(1.0 + (step % 7) / 10, 0.001) for step in range(10_000)]
    assert len(merged(events)) == 7
    assert epsilon(events, 1e-6, interval=COARSE) < epsilon(events, 1e-6, "rdp")


EVENTS = st.builds(
    gaussian,
    st.sampled_from([0.8, 1.0, 1.7, 4.0]),
    st.sampled_from([0.01, 0.1, 1.0]),
    st.integers(1, 50),
)


@settings(max_examples=15, deadline=None)
@given(events=st.lists(EVENTS, min_size=1, max_size=4), more=EVENTS, order=st.randoms())
def test_composition(events: list[GaussianEvent], more: GaussianEvent, order: object) -> None:
    shuffled = list(events)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    cost = epsilon(events, 1e-5, interval=COARSE)
    assert epsilon(shuffled, 1e-5, interval=COARSE) == cost
    assert epsilon([*events, more], 1e-5, interval=COARSE) >= cost
    assert epsilon(events, 1e-6, interval=COARSE) >= cost
    assert cost <= epsilon(events, 1e-5, "rdp") + 0.01


def test_other_accountants_can_read_the_events() -> None:
    from dp_accounting.pld import PLDAccountant

    events = TABLE["J"][0]
    assert PLDAccountant().compose(dp_event(events)).get_epsilon(1e-5) == pytest.approx(1.4719, abs=1e-3)
