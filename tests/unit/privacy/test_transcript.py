"""The canonical encoding: golden vectors, injectivity, refusals."""

from __future__ import annotations

import doctest
import hashlib
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import privacy
import privacy.transcript
from privacy import TranscriptError, decode, digest, encode

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def typed(value: object) -> object:
    """The value with its types, so that Python's 1 == True == 1.0 and 0.0 == -0.0 don't count as equal."""
    if isinstance(value, list | tuple):
        return ("list", tuple(typed(item) for item in value))
    if isinstance(value, dict):
        return ("dict", frozenset((key, typed(item)) for key, item in value.items()))
    if isinstance(value, float):
        return ("float", struct.pack(">d", value))
    return (type(value).__name__, value)


def read(data: bytes) -> tuple[object, bytes]:
    """An independent reader of the documented format; an encoding that can be read back is injective."""
    tag, length = data[:1], int.from_bytes(data[1:9], "big")
    content, rest = data[9 : 9 + length], data[9 + length :]
    assert len(content) == length
    scalar = {
        b"N": lambda: None,
        b"B": lambda: content == b"\x01",
        b"I": lambda: int.from_bytes(content, "big", signed=True),
        b"F": lambda: struct.unpack(">d", content)[0],
        b"S": lambda: content.decode(),
        b"Y": lambda: content,
    }
    if tag in scalar:
        return scalar[tag](), rest
    items = []
    while content:
        item, content = read(content)
        items.append(item)
    if tag == b"L":
        return items, rest
    assert tag == b"D"
    keys = items[::2]
    assert keys == sorted(keys, key=lambda key: key.encode())
    return dict(zip(keys, items[1::2], strict=True)), rest


def test_golden_vector() -> None:
    value = {"b": [None, True, -1, 256, 0], "a": (1.5, "é", b"\x00")}
    expected = (
        "44000000000000007d"
        "53000000000000000161"
        "4c0000000000000026" + "4600000000000000083ff8000000000000" + "530000000000000002c3a9" + "59000000000000000100"
        "53000000000000000162"
        "4c0000000000000031"
        "4e0000000000000000"
        + "42000000000000000101"
        + "490000000000000001ff"
        + "4900000000000000020100"
        + "490000000000000000"
    )
    assert encode(value).hex() == expected
    assert (
        digest("fedloom/test/1", value).hex()
        == hashlib.sha256(b"S" + (14).to_bytes(8, "big") + b"fedloom/test/1" + bytes.fromhex(expected)).hexdigest()
    )
    # Written down once: a change of the format would show here even if encode and the line above changed together.
    assert digest("fedloom/test/1", None).hex() == "ec9ea9358527752c5c0c5aedc225377c42a6fc52444abd79dd8442660a36c873"


@given(plain)
def test_an_encoding_reads_back(value: object) -> None:
    decoded, rest = read(encode(value))
    assert rest == b""
    assert typed(decoded) == typed(value)


@given(plain, plain)
def test_injective_and_deterministic(one: object, other: object) -> None:
    assert (encode(one) == encode(other)) == (typed(one) == typed(other))


@given(plain, plain)
def test_no_encoding_is_a_prefix_of_another(one: object, other: object) -> None:
    first, second = encode(one), encode(other)
    assert first == second or not second.startswith(first)


@given(st.dictionaries(st.text(max_size=4), st.integers(), min_size=2))
def test_the_order_of_keys_does_not_matter(table: dict[str, int]) -> None:
    assert encode(table) == encode(dict(reversed(table.items())))


@pytest.mark.parametrize("number", [0, 1, -1, 127, 128, -128, -129, 255, 256, 2**64, -(2**64), 2**4096])
def test_integers_are_as_short_as_possible(number: int) -> None:
    content = encode(number)[9:]
    assert int.from_bytes(content, "big", signed=True) == number
    if len(content) > 1:
        with pytest.raises(OverflowError):
            number.to_bytes(len(content) - 1, "big", signed=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [(True, 1), (1, 1.0), (0.0, -0.0), ("a", b"a"), ([], {}), (None, False), ("\u00e9", "e\u0301"), ([[]], [])],
)
def test_values_that_python_or_people_take_for_equal_differ(one: object, other: object) -> None:
    assert encode(one) != encode(other)


def test_a_list_equals_the_tuple_of_its_items() -> None:
    assert encode([1, "a"]) == encode((1, "a"))


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (math.nan, "NaN"),
        ([1, {"a": math.nan}], "NaN"),
        ({1: 2}, "key"),
        ("\ud800", "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        ({1, 2}, "set"),
        (object(), "object"),
        (1j, "complex"),
    ],
)
def test_refused(value: object, part: str) -> None:
    with pytest.raises(TranscriptError, match=part) as caught:
        encode(value)
    assert (caught.value.code, caught.value.exit_code) == ("transcript", 3)
    assert caught.value.message == str(caught.value)
    assert isinstance(caught.value.hint, str)


def test_too_deep() -> None:
    value: list[object] = []
    for _ in range(privacy.transcript.MAX_DEPTH):
        value = [value]
    encode(value)
    with pytest.raises(TranscriptError, match="deeper"):
        encode([value])


# --- decoding ---------------------------------------------------------------------------------------------------------


def wrap(tag: bytes, content: bytes) -> bytes:
    return tag + len(content).to_bytes(8, "big") + content


@given(plain)
def test_decoding_inverts_encoding(value: object) -> None:
    assert typed(decode(encode(value))) == typed(value)


def test_lists_come_back_as_tuples_and_keys_in_order() -> None:
    value = decode(encode({"b": [1, [2]], "a": []}))
    assert value == {"a": (), "b": (1, (2,))}
    assert isinstance(value, dict)
    assert list(value) == ["a", "b"]


@given(plain, st.data())
def test_a_changed_byte_never_decodes_to_the_same_value(value: object, data: st.DataObject) -> None:
    good = bytearray(encode(value))
    place = data.draw(st.integers(0, len(good) - 1))
    good[place] ^= data.draw(st.integers(1, 255))
    try:
        other = decode(bytes(good))
    except TranscriptError:
        return
    assert encode(other) == bytes(good)
    assert typed(other) != typed(value)


@given(plain, st.data())
def test_every_cut_is_refused(value: object, data: st.DataObject) -> None:
    good = encode(value)
    with pytest.raises(TranscriptError):
        decode(good[: data.draw(st.integers(0, len(good) - 1))])


@given(st.binary(max_size=64))
def test_any_bytes_decode_canonically_or_not_at_all(data: bytes) -> None:
    try:
        value = decode(data)
    except TranscriptError:
        return
    assert encode(value) == data


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "within a tag"),
        (wrap(b"I", b"\x01") + b"\x00", "1 bytes behind"),
        (wrap(b"I", b"\x00\x01"), "canonical form"),
        (wrap(b"I", b"\x00"), "canonical form"),
        (wrap(b"I", b"\xff\xff"), "canonical form"),
        (wrap(b"B", b""), "canonical form"),
        (wrap(b"B", b"\x02"), "canonical form"),
        (wrap(b"B", b"\x01\x01"), "canonical form"),
        (wrap(b"N", b"\x00"), "canonical form"),
        (wrap(b"F", b"\x00"), "canonical encoding"),
        (wrap(b"F", struct.pack(">d", math.nan)), "NaN"),
        (wrap(b"S", b"\xed\xa0\x80"), "canonical encoding"),
        (wrap(b"S", b"\xc0\x80"), "canonical encoding"),
        (wrap(b"X", b""), "0x58"),
        (wrap(b"L", b"\x00"), "within a tag"),
        (b"Y" + b"\xff" * 8, "promises"),
        (wrap(b"D", wrap(b"S", b"a")), "canonical encoding"),
        (wrap(b"D", wrap(b"I", b"") + wrap(b"I", b"")), "string"),
        (wrap(b"D", wrap(b"L", b"") + wrap(b"I", b"")), "string"),
        (wrap(b"D", (wrap(b"S", b"a") + wrap(b"N", b"")) * 2), "canonical form"),
        (wrap(b"D", wrap(b"S", b"b") + wrap(b"N", b"") + wrap(b"S", b"a") + wrap(b"N", b"")), "canonical form"),
    ],
)
def test_other_forms_are_refused(data: bytes, part: str) -> None:
    with pytest.raises(TranscriptError, match=part):
        decode(data)


def test_decoding_is_bounded_in_depth() -> None:
    deepest = b""
    for _ in range(privacy.transcript.MAX_DEPTH + 1):
        deepest = wrap(b"L", deepest)
    decode(deepest)
    with pytest.raises(TranscriptError, match="deeper"):
        decode(wrap(b"L", deepest))
    for _ in range(5_000):
        deepest = wrap(b"L", deepest)
    with pytest.raises(TranscriptError, match="deeper"):
        decode(deepest)


def test_the_label_separates() -> None:
    assert digest("a/1", 1) != digest("a/2", 1)
    assert digest("ab", "c") != digest("a", "bc")
    with pytest.raises(TranscriptError, match="label"):
        digest("", 1)


def test_examples_in_the_docstrings() -> None:
    results = doctest.testmod(privacy.transcript)
    assert results.attempted > 0
    assert results.failed == 0


def test_exports() -> None:
    assert set(privacy.__all__) >= {"TranscriptError", "decode", "digest", "encode"}
    assert all(hasattr(privacy, name) for name in privacy.__all__)
