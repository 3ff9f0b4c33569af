"""``fedloom participant audit-privacy``, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from privacy_mutants import noise_at_half_scale
from typer.testing import CliRunner

from participant.privacy_audit import cases, cli
from participant.privacy_audit.cases import Case
from participant.privacy_audit.verdicts import Finding
from privacy.mechanisms.errors import PrivacyError
from wire import ConfigError

CONFIG = """
[rounds]
count = 2
[privacy]
placement = "PLACEMENT"
epsilon = 6.0
delta = 1e-4
clip_norm = 0.5
[model]
image_size = 8
width = 16
heads = 2
depth = 1
text_buckets = 16
classes = 10
[task]
kind = "classification"
[training]
local_steps = 4
batch_size = 64
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return written(tmp_path, "local")


def written(folder: Path, placement: str) -> Path:
    path = folder / "federation.toml"
    path.write_text(CONFIG.replace("PLACEMENT", placement))
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cases instead of all."""
    monkeypatch.setattr(cases, "short_cases", lambda: iter([Case(), Case(rate=0.2)]))


def run(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(cli.app, list(arguments))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.stdout


def test_a_runs_training(config: Path) -> None:
    code, text = run("--config", str(config), "--data", "digits:1/6", "--canaries", "100", "--steps", "6")
    assert code == 0
    assert "epsilon at least" in text and "epsilon at most" in text
    assert "by the accountant" in text and "95% confidence" in text
    assert "No fault was found." in text
    assert "FAULT" not in text


def test_a_runs_training_as_json(config: Path) -> None:
    code, text = run("--config", str(config), "--data", "digits:1/6", "--canaries", "64", "--steps", "5", "--json")
    body = json.loads(text)
    assert code == 0 and body["good"]
    assert body["steps"] == 5
    assert body["lower"]["epsilon"] <= body["upper"]
    assert {item["name"] for item in body["findings"]} >= {"noise", "fresh", "lattice"}


def test_a_fault_is_an_exit_code(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise_at_half_scale(monkeypatch)
    code, text = run("--config", str(config), "--data", "digits:1/6", "--canaries", "200", "--steps", "8")
    assert code == 6
    assert "FAULT noise: the noise has 0." in text
    assert "Don't train with this." in text


@pytest.mark.usefixtures("quick")
def test_the_installed_software() -> None:
    code, text = run()
    assert code == 0
    assert text.count("ok    ") == 3
    assert "No fault was found." in text


def test_canaries_that_show_too_little_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    weak = Finding(name="power", good=False, measured=0.7, bound=0.8, words="canaries move releases less")
    monkeypatch.setattr(cases, "run_case", lambda case, error: [weak])
    monkeypatch.setattr(cases, "short_cases", lambda: iter([Case()]))
    code, text = run()
    assert code == 0
    assert "note  local\n      power: canaries move releases less" in text


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("form", ["text", "json"])
def test_faulty_software(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    noise_at_half_scale(monkeypatch)
    monkeypatch.setattr(cases, "short_cases", lambda: iter([Case()]))
    code, text = run(*(["--json"] if form == "json" else []))
    assert code == 6
    if form == "text":
        assert "FAULT local" in text and "times its claimed scale" in text
        return
    body = json.loads(text)
    assert not body["good"]
    assert [item["case"] for item in body["cases"]] == ["seeds", "local"]


def test_nothing_to_audit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adds no noise") as caught:
        run("--config", str(written(tmp_path, "off")), "--data", "digits:1/6")
    assert "placement" in caught.value.hint
    with pytest.raises(PrivacyError, match="whole sites"):
        run("--config", str(written(tmp_path, "participant")), "--data", "digits:1/6")


def test_without_a_site_there_are_no_data(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no federation was joined"):
        run("--config", str(config), "--home", str(tmp_path / "none"))


def test_help_names_what_happens() -> None:
    code, text = run("--help")
    assert code == 0
    assert "Nothing leaves it and nothing is spent" in " ".join(text.split())
