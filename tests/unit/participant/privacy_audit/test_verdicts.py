"""Findings from made-up steps: each check alone, right and wrong."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from participant.privacy_audit.audit import totals
from participant.privacy_audit.recorder import Claim, Watched, canary_rows
from participant.privacy_audit.verdicts import ERROR, POWER, examine, residuals
from privacy.accounting.events import GaussianEvent, Placement, Unit
from privacy.mechanisms.plan import Share, solve
from privacy.mechanisms.quantile import QuantileClipping

CANARIES, CLIP = 40, 0.5
CLAIM = Claim(
    event=GaussianEvent(noise_multiplier=0.5),
    sensitivity=CLIP * 1.005,
    gradient_multiplier=0.5,
    count_std=0.0,
    grid=1e-4,
)


def step(number: int, *, scale: float = 1.0, pull: float = 1.0, claim: Claim = CLAIM, **changes: object) -> Watched:
    """What a right step releases, or one whose noise or clipping is off."""
    generator = np.random.default_rng(number)
    here = np.arange(CANARIES) % 2 == 0
    anchors = np.ones(CANARIES, np.int64)
    std = claim.gradient_multiplier * claim.sensitivity
    rows = -CLIP * anchors + pull * CLIP * here + generator.normal(0, scale * std, CANARIES)
    release = (np.rint(generator.normal(0, std, 200) / claim.grid) * claim.grid).astype(np.float32)
    fields: dict[str, object] = {
        "claim": claim,
        "clip_norm": CLIP,
        "rows": rows,
        "release": release,
        "scale": 1.0,
        "here": here,
        "anchors": anchors,
        "sample": np.empty(0, np.int64),
        "below": math.nan,
        "above": 0,
        "units": 0,
    }
    return Watched(**{**fields, **changes})  # type: ignore[arg-type]


def steps(count: int = 60, **changes: object) -> list[Watched]:
    return [step(number, **changes) for number in range(count)]  # type: ignore[arg-type]


def bad(watched: list[Watched], rate: float = 1.0, records: int = 0, power: bool = True) -> set[str]:
    found = examine(watched, rate=rate, records=records, power=power)
    assert all(item.words and math.isfinite(item.measured) for item in found)
    return {item.name for item in found if not item.good}


def test_right_steps_pass() -> None:
    found = examine(steps(), rate=1.0, records=0)
    assert [item.name for item in found] == ["separation", "power", "noise", "sum", "fresh", "lattice"]
    assert all(item.good for item in found)
    named = {item.name: item for item in found}
    assert POWER < named["power"].measured < 1.0
    assert named["separation"].measured < named["power"].measured  # with more confidence
    assert named["noise"].measured == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"scale": 0.5}, {"noise", "separation"}),
        ({"pull": 2.0}, {"separation", "sum"}),
        ({"scale": 1.3}, {"sum", "power"}),
        ({"pull": 0.1}, {"power", "sum"}),
        ({"scale": 0.9}, {"noise"}),
    ],
)
def test_steps_that_are_off(changes: dict[str, float], found: set[str]) -> None:
    assert found <= bad(steps(**changes))


def test_residuals_are_noise_in_its_claimed_scale() -> None:
    found = residuals(steps(200))
    assert found.shape == (200, CANARIES)
    assert found.std() == pytest.approx(1.0, abs=0.03)
    assert abs(found.mean()) < 0.05


def test_noise_that_is_used_again() -> None:
    once = steps(30)
    again = dataclasses.replace(once[7], rows=once[3].rows)
    assert bad([*once[:7], again, *once[8:]], power=False) == {"fresh"}
    still = dataclasses.replace(once[8], release=once[7].release)
    assert bad([*once[:8], still, *once[9:]], power=False) == {"fresh"}


def test_a_place_that_never_changes() -> None:
    watched = steps(40)
    for item in watched:
        item.release[17] = np.float32(0.25)
    assert bad(watched) == {"fresh"}


def test_one_equal_number_by_chance_is_no_fault() -> None:
    watched = steps(40)
    watched[4].release[9] = watched[3].release[9]
    assert bad(watched) == set()


def test_numbers_off_the_lattice() -> None:
    watched = steps(10)
    watched[4].release[:20] += np.float32(0.37 * CLAIM.grid)
    assert "lattice" in bad(watched, power=False)
    whole = [np.arange(number, 200 + number, dtype=np.int32) for number in range(10)]
    integers = [dataclasses.replace(item, release=release) for item, release in zip(steps(10), whole, strict=True)]
    assert "lattice" not in bad(integers, power=False)


def test_levels_of_noise_are_looked_at_apart() -> None:
    """Half of the steps have half of their noise: all of them together would pass for more noise than there is."""
    other = dataclasses.replace(CLAIM, event=GaussianEvent(noise_multiplier=1.0), gradient_multiplier=1.0)
    right = [step(number, claim=other if number % 2 else CLAIM) for number in range(200)]
    assert bad(right, power=False) == set()
    wrong = [step(n, claim=other, scale=0.5) if n % 2 else step(n) for n in range(200)]
    assert "separation" in bad(wrong, power=False)


def test_too_few_steps_show_nothing() -> None:
    few = [dataclasses.replace(item, here=np.zeros(CANARIES, bool)) for item in steps(3, pull=0.0)]
    assert bad(few) == {"power"}
    assert bad(few, power=False) == set()


def test_samples() -> None:
    generator = np.random.default_rng(0)
    poisson = [step(n, sample=np.flatnonzero(generator.random(100) < 0.3)) for n in range(60)]
    assert bad(poisson, 0.3, 100) == set()
    fixed = [step(n, sample=generator.choice(100, 30, replace=False)) for n in range(60)]
    assert bad(fixed, 0.3, 100) == {"sampling"}
    assert bad(fixed[:7], 0.3, 100, power=False) == set()  # too few to tell


def test_counts() -> None:
    claim = dataclasses.replace(CLAIM, count_std=2.0)
    generator = np.random.default_rng(1)

    def counted(std: float) -> list[Watched]:
        return [
            step(n, claim=claim, units=30, above=12, below=3.0 + float(generator.normal(0, std))) for n in range(300)
        ]

    assert bad(counted(2.0)) == set()
    assert bad(counted(0.0)) == {"count"}
    assert bad(counted(1.0)) == {"count"}
    assert bad(counted(4.0)) == {"count"}
    unknown = [dataclasses.replace(item, below=math.nan) for item in counted(0.0)]
    assert bad(unknown) == set()


def test_chance_is_shared_out() -> None:
    """A hundred right audits: none cries wolf."""
    names = [bad([step(1_000 * k + n) for n in range(40)], power=False) for k in range(100)]
    assert ERROR <= 1e-3
    assert names == [set()] * 100


def test_scores_weigh_steps_by_what_they_could_tell() -> None:
    """The best linear score: of two steps with noise 1 and 3, the second one counts a ninth."""
    noisy = dataclasses.replace(CLAIM, gradient_multiplier=1.5)
    one, other = step(0), step(1, claim=noisy)
    unit = CLIP / (0.5 * CLAIM.sensitivity) ** 2
    assert totals([one, other]) == pytest.approx(unit * (one.rows + other.rows / 9))


# --- what is claimed --------------------------------------------------------------------------------------------------


def test_claims_are_worked_out_anew() -> None:
    plan = solve(
        unit=Unit.RECORD,
        placement=Placement.LOCAL,
        target_epsilon=1e4,
        delta=1e-6,
        records=100,
        sampling_rate=0.5,
        clip_norm=CLIP,
        rounds=2,
        steps_per_round=2,
        dimension=400,
        group_factor=2,
        multiplier=0.7,
        adaptive=QuantileClipping(count_multiplier=1.0),
    )
    event = plan.step(0).event
    claim = Claim.of(plan, event, 0.8)
    assert claim.grid == pytest.approx(plan.grid(0.8))
    assert claim.sensitivity == pytest.approx(plan.sensitivity(0.8))
    assert claim.gradient_multiplier == pytest.approx(plan.step(0).gradient_multiplier)
    assert claim.count_std == pytest.approx(2 * plan.step(0).count_std)  # of groups


def test_claims_of_shares() -> None:
    share = Share(std=0.3, honest=4, grid=0.001)
    plan = solve(
        unit=Unit.RECORD,
        placement=Placement.SHARED,
        target_epsilon=1e4,
        delta=1e-6,
        records=100,
        sampling_rate=1.0,
        clip_norm=CLIP,
        rounds=1,
        steps_per_round=1,
        dimension=100,
        multiplier=0.6 / 0.51 / 1.0001,
        share=share,
    )
    claim = Claim.of(plan, plan.step(0).event, CLIP)
    assert claim.grid == 0.001
    assert claim.sensitivity == pytest.approx(0.51)
    assert claim.gradient_multiplier * claim.sensitivity <= share.std * 2


def test_rows_across_tables() -> None:
    release = np.arange(12, dtype=np.float32)
    assert canary_rows(release, [slice(2, 5)]).tolist() == [2, 3, 4]
    both = canary_rows(release, [slice(0, 3), slice(6, 9)])
    assert both == pytest.approx(np.array([6, 8, 10]) / math.sqrt(2))
