"""Schedules are fixed before a run, take few values, and end where they say."""

from __future__ import annotations

import collections
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.schedules import LEVELS, NoiseSchedule

KINDS = ["linear", "exponential", "step", "spend-later"]
SCHEDULES = st.one_of(
    st.just(NoiseSchedule()),
    st.builds(NoiseSchedule, kind=st.sampled_from(KINDS), end=st.floats(0.05, 20.0)),
)


@given(schedule=SCHEDULES, steps=st.integers(1, 400))
def test_plateaus_are_the_steps(schedule: NoiseSchedule, steps: int) -> None:
    values = schedule.multipliers(2.0, steps)
    assert len(values) == steps
    flat = [2.0 * relative for relative, count in schedule.plateaus(steps) for _ in range(count)]
    assert flat == values
    assert len(set(values)) <= LEVELS


@given(schedule=SCHEDULES, steps=st.integers(2, 400))
def test_it_begins_at_the_base_ends_at_the_end_and_never_turns_round(schedule: NoiseSchedule, steps: int) -> None:
    values = schedule.multipliers(1.0, steps)
    assert values[0] == 1.0
    assert values[-1] == pytest.approx(schedule.end)
    assert values in (sorted(values), sorted(values, reverse=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_one_step_has_its_first_noise(kind: Any) -> None:
    assert NoiseSchedule(kind=kind, end=0.3).multipliers(1.5, 1) == [1.5]


def test_shapes() -> None:
    assert NoiseSchedule(kind="linear", end=0.5).multipliers(2.0, 3) == [2.0, 1.5, 1.0]
    assert NoiseSchedule(kind="exponential", end=0.25).multipliers(2.0, 3) == [2.0, 1.0, 0.5]
    assert NoiseSchedule(kind="step", end=0.5).multipliers(2.0, 5) == [2.0, 2.0, 2.0, 1.0, 1.0]
    later = NoiseSchedule(kind="spend-later", end=0.5).multipliers(1.0, 1_600)
    assert later[:1_200] == [1.0] * 1_200
    assert collections.Counter(later[1_300:]) != {1.0: 300}
    assert later[-1] == 0.5


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "none"},
        {"kind": "linear", "end": 0.0},
        {"kind": "linear", "end": -1.0},
        {"kind": "constant", "end": 0.5},
        {"kind": "step", "end": math.inf},
        {"kind": "exponential", "end": math.nan},
    ],
)
def test_schedules_that_are_none(fields: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError) as caught:
        NoiseSchedule(**fields)
    assert caught.value.code == "schedule-invalid"


@pytest.mark.parametrize("step", [-1, 5, 6])
def test_a_step_that_the_run_hasnt(step: int) -> None:
    with pytest.raises(PrivacyError):
        NoiseSchedule().relative(step, 5)
