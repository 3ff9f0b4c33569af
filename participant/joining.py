"""Joining a federation: from one pasted token to certificates for two keys that never leave the site."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import grpc

from participant.ledger import keep_key, ledger_lines, open_ledger
from participant.membership import PinnedMembers
from participant.site import CONFIG, JOURNAL, Site, SiteConfig
from participant.store import ParticipantStore
from privacy.secure_aggregation import identities
from privacy.secure_aggregation.identities import key_fingerprint
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import MemberList
from protos import enrolment_pb2 as pb
from protos import enrolment_pb2_grpc
from wire import (
    PROTOCOL_VERSION,
    ConfigError,
    Credentials,
    FedloomError,
    RefusedError,
    Token,
    as_refusal,
    connect,
    error_from,
    federation_of,
    make_key_and_csr,
    newcomer_credentials,
    pinned_ca,
    unpack_members,
)

_TIMEOUT_S = 20.0


async def join(
    token: Token,
    folder: Path,
    *,
    data: str,
    allow: tuple[str, ...] = (),
    root: bytes | None = None,
    replace: bool = False,
    allow_plain: bool = False,
) -> Site:
    """Enrol with a token and write the site's folder.

    The token's secret is sent only over a connection that has proved to be the coordinator named in the token (see
    ``wire.tls.pinned_ca``), and only if the token's root is the one that the site expects.

    Args:
        token: From the operator.
        folder: The site's.
        data: Its data source.
        allow: Entry points that a plan may name.
        root: The federation root's public key as the consortium told it to the site, 32 bytes; the token's if None.
        replace: Join anew, with new keys, from a folder that has joined already; its privacy ledger goes on.
        allow_plain: Take part in runs with plain averaging, too, where the coordinator sees this site's updates.

    Raises:
        ConfigError: the folder already belongs to a joined site and ``replace`` is False.
        RefusedError: the token names another root ("root-mismatch"), the coordinator refuses the token or isn't the one
            that the token names, or the member list it shows isn't the root's.
        UnreachableError: nobody answers.
    """
    known = _present(folder, replace=replace)
    _check_root(token, root, known)
    spent = _spent(known, token.name)
    ca_pem = await asyncio.to_thread(pinned_ca, token.address, token.fingerprint)
    federation = federation_of(ca_pem)
    key_pem, csr_pem = make_key_and_csr(token.name)
    signing_key = SigningKey.generate()
    reply = await _enrol(token, ca_pem, csr_pem, signing_key)
    credentials = Credentials(ca_pem=ca_pem, certificate_pem=reply.certificate_pem, key_pem=key_pem)
    identity = credentials.identity
    if identity.name != token.name or identity.federation != federation:
        raise RefusedError(
            "certificate-foreign", f"the coordinator issued a certificate for {identity.name!r}, not for {token.name!r}"
        )
    config = SiteConfig(
        session_address=reply.session_address,
        enrolment_address=token.address,
        root=token.root.hex(),
        data=data,
        allow=allow,
        allow_plain=allow_plain,
    )
    site = Site(folder, config, credentials, signing_key)
    entries = unpack_members(reply.members)
    with as_refusal():
        members = MemberList.verify(federation, token.root, entries)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _pin(site, members, anew=known is None or (known.root, known.federation) != (site.root, site.federation))
    if spent and known is not None:
        keep_key(known)
    site.save()
    if spent:
        open_ledger(site).close()
    return site


def certified(site: Site, members: MemberList) -> bool:
    """Whether the root has certified this site's present signing key."""
    member = members.participant(site.name)
    return member is not None and member.public_key == site.signing_key.public


def pinned_by(site: Site) -> MemberList:
    """The member list in a site's journal.

    Raises:
        DataError: it isn't that of the site's root.
    """
    store = ParticipantStore(site.folder / JOURNAL)
    try:
        return PinnedMembers.load(store, site.federation, site.root).list
    finally:
        store.close()


def _present(folder: Path, *, replace: bool) -> Site | None:
    """Who has joined from this folder already, if it can be read and may be replaced."""
    if not (folder / CONFIG).exists():
        return None
    try:
        known = Site.load(folder)
    except FedloomError:
        if not replace:
            raise
        return None
    if not replace:
        raise ConfigError(
            f"{folder} already belongs to {known.name} in federation {known.federation}",
            "Give another --home, or --replace to join anew.",
        )
    return known


def _spent(known: Site | None, name: str) -> bool:
    """Whether the folder has a privacy ledger, which the site goes on with under its new key."""
    if known is None or not ledger_lines(known):
        return False
    if known.name != name:
        raise ConfigError(
            f"{known.folder} holds the privacy ledger of {known.name}, and the token is for {name}",
            f"Ask for a token for {known.name}: what its data have paid stays paid. Other data need another --home.",
        )
    return True


def _check_root(token: Token, told: bytes | None, known: Site | None) -> None:
    """Whether the token's root is the one that the site was told, or else the one that it has pinned before."""
    with as_refusal():
        identities.check_public_key(token.root, "the federation root in the token")
    named = f"the token names the federation root {key_fingerprint(token.root)}"
    if told is not None and told != token.root:
        raise RefusedError(
            "root-mismatch",
            f"{named}, and this site was told {key_fingerprint(told)}",
            "Don't join. Ask the consortium which is right: with a root of its own, an operator could add members.",
        )
    if told is None and known is not None and known.root != token.root:
        raise RefusedError(
            "root-mismatch",
            f"{named}, and this site has pinned {key_fingerprint(known.root)}",
            "Ask the consortium, not the operator, whether the root has changed. If so: join with --root HEX.",
        )


async def _enrol(token: Token, ca_pem: bytes, csr_pem: bytes, signing_key: SigningKey) -> pb.EnrolReply:
    federation = federation_of(ca_pem)
    wish = identities.MemberRequest.make(
        signing_key,
        federation=federation,
        role=identities.Role.PARTICIPANT,
        name=token.name,
        binding=hashlib.sha256(csr_pem).digest(),
    )
    request = pb.EnrolRequest(
        protocol_version=PROTOCOL_VERSION,
        name=token.name,
        secret=token.secret,
        csr_pem=csr_pem,
        signing_key=wish.public_key,
        signing_proof=wish.signature,
    )
    async with connect(token.address, newcomer_credentials(ca_pem), federation) as channel:
        try:
            return await enrolment_pb2_grpc.EnrolmentStub(channel).Enrol(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from None


def _pin(site: Site, members: MemberList, *, anew: bool) -> None:
    """Keep the list in the journal; unless the site begins ``anew``, it must continue what is pinned there."""
    store = ParticipantStore(site.folder / JOURNAL)
    try:
        if anew:
            store.forget_members()
        PinnedMembers.load(store, site.federation, site.root).shown(members.entries, None)
    finally:
        store.close()
