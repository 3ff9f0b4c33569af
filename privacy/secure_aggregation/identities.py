"""What stands behind a member's name: an Ed25519 key, a proof that its holder asked for it, a form to read aloud."""

from __future__ import annotations

import dataclasses
import enum
import re
from typing import Final, Self

from privacy import transcript
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.keys import KEY_BYTES, SigningKey, verify

HASH_BYTES: Final = 32
ORIGIN: Final = bytes(HASH_BYTES)
"""Stands where a hash would stand if there were anything to hash."""

COORDINATOR_NAME: Final = "coordinator"
"""The name of the member of role coordinator; no participant may be called so."""

_REQUEST: Final = "fedloom/member-request/1"
_FINGERPRINT: Final = "fedloom/key-fingerprint/1"

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

# Points of low order on edwards25519, by their y coordinate (RFC 8032, 5.1): under such a key one signature would fit
# many messages, so it identifies nobody. The two last ones have order 8.
_PRIME: Final = 2**255 - 19
_ORDER_8_Y: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_LOW_ORDER_Y: Final = frozenset({0, 1, _PRIME - 1, _ORDER_8_Y, _PRIME - _ORDER_8_Y})


class Role(enum.StrEnum):
    """What a member is."""

    PARTICIPANT = "participant"
    COORDINATOR = "coordinator"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberRequest:
    """A wish to be certified by the root, signed with the key that is to be certified.

    Formal Guarantees:
        A request that passes :meth:`check` was made by the holder of ``public_key`` for this federation, role and name,
        and for no other, unless Ed25519 is broken: nobody can have another's key certified under a name of their own.
        It does *not* say that the holder is the institution of that name. For that the root's keeper compares
        fingerprints with the institution over a channel that the coordinator has no part in.

    Attributes:
        federation: The federation's name.
        role: What it wants to be.
        name: What it is called.
        public_key: Its Ed25519 key, 32 bytes.
        binding: SHA-256 of the TLS signing request that came with it, 32 bytes, so that the two keys of an institution
            can't be mixed with another's; zeros where there was none (the coordinator's own).
        signature: Of the key to be certified, 64 bytes.
    """

    federation: str
    role: Role
    name: str
    public_key: bytes
    binding: bytes
    signature: bytes

    @classmethod
    def make(cls, key: SigningKey, *, federation: str, role: Role, name: str, binding: bytes = ORIGIN) -> Self:
        """Ask for ``key``'s public half to be certified."""
        unsigned = cls(
            federation=federation, role=role, name=name, public_key=key.public, binding=binding, signature=b""
        )
        return dataclasses.replace(unsigned, signature=key.sign(unsigned._message()))

    def check(self) -> None:
        """Check form and signature.

        Raises:
            SecureAggregationError: "members-malformed", "member-key-invalid" or "member-proof".
        """
        check_member_name(self.federation, "federation")
        check_member_name(self.name, "name")
        check_public_key(self.public_key, f"the signing key of {self.name}")
        if len(self.binding) != HASH_BYTES or not verify(self.public_key, self.signature, self._message()):
            raise SecureAggregationError(
                "member-proof",
                f"the request of {self.name!r} isn't signed by the key that it asks to certify, "
                f"or was made for another federation, role or name than {self.federation}, {self.role}, {self.name}",
                "Join again with a new token: the site makes a new request.",
            )

    def _message(self) -> bytes:
        fields = {
            "federation": self.federation,
            "role": str(self.role),
            "name": self.name,
            "public_key": self.public_key,
            "binding": self.binding,
        }
        return transcript.encode(_REQUEST) + transcript.encode(fields)


def key_fingerprint(public_key: bytes) -> str:
    """A key in a form that two people can compare over the telephone.

    Formal Guarantees:
        128 bits of SHA-256 over a label and the key: nobody can make a key that has a given other key's fingerprint.

    >>> key_fingerprint(bytes(32))
    'cf21 20b8 c316 bb9f a764 5870 e251 5330'

    Args:
        public_key: 32 bytes.

    Returns:
        Eight groups of four hexadecimal digits.
    """
    digits = transcript.digest(_FINGERPRINT, public_key)[:16].hex()
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def check_public_key(public_key: bytes, what: str) -> None:
    """Check that an Ed25519 public key can identify somebody; ``what`` says whose it is.

    Raises:
        SecureAggregationError: "member-key-invalid" if it isn't 32 bytes, isn't encoded canonically, or is a point of
            low order, under which one signature fits many messages.
    """
    if len(public_key) != KEY_BYTES:
        raise SecureAggregationError("member-key-invalid", f"{what} has {len(public_key)} bytes, not {KEY_BYTES}")
    y = int.from_bytes(public_key, "little") & ((1 << 255) - 1)
    if y >= _PRIME or y in _LOW_ORDER_Y:
        raise SecureAggregationError("member-key-invalid", f"{what} is not an Ed25519 key that identifies anyone")


def check_member_name(name: str, what: str) -> None:
    """Check that a name can stand in the list: 1 to 63 small letters, digits and hyphens, no hyphen first.

    Raises:
        SecureAggregationError: "members-malformed".
    """
    if not _NAME.fullmatch(name):
        raise malformed(f"{what} {name[:80]!r} is not a name")


def malformed(message: str) -> SecureAggregationError:
    """The error for a name, an entry or a list that has not the form it must have."""
    return SecureAggregationError("members-malformed", message)
