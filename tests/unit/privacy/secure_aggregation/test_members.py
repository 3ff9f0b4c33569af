"""The member list: what the root may add, and everything that a coordinator may try."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import transcript
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.identities import COORDINATOR_NAME, Role
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import (
    MAX_BODY_BYTES,
    Action,
    End,
    FederationRoot,
    Member,
    MemberEntry,
    MemberList,
    signed_message,
)

ROOT = FederationRoot("demo", SigningKey(b"r" * 32))


@functools.cache
def key(name: str) -> bytes:
    """A public key of this name."""
    return SigningKey(name.encode().ljust(32, b".")[:32]).public


def grown(chain: MemberList, *names: str, root: FederationRoot = ROOT) -> MemberList:
    """The list with these participants added."""
    for name in names:
        chain = chain.extend([root.add(chain, Role.PARTICIPANT, name, key(name))])
    return chain


def with_coordinator(root: FederationRoot = ROOT) -> MemberList:
    chain = root.empty()
    return chain.extend([root.add(chain, Role.COORDINATOR, COORDINATOR_NAME, key("coordinator"))])


CHAIN = grown(with_coordinator(), "north", "south", "west")


def resigned(entry: MemberEntry, signer: SigningKey = ROOT.key, **changes: object) -> MemberEntry:
    """The entry with other content, and a signature that fits it."""
    changed = dataclasses.replace(entry, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(changed, signature=signer.sign(signed_message(changed)))


def refused(work: Callable[[], object]) -> SecureAggregationError:
    with pytest.raises(SecureAggregationError) as caught:
        work()
    return caught.value


def code_of(entries: Sequence[MemberEntry], onto: MemberList | None = None, end: End | None = None) -> str:
    start = onto if onto is not None else ROOT.empty()
    return refused(lambda: start.extend(entries, end)).code


# --- what an honest root does -----------------------------------------------------------------------------------------


def test_members_come_and_go() -> None:
    chain = CHAIN.extend([ROOT.remove(CHAIN, "north")])
    assert sorted(chain.members()) == ["coordinator", "south", "west"]
    assert chain.coordinator == Member(
        name="coordinator", role=Role.COORDINATOR, public_key=key("coordinator"), valid_until=0
    )
    assert chain.participant("south") == Member(
        name="south", role=Role.PARTICIPANT, public_key=key("south"), valid_until=0
    )
    assert chain.participant("north") is None
    assert chain.participant("coordinator") is None
    assert (chain.count, CHAIN.count) == (5, 4)
    back = chain.extend([ROOT.add(chain, Role.PARTICIPANT, "north", key("another"), valid_until=99)])
    assert back.members()["north"].public_key == key("another")


def test_an_empty_list_has_no_coordinator_and_ends_at_the_origin() -> None:
    empty = MemberList.empty("demo", ROOT.public)
    assert (empty.coordinator, empty.end, dict(empty.members())) == (None, End(0, bytes(32)), {})
    assert MemberList.verify("demo", ROOT.public, []) == empty


def test_the_chain_links_each_entry_to_the_one_before() -> None:
    previous = bytes(32)
    for index, entry in enumerate(CHAIN.entries):
        assert (entry.index, entry.previous) == (index, previous)
        previous = entry.hash
    assert CHAIN.end == End(4, previous)


def test_validity_has_an_end_or_none() -> None:
    member = Member(name="a", role=Role.PARTICIPANT, public_key=key("a"), valid_until=100)
    assert (member.valid_at(99.5), member.valid_at(100.0)) == (True, False)
    assert dataclasses.replace(member, valid_until=0).valid_at(1e18)


def test_verifying_step_by_step_or_at_once_is_the_same() -> None:
    whole = MemberList.verify("demo", ROOT.public, CHAIN.entries)
    step = functools.reduce(lambda chain, entry: chain.extend([entry]), CHAIN.entries, ROOT.empty())
    assert whole == step == CHAIN
    assert hash(whole) == hash(CHAIN)
    assert whole.members() == CHAIN.members()
    assert whole != ROOT.empty()
    assert whole != "a list"


def test_what_is_known_may_be_sent_again() -> None:
    longer = grown(CHAIN, "east")
    assert CHAIN.extend(longer.entries, longer.end) == longer
    assert CHAIN.extend(longer.entries[2:], longer.end) == longer
    assert CHAIN.extend([], CHAIN.end) == CHAIN
    # A long list comes in parts: its end is further on than its first part reaches.
    assert CHAIN.extend([], longer.end) == CHAIN


@given(st.lists(st.sampled_from(["add a", "add b", "add c", "remove a", "remove b", "remove c"]), max_size=10))
def test_any_history_verifies_and_follows_the_plain_rules(steps: list[str]) -> None:
    chain, active = ROOT.empty(), set[str]()
    for step in steps:
        action, name = step.split()

        def sign(action: str = action, name: str = name, chain: MemberList = chain) -> MemberEntry:
            return ROOT.add(chain, Role.PARTICIPANT, name, key(name)) if action == "add" else ROOT.remove(chain, name)

        if (action == "add") == (name in active):
            assert refused(sign).code == ("member-duplicate" if action == "add" else "member-unknown")
            continue
        chain = chain.extend([sign()])
        active ^= {name}
    assert set(MemberList.verify("demo", ROOT.public, chain.entries).members()) == active


def test_the_root_refuses_to_sign_what_nobody_would_take() -> None:
    assert refused(lambda: ROOT.add(CHAIN, Role.PARTICIPANT, "north", key("x"))).code == "member-duplicate"
    assert refused(lambda: ROOT.add(CHAIN, Role.PARTICIPANT, "x", key("north"))).code == "member-duplicate"
    assert refused(lambda: ROOT.add(CHAIN, Role.PARTICIPANT, "x", bytes(32))).code == "member-key-invalid"
    assert refused(lambda: ROOT.add(CHAIN, Role.PARTICIPANT, "X", key("x"))).code == "members-malformed"
    assert refused(lambda: ROOT.add(CHAIN, Role.PARTICIPANT, "x", key("x"), valid_until=-1)).code == "members-malformed"
    assert refused(lambda: ROOT.remove(CHAIN, "x")).code == "member-unknown"
    stranger = FederationRoot("demo", SigningKey(b"s" * 32))
    assert refused(lambda: stranger.add(CHAIN, Role.PARTICIPANT, "x", key("x"))).code == "members-signature"
    elsewhere = FederationRoot("elsewhere", ROOT.key)
    assert refused(lambda: elsewhere.add(CHAIN, Role.PARTICIPANT, "x", key("x"))).code == "members-federation"


# --- what a coordinator may try ---------------------------------------------------------------------------------------


def test_a_sybil_signed_by_anyone_but_the_root_is_refused() -> None:
    honest = ROOT.add(CHAIN, Role.PARTICIPANT, "sybil", key("sybil"))
    coordinator = SigningKey(b"coordinator".ljust(32, b"."))
    assert coordinator.public == key("coordinator")
    for signer in (coordinator, SigningKey(b"n" * 32), SigningKey(b"sybil".ljust(32, b"."))):
        assert code_of([resigned(honest, signer)], CHAIN) == "members-signature"
    for signature in (b"", bytes(64), honest.signature[:-1], CHAIN.entries[1].signature):
        assert code_of([dataclasses.replace(honest, signature=signature)], CHAIN) == "members-signature"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "sybil"},
        {"public_key": key("sybil")},
        {"valid_until": 1},
        {"action": Action.REMOVE},
        {"role": Role.COORDINATOR, "name": "coordinator"},
    ],
)
def test_no_field_of_a_signed_entry_can_be_changed(changes: dict[str, object]) -> None:
    entry = dataclasses.replace(CHAIN.entries[1], **changes)  # type: ignore[arg-type]
    assert code_of([CHAIN.entries[0], entry]) == "members-signature"
    assert code_of([CHAIN.entries[0], entry], CHAIN) == "members-fork"


def test_another_history_of_the_same_root_is_a_fork() -> None:
    other = grown(with_coordinator(), "north", "east", "west", "south")
    for start in range(3):
        assert code_of(other.entries[start:], CHAIN, other.end) == "members-fork"
    # Even when nothing but the new end is shown, or only what comes behind the pinned entries.
    assert code_of([], CHAIN, dataclasses.replace(CHAIN.end, head=other.entries[3].hash)) == "members-fork"
    assert code_of(other.entries[4:], CHAIN, other.end) == "members-fork"


def test_a_shortened_list_is_a_fork() -> None:
    shorter = MemberList.verify("demo", ROOT.public, CHAIN.entries[:2])
    error = refused(lambda: CHAIN.extend(shorter.entries, shorter.end))
    assert error.code == "members-fork"
    assert "2 entries, after it had 4" in error.message
    assert code_of([], CHAIN, End(0, bytes(32))) == "members-fork"


def test_a_reordered_list_or_one_with_a_gap_is_refused_by_the_entry() -> None:
    first, second, third, fourth = CHAIN.entries
    error = refused(lambda: ROOT.empty().extend([first, third, second, fourth]))
    assert error.code == "members-gap"
    assert "entry 2 of the member list (add south) came where entry 1 was expected" in error.message
    assert code_of([second]) == "members-gap"
    assert code_of([first, second, fourth]) == "members-gap"
    # Renumbered and signed anew, as only the root could: the hashes give it away to whoever has pinned the first order.
    moved = resigned(third, index=1, previous=first.hash)
    assert code_of([first, moved], CHAIN) == "members-fork"


def test_an_entry_that_names_another_predecessor_is_a_fork() -> None:
    entry = resigned(ROOT.add(CHAIN, Role.PARTICIPANT, "east", key("east")), previous=b"p" * 32)
    assert code_of([entry], CHAIN) == "members-fork"
    assert code_of([resigned(CHAIN.entries[0], previous=b"p" * 32)]) == "members-fork"


def test_another_federations_list_is_refused_even_under_the_same_root() -> None:
    twin = FederationRoot("twin", ROOT.key)
    entry = twin.add(twin.empty(), Role.PARTICIPANT, "north", key("north"))
    assert code_of([entry]) == "members-federation"


def test_the_rules_bind_the_root_as_well() -> None:
    end = {"index": 4, "previous": CHAIN.head}
    again = resigned(CHAIN.entries[1], **end)
    same_key = resigned(CHAIN.entries[1], name="twin", **end)
    second = resigned(CHAIN.entries[0], public_key=key("second"), **end)
    for entry in (again, same_key, second):
        assert code_of([entry], CHAIN) == "member-duplicate"
    stranger = resigned(CHAIN.entries[1], action=Action.REMOVE, name="stranger", **end)
    other_key = resigned(CHAIN.entries[1], action=Action.REMOVE, public_key=key("other"), **end)
    for entry in (stranger, other_key):
        assert code_of([entry], CHAIN) == "member-unknown"


def test_a_refused_extension_leaves_the_list_as_it_was() -> None:
    good = ROOT.add(CHAIN, Role.PARTICIPANT, "east", key("east"))
    before = (CHAIN.end, dict(CHAIN.members()))
    bad = resigned(good, SigningKey(b"x" * 32), index=5, previous=good.hash, name="sybil", public_key=key("sybil"))
    assert code_of([good, bad], CHAIN) == "members-signature"
    assert (CHAIN.end, dict(CHAIN.members())) == before
    with pytest.raises(TypeError):
        CHAIN.members()["x"] = CHAIN.members()["north"]  # type: ignore[index]


# --- encoding ---------------------------------------------------------------------------------------------------------


def test_an_entry_has_one_form() -> None:
    for entry in CHAIN.entries:
        assert MemberEntry.decode(entry.body, entry.signature) == entry
        assert len(entry.body) < 500


def test_the_hash_is_written_down() -> None:
    # A change of the encoding would cut every site off from the list it has pinned.
    assert CHAIN.head.hex() == "e10b5eb96738ccc3f42af8dce606cb5add2cf9a3d87a75dd9e9eec306a125d55"


def fields(**changes: object) -> bytes:
    value = transcript.decode(CHAIN.entries[1].body)
    assert isinstance(value, dict)
    return transcript.encode({**value, **changes})


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "can't be read"),
        (b"garbage", "can't be read"),
        (CHAIN.entries[1].body + b"\0", "can't be read"),
        (transcript.encode([1]), "not a set of fields"),
        (transcript.encode({"index": 0}), "other fields"),
        (fields(more=1), "other fields"),
        (fields(index=True), "isn't of type int"),
        (fields(index=1.0), "isn't of type int"),
        (fields(name=b"north"), "isn't of type str"),
        (fields(public_key="k" * 32), "isn't of type bytes"),
        (fields(index=-1), "index is -1"),
        (fields(valid_until=1 << 70), "valid_until"),
        (fields(previous=b"short"), "previous has 5 bytes"),
        (fields(action="promote"), "unknown word"),
        (fields(role="operator"), "unknown word"),
        (fields(role="coordinator"), "can't be called"),
        (fields(name="coordinator"), "can't be called"),
        (fields(name="North"), "not a name"),
        (fields(federation=""), "not a name"),
        (b"Y" + (MAX_BODY_BYTES).to_bytes(8, "big") + bytes(MAX_BODY_BYTES), "at most"),
    ],
)
def test_a_body_that_is_no_entry_is_refused(body: bytes, part: str) -> None:
    error = refused(lambda: MemberEntry.decode(body, bytes(64)))
    assert error.code == "members-malformed"
    assert part in error.message


@given(st.binary(max_size=200))
def test_garbage_is_never_an_entry(data: bytes) -> None:
    assert refused(lambda: MemberEntry.decode(data, bytes(64))).code == "members-malformed"


def test_a_root_that_cannot_be_one_is_refused() -> None:
    assert refused(lambda: MemberList.empty("demo", bytes(32))).code == "member-key-invalid"
    assert refused(lambda: MemberList.empty("", ROOT.public)).code == "members-malformed"


def test_the_roots_key_stays_out_of_repr() -> None:
    assert ROOT.key.secret.hex() not in repr(ROOT)
    assert repr(b"r" * 32)[2:-1] not in repr(ROOT)
    assert "4 active, 4 entries" in repr(CHAIN)
