"""Joining a federation: from one pasted token to a certificate for a key that never leaves the site."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc

from participant.site import CONFIG, Site, SiteConfig
from protos import enrolment_pb2 as pb
from protos import enrolment_pb2_grpc
from wire import (
    PROTOCOL_VERSION,
    ConfigError,
    Credentials,
    RefusedError,
    Token,
    connect,
    error_from,
    federation_of,
    make_key_and_csr,
    newcomer_credentials,
    pinned_ca,
)

_TIMEOUT_S = 20.0


async def join(token: Token, folder: Path, *, data: str, allow: tuple[str, ...] = (), replace: bool = False) -> Site:
    """Enrol with a token and write the site's folder.

    The token's secret is sent only over a connection that has proved to be the coordinator named in the token (see
    ``wire.tls.pinned_ca``).

    Raises:
        ConfigError: the folder already belongs to a joined site and ``replace`` is False.
        RefusedError: the coordinator refuses the token, or isn't the one that the token names.
        UnreachableError: nobody answers.
    """
    if (folder / CONFIG).exists() and not replace:
        known = Site.load(folder)
        raise ConfigError(
            f"{folder} already belongs to {known.name} in federation {known.federation}",
            "Give another --home, or --replace to join anew.",
        )
    ca_pem = await asyncio.to_thread(pinned_ca, token.address, token.fingerprint)
    key_pem, csr_pem = make_key_and_csr(token.name)
    request = pb.EnrolRequest(protocol_version=PROTOCOL_VERSION, name=token.name, secret=token.secret, csr_pem=csr_pem)
    federation = federation_of(ca_pem)
    async with connect(token.address, newcomer_credentials(ca_pem), federation) as channel:
        try:
            reply = await enrolment_pb2_grpc.EnrolmentStub(channel).Enrol(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from None
    credentials = Credentials(ca_pem=ca_pem, certificate_pem=reply.certificate_pem, key_pem=key_pem)
    identity = credentials.identity
    if identity.name != token.name or identity.federation != federation:
        raise RefusedError(
            "certificate-foreign", f"the coordinator issued a certificate for {identity.name!r}, not for {token.name!r}"
        )
    config = SiteConfig(session_address=reply.session_address, enrolment_address=token.address, data=data, allow=allow)
    site = Site(folder, config, credentials)
    site.save()
    return site
