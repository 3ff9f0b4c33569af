"""Blobs over gRPC: the service, and clients that go on where a broken connection stopped them.

Nothing is stored before entitlement, size, quota and room on the disk are checked. Hashing and disk work happen in
worker threads while the event loop receives the next chunks; a transfer holds at most two batches of ``BATCH`` chunks.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, cast

import grpc

from protos import blobs_pb2, blobs_pb2_grpc
from wire.blobs import DIGEST_BYTES, BlobStore, Buffer, PartWriter, disk_errors, unknown
from wire.channel import abort, error_from
from wire.errors import FedloomError, RefusedError, ResourceError, UnreachableError
from wire.pki import Identity
from wire.tls import peer_identity

CHUNK_BYTES: Final = 1 << 20
BATCH: Final = 4
MAX_BLOB_BYTES: Final = 1 << 44

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

_Context = grpc.aio.ServicerContext[Any, Any]


class BlobPolicy(Protocol):
    """Decides for whom a blob is. Called on the event loop, so it must answer at once."""

    def may_upload(self, identity: Identity, digest: bytes, size: int) -> None:
        """Raise :class:`RefusedError` unless this peer may store a blob of this size now."""

    def may_download(self, identity: Identity, digest: bytes) -> None:
        """Raise :class:`RefusedError` unless this peer may read this blob."""

    def refused(self, identity: Identity, error: RefusedError) -> None:
        """Count and log a refusal of the service's own."""


@dataclasses.dataclass
class _Account:
    """What one peer has in flight. ``held`` maps digests of uploads, running or left unfinished, to their sizes."""

    held: dict[bytes, int] = dataclasses.field(default_factory=dict)
    transfers: int = 0


class BlobService(blobs_pb2_grpc.BlobsServicer):
    """The server's side of ``Blobs``, on a port with mutual TLS.

    Args:
        store: Where blobs are.
        policy: Who may do what.
        quota_bytes: For each peer: the sizes of its uploads that run or that it has left unfinished, together.
        max_transfers: For each peer: transfers at a time.
    """

    def __init__(
        self, store: BlobStore, policy: BlobPolicy, *, quota_bytes: int = 16 << 30, max_transfers: int = 8
    ) -> None:
        self._store = store
        self._policy = policy
        self._quota_bytes = quota_bytes
        self._max_transfers = max_transfers
        self._accounts: dict[str, _Account] = {}

    async def Stat(self, request: blobs_pb2.BlobStatRequest, context: _Context) -> blobs_pb2.BlobStat:
        """How much of a blob is here: of this peer's own upload, or of a blob that it may read."""
        async with _Refusing(self._policy, context) as identity:
            digest = _checked(request.digest)
            received = await asyncio.to_thread(self._store.received, digest, _owner(identity))
            if await asyncio.to_thread(self._store.has, digest) and self._may_know(identity, digest):
                size = self._store.size(digest)
                return blobs_pb2.BlobStat(digest=digest, size=size, received=size)
            size = self._account(identity).held.get(digest, 0)
            return blobs_pb2.BlobStat(digest=digest, size=size, received=received)

    async def Upload(
        self, request_iterator: AsyncIterator[blobs_pb2.BlobUpload], context: _Context
    ) -> blobs_pb2.BlobStat:
        """Receive a blob."""
        async with _Refusing(self._policy, context) as identity:
            header = await _header(request_iterator)
            digest, size = header.digest, header.size
            self._policy.may_upload(identity, digest, size)
            if await asyncio.to_thread(self._store.has, digest):
                return blobs_pb2.BlobStat(digest=digest, size=size, received=size)
            with self._transfer(identity):
                await self._reserve(identity, digest, size)
                writer = await asyncio.to_thread(self._store.open_writer, digest, size, header.offset, _owner(identity))
                try:
                    await _receive(_chunks(request_iterator), writer)
                finally:
                    await asyncio.shield(asyncio.to_thread(writer.close))
                    if not self._store.received(digest, _owner(identity)):
                        self._account(identity).held.pop(digest, None)
            return blobs_pb2.BlobStat(digest=digest, size=size, received=size)

    async def Download(
        self, request: blobs_pb2.BlobDownloadRequest, context: _Context
    ) -> AsyncIterator[blobs_pb2.BlobChunk]:
        """Send a blob."""
        async with _Refusing(self._policy, context) as identity:
            digest = _checked(request.digest)
            self._policy.may_download(identity, digest)
            size = await asyncio.to_thread(self._store.size, digest)
            if request.offset > size:
                raise RefusedError("blob-offset", f"the blob has {size} bytes; byte {request.offset} was asked for")
            with self._transfer(identity):
                async for data in _read_ahead(self._store.path(digest), request.offset, size):
                    yield blobs_pb2.BlobChunk(data=data)

    def _may_know(self, identity: Identity, digest: bytes) -> bool:
        if digest in self._account(identity).held:
            return True
        try:
            self._policy.may_download(identity, digest)
        except RefusedError:
            return False
        return True

    def _account(self, identity: Identity) -> _Account:
        return self._accounts.setdefault(_owner(identity), _Account())

    @contextlib.contextmanager
    def _transfer(self, identity: Identity) -> Iterator[None]:
        account = self._account(identity)
        if account.transfers >= self._max_transfers:
            raise ResourceError(
                f"{identity.name} has {account.transfers} transfers in progress already",
                "Wait for one to end.",
                code="quota",
            )
        account.transfers += 1
        try:
            yield
        finally:
            account.transfers -= 1

    async def _reserve(self, identity: Identity, digest: bytes, size: int) -> None:
        """Charge an upload to its peer; what the peer has left unfinished earlier makes room for it."""
        account, owner = self._account(identity), _owner(identity)
        others = {key: value for key, value in account.held.items() if key != digest}
        for old in list(others):
            if sum(others.values()) + size <= self._quota_bytes:
                break
            if self._store.writing(old, owner):
                continue
            await asyncio.to_thread(self._store.discard_part, old, owner)
            account.held.pop(old, None)
            del others[old]
        held = sum(others.values())
        if held + size > self._quota_bytes:
            raise ResourceError(
                f"{identity.name} may have {self._quota_bytes} bytes in flight; {held} are, and this blob has {size}",
                "Wait for the other uploads to end.",
                code="quota",
            )
        account.held[digest] = size


class _Refusing:
    """The frame of every call: who is there, and our errors sent to it, refusals counted."""

    def __init__(self, policy: BlobPolicy, context: _Context) -> None:
        self._policy = policy
        self._context = context
        self._identity: Identity | None = None

    async def __aenter__(self) -> Identity:
        try:
            self._identity = peer_identity(self._context)
        except RefusedError as error:
            await abort(self._context, error)
        return self._identity

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, RefusedError) and self._identity is not None:
            self._policy.refused(self._identity, error)
        if isinstance(error, FedloomError):
            await abort(self._context, error)


def _owner(identity: Identity) -> str:
    # A participant and an operator may bear the same name; each role has its own partial files.
    return identity.name if identity.role == "participant" else f"{identity.role}-{identity.name}"[:63]


def _checked(digest: bytes) -> bytes:
    if len(digest) != DIGEST_BYTES:
        raise RefusedError("blob-unknown", f"a blob's name has {DIGEST_BYTES} bytes, not {len(digest)}")
    return digest


async def _header(messages: AsyncIterator[blobs_pb2.BlobUpload]) -> blobs_pb2.BlobHeader:
    first = await anext(aiter(messages), None)
    if first is None or first.WhichOneof("body") != "header":
        raise RefusedError("protocol-order", "an upload begins with a header")
    header = first.header
    _checked(header.digest)
    if not 0 < header.size <= MAX_BLOB_BYTES:
        raise RefusedError("blob-size", f"a blob can't have {header.size} bytes")
    if header.offset > header.size:
        raise RefusedError("blob-offset", f"byte {header.offset} is behind the end of a blob of {header.size}")
    return header


async def _chunks(messages: AsyncIterator[blobs_pb2.BlobUpload]) -> AsyncIterator[bytes]:
    async for message in messages:
        if message.WhichOneof("body") != "chunk":
            raise RefusedError("protocol-order", "a second header inside an upload")
        yield _bounded(message.chunk)


def _bounded(chunk: bytes) -> bytes:
    if not 0 < len(chunk) <= CHUNK_BYTES:
        raise RefusedError("blob-size", f"a chunk has {len(chunk)} bytes; 1 to {CHUNK_BYTES} are allowed")
    return chunk


async def _receive(
    chunks: AsyncIterator[bytes], writer: PartWriter, progress: Callable[[], None] | None = None
) -> None:
    """Feed a writer: one batch is hashed and written in a thread while the next one arrives.

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


async def _read_ahead(path: Path, offset: int, size: int) -> AsyncGenerator[bytes, None]:
    """Chunks of a file from ``offset``; the next batch is read in a thread while the present one is used."""
    with disk_errors(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise unknown(bytes.fromhex(path.name)) from None
    loop = asyncio.get_running_loop()
    reading: asyncio.Future[list[bytes]] | None = None
    try:
        reading = loop.run_in_executor(None, _read_batch, descriptor, path, offset, size)
        while batch := await reading:
            offset += sum(map(len, batch))
            reading = loop.run_in_executor(None, _read_batch, descriptor, path, offset, size)
            for data in batch:
                yield data
    finally:
        if reading is not None:
            with contextlib.suppress(Exception):
                await asyncio.shield(reading)
        os.close(descriptor)


def _read_batch(descriptor: int, path: Path, offset: int, size: int) -> list[bytes]:
    batch: list[bytes] = []
    with disk_errors(path):
        while offset < size and len(batch) < BATCH:
            data = os.pread(descriptor, min(CHUNK_BYTES, size - offset), offset)
            if not data:
                raise RefusedError("blob-truncated", f"the blob became shorter while it was read, at byte {offset}")
            batch.append(data)
            offset += len(data)
    return batch


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
    attempts: int = ATTEMPTS,
) -> None:
    """Send a blob; go on after a broken connection where the server's copy ends.

    Args:
        stub: Of a channel with mutual TLS.
        source: The file, or its content.
        digest: SHA-256 of the content, 32 bytes.
        progress: Called with (bytes sent, bytes in all).
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
        try:
            stat = await stub.Stat(blobs_pb2.BlobStatRequest(digest=digest))
            offset = stat.received if stat.received <= size else 0
            await _send(stub, source, blobs_pb2.BlobHeader(digest=digest, size=size, offset=offset), progress)
            return
        except grpc.aio.AioRpcError as rpc_error:
            error = error_from(rpc_error)
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
        async with contextlib.aclosing(_source_chunks(source, header.offset, header.size)) as chunks:
            async for chunk in chunks:
                await call.write(blobs_pb2.BlobUpload(chunk=chunk))
                done += len(chunk)
                if progress is not None:
                    progress(done, header.size)
        await call.done_writing()
    except asyncio.InvalidStateError:
        pass  # the server has ended the call; its reason follows
    except BaseException:
        call.cancel()
        raise
    await call


async def _source_chunks(source: Path | Buffer, offset: int, size: int) -> AsyncGenerator[bytes, None]:
    if isinstance(source, Path):
        async with contextlib.aclosing(_read_ahead(source, offset, size)) as chunks:
            async for chunk in chunks:
                yield chunk
        return
    view = memoryview(source).cast("B")
    for start in range(offset, size, CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


async def download(
    stub: blobs_pb2_grpc.BlobsAsyncStub,
    digest: bytes,
    size: int,
    store: BlobStore,
    *,
    progress: Progress | None = None,
    attempts: int = ATTEMPTS,
) -> Path:
    """Fetch a blob into a store; go on after a broken connection, or a restart, where the partial file ends.

    Args:
        stub: Of a channel with mutual TLS.
        digest: SHA-256 of the content, 32 bytes.
        size: That it must have, in bytes.
        store: Where to put it.
        progress: Called with (bytes here, bytes in all).
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
        await _receive(_messages(call), writer, report)
    finally:
        call.cancel()
        await asyncio.shield(asyncio.to_thread(writer.close))


async def _messages(call: Any) -> AsyncIterator[bytes]:
    async for message in call:
        yield _bounded(message.data)


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file, 32 bytes.

    Raises:
        DataError: If it can't be read.
    """
    with disk_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
