"""Real TLS on loopback: who gets in, who doesn't, and a man in the middle at enrolment."""

from __future__ import annotations

import asyncio
import datetime
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from relays import Relay

from protos import enrolment_pb2, enrolment_pb2_grpc
from wire import (
    Credentials,
    FederationCA,
    FedloomError,
    Identity,
    Listener,
    RefusedError,
    Role,
    UnreachableError,
    abort,
    client_credentials,
    connect,
    enrolment_credentials,
    error_from,
    explain_certificate,
    explain_handshake,
    fingerprint,
    newcomer_credentials,
    peer_identity,
    pinned_ca,
    serve,
    server_credentials,
)


class Desk(enrolment_pb2_grpc.EnrolmentServicer):
    """Enrolment as the coordinator does it, reduced: notes secrets, explains certificates."""

    def __init__(self, ca: FederationCA) -> None:
        self.ca = ca
        self.secrets: list[bytes] = []

    async def Enrol(self, request: enrolment_pb2.EnrolRequest, context: Any) -> enrolment_pb2.EnrolReply:
        self.secrets.append(request.secret)
        certificate = self.ca.sign_csr(request.csr_pem, request.name, Role.PARTICIPANT, 1)
        return enrolment_pb2.EnrolReply(federation="demo", certificate_pem=certificate, ca_pem=self.ca.pem)

    async def Explain(self, request: enrolment_pb2.ExplainRequest, context: Any) -> enrolment_pb2.ExplainReply:
        reason = explain_certificate(request.certificate_pem, self.ca, datetime.datetime.now(datetime.UTC))
        if reason is None:
            return enrolment_pb2.ExplainReply(welcome=True)
        return enrolment_pb2.ExplainReply(code=reason[0], message=reason[1], hint=reason[2])


class Mirror(enrolment_pb2_grpc.EnrolmentServicer):
    """On the session port: says whom it sees, using Explain's reply."""

    async def Explain(self, request: enrolment_pb2.ExplainRequest, context: Any) -> enrolment_pb2.ExplainReply:
        try:
            identity = peer_identity(context)
        except RefusedError as error:
            await abort(context, error)
        return enrolment_pb2.ExplainReply(welcome=True, message=f"{identity.role}/{identity.name}")


def register(servicer: enrolment_pb2_grpc.EnrolmentServicer) -> Any:
    return lambda server: enrolment_pb2_grpc.add_EnrolmentServicer_to_server(servicer, server)


@pytest.fixture
async def session(server_identity: Credentials) -> AsyncIterator[Listener]:
    listener = await serve("127.0.0.1", 0, server_credentials(server_identity), register(Mirror()))
    yield listener
    await listener.stop()


@pytest.fixture
def desk(ca: FederationCA) -> Desk:
    return Desk(ca)


@pytest.fixture
async def enrolment(desk: Desk, server_identity: Credentials) -> AsyncIterator[Listener]:
    listener = await serve("127.0.0.1", 0, enrolment_credentials(server_identity), register(desk))
    yield listener
    await listener.stop()


async def ask(address: str, credentials: grpc.ChannelCredentials, federation: str | None = "demo") -> str:
    async with connect(address, credentials, federation) as channel:
        stub = enrolment_pb2_grpc.EnrolmentStub(channel)
        try:
            reply = await stub.Explain(enrolment_pb2.ExplainRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from None
    return reply.message


async def test_mutual_tls_says_who_is_there(session: Listener, ca: FederationCA, hospital: Credentials) -> None:
    assert await ask(session.address, client_credentials(hospital)) == "participant/hospital-a"
    operator = ca.issue_client("root", Role.OPERATOR, 1)
    assert await ask(session.address, client_credentials(operator)) == "operator/root"


async def test_without_a_certificate_nobody_gets_in(session: Listener, ca: FederationCA) -> None:
    with pytest.raises(UnreachableError):
        await ask(session.address, newcomer_credentials(ca.pem))


def forged(ca: FederationCA, own: Credentials) -> Credentials:
    """A foreign certificate in the hands of someone who does know our CA's certificate."""
    return Credentials(ca_pem=ca.pem, certificate_pem=own.certificate_pem, key_pem=own.key_pem)


@pytest.mark.parametrize(
    ("case", "code"),
    [("foreign", "certificate-foreign"), ("namesake", "certificate-foreign"), ("expired", "certificate-expired")],
)
async def test_a_refused_certificate_gets_its_reason(
    session: Listener, enrolment: Listener, ca: FederationCA, case: str, code: str
) -> None:
    own = {
        "foreign": lambda: FederationCA.create("other").issue_client("a", Role.PARTICIPANT, 1),
        "namesake": lambda: FederationCA.create("demo").issue_client("a", Role.PARTICIPANT, 1),
        "expired": lambda: ca.issue_client("a", Role.PARTICIPANT, -0.001),
    }[case]()
    with pytest.raises(UnreachableError) as caught:
        await ask(session.address, client_credentials(forged(ca, own)))
    reason = await explain_handshake(caught.value, enrolment.address, ca.pem, "demo", own.certificate_pem)
    assert isinstance(reason, RefusedError)
    assert reason.code == code
    assert reason.hint


async def test_explaining_keeps_the_error_where_there_is_nothing_to_explain(
    enrolment: Listener, ca: FederationCA, hospital: Credentials
) -> None:
    error = UnreachableError("gone")
    assert await explain_handshake(error, enrolment.address, ca.pem, "demo", hospital.certificate_pem) is error
    refusal = RefusedError("policy", "no")
    assert await explain_handshake(refusal, "127.0.0.1:1", ca.pem, "demo", hospital.certificate_pem) is refusal
    await enrolment.stop()
    assert await explain_handshake(error, enrolment.address, ca.pem, "demo", hospital.certificate_pem) is error


async def test_a_coordinator_of_another_federation_is_not_believed(ca: FederationCA, hospital: Credentials) -> None:
    impostor = FederationCA.create("demo").issue_server(["127.0.0.1"])
    listener = await serve("127.0.0.1", 0, enrolment_credentials(impostor), register(Mirror()))
    try:
        with pytest.raises(UnreachableError):
            await ask(listener.address, client_credentials(hospital))
    finally:
        await listener.stop()


async def test_a_participant_cannot_play_the_coordinator(ca: FederationCA, hospital: Credentials) -> None:
    """Its certificate is of our CA, but for a client, and doesn't bear the coordinator's name."""
    rogue = ca.issue_client("rogue", Role.PARTICIPANT, 1)
    listener = await serve("127.0.0.1", 0, enrolment_credentials(rogue), register(Mirror()))
    try:
        for federation in ("demo", None):
            with pytest.raises(UnreachableError):
                await ask(listener.address, client_credentials(hospital), federation)
    finally:
        await listener.stop()


async def test_a_server_certificate_is_no_client_certificate(session: Listener, server_identity: Credentials) -> None:
    with pytest.raises(UnreachableError):
        await ask(session.address, client_credentials(server_identity))


async def test_pinning_fetches_the_right_authority(enrolment: Listener, ca: FederationCA) -> None:
    fetched = await asyncio.to_thread(pinned_ca, enrolment.address, fingerprint(ca.pem))
    assert fetched == ca.pem


async def test_a_man_in_the_middle_with_his_own_authority(ca: FederationCA) -> None:
    other = FederationCA.create("demo")
    listener = await serve(
        "127.0.0.1", 0, enrolment_credentials(other.issue_server(["127.0.0.1"])), register(Desk(other))
    )
    try:
        with pytest.raises(RefusedError, match="another fingerprint") as caught:
            await asyncio.to_thread(pinned_ca, listener.address, fingerprint(ca.pem))
        assert caught.value.code == "certificate-foreign"
    finally:
        await listener.stop()


async def test_a_man_in_the_middle_who_shows_our_authority_in_his_own_certificate(ca: FederationCA) -> None:
    """He copies the genuine anchor into a certificate that he signs himself."""
    from cryptography.hazmat.primitives.serialization import Encoding

    other = FederationCA.create("demo")
    other.certificate, genuine = ca.certificate, other.certificate  # anchor and issuer are ours, the signing key is his
    assert genuine.public_bytes(Encoding.PEM) != ca.pem
    listener = await serve(
        "127.0.0.1", 0, enrolment_credentials(other.issue_server(["127.0.0.1"])), register(Desk(other))
    )
    try:
        with pytest.raises(RefusedError, match="didn't sign"):
            await asyncio.to_thread(pinned_ca, listener.address, fingerprint(ca.pem))
    finally:
        await listener.stop()


async def test_a_relay_that_forwards_the_handshake_never_sees_the_secret(
    enrolment: Listener, desk: Desk, ca: FederationCA
) -> None:
    """Relaying bytes is all a man in the middle can do with the genuine certificate; what he sees is ciphertext."""
    seen = bytearray()
    relay = Relay(enrolment.port, seen)
    try:
        ca_pem = await asyncio.to_thread(pinned_ca, relay.address, fingerprint(ca.pem))
        from wire import make_key_and_csr

        _, csr = make_key_and_csr("a")
        secret = b"0123456789abcdef" * 2
        async with connect(relay.address, newcomer_credentials(ca_pem), "demo") as channel:
            request = enrolment_pb2.EnrolRequest(name="a", secret=secret, csr_pem=csr)
            reply = await enrolment_pb2_grpc.EnrolmentStub(channel).Enrol(request, timeout=10)
        assert Identity.parse(reply.certificate_pem).name == "a"
        assert desk.secrets == [secret]
        assert seen and secret not in bytes(seen)
    finally:
        relay.close()


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UnreachableError, match="no coordinator answers"):
        pinned_ca(f"127.0.0.1:{port}", bytes(32))


def test_a_port_that_does_not_speak_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UnreachableError, match="TLS"):
            pinned_ca(f"127.0.0.1:{listener.getsockname()[1]}", bytes(32))
        thread.join(5)


async def test_a_tls_server_that_is_not_ours(ca: FederationCA, hospital: Credentials) -> None:
    listener = await serve("127.0.0.1", 0, enrolment_credentials(hospital), register(Mirror()))
    try:
        with pytest.raises(RefusedError, match="not the enrolment port"):
            await asyncio.to_thread(pinned_ca, listener.address, fingerprint(ca.pem))
    finally:
        await listener.stop()


async def test_the_enrolment_port_shows_no_identity(server_identity: Credentials, ca: FederationCA) -> None:
    listener = await serve("127.0.0.1", 0, enrolment_credentials(server_identity), register(Mirror()))
    try:
        with pytest.raises(FedloomError, match="no client certificate"):
            await ask(listener.address, newcomer_credentials(ca.pem))
    finally:
        await listener.stop()
