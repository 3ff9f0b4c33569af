"""The benchmark of private training measures what it says: the modes take the same step, and figures are ratios."""

from __future__ import annotations

import json
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
