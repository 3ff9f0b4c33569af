"""A coordinator that starts on a long log, and one that is killed in mid-run: parts of `benchmarks.faults`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
import time
from pathlib import Path
from typing import Final

from benchmarks import deployed
from benchmarks.crowd import BUFFER, FEDERATION, PARAMETERS, prepare
from benchmarks.light_clients import Crowd, LightClient
from coordinator.rounds import AsyncRounds, BeginMerge, Contribution, Decision, IssueTask, RunState, to_row
from coordinator.serving import CA, DATABASE
from coordinator.store import Checkpoint, Store, Transition, open_store
from wire import Credentials, FederationCA, RunPlan

_POLL_S: Final = 0.005
_PATIENCE_S: Final = 60.0
_SITES: Final = ("site-a", "site-b", "site-c", "site-d")


class Log:
    """A run's log, written by its own round machine at the speed of the disk: nothing is trained or merged.

    Args:
        store: Of a stopped coordinator, with one run in which nothing has happened.
        participants: That take part.
    """

    def __init__(self, store: Store, participants: int) -> None:
        self._store = store
        self._run = store.runs()[-1]
        plan = RunPlan.parse(self._run.plan)
        state = RunState()
        state.digest = plan.initial.digest
        self._size = plan.initial.size
        self._machine = AsyncRounds(plan.run_id, plan.rounds, state)
        self._names = [f"site-{index:04d}" for index in range(participants)]
        self._tasks: dict[str, str] = {}
        self._random = random.Random(0)
        self._now_s = time.time()  # no deadline has passed when the log is read
        self.rows = 0

    def write(self, rows: int) -> None:
        """Write at least so many rows, up to a buffer that is open."""
        for name in self._names:
            self._keep(self._machine.available(name, self._now_s))
        while self.rows < rows:
            name = self._random.choice(sorted(self._tasks))
            digest = self._random.randbytes(32).hex()
            found = Contribution(participant=name, digest=digest, examples=8)
            task_id = self._tasks.pop(name)
            self._keep(self._machine.submitted(name, task_id, found, {"loss": 0.5}, {}, self._now_s))

    def _keep(self, decision: Decision, checkpoint: Checkpoint | None = None) -> None:
        new = []
        for fact in decision.facts:
            self.rows += 1
            kind, body = to_row(fact)
            new.append(Transition(sequence=self.rows, kind=kind, body=body, at_s=self._now_s))
        if new:
            self._store.append(self._run.run_id, new, checkpoint)
        for effect in decision.effects:
            if isinstance(effect, IssueTask):
                self._tasks[effect.participant] = effect.task_id
            elif isinstance(effect, BeginMerge):
                self._commit(effect)

    def _commit(self, order: BeginMerge) -> None:
        version, digest = order.base_version + 1, self._random.randbytes(32)
        committed = self._machine.committed(order, digest.hex(), self._size, self._now_s)
        checkpoint = Checkpoint(
            run_id=self._run.run_id,
            version=version,
            digest=digest,
            size=self._size,
            state=(),
            created_s=self._now_s,
        )
        self._keep(committed, checkpoint)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Starts:
    """Starts of a coordinator on a log of ``rows`` rows: seconds and its processor time from exec to first check-in."""

    rows: int
    serving_s: list[float]
    cpu_s: list[float]


def measure_starts(folder: Path, participants: int, rows: int, times: int) -> Starts:
    """Write a log, and start a coordinator on it several times.

    Args:
        folder: Empty.
        participants: That are enrolled, and whose updates are in the log.
        rows: Of the log, at least.
        times: How often it is started.
    """
    sites = prepare(folder, participants)
    port = free_port()
    deployed.write_config(
        folder, sites=participants, buffer=min(BUFFER, participants), parameters=PARAMETERS, port=port
    )
    store = open_store(folder / "state" / DATABASE)
    log = Log(store, participants)
    log.write(rows)
    store.close()
    ca_pem = FederationCA.load(folder / "state" / CA).pem
    own = Credentials(ca_pem=ca_pem, certificate_pem=sites[0]["certificate"].encode(), key_pem=sites[0]["key"].encode())
    crowd = Crowd(f"127.0.0.1:{port}", FEDERATION, participants + 1)
    serving_s, cpu_s = [], []
    for _ in range(times + 1):
        started = time.perf_counter()
        with deployed.coordinator(folder) as process:
            asyncio.run(_first_answer(crowd, own, port))
            serving_s.append(time.perf_counter() - started)
            cpu_s.append(process.cpu_s())
            process.end()
    # At the first start the members are certified.
    return Starts(rows=log.rows, serving_s=serving_s[1:], cpu_s=cpu_s[1:])


async def _first_answer(crowd: Crowd, own: Credentials, port: int) -> None:
    """Return when a check-in is answered."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            break
        await asyncio.sleep(_POLL_S)
    async with LightClient(crowd, own) as client:
        await asyncio.wait_for(client.check_in(), deadline - time.monotonic())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kills:
    """Kills of a coordinator in the middle of a run.

    Attributes:
        next_s: For each, seconds from the SIGKILL to the commit of the next version. The coordinator is started again
            at once.
        usual_s: Seconds between two versions when nobody is killed, median.
        versions: That the run has in the end.
    """

    next_s: list[float]
    usual_s: float
    versions: int


def measure_kills(folder: Path, parameters: int, kills: int) -> Kills:
    """Four participants' processes, and a coordinator that is killed again and again.

    Args:
        folder: Empty.
        parameters: Of the model.
        kills: How often.

    Raises:
        RuntimeError: A version was lost or made twice, or none was made any more.
    """
    deployed.write_config(folder, sites=len(_SITES), buffer=2, parameters=parameters, port=free_port(), lease_s=10.0)
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(deployed.coordinator(folder))
        while process.answer()["event"] != "run":
            continue
        deployed.join(folder, list(_SITES))
        for name in _SITES:
            stack.enter_context(deployed.participant(folder, name))
        store = open_store(folder / "state" / DATABASE)
        stack.callback(store.close)
        run_id = store.runs()[-1].run_id
        usual = [_version(store, run_id, number).created_s for number in range(3, 24)]
        next_s = []
        for _ in range(kills):
            process.kill()
            killed_s, last = time.time(), store.checkpoints(run_id)[-1].version
            process = stack.enter_context(deployed.coordinator(folder))
            next_s.append(_version(store, run_id, last + 1).created_s - killed_s)
            _version(store, run_id, last + 6)
        made = [item.version for item in store.checkpoints(run_id)]
        if made != list(range(len(made))):
            raise RuntimeError(f"versions were lost or made twice: {made}")
    return Kills(next_s=next_s, usual_s=(usual[-1] - usual[0]) / (len(usual) - 1), versions=len(made) - 1)


def _version(store: Store, run_id: str, number: int) -> Checkpoint:
    """A version, as soon as it is committed."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        found = store.checkpoint(run_id, number)
        if found is not None:
            return found
        time.sleep(_POLL_S)
    raise RuntimeError(f"version {number} wasn't made in {_PATIENCE_S:.0f} s")


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
