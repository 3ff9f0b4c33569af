"""The invitation a site pastes: where to enrol, whom to trust, and a one-time secret, in one line."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import re
from typing import Final, NoReturn, Self

from wire.errors import RefusedError
from wire.names import is_name

PREFIX: Final = "fedloom2-"
SECRET_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 32
ROOT_BYTES: Final = 32
MAX_TOKEN_CHARACTERS: Final = 1_024

_CHECK_BYTES = 4
_MAX_ADDRESS = 261  # a DNS name of 253 characters, a colon, a port; IPv6 in brackets is shorter
_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:.%]{2,60}\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?):([0-9]{1,5})")
_FAMILY = re.compile(r"fedloom[0-9]+-")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_ASK = "Ask the operator for a new one: fedloom coordinator invite NAME"


def is_address(value: str) -> bool:
    """Whether ``value`` is ``host:port`` with a port from 1 to 65535."""
    match = _ADDRESS.fullmatch(value)
    return match is not None and len(value) <= _MAX_ADDRESS and 1 <= int(match.group(2)) <= 65_535


@dataclasses.dataclass(frozen=True, kw_only=True)
class Token:
    """A one-time invitation.

    Args:
        name: Of the participant that is invited.
        address: ``host:port`` of the enrolment service.
        fingerprint: SHA-256 of the federation CA's certificate, 32 bytes.
        root: The federation root's Ed25519 public key, 32 bytes: whose word the site takes for who is a member.
        secret: 32 random bytes; whoever holds them may enrol as ``name`` once.
    """

    name: str
    address: str
    fingerprint: bytes
    root: bytes
    secret: bytes = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        """Check every part.

        Raises:
            ValueError: For a part out of range; a token is made by programs, so this is a mistake in one.
        """
        if not is_name(self.name):
            raise ValueError(f"{self.name!r} is not a name")
        if not is_address(self.address):
            raise ValueError(f"{self.address!r} is not host:port")
        sizes = (len(self.fingerprint), len(self.root), len(self.secret))
        if sizes != (FINGERPRINT_BYTES, ROOT_BYTES, SECRET_BYTES):
            raise ValueError("fingerprint, root and secret have 32 bytes each")

    @property
    def secret_hash(self) -> bytes:
        """SHA-256 of the secret: all that the coordinator keeps."""
        return hashlib.sha256(self.secret).digest()

    def encode(self) -> str:
        """One line of letters, digits, ``-`` and ``_`` that survives a mail, a chat and a shell."""
        name, address = self.name.encode(), self.address.encode()
        body = b"".join(
            (
                self.fingerprint,
                self.root,
                self.secret,
                bytes((len(name),)),
                name,
                len(address).to_bytes(2, "big"),
                address,
            )
        )
        # The length stands in front, so that a token whose end is missing is told from one with a wrong letter.
        sized = len(body).to_bytes(2, "big") + body
        return PREFIX + base64.urlsafe_b64encode(sized + _check(sized)).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a pasted token. Blanks and line breaks, which mail programs insert, are ignored.

        Raises:
            RefusedError: ``token-malformed``; the message says whether it isn't a token, is cut off, or has a wrong
                character.
        """
        compact = "".join(text[: 4 * MAX_TOKEN_CHARACTERS].split()).strip("\"'`")
        sized = _decode(compact)
        expected = int.from_bytes(sized[:2], "big")
        content, check = sized[2 : 2 + expected], sized[2 + expected :]
        if len(content) < expected or len(check) < _CHECK_BYTES:
            _refuse("the token is cut off: its end is missing", "Copy the whole line.")
        if len(check) > _CHECK_BYTES:
            _refuse("the token is too long: something is pasted behind it", "Copy just the one line.")
        if _check(sized[: 2 + expected]) != check:
            _refuse("the token has a wrong character: its checksum doesn't fit", "Copy it again instead of typing it.")
        try:
            return cls._from_body(content)
        except (ValueError, IndexError) as error:
            _refuse(f"the token's content can't be used: {error}", _ASK)

    @classmethod
    def _from_body(cls, body: bytes) -> Self:
        root_end = FINGERPRINT_BYTES + ROOT_BYTES
        fixed = root_end + SECRET_BYTES
        fingerprint, root = body[:FINGERPRINT_BYTES], body[FINGERPRINT_BYTES:root_end]
        secret, rest = body[root_end:fixed], body[fixed:]
        name_end = 1 + rest[0]
        name = rest[1:name_end].decode("ascii")
        address_end = name_end + 2 + int.from_bytes(rest[name_end : name_end + 2], "big")
        address = rest[name_end + 2 : address_end].decode("ascii")
        if len(rest) != address_end:
            raise ValueError("lengths don't add up")
        return cls(name=name, address=address, fingerprint=fingerprint, root=root, secret=secret)


def _check(sized: bytes) -> bytes:
    return hashlib.sha256(b"fedloom/token/2" + sized).digest()[:_CHECK_BYTES]


def _decode(compact: str) -> bytes:
    if not compact:
        _refuse("the token is empty", _ASK)
    if not compact.startswith(PREFIX):
        if PREFIX.startswith(compact[: len(PREFIX)]):
            _refuse("the token is cut off: its end is missing", "Copy the whole line.")
        if _FAMILY.match(compact):
            _refuse(
                f"this token is of another release of fedloom: it doesn't start with {PREFIX!r}",
                "Install the same release on both sides, and ask the operator for a new token.",
            )
        shown = compact[:12]
        _refuse(f"this is not a token: it starts with {shown!r}, not with {PREFIX!r}", "Copy the whole line.")
    encoded = compact[len(PREFIX) :]
    if len(compact) > MAX_TOKEN_CHARACTERS:
        _refuse(f"the token is longer than {MAX_TOKEN_CHARACTERS} characters", "Copy just the one line.")
    if not _BASE64URL.fullmatch(encoded):
        _refuse("the token holds a character that no token holds", "Copy it again instead of typing it.")
    if len(encoded) < 4:
        _refuse("the token is cut off: its end is missing", "Copy the whole line.")
    if len(encoded) % 4 == 1:
        # Impossible as base64: one character too few or too many. The length field knows which.
        encoded = encoded[:-1]
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except binascii.Error:
        _refuse("the token is cut off: its end is missing", "Copy the whole line.")


def _refuse(message: str, hint: str) -> NoReturn:
    raise RefusedError("token-malformed", message, hint)
