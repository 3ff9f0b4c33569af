"""The primitives, all from ``cryptography``: Ed25519, X25519, HKDF-SHA256, AES-256-GCM.

Private keys are 32 raw bytes wherever they are kept, so that a store, a share and a test vector have one form. No
object here shows a secret in its ``repr``. Python can't promise that a dropped secret is wiped from memory.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Final, NoReturn

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privacy.secure_aggregation.errors import SecureAggregationError

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

Random = Callable[[int], bytes]
"""Gives that many random bytes: :func:`os.urandom`, or a fixed stream in a test of fixed bytes."""


class Secret:
    """Base of what holds a long-lived or one-time secret: it can't be pickled or copied by accident.

    A secret then gets into no cache, no queue and no checkpoint. Whoever has to store one takes its raw bytes, in view.
    """

    def __reduce__(self) -> NoReturn:
        """Refuse."""
        raise TypeError(f"{type(self).__name__} holds a secret and can't be pickled")


# AES-GCM with a nonce that never changes is safe because every key seals exactly one message (see seal()).
_NONCE: Final = bytes(12)


@dataclasses.dataclass(frozen=True)
class SigningKey(Secret):
    """An Ed25519 private key (RFC 8032).

    Args:
        secret: 32 bytes.
    """

    secret: bytes = dataclasses.field(repr=False)

    @classmethod
    def generate(cls, random: Random = os.urandom) -> SigningKey:
        """Make a new key from ``random``."""
        return cls(random(KEY_BYTES))

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        key = Ed25519PrivateKey.from_private_bytes(self.secret)
        return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, message: bytes) -> bytes:
        """Sign; 64 bytes, the same for the same message."""
        return Ed25519PrivateKey.from_private_bytes(self.secret).sign(message)


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether ``signature`` is the Ed25519 signature of ``message`` by ``public``. Malformed input is just False."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclasses.dataclass(frozen=True)
class AgreementKey(Secret):
    """An X25519 private key (RFC 7748).

    Args:
        secret: 32 bytes.
    """

    secret: bytes = dataclasses.field(repr=False)

    @classmethod
    def generate(cls, random: Random = os.urandom) -> AgreementKey:
        """Make a new key from ``random``."""
        return cls(random(KEY_BYTES))

    @functools.cached_property
    def _key(self) -> X25519PrivateKey:
        # Making it multiplies a point: as dear as an agreement itself.
        return X25519PrivateKey.from_private_bytes(self.secret)

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def agree(self, peer: bytes) -> bytes:
        """The shared secret with a peer's public key, 32 bytes; derive keys from it with :func:`derive`.

        Raises:
            SecureAggregationError: "key-invalid" if the peer's key isn't 32 bytes or is a point of low order, whose
                shared secret is zero whatever our key is (RFC 7748, section 6.1).
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError as error:
            raise SecureAggregationError("key-invalid", "the agreement key is malformed or of low order") from error


def derive(secret: bytes, *, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF with SHA-256 (RFC 5869): ``length`` bytes bound to ``salt`` and ``info``."""
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(secret)


def seal(key: bytes, plaintext: bytes, context: bytes) -> bytes:
    """Encrypt and authenticate with AES-256-GCM under a fixed nonce.

    Formal Guarantees:
        Confidential and authentic as long as ``key`` seals one message only. Callers derive a fresh key for each
        sender, receiver and round context, and seal once.

    Args:
        key: 32 bytes, used for this message alone.
        plaintext: Any length.
        context: Authenticated with it, not encrypted.

    Returns:
        The ciphertext, 16 bytes longer than the plaintext.
    """
    return AESGCM(key).encrypt(_NONCE, plaintext, context)


def unseal(key: bytes, ciphertext: bytes, context: bytes) -> bytes | None:
    """Open what :func:`seal` made; None if key, context or a single bit differs."""
    try:
        return AESGCM(key).decrypt(_NONCE, ciphertext, context)
    except InvalidTag:
        return None
