"""Errors across the wire, binding ports, message sizes."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from protos import enrolment_pb2, enrolment_pb2_grpc
from wire import (
    ConfigError,
    Credentials,
    DataError,
    FederationCA,
    FedloomError,
    Listener,
    RefusedError,
    ResourceError,
    UnreachableError,
    abort,
    connect,
    enrolment_credentials,
    error_from,
    error_of,
    join_address,
    newcomer_credentials,
    serve,
)
from wire.channel import MAX_MESSAGE_BYTES
from wire.errors import STATUS_OF_CODE


class Failing(enrolment_pb2_grpc.EnrolmentServicer):
    error: FedloomError | Exception

    async def Explain(self, request: enrolment_pb2.ExplainRequest, context: Any) -> enrolment_pb2.ExplainReply:
        if isinstance(self.error, FedloomError):
            await abort(context, self.error)
        raise self.error


@pytest.fixture
async def listener(server_identity: Credentials) -> AsyncIterator[Listener]:
    def register(server: grpc.aio.Server) -> None:
        enrolment_pb2_grpc.add_EnrolmentServicer_to_server(Failing(), server)

    running = await serve("127.0.0.1", 0, enrolment_credentials(server_identity), register)
    yield running
    await running.stop()


async def heard(listener: Listener, ca: FederationCA, error: Exception, size: int = 1) -> FedloomError:
    Failing.error = error
    async with connect(listener.address, newcomer_credentials(ca.pem), "demo") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await enrolment_pb2_grpc.EnrolmentStub(channel).Explain(
                enrolment_pb2.ExplainRequest(certificate_pem=bytes(size)), timeout=10
            )
    return error_from(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("the key “x” is wrong", "Läs mer."),
        DataError("a file"),
        ResourceError("full", "Make room.", code="disk-full"),
        ResourceError("too much", code="quota"),
        UnreachableError("gone", "wait"),
        *(
            RefusedError(code, f"because of {code}", "hint")
            for code in STATUS_OF_CODE
            if code not in ("disk-full", "quota")
        ),
    ],
    ids=lambda error: error.code,
)
async def test_both_sides_read_the_same_error(listener: Listener, ca: FederationCA, error: FedloomError) -> None:
    received = await heard(listener, ca, error)
    assert type(received) is type(error)
    assert (received.code, received.message, received.hint) == (error.code, error.message, error.hint)
    assert (received.status, received.exit_code) == (error.status, error.exit_code)


async def test_long_and_hostile_texts_are_tamed(listener: Listener, ca: FederationCA) -> None:
    received = await heard(listener, ca, RefusedError("policy", "\x1b[2Jä" + "x" * 100_000, "a\nb"))
    assert "\x1b" not in received.message
    assert len(received.message) <= 2_048
    assert received.hint == "a b"


async def test_a_crash_of_the_other_side_is_internal(listener: Listener, ca: FederationCA) -> None:
    received = await heard(listener, ca, ValueError("a bug"))
    assert (received.code, received.exit_code) == ("internal", 1)


async def test_messages_are_bounded(listener: Listener, ca: FederationCA) -> None:
    received = await heard(listener, ca, ConfigError("unused"), size=MAX_MESSAGE_BYTES + 1)
    assert received.code == "quota"


async def test_an_unknown_call_is_a_matter_of_versions(listener: Listener, ca: FederationCA) -> None:
    async with connect(listener.address, newcomer_credentials(ca.pem), "demo") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/fedloom.v9.Enrolment/Explain")(b"", timeout=10)
    assert error_from(caught.value).code == "protocol-version"


async def test_nobody_there(ca: FederationCA) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with connect(f"127.0.0.1:{port}", newcomer_credentials(ca.pem), "demo") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await enrolment_pb2_grpc.EnrolmentStub(channel).Explain(enrolment_pb2.ExplainRequest(), timeout=10)
    assert isinstance(error_from(caught.value), UnreachableError)


def silent(status: grpc.StatusCode, **metadata: str) -> FedloomError:
    trailing = grpc.aio.Metadata(*((key.replace("_", "-"), value) for key, value in metadata.items()))
    return error_from(grpc.aio.AioRpcError(status, grpc.aio.Metadata(), trailing, "details"))


def test_what_grpc_says_by_itself() -> None:
    assert isinstance(silent(grpc.StatusCode.DEADLINE_EXCEEDED), UnreachableError)
    assert isinstance(silent(grpc.StatusCode.CANCELLED), UnreachableError)
    assert silent(grpc.StatusCode.UNKNOWN).code == "internal"
    assert silent(grpc.StatusCode.ABORTED, fedloom_code="../../etc").code == "internal"
    assert silent(grpc.StatusCode.ABORTED, fedloom_code="some-later-code").code == "some-later-code"


def test_error_of() -> None:
    assert isinstance(error_of("some-later-code", "m", "h"), RefusedError)
    assert error_of("internal", "m", "h").exit_code == 1


async def test_a_port_in_use_is_said_plainly(listener: Listener, server_identity: Credentials) -> None:
    with pytest.raises(ResourceError, match=f"port {listener.port} .*in use") as caught:
        await serve("127.0.0.1", listener.port, enrolment_credentials(server_identity), lambda _: None)
    assert caught.value.code == "port-in-use"
    assert "[coordinator]" in caught.value.hint


async def test_a_port_is_free_again_after_stop(server_identity: Credentials) -> None:
    first = await serve("127.0.0.1", 0, enrolment_credentials(server_identity), lambda _: None)
    await first.stop()
    second = await serve("127.0.0.1", first.port, enrolment_credentials(server_identity), lambda _: None)
    await second.stop()
    assert second.port == first.port


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
async def test_hosts_that_are_not_ours(server_identity: Credentials, host: str) -> None:
    with pytest.raises(ConfigError, match=host):
        await serve(host, 0, enrolment_credentials(server_identity), lambda _: None)


def test_addresses() -> None:
    assert join_address("::1", 80) == "[::1]:80"
    assert join_address("[::1]", 80) == "[::1]:80"
    assert join_address("host", 80) == "host:80"
