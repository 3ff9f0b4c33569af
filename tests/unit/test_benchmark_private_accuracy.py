"""The benchmark of accuracy under a budget: its configurations promise what it says, and its rows say what was run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import simulation.run
from benchmarks import private_accuracy
from benchmarks.kept import Kept
from benchmarks.private_accuracy import FULL, QUICK, Run, configuration, measure, multiplier, total_noise
from benchmarks.report import Report
from coordinator.planning import make_plan
from core_model import LearningConfig, initial_checkpoint
from participant.privacy import site_plan
from privacy.accounting.events import Unit
from wire import FederationConfig, RunPlan, validate

ACCURACY = {"pooled": 90.0, "shared": 88.0, "local": 86.0, "off": 92.0}


def plan_of(config: FederationConfig, folder: Path) -> RunPlan:
    learning = validate(LearningConfig, config.learning(), "test")
    initial_checkpoint(learning, 0, folder / "model")
    return make_plan(config.with_learning(learning.model_dump(mode="json")), "clothes-1", folder / "model", ())


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[FederationConfig]:
    """What was simulated; scores depend on the place, and on the run by half a point."""
    seen: list[FederationConfig] = []

    def simulate(config: FederationConfig) -> Run:
        seen.append(config)
        pooled = len(config.simulation.institutions) == 1
        place = "pooled" if pooled else config.privacy.placement
        return Run(ACCURACY[place] + config.rounds.seed / 2, 0.25, 2.0)

    monkeypatch.setattr(private_accuracy, "simulated", simulate)
    monkeypatch.setattr(private_accuracy, "multiplier", lambda place, epsilon, setting: 4.0 / epsilon)
    return seen


@pytest.mark.parametrize("place", private_accuracy.PLACES)
def test_noise_is_what_the_sites_plan(place: private_accuracy.Place, tmp_path: Path) -> None:
    config = configuration(place, 3.0, 0, FULL)
    plan = plan_of(config, tmp_path)
    sites = len(config.simulation.institutions)
    records = private_accuracy.PICTURES // sites
    training = LearningConfig.model_validate(plan.learning).training
    site = site_plan(
        plan,
        unit=Unit.RECORD,
        units=records,
        records=records,
        batch_size=training.batch_size,
        steps_per_round=training.steps(records),
        dimension=plan.initial.dimension,
        layers=1,
        group_factor=1,
    )
    assert site.steps == FULL.steps and site.sampling_rate == private_accuracy.RATE
    assert site.multiplier == pytest.approx(multiplier(place, 3.0, FULL), rel=1e-3)
    assert config.privacy.delta <= 1 / (10 * records) * (1 + 1e-12)
    share = site.step(0).share_multiplier if place == "shared" else site.multiplier
    assert total_noise(place, 3.0, FULL) == pytest.approx(math.sqrt(sites) * share, rel=1e-3)


def test_all_pictures_are_shared_out() -> None:
    parts = [item.data for item in configuration("local", 1.0, 0, FULL).simulation.institutions]
    assert parts[9] == "fashion-mnist:10/10?features=scattering" and len(set(parts)) == 10
    (pooled,) = configuration("pooled", 1.0, 0, FULL).simulation.institutions
    assert pooled.data == "fashion-mnist:1/1?features=scattering"
    (quick,) = configuration("pooled", 1.0, 0, QUICK).simulation.institutions
    assert quick.data == "fashion-mnist:1/10?features=scattering"


def test_more_noise_makes_smaller_steps() -> None:
    assert private_accuracy.step_size(1.0) == 30.0
    assert private_accuracy.step_size(10.0) == 10.0


def test_rows_hold_means_and_spreads_against_their_targets(simulated: list[FederationConfig]) -> None:
    report = Report("private_accuracy")
    measure(report, FULL, Kept(None, private_accuracy.simulated, Run))
    assert len(simulated) == 3 * (2 + 3 * len(FULL.epsilons))
    rows = {(row.case, row.metric): row for row in report.rows}
    pooled = rows["pooled, epsilon 3", "accuracy"]
    assert pooled.value == 90.5 and pooled.target == 89.7 and pooled.met is True
    assert rows["pooled, epsilon 3", "standard deviation, 3 runs"].value == 0.5
    kept = rows["federated, shared noise, epsilon 1", "accuracy / without privacy"]
    assert kept.value == pytest.approx(100 * 88.5 / 92.5) and kept.target == 92.0
    assert rows["federated, local noise, epsilon 1", "accuracy / without privacy"].target is None
    assert rows["federated, local noise, epsilon 0.5", "epsilon in the ledger"].met is True
    assert {row.case for row in report.rows if row.target is not None and row.metric == "accuracy"} == {
        f"{private_accuracy.NAMES[place]}, epsilon {epsilon:g}" for place, epsilon in private_accuracy.TARGETS
    }


def test_a_stopped_benchmark_goes_on(simulated: list[FederationConfig], tmp_path: Path) -> None:
    kept = tmp_path / "runs.jsonl"
    measure(Report("one"), QUICK, Kept(kept, private_accuracy.simulated, Run))
    done = len(simulated)
    report = Report("two")
    measure(report, QUICK, Kept(kept, private_accuracy.simulated, Run))
    assert len(simulated) == done == len(kept.read_text().splitlines()) == 4
    assert all(row.target is None for row in report.rows if row.metric != "epsilon in the ledger")


def test_main_writes_rows_and_figure(simulated: list[FederationConfig], tmp_path: Path) -> None:
    json_path, figure = tmp_path / "rows.json", tmp_path / "figure.svg"
    private_accuracy.main(["--quick", "--json", str(json_path), "--figure", str(figure)])
    assert len(json.loads(json_path.read_text())["rows"]) == 4 * 2 + 3 * 2 + 2
    drawn = figure.read_text()
    assert all(name in drawn for name in ("shared noise", "local noise", "federated, no privacy", "epsilon"))


def test_a_run_is_a_simulation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path))
    monkeypatch.setattr(simulation.run, "_processes", lambda wanted: 0)
    config = configuration("shared", 3.0, 0, QUICK)
    tables = config.model_dump(mode="python")
    tables["model"]["inputs"] = 324
    tables["rounds"] |= {"count": 2, "min_participants": 4, "min_updates": 3}
    tables["simulation"]["institutions"] = [
        {"name": f"site-{k}", "data": f"digits:{k}/4?features=scattering"} for k in range(1, 5)
    ]
    found = private_accuracy.simulated(FederationConfig.model_validate(tables))
    assert 0 < found.accuracy <= 100 and 0 < found.spent <= 3.0 and found.seconds > 0
