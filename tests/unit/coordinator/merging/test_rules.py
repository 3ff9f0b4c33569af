"""Every rule against an oracle on whole float64 matrices, and what each promises by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import merging_oracles as oracle
import numpy as np
import pytest

from coordinator.merging import (
    CAF,
    NNM,
    PREAGGREGATORS,
    RULES,
    Bucketing,
    Bulyan,
    CenteredClipping,
    DnC,
    FLTrust,
    GeometricMedian,
    Mean,
    Median,
    MergeRefused,
    MultiKrum,
    NormClip,
    Recipe,
    TrimmedMean,
    build,
    careful,
    merge,
    robust,
)

ARC = NormClip(adaptive=True)

LINEAR: list[tuple[object, Callable[[np.ndarray, int], np.ndarray]]] = [
    (Mean(), lambda x, f: x.mean(axis=0)),
    (GeometricMedian(), lambda x, f: oracle.geometric_median(x)),
    (MultiKrum(), lambda x, f: oracle.multi_krum(x, f, len(x) - f)),
    (MultiKrum(m=1), lambda x, f: oracle.multi_krum(x, f, 1)),
    (MultiKrum(m=3, neighbours=4), lambda x, f: oracle.multi_krum(x, f, 3, 4)),
    (CenteredClipping(radius=7.0, steps=2), lambda x, f: oracle.centered_clipping(x, 7.0, 2, np.zeros(x.shape[1]))),
    (CAF(), oracle.caf),
    (DnC(), oracle.dnc),
    (DnC(factor=1.5), lambda x, f: oracle.dnc(x, f, 1.5)),
    (NNM() >> Mean(), lambda x, f: oracle.nnm(x, f).mean(axis=0)),
    (ARC >> MultiKrum(), lambda x, f: oracle.multi_krum(oracle.arc(x, f), f, len(x) - f)),
    (NormClip(norm=6.0) >> GeometricMedian(), lambda x, f: oracle.geometric_median(oracle.clip(x, 6.0))),
    (NNM() >> CAF(), lambda x, f: oracle.caf(oracle.nnm(x, f), f)),
]
COORDINATE: list[tuple[object, Callable[[np.ndarray, int], np.ndarray]]] = [
    (TrimmedMean(), oracle.trimmed_mean),
    (Median(), lambda x, f: oracle.median(x)),
    (Bulyan(), oracle.bulyan),
    (NNM() >> TrimmedMean(), lambda x, f: oracle.trimmed_mean(oracle.nnm(x, f), f)),
    (ARC >> NNM() >> TrimmedMean(), lambda x, f: oracle.trimmed_mean(oracle.nnm(oracle.arc(x, f), f), f)),
    (ARC >> NNM() >> Median(), lambda x, f: oracle.median(oracle.nnm(oracle.arc(x, f), f))),
    (NNM() >> Bulyan(), lambda x, f: oracle.bulyan(oracle.nnm(x, f), f)),
]


def honest_and_bad(n: int, f: int, d: int, seed: int, shift: float) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((n, d)) + 0.3 * generator.standard_normal(d)
    rows[:f] += shift
    return generator.permutation(rows.astype(np.float32))


def label(value: object) -> str:
    return str(getattr(value, "name", value))


@pytest.mark.parametrize("shift", [0.0, 2.0, 1e3])
@pytest.mark.parametrize(("n", "f", "d"), [(11, 2, 60), (12, 2, 3), (15, 3, 200)])
@pytest.mark.parametrize(
    ("rule", "expected"),
    LINEAR + COORDINATE,
    ids=lambda value: (
        label(value) if not callable(value) or hasattr(value, "name") or isinstance(value, Recipe) else ""
    ),
)
def test_equals_its_oracle(
    rule: Recipe, expected: Callable[..., np.ndarray], n: int, f: int, d: int, shift: float
) -> None:
    rows = honest_and_bad(n, f, d, n + d, shift)
    wide = rows.astype(np.float64)
    exact = expected(wide, f)
    found = merge(rule, rows, f=f).value
    assert found.dtype == np.float32
    assert np.abs(found - exact).max() <= 1e-5 * max(np.abs(exact).max(), 1e-3)


def test_fltrust_and_centered_clipping_use_the_coordinators_own_vector() -> None:
    rows = honest_and_bad(10, 2, 50, 3, 4.0)
    own = rows[:5].mean(axis=0) + np.float32(0.1)
    wide, root = rows.astype(np.float64), own.astype(np.float64)
    assert np.allclose(merge(FLTrust(), rows, f=2, reference=own).value, oracle.fltrust(wide, root), atol=1e-6)
    expected = oracle.centered_clipping(wide, 3.0, 3, root)
    assert np.allclose(merge(CenteredClipping(radius=3.0), rows, f=2, reference=own).value, expected, atol=1e-6)
    with pytest.raises(MergeRefused, match="none") as refusal:
        merge(FLTrust(), rows, f=2)
    assert refusal.value.code == "merge-reference"


def test_fltrust_alone_against_all_takes_its_own_vector() -> None:
    own = np.float32([1, 0, 0])
    merged = merge(FLTrust(), np.float32([[-1, 0, 0], [-2, 1, 0], [0, 0, 0]]), f=3, reference=own)
    assert merged.value.tolist() == [1, 0, 0]
    assert "taken alone" in merged.report.warnings[0]


def test_bucketing_averages_buckets_that_the_seed_draws() -> None:
    rows = honest_and_bad(9, 1, 20, 5, 1.0)
    plain = merge(Bucketing(per_bucket=2) >> Median(), rows, f=1, seed=7).value
    order = np.random.default_rng(7).permutation(9)
    buckets = np.array([rows[order[i : i + 2]].astype(np.float64).mean(axis=0) for i in range(0, 9, 2)])
    assert np.allclose(plain, np.median(buckets, axis=0), atol=1e-6)
    assert np.array_equal(merge(Bucketing() >> Median(), rows, f=1, seed=7).value, plain)
    assert not np.array_equal(merge(Bucketing() >> Median(), rows, f=1, seed=8).value, plain)
    # Weighted by examples, buckets of the mean give the weighted mean back only where all shares are equal.
    assert np.allclose(merge(Bucketing(per_bucket=3) >> Mean(), rows, f=0).value, rows.mean(axis=0), atol=1e-6)


def test_the_geometric_median_is_an_update_where_that_is_the_minimum() -> None:
    rows = np.float32([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    assert merge(GeometricMedian(), rows, f=2).value.tolist() == [0, 0]
    most = np.float32([[5, 5], [5, 5], [5, 5], [1, 2], [-9, 4]])
    assert merge(GeometricMedian(), most, f=2).value == pytest.approx([5, 5], abs=1e-6)


def test_the_geometric_median_doesnt_move_for_a_huge_update() -> None:
    rows = honest_and_bad(9, 0, 30, 8, 0.0)
    far = [np.concatenate([rows[:8], size * rows[8:]]).astype(np.float32) for size in (1e6, 1e25)]
    near, huge = (merge(GeometricMedian(), x, f=1).value for x in far)
    assert np.abs(near - huge).max() < 1e-2


def test_identical_updates_come_out_as_they_are() -> None:
    row = np.random.default_rng(1).standard_normal(40, dtype=np.float32)
    for rule in (Mean(), GeometricMedian(), MultiKrum(), CAF(), DnC(), Bulyan(), Median(), robust(2)):
        assert merge(rule, [row] * 11, f=2).value == pytest.approx(row, rel=1e-6)
    for rule in (Mean(), GeometricMedian(), CAF(), CenteredClipping(), NNM() >> TrimmedMean()):
        assert merge(rule, np.zeros((5, 4), np.float32), f=1).value.tolist() == [0, 0, 0, 0]


# --- how many bad participants ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        (Mean(), 5),
        (Median(), 5),
        (TrimmedMean(), 5),
        (GeometricMedian(), 5),
        (CenteredClipping(), 5),
        (CAF(), 5),
        (DnC(), 5),
        (NNM() >> TrimmedMean(), 5),
        (MultiKrum(), 7),
        (MultiKrum(m=6), 8),
        (Bulyan(), 11),
        (Bucketing(per_bucket=3) >> Median(), 13),
        (ARC >> Bulyan(), 11),
    ],
    ids=label,
)
def test_too_few_participants_are_refused_loudly(rule: Recipe, least: int) -> None:
    rows = honest_and_bad(least, 2, 5, 1, 0.0)
    merge(rule, rows, f=2)
    with pytest.raises(MergeRefused, match="at least") as refusal:
        merge(rule, rows[1:], f=2)
    assert refusal.value.code == "merge-tolerance"
    assert refusal.value.hint


def test_a_fraction_is_counted_anew_each_round() -> None:
    rule = TrimmedMean(f=0.2)
    for n, f in ((20, 4), (10, 2), (9, 1), (4, 0)):
        rows = honest_and_bad(n, 0, 6, n, 0.0)
        merged = rule(rows)
        assert merged.report.tolerated == f
        assert np.allclose(merged.value, oracle.trimmed_mean(rows.astype(np.float64), f), atol=1e-6)
    assert any("less than one" in warning for warning in rule(honest_and_bad(4, 0, 6, 1, 0.0)).report.warnings)


@pytest.mark.parametrize("f", [-1, 0.5, -0.1, True, "2"])
def test_an_f_that_cant_be_meant_is_refused(f: object) -> None:
    with pytest.raises(ValueError, match="f is"):
        TrimmedMean(f=f)  # type: ignore[arg-type]


def test_somebody_must_say_f() -> None:
    with pytest.raises(ValueError, match="how many"):
        merge(Median(), np.zeros((3, 2), np.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda: NormClip(),
        lambda: NormClip(norm=1.0, adaptive=True),
        lambda: NormClip(norm=0.0),
        lambda: NormClip(times_median=float("inf")),
        lambda: Bucketing(per_bucket=0),
        lambda: MultiKrum(m=0),
        lambda: CenteredClipping(radius=-1.0),
        lambda: CenteredClipping(steps=0),
        lambda: DnC(factor=0.0),
    ],
)
def test_settings_that_cant_be_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        make()


# --- names and composition --------------------------------------------------------------------------------------------


def test_recipes_compose_in_any_grouping_and_have_canonical_names() -> None:
    parts = ARC, NNM(), TrimmedMean()
    left, right = (parts[0] >> parts[1]) >> parts[2], parts[0] >> (parts[1] >> parts[2])
    assert left == right
    assert left.name == "norm-clip(adaptive=True) >> nnm >> trimmed-mean"
    assert (Bucketing() >> left).name == "bucketing >> " + left.name
    assert MultiKrum(m=1, f=3).name == "multi-krum"
    assert str(MultiKrum(m=1, f=3)) == "multi-krum(m=1)"


def test_parts_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrimmedMean().f = 3  # type: ignore[misc]


def test_recipes_are_built_from_names() -> None:
    assert build("caf", f=0.2, before=[("norm-clip", {"adaptive": True})]) == robust(0.2)
    mixed = build("trimmed-mean", f=0.2, before=[("norm-clip", {"adaptive": True}), ("nnm", {})])
    assert mixed == NormClip(adaptive=True) >> NNM() >> TrimmedMean(f=0.2)
    assert build("multi-krum", f=2, m=1).rule == MultiKrum(m=1, f=2)
    assert sorted(RULES) == [
        "bulyan", "caf", "centered-clipping", "dnc", "fltrust",
        "geometric-median", "mean", "median", "multi-krum", "trimmed-mean",
    ]  # fmt: skip
    assert sorted(PREAGGREGATORS) == ["bucketing", "nnm", "norm-clip"]
    with pytest.raises(ValueError, match="there is no 'meen'; there are mean"):
        build("meen", f=1)
    with pytest.raises(ValueError, match="bucketing"):
        build("mean", f=1, before=[("bucketing", {"size": 3})])


def test_the_recommended_recipes() -> None:
    assert careful().name == "norm-clip(times_median=3.0) >> mean(times_equal=3.0)"
    assert robust(0.1).name == "norm-clip(adaptive=True) >> caf"
    rows = honest_and_bad(10, 1, 40, 2, 1e4)
    assert np.linalg.norm(careful()(rows).value) < 12
    assert np.linalg.norm(merge(Mean(), rows, f=0).value) > 1e3
