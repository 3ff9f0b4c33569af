"""The whole merge: gate, shares, arrival, order, slices, numerics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.merging import (
    CAF,
    NNM,
    RULES,
    Bucketing,
    Bulyan,
    CenteredClipping,
    DnC,
    FLTrust,
    GeometricMedian,
    Mean,
    Median,
    Merger,
    MergeRefused,
    MultiKrum,
    NormClip,
    Recipe,
    Rule,
    TrimmedMean,
    Verdict,
    merge,
    robust,
)
from coordinator.merging.gate import capped_shares, largest_share

ALL: list[Rule | Recipe] = [
    Mean(),
    Median(),
    TrimmedMean(),
    GeometricMedian(),
    MultiKrum(),
    MultiKrum(m=1),
    CenteredClipping(),
    CAF(),
    Bulyan(),
    FLTrust(),
    DnC(),
    robust(2),
    Bucketing() >> GeometricMedian(),
    NormClip(times_median=2.0) >> NNM() >> CAF(),
]


def name_of(rule: Rule | Recipe) -> str:
    return rule.name if isinstance(rule, Recipe) else str(rule)


def make(n: int = 12, d: int = 300, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


NAMES = [f"site-{index:02}" for index in range(12)]
COUNTS = [float(10 + 7 * index % 30) for index in range(12)]
OWN = make(1, 300, 9)[0]


def run(rule: Rule | Recipe, rows: object, **options: object) -> np.ndarray:
    merged = merge(rule, rows, **{"f": 2, "reference": OWN, **options})  # type: ignore[arg-type]
    return merged.value


# --- one result, however it comes about -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ALL, ids=name_of)
def test_the_result_is_a_function_of_the_set_of_updates(rule: Rule | Recipe) -> None:
    """The definition of permutation invariance: the same bits in whatever order named updates come."""
    rows = make()
    whole = merge(rule, rows, names=NAMES, examples=COUNTS, f=2, reference=OWN)
    order = np.random.default_rng(3).permutation(12)
    other = merge(
        rule, [rows[i] for i in order], names=[NAMES[i] for i in order], examples=[COUNTS[i] for i in order],
        f=2, reference=OWN, threads=2,
    )  # fmt: skip
    assert other.value.tobytes() == whole.value.tobytes()
    assert other.report == whole.report


@pytest.mark.parametrize("rule", ALL, ids=name_of)
def test_names_dont_matter_beyond_rounding(rule: Rule | Recipe) -> None:
    rows = make()
    if isinstance(rule, Recipe) and any(isinstance(step, Bucketing) for step in rule.steps):
        pytest.skip("buckets are drawn by the order of names")
    order = np.random.default_rng(4).permutation(12)
    assert run(rule, rows[order]) == pytest.approx(run(rule, rows), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("rule", ALL, ids=name_of)
def test_one_by_one_in_files_and_by_slices_gives_the_same_bits(rule: Rule | Recipe, tmp_path: Path) -> None:
    rows = make()
    whole = merge(rule, rows, names=NAMES, f=2, reference=OWN)
    rows.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=rows.shape)
    merger = Merger(rule, 300)
    for index in (5, 3, 8, 11, 0, 1, 2, 4, 6, 7, 9, 10):
        assert merger.add(NAMES[index], mapped[index]) == ""
    decision = merger.decide(f=2, reference=OWN)
    ordered = [mapped[NAMES.index(name)] for name in decision.names]
    out = np.empty(300, np.float32)
    for start, stop in ((0, 100), (100, 164), (164, 300)):
        decision.write([row[start:stop] for row in ordered], out[start:stop], reference=OWN[start:stop])
    assert out.tobytes() == whole.value.tobytes()
    assert decision.report == whole.report


@pytest.mark.parametrize("rule", ALL, ids=name_of)
def test_updates_are_never_written_to(rule: Rule | Recipe) -> None:
    rows = make()
    rows.flags.writeable = False
    before = rows.copy()
    run(rule, rows)
    assert np.array_equal(rows, before)


# --- the gate ---------------------------------------------------------------------------------------------------------


def spoiled(kind: str) -> np.ndarray:
    row = make(1, 300, 7)[0]
    if kind == "one NaN":
        row[17] = np.nan
    elif kind == "Inf":
        row[3] = np.inf
    elif kind == "1e30":
        row[:] = 1e30
    elif kind == "1e20":
        row[:] = -1e20
    elif kind == "largest":
        row[:] = np.finfo(np.float32).max
    elif kind == "denormal":
        row[:] = 1e-42
    elif kind == "zero":
        row[:] = -0.0
    return row


@pytest.mark.parametrize("kind", ["one NaN", "Inf", "1e30", "1e20", "largest", "denormal", "zero"])
@pytest.mark.parametrize("rule", [rule for rule in ALL if not isinstance(rule, Mean)], ids=name_of)
def test_no_update_spoils_a_round(rule: Rule | Recipe, kind: str) -> None:
    rows = make()
    honest = run(rule, rows[2:], f=0)
    rows[0] = rows[1] = spoiled(kind)
    merged = merge(rule, rows, names=NAMES, f=2, reference=OWN)
    assert np.isfinite(merged.value).all()
    # Within a few standard deviations of the attack-free result, wherever the attackers are.
    assert np.linalg.norm(merged.value - honest) < 3 * np.sqrt(300)
    if kind in ("one NaN", "Inf", "largest"):
        assert {"site-00", "site-01"} <= set(merged.report.rejected)
        assert merged.report.remaining == 0


def test_the_mean_stays_finite_too() -> None:
    for kind in ("one NaN", "Inf", "1e30", "1e20", "largest", "denormal"):
        rows = make()
        rows[0] = spoiled(kind)
        assert np.isfinite(merge(Mean(), rows, f=0).value).all()


def test_rejections_are_named_and_count_against_f() -> None:
    rows = list(make())
    rows[1] = spoiled("one NaN")
    rows[4] = rows[4].astype(np.float64)
    rows[6] = rows[6][:-1]
    merged = merge(
        TrimmedMean(), rows, names=NAMES, f=4, examples=[5.0] * 11 + [-1.0], max_norm=1e3,
    )  # fmt: skip
    reasons = {item.participant: item.reason for item in merged.report.participants if item.verdict is Verdict.REJECTED}
    assert reasons == {
        "site-01": "holds NaN or infinity",
        "site-04": "dtype float64, not float32",
        "site-06": "shape (299,), not (300,)",
        "site-11": "claims -1.0 examples",
    }
    assert (merged.report.tolerated, merged.report.remaining) == (4, 0)
    kept = [rows[i] for i in range(12) if i not in (1, 4, 6, 11)]
    assert merged.value == pytest.approx(np.mean(kept, axis=0), abs=1e-6)


def test_more_rejections_than_declared_are_told() -> None:
    rows = make(6)
    rows[:3, 0] = np.nan
    report = merge(Median(), rows, f=1).report
    assert any("3 updates were rejected" in warning for warning in report.warnings)


def test_an_operators_norm_limit() -> None:
    rows = make(5)
    rows[3] *= 10
    report = merge(Median(), rows, f=1, max_norm=100.0).report
    assert report.rejected == ("3",)
    assert "above 100" in report.participants[3].reason


def test_nothing_left_is_refused_with_the_reasons() -> None:
    with pytest.raises(MergeRefused, match="0: holds NaN") as refusal:
        merge(Median(), np.full((2, 3), np.nan, np.float32), f=0)
    assert refusal.value.code == "merge-empty"


def test_after_the_gate_there_may_be_too_few() -> None:
    rows = make(11)
    rows[0, 0] = np.nan
    with pytest.raises(MergeRefused, match="bulyan"):
        merge(Bulyan(), rows[:7], f=2)
    assert merge(Bulyan(), rows, f=2).report.remaining == 1


def test_two_updates_of_one_participant_are_an_error() -> None:
    with pytest.raises(ValueError, match="two updates of a"):
        merge(Median(), make(3), names=["a", "b", "a"], f=0)


# --- shares -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e300), min_size=3, max_size=12), st.data())
def test_no_claim_buys_more_than_the_cap(counts: list[float], data: st.DataObject) -> None:
    n = len(counts)
    f = data.draw(st.integers(0, (n - 1) // 2))
    cap = largest_share(n, f)
    shares = capped_shares(np.array(counts), cap)
    assert shares.sum() == pytest.approx(1.0)
    assert shares.max() <= cap * (1 + 1e-9) or f == 0
    assert (shares >= 0).all()
    if f:
        assert cap <= 1 / (n - 2 * f)
        assert np.sort(shares)[-f:].sum() < 0.5


@pytest.mark.parametrize("rule", [Mean(), GeometricMedian(), MultiKrum(), CenteredClipping()], ids=name_of)
def test_a_forged_count_buys_a_cap_and_no_more(rule: Rule) -> None:
    rows = make()
    merged = merge(rule, rows, examples=[1e9] + [10.0] * 11, f=2)
    assert merged.report.participants[0].share == pytest.approx(1 / 8)
    assert merged.weights is not None
    assert max(merged.weights.values()) < 0.3


def test_without_suspicion_counts_weigh_as_told() -> None:
    rows = make(3)
    merged = merge(Mean(), rows, examples=[1, 1, 6], f=0)
    assert merged.value == pytest.approx(rows.T @ np.float32([0.125, 0.125, 0.75]), abs=1e-6)


# --- numerics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1e-2, 2e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("rule", [MultiKrum(), CAF(), DnC(), Bulyan()], ids=name_of)
def test_small_differences_on_large_weights_are_seen(rule: Rule, ratio: float) -> None:
    """Whole models of size 0.05 instead of differences: attackers spread three times as wide are all found."""
    generator = np.random.default_rng(6)
    d = 20_000
    base = 0.05 * generator.standard_normal(d)
    noise = generator.standard_normal((12, d))
    noise[:2] *= 3
    rows = (base + 0.05 * ratio * noise).astype(np.float32)
    merged = merge(rule, rows, f=2)
    if isinstance(rule, CAF):  # it weighs down before it rejects
        assert merged.weights is not None
        assert max(merged.weights["00"], merged.weights["01"]) < 0.5 * min(list(merged.weights.values())[2:])
    else:
        assert {"00", "01"} <= set(merged.report.rejected)


def test_norms_are_told_in_double_precision() -> None:
    rows = make(5, 100)
    rows[2] = 1e20
    report = merge(Median(), rows, f=1).report
    assert report.participants[2].norm == pytest.approx(1e21, rel=1e-6)


def test_readers_are_taken_at_their_word_for_the_length() -> None:
    class Reader:
        def __init__(self, row: np.ndarray) -> None:
            self.row = row

        def read(self, start: int, out: np.ndarray) -> None:
            out[:] = self.row[start : start + len(out)]

    rows = make(7, 5_000)
    found = merge(robust(2), [Reader(row) for row in rows], dimension=5_000).value
    assert found.tobytes() == merge(robust(2), rows).value.tobytes()


def test_every_rule_is_tried_here() -> None:
    assert {type(rule) for rule in ALL if isinstance(rule, Rule)} == set(RULES.values())
