"""Joining: a one-time token and a signing request for a certificate."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import logging
import time
from typing import Any

import grpc

from coordinator.membership import Membership
from coordinator.services.access import admitted
from coordinator.store import Member, MemberState, Store
from privacy.secure_aggregation import identities
from protos import enrolment_pb2 as pb
from protos import enrolment_pb2_grpc
from wire import (
    PROTOCOL_VERSION,
    FederationCA,
    Identity,
    RefusedError,
    ResourceError,
    Role,
    explain_certificate,
    pack_members,
)
from wire.root import MAX_ENTRIES

_log = logging.getLogger("fedloom.coordinator")
_ASK = "Ask the operator for a new token: fedloom coordinator invite NAME."


class EnrolmentService(enrolment_pb2_grpc.EnrolmentServicer):
    """The only service that answers without a client certificate."""

    def __init__(
        self,
        store: Store,
        ca: FederationCA,
        membership: Membership,
        *,
        session_address: asyncio.Future[str],
        certificate_days: float,
    ) -> None:
        self._store = store
        self._ca = ca
        self._membership = membership
        self._session_address = session_address  # known once the other port is bound
        self._certificate_days = certificate_days

    async def Enrol(self, request: pb.EnrolRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.EnrolReply:
        """Check the token, sign the request, use the token up: the last two in one transaction."""
        try:
            certificate = self._enrol(request)
        except RefusedError as error:
            _log.warning("refused to enrol %.63r: %s: %s", request.name, error.code, error.message)
            raise
        _log.info("enrolled %s", request.name, extra={"participant": request.name})
        try:
            self._membership.settle()
        except ResourceError as error:
            # It is enrolled. The root's word follows with the next change of the roster, or at the next start.
            _log.error("%s isn't certified yet: %s", request.name, error.message)
        return pb.EnrolReply(
            federation=self._ca.federation,
            certificate_pem=certificate,
            ca_pem=self._ca.pem,
            session_address=await self._session_address,
            members=pack_members(self._membership.members.entries[:MAX_ENTRIES]),
        )

    def _enrol(self, request: pb.EnrolRequest) -> bytes:
        if request.protocol_version != PROTOCOL_VERSION:
            raise RefusedError(
                "protocol-version",
                f"the newcomer speaks protocol {request.protocol_version}, this coordinator {PROTOCOL_VERSION}",
                "Install the same release of fedloom on both sides.",
            )
        secret_hash = hashlib.sha256(request.secret).digest()
        now_s = time.time()
        known = self._store.invitation(request.name, secret_hash)
        if known is None:
            raise RefusedError("token-wrong", f"this token is not one that was made for {request.name!r}", _ASK)
        if known.used_s is not None:
            raise RefusedError(
                "token-used",
                f"the token for {request.name} was used already",
                f"A token works once. {_ASK} If you didn't use it, tell the operator: someone else did.",
            )
        if known.expires_s <= now_s:
            raise RefusedError("token-expired", f"the token for {request.name} has expired", _ASK)
        certificate = self._ca.sign_csr(request.csr_pem, request.name, Role.PARTICIPANT, self._certificate_days)
        wish = identities.MemberRequest(
            federation=self._ca.federation,
            role=identities.Role.PARTICIPANT,
            name=request.name,
            public_key=request.signing_key,
            binding=hashlib.sha256(request.csr_pem).digest(),
            signature=request.signing_proof,
        )
        self._membership.check_newcomer(wish)
        member = Member(
            name=request.name,
            state=MemberState.ENROLLED,
            certificate_pem=certificate,
            serial=Identity.parse(certificate).serial,
            since_s=now_s,
            signing_key=wish.public_key,
            signing_proof=wish.binding + wish.signature,
        )
        if not self._store.enrol(member, secret_hash, now_s):
            raise RefusedError("token-used", f"the token for {request.name} was used at this very moment", _ASK)
        return certificate

    async def Explain(self, request: pb.ExplainRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.ExplainReply:
        """Why this certificate isn't accepted; TLS itself can only say that the handshake failed."""
        now = datetime.datetime.now(datetime.UTC)
        reason = explain_certificate(request.certificate_pem, self._ca, now)
        peer = "unknown"
        if reason is None or reason[0] == "certificate-expired":
            peer = Identity.parse(request.certificate_pem).name
        if reason is None:
            try:
                admitted(Identity.parse(request.certificate_pem), request.certificate_pem, self._store)
            except RefusedError as error:
                reason = (error.code, error.message, error.hint)
        if reason is None:
            return pb.ExplainReply(welcome=True)
        code, message, hint = reason
        _log.warning("turned away %s: %s: %s", peer, code, message)
        self._store.count_refusal(code, peer)
        return pb.ExplainReply(welcome=False, code=code, message=message, hint=hint)
