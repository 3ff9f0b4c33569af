"""Lines of the ledger: canonical bytes, each naming the hash of the one before it, each signed by the site.

A line is a mapping of plain values with the keys ``format, site, number, at, previous, kind`` and those of its kind.
What is signed, hashed and stored are the same bytes (``privacy.transcript``). A kind is never redefined: lines outlive
the code that wrote them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Final

from privacy.secure_aggregation.keys import SigningKey, verify
from privacy.transcript import TranscriptError, decode, encode

FORMAT: Final = "fedloom/ledger/1"
FIRST: Final = bytes(32)
"""What the first line names as the one before it."""

MAX_LINE_BYTES: Final = 1 << 20

_HEAD: Final = frozenset({"format", "site", "number", "at", "previous", "kind"})
_KINDS: Final[dict[str, frozenset[str]]] = {
    "open": frozenset({"dataset", "records", "unit", "epsilon", "delta"}),
    "budget": frozenset({"dataset", "records", "epsilon", "delta"}),
    "reserve": frozenset({"dataset", "task", "run", "round", "coordinator", "plan", "model", "events"}),
    "charge": frozenset({"task"}),
    "settle": frozenset({"task", "events"}),
    "give-back": frozenset({"task"}),
}


class LedgerError(ValueError):
    """A ledger that was changed, isn't this site's, or is asked for something that contradicts it.

    It carries what the front door prints: ``code``, ``message``, ``hint`` and ``exit_code``.
    """

    exit_code: int = 6

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


@dataclasses.dataclass(frozen=True)
class SignedEntry:
    """A line: its canonical bytes and the site's Ed25519 signature over them."""

    body: bytes
    signature: bytes


def entry_hash(body: bytes) -> bytes:
    """What the next line names as the one before it: SHA-256, 32 bytes."""
    return hashlib.sha256(b"fedloom/ledger/line" + body).digest()


def write(
    key: SigningKey, *, site: str, number: int, at_s: float, previous: bytes, kind: str, fields: Mapping[str, Any]
) -> SignedEntry:
    """Write a line.

    Args:
        key: The site's.
        site: Its name.
        number: From 0.
        at_s: Seconds since the epoch, by the site's clock.
        previous: Hash of the line before.
        kind: Of the line.
        fields: Its kind's.
    """
    if kind not in _KINDS or _KINDS[kind] != set(fields):
        raise ValueError(f"a line of kind {kind!r} can't have the fields {sorted(fields)}")
    line = {
        "format": FORMAT,
        "site": site,
        "number": number,
        "at": float(at_s).hex(),
        "previous": previous,
        "kind": kind,
        **fields,
    }
    body = encode(line)
    return SignedEntry(body, key.sign(body))


def read(signed: SignedEntry, *, public: bytes, site: str, number: int, previous: bytes) -> dict[str, Any]:
    """Read the line that follows ``previous``, and check that the site wrote it so.

    Raises:
        LedgerError: "ledger-broken", naming the line and what is wrong with it.
    """

    def broken(what: str) -> LedgerError:
        return LedgerError(
            "ledger-broken",
            f"line {number} of the privacy ledger {what}",
            "Somebody or something changed the file. Restore it from a backup; don't train on these data until then.",
        )

    if len(signed.body) > MAX_LINE_BYTES or not verify(public, signed.signature, signed.body):
        raise broken("isn't signed by this site")
    try:
        line = decode(signed.body)
    except TranscriptError as error:
        raise broken(f"can't be read: {error.message}") from None
    if not isinstance(line, dict) or line.get("format") != FORMAT:
        raise broken("has another format")
    fields = _KINDS.get(str(line.get("kind")))
    if fields is None or set(line) != _HEAD | fields:
        raise broken("is of an unknown kind")
    for name, expected in (("site", site), ("number", number), ("previous", previous)):
        if line[name] != expected:
            raise broken(f"doesn't follow the line before it: its {name} is another one")
    return line
