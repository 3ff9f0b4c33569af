"""Peers that send faster than they are read, don't read, or open many streams: slowed, bounded, and alone in it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator import daemon as coordinator_daemon
from coordinator.daemon import Outbox
from participant import daemon as participant_daemon
from participant.site import Site
from protos import blobs_pb2, blobs_pb2_grpc, control_pb2, session_pb2_grpc
from protos import session_pb2 as pb
from tests.adversarial.liars import LiveSite
from tests.adversarial.puppets import Puppet, Stage, stage, update
from tests.e2e.test_asynchronous import PacedWork, trained
from wire import PROTOCOL_VERSION, ResourceError, client_credentials, connect, error_from
from wire.transfer import GO_KEY

UNREAD_BYTES = 2 * (64 << 10)
"""What a peer has written and the coordinator not read: the stream's window, and its own gRPC's buffer."""


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def puppets(live: Stage, *names: str) -> AsyncIterator[list[Puppet]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(live.puppet(await live.site(name))) for name in names]


@contextlib.asynccontextmanager
async def working(work: Awaitable[None]) -> AsyncIterator[asyncio.Future[None]]:
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def finish(first: Puppet, second: Puppet) -> None:
    """The honest others' run."""
    for puppet in (first, second):
        await puppet.ready()
    assert (await asyncio.gather(first.deliver(update(0.5)), second.deliver(update(0.25))))[0].accepted
    assert (await first.hear("run_finished")).version == 1


class Watch:
    """What the coordinator handles of one peer, and the most that waits for it."""

    def __init__(self, live: Stage, peer: str) -> None:
        self.handled = 0
        self.longest = 0
        daemon = live.running.daemon
        inner = daemon.receive

        async def receive(sender: str, message: pb.FromParticipant) -> None:
            await inner(sender, message)
            if sender == peer:
                self.handled += 1
                self.longest = max(self.longest, len(daemon._outboxes[peer]._waiting))

        daemon.receive = receive  # type: ignore[method-assign]


async def test_who_sends_faster_than_it_is_read_is_slowed_and_the_others_finish(tmp_path: Path) -> None:
    async with (
        stage(tmp_path, limits={"peer_messages_per_s": 50.0}) as live,
        puppets(live, "flood", "a", "b") as (flood, a, b),
    ):
        watch, sent = Watch(live, "flood"), 0
        message = pb.Progress(stage="training", task_id="x" * 3_000)

        async def pour() -> None:
            nonlocal sent
            while True:
                await flood.say(progress=message)
                sent += 1

        await flood.say(check_in=pb.CheckIn(protocol_version=PROTOCOL_VERSION))
        await flood.hear("welcome")
        async with working(pour()) as pouring:
            # It has used up what it may send at once, and from then on waits for its turn.
            await until(lambda: watch.handled > 5 * 50)
            await finish(a, b)
            assert not pouring.done(), "it isn't disconnected for being fast"
            assert sent - watch.handled <= UNREAD_BYTES // message.ByteSize() + 5
        hub = live.running.daemon.hub
        assert hub is not None and hub.presence["flood"].connected, "what it has sent has renewed its lease"


async def test_who_asks_and_does_not_read_the_answers_is_read_no_more(tmp_path: Path) -> None:
    async with stage(tmp_path) as live, puppets(live, "deaf", "a", "b") as (deaf, a, b):
        watch, sent = Watch(live, "deaf"), 0

        async def ask() -> None:
            nonlocal sent
            while True:
                await deaf.say(check_in=pb.CheckIn(protocol_version=PROTOCOL_VERSION, software="x" * 1_000))
                sent += 1

        async with working(ask()):
            await until(lambda: watch.longest > coordinator_daemon._ROOM)
            await finish(a, b)
            before = watch.handled
            await asyncio.sleep(0.2)
            assert watch.handled == before
            assert watch.longest <= coordinator_daemon._ROOM + 4
            assert sent - watch.handled <= UNREAD_BYTES // 1_000 + 5
            assert live.running.daemon.connected("deaf")
            # As soon as it reads, it is read.
            for _ in range(2 * coordinator_daemon._ROOM):
                await deaf.hear("welcome")
            await until(lambda: watch.handled > before)


async def test_a_stream_whose_peer_never_reads_is_cut_off_in_the_middle_of_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_daemon, "_LINGER_S", 0.2)
    async with stage(tmp_path, limits={"peer_outbox_mb": 8}) as live, puppets(live, "deaf") as (deaf,):
        daemon = live.running.daemon
        await deaf.say(check_in=pb.CheckIn(protocol_version=PROTOCOL_VERSION))
        await until(lambda: daemon.connected("deaf"))
        # More than fits into the window of its stream: the coordinator waits in the middle of writing.
        parting = pb.FromCoordinator(rejection=pb.Rejection(code="x", message="y" * (1 << 20)))
        outbox = daemon._outboxes["deaf"]
        for _ in range(12):
            daemon._send("deaf", parting)
            assert outbox._bytes <= 8 << 20
            await asyncio.sleep(0)
        await until(lambda: not daemon.connected("deaf"))
        assert not outbox._waiting
        # Its connection is as good as before.
        async with connect_as(live, "deaf") as channel:
            again = Puppet("deaf", live.plan, channel)
            await again.ready()


@contextlib.asynccontextmanager
async def connect_as(live: Stage, name: str) -> AsyncIterator[grpc.aio.Channel]:
    """Another connection of a joined site."""
    site = Site.load(live.folder / name)
    async with connect(site.config.session_address, client_credentials(site.credentials), site.federation) as channel:
        yield channel


async def test_the_newest_of_a_peers_streams_is_the_one_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_daemon, "_LINGER_S", 0.1)
    made: list[Outbox] = []

    class Counted(Outbox):
        def __init__(self, most_bytes: int) -> None:
            super().__init__(most_bytes)
            made.append(self)

    monkeypatch.setattr(coordinator_daemon, "Outbox", Counted)
    async with stage(tmp_path) as live, contextlib.AsyncExitStack() as stack:
        await live.site("many")
        for number in range(12):
            channel = await stack.enter_async_context(connect_as(live, "many"))
            attach: Any = session_pb2_grpc.SessionStub(channel).Attach
            call = attach()  # none of them reads
            stack.callback(call.cancel)
            await call.write(pb.FromParticipant(check_in=pb.CheckIn(protocol_version=PROTOCOL_VERSION)))
            await until(lambda number=number: len(made) > number)
        await until(lambda: all(outbox._cut is None or outbox._cut.cancelled() for outbox in made[:-1]))
        assert live.running.daemon._outboxes["many"] is made[-1]
        last = await call.read()
        assert last.WhichOneof("body") == "welcome"


@contextlib.asynccontextmanager
async def uploads(live: Stage, name: str, count: int, *, begun: bool) -> AsyncIterator[list[Any]]:
    """So many uploads at a time, which stand still: with a chunk of theirs, or before their header."""
    async with contextlib.AsyncExitStack() as stack:
        stub: Any = blobs_pb2_grpc.BlobsStub(await stack.enter_async_context(connect_as(live, name)))
        calls = []
        for number in range(count):
            call = stub.Upload()
            stack.callback(call.cancel)
            calls.append(call)
            if begun:
                digest = hashlib.sha256(bytes([number])).digest()
                await call.write(blobs_pb2.BlobUpload(header=blobs_pb2.BlobHeader(digest=digest, size=len(update()))))
                if GO_KEY in dict(await call.initial_metadata() or ()):
                    await call.write(blobs_pb2.BlobUpload(chunk=bytes(1_000)))
        yield calls


async def refusal(call: Any) -> ResourceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = error_from(caught.value)
    assert isinstance(error, ResourceError) and error.code == "quota"
    return error


@pytest.mark.parametrize(
    ("limits", "begun", "count", "text"),
    [
        ({"peer_transfers": 2}, True, 3, "2 transfers in progress"),
        ({"peer_upload_mb": 1, "peer_transfers": 8}, True, 6, "bytes in flight"),
        ({"peer_transfers": 2, "peer_calls": 4}, False, 4, "4 calls in progress"),
        ({"peer_transfers": 2, "peer_calls": 1_024, "max_calls": 16}, False, 16, ""),
    ],
)
async def test_what_is_beyond_a_limit_is_refused_until_there_is_room(
    tmp_path: Path, limits: dict[str, object], begun: bool, count: int, text: str
) -> None:
    async with stage(tmp_path, limits=limits) as live, puppets(live, "greedy", "a") as (greedy, a):
        for puppet in (greedy, a):
            await puppet.ready()
        await greedy.hear("task")
        async with uploads(live, "greedy", count, begun=begun) as calls:
            # Each has arrived, in whatever order, and one of them found no room.
            done, _ = await asyncio.wait(
                [asyncio.ensure_future(refusal(call)) for call in calls], return_when="FIRST_COMPLETED"
            )
            assert text in next(iter(done)).result().message
            if "max_calls" not in limits:
                assert (await a.deliver(update())).accepted, "others have their own"
                assert (await live.status()).state == "training"
        async with asyncio.timeout(20):
            while True:
                try:
                    await greedy.upload(update(0.75))
                    break
                except grpc.aio.AioRpcError as error:
                    assert error_from(error).code == "quota"
                    await asyncio.sleep(0.05)


async def test_an_update_announced_over_and_over_is_checked_once_at_a_time(tmp_path: Path) -> None:
    async with stage(tmp_path) as live, puppets(live, "a", "b") as (a, b):
        for puppet in (a, b):
            await puppet.ready()
        task = await a.hear("task")
        await a.upload(update())
        intake = live.running.daemon._intake
        assert intake is not None
        take, running, most, taken = intake.take, 0, 0, 0

        def watched(*arguments: Any) -> None:
            nonlocal running, most, taken
            running, taken = running + 1, taken + 1
            most = max(most, running)
            take(*arguments)
            running -= 1

        intake.take = watched  # type: ignore[method-assign]
        for _ in range(200):
            await a.announce(task.task_id, update())
        assert (await a.hear("receipt")).accepted
        await a.say(progress=pb.Progress(stage="idle"))
        assert (await b.deliver(update())).accepted
        assert (await a.hear("run_finished")).version == 1
        assert most == 1 and 1 <= taken <= 2


async def test_a_site_waits_for_room_and_then_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(participant_daemon, "_FIRST_WAIT_S", 0.05)
    refused: list[str] = []
    monkeypatch.setattr(
        participant_daemon._log, "warning", lambda text, *values: refused.append(text % values if values else text)
    )
    async with stage(tmp_path, limits={"peer_transfers": 1}) as live, puppets(live, "a") as (a,):
        site = await live.site("site-0")
        await a.ready()
        running = LiveSite(site, live.plan)
        # It trains for so long that another transfer of its own is in the way, of which its daemon knows nothing.
        running.daemon._bench = PacedWork(site.name, live.plan, 1.0)  # type: ignore[assignment]
        try:
            async with connect_as(live, "site-0") as channel:
                stub: Any = blobs_pb2_grpc.BlobsStub(channel)
                blocking = stub.Upload()
                hub = live.running.daemon.hub
                assert hub is not None
                while True:
                    await blocking.write(
                        blobs_pb2.BlobUpload(header=blobs_pb2.BlobHeader(digest=bytes(32), size=len(update())))
                    )
                    if GO_KEY in dict(await blocking.initial_metadata() or ()):
                        break
                    await asyncio.sleep(0.01)
                    blocking = stub.Upload()
                await until(lambda: any("transfers in progress" in text for text in refused))
                blocking.cancel()
            assert (await a.deliver(update())).accepted
            assert (await a.hear("run_finished")).version == 1
        finally:
            await running.close()
        digest = hashlib.sha256(trained("site-0", 0).tobytes()).hexdigest()
        merged = hub.machine.state.rounds[-1].seats["site-0"]
        assert (merged.outcome, merged.digest) == ("done", digest)
        status: control_pb2.Status = await live.status()
        assert status.version == 1


async def said(reader: asyncio.StreamReader) -> bytes:
    """What the other side says before it ends the connection, one way or the other."""
    try:
        return await reader.read(1)
    except ConnectionError:
        return b""


async def test_connections_beyond_the_limit_are_closed_before_they_say_a_word(tmp_path: Path) -> None:
    async with stage(tmp_path, limits={"max_calls": 16}) as live, puppets(live, "a", "b") as (a, b):
        for puppet in (a, b):
            await puppet.ready()
        idle = [await asyncio.open_connection("127.0.0.1", live.running.session.port) for _ in range(40)]
        try:
            ends = [asyncio.ensure_future(said(reader)) for reader, _ in idle]
            await until(lambda: sum(end.done() for end in ends) >= 40 - 16)
            assert not any(end.result() for end in ends if end.done())
            # Who is there already isn't disturbed.
            assert (await asyncio.gather(a.deliver(update(0.5)), b.deliver(update(0.25))))[0].accepted
            assert (await a.hear("run_finished")).version == 1
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            for _, writer in idle:
                writer.close()
