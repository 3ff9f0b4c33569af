"""The ``fedloom`` command as a user meets it: help, mistakes, exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fedloom


def run(*arguments: str, folder: Path, root: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import fedloom; sys.exit(fedloom.main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


COMMANDS = [
    ["simulate"],
    ["init"],
    *(["coordinator", name] for name in ("start", "invite", "members", "status", "watch", "revoke", "export", "stop")),
    *(["federation", name] for name in ("init", "certify", "remove", "show")),
    *(["participant", name] for name in ("join", "run", "status")),
    *(["model", name] for name in ("init", "show")),
    *(["data", name] for name in ("list", "prepare")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_json(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert fedloom.main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert len(text.splitlines()) > 5


def test_a_misspelt_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert fedloom.main(["simulat"]) == 2
    assert "Did you mean 'simulate'" in capsys.readouterr().err


def test_init_writes_a_file_that_can_be_read_back_and_does_not_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "federation.toml"
    assert fedloom.main(["init", str(path)]) == 0
    assert "[training]" in path.read_text()
    capsys.readouterr()
    assert fedloom.main(["init", str(path)]) == 3
    assert "--force" in capsys.readouterr().err
    assert fedloom.main(["init", str(path), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(path)}


def test_what_init_writes_is_the_default(tmp_path: Path) -> None:
    from core_model.config import LearningConfig
    from wire import FederationConfig, load_federation, validate

    path = tmp_path / "federation.toml"
    fedloom.main(["init", str(path)])
    written = load_federation(path)
    assert validate(LearningConfig, written.learning(), "file") == LearningConfig()
    assert written.rounds == FederationConfig().rounds
    assert written.aggregation == FederationConfig().aggregation


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[rounds]\ncuont = 3\n", ["[rounds]", "cuont", "count"]),
        ("[round]\ncount = 3\n", ["[round]", "rounds"]),
        ("[training]\nlearning_rat = 0.1\n", ["[training]", "learning_rat", "learning_rate"]),
        ("[rounds]\ncount = 'three'\n", ["[rounds] count", "three"]),
        ("[rounds\n", ["line 1"]),
    ],
)
def test_a_mistake_in_the_file_names_key_section_and_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str]
) -> None:
    path = tmp_path / "federation.toml"
    path.write_text(text)
    for command in (["simulate", "--config", str(path)], ["coordinator", "start", "--config", str(path)]):
        assert fedloom.main(command) == 3
        said = capsys.readouterr().err
        assert all(word in said for word in words), said
        assert "Traceback" not in said


@pytest.mark.parametrize("mode", ["secure", "plain"])
def test_a_promise_that_can_never_be_kept_is_refused_before_anything_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    path = tmp_path / "federation.toml"
    path.write_text(f'[aggregation]\nmode = "{mode}"\n[merging]\nrule = "robust"\nf = 1\n')
    for command in (["simulate", "--config", str(path)], ["coordinator", "start", "--config", str(path)]):
        assert fedloom.main(command) == 3
        said = capsys.readouterr()
        assert 'rule = "robust"' in said.err
        assert "min_participants" in said.err or "min_updates" in said.err
        assert "Traceback" not in said.err
        assert "listening" not in said.out
    assert not (tmp_path / "fedloom-state" / "coordinator.sqlite").exists()


def test_errors_are_json_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedloom.main(["coordinator", "status", "--config", str(tmp_path / "none.toml"), "--json"]) == 3
    body = json.loads(capsys.readouterr().out)
    assert body["error"]["code"] == "config"
    assert "fedloom init" in body["error"]["hint"]


def test_a_coordinator_that_is_not_running_is_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "federation.toml"
    path.write_text("")
    assert fedloom.main(["coordinator", "status", "--config", str(path)]) == 3
    assert "coordinator start" in capsys.readouterr().err


def test_a_truncated_token_is_told_from_a_wrong_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path / "site")]
    assert fedloom.main(["participant", "join", "fedloom1-abc", "--data", "digits", *home]) == 4
    assert "token-malformed" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_running_before_joining_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedloom.main(["participant", "run", "--home", str(tmp_path / "site")]) == 3
    assert "fedloom participant join" in capsys.readouterr().err


def test_a_port_in_use_is_said_plainly(tmp_path: Path, repository: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "federation.toml").write_text(f"[coordinator]\nport = {port}\nenrolment_port = 0\n")
        done = run("coordinator", "start", folder=tmp_path, root=repository)
    assert done.returncode == 7
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fedloom._COMMANDS, "init", ("tests.unit.nowhere:app", "broken"))
    with pytest.raises(ModuleNotFoundError):
        fedloom.main(["init"])
