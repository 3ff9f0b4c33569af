"""What accuracy a privacy budget buys: Fashion-MNIST, fixed features, a linear model, noise in three places.

    python -m benchmarks.private_accuracy [--quick] [--json PATH] [--figure PATH] [--keep PATH]

60,000 training pictures as log-scattering features, which no data entered (``core_model/data/scattering.py``), and
logistic regression on them. Three ways to have the same records protected:

- *pooled*: one institution has all records and adds the noise at each step;
- *shared*: ten institutions with 6,000 records each; each adds a share of the noise, a secure sum carries all of it;
- *local*: the same ten, and each adds all of the noise itself. Nobody has to be trusted.

And both without privacy (*off*), for comparison. Every figure comes from what ``fedloom simulate`` does, with
nothing left out: the sites' own privacy plans, Poisson samples, clipping and integer noise; masks and secure sums for
the ten institutions; a ledger at each site, whose own account of what was spent is among the rows. PLD accounting,
delta = 1 / (10 x records of an institution), add-or-remove one record.

Noise and samples come from the operating system, so that no run can be repeated exactly; a case is run several times
and the rows tell mean and standard deviation. Scores: accuracy on the 10,000 test pictures, which no setting here was
chosen by; see :func:`step_size`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.kept import Kept
from benchmarks.report import Report, Row
from privacy.mechanisms.calibration import noise_multiplier_for
from simulation.run import simulate
from wire import FederationConfig

Place = Literal["pooled", "shared", "local", "off", "pooled, off"]

PLACES: Final[tuple[Place, ...]] = ("pooled", "shared", "local")
SITES: Final = 10
PICTURES: Final = 60_000
RATE: Final = 0.25
MOMENTUM: Final = 0.9
LONGEST_STEP: Final = 30.0
NOISE_OF_STEPS: Final = 100.0
MIN_UPDATES: Final = 7
OFF_STEPS: Final = 10
OFF_BATCH: Final = 256
OFF_LEARNING_RATE: Final = 0.03
SPREAD: Final = "standard deviation, {} runs"
NAMES: Final[dict[str, str]] = {
    "pooled": "pooled",
    "shared": "federated, shared noise",
    "local": "federated, local noise",
    "off": "federated, no privacy",
    "pooled, off": "pooled, no privacy",
}

TARGETS: Final[dict[tuple[str, float], float]] = {
    ("pooled", 3.0): 89.7,
    ("pooled", 1.0): 88.2,
    ("shared", 3.0): 88.0,
    ("shared", 1.0): 85.0,
}
"""Accuracy in per cent."""

KEPT_TARGETS: Final[dict[float, float]] = {3.0: 95.0, 1.0: 92.0}
"""Accuracy with shared noise relative to the same federation's without privacy, in per cent, by epsilon."""

LEDGER_SLACK: Final = 1e-3
"""A ledger shows an upper bound that is quick to compute; the finer one of the plan is lower by less than this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """How much is run.

    Attributes:
        parts: Into how many parts the 60,000 pictures are divided; the first ten are the institutions'.
        steps: Steps of the pooled training; rounds, of one step each, of the private federations.
        runs: Of each case.
        epsilons: Of each place.
        judged: Whether the figures are held against the targets.
    """

    parts: int
    steps: int
    runs: int
    epsilons: tuple[float, ...]
    judged: bool

    @property
    def records(self) -> int:
        """Of an institution."""
        return PICTURES // self.parts

    def delta(self, place: Place) -> float:
        """A tenth of 1 / records of an institution."""
        return 0.1 / (self.records * (SITES if place == "pooled" else 1))


FULL: Final = Setting(parts=SITES, steps=60, runs=3, epsilons=(0.5, 1.0, 3.0, 8.0), judged=True)
QUICK: Final = Setting(parts=10 * SITES, steps=4, runs=1, epsilons=(3.0,), judged=False)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a simulation came to.

    Attributes:
        accuracy: On the test pictures, in per cent.
        spent: The most that an institution's ledger says it has spent; 0 without privacy.
        seconds: Wall time.
    """

    accuracy: float
    spent: float
    seconds: float


# ---- what is run -----------------------------------------------------------------------------------------------------


def multiplier(place: Place, epsilon: float, setting: Setting) -> float:
    """The noise multiplier that the budget asks for."""
    return noise_multiplier_for(epsilon, setting.delta(place), RATE, setting.steps)


def total_noise(place: Place, epsilon: float, setting: Setting) -> float:
    """Standard deviation of the noise in the sum over all institutions' records, in clipping norms.

    Shared noise is sized for the smallest sum that may be published, less the sites taken to be corrupt; when all ten
    are in the sum it is larger than the budget asks for. Local noise is all there ten times.
    """
    sigma = multiplier(place, epsilon, setting)
    if place == "pooled":
        return sigma
    honest = FederationConfig().privacy.honest(SITES, *_corrupt()) if place == "shared" else 1
    return sigma * math.sqrt(SITES / honest)


def step_size(noise: float) -> float:
    """How far all steps together move by one clipped gradient, with momentum: ``learning_rate / (1 - momentum)``.

    Less where there is more noise: ``min(30, 100 / noise)``. The rule, the number of steps, sampling rate and momentum
    were chosen with 50,000 of the training pictures, scored on the other 10,000; the test pictures weren't looked at.
    That choice is not in the budget: on data of one's own it would have to be paid for, or made on public data.
    """
    return min(LONGEST_STEP, NOISE_OF_STEPS / noise)


def configuration(place: Place, epsilon: float, run: int, setting: Setting) -> FederationConfig:
    """The ``federation.toml`` of a case.

    With one step a round, momentum is the coordinator's; the pooled training is one round of all its steps.
    """
    pooled = place.startswith("pooled")
    names = {"one": f"1/{setting.parts // SITES}"} if pooled else _parts(setting)
    tables: dict[str, Any] = {
        "federation": {"name": "clothes"},
        "rounds": {
            "count": 1 if pooled else setting.steps,
            "min_participants": len(names),
            "min_updates": 1 if pooled else MIN_UPDATES,
            # The first version and the last: scores in between would take longer than the training.
            "evaluate_every": setting.steps,
            # Shuffles where nothing is private. Elsewhere it only tells the runs apart.
            "seed": run,
        },
        "aggregation": {"mode": "plain" if pooled else "secure"},
        "model": {"kind": "linear", "inputs": 3_969, "classes": 10},
        "task": {"kind": "classification"},
        "simulation": {
            "workers": 1,
            "compare_local": False,
            "institutions": [
                {"name": name, "data": f"fashion-mnist:{part}?features=scattering"} for name, part in names.items()
            ],
        },
    }
    return FederationConfig.model_validate(tables | _training(place, epsilon, setting, tables["aggregation"]))


def _parts(setting: Setting) -> dict[str, str]:
    return {f"site-{k}": f"{k}/{setting.parts}" for k in range(1, SITES + 1)}


def _corrupt() -> tuple[int, int]:
    secure = FederationConfig().secure_aggregation
    return secure.corrupt_percent, secure.min_cohort


def _training(place: Place, epsilon: float, setting: Setting, aggregation: dict[str, Any]) -> dict[str, Any]:
    """The tables [aggregation], [training] and [privacy]."""
    plain = {"optimizer": "sgd", "warmup_steps": 0, "weight_decay": 0.0}
    if place.endswith("off"):
        # A federation's usual way: several steps at each institution, then the mean.
        steps, batch = (OFF_STEPS, OFF_BATCH) if place == "off" else (OFF_STEPS * setting.steps, OFF_BATCH * SITES)
        usual = {"learning_rate": OFF_LEARNING_RATE, "momentum": MOMENTUM, "clip_norm": 0.0}
        training = plain | usual | {"local_steps": steps, "batch_size": batch}
        return {"aggregation": aggregation, "training": training}
    rate = (1 - MOMENTUM) * step_size(total_noise(place, epsilon, setting))
    privacy = {
        "placement": "shared" if place == "shared" else "local",
        "epsilon": epsilon,
        "delta": setting.delta(place),
        "clip_norm": 1.0,
        # Every record's gradient is brought to about the same length: nothing to tune, and nothing is learnt late.
        "clipping": "automatic",
        "sampling_rate": RATE,
        "max_chunk": 2_048,
        "scores": True,
    }
    training = plain | {"schedule": "constant", "batch_size": round(RATE * setting.records)}
    if place == "pooled":
        training |= {"local_steps": setting.steps, "learning_rate": rate, "momentum": MOMENTUM}
    else:
        training |= {"local_steps": 1, "learning_rate": 1.0, "momentum": 0.0}
        aggregation = aggregation | {"learning_rate": rate, "momentum": MOMENTUM}
    return {"aggregation": aggregation, "training": training, "privacy": privacy}


def simulated(config: FederationConfig) -> Run:
    """Run ``fedloom simulate`` on a configuration."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        record = simulate(config, Path(folder), lambda event: None, command="benchmarks.private_accuracy").record
    accuracy = {scores["accuracy"] for scores in record.final.values()}
    if len(accuracy) != 1 or len(record.final) != len(config.simulation.institutions):
        raise RuntimeError(f"the institutions hold one model and one test set, but score {sorted(accuracy)}")
    spent = max((budget.spent for budget in record.budgets), default=0.0)
    return Run(100 * accuracy.pop(), spent, time.perf_counter() - began)


# ---- rows and figure -------------------------------------------------------------------------------------------------


def case_name(place: Place, epsilon: float = 0.0) -> str:
    """What a row is called."""
    return f"{NAMES[place]}, epsilon {epsilon:g}" if epsilon else NAMES[place]


def measure(report: Report, setting: Setting, kept: Kept[FederationConfig, Run]) -> None:
    """Run all cases and add their rows; the cases with targets first."""
    base = _rows(report, "off", 0.0, setting, kept)
    for epsilon in sorted(setting.epsilons, key=lambda epsilon: (epsilon not in KEPT_TARGETS, epsilon)):
        for place in PLACES:
            mean = _rows(report, place, epsilon, setting, kept)
            if place != "pooled":
                target = KEPT_TARGETS.get(epsilon) if setting.judged and place == "shared" else None
                kept_share = Row(
                    case=case_name(place, epsilon),
                    metric="accuracy / without privacy",
                    value=100 * mean / base,
                    unit="%",
                    better="higher",
                    target=target,
                )
                _add(report, kept_share)
    if setting.judged:
        _rows(report, "pooled, off", 0.0, setting, kept)


def _rows(report: Report, place: Place, epsilon: float, setting: Setting, kept: Kept[FederationConfig, Run]) -> float:
    """Run a case, add its rows and return the mean accuracy in per cent."""
    runs = [kept.run(configuration(place, epsilon, run, setting)) for run in range(setting.runs)]
    mean = statistics.mean(run.accuracy for run in runs)
    row = functools.partial(Row, case=case_name(place, epsilon))
    target = TARGETS.get((place, epsilon)) if setting.judged else None
    _add(report, row(metric="accuracy", value=mean, unit="%", better="higher", target=target))
    if len(runs) > 1:
        spread = statistics.stdev(run.accuracy for run in runs)
        _add(report, row(metric=SPREAD.format(len(runs)), value=spread, unit="%", better="lower"))
    if epsilon:
        sigma, spent = multiplier(place, epsilon, setting), max(run.spent for run in runs)
        _add(report, row(metric="noise multiplier", value=sigma, unit="", better="lower"))
        most = epsilon * (1 + LEDGER_SLACK)
        _add(report, row(metric="epsilon in the ledger", value=spent, unit="", better="lower", target=most))
    seconds = statistics.mean(run.seconds for run in runs)
    _add(report, row(metric="time of a run", value=seconds, unit="s", better="lower"))
    return mean


def _add(report: Report, row: Row) -> None:
    report.add(row)
    print(f"{row.case}: {row.metric} {row.value:.4g} {row.unit}".rstrip(), flush=True)


def draw(report: Report, path: Path) -> None:
    """Accuracy over epsilon, one line a place with its spread, what the federation reaches without privacy dashed."""
    import matplotlib
    from matplotlib.figure import Figure

    found = {(row.case, row.metric.partition(",")[0]): row.value for row in report.rows}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": report.name, "font.size": 11}):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for place, marker in zip(PLACES, "osD", strict=True):
            epsilons = sorted(e for e in FULL.epsilons if (case_name(place, e), "accuracy") in found)
            means = [found[case_name(place, e), "accuracy"] for e in epsilons]
            spreads = [found.get((case_name(place, e), SPREAD.partition(",")[0]), 0.0) for e in epsilons]
            axes.errorbar(epsilons, means, spreads, marker=marker, markersize=5, capsize=3, label=NAMES[place])
        axes.axhline(found[NAMES["off"], "accuracy"], color="0.4", linestyle="--", label=NAMES["off"])
        axes.set_xscale("log")
        axes.set_xticks(FULL.epsilons, [f"{epsilon:g}" for epsilon in FULL.epsilons])
        axes.minorticks_off()
        axes.set_xlabel("epsilon of the whole run, for one record")
        axes.set_ylabel("test accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.private_accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the records, 4 rounds, one run, one epsilon; under 60 s"
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--figure", type=Path, help="draw accuracy over epsilon here (.svg or .png)")
    parser.add_argument("--keep", type=Path, help="keep finished runs in this file, and go on from what it holds")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    report = Report("private_accuracy")
    measure(report, QUICK if options.quick else FULL, Kept(options.keep, simulated, Run))
    report.finish(options.json)
    if options.figure is not None:
        draw(report, options.figure)


if __name__ == "__main__":
    main()
