"""A benchmark's runs outlive it, and several go on at the same time."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

from benchmarks.kept import Kept
from wire import FederationConfig


@dataclasses.dataclass(frozen=True)
class Found:
    seed: int
    process: int
    success: float


def simulated(config: FederationConfig) -> Found:
    return Found(config.rounds.seed, os.getpid(), math.nan)


def config(seed: int) -> FederationConfig:
    return FederationConfig.model_validate({"rounds": {"seed": seed}})


def test_runs_are_kept_in_the_file_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    first = Kept(path, simulated, Found)
    assert first.run(config(3)).seed == 3
    assert first.run(config(3)) is first.run(config(3))
    again = Kept(path, lambda config: Found(-1, 0, 0.0), Found)
    assert again.run(config(3)).seed == 3 and math.isnan(again.run(config(3)).success)
    assert again.run(config(4)).seed == -1
    assert len(path.read_text().splitlines()) == 2


def test_several_at_a_time_in_processes_of_their_own(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "runs.jsonl", simulated, Found)
    kept.run(config(0))
    kept.run_all([config(seed) for seed in (0, 1, 2, 1)], 2)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 3
    assert kept.run(config(0)).process == os.getpid() not in {kept.run(config(seed)).process for seed in (1, 2)}


def test_one_at_a_time_in_this_process() -> None:
    kept = Kept(None, simulated, Found)
    kept.run_all([config(seed) for seed in (5, 6)], 1)
    assert [kept.run(config(seed)).process for seed in (5, 6)] == [os.getpid()] * 2
