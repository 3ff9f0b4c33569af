"""The chain of lines: each names the hash of the one before it, and each is signed by the site.

Formal Guarantees:
    Let SHA-256 be collision resistant and Ed25519 unforgeable. Who doesn't hold the site's key can't change, insert,
    swap or remove a line without :func:`read` refusing the first line from which the ledger differs. Who does hold it
    (the site itself) can rewrite the ledger only from some line on, and then every head that was told to somebody after
    that line, in a receipt or an export, contradicts it. Lines that are cut off at the end leave a valid, shorter
    chain: only such a head tells.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from privacy.ledger.entries import LedgerError, SignedEntry, pack, unpack
from privacy.secure_aggregation.keys import SigningKey, verify

FIRST: Final = bytes(32)
"""What the first line names as the one before it."""

_CHANGED: Final = (
    "Somebody or something changed the file. Restore it from a backup; don't train on these data until then."
)
_FOREIGN: Final = "A ledger belongs to one site and one key. Put this site's own ledger.sqlite back."
_REPLACED: Final = (
    "Was the site joined anew without its earlier key? Then put its earlier identity back: what its data have paid is "
    "signed with that key. If it wasn't, somebody changed the file: restore it from a backup."
)


def consent(previous: bytes, old: bytes) -> bytes:
    """What a new key signs before the site's ``old`` key hands the ledger over to it after the line ``previous``."""
    return b"fedloom/ledger/key" + previous + old


def first_key(lines: Iterable[SignedEntry], own: bytes) -> bytes:
    """The public key with which a ledger was begun that the key ``own`` goes on with; unverified."""
    for signed in lines:
        with contextlib.suppress(ValueError):
            line = unpack(signed.body)
            if line["kind"] == "key" and isinstance(line["from"], bytes):
                return line["from"]
    return own


def entry_hash(body: bytes) -> bytes:
    """What the next line names as the one before it: SHA-256, 32 bytes."""
    return hashlib.sha256(b"fedloom/ledger/line" + body).digest()


def write(
    key: SigningKey, *, site: str, number: int, at_s: float, previous: bytes, kind: str, fields: Mapping[str, Any]
) -> SignedEntry:
    """Write and sign a line; the arguments are those of :func:`privacy.ledger.entries.pack`."""
    body = pack(site, number, at_s, previous, kind, fields)
    return SignedEntry(body, key.sign(body))


def read(signed: SignedEntry, *, public: bytes, site: str, number: int, previous: bytes) -> dict[str, Any]:
    """Read the line that follows ``previous``, and check that the site wrote it so.

    Raises:
        LedgerError: "ledger-broken" for a line that was changed, "ledger-foreign" for a ledger that another site has
            begun; either names the line and what is wrong with it.
    """

    def broken(what: str, hint: str = _CHANGED, code: str = "ledger-broken") -> LedgerError:
        return LedgerError(code, f"line {number} of the privacy ledger {what}", hint, line=number)

    genuine = verify(public, signed.signature, signed.body)
    try:
        line = unpack(signed.body)
    except ValueError as error:
        # Whether it is of use or not: the first thing to know of a line is that it isn't the site's.
        raise broken(str(error) if genuine else "isn't signed by this site") from None
    if line["site"] != site:
        what = f"is of the site {line['site']!r}, and this site is {site!r}"
        raise broken(what, _FOREIGN, "ledger-foreign") if number == 0 else broken(what)
    if not genuine:
        raise broken("isn't signed with this site's key", _CHANGED if number else _REPLACED)
    for name, expected in (("number", number), ("previous", previous)):
        if line[name] != expected:
            raise broken(f"doesn't follow the line before it: its {name} is another one")
    return line
