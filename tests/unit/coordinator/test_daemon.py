"""The daemon's event loop: what it has decided together, and whom it wakes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from federated import Federation

from coordinator.daemon import Daemon
from coordinator.hub import Hub
from coordinator.planning import run_records
from coordinator.store import open_store
from protos import session_pb2 as pb
from tests.unit.coordinator.test_hub import LEASE_S, plan
from wire import PROTOCOL_VERSION, BlobStore, ResourceError

SITES = tuple(f"site-{index:03d}" for index in range(40))


class _Disk:
    """Passes everything through to a real store; counts transactions, and may be full."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.appended: list[int] = []
        self.full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def append(self, run_id: str, rows: Any, checkpoint: Any = None, **more: Any) -> None:
        if self.full:
            raise ResourceError("the disk is full", "Make room.", code="disk-full")
        self._store.append(run_id, rows, checkpoint, **more)
        self.appended.append(len(rows))


@pytest.fixture
async def daemon(tmp_path: Path) -> Any:
    disk: Any = _Disk(open_store(tmp_path / "coordinator.sqlite"))
    rounds = {"mode": "asynchronous", "min_participants": 2, "buffer_size": 2, "min_updates": 1, "correction": "none"}
    run = plan(**rounds)
    disk.create_run(*run_records(run, 0.0))
    daemon = Daemon(disk, BlobStore(tmp_path / "blobs"), lease_s=LEASE_S, outbox_bytes=1 << 20)
    daemon.open(Hub(disk, run, Federation(), lease_s=LEASE_S, now_s=0.0))  # type: ignore[arg-type]
    yield daemon
    await daemon.close()
    disk.close()


async def come(daemon: Daemon, name: str) -> None:
    """Connect, check in and be ready."""
    assert daemon.hub is not None
    daemon.attach(name)
    await daemon.receive(name, pb.FromParticipant(check_in=pb.CheckIn(protocol_version=PROTOCOL_VERSION)))
    ready = pb.Ready(plan_hash=daemon.hub.plan.hash, manifest_hash=bytes.fromhex("cd" * 32), examples=8)
    await daemon.receive(name, pb.FromParticipant(ready=ready))


async def test_a_crowd_that_comes_at_once_costs_one_transaction(daemon: Daemon) -> None:
    disk: Any = daemon.store
    await asyncio.gather(*(come(daemon, name) for name in SITES))
    assert disk.appended == [1 + len(SITES)], "the first buffer, and a task for each"
    assert daemon.hub is not None
    assert sorted(daemon.hub.machine.pending()) == list(SITES)


async def test_on_a_full_disk_whoever_asked_for_a_task_is_told_and_a_later_one_gets_it(daemon: Daemon) -> None:
    disk: Any = daemon.store
    disk.full = True
    found = await asyncio.gather(*(come(daemon, name) for name in SITES[:3]), return_exceptions=True)
    # The first one is alone, and nothing has to be written for it.
    assert [type(item) for item in found] == [type(None), ResourceError, ResourceError]
    disk.full = False
    await come(daemon, SITES[1])
    assert daemon.hub is not None
    assert {SITES[0], SITES[1]} <= set(daemon.hub.machine.pending())


async def test_who_waits_for_a_change_is_woken_by_the_next_one(daemon: Daemon) -> None:
    waiting = [asyncio.create_task(daemon.wait_changed(60.0)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    await come(daemon, SITES[0])
    await asyncio.gather(*waiting)
    assert "1 of at least 2" in daemon.message


async def test_a_stream_that_ends_has_said_nothing_more_and_is_not_refused_for_it(daemon: Daemon) -> None:
    await come(daemon, SITES[0])
    outbox = daemon.attach(SITES[1])
    check_in = pb.FromParticipant(check_in=pb.CheckIn(protocol_version=PROTOCOL_VERSION))
    await daemon.receive(SITES[1], check_in)
    ready = pb.FromParticipant(ready=pb.Ready(plan_hash=bytes(32)))  # which would be refused
    said = asyncio.create_task(daemon.receive(SITES[1], ready))
    await asyncio.sleep(0)
    said.cancel()
    daemon.detach(SITES[1], outbox)
    with pytest.raises(asyncio.CancelledError):
        await said
    await come(daemon, SITES[1])
    assert daemon.store.refusals() == {}
    assert daemon.connected(SITES[1])
