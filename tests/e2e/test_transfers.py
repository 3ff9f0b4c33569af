"""What moves between a site and the coordinator, in bytes: one download after an absence, and transfers that go on.

The bytes are counted by a relay between the two. Networks that fail in other ways are another matter: here it is the
processes that die in the middle of a transfer.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from participant.site import JOURNAL, Site
from participant.store import ParticipantStore
from protos import blobs_pb2
from tests.adversarial import liars, puppets
from tests.adversarial.liars import LiveSite
from tests.adversarial.puppets import Stage, stage
from tests.e2e.deployment import configuration
from tests.e2e.killing import Fragile, Nursery
from tests.support.relays import Relay

MANY = 3_000_000  # parameters: six chunks
SLACK = 200_000  # bytes of TLS, HTTP/2 and messages


class Last(Relay):
    """Cuts once, and lets nobody through after it."""

    def __init__(self, port: int, after: int) -> None:
        super().__init__(port)
        self.cut_after(after)

    def _cut(self, reset: bool) -> None:
        self._port = 1  # where nobody listens
        super()._cut(reset)


def through(site: Site, relay: Relay) -> Site:
    """The site, with the relay between it and the coordinator."""
    return dataclasses.replace(site, config=site.config.model_copy(update={"session_address": relay.address}))


def port_of(site: Site) -> int:
    return int(site.config.session_address.rpartition(":")[2])


@contextlib.asynccontextmanager
async def running(site: Site, live: Stage) -> AsyncIterator[LiveSite]:
    found = LiveSite(site, live.plan)
    try:
        yield found
    finally:
        await found.close()


async def until(condition: Any, what: str) -> None:
    for _ in range(3_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never: {what}")


async def test_who_was_away_for_versions_catches_up_with_one_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liars, "DIMENSION", puppets.DIMENSION)
    # After four versions its old task is too old: it begins from the newest one, though nobody has missed it yet.
    rounds = {"min_participants": 2, "min_updates": 1, "buffer_size": 1, "count": 50, "max_staleness": 3}
    async with stage(tmp_path, asynchronous=True, **rounds) as live:
        fast, slow = [await live.site(f"site-{index}") for index in range(2)]
        relay = Relay(port_of(slow))
        machine = live.running.daemon.hub.machine  # type: ignore[union-attr]
        async with running(through(slow, relay), live) as away, running(fast, live) as other:
            await until(lambda: "site-1" in machine.state.pace.tasks, "both have a task")
            await until(lambda: away.daemon._agent._stage == "training", "it trains from version 0")
            assert machine.state.pace.tasks["site-1"].base_version == 0
            away.task.cancel()
            other.work.gate.set()
            await until(lambda: machine.state.version >= 4, "versions are made without it")
            other.work.gate.clear()
        missed = machine.state.version
        before = relay.passed
        async with running(through(slow, relay), live) as back:
            await until(lambda: back.daemon._agent._stage == "training", "it trains again")
            moved = relay.passed - before
            assert machine.state.pace.tasks["site-1"].base_version == missed
        relay.close()
        model = machine.state.size
        assert model <= moved < model + 60_000 < 2 * model


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model of several chunks."""
    monkeypatch.setattr(puppets, "DIMENSION", MANY)
    yield


async def test_a_download_goes_on_where_it_broke_off_when_both_daemons_have_been_started_again(
    tmp_path: Path, many: None
) -> None:
    changes = {"count": 1, "deadline_s": 60.0}
    async with stage(tmp_path, **changes) as live:
        site, other = [await live.site(f"site-{index}") for index in range(2)]
        relay = Last(port_of(site), 7 << 20)
        async with running(through(site, relay), live), running(other, live):
            await until(lambda: relay.cuts, "the connection breaks in the download")
    relay.close()
    (part,) = (site.folder / "blobs").glob("*.part")
    here, size = part.stat().st_size, live.plan.initial.size
    assert 4 << 20 <= here < size
    async with stage(tmp_path, port=port_of(site), **changes) as live:
        relay = Relay(port_of(site))
        async with running(through(site, relay), live) as again, running(other, live):
            await until(lambda: again.daemon._agent._stage == "training", "it trains")
            assert size - here <= relay.passed < size - here + SLACK
    relay.close()


async def test_an_upload_goes_on_where_it_broke_off_when_the_coordinator_has_been_started_again(
    tmp_path: Path, many: None
) -> None:
    changes = {"count": 1, "deadline_s": 60.0}
    content = puppets.np.full(MANY, 0.25, "<f4").tobytes()
    digest = puppets.hashlib.sha256(content).digest()
    half = 5 << 20
    async with stage(tmp_path, **changes) as live:
        sites = [await live.site(f"site-{index}") for index in range(2)]
        async with live.puppet(sites[0]) as first, live.puppet(sites[1]) as second:
            await first.ready()
            await second.ready()
            await first.hear("task")
            call = first.blobs.Upload()
            header = blobs_pb2.BlobHeader(digest=digest, size=len(content))
            await call.write(blobs_pb2.BlobUpload(header=header))
            for start in range(0, half, 1 << 20):
                await call.write(blobs_pb2.BlobUpload(chunk=content[start : start + (1 << 20)]))
            blobs = live.running.daemon.blobs
            await until(lambda: blobs.received(digest, "site-0") == half, "a part of it has arrived")
            call.cancel()
    async with (
        stage(tmp_path, port=port_of(sites[0]), **changes) as live,
        live.puppet(sites[0]) as first,
        live.puppet(sites[1]) as second,
    ):
        await first.ready()
        await second.ready()
        stat = await first.blobs.Stat(blobs_pb2.BlobStatRequest(digest=digest))
        assert stat.received == half
        # Nobody else's: the other site's copy begins at the beginning.
        assert (await second.blobs.Stat(blobs_pb2.BlobStatRequest(digest=digest))).received == 0
        task = await first.hear("task")
        call = first.blobs.Upload()
        header = blobs_pb2.BlobHeader(digest=digest, size=len(content), offset=half)
        await call.write(blobs_pb2.BlobUpload(header=header))
        for start in range(half, len(content), 1 << 20):
            await call.write(blobs_pb2.BlobUpload(chunk=content[start : start + (1 << 20)]))
        await call.done_writing()
        await call
        await first.announce(task.task_id, content)
        assert (await first.hear("receipt")).accepted


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


class Wide(Fragile):
    """Two sites and a model of several chunks; a relay stands in front of the first."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        config = configuration(
            folder,
            participants=2,
            rounds=1,
            steps=1,
            lease_s=60.0,
            deadline_s=600.0,
            aggregation="plain",
            pace="evaluate_every = 0",
        )
        text = config.read_text()
        for before, after in (("width = 16", "width = 512"), ("embedding = 16", "embedding = 64")):
            assert before in text
            text = text.replace(before, after)
        config.write_text(text)
        super().__init__(folder, config, nursery, ["site-0", "site-1"])

    def allow_plain(self) -> None:
        for name in self.names:
            path = self.home(name) / "participant.toml"
            path.write_text(path.read_text().replace("allow_plain = false", "allow_plain = true"))

    def through(self, relay: Relay) -> None:
        path = self.home("site-0") / "participant.toml"
        path.write_text(re.sub(r'session_address = ".*"', f'session_address = "{relay.address}"', path.read_text()))

    def kill_both(self) -> None:
        assert self.coordinator is not None
        for process in (self.participants["site-0"], self.coordinator):
            process.kill()
            process.wait()

    def relay(self, cut_after: int | None) -> Relay:
        port = int(self.listening["session"].rpartition(":")[2])
        relay = Relay(port) if cut_after is None else Last(port, cut_after)
        self.through(relay)
        return relay

    def part(self, folder: Path, name: str) -> int:
        """Bytes of the one transfer that was interrupted there."""
        found = [path.stat().st_size for path in folder.glob(name)]
        assert len(found) == 1, found
        return found[0]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_transfers_go_on_after_both_processes_are_killed_in_the_middle_of_them(
    tmp_path: Path, nursery: Nursery
) -> None:
    with Wide(tmp_path, nursery) as federation:
        federation.start_coordinator()
        asyncio.run(federation._join_all())
        federation.allow_plain()
        relay = federation.relay(8 << 20)
        for name in federation.names:
            federation.start_participant(name, "--once")
        federation.until(lambda: relay.cuts, "it is cut off in the download")
        federation.kill_both()
        relay.close()
        here = federation.part(federation.home("site-0") / "blobs", "*.part")
        assert here >= 4 << 20

        federation.start_coordinator()
        size = federation.status()["model"]["size"]
        rest = int(size) - here
        relay = federation.relay(rest + (6 << 20))
        federation.start_participant("site-0", "--once")
        federation.until(lambda: relay.cuts, "it has the model, trained, and is cut off in the upload")
        federation.kill_both()
        relay.close()
        journal = ParticipantStore(federation.home("site-0") / JOURNAL)
        (task,) = journal.history(2)
        journal.close()
        there = federation.part(tmp_path / "state" / "blobs", "*.site-0.part")
        assert there >= 2 << 20

        federation.start_coordinator()
        relay = federation.relay(None)
        federation.start_participant("site-0", "--once")
        federation.until(lambda: federation.participants["site-0"].poll() == 0, "the run ends")
        assert task.update_size - there <= relay.passed < task.update_size - there + SLACK
        relay.close()
        federation.check_logs()
        journal = ParticipantStore(federation.home("site-0") / JOURNAL)
        (done,) = journal.history(2)
        journal.close()
        assert (done.update_digest, str(done.state)) == (task.update_digest, "receipted")
