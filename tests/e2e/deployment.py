"""A deployed federation for tests: real processes, real TLS on loopback, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
[federation]
name = "clinics"

[coordinator]
host = "127.0.0.1"
port = 0
enrolment_port = 0
state = "state"
lease_s = {lease_s}

[aggregation]
mode = "{aggregation}"

[model]
kind = "multimodal"
width = 16
depth = 1
classes = 10
image_size = 8
embedding = 16
heads = 2

[task]
kind = "classification"

[training]
local_steps = {steps}
batch_size = 16

[merging]
{merging}

[rounds]
count = {rounds}
min_participants = {min_participants}
min_updates = {min_updates}
deadline_s = {deadline_s}
seed = 11
{pace}

[simulation]
institutions = [
{institutions}
]
compare_local = false
"""


def configuration(
    folder: Path,
    *,
    participants: int = 4,
    rounds: int = 3,
    steps: int = 4,
    lease_s: float = 20.0,
    deadline_s: float = 90.0,
    min_participants: int | None = None,
    min_updates: int | None = None,
    aggregation: str = "secure",
    merging: str = "",
    pace: str = "",
) -> Path:
    """A small classification federation on scikit-learn's digits."""
    names = [f"site-{index}" for index in range(participants)]
    lines = [f'  {{ name = "{name}", data = "{data_of(index, participants)}" }},' for index, name in enumerate(names)]
    path = folder / "federation.toml"
    path.write_text(
        CONFIG.format(
            min_participants=min_participants or participants,
            rounds=rounds,
            steps=steps,
            lease_s=lease_s,
            deadline_s=deadline_s,
            min_updates=min_updates or participants,
            aggregation=aggregation,
            merging=merging,
            pace=pace,
            institutions="\n".join(lines),
        )
    )
    return path


def data_of(index: int, participants: int) -> str:
    return f"digits:{index + 1}/{participants}"


class Deployment:
    """Processes of one federation, all ended on leaving."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder = folder
        self.config = config
        self.coordinator: subprocess.Popen[str] | None = None
        self.participants: dict[str, subprocess.Popen[str]] = {}
        self.listening: dict[str, Any] = {}

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.participants.values(), self.coordinator]:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
            if process is not None and process.stdout is not None:
                process.stdout.close()

    # ---- commands ---------------------------------------------------------------------------------------------------

    def fedloom(self, *arguments: str, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "fedloom", *arguments],
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"fedloom {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        """A command's JSON lines."""
        return [json.loads(line) for line in self.fedloom(*arguments, "--json").stdout.splitlines()]

    def start_coordinator(self, *arguments: str) -> dict[str, Any]:
        """Start the coordinator and wait until it listens."""
        place = ["--config", str(self.config)]
        with (self.folder / "coordinator.log").open("a") as log:
            self.coordinator = subprocess.Popen(
                [sys.executable, "-m", "fedloom", "coordinator", "start", *place, "--json", *arguments],
                cwd=self.folder,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.coordinator.stdout is not None
        line = self.coordinator.stdout.readline()
        if not line:
            raise AssertionError(f"the coordinator didn't start:\n{self.log('coordinator')}")
        self.listening = json.loads(line)
        return self.listening

    def fix_ports(self) -> None:
        """Have the coordinator come back, after a restart, where the sites look for it."""
        text = self.config.read_text()
        for key, service in (("\nport", "session"), ("\nenrolment_port", "enrolment")):
            text = text.replace(f"{key} = 0", f"{key} = {self.listening[service].rpartition(':')[2]}")
        self.config = self.config.with_name("fixed.toml")
        self.config.write_text(text)

    def join(self, *names: str, data: dict[str, str], allow_plain: bool = False) -> None:
        """Invite and enrol sites."""
        rules = ["--allow-plain"] if allow_plain else []
        for item in self.lines("coordinator", "invite", *names, "--config", str(self.config)):
            name = item["name"]
            home = ["--home", str(self.home(name))]
            self.fedloom("participant", "join", item["token"], "--data", data[name], *home, *rules)

    def home(self, name: str) -> Path:
        return self.folder / name

    def start_participant(self, name: str, *arguments: str, attack: str = "") -> subprocess.Popen[str]:
        """Start a site's daemon, or one that is hostile (``tests.e2e.hostile``)."""
        program = ["tests.e2e.hostile", attack] if attack else ["fedloom"]
        command = ["participant", "run", "--home", str(self.home(name)), "--json", *arguments]
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *program, *command],
                cwd=self.folder,
                env=environment(),
                stdout=log,
                stderr=log,
                text=True,
            )
        self.participants[name] = process
        return process

    def kill(self, process: subprocess.Popen[str]) -> None:
        """kill -9."""
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def status(self) -> dict[str, Any]:
        """What `fedloom coordinator status --json` prints."""
        return self.lines("coordinator", "status", "--config", str(self.config))[0]

    def wait(self, state: str, timeout_s: float = 90.0) -> dict[str, Any]:
        """Wait until the run is in this state."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            status = self.status()
            if status["state"] == state:
                return status
            time.sleep(0.3)
        raise AssertionError(f"not {state} after {timeout_s} s: {status}\n{self.logs()}")

    def wait_open(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """Wait until the coordinator has its run open."""
        end = time.monotonic() + timeout_s
        while (status := self.status())["state"] == "preparing" and time.monotonic() < end:
            time.sleep(0.1)
        return status

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1,localhost"}
