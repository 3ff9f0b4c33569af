"""(f, kappa)-robustness: on random and on hostile inputs no proven bound is exceeded, over all sets of n - f rows."""

from __future__ import annotations

import itertools

import merging_oracles as oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordinator.merging import (
    CAF,
    NNM,
    Bulyan,
    GeometricMedian,
    Median,
    MultiKrum,
    NormClip,
    Recipe,
    Rule,
    TrimmedMean,
    merge,
)

PROVEN = [
    TrimmedMean(),
    Median(),
    GeometricMedian(),
    MultiKrum(m=1),
    NNM() >> TrimmedMean(),
    NNM() >> Median(),
    NNM() >> GeometricMedian(),
    NormClip(adaptive=True) >> NNM() >> TrimmedMean(),
    CAF(),
    NormClip(adaptive=True) >> CAF(),
]


def recipe(rule: Rule | Recipe) -> Recipe:
    return rule if isinstance(rule, Recipe) else Recipe(rule=rule)


def check(rule: Rule | Recipe, rows: np.ndarray, f: int) -> None:
    kappa = recipe(rule).kappa(len(rows), f)
    assert kappa is not None
    assert kappa >= f / (len(rows) - 2 * f)  # no rule can do better
    merged = merge(rule, rows, f=f)
    assert merged.report.kappa == kappa
    # 1e-5 for the result's rounding to float32
    assert oracle.worst_ratio(rows.astype(np.float64), f, merged.value.astype(np.float64)) <= kappa * (1 + 1e-5) + 1e-6


@pytest.mark.parametrize("rule", PROVEN, ids=lambda rule: recipe(rule).name)
@settings(max_examples=15)
@given(hnp.arrays(np.float32, (7, 2), elements=st.floats(-100, 100, width=16)))
def test_on_any_input(rule: Rule | Recipe, rows: np.ndarray) -> None:
    check(rule, rows, 2)


def hostile() -> list[np.ndarray]:
    """Honest rows with two attackers: far away, hidden in the spread, at one honest row, opposed, in one coordinate."""
    generator = np.random.default_rng(1)
    found = []
    for d in (1, 3, 30):
        honest = generator.standard_normal((5, d)).astype(np.float32) + 1
        mean, spread = honest.mean(axis=0), honest.std(axis=0)
        attacks = [
            1e6 * np.ones(d),
            mean + 1.5 * spread,
            mean - 0.3 * spread,
            honest[0],
            -mean,
            -10 * mean,
            1e3 * np.eye(d)[0],
        ]
        for one, other in itertools.combinations_with_replacement(attacks, 2):
            found.append(np.vstack([honest, one, other]).astype(np.float32))
    clusters = np.float32([[0, 0]] * 4 + [[1, 0]] * 3)
    return [*found, clusters, np.float32([[0]] * 5 + [[1]] * 2)]


@pytest.mark.parametrize("rule", PROVEN, ids=lambda rule: recipe(rule).name)
def test_on_hostile_input(rule: Rule | Recipe) -> None:
    for rows in hostile():
        check(rule, rows, 2)


@pytest.mark.parametrize("rule", [MultiKrum()], ids=lambda rule: recipe(rule).name)
def test_rules_without_a_bound_of_ours_stay_near_the_honest_mean_all_the_same(rule: Rule | Recipe) -> None:
    for rows in hostile():
        value = merge(rule, rows, f=2).value.astype(np.float64)
        honest = rows[:5].astype(np.float64)
        spread = ((honest - honest.mean(axis=0)) ** 2).sum(axis=1).mean()
        assert ((value - honest.mean(axis=0)) ** 2).sum() <= 30 * max(spread, 1e-12)


def test_bulyan_stays_between_honest_values() -> None:
    generator = np.random.default_rng(3)
    honest = generator.standard_normal((9, 200)).astype(np.float32)
    for bad in (1e6 * np.ones((2, 200)), honest[:2] + 3, -honest[:2], 40 * generator.standard_normal((2, 200))):
        value = merge(Bulyan(), np.vstack([honest, bad]).astype(np.float32), f=2).value
        assert np.all(value >= honest.min(axis=0) - 1e-5)
        assert np.all(value <= honest.max(axis=0) + 1e-5)


def test_the_filter_is_exact_where_one_random_power_step_is_not() -> None:
    """ALIE in many dimensions: attackers inside the spread of every coordinate, together along one direction."""
    generator = np.random.default_rng(5)
    errors = []
    for _ in range(4):
        honest = generator.standard_normal((16, 2_000)).astype(np.float32)
        bad = honest.mean(axis=0) - 1.5 * honest.std(axis=0)
        rows = np.vstack([honest, np.repeat(bad[None], 4, axis=0)]).astype(np.float32)
        errors.append(np.linalg.norm(merge(CAF(), rows, f=4).value - honest.mean(axis=0)))
    assert max(errors) < 0.3 * 1.5 * np.sqrt(2_000) * 4 / 20


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.float64, (9, 2), elements=st.floats(-3, 3, width=16)),
    st.sampled_from([0.1, 1.0, 10.0, 1e4]),
)
def test_the_filters_bound_holds_for_the_variance_along_one_direction(rows: np.ndarray, far: float) -> None:
    """What our own proof says, and more than (f, kappa)-robustness asks for."""
    rows[7:] *= far
    rows = rows.astype(np.float32)
    value = merge(CAF(), rows, f=2).value.astype(np.float64)
    kappa = CAF().kappa(9, 2)
    assert kappa is not None
    for chosen in itertools.combinations(range(9), 7):
        kept = rows[list(chosen)].astype(np.float64)
        widest = np.linalg.eigvalsh(np.cov(kept.T, bias=True))[-1]
        error = float(np.sum((value - kept.mean(axis=0)) ** 2))
        assert error <= kappa * widest * (1 + 1e-5) + 1e-6 * (1 + float(np.abs(rows).max()) ** 2 * 1e-6)
    assert CAF().kappa(9, 3) is None
