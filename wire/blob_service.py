"""The server's side of ``Blobs``: nothing is stored before entitlement, size, quota and room on disk are checked."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Final, Protocol

import grpc

from protos import blobs_pb2, blobs_pb2_grpc
from wire.blobs import DIGEST_BYTES, BlobStore
from wire.channel import abort
from wire.errors import FedloomError, RefusedError, ResourceError
from wire.pki import Identity, Role
from wire.tls import peer_identity
from wire.transfer import GO_KEY, bounded, read_ahead, receive

MAX_BLOB_BYTES: Final = 1 << 44

_Context = grpc.aio.ServicerContext[Any, Any]


class BlobPolicy(Protocol):
    """Decides for whom a blob is. Called on the event loop, so it must answer at once."""

    def may_upload(self, identity: Identity, digest: bytes, size: int) -> None:
        """Raise :class:`RefusedError` unless this peer may store a blob of this size now."""

    def may_download(self, identity: Identity, digest: bytes) -> None:
        """Raise :class:`RefusedError` unless this peer may read this blob."""

    def progressed(self, identity: Identity) -> None:
        """A chunk of this peer's has arrived, or one was taken by it: it is alive, however slow."""

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
        # What was left unfinished before this process began counts as well.
        self._accounts = {owner: _Account(held) for owner, held in store.parts().items()}

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
                return blobs_pb2.BlobStat(digest=digest, size=size, received=size)  # the client sends nothing then
            with self._transfer(identity):
                await self._reserve(identity, digest, size)
                writer = await asyncio.to_thread(self._store.open_writer, digest, size, header.offset, _owner(identity))
                try:
                    await context.send_initial_metadata(((GO_KEY, "1"),))
                    await receive(self._chunks(identity, request_iterator), writer)
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
                async for data in read_ahead(self._store.path(digest), request.offset, size):
                    yield blobs_pb2.BlobChunk(data=data)
                    self._policy.progressed(identity)

    async def _chunks(self, identity: Identity, messages: AsyncIterator[blobs_pb2.BlobUpload]) -> AsyncIterator[bytes]:
        async for message in messages:
            if message.WhichOneof("body") != "chunk":
                raise RefusedError("protocol-order", "a second header inside an upload")
            self._policy.progressed(identity)
            yield bounded(message.chunk)

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
    return identity.name if identity.role is Role.PARTICIPANT else f"{identity.role}-{identity.name}"[:63]


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
