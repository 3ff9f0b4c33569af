"""The participant's stream, and renewal of its certificate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from coordinator.daemon import Daemon, Outbox
from coordinator.services.access import member_of
from coordinator.services.limits import Bucket
from protos import session_pb2 as pb
from protos import session_pb2_grpc
from wire import FederationCA, Identity, RefusedError, Role, csr_has_key_of

_log = logging.getLogger("fedloom.coordinator")


class SessionService(session_pb2_grpc.SessionServicer):
    """One stream for each connected participant.

    Args:
        daemon: Behind it.
        ca: Signs renewed certificates.
        certificate_days: For which they are valid.
        messages_per_s: Of one participant that are handled; one that sends more is read slower.
    """

    def __init__(self, daemon: Daemon, ca: FederationCA, *, certificate_days: float, messages_per_s: float) -> None:
        self._daemon = daemon
        self._ca = ca
        self._certificate_days = certificate_days
        self._messages_per_s = messages_per_s
        self._buckets: weakref.WeakValueDictionary[str, Bucket] = weakref.WeakValueDictionary()

    async def Attach(
        self, request_iterator: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.FromCoordinator]:
        """Pass messages both ways until either side ends the stream."""
        daemon = self._daemon
        peer = member_of(context, daemon.store)
        outbox = daemon.attach(peer)
        _log.info("%s connected from %s", peer, context.peer(), extra={"participant": peer})
        reader = asyncio.create_task(self._read(peer, request_iterator, outbox))
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

    async def _read(self, peer: str, request_iterator: Any, outbox: Outbox) -> None:
        """Handle one message after the other.

        None is asked for before the last is handled, so that HTTP/2 slows who sends faster: what has been sent lies in
        the window of its stream, and not in a queue here.
        """
        # A new stream of the same peer goes on with the old one's.
        bucket = self._buckets.setdefault(peer, Bucket(self._messages_per_s))
        slowed = False
        async for message in request_iterator:
            await outbox.room()
            if await bucket.turn() and not slowed:
                slowed = True
                text = "%s sends more than %g messages a second; it is read slower"
                _log.warning(text, peer, self._messages_per_s, extra={"participant": peer})
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
