"""The benchmark of private training measures what it says: the modes take the same step, and figures are ratios."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import private_training
from benchmarks.report import Report


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes no time."""
    monkeypatch.setattr(private_training, "WIDTH", 64)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("mode", private_training.MODES[1:])
def test_every_mode_takes_the_step_of_clipped_gradients(mode: str) -> None:
    if mode.startswith("opacus"):
        pytest.importorskip("opacus")
    work, reference = private_training.transformer(4), private_training.transformer(4)
    private_training.make_step(mode, work)()
    parameters = list(reference.model.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for record in range(4):
        gradients = torch.autograd.grad(reference.losses()[record], parameters)
        norm = torch.stack([part.square().sum() for part in gradients]).sum().sqrt()
        for sum_, part in zip(total, gradients, strict=True):
            sum_ += part * (private_training.CLIP / norm).clamp(max=1)
    for after, before, gradient in zip(work.model.parameters(), parameters, total, strict=True):
        assert torch.allclose(after, before - 1e-3 * gradient / 4, rtol=0, atol=1e-7)


def test_plain_step_moves_the_weights() -> None:
    work = private_training.shared(4)
    before = [parameter.clone() for parameter in work.model.parameters()]
    private_training.make_step("non-private", work)()
    assert any(not torch.equal(old, new) for old, new in zip(before, work.model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in work.model.parameters())


def test_ratio_is_that_of_neighbours() -> None:
    assert private_training.ratio([2.0, 6.0, 9.0], [1.0, 2.0, 4.0]) == 2.25
    counted: list[int] = []
    times = private_training.interleaved([lambda: counted.append(0), lambda: counted.append(1)], 3)
    assert counted == [0, 1] * 4
    assert [len(found) for found in times] == [3, 3]


def test_shared_encoder_is_exact() -> None:
    assert private_training.shared_error(private_training.shared(3)) < private_training.EXACT_TARGET


def test_report_without_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_training, "transformer", lambda batch=2: private_training.shared(2))
    report = Report("private_training")
    private_training.step_rows(report, 1, [])
    private_training.noise_rows(report, 1)
    report.finish(tmp_path / "report.json")
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["metric"] for row in rows] == ["non-private step", "private / non-private step", "noise, of a step"]
    assert [row["target"] for row in rows] == [None, private_training.STEP_TARGET, private_training.NOISE_TARGET]
    assert rows[1]["peer"] is None


def test_peak_memory_is_of_a_process_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_training, "peak_mb", lambda mode: {"non-private": 1.5}[mode])
    threads = torch.get_num_threads()
    try:
        private_training.main(["--peak-of", "non-private"])
    finally:
        torch.set_num_threads(threads)
    assert float(capsys.readouterr().out) == 1.5


def test_memory_is_the_median_of_processes_with_their_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tensors have pages of their own the figures are other ones; each ratio is to the base of its settings."""
    usual = {"non-private": [100.0, 90.0, 400.0], "book-keeping": [120.0, 130.0, 140.0]}
    usual["opacus-ghost"] = [260.0, 260.0, 260.0]
    usual[private_training.BY_LAYER] = [110.0, 110.0, 110.0]
    steady = {"non-private": 80.0, "book-keeping": 88.0, private_training.BY_LAYER: 76.0}

    def peak(mode: str, settings: dict[str, str]) -> float:
        return steady[mode] if settings == private_training.STEADY else usual[mode].pop()

    monkeypatch.setattr(private_training, "_peak_of", peak)
    report = Report("private_training")
    private_training.memory_rows(report, 3, ["opacus-ghost"])
    usual["non-private"] = [100.0] * 3
    private_training.further_memory_rows(report, 3)
    values = {row.metric: row.value for row in report.rows}
    assert values == {
        "non-private peak memory": 100.0,
        "private / non-private peak memory": 1.3,
        "opacus-ghost / non-private peak memory": 2.6,
        "clipped by layer / non-private peak memory": 1.1,
        "private / non-private peak memory without fragmentation": 1.1,
        "clipped by layer / non-private peak memory without fragmentation": 0.95,
    }
    ours = report.rows[1]
    assert ours.target == private_training.MEMORY_TARGET and ours.met and ours.ratio == 2.0


def test_processes_get_their_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], *, env: dict[str, str], **options: object) -> subprocess.CompletedProcess[str]:
        seen.append((command, env))
        return subprocess.CompletedProcess(command, 0, stdout="something\n12.5\n")

    monkeypatch.setattr(private_training.subprocess, "run", run)
    assert private_training.peaks(["non-private"], 2, private_training.STEADY) == {"non-private": 12.5}
    assert [command[-2:] for command, _ in seen] == [["--peak-of", "non-private"]] * 2
    assert all(env["MALLOC_MMAP_THRESHOLD_"] == "1048576" and "PATH" in env for _, env in seen)


def test_layers_are_clipped_to_their_shares() -> None:
    """One step, with every layer's gradient cut: none moves by more than its share of the norm."""
    work, reference = private_training.transformer(4), private_training.transformer(4)
    private_training.make_step(private_training.BY_LAYER, work)()
    layers = len({name.rpartition(".")[0] for name, _ in reference.model.named_parameters()})
    for after, before in zip(work.model.parameters(), reference.model.parameters(), strict=True):
        assert 0 < (after - before).norm() <= 1e-3 * private_training.CLIP / layers**0.5 * (1 + 1e-3)
