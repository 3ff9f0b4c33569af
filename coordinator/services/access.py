"""Who may call what: the certificate says who it is, the roster whether that still holds."""

from __future__ import annotations

from typing import Any

import grpc

from coordinator.store import MemberState, Store
from wire import Identity, RefusedError, Role, peer_identity, same_key


def member_of(context: grpc.aio.ServicerContext[Any, Any], store: Store) -> str:
    """The participant at the other end, if the roster admits it.

    A certificate is admitted as long as its key is the one enrolled: renewal keeps the key, enrolling again replaces
    it.

    Raises:
        RefusedError: "certificate-role", "participant-unknown" or "participant-revoked".
    """
    identity = peer_identity(context)
    certificate_pem = next(iter(context.auth_context()["x509_pem_cert"]))
    return admitted(identity, certificate_pem, store)


def admitted(identity: Identity, certificate_pem: bytes, store: Store) -> str:
    """The roster's answer for a certificate that the federation's CA signed; errors as in :func:`member_of`."""
    if identity.role is not Role.PARTICIPANT:
        raise RefusedError("certificate-role", f"{identity.name} holds a certificate of role {identity.role}")
    member = store.member(identity.name)
    if member is None or (member.state is MemberState.INVITED and not member.certificate_pem):
        raise RefusedError(
            "participant-unknown",
            f"{identity.name} is not in the roster",
            "Ask the operator for a token (fedloom coordinator invite NAME) and join again.",
        )
    if member.state is MemberState.REVOKED or not same_key(certificate_pem, member.certificate_pem):
        raise RefusedError(
            "participant-revoked",
            f"{identity.name} is no longer admitted: {member.reason or 'its key was replaced by another one'}",
            "If this is a mistake, ask the operator for a new token and join again.",
        )
    return identity.name


def operator_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The operator at the other end.

    Raises:
        RefusedError: "certificate-role".
    """
    identity = peer_identity(context)
    if identity.role is not Role.OPERATOR:
        raise RefusedError(
            "certificate-role",
            f"{identity.name} is a {identity.role}, not an operator",
            "Run this on the coordinator's machine, with the operator's certificate from its state folder.",
        )
    return identity.name
