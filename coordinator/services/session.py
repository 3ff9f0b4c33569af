"""The participant's stream, and renewal of its certificate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from coordinator.daemon import Daemon
from coordinator.services.access import member_of
from protos import session_pb2 as pb
from protos import session_pb2_grpc
from wire import FederationCA, Identity, RefusedError, Role, csr_has_key_of

_log = logging.getLogger("fedloom.coordinator")


class SessionService(session_pb2_grpc.SessionServicer):
    """One stream for each connected participant."""

    def __init__(self, daemon: Daemon, ca: FederationCA, *, certificate_days: float) -> None:
        self._daemon = daemon
        self._ca = ca
        self._certificate_days = certificate_days

    async def Attach(
        self, request_iterator: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.FromCoordinator]:
        """Pass messages both ways until either side ends the stream."""
        daemon = self._daemon
        peer = member_of(context, daemon.store)
        outbox = daemon.attach(peer)
        _log.info("%s connected from %s", peer, context.peer(), extra={"participant": peer})
        reader = asyncio.create_task(self._read(peer, request_iterator))
        reader.add_done_callback(lambda _: outbox.end())
        try:
            while (message := await outbox.get()) is not None:
                yield message
            failure = reader.exception() if reader.done() and not reader.cancelled() else None
            if isinstance(failure, DecodeError):
                raise RefusedError(
                    "message-malformed",
                    f"{peer} sent bytes that are no message of this protocol",
                    "Install the same release of fedloom on both sides.",
                )
            if isinstance(failure, Exception) and not isinstance(failure, grpc.aio.BaseError):
                raise failure
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reader
            daemon.detach(peer, outbox)
            _log.info("%s disconnected", peer, extra={"participant": peer})

    async def _read(self, peer: str, request_iterator: Any) -> None:
        async for message in request_iterator:
            await self._daemon.receive(peer, message)

    async def Log(
        self, request: pb.LogRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.LogLine]:
        """The log of results, with the blobs from which its last sums can be recomputed."""
        member_of(context, self._daemon.store)
        hub = await self._daemon.opened()
        for line in hub.published():
            blobs = [pb.Blob(digest=digest, size=self._daemon.blobs.size(digest)) for digest in line.blobs]
            yield pb.LogLine(
                statement=pb.Statement(body=line.stored.body, signature=line.stored.signature),
                run_id=line.stored.run_id,
                round=line.stored.round,
                record=blobs[0] if blobs else None,
                uploads=blobs[1:],
            )

    async def Renew(self, request: pb.RenewRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.RenewReply:
        """A new certificate for the enrolled key."""
        store = self._daemon.store
        peer = member_of(context, store)
        member = store.member(peer)
        assert member is not None
        if not csr_has_key_of(request.csr_pem, member.certificate_pem):
            raise RefusedError(
                "csr-invalid",
                f"{peer} asked to renew its certificate for another key",
                "A new key needs a new token: fedloom coordinator invite NAME.",
            )
        certificate = self._ca.sign_csr(request.csr_pem, peer, Role.PARTICIPANT, self._certificate_days)
        store.renew(peer, certificate, Identity.parse(certificate).serial)
        _log.info("renewed the certificate of %s", peer, extra={"participant": peer})
        return pb.RenewReply(certificate_pem=certificate)
