"""Blobs over real gRPC with mutual TLS: entitlement, damage, interruption, quota."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from blob_site import DATA, DIGEST, OTHER, Site, put

from protos import blobs_pb2, blobs_pb2_grpc
from wire import (
    BlobStore,
    DataError,
    FederationCA,
    FedloomError,
    RefusedError,
    ResourceError,
    Role,
    UnreachableError,
    client_credentials,
    connect,
    download,
    error_from,
    file_digest,
    upload,
)
from wire.transfer import CHUNK_BYTES


async def send(stub: Any, *messages: Any) -> FedloomError | blobs_pb2.BlobStat:
    """An upload by hand: everything is handed over at once, whether the server wants it or not."""

    async def written() -> AsyncIterator[blobs_pb2.BlobUpload]:
        for message in messages:
            is_header = isinstance(message, blobs_pb2.BlobHeader)
            yield blobs_pb2.BlobUpload(header=message) if is_header else blobs_pb2.BlobUpload(chunk=message)

    call = stub.Upload(written())
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error_from(error)


def header(digest: bytes = DIGEST, size: int = len(DATA), offset: int = 0) -> blobs_pb2.BlobHeader:
    return blobs_pb2.BlobHeader(digest=digest, size=size, offset=offset)


async def test_there_and_back(site: Site, stub: Any, local: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    sent: list[tuple[int, int]] = []
    got: list[tuple[int, int]] = []
    await upload(stub, tmp_path / "file", DIGEST, progress=lambda *step: sent.append(step))
    assert site.store.path(DIGEST).read_bytes() == DATA
    path = await download(stub, DIGEST, len(DATA), local, progress=lambda *step: got.append(step))
    assert path.read_bytes() == DATA
    for steps in (sent, got):
        assert steps == sorted(steps)
        assert steps[-1] == (len(DATA), len(DATA))


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 4 * CHUNK_BYTES, 9 * CHUNK_BYTES])
async def test_sizes_around_the_seams(site: Site, stub: Any, local: BlobStore, size: int) -> None:
    data = DATA[:size]
    digest = hashlib.sha256(data).digest()
    await upload(stub, memoryview(data), digest)
    assert (await download(stub, digest, size, local)).read_bytes() == data


async def test_a_second_upload_sends_nothing(site: Site, stub: Any) -> None:
    await upload(stub, DATA, DIGEST)
    steps: list[tuple[int, int]] = []
    await upload(stub, DATA, DIGEST, progress=lambda *step: steps.append(step))
    assert steps == []


async def test_stat(site: Site, stub: Any, ca: FederationCA) -> None:
    reply = await stub.Stat(blobs_pb2.BlobStatRequest(digest=DIGEST))
    assert (reply.size, reply.received) == (0, 0)
    await send(stub, header(), DATA[:100])
    reply = await stub.Stat(blobs_pb2.BlobStatRequest(digest=DIGEST))
    assert (reply.size, reply.received) == (len(DATA), 100)
    put(site.store)
    reply = await stub.Stat(blobs_pb2.BlobStatRequest(digest=DIGEST))
    assert (reply.size, reply.received) == (len(DATA), len(DATA))
    # Whoever may not read a blob doesn't learn that it is there.
    site.policy.forbidden.add("hospital-b")
    async with connect(
        site.listener.address, client_credentials(ca.issue_client("hospital-b", Role.PARTICIPANT, 1)), "demo"
    ) as channel:
        reply = await blobs_pb2_grpc.BlobsStub(channel).Stat(blobs_pb2.BlobStatRequest(digest=DIGEST))
    assert (reply.size, reply.received) == (0, 0)


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([], "protocol-order"),
        ([b"chunk first"], "protocol-order"),
        ([header(), b"x", header()], "protocol-order"),
        ([header(digest=b"short")], "blob-unknown"),
        ([header(digest=b"../../../../../../../etc/passwd")], "blob-unknown"),
        ([header(size=0)], "blob-size"),
        ([header(size=1 << 62)], "blob-size"),
        ([header(size=1 << 40)], "blob-not-expected"),
        ([header(offset=len(DATA) + 1)], "blob-offset"),
        ([header(offset=5)], "blob-offset"),
        ([header(), b""], "blob-size"),
        ([header(), bytes(CHUNK_BYTES + 1)], "blob-size"),
        ([header(size=10), bytes(11)], "blob-size"),
        ([header(size=10), bytes(10)], "blob-digest"),
        ([header(size=10), bytes(9)], "blob-truncated"),
        ([header(size=10)], "blob-truncated"),
    ],
)
async def test_uploads_refused_by_name(site: Site, stub: Any, messages: list[Any], code: str) -> None:
    reply = await send(stub, *messages)
    assert isinstance(reply, RefusedError), reply
    assert reply.code == code
    assert site.policy.refusals == [("hospital-a", code)]
    assert not site.store.has(DIGEST)
    # Only what can be gone on with stays on the disk.
    left = {path.stat().st_size for path in site.store.folder.iterdir()} - {0}
    assert left == (
        {9} if messages[1:] == [bytes(9)] else ({1} if code == "protocol-order" and len(messages) == 3 else set())
    )


async def test_not_entitled(site: Site, stub: Any, local: BlobStore) -> None:
    put(site.store)
    site.policy.forbidden.add("hospital-a")
    with pytest.raises(RefusedError) as caught:
        await upload(stub, b"other", OTHER)
    assert caught.value.code == "blob-not-expected"
    with pytest.raises(RefusedError) as caught:
        await download(stub, DIGEST, len(DATA), local)
    assert caught.value.code == "blob-not-expected"
    assert [item.name for item in site.store.folder.iterdir()] == [DIGEST.hex()]


async def test_downloads_refused_by_name(site: Site, stub: Any, local: BlobStore) -> None:
    with pytest.raises(RefusedError) as caught:
        await download(stub, DIGEST, len(DATA), local)
    assert caught.value.code == "blob-unknown"
    put(site.store)
    call = stub.Download(blobs_pb2.BlobDownloadRequest(digest=DIGEST, offset=len(DATA) + 1))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert error_from(refused.value).code == "blob-offset"


async def test_a_server_that_sends_more_or_something_else(site: Site, stub: Any, local: BlobStore) -> None:
    put(site.store)
    with pytest.raises(RefusedError) as caught:
        await download(stub, DIGEST, len(DATA) - 1, local)
    assert caught.value.code == "blob-size"
    site.store.path(DIGEST).write_bytes(bytes(len(DATA)))
    with pytest.raises(RefusedError) as caught:
        await download(stub, DIGEST, len(DATA), local)
    assert caught.value.code == "blob-digest"
    assert list(local.folder.iterdir()) == []


async def test_a_source_that_is_not_what_was_announced(site: Site, stub: Any, tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as caught:
        await upload(stub, b"something else", OTHER)
    assert caught.value.code == "blob-digest"
    with pytest.raises(DataError):
        await upload(stub, tmp_path / "missing", OTHER)


async def test_a_download_goes_on_after_a_restart_of_the_client(site: Site, stub: Any, local: BlobStore) -> None:
    put(site.store)
    writer = local.open_writer(DIGEST, len(DATA))
    writer.write([DATA[: 3 << 20]])
    writer.close()
    steps: list[int] = []
    await download(stub, DIGEST, len(DATA), BlobStore(local.folder), progress=lambda done, _: steps.append(done))
    assert steps[0] > 3 << 20
    assert local.path(DIGEST).read_bytes() == DATA


@pytest.mark.parametrize("direction", ["upload", "download"])
async def test_a_damaged_partial_copy_is_sent_anew(site: Site, stub: Any, local: BlobStore, direction: str) -> None:
    holder = site.store if direction == "upload" else local
    owner = "hospital-a" if direction == "upload" else ""
    writer = holder.open_writer(DIGEST, len(DATA), 0, owner)
    writer.write([bytes(1 << 20)])
    writer.close()
    if direction == "upload":
        await upload(stub, DATA, DIGEST)
    else:
        put(site.store)
        await download(stub, DIGEST, len(DATA), local)
    assert holder.path(DIGEST).read_bytes() == DATA


async def test_giving_up_is_bounded(site: Site, stub: Any, local: BlobStore) -> None:
    await site.listener.stop()
    with pytest.raises(UnreachableError):
        await upload(stub, DATA, DIGEST, attempts=2)
    with pytest.raises(UnreachableError):
        await download(stub, DIGEST, len(DATA), local, attempts=2)


async def test_the_server_comes_back(site: Site, stub: Any) -> None:
    await site.listener.stop()
    sending = asyncio.create_task(upload(stub, DATA, DIGEST, attempts=20))
    await asyncio.sleep(0.3)
    await site.restart()
    await sending
    assert site.store.has(DIGEST)


async def test_quota_of_bytes_in_flight(site: Site, stub: Any, ca: FederationCA) -> None:
    await site.restart(quota_bytes=len(DATA))
    call = stub.Upload()
    await call.write(blobs_pb2.BlobUpload(header=header()))
    await call.write(blobs_pb2.BlobUpload(chunk=DATA[:CHUNK_BYTES]))
    while not site.store.writing(DIGEST, "hospital-a"):
        await asyncio.sleep(0.01)
    refused = await send(stub, header(digest=OTHER, size=5), b"other")
    assert isinstance(refused, ResourceError)
    assert refused.code == "quota"
    # Another peer has its own.
    async with connect(
        site.listener.address, client_credentials(ca.issue_client("hospital-b", Role.PARTICIPANT, 1)), "demo"
    ) as channel:
        await upload(blobs_pb2_grpc.BlobsStub(channel), b"other", OTHER)
    site.store.remove(OTHER)
    # A blob larger than the quota never fits.
    too_large = await send(stub, header(size=len(DATA) + 1))
    assert isinstance(too_large, ResourceError)
    call.cancel()


async def test_unfinished_uploads_make_room_for_the_next(site: Site, stub: Any) -> None:
    await site.restart(quota_bytes=len(DATA) + 10)
    await send(stub, header(), DATA[:CHUNK_BYTES])
    assert site.store.received(DIGEST, "hospital-a") == CHUNK_BYTES
    await upload(stub, bytes(20), hashlib.sha256(bytes(20)).digest())
    assert site.store.received(DIGEST, "hospital-a") == 0
    await upload(stub, DATA, DIGEST)
    await upload(stub, bytes(30), hashlib.sha256(bytes(30)).digest())


async def test_transfers_at_a_time(site: Site, stub: Any) -> None:
    await site.restart(max_transfers=1)
    call = stub.Upload()
    await call.write(blobs_pb2.BlobUpload(header=header()))
    while not site.store.writing(DIGEST, "hospital-a"):
        await asyncio.sleep(0.01)
    refused = await send(stub, header(digest=OTHER, size=5), b"other")
    assert isinstance(refused, ResourceError)
    call.cancel()
    while site.store.writing(DIGEST, "hospital-a"):
        await asyncio.sleep(0.01)
    await upload(stub, b"other", OTHER)


async def test_a_full_disk_at_the_server(site: Site, stub: Any) -> None:
    site.store._reserve_bytes = 1 << 60
    with pytest.raises(ResourceError) as caught:
        await upload(stub, DATA, DIGEST)
    assert caught.value.code == "disk-full"


async def test_a_cancelled_upload_keeps_what_has_arrived(site: Site, stub: Any) -> None:
    reached = asyncio.Event()
    sending = asyncio.create_task(
        upload(stub, DATA, DIGEST, progress=lambda done, _: reached.set() if done > 6 << 20 else None)
    )
    await reached.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    while site.store.writing(DIGEST, "hospital-a"):
        await asyncio.sleep(0.01)
    assert site.store.has(DIGEST) or site.store.received(DIGEST, "hospital-a") >= CHUNK_BYTES
    await upload(stub, DATA, DIGEST)
    assert site.store.path(DIGEST).read_bytes() == DATA


async def test_many_at_once(site: Site, stub: Any, tmp_path: Path) -> None:
    blobs = [os.urandom(2 << 20) for _ in range(6)]
    digests = [hashlib.sha256(blob).digest() for blob in blobs]
    await asyncio.gather(*(upload(stub, blob, digest) for blob, digest in zip(blobs, digests, strict=True)))
    stores = [BlobStore(tmp_path / str(index)) for index in range(6)]
    await asyncio.gather(
        *(download(stub, digest, 2 << 20, store) for digest, store in zip(digests, stores, strict=True))
    )
    assert [store.path(digest).read_bytes() for digest, store in zip(digests, stores, strict=True)] == blobs


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    assert file_digest(tmp_path / "file") == DIGEST
    with pytest.raises(DataError):
        file_digest(tmp_path / "missing")
