"""gRPC channels and servers as both daemons use them, and how errors cross the wire.

An error travels as a gRPC status with three entries of trailing metadata: ``fedloom-code``, and the message and the
hint as UTF-8 under ``-bin`` keys (plain metadata is ASCII only). Both sides therefore read the same error.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NoReturn, cast

import grpc

from protos import enrolment_pb2, enrolment_pb2_grpc
from wire.errors import (
    STATUS_OF_CODE,
    ConfigError,
    DataError,
    FedloomError,
    RefusedError,
    ResourceError,
    UnreachableError,
)
from wire.pki import server_name
from wire.tls import newcomer_credentials

MAX_MESSAGE_BYTES: Final = 4 << 20

CALL_TIMEOUT_S: Final = 30.0
"""For a call with one answer: longer than a dead connection takes to be noticed."""

CODE_KEY: Final = "fedloom-code"
MESSAGE_KEY: Final = "fedloom-message-bin"
HINT_KEY: Final = "fedloom-hint-bin"

# Metadata of one call may have 8 KiB in all by default; two texts of this size stay well below.
_MAX_TEXT_BYTES = 2_048
_CODE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")

_grpc_log = logging.getLogger("grpc._cython.cygrpc")

_Options = tuple[tuple[str, Any], ...]

# Keepalive: a peer from which nothing comes for 10 s is pinged, and given up 20 s later. So a connection that is dead
# without a word (a silent firewall, a pulled cable) is noticed within 30 s, without any traffic of ours. Data that come
# before the answer count as one, and no other ping is sent while the first is on its way: where that one was lost, its
# own deadline, of 30 s, ends the connection.
_COMMON: Final[_Options] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.ping_timeout_ms", 30_000),
    # Left on, gRPC opens a window of 4 MiB for each stream before it has measured anything. On a slow link that much
    # lies in buffers, and heartbeats wait behind it for minutes. Without it the window is 64 KiB, or the message that
    # is waited for: a transfer's chunk, whose size follows the link's speed (``wire.transfer.ChunkSize``).
    ("grpc.http2.bdp_probe", 0),
)


def server_options() -> _Options:
    """Options of every gRPC server of ours."""
    return (
        *_COMMON,
        ("grpc.so_reuseport", 0),  # a second daemon on the port must fail, not share it
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_concurrent_streams", 128),  # of one connection; its client keeps more to itself
        ("grpc.server_handshake_timeout_ms", 30_000),
    )


def channel_options(federation: str | None) -> _Options:
    """Options of every gRPC channel of ours.

    Args:
        federation: Whose coordinator must answer: the certificate has to name ``coordinator.<federation>``, whatever
            the address is. None leaves the check to the address.
    """
    options: _Options = (
        *_COMMON,
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        # In spite of its name: the least time that TCP and TLS get to shake hands. A link by satellite needs seconds,
        # and so does a coordinator to which a thousand come back at once.
        ("grpc.min_reconnect_backoff_ms", 20_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),  # a new channel shakes hands anew, with the certificate it was given
    )
    if federation is not None:
        options = (*options, ("grpc.ssl_target_name_override", server_name(federation)))
    return options


def connect(address: str, credentials: grpc.ChannelCredentials, federation: str | None) -> grpc.aio.Channel:
    """A channel to a coordinator; connecting happens with the first call.

    A call with one answer that names no deadline has one of ``CALL_TIMEOUT_S``. Streams have none: a transfer may take
    days, and ends when its connection does.
    """
    return grpc.aio.secure_channel(
        address, credentials, options=channel_options(federation), interceptors=[cast(Any, _Deadline())]
    )


class _Deadline(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Nobody waits for an answer without end."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Set the deadline of a call that has none."""
        if client_call_details.timeout is None:
            client_call_details = client_call_details._replace(timeout=CALL_TIMEOUT_S)
        return await continuation(client_call_details, request)


@dataclasses.dataclass(frozen=True)
class Listener:
    """A running server and the port it really has."""

    server: grpc.aio.Server
    host: str
    port: int

    @property
    def address(self) -> str:
        """``host:port``."""
        return join_address(self.host, self.port)

    async def stop(self, grace_s: float | None = None) -> None:
        """End all calls, after ``grace_s`` seconds for those that are in progress."""
        await self.server.stop(grace_s)


async def serve(
    host: str,
    port: int,
    credentials: grpc.ServerCredentials,
    register: Callable[[grpc.aio.Server], None],
    *,
    interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
    max_calls: int | None = None,
) -> Listener:
    """Start a server.

    Args:
        host: Address or name to listen on, for example ``127.0.0.1`` or ``0.0.0.0``.
        port: 0 for any free one.
        credentials: From ``wire.tls``.
        register: Adds the services, for example ``lambda server: add_BlobsServicer_to_server(service, server)``.
        interceptors: Of the server, if any.
        max_calls: At a time; one more is refused with RESOURCE_EXHAUSTED. As many connections may be open; one more is
            closed before its handshake. None: no bound.

    Returns:
        The running server with its real port.

    Raises:
        ResourceError: ``port-in-use``, or ``port`` if the port can't be had for another reason.
        ConfigError: If the host is not an address of this machine.
    """
    _check_port(host, port)
    _grpc_log.addFilter(_is_news)
    options = server_options()
    if max_calls is not None:
        options = (*options, ("grpc.max_allowed_incoming_connections", max_calls))
    server = grpc.aio.server(interceptors=list(interceptors), options=options, maximum_concurrent_rpcs=max_calls)
    register(server)
    try:
        bound = server.add_secure_port(join_address(host, port), credentials)
    except RuntimeError as error:
        raise ResourceError(f"can't listen on {join_address(host, port)}: {error}", code="port") from error
    if bound == 0:
        raise ResourceError(f"can't listen on {join_address(host, port)}", code="port")
    await server.start()
    return Listener(server, host, bound)


def _is_news(record: logging.LogRecord) -> bool:
    """That a peer's connection broke while we wrote to it is no error, and worth no traceback: its handler knows."""
    return record.exc_info is None or getattr(record.exc_info[0], "__name__", "") != "ExecuteBatchError"


def join_address(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _check_port(host: str, port: int) -> None:
    """Bind and release the port once: gRPC's own message doesn't say why it can't."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError(
            f"the host {host!r} can't be resolved: {error.strerror}", "Set [coordinator] host to 127.0.0.1 or 0.0.0.0."
        ) from error
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise bind_error(host, port, error) from error


def bind_error(host: str, port: int, error: OSError) -> FedloomError:
    """Why a port can't be listened on, in words for the operator."""
    if error.errno == errno.EADDRINUSE:
        return ResourceError(
            f"port {port} on {host} is in use by another program",
            "Is a coordinator running already? Else choose another port in [coordinator].",
            code="port-in-use",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(
            f"{host} is not an address of this machine", "Set [coordinator] host to 127.0.0.1 or 0.0.0.0."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ResourceError(f"port {port} needs more rights", "Choose a port above 1023.", code="port")
    return ResourceError(f"can't listen on {host}:{port}: {os.strerror(error.errno or 0)}", code="port")


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: FedloomError) -> NoReturn:
    """End a call with an error that :func:`error_from` reads back on the other side."""
    metadata = (
        (CODE_KEY, error.code),
        (MESSAGE_KEY, _bounded(error.message)),
        (HINT_KEY, _bounded(error.hint)),
    )
    await context.abort(error.status, error.code, trailing_metadata=metadata)
    raise AssertionError("abort returned")  # pragma: no cover; grpc raises, its annotation doesn't say so


def _bounded(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:_MAX_TEXT_BYTES]


def error_from(error: grpc.aio.AioRpcError) -> FedloomError:
    """What the other side said, or what gRPC makes of its silence, as one of our errors.

    Texts of a peer are untrusted: they are bounded and control characters are removed.
    """
    entries = dict(cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ()))
    code = entries.get(CODE_KEY)
    if isinstance(code, str) and _CODE.fullmatch(code):
        return error_of(code, _text(entries.get(MESSAGE_KEY)) or code, _text(entries.get(HINT_KEY)))
    return _silent_error(error.code(), _clean(error.details() or ""))


def error_of(code: str, message: str, hint: str) -> FedloomError:
    """The error class that belongs to a code, as for a Rejection message."""
    if STATUS_OF_CODE.get(code) is grpc.StatusCode.RESOURCE_EXHAUSTED or code == "resource":
        return ResourceError(message, hint, code=code)
    for kind in (ConfigError, DataError, UnreachableError):
        if code == kind.code:
            return kind(message, hint)
    if code in STATUS_OF_CODE:
        return RefusedError(code, message, hint)
    if code == FedloomError.code:
        return FedloomError(message, hint)
    return RefusedError(code, message, hint)


def _silent_error(status: grpc.StatusCode, details: str) -> FedloomError:
    if status is grpc.StatusCode.UNAVAILABLE:
        return UnreachableError(
            f"the coordinator doesn't answer: {details}",
            "Is it running, and can this machine reach the address? A refused certificate looks the same.",
        )
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return UnreachableError("the coordinator took too long to answer", "Look at its log.")
    if status is grpc.StatusCode.CANCELLED:
        return UnreachableError("the connection was closed", "Try again.")
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return RefusedError(
            "protocol-version", f"the other side doesn't know this call: {details}", "Compare `fedloom --version`."
        )
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ResourceError(f"the other side has no room for this: {details}", code="quota")
    return FedloomError(f"the other side failed: {status.name}: {details}", "Look at the other side's log.")


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return _clean(value[:_MAX_TEXT_BYTES].decode("utf-8", "replace"))
    return _clean(value[:_MAX_TEXT_BYTES]) if isinstance(value, str) else ""


def _clean(text: str) -> str:
    """A peer's text must not move the cursor of a terminal."""
    return "".join(character if character.isprintable() else " " for character in text[:_MAX_TEXT_BYTES])


async def explain_handshake(
    error: FedloomError, enrolment_address: str, ca_pem: bytes, federation: str, certificate_pem: bytes
) -> FedloomError:
    """Find out whether "unreachable" really means that the coordinator turned our certificate away.

    TLS tells a refused client no more than that the connection is closed. Where ``error`` is an
    :class:`UnreachableError`, this asks ``Enrolment.Explain``, which needs no client certificate.

    Args:
        error: What a call on the session port gave.
        enrolment_address: ``host:port`` from the token.
        ca_pem: The federation's CA.
        federation: Its name.
        certificate_pem: The certificate that the call showed.

    Returns:
        The named refusal, or ``error`` itself if the certificate is welcome or nobody answers.
    """
    if not isinstance(error, UnreachableError):
        return error
    request = enrolment_pb2.ExplainRequest(certificate_pem=certificate_pem)
    async with connect(enrolment_address, newcomer_credentials(ca_pem), federation) as channel:
        try:
            reply = await enrolment_pb2_grpc.EnrolmentStub(channel).Explain(request, timeout=5.0)
        except grpc.aio.AioRpcError:
            return error
    if reply.welcome or not _CODE.fullmatch(reply.code):
        return error
    return error_of(reply.code, _clean(reply.message), _clean(reply.hint))
