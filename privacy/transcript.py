"""Canonical, injective encoding of plain values, and labelled digests over it.

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
    """A value that has no canonical encoding.

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
    if isinstance(value, Mapping):
        return _wrap(b"D", _encode_mapping(value, depth))
    if isinstance(value, Sequence):
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
