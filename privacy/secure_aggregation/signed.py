"""The form of every statement: canonical bytes, strict reading, one signature.

A statement's body is the canonical encoding (``privacy.transcript``) of ``(kind, field, ...)``. The same bytes are
hashed, signed, sent and stored, so a signature never depends on how a message library writes its fields, and what
stands in the log is the evidence itself. Reading is strict: the kind's fields, their types and sizes, nothing else.

Tables with many short rows travel as one bytes value of fixed-width columns (:class:`Table`), which keeps a round's
control messages small.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Final, Self, cast

from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.keys import SigningKey, verify
from privacy.secure_aggregation.thresholds import MAX_COHORT
from privacy.transcript import TranscriptError, decode, encode

MAX_STATEMENT_BYTES: Final = 3 << 20
"""No statement is longer; a longer one is refused unread."""

HASH_BYTES: Final = 32

MAX_RETIRED: Final = 64
"""An acceptance names so many earlier attempts at most."""

_SIGNED: Final = b"fedloom/secure-aggregation/statement/1\0"


@dataclasses.dataclass(frozen=True)
class Signed:
    """A statement as it travels and is stored: canonical body, and its Ed25519 signature (64 bytes)."""

    body: bytes = dataclasses.field(repr=False)
    signature: bytes = dataclasses.field(repr=False)


class Table:
    """Rows of fixed-width byte columns in one bytes value.

    Args:
        widths: Bytes of each column.
        most: The most rows a peer may send.
    """

    def __init__(self, *widths: int, most: int = MAX_COHORT) -> None:
        self.widths = widths
        self.most = most
        self._row = sum(widths)

    def write(self, rows: Iterable[Sequence[bytes]]) -> bytes:
        """The rows, one behind the other.

        Raises:
            ValueError: A column has another width.
        """
        parts: list[bytes] = []
        for row in rows:
            if tuple(len(cell) for cell in row) != self.widths:
                raise ValueError(f"a row has columns of {[len(cell) for cell in row]} bytes, not {self.widths}")
            parts.extend(row)
        return b"".join(parts)

    def read(self, data: bytes) -> list[tuple[bytes, ...]]:
        """The rows back; ``data`` has passed :meth:`check`."""
        rows = []
        for start in range(0, len(data), self._row):
            cells, position = [], start
            for width in self.widths:
                cells.append(data[position : position + width])
                position += width
            rows.append(tuple(cells))
        return rows

    def check(self, data: object) -> bool:
        """Whether ``data`` is a whole number of rows, at most ``most``."""
        return isinstance(data, bytes) and len(data) % self._row == 0 and len(data) <= self.most * self._row


def positions_bytes(positions: Iterable[int]) -> bytes:
    """Positions in the roster, ascending, two bytes each."""
    return b"".join(item.to_bytes(2, "big") for item in sorted(positions))


def positions_of(data: bytes) -> tuple[int, ...]:
    """Back from :func:`positions_bytes`."""
    return tuple(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))


Check = Callable[[Any], bool]
"""Whether a field's decoded value may stand there."""


def exactly(length: int) -> Check:
    """Bytes of this length."""
    return lambda value: isinstance(value, bytes) and len(value) == length


def any_bytes(value: Any) -> bool:
    """Bytes; the statement's own limit bounds them."""
    return isinstance(value, bytes)


def text(longest: int) -> Check:
    """A string of at most so many characters, none of which moves a cursor: an operator will read it."""
    return lambda value: isinstance(value, str) and len(value) <= longest and (not value or value.isprintable())


def cleaned(value: str, longest: int) -> str:
    """A string of unknown origin as :func:`text` allows it."""
    return "".join(item if item.isprintable() else "?" for item in value[:longest])


def natural(value: Any) -> bool:
    """An integer from 0 to 2^63 - 1."""
    return type(value) is int and 0 <= value < 1 << 63


def hashes(value: Any) -> bool:
    """A sequence of at most ``MAX_RETIRED`` hashes."""
    return isinstance(value, tuple) and len(value) <= MAX_RETIRED and all(exactly(HASH_BYTES)(item) for item in value)


def retirements(value: Any) -> bool:
    """A sequence of (position, hashes)."""
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_COHORT
        and all(isinstance(item, tuple) and len(item) == 2 and natural(item[0]) and hashes(item[1]) for item in value)
    )


def ascending(value: Any) -> bool:
    """Bytes that :func:`positions_bytes` wrote: positions that ascend."""
    if not isinstance(value, bytes) or len(value) % 2 or len(value) > 2 * MAX_COHORT:
        return False
    return all(one < other for one, other in itertools.pairwise(positions_of(value)))


class Statement:
    """Base of all statements: a frozen dataclass with a ``KIND`` and one check for each field, in order."""

    KIND: ClassVar[str]
    CHECKS: ClassVar[tuple[Check, ...]]

    def body(self) -> bytes:
        """The canonical bytes."""
        values = [getattr(self, field.name) for field in dataclasses.fields(cast(Any, self))]
        return encode((self.KIND, *values))

    def signed(self, key: SigningKey) -> Signed:
        """The statement with its maker's signature."""
        body = self.body()
        return Signed(body, key.sign(_SIGNED + body))

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read canonical bytes.

        Raises:
            SecureAggregationError: "statement-malformed".
        """
        kind, *values = _plain(body)
        if kind != cls.KIND or len(values) != len(cls.CHECKS):
            raise _malformed(f"it is not a {cls.KIND!r} statement")
        for field, check, value in zip(dataclasses.fields(cast(Any, cls)), cls.CHECKS, values, strict=True):
            if not check(value):
                raise _malformed(f"{cls.KIND}.{field.name} is out of range")
        return cls(*values)

    @classmethod
    def opened(cls, signed: Signed, public: bytes, whose: str) -> Self:
        """Read a statement after checking its signature.

        Raises:
            SecureAggregationError: "signature-invalid", naming ``whose`` it should be, or "statement-malformed".
        """
        if not signature_holds(signed, public):
            raise SecureAggregationError("signature-invalid", f"a {cls.KIND!r} statement isn't signed by {whose}")
        return cls.parse(signed.body)


class RoundStatement(Statement):
    """A statement that belongs to one attempt: it has a field ``context``, the hash H_R of the attempt's context."""

    context: bytes


def signature_holds(signed: Signed, public: bytes) -> bool:
    """Whether the signature of a statement is ``public``'s."""
    return verify(public, signed.signature, _SIGNED + signed.body)


def kind_of(body: bytes) -> str:
    """The kind of a statement.

    Raises:
        SecureAggregationError: "statement-malformed" for bytes that aren't a canonical statement.
    """
    kind = _plain(body)[0]
    if not isinstance(kind, str):
        raise _malformed("it has no kind")
    return kind


def _plain(body: bytes) -> tuple[Any, ...]:
    if len(body) > MAX_STATEMENT_BYTES:
        raise _malformed(f"it has {len(body)} bytes; at most {MAX_STATEMENT_BYTES} are read")
    try:
        value = decode(body)
    except TranscriptError as error:
        raise _malformed(error.message) from None
    if not isinstance(value, tuple) or not value:
        raise _malformed("it is not a sequence")
    return value


def _malformed(what: str) -> SecureAggregationError:
    return SecureAggregationError(
        "statement-malformed", f"a statement can't be read: {what}", "Both sides must run the same release of fedloom."
    )
