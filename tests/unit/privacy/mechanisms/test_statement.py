"""The words that a data officer reads say whom a plan protects, how far, by what means, and what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest

from privacy.accounting import Placement, Unit
from privacy.mechanisms.adaptive import AdaptiveNoise
from privacy.mechanisms.plan import PrivacyPlan, Share, solve


def plan(**changes: Any) -> PrivacyPlan:
    fields: dict[str, Any] = {
        "unit": Unit.RECORD,
        "placement": Placement.LOCAL,
        "target_epsilon": 3.0,
        "delta": 1e-5,
        "records": 6_000,
        "sampling_rate": 0.05,
        "clip_norm": 1.0,
        "rounds": 10,
        "steps_per_round": 5,
        "dimension": 100,
        "multiplier": 2.0,
    }
    return solve(**{**fields, **changes})


def shared(**changes: Any) -> PrivacyPlan:
    share = Share(std=5.0, honest=4, grid=1e-5)
    return plan(placement=Placement.SHARED, steps_per_round=1, share=share, **changes)


def test_epsilon_and_delta_stand_in_it() -> None:
    found = plan()
    text = found.statement()
    assert f"{found.epsilon:.4g}" in text
    assert "1e-05" in text
    assert "50 noisy steps in 10 rounds" in text
    assert "privacy loss distribution (PLD)" in text
    assert "upper bound" in text


def test_one_step_in_one_round() -> None:
    assert "1 noisy step in 1 round." in plan(rounds=1, steps_per_round=1).statement()


@pytest.mark.parametrize(
    ("found", "phrases"),
    [
        (plan(), ["adding or removing one record", "each record with probability 0.05", "A person with several"]),
        (
            plan(unit=Unit.PERSON),
            ["adding or removing all records of one person", "each person with probability", "number of persons"],
        ),
        (
            plan(
                unit=Unit.PARTICIPANT,
                placement=Placement.PARTICIPANT,
                sampling_rate=1.0,
                records=10,
                target_epsilon=20.0,
                steps_per_round=1,
                share=Share(std=5.0, honest=4, grid=1e-5),
            ),
            ["all data of one site", "Every site in a round counts in full", "which sites take part", "is published"],
        ),
    ],
    ids=["record", "person", "participant"],
)
def test_the_unit_and_its_neighbours_are_named(found: PrivacyPlan, phrases: list[str]) -> None:
    for phrase in phrases:
        assert phrase in found.statement()


def test_who_adds_the_noise_is_named() -> None:
    assert "has to trust nobody" in plan().statement()
    text = shared().statement()
    assert "4 honest sites" in text
    assert "against the coordinator and the other sites" in text


def test_sampling_is_claimed_only_where_it_happens() -> None:
    assert "Poisson sampling" in plan().statement()
    everybody = plan(sampling_rate=1.0, multiplier=0.0).statement()
    assert "Poisson" not in everybody
    assert "nothing is gained by sampling" in everybody


def test_filters_are_named() -> None:
    text = plan(multiplier=0.0, noise=AdaptiveNoise()).statement()
    assert "privacy filter" in text and "order" in text and "PLD" not in text
    assert "inverse variance" in plan(multiplier=0.0, sampling_rate=1.0, noise=AdaptiveNoise()).statement()


def test_what_isnt_covered_is_said() -> None:
    text = plan().statement()
    assert "Not covered: the number of records" in text
    assert "held-out" in text
    assert "other trainings on the same data" in text
