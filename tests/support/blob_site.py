"""A server of blobs over real gRPC with mutual TLS, for tests of transfers."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from typing import Any

from protos import blobs_pb2_grpc
from wire import BlobService, BlobStore, Credentials, Identity, Listener, RefusedError, serve, server_credentials
from wire.transfer import CHUNK_BYTES

DATA = os.urandom(9 * CHUNK_BYTES + 12_345)
DIGEST = hashlib.sha256(DATA).digest()
OTHER = hashlib.sha256(b"other").digest()


class Policy:
    """Everybody may do everything unless it is forbidden here; refusals are noted."""

    def __init__(self) -> None:
        self.forbidden: set[str] = set()
        self.refusals: list[tuple[str, str]] = []
        self.signs: Counter[str] = Counter()

    def may_upload(self, identity: Identity, digest: bytes, size: int) -> None:
        if identity.name in self.forbidden or size > 1 << 30:
            raise RefusedError("blob-not-expected", f"{identity.name} owes no blob of {size} bytes")

    def may_download(self, identity: Identity, digest: bytes) -> None:
        if identity.name in self.forbidden:
            raise RefusedError("blob-not-expected", f"{identity.name} may not read this")

    def progressed(self, identity: Identity) -> None:
        self.signs[identity.name] += 1

    def refused(self, identity: Identity, error: RefusedError) -> None:
        self.refusals.append((identity.name, error.code))


@dataclasses.dataclass
class Site:
    store: BlobStore
    policy: Policy
    listener: Listener
    server_identity: Credentials

    async def restart(self, **options: Any) -> None:
        port = self.listener.port
        await self.listener.stop()
        self.listener = await start(self.store, self.policy, self.server_identity, port, **options)


async def start(store: BlobStore, policy: Policy, own: Credentials, port: int = 0, **options: Any) -> Listener:
    service = BlobService(store, policy, **options)
    return await serve(
        "127.0.0.1",
        port,
        server_credentials(own),
        lambda server: blobs_pb2_grpc.add_BlobsServicer_to_server(service, server),
    )


def put(store: BlobStore, data: bytes = DATA) -> bytes:
    with store.writer() as writer:
        writer.write(data)
        return writer.commit(sync=False)
