"""A coordinator with a thousand participants connected: the first part of `benchmarks.faults`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks import deployed
from benchmarks.deployed import Process
from coordinator.rounds import from_row
from coordinator.rounds.facts import BufferSealed, UpdateBuffered, VersionCommitted
from coordinator.serving import CA, DATABASE
from coordinator.store import Invitation, Member, MemberState, Store, open_store
from privacy.secure_aggregation.identities import MemberRequest
from privacy.secure_aggregation.identities import Role as MemberRole
from privacy.secure_aggregation.keys import SigningKey
from wire import FederationCA, Identity, Role

BUFFER: Final = 10
PARAMETERS: Final = 1_000

_PROCESSES: Final = 2
FEDERATION: Final = "bench"
_DAYS: Final = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """What happened while all participants trained at one pace.

    Attributes:
        updates_per_s: That were accepted.
        versions: That were made.
        rows_per_s: Written to the log.
        sealed_s: For each version, seconds from the row that seals its buffer until the last participant whose update
            is in it has heard of it.
        receipts_s: Seconds from an update's announcement to its receipt.
        cpu: The coordinator's processor time, in cores.
        refused: Refusals that participants were told, by code.
    """

    updates_per_s: float
    versions: int
    rows_per_s: float
    sealed_s: list[float]
    receipts_s: list[float]
    cpu: float
    refused: dict[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What a crowd came to.

    Attributes:
        check_ins_per_s: From the first connection to the last welcome.
        check_in_s: Each participant's seconds from connecting to its welcome, while all others do the same.
        connection_bytes: What the coordinator's resident memory grew by, for each connection.
        steady: At a pace that leaves the machine room.
        flat_out: With trainings that take no time.
    """

    check_ins_per_s: float
    check_in_s: list[float]
    connection_bytes: float
    steady: Pace
    flat_out: Pace


def enrol(state: Path, count: int) -> list[dict[str, str]]:
    """Enrol participants into a stopped coordinator's state folder: their certificates and keys, PEM.

    Enrolling over the network is not what is measured; the certificates are those that it would give.
    """
    ca, store = FederationCA.load(state / CA), open_store(state / DATABASE)
    sites = []
    for index in range(count):
        name, secret = f"site-{index:04d}", index.to_bytes(32)
        own = ca.issue_client(name, Role.PARTICIPANT, _DAYS)
        key = SigningKey.generate()
        wish = MemberRequest.make(key, federation=FEDERATION, role=MemberRole.PARTICIPANT, name=name)
        member = Member(
            name=name,
            state=MemberState.ENROLLED,
            certificate_pem=own.certificate_pem,
            serial=Identity.parse(own.certificate_pem).serial,
            since_s=time.time(),
            signing_key=key.public,
            signing_proof=wish.binding + wish.signature,
        )
        store.invite(Invitation(name=name, secret_hash=secret, expires_s=time.time() + 60.0))
        store.enrol(member, secret, time.time())
        sites.append({"certificate": own.certificate_pem.decode(), "key": own.key_pem.decode()})
    store.close()
    return sites


@contextlib.contextmanager
def clients(folder: Path, address: str, sites: list[dict[str, str]]) -> Iterator[list[Process]]:
    """The participants, in a few processes."""
    ca = FederationCA.load(folder / "state" / CA).pem.decode()
    with contextlib.ExitStack() as stack:
        found = []
        for part in range(_PROCESSES):
            spec = folder / f"clients-{part}.json"
            table = {"address": address, "federation": FEDERATION, "ca": ca, "members": len(sites) + 1}
            spec.write_text(json.dumps({**table, "sites": sites[part::_PROCESSES]}))
            process = Process(folder, spec.stem, "-m", "benchmarks.light_clients", str(spec))
            found.append(stack.enter_context(process))
        for process in found:
            process.answer()
        yield found


def prepare(folder: Path, count: int) -> list[dict[str, str]]:
    """A state folder with this many enrolled participants and an open run; nobody is connected yet."""
    deployed.write_config(folder, sites=count, buffer=min(BUFFER, count), parameters=PARAMETERS)
    with deployed.coordinator(folder) as first:
        while first.answer()["event"] != "run":
            continue
        first.end()
    return enrol(folder / "state", count)


def measure(folder: Path, count: int, steady_s: float, flat_out_s: float, train_s: float) -> Found:
    """Connect a crowd, and let it train at two paces.

    Args:
        folder: Empty.
        count: Participants.
        steady_s: Seconds at the steady pace.
        flat_out_s: Seconds flat out.
        train_s: Mean seconds of a training at the steady pace.
    """
    sites = prepare(folder, count)
    with deployed.coordinator(folder) as coordinator:
        address = coordinator.answer()["session"]
        run_id = coordinator.answer()["run"]
        with clients(folder, address, sites) as crowd:
            before, started = coordinator.memory_bytes(), time.perf_counter()
            check_in_s = [value for answer in _ask_all(crowd, "connect") for value in answer["check_in_s"]]
            took = time.perf_counter() - started
            after = coordinator.memory_bytes()
            store = open_store(folder / "state" / DATABASE)
            watched = Watched(coordinator, crowd, store, run_id)
            _ask_all(crowd, f"work {train_s}")
            time.sleep(1.5 * train_s)  # the first trainings begin together; later ones don't
            steady = watched.pace(steady_s)
            _ask_all(crowd, "work 0")
            time.sleep(1.5 * train_s)
            flat_out = watched.pace(flat_out_s)
            store.close()
    return Found(
        check_ins_per_s=count / took,
        check_in_s=check_in_s,
        connection_bytes=(after - before) / count,
        steady=steady,
        flat_out=flat_out,
    )


class Watched:
    """A coordinator with its crowd, looked at for a while.

    Args:
        coordinator: The process.
        crowd: The participants' processes.
        store: The coordinator's, for reading.
        run_id: Of the run.
    """

    def __init__(self, coordinator: Process, crowd: list[Process], store: Store, run_id: str) -> None:
        self._coordinator, self._crowd, self._store, self._run_id = coordinator, crowd, store, run_id
        self._rows = 0

    def pace(self, seconds: float) -> Pace:
        """What happens in this time."""
        self._look()
        _ask_all(self._crowd, "report")
        cpu, started = self._coordinator.cpu_s(), time.perf_counter()
        time.sleep(seconds)
        took, cpu = time.perf_counter() - started, self._coordinator.cpu_s() - cpu
        rows, updates, sealed, committed = self._look()
        time.sleep(0.5)  # what is under way arrives
        reports = _ask_all(self._crowd, "report")
        broken = sum(report["broken"] for report in reports)
        if broken:
            raise RuntimeError(f"{broken} participants lost their streams: {[report['refused'] for report in reports]}")
        heard: dict[int, float] = {}
        for report in reports:
            for version, times in report["announced"].items():
                heard[int(version)] = max(heard.get(int(version), 0.0), times[-1])
        return Pace(
            updates_per_s=updates / took,
            versions=len(committed),
            rows_per_s=rows / took,
            sealed_s=[heard[version] - at_s for version, at_s in sealed.items() if version in heard],
            receipts_s=[value for report in reports for value in report["receipts_s"]],
            cpu=cpu / took,
            refused=dict(sum((Counter(report["refused"]) for report in reports), Counter())),
        )

    def _look(self) -> tuple[int, int, dict[int, float], list[int]]:
        """New rows of the log: how many, how many updates, when each buffer was sealed, which versions."""
        rows = updates = 0
        sealed, committed = {}, []
        for row in self._store.transitions(self._run_id, self._rows):
            rows, self._rows = rows + 1, row.sequence
            fact = from_row(row.kind, row.body)
            if isinstance(fact, BufferSealed):
                sealed[fact.round] = row.at_s
            elif isinstance(fact, VersionCommitted):
                committed.append(fact.version)
            updates += isinstance(fact, UpdateBuffered)
        return rows, updates, sealed, committed


def _ask_all(crowd: list[Process], command: str) -> list[dict[str, Any]]:
    """Each process is asked before any answers."""
    for process in crowd:
        process.say(command)
    return [process.answer() for process in crowd]
