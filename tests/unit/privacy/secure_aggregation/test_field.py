"""Shamir's sharing: a small field exhaustively, the large one by its properties, and everything that is refused."""

from __future__ import annotations

import collections
import doctest
import itertools
import random as standard_random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.secure_aggregation import field
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.field import PRIME, SHARE_BYTES, combine, split

SMALL = 11


class Scripted:
    """A source of random bytes that gives what it is told to, and counts the draws."""

    def __init__(self, *draws: bytes) -> None:
        self.draws = list(draws)

    def __call__(self, size: int) -> bytes:
        draw = self.draws.pop(0)
        assert len(draw) == size
        return draw


def small_shares(secret: int, coefficients: tuple[int, ...], points: tuple[int, ...]) -> list[int]:
    """The shares of one polynomial over the small field, made by the code under test."""
    source = Scripted(*(bytes([coefficient]) for coefficient in coefficients))
    return field._split(secret, threshold=len(coefficients) + 1, points=points, random=source, prime=SMALL)


def polynomials(threshold: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    for secret, *coefficients in itertools.product(range(SMALL), repeat=threshold):
        yield secret, tuple(coefficients)


def probably_prime(number: int, rounds: int = 64) -> bool:
    """Miller and Rabin's test with fixed bases; a composite passes with probability at most 4^-rounds."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    bases = standard_random.Random(2)
    for _ in range(rounds):
        power = pow(bases.randrange(2, number - 1), odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def code_of(caught: pytest.ExceptionInfo[SecureAggregationError]) -> str:
    return caught.value.code


def combine_or_none(shares: list[tuple[int, bytes]], threshold: int) -> bytes | None:
    try:
        return combine(shares, threshold=threshold)
    except SecureAggregationError:
        return None


# ------------------------------------------------------------------------------------------------------- the prime


def test_the_modulus_is_the_smallest_prime_that_holds_every_secret() -> None:
    assert PRIME == 2**256 + 297
    assert probably_prime(PRIME)
    assert not any(probably_prime(2**256 + step, rounds=2) for step in range(1, 297, 2))


def test_a_share_has_room_for_the_largest_number_of_the_field() -> None:
    assert (PRIME - 1).bit_length() <= 8 * SHARE_BYTES


# ---------------------------------------------------------------------------------------- the small field, exhaustively


@pytest.mark.parametrize("threshold", [1, 2, 3])
def test_any_threshold_shares_rebuild_every_secret(threshold: int) -> None:
    points = tuple(range(1, SMALL))
    chosen = list(itertools.combinations(range(len(points)), threshold))
    for secret, coefficients in polynomials(threshold):
        shares = small_shares(secret, coefficients, points)
        for subset in chosen:
            weights = field._weights(tuple(points[index] for index in subset), SMALL)
            assert field._dot(weights, [shares[index] for index in subset], SMALL) == secret


def test_any_threshold_shares_rebuild_every_secret_at_threshold_four() -> None:
    points = (2, 3, 5, 7, 10)
    for secret, coefficients in polynomials(4):
        shares = small_shares(secret, coefficients, points)
        for left_out in range(len(points)):
            subset = [index for index in range(len(points)) if index != left_out]
            weights = field._weights(tuple(points[index] for index in subset), SMALL)
            assert field._dot(weights, [shares[index] for index in subset], SMALL) == secret


@pytest.mark.parametrize("threshold", [2, 3])
def test_fewer_shares_are_uniform_whatever_the_secret_is(threshold: int) -> None:
    for points in itertools.combinations(range(1, SMALL), threshold - 1):
        padded = (*points, *(point for point in range(1, SMALL) if point not in points))[:threshold]
        for secret in range(SMALL):
            seen = collections.Counter(
                tuple(small_shares(secret, coefficients, padded)[: threshold - 1])
                for coefficients in itertools.product(range(SMALL), repeat=threshold - 1)
            )
            # Every value of the shares occurs, and occurs once: they say nothing about the secret.
            assert len(seen) == SMALL ** (threshold - 1)
            assert set(seen.values()) == {1}


def test_shares_add_up_to_shares_of_the_sum() -> None:
    points = (1, 4, 6)
    weights = field._weights(points[:2], SMALL)
    for (first, left), (second, right) in itertools.product(polynomials(2), repeat=2):
        pairs = zip(small_shares(first, left, points), small_shares(second, right, points), strict=True)
        added = [(one + other) % SMALL for one, other in pairs]
        assert field._dot(weights, added[:2], SMALL) == (first + second) % SMALL


def test_a_wrong_share_always_gives_another_secret() -> None:
    points = (1, 2, 3)
    weights = field._weights(points, SMALL)
    assert 0 not in weights
    for secret, coefficients in polynomials(3):
        shares = small_shares(secret, coefficients, points)
        for index, wrong in itertools.product(range(3), range(1, SMALL)):
            changed = [*shares]
            changed[index] = (changed[index] + wrong) % SMALL
            assert field._dot(weights, changed, SMALL) != secret


def test_coefficients_outside_the_field_are_drawn_again() -> None:
    # Four bits reach 15: 11 to 15 are rejected, and the byte's upper half is not looked at.
    source = Scripted(b"\x0b", b"\xff", b"\xfc", b"\xfa")
    assert field._below(SMALL, source) == 10
    assert source.draws == []


def test_coefficients_of_the_large_field_are_drawn_again() -> None:
    last = (PRIME - 1).to_bytes(SHARE_BYTES, "big")
    source = Scripted(PRIME.to_bytes(SHARE_BYTES, "big"), b"\x01" + b"\xff" * 32, last)
    assert field._below(PRIME, source) == PRIME - 1


# ------------------------------------------------------------------------------------------------------ the large field

secrets = st.binary(min_size=32, max_size=32)
points_of = st.lists(
    st.integers(1, 200) | st.integers(1, PRIME - 1),
    min_size=1,
    max_size=12,
    unique=True,
)


@given(secrets, points_of, st.data())
def test_round_trip(secret: bytes, points: list[int], data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, len(points)))
    shares = split(secret, threshold=threshold, points=points)
    assert [len(share) for share in shares] == [SHARE_BYTES] * len(points)
    at_hand = data.draw(st.permutations(list(zip(points, shares, strict=True))))
    some = at_hand[: data.draw(st.integers(threshold, len(points)))]
    assert combine(some, threshold=threshold) == secret


@given(secrets, secrets)
def test_shares_of_the_large_field_add_up(first: bytes, second: bytes) -> None:
    points = [1, 2, 3]
    pairs = zip(split(first, threshold=2, points=points), split(second, threshold=2, points=points), strict=True)
    added = [(int.from_bytes(one, "big") + int.from_bytes(other, "big")) % PRIME for one, other in pairs]
    total = (int.from_bytes(first, "big") + int.from_bytes(second, "big")) % PRIME
    assert field._dot(field._weights((1, 3), PRIME), [added[0], added[2]], PRIME) == total


@given(secrets, st.integers(0, 2), st.integers(1, PRIME - 1))
def test_a_wrong_share_never_gives_the_secret(secret: bytes, index: int, error: int) -> None:
    shares = split(secret, threshold=3, points=[1, 2, 3])
    wrong = (int.from_bytes(shares[index], "big") + error) % PRIME
    shares[index] = wrong.to_bytes(SHARE_BYTES, "big")
    try:
        rebuilt = combine(list(enumerate(shares, start=1)), threshold=3)
    except SecureAggregationError as refusal:
        assert refusal.code == "share-inconsistent"
    else:
        assert rebuilt != secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(31) + b"\x01", b"\x80" + bytes(31)])
def test_extreme_secrets(secret: bytes) -> None:
    shares = split(secret, threshold=3, points=[5, 6, PRIME - 1])
    assert combine(list(zip([5, 6, PRIME - 1], shares, strict=True)), threshold=3) == secret


def test_the_size_of_a_large_cohort() -> None:
    points = list(range(1, 102))
    secret = bytes(range(32))
    shares = list(zip(points, split(secret, threshold=67, points=points), strict=True))
    assert combine(shares[34:], threshold=67) == secret
    assert combine(shares[::-1], threshold=67) == secret
    below = [shares[index] for index in range(66)]
    with pytest.raises(SecureAggregationError) as caught:
        combine(below, threshold=67)
    assert code_of(caught) == "share-invalid"
    # One share too few, read as if it were enough, gives something else.
    assert combine_or_none(below, 66) != secret


def test_only_the_first_threshold_shares_are_used() -> None:
    shares = list(zip([1, 2, 3], split(b"s" * 32, threshold=2, points=[1, 2, 3]), strict=True))
    assert combine([*shares[:2], (3, b"\xff" * SHARE_BYTES)], threshold=2) == b"s" * 32


def test_a_fixed_source_gives_fixed_shares() -> None:
    def counting(size: int) -> bytes:
        return bytes(range(size))

    shares = split(bytes(32), threshold=2, points=[1, 2], random=counting)
    slope = int.from_bytes(bytes(range(33)), "big")
    assert [int.from_bytes(share, "big") for share in shares] == [slope, 2 * slope]


def test_a_threshold_of_one_copies_the_secret() -> None:
    assert split(b"k" * 32, threshold=1, points=[4, 9]) == [b"\0" + b"k" * 32] * 2


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("points", "threshold", "says"),
    [
        ([0, 1, 2], 2, "at point 0"),
        ([1, 2, -3], 2, "at point -3"),
        ([1, PRIME], 2, "at point"),
        ([1, PRIME + 1], 2, "at point"),
        ([7, 8, 7], 2, "point 7 appears twice"),
        ([1, 2], 3, "2 shares can't meet a threshold of 3"),
        ([1, 2], 0, "threshold of 0"),
        ([], 1, "0 shares"),
    ],
)
def test_points_and_thresholds_that_are_refused(points: list[int], threshold: int, says: str) -> None:
    with pytest.raises(SecureAggregationError, match=says) as caught:
        split(bytes(32), threshold=threshold, points=points)
    assert code_of(caught) == "share-invalid"
    with pytest.raises(SecureAggregationError, match=says) as caught:
        combine([(point, bytes(SHARE_BYTES)) for point in points], threshold=threshold)
    assert code_of(caught) == "share-invalid"


@pytest.mark.parametrize("length", [0, 31, 33])
def test_secrets_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(SecureAggregationError, match=f"has {length} bytes instead of 32") as caught:
        split(bytes(length), threshold=1, points=[1])
    assert code_of(caught) == "share-invalid"


@pytest.mark.parametrize(
    ("share", "says"),
    [
        (b"", "point 9 has 0 bytes"),
        (bytes(32), "point 9 has 32 bytes"),
        (bytes(34), "point 9 has 34 bytes"),
        (PRIME.to_bytes(SHARE_BYTES, "big"), "point 9 is not a number of the field"),
        (b"\xff" * SHARE_BYTES, "point 9 is not a number of the field"),
    ],
)
def test_malformed_shares_are_refused_by_name(share: bytes, says: str) -> None:
    with pytest.raises(SecureAggregationError, match=says) as caught:
        combine([(1, bytes(SHARE_BYTES)), (9, share)], threshold=2)
    assert code_of(caught) == "share-invalid"


def test_shares_of_a_number_that_is_no_secret_are_inconsistent() -> None:
    for value in (2**256, PRIME - 1):
        with pytest.raises(SecureAggregationError, match="don't belong together") as caught:
            combine([(3, value.to_bytes(SHARE_BYTES, "big"))], threshold=1)
        assert code_of(caught) == "share-inconsistent"
        assert caught.value.hint


def test_messages_show_no_share() -> None:
    share = b"\x01" + b"\xab" * 32
    with pytest.raises(SecureAggregationError) as caught:
        combine([(1, share)], threshold=1)
    said = f"{caught.value!r} {caught.value.message} {caught.value.hint}"
    assert "ab" * 4 not in said and str(int.from_bytes(share, "big")) not in said


def test_examples() -> None:
    assert doctest.testmod(field).failed == 0
