"""What a federation is for: finding pictures that an institution doesn't have, and the others do.

    python -m benchmarks.retrieval [--quick] [--json PATH]

The emoji federation, defaults of the demonstration. Three ways to spend the same number of steps at each institution:
*federated* (plain averaging of differences), *alone* (each on its own data), and *pooled* (one model on everybody's
data, as many steps as all institutions together: what no federation could do). Score: text to image, on the pairs that
an institution lacks ("missing", 220 pictures, chance 0.5 %) and on concepts that nobody has ("unseen", 160 pictures),
mean over institutions.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.report import Report, Row
from core_model import LearningConfig
from core_model.data.emoji import INSTITUTIONS
from core_model.manifest import Vector

ROUNDS: Final = 30
QUICK_ROUNDS: Final = 2
METRICS: Final = ("missing_r_at_1", "missing_r_at_10", "unseen_r_at_1", "unseen_r_at_10")
TARGET_RATIO: Final = 3.0
"""Federated R@1 on missing pairs over that of institutions alone, means over institutions."""

Scores = dict[str, float]


def main() -> None:
    """Train three ways, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds, no pooled training; ends within 60 s")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config = LearningConfig()
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    report = Report("retrieval")
    context = multiprocessing.get_context("spawn")
    workers = min(len(INSTITUTIONS), len(os.sched_getaffinity(0)))
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        measure(pool, config, rounds, report, pooled=not arguments.quick)
    report.finish(arguments.json)


def measure(
    pool: concurrent.futures.ProcessPoolExecutor, config: LearningConfig, rounds: int, report: Report, *, pooled: bool
) -> None:
    """Run the cases and add their rows."""
    initial = pool.submit(_initial, config).result()
    began = time.perf_counter()
    federated = federate(pool, config, initial, rounds)
    _add(report, pool, config, "federated", [federated] * len(INSTITUTIONS), time.perf_counter() - began)
    began = time.perf_counter()
    jobs = [pool.submit(_alone, config, name, initial, rounds) for name in INSTITUTIONS]
    _add(report, pool, config, "alone", [job.result() for job in jobs], time.perf_counter() - began)
    if pooled:
        began = time.perf_counter()
        longer = config.model_copy(
            update={"training": config.training.model_copy(update={"local_steps": 4 * config.training.local_steps})}
        )
        vector = pool.submit(_alone, longer, "all", initial, rounds).result()
        _add(report, pool, config, "pooled", [vector] * len(INSTITUTIONS), time.perf_counter() - began)
    values = {row.case: row.value for row in report.rows if row.metric == "missing_r_at_1"}
    ratio = values["federated"] / max(values["alone"], 100 / 220)
    report.add(
        Row(
            case="federated / alone",
            metric="missing_r_at_1",
            value=ratio,
            unit="x",
            better="higher",
            target=None if not pooled else TARGET_RATIO,
        )
    )


def federate(
    pool: concurrent.futures.ProcessPoolExecutor, config: LearningConfig, initial: Vector, rounds: int
) -> Vector:
    """Rounds of plain averaging weighted by examples, and the last version float32 [d]."""
    version = initial
    for number in range(1, rounds + 1):
        jobs = [pool.submit(_train, config, name, version, number, rounds) for name in INSTITUTIONS]
        updates = [job.result() for job in jobs]
        weights = np.array([examples for _, examples in updates], np.float64)
        mean = sum(w * u.astype(np.float64) for w, (u, _) in zip(weights / weights.sum(), updates, strict=True))
        version = (version + mean).astype(np.float32)
    return version


def _add(
    report: Report,
    pool: concurrent.futures.ProcessPoolExecutor,
    config: LearningConfig,
    case: str,
    versions: list[Vector],
    seconds: float,
) -> None:
    jobs = [pool.submit(_score, config, name, v) for name, v in zip(INSTITUTIONS, versions, strict=True)]
    scores = [job.result() for job in jobs]
    for name, score in zip(INSTITUTIONS, scores, strict=True):
        value = 100 * score["missing_r_at_1"]
        report.add(Row(case=f"{case}, {name}", metric="missing_r_at_1", value=value, unit="%", better="higher"))
    for metric in METRICS:
        value = 100 * statistics.mean(score[metric] for score in scores)
        report.add(Row(case=case, metric=metric, value=value, unit="%", better="higher"))
    report.add(Row(case=case, metric="training time", value=seconds, unit="s", better="lower"))


# What runs in the worker processes. Each keeps the trainers that it was asked for.


@functools.lru_cache(maxsize=8)
def _trainer(table: str, name: str) -> object:
    from participant.training import LocalTrainer

    return LocalTrainer(LearningConfig.model_validate_json(table), f"emoji:{name}", name=name)


def _initial(config: LearningConfig) -> Vector:
    from core_model import initial_checkpoint, read_vector

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        return read_vector(path, initial_checkpoint(config, 0, path))


def _train(config: LearningConfig, name: str, version: Vector, number: int, rounds: int) -> tuple[Vector, int]:
    from participant.training import LocalTrainer

    trainer = _trainer(config.model_dump_json(), name)
    assert isinstance(trainer, LocalTrainer)
    result = trainer.train(
        version,
        seed=0,
        round_number=number,
        rounds=rounds,
        progress=lambda done, total: None,
        cancelled=lambda: False,
    )
    return result.update, result.examples


def _alone(config: LearningConfig, name: str, version: Vector, rounds: int) -> Vector:
    for number in range(1, rounds + 1):
        version = version + _train(config, name, version, number, rounds)[0]
    return version


def _score(config: LearningConfig, name: str, version: Vector) -> Scores:
    from participant.training import LocalTrainer

    trainer = _trainer(config.model_dump_json(), name)
    assert isinstance(trainer, LocalTrainer)
    return trainer.evaluate(version).metrics


if __name__ == "__main__":
    main()
