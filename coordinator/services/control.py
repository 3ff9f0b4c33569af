"""The operator's service."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from coordinator import status
from coordinator.daemon import Daemon
from coordinator.membership import Membership
from coordinator.services.access import operator_of
from coordinator.store import Invitation
from privacy.secure_aggregation.identities import COORDINATOR_NAME
from privacy.secure_aggregation.members import End
from protos import control_pb2 as pb
from protos import control_pb2_grpc, session_pb2
from wire import (
    ConfigError,
    FederationCA,
    RefusedError,
    Token,
    check_name,
    fingerprint,
    pack_members,
    unpack_members,
)
from wire.root import MAX_ENTRIES

_log = logging.getLogger("fedloom.coordinator")

# `Watch` sends at most so often, and at least once in the longer time.
_LEAST_S: Final = 0.1
_MOST_S: Final = 5.0

_MAX_TTL_S: Final = 30 * 86_400.0


class ControlService(control_pb2_grpc.ControlServicer):
    """What the operator may ask and do. Every call needs a certificate of role "operator"."""

    def __init__(
        self,
        daemon: Daemon,
        ca: FederationCA,
        membership: Membership,
        *,
        enrolment_address: str,
        invitation_ttl_s: float,
    ) -> None:
        self._daemon = daemon
        self._ca = ca
        self._membership = membership
        self._enrolment_address = enrolment_address
        self._ttl_s = invitation_ttl_s

    async def GetStatus(self, request: pb.StatusRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.Status:
        """The present state."""
        operator_of(context)
        return status.present(self._daemon, self._membership, time.time())

    async def Watch(
        self, request: pb.StatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.Status]:
        """The present state, and again whenever it changed."""
        operator_of(context)
        while True:
            started = time.perf_counter()
            shown = status.present(self._daemon, self._membership, time.time())
            took_s = time.perf_counter() - started
            yield shown
            # A large federation's status takes a while: whoever watches gets a tenth of the coordinator's time at most.
            await asyncio.sleep(max(_LEAST_S, 9 * took_s))
            await self._daemon.wait_changed(_MOST_S)

    async def Invite(self, request: pb.InviteRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.InviteReply:
        """One-time tokens."""
        operator_of(context)
        ttl_s = request.ttl_s or self._ttl_s
        if not request.names:
            raise ConfigError("no name was given", "Say whom to invite: fedloom coordinator invite hospital-a.")
        if not 0 < ttl_s <= _MAX_TTL_S:
            raise ConfigError(f"a token can't be valid for {ttl_s:.0f} s", "Choose up to 30 days.")
        for name in request.names:
            if check_name(name, "participant") == COORDINATOR_NAME:
                raise ConfigError(f"a participant can't be called {name!r}", "The coordinator is called so itself.")
        return pb.InviteReply(invitations=[self._invite(name, ttl_s) for name in request.names])

    def _invite(self, name: str, ttl_s: float) -> pb.Invitation:
        secret = secrets.token_bytes(32)
        expires_s = time.time() + ttl_s
        self._daemon.store.invite(
            Invitation(name=name, secret_hash=hashlib.sha256(secret).digest(), expires_s=expires_s)
        )
        token = Token(
            name=name,
            address=self._enrolment_address,
            fingerprint=fingerprint(self._ca.pem),
            root=self._membership.members.root,
            secret=secret,
        )
        _log.info("invited %s", name, extra={"participant": name})
        return pb.Invitation(name=name, token=token.encode(), expires=status.rfc3339(expires_s))

    async def Revoke(self, request: pb.RevokeRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.RevokeReply:
        """Shut a participant out, now."""
        operator_of(context)
        daemon = self._daemon
        was_connected = daemon.connected(request.name)
        if not daemon.store.revoke(request.name, request.reason, time.time()):
            raise RefusedError(
                "participant-unknown",
                f"{request.name[:63]!r} is not in the roster",
                "See the names with: fedloom coordinator status.",
            )
        _log.warning("revoked %s: %s", request.name, request.reason, extra={"participant": request.name})
        if daemon.hub is not None:
            daemon.perform(daemon.hub.revoked(request.name, request.reason, time.time()))
        self._membership.settle()
        return pb.RevokeReply(name=request.name, was_connected=was_connected)

    async def Stop(self, request: pb.StopRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.StopReply:
        """End the run now; what is committed stays."""
        operator_of(context)
        daemon = self._daemon
        hub = await daemon.opened()
        _log.warning("the operator stopped run %s", hub.plan.run_id, extra={"run": hub.plan.run_id})
        daemon.perform(hub.stop(time.time()))
        return pb.StopReply(run_id=hub.plan.run_id, version=hub.machine.state.version)

    async def Export(self, request: pb.ExportRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.ExportReply:
        """Where a version of the model is."""
        operator_of(context)
        hub = await self._daemon.opened()
        wanted = 0 if request.initial else request.version or None
        checkpoint = hub.store.checkpoint(hub.plan.run_id, wanted)
        if checkpoint is None or not self._daemon.blobs.has(checkpoint.digest):
            last = hub.machine.state.version
            raise RefusedError(
                "blob-unknown",
                f"version {wanted} of run {hub.plan.run_id} isn't here",
                f"The last committed version is {last}.",
            )
        return pb.ExportReply(
            run_id=hub.plan.run_id,
            version=checkpoint.version,
            model=session_pb2.Blob(digest=checkpoint.digest, size=checkpoint.size),
            plan=hub.plan.canonical(),
        )

    async def GetMembers(
        self, request: pb.MembersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.MembersReply:
        """The member list, and who waits for the root's signature."""
        operator_of(context)
        membership = self._membership
        members = membership.members
        return pb.MembersReply(
            federation=members.federation,
            root=members.root,
            root_here=membership.root_here,
            total=members.count,
            head=members.head,
            entries=pack_members(members.entries[request.after : request.after + MAX_ENTRIES]),
            pending=[
                pb.PendingMember(
                    name=item.name,
                    role=str(item.role),
                    public_key=item.public_key,
                    binding=item.binding,
                    signature=item.signature,
                )
                for item in membership.pending()
            ],
        )

    async def ImportMembers(
        self, request: pb.ImportMembersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ImportMembersReply:
        """Take over entries that the root has signed elsewhere."""
        operator_of(context)
        membership = self._membership
        added = membership.adopt(unpack_members(request.entries), End(request.total, request.head))
        return pb.ImportMembersReply(
            added=added,
            total=membership.members.count,
            pending=[item.name for item in membership.pending()],
        )
