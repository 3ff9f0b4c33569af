"""The federation's own certificate authority: one CA, three roles, keys that never leave the machine that made them.

A certificate names its holder by a URI, ``fedloom://<federation>/<role>/<name>``, in the subject alternative names
(RFC 5280, 4.2.1.6). Keys are ECDSA on P-256: gRPC's TLS library offers no Ed25519 by default.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from wire.errors import ConfigError, DataError, RefusedError
from wire.files import write_whole
from wire.names import check_name, is_name

MAX_PEM_BYTES: Final = 16 << 10
"""Certificates and signing requests larger than this are refused unread."""

ANCHOR_OID: Final = ObjectIdentifier("2.25.286413759020937186625107811375923447911")
"""Extension of the coordinator's certificate that carries the CA's certificate (see ``wire.tls.pinned_ca``)."""

CLOCK_SKEW: Final = datetime.timedelta(minutes=10)
"""Certificates are valid from this long before they are made, since clocks differ."""

_CA_DAYS = 3650
_URI = re.compile(r"fedloom://([a-z0-9-]{1,63})/(participant|operator|coordinator)/([a-z0-9-]{1,63})")


class Role(enum.StrEnum):
    """What the holder of a certificate may do."""

    PARTICIPANT = "participant"
    OPERATOR = "operator"
    COORDINATOR = "coordinator"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """Whom a certificate names. ``serial`` is in small hexadecimal letters, ``expires`` is UTC."""

    federation: str
    role: Role
    name: str
    serial: str
    expires: datetime.datetime

    @classmethod
    def parse(cls, certificate_pem: bytes) -> Identity:
        """Read the identity; whether the certificate is genuine is for TLS or :func:`explain_certificate` to say.

        Raises:
            RefusedError: ``certificate-foreign`` if this isn't a certificate of a Fedloom federation.
        """
        certificate = _load_certificate(certificate_pem)
        uris = _uris(certificate)
        match = _URI.fullmatch(uris[0]) if len(uris) == 1 else None
        if match is None:
            raise RefusedError(
                "certificate-foreign",
                "the certificate was not issued by a Fedloom federation",
                "Join with a token of this federation: fedloom participant join TOKEN",
            )
        return cls(
            federation=match.group(1),
            role=Role(match.group(2)),
            name=match.group(3),
            serial=f"{certificate.serial_number:x}",
            expires=certificate.not_valid_after_utc,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Credentials:
    """What one party shows and trusts: its key, its certificate, the federation's CA. All PEM."""

    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes = dataclasses.field(repr=False)

    @property
    def identity(self) -> Identity:
        """Whom the certificate names."""
        return Identity.parse(self.certificate_pem)

    def save(self, folder: Path) -> None:
        """Write ``ca.pem``, ``certificate.pem`` and ``key.pem`` (mode 0600), each atomically."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(folder / "key.pem", self.key_pem)
        write_public(folder / "ca.pem", self.ca_pem)
        write_public(folder / "certificate.pem", self.certificate_pem)

    @classmethod
    def load(cls, folder: Path) -> Credentials:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: If a file is missing.
            ConfigError: If others can read the key.
        """
        return cls(
            ca_pem=_read(folder / "ca.pem"),
            certificate_pem=_read(folder / "certificate.pem"),
            key_pem=read_private(folder / "key.pem"),
        )


class FederationCA:
    """A federation's certificate authority.

    Args:
        certificate: Self-signed; its common name is the federation's name.
        key: The private key, P-256.
    """

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key
        self.federation = check_name(_common_name(certificate.subject), "federation")

    @property
    def pem(self) -> bytes:
        """The CA's certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @classmethod
    def create(cls, name: str) -> FederationCA:
        """Make a new authority for the federation ``name``, valid for ten years.

        Raises:
            ConfigError: If ``name`` can't be a name.
        """
        check_name(name, "federation")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        public = key.public_key()
        builder = (
            _validity(_builder(subject, subject, public), _CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    def save(self, folder: Path) -> None:
        """Write ``ca.pem`` and ``ca.key`` (mode 0600)."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(folder / "ca.key", _key_pem(self._key))
        write_public(folder / "ca.pem", self.pem)

    @classmethod
    def load(cls, folder: Path) -> FederationCA:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: If a file is missing or damaged, or the two don't belong together.
            ConfigError: If others can read the key.
        """
        try:
            key = serialization.load_pem_private_key(read_private(folder / "ca.key"), password=None)
            certificate = x509.load_pem_x509_certificate(_read(folder / "ca.pem"))
        except ValueError as error:
            raise DataError(f"{folder}: the certificate authority can't be read: {error}", _RESTORE) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise DataError(f"{folder}: ca.key doesn't belong to ca.pem", _RESTORE)
        return cls(certificate, key)

    def sign_csr(self, csr_pem: bytes, name: str, role: Role, days: float) -> bytes:
        """Issue a client certificate for the key in a signing request.

        Nothing but the public key is taken from the request: ``name`` and ``role`` are the caller's to decide.

        Args:
            csr_pem: PKCS #10, at most ``MAX_PEM_BYTES``; ECDSA on P-256, signed by its own key.
            name: Whom the certificate names.
            role: What it allows.
            days: How long it is valid.

        Returns:
            The certificate, PEM.

        Raises:
            RefusedError: ``csr-invalid``.
            ConfigError: If ``name`` can't be a name.
        """
        check_name(name)
        public = _csr_key(csr_pem)
        uri = x509.UniformResourceIdentifier(f"fedloom://{self.federation}/{role}/{name}")
        builder = self._leaf(name, public, days, x509.SubjectAlternativeName([uri]), ExtendedKeyUsageOID.CLIENT_AUTH)
        return self._sign(builder)

    def issue_client(self, name: str, role: Role, days: float) -> Credentials:
        """Make a key and its certificate in one go, for a holder on this machine (the operator, a test)."""
        key_pem, csr_pem = make_key_and_csr(name)
        return Credentials(ca_pem=self.pem, certificate_pem=self.sign_csr(csr_pem, name, role, days), key_pem=key_pem)

    def issue_server(self, hosts: Sequence[str], days: float = 365.0) -> Credentials:
        """Make the coordinator's key and certificate.

        Args:
            hosts: Names and addresses under which the coordinator is reached; :func:`server_name` is always added, so
                that clients that ask for that name work from behind any address.
            days: How long it is valid.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(server_name(self.federation))]
        for host in dict.fromkeys(hosts):
            names.append(_general_name(host))
        names.append(x509.UniformResourceIdentifier(f"fedloom://{self.federation}/coordinator/coordinator"))
        builder = self._leaf(
            "coordinator", key.public_key(), days, x509.SubjectAlternativeName(names), ExtendedKeyUsageOID.SERVER_AUTH
        )
        anchor = x509.UnrecognizedExtension(ANCHOR_OID, self.certificate.public_bytes(serialization.Encoding.DER))
        certificate_pem = self._sign(builder.add_extension(anchor, critical=False))
        return Credentials(ca_pem=self.pem, certificate_pem=certificate_pem, key_pem=_key_pem(key))

    def _leaf(
        self,
        name: str,
        public: ec.EllipticCurvePublicKey,
        days: float,
        names: x509.SubjectAlternativeName,
        usage: ObjectIdentifier,
    ) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            _validity(_builder(subject, self.certificate.subject, public), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(names, critical=False)
            .add_extension(authority, critical=False)
        )

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


_RESTORE = "Restore the coordinator's state folder from a backup; without the CA's key every site must join again."


def server_name(federation: str) -> str:
    """The name in the coordinator's certificate that clients ask for, whatever the address is."""
    return f"coordinator.{federation}"


def fingerprint(ca_pem: bytes) -> bytes:
    """SHA-256 of the CA's certificate (DER), 32 bytes: what a token pins.

    Raises:
        RefusedError: ``certificate-foreign`` if this isn't a certificate.
    """
    return _load_certificate(ca_pem).fingerprint(hashes.SHA256())


def federation_of(ca_pem: bytes) -> str:
    """The federation's name, from its CA's certificate.

    Raises:
        RefusedError: ``certificate-foreign`` if this isn't the certificate of a federation.
    """
    name = _common_name(_load_certificate(ca_pem).subject)
    if not is_name(name):
        raise RefusedError("certificate-foreign", "this is not the certificate of a federation's authority", _REJOIN)
    return name


def make_key_and_csr(name: str) -> tuple[bytes, bytes]:
    """Make a new private key (PKCS #8 PEM, unencrypted) and a signing request for it (PKCS #10 PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    key_pem = _key_pem(key)
    return key_pem, make_csr(key_pem, name)


def make_csr(key_pem: bytes, name: str) -> bytes:
    """Make a signing request (PKCS #10 PEM) for a key at hand, as renewing a certificate needs.

    Raises:
        DataError: If the key can't be read.
    """
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except ValueError as error:
        raise DataError(f"the private key can't be read: {error}", "Join again with a new token.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DataError("the private key is not an elliptic curve key", "Join again with a new token.")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_name(name))])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def explain_certificate(
    certificate_pem: bytes, ca: FederationCA, now: datetime.datetime
) -> tuple[str, str, str] | None:
    """Say why mutual TLS turns a client certificate away.

    Args:
        certificate_pem: What the client shows, at most ``MAX_PEM_BYTES``.
        ca: The federation's authority.
        now: The present time, with a time zone.

    Returns:
        (code, message, hint), or None if TLS would accept it (the roster may still not).
    """
    try:
        identity = Identity.parse(certificate_pem)
        certificate = _load_certificate(certificate_pem)
        certificate.verify_directly_issued_by(ca.certificate)
    except RefusedError as error:
        return error.code, error.message, error.hint
    except (ValueError, TypeError, InvalidSignature):
        return (
            "certificate-foreign",
            f"the certificate of {identity.name!r} was issued by another federation ({identity.federation!r}), "
            f"or by an earlier {ca.federation!r} whose keys are gone",
            _REJOIN,
        )
    if now > certificate.not_valid_after_utc:
        ended = certificate.not_valid_after_utc.isoformat(timespec="seconds")
        return "certificate-expired", f"the certificate of {identity.name!r} expired at {ended}", _REJOIN
    if now < certificate.not_valid_before_utc:
        starts = certificate.not_valid_before_utc.isoformat(timespec="seconds")
        message = f"the certificate of {identity.name!r} is valid only from {starts}"
        return "certificate-expired", message, "Set the clock of this machine right."
    return None


_REJOIN = "Ask the operator for a new token (fedloom coordinator invite NAME) and join again."


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, atomically and synced."""
    write_whole(path, data, 0o600)


def read_private(path: Path) -> bytes:
    """Read a private file.

    Raises:
        DataError: If it is missing.
        ConfigError: If others than its owner may read or write it.
    """
    data = _read(path)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(
            f"{path}: others can read this private key (mode {mode:04o})",
            f"Run: chmod 600 {path}. If others have had access, make new keys.",
        )
    return data


def write_public(path: Path, data: bytes) -> None:
    """Write a file that everyone may read, atomically and synced."""
    write_whole(path, data, 0o644)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file", "Is this the right folder?") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_certificate(certificate_pem: bytes) -> x509.Certificate:
    try:
        if len(certificate_pem) > MAX_PEM_BYTES:
            raise ValueError("too large")
        return x509.load_pem_x509_certificate(certificate_pem)
    except ValueError as error:
        raise RefusedError("certificate-foreign", "this is not a readable certificate", _REJOIN) from error


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _common_name(name: x509.Name) -> str:
    attributes = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attributes[0].value) if attributes else ""


def _csr_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    hint = "Make the request with: fedloom participant join TOKEN"
    if len(csr_pem) > MAX_PEM_BYTES:
        raise RefusedError("csr-invalid", f"the signing request is larger than {MAX_PEM_BYTES} bytes", hint)
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        genuine = request.is_signature_valid
        public = request.public_key()
    except Exception as error:  # the library raises several kinds for garbage, some of them its own
        raise RefusedError("csr-invalid", "the signing request can't be read", hint) from error
    if not genuine:
        raise RefusedError("csr-invalid", "the signing request is not signed by its own key", hint)
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise RefusedError("csr-invalid", "the signing request's key is not ECDSA on P-256", hint)
    return public


def _builder(subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
    )


def _validity(builder: x509.CertificateBuilder, days: float) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return builder.not_valid_before(now - CLOCK_SKEW).not_valid_after(now + datetime.timedelta(days=days))


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def same_key(one_pem: bytes, other_pem: bytes) -> bool:
    """Whether two certificates are for the same key: a renewed certificate is, one from a new enrolment isn't.

    Raises:
        RefusedError: ``certificate-foreign`` if either isn't a certificate.
    """
    return _load_certificate(one_pem).public_key() == _load_certificate(other_pem).public_key()


def csr_has_key_of(csr_pem: bytes, certificate_pem: bytes) -> bool:
    """Whether a signing request is for the key of a certificate.

    Raises:
        RefusedError: ``csr-invalid`` or ``certificate-foreign`` if either can't be read.
    """
    return _csr_key(csr_pem) == _load_certificate(certificate_pem).public_key()
