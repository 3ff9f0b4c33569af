"""Keys that can identify somebody, requests that prove possession, and fingerprints to read aloud."""

from __future__ import annotations

import dataclasses
import doctest
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.secure_aggregation import identities
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.identities import (
    MemberRequest,
    Role,
    check_member_name,
    check_public_key,
    key_fingerprint,
)
from privacy.secure_aggregation.keys import SigningKey

KEY = SigningKey(bytes(range(32)))
REQUEST = MemberRequest.make(KEY, federation="demo", role=Role.PARTICIPANT, name="north", binding=b"b" * 32)

# edwards25519 by the book (RFC 8032, 5.1), slow and simple.
P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def on_curve(y: int) -> tuple[int, int] | None:
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    for root in (x, x * pow(2, (P - 1) // 4, P) % P):
        if root * root % P == square:
            return root, y
    return None


def add(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    (a, b), (c, d) = one, other
    t = D * a * b * c * d % P
    return (a * d + b * c) * pow(1 + t, -1, P) % P, (b * d + a * c) * pow(1 - t, -1, P) % P


def order_divides_8(point: tuple[int, int]) -> bool:
    for _ in range(3):
        point = add(point, point)
    return point == (0, 1)


def code_of(check: object, *arguments: object) -> str:
    assert callable(check)
    with pytest.raises(SecureAggregationError) as caught:
        check(*arguments)
    return caught.value.code


def test_the_refused_points_are_exactly_those_whose_order_divides_eight() -> None:
    points = [on_curve(y) for y in identities._LOW_ORDER_Y]
    assert all(point is not None and order_divides_8(point) for point in points)
    # Points with x = 0 (y = 1 and y = -1) come once, the others as x and -x: eight in all, and there are only eight.
    assert sum(1 if point is not None and point[0] == 0 else 2 for point in points) == 8


@pytest.mark.parametrize("y", [*identities._LOW_ORDER_Y, P, P + 1, 2**255 - 1])
@pytest.mark.parametrize("sign", [0, 1])
def test_a_key_of_low_order_or_in_another_form_identifies_nobody(y: int, sign: int) -> None:
    assert code_of(check_public_key, (y | sign << 255).to_bytes(32, "little"), "it") == "member-key-invalid"


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_of_another_length_is_refused_with_its_length(key: bytes) -> None:
    with pytest.raises(SecureAggregationError, match=f"the key of north has {len(key)} bytes"):
        check_public_key(key, "the key of north")


@given(st.binary(min_size=32, max_size=32))
def test_generated_keys_are_accepted(secret: bytes) -> None:
    check_public_key(SigningKey(secret).public, "it")


def test_a_request_is_checked_with_its_own_key() -> None:
    REQUEST.check()
    MemberRequest.make(KEY, federation="demo", role=Role.COORDINATOR, name="coordinator").check()


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": "other"},
        {"role": Role.COORDINATOR},
        {"name": "south"},
        {"public_key": SigningKey(b"k" * 32).public},
        {"binding": b"c" * 32},
        {"binding": b""},
        {"signature": bytes(64)},
        {"signature": b""},
        {"signature": KEY.sign(b"another message")},
    ],
)
def test_a_request_for_anything_else_is_no_proof(changes: dict[str, object]) -> None:
    assert code_of(dataclasses.replace(REQUEST, **changes).check) == "member-proof"  # type: ignore[arg-type]


def test_a_key_of_low_order_proves_nothing_even_where_its_signature_would_verify() -> None:
    weak = dataclasses.replace(REQUEST, public_key=(1).to_bytes(32, "little"), signature=(1).to_bytes(64, "little"))
    assert code_of(weak.check) == "member-key-invalid"


@pytest.mark.parametrize("name", ["", "A", "-a", "a_b", "a/b", "a" * 64, "ä", "a\n", "a b"])
def test_names_are_those_of_the_roster(name: str) -> None:
    assert code_of(check_member_name, name, "name") == "members-malformed"


def test_a_fingerprint_can_be_read_aloud_and_tells_keys_apart() -> None:
    assert re.fullmatch(r"([0-9a-f]{4} ){7}[0-9a-f]{4}", key_fingerprint(KEY.public))
    assert key_fingerprint(KEY.public) != key_fingerprint(bytes(32))


def test_examples_in_the_docstrings() -> None:
    results = doctest.testmod(identities)
    assert results.attempted > 0
    assert results.failed == 0
