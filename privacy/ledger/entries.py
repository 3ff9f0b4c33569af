"""Lines of the ledger: what kinds there are, what each says, and their canonical bytes.

A line is a mapping of plain values with the keys ``format, site, number, at, previous, kind`` and those of its kind:

==========  ==========================================================================================================
kind        says
==========  ==========================================================================================================
open        a data set has a budget from now on
budget      its budget or its number of records is another one from now on
reserve     a task may cost these events; written before it is trained
charge      what the task's reservation named is spent; written before anything of its result leaves
settle      what the task has cost in the end, at most what was charged
give-back   the task's result never left and never will; its reservation is free again
key         the lines from now on are signed with another key of the same site, which has agreed
==========  ==========================================================================================================

What is signed, hashed and stored are the same bytes (``privacy.transcript``). A kind is never redefined: lines outlive
the code that wrote them. A change of meaning gets a kind, or a format, of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from privacy.transcript import TranscriptError, decode, encode

FORMAT: Final = "fedloom/ledger/1"

MAX_LINE_BYTES: Final = 1 << 20

KINDS: Final[dict[str, frozenset[str]]] = {
    "open": frozenset({"dataset", "records", "unit", "epsilon", "delta"}),
    "budget": frozenset({"dataset", "records", "epsilon", "delta"}),
    "reserve": frozenset({"dataset", "task", "run", "round", "coordinator", "plan", "model", "events"}),
    "charge": frozenset({"task"}),
    "settle": frozenset({"task", "events"}),
    "give-back": frozenset({"task"}),
    "key": frozenset({"from", "key", "consent"}),
}
"""The fields of each kind of line, besides those that all have."""

_HEAD: Final = frozenset({"format", "site", "number", "at", "previous", "kind"})


class LedgerError(ValueError):
    """A ledger that was changed, isn't this site's, or is asked for something that contradicts it.

    It carries what the front door prints: ``code``, ``message``, ``hint`` and ``exit_code``.

    Attributes:
        line: Number of the line that is wrong, from 0, where one is.
    """

    exit_code: int = 6

    def __init__(self, code: str, message: str, hint: str = "", *, line: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.line = line

    def __reduce__(self) -> tuple[type[LedgerError], tuple[str, str, str], dict[str, Any]]:
        """A worker process hands it over whole."""
        return type(self), (self.code, self.message, self.hint), self.__dict__


@dataclasses.dataclass(frozen=True)
class SignedEntry:
    """A line: its canonical bytes and the site's Ed25519 signature over them."""

    body: bytes
    signature: bytes


def pack(site: str, number: int, at_s: float, previous: bytes, kind: str, fields: Mapping[str, Any]) -> bytes:
    """A line's canonical bytes.

    Args:
        site: The site's name.
        number: From 0.
        at_s: Seconds since the epoch, by the site's clock.
        previous: Hash of the line before, 32 bytes.
        kind: Of the line.
        fields: Its kind's.

    Raises:
        ValueError: There is no such kind, or it has other fields.
    """
    if kind not in KINDS or KINDS[kind] != set(fields):
        raise ValueError(f"a line of kind {kind!r} can't have the fields {sorted(fields)}")
    head = {"format": FORMAT, "site": site, "number": number, "at": float(at_s).hex(), "previous": previous}
    return encode({**head, "kind": kind, **fields})


def unpack(body: bytes) -> dict[str, Any]:
    """The strict inverse of :func:`pack`, with the fields of the head and of the kind in one mapping.

    Raises:
        ValueError: The bytes aren't a line; the message says what is wrong with them ("line 3 ..." goes before it).
    """
    if len(body) > MAX_LINE_BYTES:
        raise ValueError("is too long")
    try:
        line = decode(body)
    except TranscriptError as error:
        raise ValueError(f"can't be read: {error.message}") from None
    if not isinstance(line, dict) or line.get("format") != FORMAT:
        raise ValueError("has another format")
    fields = KINDS.get(str(line.get("kind")))
    if fields is None or set(line) != _HEAD | fields:
        raise ValueError("is of an unknown kind")
    return line
