"""Coordinators and participants as processes, for `benchmarks.faults`: started, looked at, killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Self

_CONFIG: Final = """
[federation]
name = "bench"
[coordinator]
port = {port}
enrolment_port = 0
state = "state"
lease_s = {lease_s}
[model]
kind = "custom"
factory = "benchmarks.trivial:model"
options = {{ parameters = {parameters} }}
[task]
kind = "custom"
loss = "benchmarks.trivial:loss"
[training]
optimizer = "sgd"
local_steps = 1
momentum = 0.0
weight_decay = 0.0
clip_norm = 0.0
batch_size = 8
[aggregation]
mode = "plain"
[rounds]
mode = "asynchronous"
count = 100000
min_participants = {sites}
min_updates = 1
buffer_size = {buffer}
max_staleness = 1000000
correction = "none"
evaluate_every = 0
deadline_s = 3600.0
"""

_ALLOWED: Final = ("model", "loss", "data")


def write_config(
    folder: Path, *, sites: int, buffer: int, parameters: int, port: int = 0, lease_s: float = 20.0
) -> None:
    """A federation with asynchronous rounds of a model with nothing to learn."""
    text = _CONFIG.format(sites=sites, buffer=buffer, parameters=parameters, port=port, lease_s=lease_s)
    (folder / "federation.toml").write_text(text)


class Process:
    """A process of ours: its output in a file beside it, killed on leaving.

    Args:
        folder: Where it runs.
        name: Of its log.
        arguments: Of Python.
    """

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def say(self, command: str) -> None:
        """Write a line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next line that it writes."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.log.stem} ended\n{self.log.read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """Ask it to stop, and wait until it has."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def kill(self) -> None:
        """SIGKILL; nothing if it has ended."""
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):  # of a line that it didn't read any more
            self.process.communicate()

    def memory_bytes(self, key: str = "VmRSS") -> int:
        """What it has resident."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
        return 0

    def cpu_s(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def coordinator(folder: Path) -> Process:
    """A coordinator of the configuration in this folder; its first line says where it listens."""
    return Process(folder, "coordinator", "-m", "fedloom", "coordinator", "start", "--json")


def participant(folder: Path, name: str) -> Process:
    """A participant that has joined."""
    return Process(folder, name, "-m", "fedloom", "participant", "run", "--home", str(folder / name), "--json")


def join(folder: Path, names: list[str]) -> None:
    """Invite sites, and let each of them join."""
    allow = [part for name in _ALLOWED for part in ("--allow", f"benchmarks.trivial:{name}")]
    for item in _command(folder, "coordinator", "invite", *names):
        home = str(folder / item["name"])
        source = ["--data", "benchmarks.trivial:data", "--home", home, "--allow-plain", *allow]
        _command(folder, "participant", "join", item["token"], *source)


def environment() -> dict[str, str]:
    """Of a process of ours: this checkout, one thread for its arithmetic, no proxy."""
    root = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1,localhost"}


def _command(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "fedloom", *arguments, "--json"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
