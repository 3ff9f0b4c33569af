"""Certificates: roles, signing requests, files, explanations."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from wire import (
    ConfigError,
    Credentials,
    DataError,
    FederationCA,
    Identity,
    RefusedError,
    Role,
    csr_has_key_of,
    explain_certificate,
    federation_of,
    fingerprint,
    make_csr,
    make_key_and_csr,
    same_key,
)
from wire.pki import MAX_PEM_BYTES, server_name


def present() -> datetime.datetime:
    """The present; a long test run is longer than the clocks' skew."""
    return datetime.datetime.now(datetime.UTC)


def request_with(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm)
    return request.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("role", [Role.PARTICIPANT, Role.OPERATOR])
def test_a_certificate_names_its_holder(ca: FederationCA, role: Role) -> None:
    _, csr = make_key_and_csr("whatever-it-asks-for")
    identity = Identity.parse(ca.sign_csr(csr, "hospital-a", role, 30))
    assert (identity.federation, identity.role, identity.name) == ("demo", role, "hospital-a")
    assert abs((identity.expires - datetime.datetime.now(datetime.UTC)).total_seconds() - 30 * 86_400) < 120
    assert int(identity.serial, 16) > 0


def test_the_request_decides_nothing_but_the_key(ca: FederationCA) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coordinator")])
    )
    names = [x509.DNSName(server_name("demo")), x509.UniformResourceIdentifier("fedloom://demo/operator/root")]
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    csr = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    certificate = x509.load_pem_x509_certificate(ca.sign_csr(csr, "a", Role.PARTICIPANT, 1))
    alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in alternative] == ["fedloom://demo/participant/a"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.subject.rfc4514_string() == "CN=a"


def test_requests_that_are_refused(ca: FederationCA) -> None:
    good = request_with(ec.generate_private_key(ec.SECP256R1()))
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1  # the signature's last byte
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    for csr, part in [
        (b"", "can't be read"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "can't be read"),
        (good + b" " * MAX_PEM_BYTES, "larger"),
        (forged, "own key"),
        (request_with(rsa.generate_private_key(65_537, 2_048)), "P-256"),
        (request_with(ed25519.Ed25519PrivateKey.generate()), "P-256"),
        (request_with(ec.generate_private_key(ec.SECP384R1())), "P-256"),
    ]:
        with pytest.raises(RefusedError, match=part) as caught:
            ca.sign_csr(csr, "a", Role.PARTICIPANT, 1)
        assert caught.value.code == "csr-invalid"


@given(st.binary(max_size=300))
def test_garbage_is_never_signed_nor_read(ca: FederationCA, data: bytes) -> None:
    for wrapped in (data, b"-----BEGIN CERTIFICATE REQUEST-----\n" + data + b"\n-----END CERTIFICATE REQUEST-----"):
        with pytest.raises(RefusedError):
            ca.sign_csr(wrapped, "a", Role.PARTICIPANT, 1)
        with pytest.raises(RefusedError):
            Identity.parse(wrapped)
        explained = explain_certificate(wrapped, ca, present())
        assert explained is not None
        assert explained[0] == "certificate-foreign"


@pytest.mark.parametrize("name", ["", "A", "-a", "a_b", "a/b", "../x", "a" * 64, "ä", "a\n", "a b"])
def test_names_that_are_refused(ca: FederationCA, name: str) -> None:
    _, csr = make_key_and_csr("x")
    with pytest.raises(ConfigError, match="name"):
        ca.sign_csr(csr, name, Role.PARTICIPANT, 1)
    with pytest.raises(ConfigError, match="name"):
        FederationCA.create(name)


def test_the_authority_on_disk(tmp_path: Path) -> None:
    made = FederationCA.create("demo")
    made.save(tmp_path / "ca")
    assert (tmp_path / "ca" / "ca.key").stat().st_mode & 0o777 == 0o600
    loaded = FederationCA.load(tmp_path / "ca")
    assert (loaded.pem, loaded.federation) == (made.pem, "demo")
    _, csr = make_key_and_csr("a")
    assert explain_certificate(loaded.sign_csr(csr, "a", Role.PARTICIPANT, 1), made, present()) is None


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    FederationCA.create("demo").save(tmp_path)
    (tmp_path / "ca.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"0640") as caught:
        FederationCA.load(tmp_path)
    assert "chmod 600" in caught.value.hint


def test_damaged_or_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ca\.key"):
        FederationCA.load(tmp_path)
    FederationCA.create("demo").save(tmp_path / "one")
    FederationCA.create("demo").save(tmp_path / "two")
    (tmp_path / "one" / "ca.pem").write_bytes((tmp_path / "two" / "ca.pem").read_bytes())
    with pytest.raises(DataError, match="belong"):
        FederationCA.load(tmp_path / "one")
    (tmp_path / "two" / "ca.key").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="can't be read"):
        FederationCA.load(tmp_path / "two")


def test_credentials_on_disk(tmp_path: Path, hospital: Credentials) -> None:
    hospital.save(tmp_path / "identity")
    assert Credentials.load(tmp_path / "identity") == hospital
    assert hospital.identity.name == "hospital-a"
    assert "PRIVATE" not in repr(hospital)
    (tmp_path / "identity" / "key.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        Credentials.load(tmp_path / "identity")


def test_explanations(ca: FederationCA, hospital: Credentials, server_identity: Credentials) -> None:
    assert explain_certificate(hospital.certificate_pem, ca, present()) is None
    later = present() + datetime.timedelta(days=31)
    earlier = present() - datetime.timedelta(days=1)
    namesake = FederationCA.create("demo").issue_client("hospital-a", Role.PARTICIPANT, 1)
    stranger = FederationCA.create("other").issue_client("hospital-a", Role.PARTICIPANT, 1)
    for certificate, now, code, part in [
        (hospital.certificate_pem, later, "certificate-expired", "expired at"),
        (hospital.certificate_pem, earlier, "certificate-expired", "valid only from"),
        (namesake.certificate_pem, present(), "certificate-foreign", "earlier 'demo'"),
        (stranger.certificate_pem, present(), "certificate-foreign", "'other'"),
        (ca.pem, present(), "certificate-foreign", "not issued"),
    ]:
        explained = explain_certificate(certificate, ca, now)
        assert explained is not None
        assert explained[0] == code
        assert part in explained[1]
        assert explained[2]


def test_fingerprint_and_federation_of_the_authority(ca: FederationCA, hospital: Credentials) -> None:
    assert fingerprint(ca.pem) == ca.certificate.fingerprint(hashes.SHA256())
    assert fingerprint(FederationCA.create("demo").pem) != fingerprint(ca.pem)
    assert federation_of(ca.pem) == "demo"
    with pytest.raises(RefusedError, match="not a readable"):
        fingerprint(b"nonsense")


def test_renewal_keeps_the_key(ca: FederationCA, hospital: Credentials) -> None:
    csr = make_csr(hospital.key_pem, "hospital-a")
    renewed = ca.sign_csr(csr, "hospital-a", Role.PARTICIPANT, 60)
    assert same_key(renewed, hospital.certificate_pem)
    assert csr_has_key_of(csr, hospital.certificate_pem)
    _, other = make_key_and_csr("hospital-a")
    assert not csr_has_key_of(other, hospital.certificate_pem)
    with pytest.raises(DataError, match="private key"):
        make_csr(b"nonsense", "hospital-a")


def test_the_server_certificate_bears_all_its_names(server_identity: Credentials) -> None:
    certificate = x509.load_pem_x509_certificate(server_identity.certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["coordinator.demo", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert server_identity.identity.role is Role.COORDINATOR
