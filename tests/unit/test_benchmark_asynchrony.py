"""The benchmark of asynchronous rounds: its runs are those of the platform's machines, and it counts rightly."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from benchmarks import asynchrony
from benchmarks.asynchrony import Pictures, Run, Way, ways
from simulation.speeds import Speeds
from wire import RoundsSpec, SimulationSection


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    generator = np.random.default_rng(0)
    return Pictures(generator.random((200, 784), dtype=np.float32), generator.integers(0, 10, 200))


def run(way: Way, pictures: Pictures, speeds: str = "half-normal") -> Run:
    institutions = [{"name": f"site-{index}", "data": "-"} for index in range(10)]
    section = SimulationSection.model_validate({"institutions": institutions, "speeds": speeds})
    sites = [pictures.take(np.arange(20 * index, 20 * index + 20)) for index in range(10)]
    found = Run(way, sites, pictures, Speeds(section), 0)
    found.go()
    return found


def few(way: Way, count: int, **changes: object) -> Way:
    rounds = RoundsSpec.model_validate({**way.rounds.model_dump(), "count": count, **changes})
    return dataclasses.replace(way, rounds=rounds)


def test_a_buffer_of_everyone_is_the_synchronous_run(pictures: Pictures) -> None:
    synchronous, corrected, *_ = ways()
    one = run(few(synchronous, 3), pictures)
    other = run(few(corrected, 3, buffer_size=10), pictures)
    assert len(one._versions) == 4
    assert all(np.array_equal(left, right) for left, right in zip(one._versions, other._versions, strict=True))
    assert one.curve == other.curve
    assert one.now_s == other.now_s


def test_a_smaller_buffer_makes_as_many_updates_in_less_time(pictures: Pictures) -> None:
    synchronous, corrected, plain, whole = ways()
    runs = [run(few(synchronous, 3), pictures), *(run(few(way, 6), pictures) for way in (corrected, plain, whole))]
    assert [len(item.curve) for item in runs] == [3, 3, 3, 3]
    assert all(item.now_s < runs[0].now_s for item in runs[1:])
    assert len({item._versions[-1].tobytes() for item in runs}) == 4


def test_a_goal_is_reached_when_three_evaluations_in_a_row_are_above_it(pictures: Pictures) -> None:
    found = run(few(ways()[0], 1), pictures)
    found.curve = [(1.0, 0.9), (2.0, 0.7), (3.0, 0.8), (4.0, 0.85), (5.0, 0.9), (6.0, 0.1)]
    assert found.reached(0.8) == 3.0
    assert found.reached(0.86) == math.inf


def test_times_are_compared_on_the_same_trace() -> None:
    chosen = "asynchronous, ca2fl"
    times = {"synchronous": [10.0, 20.0, 40.0], chosen: [5.0, 20.0, math.inf]}
    finals = {"synchronous": [0.8, 0.8, 0.8], chosen: [0.79, 0.79, 0.79]}
    rows = {(row.case, row.metric): row for row in asynchrony.rows(times, finals)}
    assert rows[chosen, "time to 0.80 / synchronous, median"].value == 1.0
    assert rows[chosen, "time to 0.80 / synchronous, median"].met is False
    assert rows[chosen, "runs that never got there"].value == 1
    assert rows[chosen, "final accuracy lost, mean"].value == pytest.approx(1.0)
