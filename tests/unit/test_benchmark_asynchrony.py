"""The benchmark of asynchronous rounds: its runs are those of the platform's machines, and it counts rightly."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.asynchronous_run import CA2FL, DEFAULT_SERVER, DROP, FEDBUFF, PLAIN, WAIT, Case, Outcome, Pictures, Run
from benchmarks.asynchrony import FULL, Setting, add_rows, draw, grid, loss, measure
from benchmarks.kept import Kept
from benchmarks.report import Report
from simulation.speeds import Speeds
from wire import RoundsSpec, SimulationSection


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    generator = np.random.default_rng(0)
    return Pictures(generator.random((200, 784), dtype=np.float32), generator.integers(0, 10, 200))


def made(way: str, pictures: Pictures, speeds: str = "half-normal", updates: int = 30, **changes: object) -> Run:
    institutions = [{"name": f"site-{index}", "data": "-"} for index in range(10)]
    section = SimulationSection.model_validate({"institutions": institutions, "speeds": speeds})
    sites = [pictures.take(np.arange(20 * index, 20 * index + 20)) for index in range(10)]
    case = Case(way=way, kind=speeds, seed=0, server=DEFAULT_SERVER[way], updates=updates)
    rounds = RoundsSpec.model_validate({**case.rounds().model_dump(), **changes})
    return Run(case, sites, pictures, Speeds(section), rounds)


def test_a_buffer_of_everyone_is_the_synchronous_run(pictures: Pictures) -> None:
    one = made(WAIT, pictures)
    other = made(FEDBUFF, pictures, mode="asynchronous", count=3, buffer_size=10, correction="ca2fl")
    assert one.go() == other.go()
    assert len(one.versions) == 4
    assert all(np.array_equal(left, right) for left, right in zip(one.versions, other.versions, strict=True))


def test_a_smaller_buffer_makes_as_many_updates_in_less_time(pictures: Pictures) -> None:
    runs = [made(way, pictures) for way in (WAIT, CA2FL, PLAIN, FEDBUFF)]
    found = [item.go() for item in runs]
    assert [item.merged for item in found] == [30, 30, 30, 30]
    assert all(item.times[-1] < found[0].times[-1] for item in found[1:])
    assert len({item.versions[-1].tobytes() for item in runs}) == 4


def test_dropping_the_slowest_makes_rounds_of_eight_and_throws_two_trainings_away(pictures: Pictures) -> None:
    run = made(DROP, pictures, "stragglers", updates=24)
    found = run.go()
    assert (found.merged, found.trainings) == (24, 30)
    assert run.now_s == 3.0, "nobody waits for the two that take four times as long"


def outcome(*accuracies: float, every: float = 1.0) -> Outcome:
    times = [every * (index + 1) for index in range(len(accuracies))]
    return Outcome(times, list(accuracies), merged=10 * len(times), trainings=20 * len(times))


def test_a_goal_is_reached_when_three_evaluations_in_a_row_are_above_it() -> None:
    found = outcome(0.9, 0.7, 0.8, 0.85, 0.9, 0.1)
    assert found.reached(0.8) == 3.0
    assert found.reached(0.86) == math.inf


def test_times_are_compared_on_the_same_speeds_and_seed() -> None:
    good, late, never = outcome(*[0.9] * 4), outcome(0.1, *[0.9] * 3), outcome(*[0.1] * 4)
    slow = outcome(*[0.9] * 4, every=2.0)
    setting = dataclasses.replace(FULL, kinds=("half-normal",), seeds=(0, 1, 2))
    report = Report("asynchrony")
    found = {(WAIT, "half-normal"): [slow, good, never], (CA2FL, "half-normal"): [good, late, never]}
    add_rows(report, "tuned", found, setting, (0.80,), judged=True)
    rows = {row.metric: row for row in report.rows if row.case.endswith(CA2FL)}
    assert rows["time to 0.80 / waiting for all, least"].value == 0.5
    assert rows["time to 0.80 / waiting for all, most"].value == 2.0
    assert rows["time to 0.80 / waiting for all, median"].value == 1.0
    assert rows["time to 0.80 / waiting for all, median"].met is False
    assert rows["not faster to 0.80"].value == 2, "where neither gets there, neither is faster"
    assert rows["never reached 0.80"].value == 1
    assert rows["final accuracy lost, mean"].value == pytest.approx(100 * 0.2 / 3)
    assert rows["trainings thrown away"].value == 50.0


def test_tuning_prefers_the_earlier_and_counts_what_never_gets_there() -> None:
    early, late, never = outcome(*[0.9] * 4), outcome(0.1, *[0.9] * 3), outcome(*[0.1] * 4)
    assert loss(early) < loss(late) < loss(never) == 2 * math.log(8.0)


class Ready:
    """Stands in for the runs: the larger the server's step, the sooner it is there, up to 1."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def __call__(self, case: Case) -> Outcome:
        self.cases.append(case)
        return outcome(*[0.9] * 5, every=10.0 if case.server > 1 or case.local != 0.2 else 1 / case.server)


def test_each_way_is_tuned_on_seeds_and_pictures_of_their_own_and_a_stopped_benchmark_goes_on(tmp_path: Path) -> None:
    setting: Setting = dataclasses.replace(FULL, kinds=("stragglers",), seeds=(0, 1))
    report, ready, path = Report("asynchrony"), Ready(), tmp_path / "runs.jsonl"
    measure(report, setting, Kept(path, ready, Outcome), 1)
    tuning = [case for case in ready.cases if case.validated]
    assert {case.seed for case in tuning}.isdisjoint(setting.seeds)
    assert len(tuning) == 4 * len(grid(WAIT, "stragglers", setting)) == 4 * 6 * 2 * 3
    rows = {(row.case, row.metric): row.value for row in report.rows}
    for way in (WAIT, DROP, CA2FL, PLAIN):
        assert rows[f"tuned; stragglers; {way}", "server's step that was chosen"] == 1.0
        assert rows[f"tuned; stragglers; {way}", "learning rate that was chosen"] == 0.2
    again = Ready()
    kept = Kept(path, again, Outcome)
    measure(Report("asynchrony"), setting, kept, 1)
    assert again.cases == []
    assert rows[f"skewed; stragglers; {FEDBUFF}", "never reached 0.70"] == 0
    assert {case.alpha for case in ready.cases if not case.validated} == {0.5, 0.1}
    draw(setting, kept, tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    assert all(way in drawn for way in (WAIT, DROP, CA2FL, PLAIN, FEDBUFF))
