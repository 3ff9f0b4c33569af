"""A line that was changed is named, whichever field of whichever kind it is, and whoever signs it anew."""

from __future__ import annotations

from typing import Any

import pytest

from privacy.accounting import GaussianEvent, Unit
from privacy.ledger import Book, JobInfo, LedgerError, SignedEntry, entry_hash
from privacy.ledger.book import Line
from privacy.ledger.chain import FIRST, consent, first_key
from privacy.ledger.entries import KINDS, MAX_LINE_BYTES, pack, unpack
from privacy.secure_aggregation.keys import SigningKey
from privacy.transcript import decode, encode

KEY, OTHER, NEXT = (SigningKey(bytes(range(first, first + 32))) for first in range(3))
RECORDS: dict[str, Any] = {"records": 1_001, "unit": Unit.RECORD}
JOB = JobInfo(run_id="flu-1", round=3, coordinator="flu.example:7600", plan_hash=bytes(32), model="ab" * 32)
COST = [GaussianEvent(noise_multiplier=2.0, sampling_rate=0.1)]


def one_of_each_kind(key: SigningKey = KEY, site: str = "ward-a") -> list[SignedEntry]:
    book, lines = Book(site, key.public), []

    def do(line: tuple[str, dict[str, Any]] | None) -> None:
        assert line is not None
        lines.append(book.line(key, 1_000.0 + len(lines), *line))

    do(book.open_dataset("scans", records=1_000, unit=Unit.RECORD, epsilon=3.0, delta=1e-5))
    do(book.open_dataset("scans", records=1_000, unit=Unit.RECORD, epsilon=2.0, delta=1e-5))
    do(book.reserve("t1", "scans", JOB, COST))
    do(book.charge("t1"))
    do(book.settle("t1"))
    do(book.reserve("t2", "scans", JOB, COST))
    do(book.give_back("t2"))
    # So that no kind of line is only ever the last one.
    do(book.open_dataset("scans", records=1_001, unit=Unit.RECORD, epsilon=2.0, delta=1e-5))
    do(book.hand_over(NEXT))
    lines.append(
        book.line(NEXT, 1_000.0 + len(lines), *needed(book.open_dataset("scans", **RECORDS, epsilon=4.0, delta=1e-5)))
    )
    return lines


def needed(line: Line | None) -> Line:
    assert line is not None
    return line


LINES = one_of_each_kind()
FIELDS = [(number, name) for number, line in enumerate(LINES) for name in unpack(line.body)]


def other(value: Any) -> Any:
    """Something else of the same type."""
    if isinstance(value, str):
        return (float.fromhex(value) * 2).hex() if value.startswith("0x") else value + "x"
    if isinstance(value, int):
        return value + 1
    if isinstance(value, bytes):
        return bytes(byte ^ 1 for byte in value)
    return [*value, *value]


def refusal(lines: list[SignedEntry], key: SigningKey = KEY, site: str = "ward-a") -> LedgerError:
    with pytest.raises(LedgerError) as caught:
        Book(site, key.public).follow(lines)
    return caught.value


def test_there_is_a_line_of_each_kind() -> None:
    assert {unpack(line.body)["kind"] for line in LINES} == set(KINDS)


@pytest.mark.parametrize(("number", "field"), FIELDS)
def test_a_changed_field_is_named(number: int, field: str) -> None:
    table = dict(unpack(LINES[number].body))
    table[field] = other(table[field])
    body = encode(table)
    changed = [*LINES]
    changed[number] = SignedEntry(body, LINES[number].signature)
    error = refusal(changed)
    assert error.line == number
    assert f"line {number} of the privacy ledger" in error.message
    assert error.exit_code == 6
    assert error.hint
    # A thief of the key can sign it anew; the line after it still names what stood there.
    changed[number] = SignedEntry(body, KEY.sign(body))
    if number + 1 < len(LINES):
        assert refusal(changed).line in (number, number + 1)


@pytest.mark.parametrize("number", range(len(LINES)))
def test_a_changed_signature_is_named(number: int) -> None:
    good = LINES[number].signature
    for signature in (bytes(64), b"", good[:-1], good[:-1] + bytes([good[-1] ^ 1]), OTHER.sign(LINES[number].body)):
        changed = [*LINES]
        changed[number] = SignedEntry(LINES[number].body, signature)
        assert refusal(changed).line == number


@pytest.mark.parametrize("number", range(len(LINES) - 1))
def test_a_missing_swapped_or_repeated_line_is_named(number: int) -> None:
    assert refusal([*LINES[:number], *LINES[number + 1 :]]).line == number
    assert refusal([*LINES[:number], LINES[number + 1], LINES[number], *LINES[number + 2 :]]).line == number
    assert refusal([*LINES[: number + 1], *LINES[number:]]).line == number + 1


def test_a_ledger_of_another_site_or_key_says_so() -> None:
    error = refusal(one_of_each_kind(OTHER, "ward-b"))
    assert (error.code, error.line) == ("ledger-foreign", 0)
    assert "ward-b" in error.message
    assert "ward-a" in error.message
    error = refusal(one_of_each_kind(OTHER))
    assert (error.code, error.line) == ("ledger-broken", 0)
    assert "joined anew" in error.hint


def test_lines_of_two_sites_cannot_be_mixed() -> None:
    foreign = one_of_each_kind(OTHER, "ward-b")
    error = refusal([*LINES[:3], foreign[3], *LINES[4:]])
    assert (error.code, error.line) == ("ledger-broken", 3)
    assert "ward-b" in error.message
    error = refusal([*LINES[:3], one_of_each_kind(OTHER)[3], *LINES[4:]])
    assert (error.code, error.line) == ("ledger-broken", 3)
    assert "key" in error.message


def test_a_line_is_its_bytes() -> None:
    for number, line in enumerate(LINES):
        table = unpack(line.body)
        kind = table["kind"]
        fields = {name: table[name] for name in KINDS[kind]}
        previous = entry_hash(LINES[number - 1].body) if number else FIRST
        assert pack("ward-a", number, 1_000.0 + number, previous, kind, fields) == line.body


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "read"),
        (b"x" * 40, "read"),
        (LINES[0].body + b"x", "read"),
        (bytes(MAX_LINE_BYTES + 1), "long"),
        (encode([1]), "format"),
        (encode({"format": "fedloom/ledger/9"}), "format"),
        (encode({**dict(decode(LINES[0].body)), "kind": "gift"}), "kind"),  # type: ignore[call-overload]
        (encode({**dict(decode(LINES[0].body)), "more": 1}), "kind"),  # type: ignore[call-overload]
    ],
)
def test_what_is_no_line_is_refused_even_with_a_signature(body: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        unpack(body)
    error = refusal([SignedEntry(body, KEY.sign(body))])
    assert (error.code, error.line) == ("ledger-broken", 0)


def test_a_line_has_exactly_its_kinds_fields() -> None:
    for kind, fields in (("gift", {}), ("charge", {}), ("charge", {"task": "t", "more": 1})):
        with pytest.raises(ValueError, match=kind):
            pack("ward-a", 0, 0.0, FIRST, kind, fields)


# ---- another key of the same site ------------------------------------------------------------------------------------


def test_a_ledger_goes_on_with_another_key_and_tells_with_which_it_was_begun() -> None:
    book = Book("ward-a", KEY.public)
    book.follow(LINES)
    assert book.public == NEXT.public
    assert book.hand_over(NEXT) is None
    assert first_key(LINES, NEXT.public) == KEY.public
    assert first_key(LINES[:3], KEY.public) == KEY.public
    with pytest.raises(LedgerError, match="another key"):
        book.line(KEY, 3_000.0, *needed(book.open_dataset("zoo", **RECORDS, epsilon=1.0, delta=1e-5)))


@pytest.mark.parametrize("fault", ["of another", "for another place", "by the old key alone"])
def test_nobody_is_handed_a_ledger_that_hasnt_agreed_to_it(fault: str) -> None:
    """Else whoever has an old key could make a ledger that seems to lead to the site's present one."""
    book = Book("ward-a", KEY.public)
    book.follow(LINES[:8])
    agreed = {
        "of another": OTHER.sign(consent(book.head, KEY.public)),
        "for another place": NEXT.sign(consent(FIRST, KEY.public)),
        "by the old key alone": KEY.sign(consent(book.head, KEY.public)),
    }[fault]
    fields = {"from": KEY.public, "key": NEXT.public, "consent": agreed}
    with pytest.raises(LedgerError, match="hasn't agreed"):
        book.line(KEY, 2_000.0, "key", fields)
    assert book.public == KEY.public and book.count == 8
