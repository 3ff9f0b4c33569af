"""How long a round takes besides training: coordinator and four participants as processes, loopback, mutual TLS.

    python -m benchmarks.rounds [--quick] [--json PATH]

The local step is trivial (``benchmarks.trivial``). A round's time is the coordinator's own: from opening it to the
commit of the new version, with all that a real round does (download, train, write, upload, check, merge, sync,
commit). The targets are for plain averaging; beside each size stands the same round with secure sums (16 bits a
parameter), whose messages go back and forth five times more. ``benchmarks.secure_aggregation`` measures their parts.

Where flwr is installed, a full run measures Flower's rounds beside ours (``benchmarks.flower_peer``, without TLS) and
states the ratio. A quick run doesn't: three of Flower's rounds take longer than all of ours.

Bytes of a round of d parameters and n participants: 4 d n down, 4 d n up over TLS; SHA-256 over each on either side;
the merge reads 4 d (n + 1) and writes and syncs 4 d.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import flower_peer
from benchmarks.report import Report, Row

_SITES: Final = ["site-a", "site-b", "site-c", "site-d"]
_WARM: Final = 2

# parameters, rounds in a full run, rounds in a quick one (0: left out), seconds aimed at
_CASES: Final = [(100_000, 40, 10, 0.08), (10_000_000, 12, 4, 1.0), (100_000_000, 4, 0, None)]

# Flower takes minutes for more.
_FLOWER_MOST: Final = 10_000_000

# A smaller model is nothing beside the interpreter itself.
_LARGE: Final = 10_000_000

_CONFIG: Final = """
[federation]
name = "bench"
[coordinator]
port = 0
enrolment_port = 0
state = "state"
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
mode = "{mode}"
[rounds]
count = {rounds}
min_participants = 4
min_updates = 4
evaluate_every = 0
deadline_s = 120.0
"""


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1,localhost"}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fedloom", *arguments]


def _output(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        _command(*arguments, "--json"), cwd=folder, env=_environment(), capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _peak_bytes(process: subprocess.Popen[str], key: str = "VmHWM") -> int:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _cpu_s(process: subprocess.Popen[str]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def federation(parameters: int, rounds: int, *, mode: str = "plain", sites: list[str] = _SITES) -> dict[str, Any]:
    """Run a federation of processes and measure it.

    Returns:
        ``seconds`` of each round without the first two; ``start_s`` until the coordinator listened;
        ``coordinator_bytes`` peak resident memory; ``participant_bytes`` the largest of theirs; ``cpu_s`` of all
        processes over the measured run.
    """
    with tempfile.TemporaryDirectory(prefix="fedloom-bench-") as name:
        folder = Path(name)
        (folder / "federation.toml").write_text(_CONFIG.format(parameters=parameters, rounds=rounds, mode=mode))
        started = time.perf_counter()
        coordinator = subprocess.Popen(
            _command("coordinator", "start", "--json"),
            cwd=folder,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=(folder / "coordinator.log").open("w"),
            text=True,
        )
        assert coordinator.stdout is not None
        coordinator.stdout.readline()
        start_s = time.perf_counter() - started
        processes = [coordinator]
        try:
            for item in _output(folder, "coordinator", "invite", *sites):
                home = str(folder / item["name"])
                allow = ["--allow", "benchmarks.trivial:model", "--allow", "benchmarks.trivial:loss"]
                allow += ["--allow", "benchmarks.trivial:data", "--allow-plain"]
                _output(
                    folder,
                    "participant",
                    "join",
                    item["token"],
                    "--data",
                    "benchmarks.trivial:data",
                    "--home",
                    home,
                    *allow,
                )
                processes.append(
                    subprocess.Popen(
                        _command("participant", "run", "--home", home, "--json"),
                        cwd=folder,
                        env=_environment(),
                        stdout=subprocess.DEVNULL,
                        stderr=(folder / f"{item['name']}.log").open("w"),
                        text=True,
                    )
                )
            _wait(folder, rounds)
            status = _output(folder, "coordinator", "status")[0]
            seconds = [item["seconds"] for item in status["history"] if item.get("version")][_WARM:]
            return {
                "seconds": seconds,
                "start_s": start_s,
                "coordinator_bytes": _peak_bytes(coordinator),
                "participant_bytes": max(_peak_bytes(process) for process in processes[1:]),
                "idle_bytes": sum(_peak_bytes(process, "VmRSS") for process in processes),
                "cpu_s": sum(_cpu_s(process) for process in processes),
                "processes": len(processes),
            }
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _wait(folder: Path, rounds: int) -> None:
    """Wait until all rounds are merged, without disturbing: a status command would take its share of two cores."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if (folder / "coordinator.log").read_text().count(" updates into version ") >= rounds:
            time.sleep(0.5)
            return
    logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
    raise RuntimeError(f"the federation didn't finish\n{logs}")


def _help_s() -> float:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(_command("--help"), env=_environment(), capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _flower(parameters: int) -> Row | None:
    """Flower's round, NaN where it couldn't be measured; None where flwr isn't installed or the model is too large."""
    version = flower_peer.version()
    if version is None or parameters > _FLOWER_MOST:
        return None
    case = f"flwr {version}, {flower_peer.NODES} participants, {parameters:,} float32, no TLS"
    seconds = flower_peer.rounds(parameters, 3)
    value = statistics.median(seconds) if seconds else math.nan
    return Row(case=case, metric="round, median", value=value, unit="s", better="lower")


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; ends within 60 s")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    report = Report("rounds")
    report.add(Row(case="fedloom --help", metric="time", value=_help_s(), unit="s", better="lower", target=0.3))
    for parameters, full, quick, target in _CASES:
        rounds = quick if arguments.quick else full
        if rounds:
            for row in _rows(parameters, rounds, target, quick=arguments.quick):
                report.add(row)
    report.finish(arguments.json)


def _rows(parameters: int, rounds: int, target: float | None, *, quick: bool) -> list[Row]:
    """Measure one size of model."""
    measured = federation(parameters, rounds)
    case, model = f"4 participants, {parameters:,} float32, mutual TLS", 4 * parameters
    ours, memory = statistics.median(measured["seconds"]), measured["coordinator_bytes"]

    def row(metric: str, value: float, unit: str, aim: float | None = None, **more: Any) -> Row:
        return Row(case=case, metric=metric, value=value, unit=unit, better="lower", target=aim, **more)

    flower = None if quick else _flower(parameters)
    against: dict[str, Any] = {}
    if flower is not None and math.isfinite(flower.value):
        against = {"peer": f"flwr {flower_peer.version()}", "ratio": flower.value / ours}
    rows = [row("round, median", ours, "s", target, **against)]
    if flower is not None:
        rows.append(flower)
    rows += [
        row("round, slowest", max(measured["seconds"]), "s"),
        row("coordinator listening", measured["start_s"], "s", 1.5),
        row("coordinator, peak memory", memory / 1e6, "MB"),
        row("all processes, idle", measured["idle_bytes"] / 1e6, "MB"),
    ]
    if parameters >= _LARGE:
        rows.append(row("coordinator, peak memory / model", memory / model, "x", 3.0))
    if quick and parameters >= _LARGE:
        return rows  # a minute is over
    secure = federation(parameters, max(4, rounds // 2), mode="secure")
    rows += [
        row("round with secure sums, median", statistics.median(secure["seconds"]), "s"),
        row("round with secure sums, slowest", max(secure["seconds"]), "s"),
        row("coordinator, peak memory with secure sums", secure["coordinator_bytes"] / 1e6, "MB"),
    ]
    return rows


if __name__ == "__main__":
    main()
