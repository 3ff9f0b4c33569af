"""Canonical, injective encoding of plain values, its strict inverse, and labelled digests over it.

Everything that two parties must agree on before they act (a plan, a round's context) is hashed through this module, so
that both hash the same bytes and no two different values share them. The encoding is type-length-value:

``tag (1 byte) | length of the content (8 bytes, big endian) | content``

==========  ===  ==========================================================================================
type        tag  content
==========  ===  ==========================================================================================
None        N    empty
bool        B    one byte, 0 or 1
int         I    two's complement, big endian, as short as possible; 0 is empty
float       F    IEEE 754 binary64, big endian; NaN is refused (it has many encodings), -0.0 differs from 0.0
str         S    UTF-8, exactly as given: no Unicode normalisation, since that would make two strings one
bytes       Y    as given
list/tuple  L    the encodings of the items, one behind the other (a list and a tuple of equal items are the same value)
dict        D    for each key in the order of its UTF-8 bytes: encoding of the key (a str), encoding of the value
==========  ===  ==========================================================================================
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Final

MAX_DEPTH: Final = 64
"""How deep lists and dicts may nest."""

_HEAD: Final = struct.Struct(">cQ")


class TranscriptError(ValueError):
    """A value that has no canonical encoding, or bytes that aren't one.

    It carries what the front door prints: ``code``, ``message``, ``hint`` and ``exit_code``.
    """

    code: str = "transcript"
    exit_code: int = 3

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def _wrap(tag: bytes, content: bytes) -> bytes:
    return _HEAD.pack(tag, len(content)) + content


def _encode_int(value: int) -> bytes:
    if value == 0:
        return b""
    # ~value has as many significant bits as value in two's complement without its sign bit.
    bits = (value if value > 0 else ~value).bit_length() + 1
    return value.to_bytes((bits + 7) // 8, "big", signed=True)


def _encode_str(value: str) -> bytes:
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TranscriptError(f"a string holds a lone surrogate at character {error.start}") from error


def _encode_float(value: float) -> bytes:
    if value != value:
        raise TranscriptError("NaN has no canonical encoding", "Replace it by None where a number is missing.")
    return struct.pack(">d", value)


def _encode_mapping(value: Mapping[object, object], depth: int) -> bytes:
    entries: list[tuple[bytes, object]] = []
    for key, item in value.items():
        if not isinstance(key, str):
            raise TranscriptError(f"a key must be a string, not {type(key).__name__}")
        entries.append((_encode_str(key), item))
    entries.sort(key=lambda entry: entry[0])
    return b"".join(_wrap(b"S", key) + _encode(item, depth + 1) for key, item in entries)


def _encode(value: object, depth: int) -> bytes:
    if depth > MAX_DEPTH:
        raise TranscriptError(f"a value nests deeper than {MAX_DEPTH} levels")
    if value is None:
        return _wrap(b"N", b"")
    if isinstance(value, bool):
        return _wrap(b"B", b"\x01" if value else b"\x00")
    if isinstance(value, int):
        return _wrap(b"I", _encode_int(int(value)))
    if isinstance(value, float):
        return _wrap(b"F", _encode_float(float(value)))
    if isinstance(value, str):
        return _wrap(b"S", _encode_str(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return _wrap(b"Y", bytes(value))
    # The abstract classes come last: asking them costs more than all the rest.
    if isinstance(value, dict) or (not isinstance(value, list | tuple) and isinstance(value, Mapping)):
        return _wrap(b"D", _encode_mapping(value, depth))
    if isinstance(value, list | tuple | Sequence):
        return _wrap(b"L", b"".join(_encode(item, depth + 1) for item in value))
    raise TranscriptError(f"{type(value).__name__} has no canonical encoding")


def encode(value: object) -> bytes:
    """Encode a plain value canonically.

    >>> encode(True).hex()
    '42000000000000000101'

    Formal Guarantees:
        Injective: two values that differ (as values of the table above, where ``True`` differs from ``1`` and ``1``
        from ``1.0``, and a list equals the tuple of its items) have different encodings. Proof sketch: tag and length
        delimit each content, so an encoding parses in one way only; every content is injective for its type; dict keys
        are unique and sorted. No encoding is a prefix of another, so encodings may be concatenated.

    Args:
        value: None, bool, int of any size, float, str, bytes, list or tuple, dict with str keys; nested at most
            ``MAX_DEPTH`` deep.

    Returns:
        The encoding.

    Raises:
        TranscriptError: For NaN, lone surrogates, keys that aren't strings, too deep nesting and other types.
    """
    return _encode(value, 0)


def _decode_content(tag: bytes, content: memoryview, depth: int) -> object:
    if tag == b"N":
        return None
    if tag == b"B":
        return bytes(content) == b"\x01"
    if tag == b"I":
        return int.from_bytes(content, "big", signed=True)
    if tag == b"F":
        return float(struct.unpack(">d", content)[0])
    if tag == b"S":
        return str(content, "utf-8")
    if tag == b"Y":
        return bytes(content)
    if tag not in (b"L", b"D"):
        raise TranscriptError(f"no type has the tag 0x{tag.hex()}")
    items: list[object] = []
    while content:
        item, content = _decode(content, depth + 1)
        items.append(item)
    if tag == b"L":
        return tuple(items)
    keys = items[::2]
    # A list as a key would not even be hashable; other types would come out as other keys than were read.
    if not all(isinstance(key, str) for key in keys):
        raise TranscriptError("a key must be a string")
    return dict(zip(keys, items[1::2], strict=True))


def _decode(data: memoryview, depth: int) -> tuple[object, memoryview]:
    if depth > MAX_DEPTH:
        raise TranscriptError(f"an encoding nests deeper than {MAX_DEPTH} levels")
    if len(data) < _HEAD.size:
        raise TranscriptError("an encoding ends within a tag or length")
    tag, length = _HEAD.unpack_from(data)
    content, rest = data[_HEAD.size : _HEAD.size + length], data[_HEAD.size + length :]
    if len(content) != length:
        raise TranscriptError(f"an encoding promises {length} bytes and ends after {len(content)}")
    return _decode_content(tag, content, depth), rest


def decode(data: bytes) -> object:
    """Decode one canonical encoding, and nothing else.

    >>> decode(encode({"round": 3, "members": ["a", "b"]}))
    {'members': ('a', 'b'), 'round': 3}

    Formal Guarantees:
        The inverse of :func:`encode`: whatever is returned encodes to exactly ``data``. So no two inputs decode to one
        value, and a signature or digest over the input and one over the value are the same thing. The
        memory used is in proportion to the input's own length, whatever lengths it claims.

    Args:
        data: The whole encoding of one value, with nothing behind it.

    Returns:
        The value; a list comes back as a tuple, a dict with its keys in canonical order.

    Raises:
        TranscriptError: If the input is cut off, has bytes left over, nests deeper than ``MAX_DEPTH``, or is any other
            form than the canonical one (an unknown tag, a padded integer, NaN, unsorted or repeated keys).
    """
    try:
        value, rest = _decode(memoryview(data), 0)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, TranscriptError):
            raise
        raise TranscriptError(f"not a canonical encoding: {error}") from error
    if rest:
        raise TranscriptError(f"an encoding has {len(rest)} bytes behind it")
    # Comparing the round trip settles every case at once: padded integers, booleans other than 0 and 1, a None with
    # content, repeated or unsorted keys. What encode() refuses (NaN) is refused here as well.
    if encode(value) != data:
        raise TranscriptError("an encoding isn't in its canonical form")
    return value


def digest(label: str, value: object) -> bytes:
    """SHA-256 of a value under a label that says what the value is.

    Formal Guarantees:
        Equal digests mean equal labels and equal values, unless SHA-256 is broken: the label is encoded in front of the
        value by the prefix-free encoding, so no value of one label collides with a value of another.

    Args:
        label: What is hashed, with a version, for example ``"fedloom/plan/1"``. Not empty.
        value: As for :func:`encode`.

    Returns:
        32 bytes.

    Raises:
        TranscriptError: As :func:`encode`, and for an empty label.
    """
    if not label:
        raise TranscriptError("a digest needs a label")
    return hashlib.sha256(encode(label) + encode(value)).digest()
