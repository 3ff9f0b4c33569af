"""Transfers over connections that are cut, slow or silent: they go on at their byte, as a relay counts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from blob_site import DATA, DIGEST, OTHER, Site, put
from relays import DOWN, UP, Relay, Weather

from protos import blobs_pb2, blobs_pb2_grpc
from wire import BlobStore, Credentials, UnreachableError, client_credentials, connect, download, upload
from wire.transfer import CHUNK_BYTES, LEAST_CHUNK_BYTES, ChunkSize

SPARE = 3 * LEAST_CHUNK_BYTES
"""Headers, handshakes, and what a test's cut can come late by."""


@contextlib.asynccontextmanager
async def relayed(site: Site, own: Credentials) -> AsyncIterator[tuple[Relay, Any]]:
    relay = Relay(site.listener.port)
    try:
        async with connect(relay.address, client_credentials(own), "demo") as channel:
            yield relay, blobs_pb2_grpc.BlobsStub(channel)
    finally:
        relay.close()


@pytest.mark.parametrize("reset", [False, True])
async def test_an_upload_goes_on_at_the_byte_where_it_was_cut(site: Site, hospital: Credentials, reset: bool) -> None:
    async with relayed(site, hospital) as (relay, stub):
        sending = asyncio.create_task(upload(stub, DATA, DIGEST))
        while not site.store.received(DIGEST, "hospital-a"):
            await asyncio.sleep(0.001)
        relay.weather(Weather(bytes_per_s=10e6))
        while site.store.received(DIGEST, "hospital-a") < len(DATA) // 4:
            await asyncio.sleep(0.001)
        sent = relay.up
        relay.cut(reset=reset)
        while site.store.writing(DIGEST, "hospital-a"):
            await asyncio.sleep(0.001)
        held = site.store.received(DIGEST, "hospital-a")
        relay.weather(Weather())
        await sending
        assert site.store.path(DIGEST).read_bytes() == DATA
        assert sent <= relay.up < sent + len(DATA) - held + SPARE
    assert site.policy.signs["hospital-a"] > 4, "each chunk is a sign of life"


async def test_a_download_goes_on_at_the_byte_where_it_was_cut(
    site: Site, hospital: Credentials, local: BlobStore
) -> None:
    put(site.store)
    async with relayed(site, hospital) as (relay, stub):
        relay.cut_after(2 * len(DATA) // 3, DOWN)
        held: list[int] = []
        fetched = await download(
            stub, DIGEST, len(DATA), local, progress=lambda done, _: held.append(done) if not relay.cuts else None
        )
        assert fetched.read_bytes() == DATA
        # Of what had passed before the cut, at most the chunks that were still incomplete or unwritten come again.
        assert relay.cuts == 1
        assert relay.down < len(DATA) + 2 * len(DATA) // 3 - held[-1] + SPARE
        assert held[-1] > len(DATA) // 3


async def test_what_a_server_that_was_killed_has_of_an_upload_is_not_sent_again(
    site: Site, hospital: Credentials
) -> None:
    await send_part(site, hospital)
    held = site.store.received(DIGEST, "hospital-a")
    assert held > len(DATA) // 4
    site.store.keep_only([], lambda owner: owner == "hospital-a")
    await site.restart()
    async with relayed(site, hospital) as (relay, stub):
        await upload(stub, DATA, DIGEST)
        assert relay.up < len(DATA) - held + SPARE


async def test_unfinished_uploads_of_an_earlier_process_count_against_the_quota(
    site: Site, hospital: Credentials
) -> None:
    await send_part(site, hospital)
    held = site.store.received(DIGEST, "hospital-a")
    await site.restart(quota_bytes=held + 10)
    async with connect(site.listener.address, client_credentials(hospital), "demo") as channel:
        await upload(blobs_pb2_grpc.BlobsStub(channel), bytes(20), hashlib.sha256(bytes(20)).digest())
    assert site.store.received(DIGEST, "hospital-a") == 0, "it has made room"


async def send_part(site: Site, own: Credentials) -> None:
    """Leave a good part of an upload at the server."""
    async with relayed(site, own) as (relay, stub):
        relay.cut_after(2 * len(DATA) // 3, UP)
        sending = asyncio.create_task(upload(stub, DATA, DIGEST, attempts=1))
        with pytest.raises(UnreachableError):
            await sending
        while site.store.writing(DIGEST, "hospital-a"):
            await asyncio.sleep(0.001)


async def test_over_a_slow_link_chunks_are_small_and_a_heartbeat_passes_between_them(
    site: Site, hospital: Credentials
) -> None:
    steps: list[int] = []
    async with relayed(site, hospital) as (relay, stub):
        relay.weather(Weather(bytes_per_s=240_000.0))
        data = DATA[:300_000]
        digest = hashlib.sha256(data).digest()
        sending = asyncio.create_task(upload(stub, data, digest, progress=lambda done, _: steps.append(done)))
        while not site.store.received(digest, "hospital-a"):
            await asyncio.sleep(0.01)
        waiting = relay.up
        await stub.Stat(blobs_pb2.BlobStatRequest(digest=OTHER))
        assert relay.up - waiting < CHUNK_BYTES // 8, "no more than a small chunk stands before it"
        relay.weather(Weather())
        await sending
    sizes = [after - before for before, after in itertools.pairwise([0, *steps])]
    assert max(sizes[:3]) <= CHUNK_BYTES // 16


async def test_a_link_with_a_long_way_shakes_hands_all_the_same(site: Site, hospital: Credentials) -> None:
    async with relayed(site, hospital) as (relay, stub):
        relay.weather(Weather(delay_s=0.15))
        reply = await stub.Stat(blobs_pb2.BlobStatRequest(digest=DIGEST))
    assert reply.received == 0


async def test_a_call_with_one_answer_has_a_deadline(
    site: Site, hospital: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wire.channel.CALL_TIMEOUT_S", 0.3)
    async with relayed(site, hospital) as (relay, stub):
        await stub.Stat(blobs_pb2.BlobStatRequest(digest=DIGEST))
        relay.silence(DOWN)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Stat(blobs_pb2.BlobStatRequest(digest=DIGEST))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_chunks_grow_on_a_quick_link_and_shrink_on_a_slow_one() -> None:
    chunk = ChunkSize()
    first = chunk.size
    chunk.took(0.0)
    assert chunk.size == first, "the first one lands in empty buffers"
    for _ in range(20):
        chunk.took(0.1)
    assert chunk.size == CHUNK_BYTES
    chunk.took(0.5)
    assert chunk.size == CHUNK_BYTES
    for _ in range(20):
        chunk.took(3.0)
    assert chunk.size == LEAST_CHUNK_BYTES
