"""Statements: one form for each, strict reading, and no more of it than a round can need."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.secure_aggregation import signed as form
from privacy.secure_aggregation import statements
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.signed import cleaned
from privacy.secure_aggregation.statements import (
    ACCEPTANCES,
    MAX_STATEMENT_BYTES,
    PARCELS,
    PREKEYS,
    QUORUM,
    RELEASES,
    UPLOADS,
    Accept,
    Acceptance,
    Accepted,
    Complaint,
    Delivery,
    Doubt,
    Evidence,
    Excused,
    Freeze,
    Plan,
    Prekey,
    PrekeyBatch,
    Quorum,
    Ready,
    Refused,
    Release,
    Result,
    RoundStatement,
    Signed,
    Statement,
    Survived,
    Survivors,
    Table,
    Upload,
    UploadReceipt,
    kind_of,
    positions_bytes,
    positions_of,
    signature_holds,
)
from privacy.transcript import decode, encode

KEY = SigningKey(b"k" * 32)
H = b"h" * 32


def table(kind: Table, rows: int) -> bytes:
    return kind.write([bytes([row]) * width for width in kind.widths] for row in range(rows))


EXAMPLES: list[Statement] = [
    Prekey("clinics", "north", 7, H, b"s" * 32, b"b" * 32, 9),
    PrekeyBatch(table(PREKEYS, 3)),
    Plan(b"any bytes"),
    Acceptance(H, 3, b"r" * 32, b"c" * 32, (b"1" * 32, b"2" * 32)),
    Accept(H, 3, b"r" * 32, b"c" * 32, (), b"s" * 64, table(PARCELS, 4)),
    Delivery(H, table(ACCEPTANCES, 2), ((1, (b"1" * 32,)),), table(PARCELS, 2)),
    Accepted(H, positions_bytes([3, 1])),
    Excused(H, 1, "no data"),
    Doubt(H, 2),
    Evidence(H, 2, b"body", b"s" * 64),
    Complaint(H, 2, b"k" * 32),
    Ready(H),
    Freeze(H, positions_bytes(range(5))),
    Upload(H, 1, b"a" * 32, b"f" * 32, b"d" * 32),
    UploadReceipt(H, 1, b"d" * 32),
    Survivors(H, table(UPLOADS, 3)),
    Survived(H, b"f" * 32, b"s" * 32),
    Quorum(H, table(QUORUM, 3)),
    Release(H, b"s" * 32, table(RELEASES, 3), table(RELEASES, 1)),
    Result(4, b"p" * 32, H, positions_bytes([0, 2]), *[bytes([item]) * 32 for item in range(4)]),
    Refused(H, "cohort-floor", "[secure_aggregation] min_cohort", "too few"),
]
by_kind = pytest.mark.parametrize("example", EXAMPLES, ids=lambda item: item.KIND)


def malformed(kind: type[Statement], body: bytes) -> None:
    with pytest.raises(SecureAggregationError) as caught:
        kind.parse(body)
    assert caught.value.code == "statement-malformed"


def test_every_statement_has_an_example_and_a_kind_of_its_own() -> None:
    classes = {
        item
        for _, item in inspect.getmembers(statements, inspect.isclass)
        if issubclass(item, Statement) and item not in (Statement, RoundStatement)
    }
    assert classes == {type(item) for item in EXAMPLES}
    assert len({item.KIND for item in classes}) == len(classes)
    for item in classes:
        assert len(item.CHECKS) == len(dataclasses.fields(item))  # type: ignore[arg-type]
        assert issubclass(item, RoundStatement) == (item not in (Prekey, PrekeyBatch, Plan))
    assert set(statements.__all__) >= {item.__name__ for item in classes}


@by_kind
def test_a_statement_comes_back_as_it_was(example: Statement) -> None:
    body = example.body()
    assert kind_of(body) == example.KIND
    again = type(example).parse(body)
    assert again == example
    assert again.body() == body


@by_kind
def test_the_signature_covers_every_field_and_no_other_signer_passes(example: Statement) -> None:
    signed = example.signed(KEY)
    assert type(example).opened(signed, KEY.public, "north") == example
    assert signature_holds(signed, KEY.public)
    for other in (SigningKey(b"x" * 32).public, bytes(32), b""):
        with pytest.raises(SecureAggregationError) as caught:
            type(example).opened(signed, other, "north")
        assert caught.value.code == "signature-invalid"
        assert "north" in caught.value.message
    for index in range(0, len(signed.body), max(1, len(signed.body) // 50)):
        body = signed.body[:index] + bytes([signed.body[index] ^ 1]) + signed.body[index + 1 :]
        assert not signature_holds(Signed(body, signed.signature), KEY.public)


def test_a_signature_is_for_a_statement_and_for_no_other_use_of_the_key() -> None:
    body = Ready(H).body()
    assert not signature_holds(Signed(body, KEY.sign(body)), KEY.public)


@by_kind
def test_a_statement_of_one_kind_is_not_read_as_another(example: Statement) -> None:
    for other in EXAMPLES:
        if other.KIND != example.KIND:
            malformed(type(other), example.body())


@by_kind
def test_a_field_too_few_or_too_many_or_of_another_type_is_refused(example: Statement) -> None:
    plain: list[Any] = list(decode(example.body()))  # type: ignore[call-overload]
    malformed(type(example), encode(tuple(plain[:-1])))
    malformed(type(example), encode((*plain, b"")))
    for index, other in itertools.product(range(1, len(plain)), [None, True, -1, 10**5000, 1.5, ((1,),), {}]):
        malformed(type(example), encode((*plain[:index], other, *plain[index + 1 :])))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Ready, (b"h" * 31,)),
        (Ready, (b"h" * 33,)),
        (Freeze, (H, b"\0")),
        (Freeze, (H, b"\0\1\0\1")),
        (Freeze, (H, b"\0\2\0\1")),
        (Freeze, (H, positions_bytes(range(1_025)))),
        (Accepted, (H, b"\0\2\0\1")),
        (Doubt, (H, 1 << 63)),
        (Acceptance, (H, 1, H, H, tuple(H for _ in range(65)))),
        (Acceptance, (H, 1, H, H, (b"short",))),
        (Delivery, (H, b"", tuple((item, ()) for item in range(1_025)), b"")),
        (Delivery, (H, b"", ((1, ()), (1, (), 2)), b"")),
        (Delivery, (H, b"x", (), b"")),
        (Delivery, (H, b"", (), b"x")),
        (Survivors, (H, b"x" * 97)),
        (Survivors, (H, bytes(98 * 1_025))),
        (PrekeyBatch, (bytes(176 * 1_025),)),
        (Refused, (H, "x" * 65, "", "")),
        (Refused, (H, "", "x" * 65, "")),
        (Refused, (H, "", "", "x" * 1_001)),
        (Refused, (H, "", "", "\x1b[2J")),
        (Refused, (H, "", "", "two\nlines")),
        (Excused, (H, 0, "\r")),
        (Prekey, ("x" * 64, "north", 1, H, H, H, 1)),
    ],
)
def test_values_out_of_range_are_refused(kind: type[Statement], values: tuple[object, ...]) -> None:
    malformed(kind, encode((kind.KIND, *values)))


@pytest.mark.parametrize(
    "body",
    [b"", b"x", encode(None), encode("ready"), encode(()), encode((1,)), encode({"ready": 1}), encode([b"ready"])],
)
def test_what_is_no_statement_has_no_kind(body: bytes) -> None:
    with pytest.raises(SecureAggregationError) as caught:
        kind_of(body)
    assert caught.value.code == "statement-malformed"


def test_a_statement_that_is_too_long_is_refused_unread() -> None:
    body = Plan(bytes(MAX_STATEMENT_BYTES - 40)).body()
    assert len(body) <= MAX_STATEMENT_BYTES
    assert kind_of(body) == "plan"
    malformed(Plan, Plan(bytes(MAX_STATEMENT_BYTES)).body())


@pytest.mark.parametrize("kind", [PREKEYS, PARCELS, ACCEPTANCES, UPLOADS, QUORUM, RELEASES])
def test_tables_come_back_row_by_row(kind: Table) -> None:
    rows = [tuple(bytes([row]) * width for width in kind.widths) for row in range(5)]
    data = kind.write(rows)
    assert kind.check(data) and kind.read(data) == rows
    assert kind.read(b"") == []
    assert not kind.check(data[:-1])
    assert not kind.check(data.decode("latin-1"))
    with pytest.raises(ValueError, match="columns"):
        kind.write([rows[0][:-1]])
    with pytest.raises(ValueError, match="columns"):
        kind.write([(*rows[0][:-1], b"")])


@given(st.sets(st.integers(0, 1_023), max_size=40))
def test_positions_come_back_in_order(positions: set[int]) -> None:
    assert positions_of(positions_bytes(positions)) == tuple(sorted(positions))
    assert form.ascending(positions_bytes(positions))


def test_a_round_of_a_hundred_costs_a_participant_few_bytes() -> None:
    down = len(Delivery(H, table(ACCEPTANCES, 100), (), table(PARCELS, 100)).body())
    down += len(Survivors(H, table(UPLOADS, 100)).body()) + len(Quorum(H, table(QUORUM, 67)).body())
    up = len(Accept(H, 3, H, H, (), bytes(64), table(PARCELS, 100)).body())
    up += len(Release(H, H, table(RELEASES, 90), table(RELEASES, 10)).body())
    # 0.2 % of an update of 10 million parameters of four bytes is 80,000 bytes; the plan has some 25,000.
    assert down + up < 60_000


@given(st.text(max_size=50), st.integers(0, 60))
def test_a_foreign_text_is_cleaned_to_one_that_passes(value: str, longest: int) -> None:
    assert form.text(longest)(cleaned(value, longest))
    if value.isprintable():
        assert cleaned(value, 60) == value


def test_no_statement_shows_a_share_or_a_key_when_it_is_printed() -> None:
    secret = bytes(range(1, 33))
    for item in (
        Complaint(H, 1, secret),
        Release(H, H, RELEASES.write([(b"\0\1", b"\0" + secret, H)]), b""),
        Release(H, H, b"", RELEASES.write([(b"\0\1", b"\0" + secret, H)])),
        Complaint(H, 1, secret).signed(KEY),
    ):
        assert secret.hex() not in repr(item) and repr(secret)[2:-1] not in repr(item)
