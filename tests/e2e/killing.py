"""A deployed federation whose processes a test kills, or has kill themselves at a chosen step."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc

from coordinator.display import as_dict
from coordinator.serving import operator_credentials
from participant.joining import join
from protos import control_pb2, control_pb2_grpc
from tests.e2e.deployment import ROOT, Deployment, data_of, environment
from wire import Token, client_credentials
from wire.channel import channel_options

SITES = tuple(f"site-{index}" for index in range(4))


class Nursery:
    """Starts processes as forks of one that has everything heavy loaded (``tests.e2e.dying``)."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.dying"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started: list[int] = []
        self._ended: dict[int, int] = {}
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(
        self,
        arguments: Sequence[str],
        folder: Path,
        log: Path,
        deaths: Iterable[str] = (),
        *,
        attack: str = "",
        writes: str = "",
        name: str = "",
        company: Iterable[str] = (),
    ) -> Life:
        """Run a ``fedloom`` command with its output in ``log``, by an operator who is hostile if there is an attack.

        With ``writes`` its durable writes are numbered under that name (``tests.e2e.writes``). When it dies of one of
        its deaths, the processes named in ``company`` are killed as well.
        """
        order = {
            "arguments": list(arguments),
            "folder": str(folder),
            "log": str(log),
            "deaths": list(deaths),
            "attack": attack,
            "writes": writes,
            "name": name,
            "company": list(company),
        }
        assert self._process.stdin is not None
        with self._news:
            before = len(self._started)
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            assert self._news.wait_for(lambda: len(self._started) > before, 60.0), "no process was started"
            return Life(self, self._started[-1])

    def ended(self, pid: int, timeout_s: float = 0.0) -> int | None:
        """The exit status of a process, negative for a signal; None while it runs."""
        with self._news:
            self._news.wait_for(lambda: pid in self._ended, timeout_s)
            return self._ended.get(pid)

    def close(self) -> None:
        """Kill all."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._reader.join(timeout=30)
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self._news:
                if "started" in message:
                    self._started.append(message["started"])
                    self._ended.pop(message["started"], None)  # numbers of processes come again
                else:
                    self._ended[message["ended"]] = message["status"]
                self._news.notify_all()


class Life:
    """A process, as far as ``subprocess.Popen`` is needed."""

    stdout = None

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self._nursery = nursery

    def poll(self) -> int | None:
        return self._nursery.ended(self.pid)

    def wait(self, timeout: float = 60.0) -> int:
        status = self._nursery.ended(self.pid, timeout)
        assert status is not None, f"process {self.pid} doesn't end"
        return status

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Fragile(Deployment):
    """A federation on loopback, of four sites unless others are named.

    ``deaths`` says at which steps a process kills itself, ``company`` who is killed with it, ``attacks`` which sites
    are hostile, and how. Of those in ``numbered`` every durable write is a step.
    """

    def __init__(self, folder: Path, config: Path, nursery: Nursery, names: Sequence[str] = SITES) -> None:
        super().__init__(folder, config)
        self.nursery = nursery
        self.names = tuple(names)
        self.deaths: dict[str, list[str]] = {}
        self.attacks: dict[str, str] = {}
        self.numbered: set[str] = set()
        self.company: dict[str, list[str]] = {}
        self._channel: grpc.Channel | None = None

    def __exit__(self, *_: object) -> None:
        if self._channel is not None:
            self._channel.close()
        super().__exit__()

    # ---- processes --------------------------------------------------------------------------------------------------

    def start_coordinator(self, *arguments: str, config: Path | None = None) -> dict[str, Any]:
        """Start it, and wait until it listens; at the same ports as before."""
        seen = self.log("coordinator").count('"event": "listening"')
        place = ["--config", str(config or self.config)]
        command = ["coordinator", "start", *place, "--json", *arguments]
        self.coordinator = process = self._begin("coordinator", command)

        def listening() -> list[str]:
            lines = self.log("coordinator").splitlines()
            return [line for line in lines if line.startswith("{") and '"event": "listening"' in line]

        self.until(lambda: len(listening()) > seen or process.poll() is not None, "the coordinator listens")
        if len(listening()) == seen:
            # It has killed itself on the way.
            assert process.poll() == -signal.SIGKILL, self.log("coordinator")[-3000:]
            return self.start_coordinator(*arguments, config=config)
        self.listening = json.loads(listening()[-1])
        self._fix_ports()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        return self.listening

    def _fix_ports(self) -> None:
        text = self.config.read_text()
        for name, place in (("port", "session"), ("enrolment_port", "enrolment")):
            text = text.replace(f"\n{name} = 0\n", f"\n{name} = {self.listening[place].rpartition(':')[2]}\n")
        self.config.write_text(text)

    def start_participant(self, name: str, *arguments: str) -> Any:
        """Start a site's daemon."""
        command = ["participant", "run", "--home", str(self.home(name)), "--json", *arguments]
        self.participants[name] = life = self._begin(name, command)
        return life

    def _begin(self, name: str, command: Sequence[str]) -> Any:
        return self.nursery.start(
            command,
            self.folder,
            self.folder / f"{name}.log",
            self.deaths.get(name, ()),
            attack=self.attacks.get(name, ""),
            writes=name if name in self.numbered else "",
            name=name,
            company=self.company.get(name, ()),
        )

    def start(self) -> None:
        """All of them, joined."""
        self.start_coordinator()
        asyncio.run(self._join_all())
        for name in self.names:
            self.start_participant(name)

    async def _join_all(self) -> None:
        reply = self.control().Invite(control_pb2.InviteRequest(names=self.names))
        for item in reply.invitations:
            await self.join_one(item.name, item.token)

    async def join_one(self, name: str, token: str) -> None:
        """Enrol a site with the token of its invitation."""
        data = data_of(self.names.index(name), len(self.names))
        await join(Token.parse(token), self.home(name), data=data)

    def run_once(self, *arguments: str) -> list[dict[str, Any]]:
        """Run a command to its end in a process that has torch already; its JSON lines."""
        log = self.folder / f"{arguments[0]}.out"
        life = self.nursery.start([*arguments, "--json"], self.folder, log)
        assert life.wait(120.0) == 0, log.read_text()
        return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]

    # ---- watching ---------------------------------------------------------------------------------------------------

    def control(self) -> Any:
        """The operator's service."""
        if self._channel is None:
            address, own = operator_credentials(self.folder / "state")
            self._channel = grpc.secure_channel(address, client_credentials(own), channel_options("clinics"))
        return control_pb2_grpc.ControlStub(self._channel)

    def status(self) -> dict[str, Any]:
        """As ``fedloom coordinator status --json``; empty while nobody answers."""
        try:
            return as_dict(self.control().GetStatus(control_pb2.StatusRequest(), timeout=5.0))
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
            return {"state": "", "version": -1, "round": 0, "history": []}

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 100.0) -> None:
        """Wait for it."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"not after {timeout_s} s: {what}\n{self.logs()}")
            time.sleep(0.05)

    def died(self) -> set[str]:
        """The deaths that have happened."""
        return {path.name.removeprefix("died-") for path in self.folder.glob("died-*")}

    def revive(self, name: str) -> bool:
        """Start a site, or the coordinator, again if it has killed itself; whether it had."""
        process = self.coordinator if name == "coordinator" else self.participants[name]
        assert process is not None
        status = process.poll()
        if status is None:
            return False
        assert status == -9, f"{name} ended with {status}\n{self.log(name)[-3000:]}"
        if name == "coordinator":
            self.start_coordinator()
        else:
            self.start_participant(name)
        return True

    def finished(self) -> bool:
        """Whether the run is over."""
        return self.status()["state"] == "finished"

    def check_logs(self) -> None:
        """No process has met an error without a name."""
        for name in (*self.names, "coordinator"):
            assert "Traceback" not in self.log(name), self.log(name)[-4000:]
