"""Blobs over gRPC: clients that go on where a broken connection stopped them, and what both sides stream with.

Hashing and disk work happen in worker threads while the event loop receives the next chunks; a transfer holds at most
two batches of ``BATCH`` chunks. Chunks are as large as the link carries in a second or so: what is on its way is what
a cut loses, and what a sign of life on the same connection waits behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

import grpc

from protos import blobs_pb2, blobs_pb2_grpc
from wire.blobs import BlobStore, Buffer, PartWriter, disk_errors, unknown
from wire.channel import error_from
from wire.errors import FedloomError, RefusedError, UnreachableError

CHUNK_BYTES: Final = 2 << 20
"""A server that sends spends half the processor time that it spends on chunks of 1 MiB; 4 MiB is a message's limit."""

LEAST_CHUNK_BYTES: Final = 32 << 10
_FIRST_CHUNK_BYTES: Final = 64 << 10
_QUICK_S: Final = 0.25  # a chunk that took less is followed by one of twice the size
_SLOW_S: Final = 1.0  # one that took more, by one of half the size

BATCH: Final = 1
"""Chunks that go to a worker thread together at the receiver: more cost memory and gain nothing measurable."""

GO_KEY: Final = "fedloom-go"
"""Initial metadata of an upload whose content the server wants."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

Before = Callable[[int], None]
"""Called with the bytes that an attempt is about to move, before the first one; what it raises ends the transfer."""


def bounded(chunk: bytes) -> bytes:
    """``chunk`` if it has a size that a chunk may have; raises ``blob-size`` else."""
    if not 0 < len(chunk) <= CHUNK_BYTES:
        raise RefusedError("blob-size", f"a chunk has {len(chunk)} bytes; 1 to {CHUNK_BYTES} are allowed")
    return chunk


async def receive(chunks: AsyncIterator[bytes], writer: PartWriter, progress: Callable[[], None] | None = None) -> None:
    """Feed a writer and commit: one batch is hashed and written in a thread while the next one arrives.

    Whatever interrupts the stream, what has arrived is written first, so that a resumed transfer goes on from there.
    """
    batch: list[bytes] = []
    writing: asyncio.Future[None] | None = None
    try:
        async for chunk in chunks:
            batch.append(chunk)
            if len(batch) >= BATCH or (writing is not None and writing.done()):
                if writing is not None:
                    await writing
                    if progress is not None:
                        progress()
                writing, batch = _in_thread(writer, batch), []
    except BaseException:
        await asyncio.shield(_flush(writer, writing, batch))
        raise
    if writing is not None:
        await writing
    await asyncio.to_thread(_finish, writer, batch)
    if progress is not None:
        progress()


def _in_thread(writer: PartWriter, batch: Sequence[bytes]) -> asyncio.Future[None]:
    return asyncio.get_running_loop().run_in_executor(None, writer.write, batch)


async def _flush(writer: PartWriter, writing: asyncio.Future[None] | None, batch: Sequence[bytes]) -> None:
    # The error that interrupted the stream is the one to report, not what the remains meet.
    with contextlib.suppress(FedloomError, ValueError):
        if writing is not None:
            await writing
        await asyncio.to_thread(writer.write, batch)


def _finish(writer: PartWriter, batch: Sequence[bytes]) -> None:
    writer.write(batch)
    writer.commit()


class ChunkSize:
    """How large the next chunk should be, after how long the ones before took to be sent.

    Attributes:
        size: Bytes, ``LEAST_CHUNK_BYTES`` to ``CHUNK_BYTES``.
    """

    def __init__(self) -> None:
        self.size = _FIRST_CHUNK_BYTES
        self._measured = False

    def took(self, seconds: float) -> None:
        """A chunk has been sent, in this time. The first one's says nothing: it fits into empty buffers."""
        if not self._measured:
            self._measured = True
        elif seconds < _QUICK_S:
            self.size = min(CHUNK_BYTES, 2 * self.size)
        elif seconds > _SLOW_S:
            self.size = max(LEAST_CHUNK_BYTES, self.size // 2)


async def read_ahead(path: Path, offset: int, size: int) -> AsyncGenerator[bytes, None]:
    """Chunks of a file from ``offset``; the next one is read in a thread while the present one is sent."""
    with disk_errors(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise unknown(bytes.fromhex(path.name)) from None
    loop = asyncio.get_running_loop()
    reading: asyncio.Future[bytes] | None = None
    chunk = ChunkSize()
    try:
        reading = loop.run_in_executor(None, _read_chunk, descriptor, path, offset, min(chunk.size, size - offset))
        while data := await reading:
            offset += len(data)
            reading = loop.run_in_executor(None, _read_chunk, descriptor, path, offset, min(chunk.size, size - offset))
            began_s = loop.time()
            yield data
            chunk.took(loop.time() - began_s)
    finally:
        if reading is not None:
            with contextlib.suppress(Exception):
                await asyncio.shield(reading)
        os.close(descriptor)


def _read_chunk(descriptor: int, path: Path, offset: int, length: int) -> bytes:
    if not length:
        return b""
    with disk_errors(path):
        data = os.pread(descriptor, length, offset)
    if not data:
        raise RefusedError("blob-truncated", f"the blob became shorter while it was read, at byte {offset}")
    return data


# ---- clients ------------------------------------------------------------------------------------------------------

ATTEMPTS: Final = 5
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


class _Retry:
    """Counts attempts that made no progress, and waits between them (exponential, with jitter)."""

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._failed = 0
        self._best = -1

    async def after(self, error: FedloomError, done: int) -> None:
        """Wait before another attempt, or raise ``error`` if there were enough in vain."""
        if not isinstance(error, UnreachableError):
            raise error
        if done > self._best:
            self._best, self._failed = done, 0
        self._failed += 1
        if self._failed >= self._attempts:
            raise error
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (self._failed - 1))
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))


async def upload(
    stub: blobs_pb2_grpc.BlobsAsyncStub,
    source: Path | Buffer,
    digest: bytes,
    *,
    progress: Progress | None = None,
    before: Before | None = None,
    attempts: int = ATTEMPTS,
) -> None:
    """Send a blob; go on after a broken connection where the server's copy ends.

    Args:
        stub: Of a channel with mutual TLS.
        source: The file, or its content.
        digest: SHA-256 of the content, 32 bytes.
        progress: Called with (bytes sent, bytes in all).
        before: See :data:`Before`.
        attempts: Attempts in a row without progress before giving up.

    Raises:
        RefusedError: As the server names it, for example ``blob-not-expected``.
        ResourceError: ``disk-full`` or ``quota`` at the server.
        UnreachableError: After ``attempts`` without progress.
        DataError: If the file can't be read.
    """
    if isinstance(source, Path):
        with disk_errors(source):
            size = source.stat().st_size
    else:
        size = len(memoryview(source).cast("B"))
    retry = _Retry(attempts)
    restarted = False
    while True:
        offset = 0
        error: FedloomError
        try:
            stat = await stub.Stat(blobs_pb2.BlobStatRequest(digest=digest))
            offset = stat.received if stat.received <= size else 0
            if before is not None and offset < size:
                before(size - offset)
            await _send(stub, source, blobs_pb2.BlobHeader(digest=digest, size=size, offset=offset), progress)
            return
        except grpc.aio.AioRpcError as rpc_error:
            error = error_from(rpc_error)
        except UnreachableError as broken:
            error = broken
        if error.code in ("blob-digest", "blob-offset") and offset and not restarted:
            # The server's partial copy was damaged, or it changed since Stat: once more from the beginning.
            restarted = True
            continue
        await retry.after(error, offset)


async def _send(
    stub: blobs_pb2_grpc.BlobsAsyncStub,
    source: Path | Buffer,
    header: blobs_pb2.BlobHeader,
    progress: Progress | None,
) -> None:
    # Written to message by message: the stub's type knows only the form with an iterator.
    call: grpc.aio.StreamUnaryCall[blobs_pb2.BlobUpload, blobs_pb2.BlobStat] = cast(Any, stub.Upload)()
    done = header.offset
    try:
        await call.write(blobs_pb2.BlobUpload(header=header))
        # A server that wants the content says so in its initial metadata; else the call ends, with a reason or since
        # the blob is there already. Writing before would cost chunks, and hide the reason.
        if GO_KEY not in dict(await call.initial_metadata() or ()):
            await call
            return
        async with contextlib.aclosing(_source_chunks(source, header.offset, header.size)) as chunks:
            async for chunk in chunks:
                await call.write(blobs_pb2.BlobUpload(chunk=chunk))
                done += len(chunk)
                if progress is not None:
                    progress(done, header.size)
        await call.done_writing()
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError) as error:
        # The call is over before everything is written.
        await _explain_end(call, error)
    except BaseException:
        call.cancel()
        raise
    await call


async def _explain_end(call: Awaitable[object], error: Exception) -> None:
    """Raise why a call ended while we wrote to it.

    grpc.aio replaces the status by INTERNAL ("Internal error from Core") when a write fails before the status is read.
    Such an end is a broken connection to us: the next attempt's header gets the server's reason, if it has one.
    """
    try:
        await call
    except grpc.aio.AioRpcError as end:
        if end.code() is not grpc.StatusCode.INTERNAL:
            raise
    raise UnreachableError("the connection broke during an upload", "Is the coordinator still running?") from error


async def _source_chunks(source: Path | Buffer, offset: int, size: int) -> AsyncGenerator[bytes, None]:
    if isinstance(source, Path):
        async with contextlib.aclosing(read_ahead(source, offset, size)) as chunks:
            async for chunk in chunks:
                yield chunk
        return
    view = memoryview(source).cast("B")
    loop, piece = asyncio.get_running_loop(), ChunkSize()
    while offset < size:
        data = bytes(view[offset : min(size, offset + piece.size)])
        offset += len(data)
        began_s = loop.time()
        yield data
        piece.took(loop.time() - began_s)


async def download(
    stub: blobs_pb2_grpc.BlobsAsyncStub,
    digest: bytes,
    size: int,
    store: BlobStore,
    *,
    progress: Progress | None = None,
    before: Before | None = None,
    attempts: int = ATTEMPTS,
) -> Path:
    """Fetch a blob into a store; go on after a broken connection, or a restart, where the partial file ends.

    Args:
        stub: Of a channel with mutual TLS.
        digest: SHA-256 of the content, 32 bytes.
        size: That it must have, in bytes.
        store: Where to put it.
        progress: Called with (bytes here, bytes in all).
        before: See :data:`Before`.
        attempts: Attempts in a row without progress before giving up.

    Returns:
        The blob's path in the store.

    Raises:
        RefusedError: ``blob-size``, ``blob-digest``, or as the server names it.
        ResourceError: ``disk-full`` here.
        UnreachableError: After ``attempts`` without progress.
    """
    if await asyncio.to_thread(store.has, digest):
        return store.path(digest)
    retry = _Retry(attempts)
    restarted = False
    while True:
        offset = await asyncio.to_thread(store.received, digest)
        offset = offset if offset <= size else 0
        if before is not None and offset < size:
            before(size - offset)
        try:
            await _fetch(stub, await asyncio.to_thread(store.open_writer, digest, size, offset), progress, size)
            return store.path(digest)
        except grpc.aio.AioRpcError as rpc_error:
            error = error_from(rpc_error)
        except RefusedError as refusal:
            if refusal.code != "blob-digest" or not offset or restarted:
                raise
            restarted = True  # the partial file was damaged and is gone; once more from the beginning
            continue
        await retry.after(error, store.received(digest))


async def _fetch(stub: blobs_pb2_grpc.BlobsAsyncStub, writer: PartWriter, progress: Progress | None, size: int) -> None:
    def report() -> None:
        if progress is not None:
            progress(writer.received, size)

    call = stub.Download(blobs_pb2.BlobDownloadRequest(digest=writer.digest, offset=writer.received))
    try:
        await receive(_messages(call), writer, report)
    finally:
        call.cancel()
        await asyncio.shield(asyncio.to_thread(writer.close))


async def _messages(call: Any) -> AsyncIterator[bytes]:
    async for message in call:
        yield bounded(message.data)


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file, 32 bytes.

    Raises:
        DataError: If it can't be read.
    """
    with disk_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
