"""What a person sees who types the commands: a live display on a terminal, plain lines in a pipe, errors in words."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.deployment import Deployment, configuration, data_of, environment

pytestmark = pytest.mark.timeout(240)


def on_a_terminal(*arguments: str, folder: Path) -> tuple[int, str]:
    """Run a command on a pseudo-terminal; its status and all it showed, without control sequences."""
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedloom", *arguments],
            cwd=folder,
            env={**environment(), "TERM": "xterm-256color", "COLUMNS": "100"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
    finally:
        os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 1 << 16):
            shown += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(master)
    return process.wait(timeout=60), re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())


def test_simulate_shows_progress_and_a_table(tmp_path: Path) -> None:
    config = configuration(tmp_path, participants=2, rounds=2, aggregation="plain")
    config.write_text(config.read_text().replace("compare_local = false", "compare_local = true"))
    status, shown = on_a_terminal("simulate", "--config", str(config), "--workers", "1", folder=tmp_path)
    assert status == 0
    assert "round 2 of 2" in shown
    assert "each alone" in shown
    assert re.search(r"site-1 +\d+\.\d % +\d+\.\d %", shown)
    assert (tmp_path / "fedloom-report" / "report.html").exists()


def test_watch_shows_the_run_to_its_end(tmp_path: Path) -> None:
    config = configuration(tmp_path, participants=1, rounds=2, aggregation="plain")
    with Deployment(tmp_path, config) as federation:
        federation.start_coordinator()
        federation.join("site-0", data={"site-0": data_of(0, 1)}, allow_plain=True)
        federation.start_participant("site-0", "--once")
        status, shown = on_a_terminal("coordinator", "watch", "--config", str(config), folder=tmp_path)
    assert status == 0
    assert "finished" in shown
    assert "site-0 merged" in shown


def test_a_site_whose_data_are_not_there_says_so_and_stops(tmp_path: Path) -> None:
    config = configuration(tmp_path, participants=1, rounds=1, aggregation="plain")
    with Deployment(tmp_path, config) as federation:
        federation.start_coordinator()
        federation.join("site-0", data={"site-0": f"folder:{tmp_path}/nowhere"}, allow_plain=True)
        home = str(federation.home("site-0"))
        done = federation.fedloom("participant", "run", "--home", home, check=False)
    assert done.returncode not in (0, 1)
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_that_names_code_the_site_does_not_allow_is_refused_with_the_setting_to_change(tmp_path: Path) -> None:
    config = configuration(tmp_path, participants=1, rounds=1, aggregation="plain")
    text = re.sub(r"\[model\].*?\[rounds\]", _OWN_CODE, config.read_text(), flags=re.DOTALL)
    config.write_text(text)
    with Deployment(tmp_path, config) as federation:
        federation.start_coordinator()
        federation.join("site-0", data={"site-0": "digits:1/1"}, allow_plain=True)
        done = federation.fedloom("participant", "run", "--home", str(federation.home("site-0")), check=False)
    assert done.returncode not in (0, 1)
    assert "benchmarks.trivial:model" in done.stderr
    assert "allow" in done.stderr
    assert "Traceback" not in done.stderr


_OWN_CODE = """[model]
kind = "custom"
factory = "benchmarks.trivial:model"
options = { parameters = 10 }
[task]
kind = "custom"
loss = "benchmarks.trivial:loss"
[rounds]"""
