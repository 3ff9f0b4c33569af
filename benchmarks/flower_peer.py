"""Flower's rounds on this machine, beside which ``benchmarks.rounds`` states ours.

A deployment as Flower's own guides start it, on loopback: a SuperLink, four SuperNodes and the app in ``flower_app``,
each with its default settings. Switched off are telemetry, the update check and the installation of an app's
dependencies at run time; TLS is off, too, in Flower's favour. The app adds a number to a NumPy array and loads no
deep-learning framework, which favours Flower again, since it starts a Python process for every message.

A round's time is between two time stamps of Flower's ServerApp: download, train, upload, average. In the first round
the nodes also fetch the app, so that it isn't counted unless time is short.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Final

NODES: Final = 4

_APP: Final = Path(__file__).with_name("flower_app")
_CONNECTION: Final = '[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "{address}"\ninsecure = true\n'


class _FlowerError(Exception):
    """Flower didn't come up, or stopped."""


def version() -> str | None:
    """Flower's version, None where it isn't installed."""
    try:
        return importlib.metadata.version("flwr")
    except importlib.metadata.PackageNotFoundError:
        return None


def rounds(parameters: int, count: int, *, warm: int = 1, limit_s: float = 300.0) -> list[float]:
    """Run Flower and measure its rounds. All its processes have ended when this returns or raises.

    To be called in the main thread: while Flower runs, SIGTERM raises SystemExit here.

    Args:
        parameters: Size of the model, float32.
        count: How many rounds to measure, at least 1.
        warm: How many to run before them.
        limit_s: After this time Flower is ended, whether or not it is done.

    Returns:
        Seconds of each round that was completed. Empty where none was, or flwr isn't installed; the reason
        for fewer than ``count`` is printed.
    """
    if version() is None:
        print("flwr isn't installed: no rounds of Flower beside ours")
        return []
    with tempfile.TemporaryDirectory(prefix="flower-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        times = folder / "times.txt"
        try:
            _run(folder, times, parameters, warm + count, time.monotonic() + limit_s)
        except (_FlowerError, OSError, subprocess.SubprocessError) as error:
            print(f"Flower {version()}, {parameters:,} float32: {error}\n{_logs(folder)}")
        stamps = [float(line) for line in _lines(times) if not line.startswith("failed")]
    return [after - before for before, after in itertools.pairwise(stamps)][warm:]


def _run(folder: Path, times: Path, parameters: int, count: int, deadline: float) -> None:
    """Start everything, wait until ``times`` has the end of each round, end everything."""
    home = folder / "home"
    home.mkdir()
    link, *nodes = _free_ports(1 + NODES)
    address = f"127.0.0.1:{link}"
    (home / "config.toml").write_text(_CONNECTION.format(address=address))
    # The command line may write beside an app's pyproject.toml, so it gets a copy.
    app = shutil.copytree(_APP, folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    environment = _environment(home)
    with _ended(environment["FLWR_HOME"]) as processes:

        def start(name: str, *arguments: str) -> None:
            with (folder / f"{name}.log").open("w") as log:
                processes[name] = subprocess.Popen(
                    arguments, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )

        def wait(what: str, until: Callable[[], bool]) -> None:
            while not until():
                for name, process in processes.items():
                    if process.poll():
                        raise _FlowerError(f"{name} ended with status {process.returncode}")
                if time.monotonic() > deadline:
                    raise _FlowerError(f"time is up, waiting for {what}")
                time.sleep(0.2)

        link_options = ["--insecure", "--host", "127.0.0.1", "--port", str(link)]
        start("superlink", _script("flower-superlink"), *link_options, "--disable-runtime-dependency-installation")
        wait("the SuperLink", lambda: _listens(link))
        node = [_script("flower-supernode"), "--insecure", "--superlink", address, "--host", "127.0.0.1"]
        for index, port in enumerate(nodes):
            start(f"supernode-{index}", *node, "--port", str(port))
        run_config = f"parameters={parameters} rounds={count} nodes={NODES} times='{times}'"
        start("flwr-run", _script("flwr"), "run", str(app), "bench", "--run-config", run_config)
        wait("the rounds", lambda: len(_lines(times)) > count or _failed(times))
        if _failed(times):
            raise _FlowerError(_lines(times)[-1])


@contextlib.contextmanager
def _ended(home: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Processes to add to by name; at the end, SIGTERM to us included, they and all that they started are killed."""

    def terminate(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    processes: dict[str, subprocess.Popen[bytes]] = {}
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield processes
    finally:
        while found := _with_home(home):
            for process_id in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)
            time.sleep(0.05)
        for process in processes.values():
            process.kill()
            process.wait()
        signal.signal(signal.SIGTERM, before)


def _with_home(home: str) -> list[int]:
    """Processes whose Flower home is this one.

    Flower starts its executors in sessions of their own, so that neither the group nor the parent would find them; the
    environment is what all of them inherit, and the folder's name is ours alone.
    """
    mark = f"FLWR_HOME={home}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def _environment(home: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    return {
        **inherited,
        # Flower finds its executors by name.
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(home),
    }


def _script(name: str) -> str:
    return str(Path(sysconfig.get_path("scripts")) / name)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def _lines(times: Path) -> list[str]:
    """Whole lines only: the last one may be in the middle of being written."""
    return times.read_text().split("\n")[:-1] if times.exists() else []


def _failed(times: Path) -> bool:
    return any(line.startswith("failed") for line in _lines(times))


def _logs(folder: Path) -> str:
    return "\n".join(f"{path.name}: ...{path.read_text()[-1000:]}" for path in sorted(folder.glob("*.log")))
