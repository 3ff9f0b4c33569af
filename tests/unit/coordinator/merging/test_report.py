"""What the report says of each participant, and when it warns."""

from __future__ import annotations

import json

import numpy as np
import pytest

from coordinator.merging import (
    NNM,
    Bucketing,
    GeometricMedian,
    Mean,
    Median,
    MultiKrum,
    NormClip,
    Recipe,
    Rule,
    TrimmedMean,
    Verdict,
    merge,
)
from coordinator.merging.report import robust_deviations


def make(n: int = 10, d: int = 500, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


def test_each_participant_has_norm_score_weight_distance_and_verdict() -> None:
    rows = make()
    rows[3] *= 30
    report = merge(NormClip(adaptive=True) >> MultiKrum(m=6), rows, f=1).report
    three, zero = report.participants[3], report.participants[0]
    assert [item.participant for item in report.participants] == [str(i).zfill(2) for i in range(10)]
    assert three.verdict is Verdict.CLIPPED or three.verdict is Verdict.REJECTED
    assert three.norm == pytest.approx(float(np.linalg.norm(rows[3].astype(np.float64))))
    assert three.factor < 0.1
    assert zero.score is not None and zero.distance is not None
    assert sum(item.weight or 0.0 for item in report.participants) == pytest.approx(
        sum(item.factor / 6 for item in report.participants if item.weight), rel=1e-9
    )
    dropped = [item for item in report.participants if item.verdict is Verdict.REJECTED]
    assert len(dropped) == 4
    assert all("sigma" in item.reason and item.weight == 0 for item in dropped)


def test_distances_are_those_to_the_result() -> None:
    rows = make()
    merged = merge(GeometricMedian(), rows, f=2)
    exact = np.linalg.norm(rows.astype(np.float64) - merged.value, axis=1)
    assert [item.distance for item in merged.report.participants] == pytest.approx(exact, rel=1e-6)


def test_coordinate_rules_tell_how_often_a_value_was_used() -> None:
    rows = make()
    rows[0] += 100
    fractions = [item.kept_fraction for item in merge(TrimmedMean(), rows, f=2).report.participants]
    assert fractions[0] == 0.0
    assert sum(fractions) == pytest.approx(6.0)  # type: ignore[arg-type]
    assert merge(NNM() >> TrimmedMean(), rows, f=2).report.participants[0].kept_fraction is not None


@pytest.mark.parametrize(
    "rule", [Median(), TrimmedMean(), NNM() >> TrimmedMean(), NormClip(adaptive=True) >> NNM() >> Median()], ids=str
)
def test_weights_of_coordinate_rules_say_what_the_result_is_made_of(rule: Recipe | Rule) -> None:
    rows = make()
    rows[0] += 100
    merged = merge(rule, rows, f=2)
    weights = np.array([item.weight for item in merged.report.participants])
    assert weights[0] < 1e-3
    # The same rows in every coordinate: the mean weight is then each coordinate's own.
    same = np.repeat(np.arange(10, dtype=np.float32)[:, None], 40, axis=1)
    merged = merge(rule, same, f=2)
    weights = np.array([item.weight for item in merged.report.participants])
    np.testing.assert_allclose(weights @ same, merged.value, rtol=1e-5)


def test_hostile_updates_are_told_by_name() -> None:
    rows = make(20)
    rows[4] = -20 * rows[5:].mean(axis=0)
    rows[7] *= 4
    report = merge(MultiKrum(), rows, f=2).report
    assert report.rejected == ("04", "07") or report.rejected == ("07", "04")
    assert not report.warnings
    assert "+" in report.participants[7].reason


def test_heterogeneity_is_told_from_attack() -> None:
    clusters = np.repeat(make(3, seed=4), 4, axis=0) + make(12) / 4
    report = merge(MultiKrum(), clusters, f=3).report
    assert any("heterogeneity alone" in warning for warning in report.warnings)


def test_replays_and_copies_are_told() -> None:
    row = make(1)[0]
    for rule in (Median(), MultiKrum()):
        assert any("all updates are identical" in text for text in merge(rule, [row] * 6, f=1).report.warnings)
        rows = make(8)
        rows[2] = rows[6]
        assert any("2, 6 sent the same update" in text for text in merge(rule, rows, f=1).report.warnings)
        assert not any("same" in text for text in merge(rule, make(8), f=1).report.warnings)
    assert not any("same" in text for text in merge(Median(), np.zeros((4, 9), np.float32), f=1).report.warnings)


def test_the_mean_says_what_it_cant_stand() -> None:
    assert "stands no bad participant" in merge(Mean(), make(5), f=1).report.warnings[0]


def test_a_bucket_speaks_for_its_members() -> None:
    rows = make(9)
    rows[4] *= 100
    report = merge(Bucketing(per_bucket=3) >> GeometricMedian(), rows, f=1, seed=5).report
    worst = max(report.participants, key=lambda item: item.score or 0)
    assert report.participants[4].score == worst.score
    assert sum(item.score == worst.score for item in report.participants) == 3


def test_it_is_json() -> None:
    rows = make(5)
    rows[1, 1] = np.nan
    plain = merge(Median(), rows, f=1).report.as_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["participants"][1] == {
        "participant": "1", "verdict": "rejected", "reason": "holds NaN or infinity", "norm": "nan", "share": 0.0,
        "weight": 0.0, "kept_fraction": None, "score": None, "distance": None, "factor": 1.0,
    }  # fmt: skip


def test_robust_deviations() -> None:
    assert robust_deviations(np.array([1.0, 2.0, 3.0, 100.0]))[3] > 50
    assert robust_deviations(np.array([1.0, 1.0, 1.0, 2.0])).tolist() == [0, 0, 0, np.inf]
    assert robust_deviations(np.zeros(3)).tolist() == [0, 0, 0]
