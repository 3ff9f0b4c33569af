"""The context of an attempt: one form, one hash, and nothing else is read."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secure_world import ENCODING, SMALL, World

from privacy.secure_aggregation.context import Base, RoundContext
from privacy.secure_aggregation.encoding import Encoding
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.transcript import decode, encode

HUGE = 10**5000  # more digits than Python turns into a string


@functools.cache
def example() -> RoundContext:
    return World(4).context()


def refused(data: bytes) -> SecureAggregationError:
    with pytest.raises(SecureAggregationError) as caught:
        RoundContext.parse(data)
    return caught.value


OTHER: dict[str, Any] = {
    "federation": "clinics2",
    "members_count": 6,
    "members_head": b"h" * 32,
    "run_id": "run-2",
    "plan_hash": b"q" * 32,
    "purpose": "evaluate",
    "round": 2,
    "attempt": 2,
    "task_attempt": 2,
    "base_version": 1,
    "base_digest": b"n" * 32,
    "dimension": 8,
    "encoding": SMALL,
    "metrics": ("loss", "recall"),
    "group_size": 3,
    "corrupt_percent": 21,
    "min_cohort": 4,
    "roster_change": 3,
    "freeze": False,
    "expires_s": 1,
    "roster": (),
    "atoms": (1, 1, 2, 2),
    "bases": (Base(0, 1, b"m" * 32),) * 4,
    "same_base": 3,
}
PLAIN = [field.name for field in dataclasses.fields(RoundContext) if field.name not in ("atoms", "bases", "same_base")]


def test_a_context_comes_back_as_it_was() -> None:
    context = example()
    again = RoundContext.parse(context.canonical())
    assert again == context
    assert again.canonical() == context.canonical()
    assert again.hash == context.hash
    assert len(context.hash) == 32


@functools.cache
def grouped() -> RoundContext:
    return dataclasses.replace(example(), group_size=4, atoms=(1, 1, 1, 1))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RoundContext)])
def test_every_field_is_in_the_hash(name: str) -> None:
    only = {"atoms": [grouped()], "same_base": [paced()]}
    for context in only.get(name, [grouped(), example(), paced()]):
        assert dataclasses.replace(context, **{name: OTHER[name]}).hash != context.hash


def test_a_context_of_sums_of_groups_comes_back_with_its_atoms() -> None:
    context = RoundContext.parse(grouped().canonical())
    assert context == grouped()
    assert context.atoms == (1, 1, 1, 1)
    other = dataclasses.replace(context, atoms=(7, 2, 7, 2))
    assert other.atom_members == (frozenset({1, 3}), frozenset({0, 2}))
    assert other.together(frozenset({0, 1, 2})) == frozenset({0, 2})
    assert example().together(frozenset({0, 1, 2})) == frozenset({0, 1, 2})


@functools.cache
def paced(grouped: bool = False) -> RoundContext:
    bases = tuple(Base(version, 1 + version % 2, bytes([version]) * 32) for version in (4, 7, 7, 6))
    atoms: dict[str, Any] = {"group_size": 4, "atoms": (1, 1, 1, 1)} if grouped else {}
    return dataclasses.replace(example(), round=8, base_version=7, bases=bases, **atoms)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_context_of_updates_from_different_versions_comes_back_with_them(grouped: bool) -> None:
    context = RoundContext.parse(paced(grouped).canonical())
    assert context == paced(grouped)
    assert context.task_of(0) == (5, 1, b"\x04" * 32)
    assert example().task_of(0) == (1, 1, example().base_digest)
    for field, value in (("version", 5), ("attempt", 3), ("digest", b"x" * 32)):
        assert dataclasses.replace(context, same_base=2).hash != context.hash
        other = (*context.bases[:3], dataclasses.replace(context.bases[3], **{field: value}))
        assert dataclasses.replace(context, bases=other).hash != context.hash


def test_older_updates_count_for_less_in_whole_examples() -> None:
    context = paced()  # weights go to 50
    assert [context.counted(1, examples) for examples in (1, 30, 50, 400)] == [1, 30, 50, 400]
    assert [context.counted(0, examples) for examples in (1, 2, 30, 50, 400)] == [1, 1, 15, 25, 25]  # 3 behind: halved
    assert context.counted(3, 50) == 35  # 50 / sqrt(2)
    assert example().counted(0, 400) == 400


@pytest.mark.parametrize(
    "bases",
    [
        ((4, 1, bytes(32)),) * 3,
        ((4, 1, bytes(32)),) * 5,
        ((8, 1, bytes(32)),) * 4,
        ((-1, 1, bytes(32)),) * 4,
        ((4, 0, bytes(32)),) * 4,
        ((4, True, bytes(32)),) * 4,
        ((HUGE, 1, bytes(32)),) * 4,
        ((4, HUGE, bytes(32)),) * 4,
        ((4, 1, bytes(31)),) * 4,
        ((4, 1, "m" * 32),) * 4,
        ((4, 1),) * 4,
        (4, 4, 4, 4),
        (),
        None,
        "4444",
        7,
    ],
)
def test_bases_of_another_form_are_refused(bases: Any) -> None:
    plain: tuple[Any, ...] = decode(paced().canonical())  # type: ignore[assignment]
    for value in (bases, (1, bases), (1, bases, 1)):
        assert refused(encode((*plain[:-3], value, *plain[-2:]))).code == "context-malformed"


@pytest.mark.parametrize("least", [0, -1, True, "3", None])
def test_how_many_of_a_version_is_a_number(least: Any) -> None:
    plain: tuple[Any, ...] = decode(paced().canonical())  # type: ignore[assignment]
    assert refused(encode((*plain[:-3], (least, plain[-3][1]), *plain[-2:]))).code == "context-malformed"


@pytest.mark.parametrize(
    "atoms", [(), (1, 1, 1), (1,) * 5, (1, 1, 1, -1), (1, 1, 1, True), (1, 1, 1, "x"), (HUGE,) * 4]
)
def test_atoms_of_another_form_are_refused(atoms: tuple[Any, ...]) -> None:
    assert refused(dataclasses.replace(grouped(), atoms=atoms).canonical()).code == "context-malformed"


def test_atoms_without_groups_groups_without_atoms_and_groups_without_a_freeze_are_refused() -> None:
    plain: tuple[Any, ...] = decode(example().canonical())  # type: ignore[assignment]
    for forged in (
        encode((*plain[:-2], (1, 1, 1, 1), *plain[-2:])),
        dataclasses.replace(example(), group_size=4).canonical(),
        dataclasses.replace(grouped(), freeze=False).canonical(),
    ):
        assert refused(forged).code == "context-malformed"


def test_one_sum_has_the_floor_of_its_thresholds_and_groups_have_their_own() -> None:
    assert example().floor == example().numbers.floor
    assert grouped().floor == 4
    assert dataclasses.replace(grouped(), min_cohort=6).floor == 6


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Encoding)])
def test_every_field_of_the_encoding_is_in_the_hash(name: str) -> None:
    value = getattr(ENCODING, name)
    other = {"ring_bits": 32, "wire_bits": 24, "value_bits": 19}.get(name, value * 2)
    if other != value:
        encoding = dataclasses.replace(ENCODING, **{name: other})
        assert dataclasses.replace(example(), encoding=encoding).hash != example().hash


@pytest.mark.parametrize("name", ["name", "index", "mask_key", "share_key", "beacon_hash", "expires_s", "signature"])
def test_every_field_of_a_seat_is_in_the_hash(name: str) -> None:
    seat = example().roster[2]
    value = getattr(seat, name)
    if isinstance(value, int):
        other = value + 1
    else:
        other = value[:-1] + ("x" if isinstance(value, str) else bytes([value[-1] ^ 1]))
    roster = (*example().roster[:2], dataclasses.replace(seat, **{name: other}), example().roster[3])
    changed = dataclasses.replace(example(), roster=roster)
    assert other != value
    assert changed.hash != example().hash
    assert RoundContext.parse(changed.canonical()) == changed


@given(bit=st.integers(0, 2**20))
def test_one_flipped_bit_is_refused_or_gives_another_hash(bit: int) -> None:
    data = bytearray(example().canonical())
    data[bit // 8 % len(data)] ^= 1 << (bit % 8)
    try:
        other = RoundContext.parse(bytes(data))
    except SecureAggregationError:
        return
    assert other.canonical() == bytes(data)
    assert other.hash != example().hash


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    assert refused(data).code == "context-malformed"


def with_field(index: int, value: object) -> bytes:
    """The canonical bytes with another value at one place: 0 is the version, -2 the names, -1 the seats."""
    plain: list[object] = list(decode(example().canonical()))  # type: ignore[call-overload]
    plain[index] = value
    return encode(tuple(plain))


def test_another_version_of_the_protocol_is_refused() -> None:
    for version in (0, 2, True, 1.0, "1", None, HUGE):
        assert refused(with_field(0, version)).code == "context-malformed"


@pytest.mark.parametrize("name", PLAIN)
def test_a_field_of_another_form_is_refused_by_name(name: str) -> None:
    index = PLAIN.index(name) + 1
    for value in (None, -1, HUGE, True, 1.5, "", "x" * 300, b"", b"x" * 33, (), (1,), {}, ((),)):
        if (name == "metrics" and value == ()) or (name == "freeze" and value is True):
            continue
        error = refused(with_field(index, value))
        assert error.code == "context-malformed"
        assert name in error.message or name == "roster"


def test_a_roster_of_another_form_is_refused() -> None:
    *_, names, seats = plain = list(decode(example().canonical()))  # type: ignore[call-overload]
    assert len(plain) == len(PLAIN) + 2
    for value in (None, -1, HUGE, True, 1.5, "", b"", (), ((),), (1,) * 4, names[:-1], (*names, "x"), ("", *names[1:])):
        if value != ():
            assert refused(with_field(-2, value)).code == "context-malformed"
    for value in (None, -1, HUGE, True, 1.5, "", (), seats[:-1], seats + b"x", seats[: len(seats) // 2], seats * 2):
        assert refused(with_field(-1, value)).code == "context-malformed"


@pytest.mark.parametrize("start", [0, 8 + 3 * 32])
def test_an_index_or_a_time_that_no_one_counts_to_is_refused(start: int) -> None:
    *_, seats = decode(example().canonical())  # type: ignore[misc]
    changed = seats[:start] + b"\xff" * 8 + seats[start + 8 :]
    assert refused(with_field(-1, changed)).code == "context-malformed"


def test_a_field_too_few_or_too_many_is_refused() -> None:
    plain: tuple[object, ...] = decode(example().canonical())  # type: ignore[assignment]
    assert refused(encode(plain[:-2] + plain[-1:])).code == "context-malformed"
    assert refused(encode((*plain[:-1], 1, plain[-1]))).code == "context-malformed"
    assert refused(encode({str(index): item for index, item in enumerate(plain)})).code == "context-malformed"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ((32, 32, 99, 10.0, 1.0, 50), "encoding-invalid"),
        ((32, 32, 20, 10, 1.0, 50), "encoding-invalid"),
        ((32, 32, 20, float("inf"), 1.0, 50), "encoding-invalid"),
        ((32, 16, 12, 10.0, 1.0, 50), "encoding-invalid"),
        ((32, 32, 20, 10.0, 1.0), "context-malformed"),
        ((32, 32, 20, 10.0, 1.0, 50, 1), "context-malformed"),
        ((32, 32, 1 << 53, 10.0, 1.0, 50), "context-malformed"),
        ((True, 32, 20, 10.0, 1.0, 50), "context-malformed"),
    ],
)
def test_an_encoding_that_cannot_be_is_refused(values: tuple[object, ...], code: str) -> None:
    assert refused(with_field(13, values)).code == code


@pytest.mark.parametrize(
    "metrics", [("b", "a"), ("a", "a"), ("x" * 65,), tuple(f"m{item:03}" for item in range(65)), ("\0",)]
)
def test_metrics_that_cannot_be_are_refused(metrics: tuple[str, ...]) -> None:
    assert refused(dataclasses.replace(example(), metrics=metrics).canonical()).code == "metrics-invalid"


def test_more_seats_than_a_round_may_have_are_refused() -> None:
    seat = example().roster[0]
    roster = tuple(dataclasses.replace(seat, name=f"{item:05}") for item in range(1_025))
    assert refused(dataclasses.replace(example(), roster=roster).canonical()).code == "context-malformed"


def test_positions_keepers_and_sets() -> None:
    context = example()
    assert context.names == ("site-000", "site-001", "site-002", "site-003")
    assert [context.position(name) for name in (*context.names, "nobody")] == [0, 1, 2, 3, None]
    assert context.keepers == (0, 1, 2, 3)
    assert context.set_hash((2, 1)) == context.set_hash(frozenset({1, 2})) != context.set_hash((1,))
    other = dataclasses.replace(context, attempt=2)
    assert other.set_hash((1, 2)) != context.set_hash((1, 2))


def test_a_large_roster_has_a_hundred_keepers_drawn_by_its_context() -> None:
    seat = example().roster[0]
    roster = tuple(dataclasses.replace(seat, name=f"site-{item:03}") for item in range(300))
    one = dataclasses.replace(example(), roster=roster)
    other = dataclasses.replace(one, attempt=2)
    for context in (one, other):
        assert len(set(context.keepers)) == 100
        assert list(context.keepers) == sorted(context.keepers)
        assert context.keepers[0] >= 0 and context.keepers[-1] < 300
    assert one.keepers != other.keepers
    assert RoundContext.parse(one.canonical()).keepers == one.keepers
