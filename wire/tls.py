"""TLS credentials for the two kinds of port, pinning at enrolment, and who is at the other end.

There are two ports. *Enrolment* shows the coordinator's certificate and asks for none: a newcomer has none yet. The
*session* port (streams, blobs, control) asks for a certificate of the federation's CA and admits nobody without one.
"""

from __future__ import annotations

import functools
import hmac
import socket
import ssl
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from wire.errors import RefusedError, UnreachableError
from wire.pki import ANCHOR_OID, MAX_PEM_BYTES, Credentials, Identity, fingerprint

PIN_TIMEOUT_S: Final = 10.0


def server_credentials(own: Credentials) -> grpc.ServerCredentials:
    """For the session port: a client certificate of the federation is required."""
    return grpc.ssl_server_credentials(
        [(own.key_pem, own.certificate_pem)], root_certificates=own.ca_pem, require_client_auth=True
    )


def enrolment_credentials(own: Credentials) -> grpc.ServerCredentials:
    """For the enrolment port: the server is authenticated, the client isn't."""
    return grpc.ssl_server_credentials([(own.key_pem, own.certificate_pem)])


def client_credentials(own: Credentials) -> grpc.ChannelCredentials:
    """For a participant or an operator that talks to the session port."""
    return grpc.ssl_channel_credentials(own.ca_pem, own.key_pem, own.certificate_pem)


def newcomer_credentials(ca_pem: bytes) -> grpc.ChannelCredentials:
    """For a client of the enrolment port: it trusts this CA only, and shows no certificate."""
    return grpc.ssl_channel_credentials(ca_pem)


def pinned_ca(address: str, expected: bytes, timeout_s: float = PIN_TIMEOUT_S) -> bytes:
    """Fetch the CA's certificate from the enrolment port and make sure it is the one a token names.

    Blocking; call it with ``asyncio.to_thread`` inside an event loop.

    Formal Guarantees:
        A man in the middle learns nothing and gains nothing. This function sends no secret: it opens a TLS connection
        without verification, takes the server's certificate, and closes. The coordinator's certificate carries the
        CA's certificate in an extension (``ANCHOR_OID``), so those bytes come from an untrusted source; what is
        returned has SHA-256 equal to ``expected``, which came with the token, so by collision resistance it *is* the
        federation's CA. The token's secret is sent only later, over a gRPC channel whose only root is that CA
        (:func:`newcomer_credentials`). There an attacker needs a certificate signed by the CA's key for
        ``coordinator.<federation>``, with its private key. Replaying the genuine certificate passes this function
        and fails that handshake; showing an own CA fails here. Participants' certificates can't stand in for the
        coordinator's: they carry neither its name nor the extended key usage of a server.

    Args:
        address: ``host:port`` of the enrolment service.
        expected: The fingerprint in the token, 32 bytes.
        timeout_s: For connecting and for the handshake, each.

    Returns:
        The CA's certificate, PEM.

    Raises:
        RefusedError: ``certificate-foreign`` if the server belongs to another CA.
        UnreachableError: If nothing answers, or it doesn't speak TLS.
    """
    leaf = _server_certificate(address, timeout_s)
    ca = _anchor(leaf, address)
    ca_pem = ca.public_bytes(Encoding.PEM)
    if not hmac.compare_digest(fingerprint(ca_pem), expected):
        raise RefusedError(
            "certificate-foreign",
            f"{address} is not the coordinator this token is for: its authority has another fingerprint "
            f"({fingerprint(ca_pem).hex()[:16]}..., the token says {expected.hex()[:16]}...)",
            "Nothing secret was sent. Ask the operator whether the address is right; if it is, someone is in between.",
        )
    try:
        leaf.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise RefusedError(
            "certificate-foreign",
            f"{address} shows a certificate that the federation's authority didn't sign",
            "Nothing secret was sent. Tell the operator: someone may be in between.",
        ) from error
    return ca_pem


def peer_identity(context: grpc.aio.ServicerContext[Any, Any]) -> Identity:
    """Who is at the other end of a call on the session port.

    Raises:
        RefusedError: ``certificate-foreign`` if the connection carries no certificate of a federation.
    """
    certificates = context.auth_context().get("x509_pem_cert", ())
    for certificate_pem in certificates:
        return _identity(bytes(certificate_pem))
    raise RefusedError(
        "certificate-foreign",
        "the connection shows no client certificate",
        "Use the session address that joining has stored.",
    )


@functools.lru_cache(maxsize=1024)
def _identity(certificate_pem: bytes) -> Identity:
    return Identity.parse(certificate_pem)


def _server_certificate(address: str, timeout_s: float) -> x509.Certificate:
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # on purpose: see the guarantees of pinned_ca
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as raw,
            context.wrap_socket(raw) as tls,
        ):
            der = tls.getpeercert(binary_form=True)
    except ssl.SSLError as error:
        raise UnreachableError(
            f"{address} doesn't speak TLS: {error.reason or error}", "Is this the enrolment port of a coordinator?"
        ) from error
    except OSError as error:
        raise UnreachableError(
            f"no coordinator answers at {address}: {error.strerror or error}",
            "Is the coordinator running, and can this machine reach that port?",
        ) from error
    if not der or len(der) > MAX_PEM_BYTES:
        raise UnreachableError(f"{address} shows no usable certificate")
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise UnreachableError(f"{address} shows a damaged certificate: {error}") from error


def _anchor(leaf: x509.Certificate, address: str) -> x509.Certificate:
    try:
        extension = leaf.extensions.get_extension_for_oid(ANCHOR_OID).value
        if not isinstance(extension, x509.UnrecognizedExtension):
            raise ValueError("unexpected extension type")
        return x509.load_der_x509_certificate(extension.value)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise RefusedError(
            "certificate-foreign",
            f"{address} is not the enrolment port of a Fedloom coordinator",
            "Ask the operator for the address; a token made by the running coordinator carries the right one.",
        ) from error
