"""Signing keys on disk, and the two files that travel between coordinator and root."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.identities import COORDINATOR_NAME, MemberRequest, Role
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import End, FederationRoot, MemberList
from wire import (
    ConfigError,
    DataError,
    RefusedError,
    Requests,
    as_refusal,
    load_root,
    load_signing_key,
    make_root,
    pack_members,
    parse_public_key,
    read_members,
    read_members_or_requests,
    read_requests,
    save_signing_key,
    unpack_members,
    write_members,
    write_requests,
)
from wire.root import MAX_ENTRIES, MAX_FILE_BYTES, MEMBERS, ROOT_KEY, SIGNING_KEY

ROOT = FederationRoot("demo", SigningKey(b"r" * 32))
NORTH = SigningKey(b"n" * 32)


def chain() -> MemberList:
    members = ROOT.empty()
    members = members.extend(
        [ROOT.add(members, Role.COORDINATOR, COORDINATOR_NAME, SigningKey(b"c" * 32).public, valid_until=7)]
    )
    return members.extend([ROOT.add(members, Role.PARTICIPANT, "north", NORTH.public)])


def requests() -> Requests:
    wish = MemberRequest.make(NORTH, federation="demo", role=Role.PARTICIPANT, name="north", binding=b"b" * 32)
    return Requests(federation="demo", root=ROOT.public, end=End(3, b"h" * 32), requests=(wish,))


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The JSON file with something changed in it."""
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    return path


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_signing_key_comes_back_and_is_the_owners_only(tmp_path: Path) -> None:
    save_signing_key(tmp_path / "identity", NORTH)
    assert load_signing_key(tmp_path / "identity") == NORTH
    assert (tmp_path / "identity").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "identity" / SIGNING_KEY).stat().st_mode & 0o777 == 0o600
    (tmp_path / "identity" / SIGNING_KEY).chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        load_signing_key(tmp_path / "identity")


@pytest.mark.parametrize("content", [b"", b"xyz", b"ab" * 31, b"ab" * 33, b"\xff\xfe", b"zz" * 32])
def test_what_is_no_key_is_named(tmp_path: Path, content: bytes) -> None:
    save_signing_key(tmp_path, NORTH)
    (tmp_path / SIGNING_KEY).write_bytes(content)
    with pytest.raises(DataError, match=r"signing\.key: this is not a private key"):
        load_signing_key(tmp_path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"signing\.key"):
        load_signing_key(tmp_path)


def test_a_root_is_made_once_with_an_empty_list(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", "demo")
    assert load_root(tmp_path / "root", "demo") == root
    assert read_members(tmp_path / "root" / MEMBERS) == root.empty()
    assert (tmp_path / "root" / ROOT_KEY).stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="already"):
        make_root(tmp_path / "root", "demo")
    assert load_root(tmp_path / "root", "demo") == root
    assert make_root(tmp_path / "other", "demo") != root


def test_a_public_key_as_a_person_pastes_it() -> None:
    public = NORTH.public
    assert parse_public_key(f" {public.hex()[:20]} {public.hex()[20:]}\n", "--root") == public
    assert parse_public_key(public.hex().upper(), "--root") == public
    for text in ("", "ab", "z" * 64, public.hex() + "00", "00" * 32):
        with pytest.raises(ConfigError, match="--root"):
            parse_public_key(text, "--root")


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_member_list_comes_back_verified(tmp_path: Path) -> None:
    path = tmp_path / MEMBERS
    write_members(path, chain())
    assert read_members(path) == chain()
    assert read_members(path).members() == chain().members()
    assert read_members_or_requests(path) == chain()
    assert ROOT.key.secret.hex() not in path.read_text()


def test_requests_come_back(tmp_path: Path) -> None:
    path = tmp_path / "requests.json"
    write_requests(path, requests())
    assert read_requests(path) == requests()
    assert read_members_or_requests(path) == requests()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda body: body["entries"].reverse(), "members-gap"),
        (lambda body: body["entries"].pop(0), "members-gap"),
        (lambda body: body["entries"][1].update(name="south"), "members-signature"),
        (lambda body: body["entries"][1].update(valid_until=9), "members-signature"),
        (lambda body: body["entries"][1].update(previous="ab" * 32), "members-fork"),
        (lambda body: body.update(root=NORTH.public.hex()), "members-signature"),
        (lambda body: body.update(federation="other"), "members-signature"),
        (lambda body: body.update(root="00" * 32), "member-key-invalid"),
        (lambda body: body["entries"][1].update(name="North"), "members-malformed"),
        (lambda body: body["entries"][1].update(index=-1), "members-malformed"),
    ],
)
def test_a_list_that_was_changed_does_not_verify(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], code: str
) -> None:
    write_members(tmp_path / MEMBERS, chain())
    with pytest.raises(RefusedError, match=MEMBERS) as refusal:
        read_members(changed(tmp_path / MEMBERS, change))
    assert refusal.value.code == code


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["requests"][0].update(name="south"),
        lambda body: body["requests"][0].update(role="coordinator"),
        lambda body: body["requests"][0].update(binding="ab" * 32),
        lambda body: body["requests"][0].update(public_key=ROOT.public.hex()),
        lambda body: body.update(federation="other"),
    ],
)
def test_a_request_that_was_changed_proves_nothing(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    write_requests(tmp_path / "requests.json", requests())
    with pytest.raises(RefusedError, match=r"requests\.json") as refusal:
        read_requests(changed(tmp_path / "requests.json", change))
    assert refusal.value.code == "member-proof"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda body: body.pop("root"), "root: Field required"),
        (lambda body: body.update(more=1), "more: Extra inputs"),
        (lambda body: body["entries"][1].update(public_key="AB" * 32), r"entries\.1\.public_key"),
        (lambda body: body["entries"][0].update(index="0"), r"entries\.0\.index"),
        (lambda body: body["entries"][0].update(index=True), r"entries\.0\.index"),
        (lambda body: body["entries"][0].update(action="promote"), r"entries\.0\.action"),
        (lambda body: body.update(entries={}), "entries"),
        (lambda body: body.update(format="fedloom-members/2"), "neither a member list nor"),
        (lambda body: body.update(format="fedloom-member-requests/1"), "not a member list"),
    ],
)
def test_another_form_is_refused_by_the_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], part: str
) -> None:
    write_members(tmp_path / MEMBERS, chain())
    with pytest.raises(DataError, match=part):
        read_members(changed(tmp_path / MEMBERS, change))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff", b"[" * 100_000, b'{"format": 3}'])
def test_files_that_are_none_of_ours(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    for read in (read_members, read_requests, read_members_or_requests):
        with pytest.raises(DataError, match=r"some\.json"):
            read(path)  # type: ignore[operator]


def test_a_missing_or_huge_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_members(tmp_path / "none.json")
    with pytest.raises(DataError):
        read_members(tmp_path)
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match="larger"):
        read_members(tmp_path / "huge.json")
    with pytest.raises(ConfigError, match="can't be written"):
        write_members(tmp_path / "nowhere" / MEMBERS, chain())


# --- messages ---------------------------------------------------------------------------------------------------------


def test_entries_come_back_from_messages_that_stay_under_the_limit() -> None:
    packed = pack_members(chain().entries)
    assert unpack_members(packed) == list(chain().entries)
    longest = FederationRoot("f" * 63, ROOT.key)
    entry = longest.add(longest.empty(), Role.PARTICIPANT, "p" * 63, NORTH.public, valid_until=(1 << 62) - 1)
    (message,) = pack_members([entry])
    assert MAX_ENTRIES * (message.ByteSize() + 4) < 3 << 20


def test_messages_that_hold_no_entry_are_refused_by_name() -> None:
    (good, _) = pack_members(chain().entries)
    good.body = good.body[:-1]
    with pytest.raises(RefusedError) as refusal:
        unpack_members([good])
    assert refusal.value.code == "members-malformed"


def test_what_the_list_refuses_keeps_its_code_and_hint() -> None:
    with pytest.raises(RefusedError) as refusal, as_refusal("here: "):
        raise SecureAggregationError("members-fork", "two of them", "compare")
    assert (refusal.value.code, refusal.value.message, refusal.value.hint) == (
        "members-fork",
        "here: two of them",
        "compare",
    )


def test_a_list_is_the_same_after_any_number_of_journeys(tmp_path: Path) -> None:
    write_members(tmp_path / "1.json", chain())
    write_members(tmp_path / "2.json", read_members(tmp_path / "1.json"))
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    entry = read_members(tmp_path / "2.json").entries[1]
    assert dataclasses.asdict(entry) == dataclasses.asdict(chain().entries[1])
