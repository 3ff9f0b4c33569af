"""The coordinator's member list: certifying where the root is here, waiting where it is apart."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.membership import ROOT_HERE, Membership, open_membership
from coordinator.store import Invitation, Member, MemberState, Store, open_store
from privacy.secure_aggregation.identities import COORDINATOR_NAME, MemberRequest, Role, key_fingerprint
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import FederationRoot
from wire import ConfigError, DataError, FederationConfig, RefusedError, load_root, make_root, read_members

KEYS = {name: SigningKey(name.encode().ljust(32, b".")) for name in ("north", "south", "west", "twin")}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(tmp_path / "coordinator.sqlite")
    yield made
    made.close()


def config(root: str | None = None) -> FederationConfig:
    return FederationConfig.model_validate({"federation": {"name": "demo", "root": root}})


def wish(name: str, key: SigningKey | None = None, federation: str = "demo") -> MemberRequest:
    return MemberRequest.make(
        key or KEYS[name], federation=federation, role=Role.PARTICIPANT, name=name, binding=b"b" * 32
    )


def enrol(store: Store, name: str, key: SigningKey | None = None) -> None:
    """As the enrolment service does it."""
    request = wish(name, key)
    secret_hash = request.public_key
    store.invite(Invitation(name=name, secret_hash=secret_hash, expires_s=9e9))
    member = Member(
        name=name,
        state=MemberState.ENROLLED,
        signing_key=request.public_key,
        signing_proof=request.binding + request.signature,
    )
    assert store.enrol(member, secret_hash, 1.0)


def names(membership: Membership) -> list[str]:
    return sorted(membership.members.members())


# --- the root is here -------------------------------------------------------------------------------------------------


def test_the_first_start_makes_root_and_keys_certifies_the_coordinator_and_says_so(
    tmp_path: Path, store: Store
) -> None:
    membership = open_membership(config(), tmp_path, store)
    assert membership.root_here
    assert membership.describe() == ROOT_HERE
    own = membership.members.coordinator
    assert own is not None
    assert (own.role, own.public_key) == (Role.COORDINATOR, membership.signing_key.public)
    for private in ("root/root.key", "signing/signing.key"):
        assert (tmp_path / private).stat().st_mode & 0o777 == 0o600
    written = (tmp_path / "root" / "members.json").stat().st_ino
    again = open_membership(config(), tmp_path, store)
    assert again.members == membership.members
    assert (tmp_path / "root" / "members.json").stat().st_ino == written, "nothing has changed"
    assert again.signing_key == membership.signing_key


def test_who_enrols_is_certified_at_once_and_whoever_listens_is_told(tmp_path: Path, store: Store) -> None:
    membership = open_membership(config(), tmp_path, store)
    told: list[int] = []
    membership.on_growth = lambda: told.append(membership.members.count)
    for name in ("north", "south"):
        enrol(store, name)
        membership.settle()
    assert names(membership) == ["coordinator", "north", "south"]
    assert told == [2, 3]
    membership.settle()
    assert told == [2, 3]
    assert membership.pending() == []
    assert store.member_entries() == list(membership.members.entries)
    # The root's folder can be moved away whole: its list is complete.
    assert read_members(tmp_path / "root" / "members.json") == membership.members


def test_a_new_key_takes_the_place_of_the_old_and_a_revoked_member_goes(tmp_path: Path, store: Store) -> None:
    membership = open_membership(config(), tmp_path, store)
    enrol(store, "north")
    membership.settle()
    enrol(store, "north", KEYS["twin"])
    membership.settle()
    assert membership.members.members()["north"].public_key == KEYS["twin"].public
    assert [str(entry.action) for entry in membership.members.entries] == ["add", "add", "remove", "add"]
    store.revoke("north", "left", 2.0)
    membership.settle()
    assert names(membership) == ["coordinator"]


def test_a_crash_between_enrolment_and_certification_is_made_good_at_the_next_start(
    tmp_path: Path, store: Store
) -> None:
    open_membership(config(), tmp_path, store)
    enrol(store, "north")
    assert names(open_membership(config(), tmp_path, store)) == ["coordinator", "north"]


def test_a_roster_of_an_earlier_release_has_no_signing_keys_and_waits_for_new_tokens(
    tmp_path: Path, store: Store
) -> None:
    store.invite(Invitation(name="old", secret_hash=b"s" * 32, expires_s=9e9))
    store.enrol(Member(name="old", state=MemberState.ENROLLED, certificate_pem=b"PEM"), b"s" * 32, 1.0)
    membership = open_membership(config(), tmp_path, store)
    assert names(membership) == ["coordinator"]
    assert membership.pending() == []


def test_a_copy_of_the_list_that_cannot_be_written_holds_nobody_up(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    membership = open_membership(config(), tmp_path, store)
    told: list[int] = []
    membership.on_growth = lambda: told.append(membership.members.count)
    shutil.move(tmp_path / "root", tmp_path / "gone")
    enrol(store, "north")
    membership.settle()
    assert names(membership) == ["coordinator", "north"]
    assert told == [2]
    assert "can't be written" in caplog.text


# --- newcomers --------------------------------------------------------------------------------------------------------


def test_a_newcomer_proves_its_key_and_brings_one_that_nobody_has(tmp_path: Path, store: Store) -> None:
    membership = open_membership(config(), tmp_path, store)
    membership.check_newcomer(wish("north"))
    enrol(store, "north")
    membership.check_newcomer(wish("north"))
    own = MemberRequest.make(membership.signing_key, federation="demo", role=Role.PARTICIPANT, name="west")
    for request, code in (
        (wish("twin", KEYS["north"]), "member-duplicate"),
        (own, "member-duplicate"),
        (dataclasses.replace(wish("south"), name="west"), "member-proof"),
        (dataclasses.replace(wish("south"), public_key=KEYS["west"].public), "member-proof"),
        (dataclasses.replace(wish("south", federation="other"), federation="demo"), "member-proof"),
        (dataclasses.replace(wish("south"), public_key=b"short"), "member-key-invalid"),
    ):
        with pytest.raises(RefusedError) as refusal:
            membership.check_newcomer(request)
        assert refusal.value.code == code


# --- the root is apart ------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> FederationRoot:
    return make_root(tmp_path / "elsewhere", "demo")


def test_with_a_root_apart_everyone_waits_and_the_state_folder_has_no_root(
    tmp_path: Path, store: Store, root: FederationRoot
) -> None:
    membership = open_membership(config(root.public.hex()), tmp_path, store)
    enrol(store, "north")
    membership.settle()
    assert not membership.root_here
    assert not (tmp_path / "root").exists()
    assert names(membership) == []
    pending = membership.pending()
    assert [(item.name, item.role) for item in pending] == [
        (COORDINATOR_NAME, Role.COORDINATOR),
        ("north", Role.PARTICIPANT),
    ]
    for request in pending:
        request.check()
    text = membership.describe()
    assert key_fingerprint(root.public) in text
    assert "coordinator, north" in text
    assert "members --pending --out" in text


def test_what_the_root_has_signed_is_adopted_and_who_is_revoked_is_named(
    tmp_path: Path, store: Store, root: FederationRoot, caplog: pytest.LogCaptureFixture
) -> None:
    membership = open_membership(config(root.public.hex()), tmp_path, store)
    enrol(store, "north")
    chain = root.empty()
    for item in membership.pending():
        chain = chain.extend([root.add(chain, item.role, item.name, item.public_key)])
    assert membership.adopt(chain.entries, chain.end) == 2
    assert membership.adopt(chain.entries, chain.end) == 0
    assert names(membership) == ["coordinator", "north"]
    assert "Not certified" not in membership.describe()
    store.revoke("north", "left", 2.0)
    membership.settle()
    assert names(membership) == ["coordinator", "north"]
    assert "Revoked, but still in the member list: north" in membership.describe()
    stranger = chain.extend([root.add(chain, Role.PARTICIPANT, "stranger", KEYS["west"].public)])
    assert membership.adopt(stranger.entries, stranger.end) == 1
    assert "nobody has enrolled with here" in caplog.text


def test_a_list_of_another_root_or_a_forked_one_is_not_adopted(
    tmp_path: Path, store: Store, root: FederationRoot
) -> None:
    membership = open_membership(config(root.public.hex()), tmp_path, store)
    first = root.empty().extend([root.add(root.empty(), Role.PARTICIPANT, "north", KEYS["north"].public)])
    membership.adopt(first.entries, first.end)
    operator = FederationRoot("demo", SigningKey(b"o" * 32))
    fork = root.empty().extend([root.add(root.empty(), Role.PARTICIPANT, "south", KEYS["south"].public)])
    sybil = operator.empty().extend([operator.add(operator.empty(), Role.PARTICIPANT, "s", KEYS["west"].public)])
    for chain in (fork, root.empty(), sybil):
        with pytest.raises(RefusedError) as refusal:
            membership.adopt(chain.entries, chain.end)
        assert refusal.value.code == "members-fork"
    assert store.member_entries() == list(first.entries)


# --- what can't be so -------------------------------------------------------------------------------------------------


def test_a_root_is_never_exchanged_under_a_federation_that_has_begun(
    tmp_path: Path, store: Store, root: FederationRoot
) -> None:
    open_membership(config(), tmp_path, store)
    with pytest.raises(ConfigError, match="root") as refusal:
        open_membership(config(root.public.hex()), tmp_path, store)
    assert "all sites to join again" in refusal.value.hint


def test_a_root_that_was_moved_away_must_be_named_and_can_be_used_there(tmp_path: Path, store: Store) -> None:
    before = open_membership(config(), tmp_path, store)
    public = before.members.root.hex()
    with_copy = open_membership(config(public), tmp_path, store)
    assert not with_copy.root_here
    assert "still on this machine" in with_copy.describe()
    shutil.move(tmp_path / "root", tmp_path / "vault")
    with pytest.raises(ConfigError, match="not in") as refusal:
        open_membership(config(), tmp_path, store)
    assert public in refusal.value.hint
    apart = open_membership(config(public), tmp_path, store)
    assert "still on this machine" not in apart.describe()
    enrol(store, "north")
    moved, chain = load_root(tmp_path / "vault", "demo"), read_members(tmp_path / "vault" / "members.json")
    chain = chain.extend([moved.add(chain, Role.PARTICIPANT, "north", KEYS["north"].public)])
    assert apart.adopt(chain.entries, chain.end) == 1
    assert apart.pending() == []


def test_a_root_in_the_configuration_that_is_no_key_is_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(ConfigError, match="identifies"):
        open_membership(config("00" * 32), tmp_path, store)
    with pytest.raises(ValueError, match="pattern"):
        config("nonsense")


def test_a_stored_list_that_is_not_the_roots_is_named(tmp_path: Path, store: Store, root: FederationRoot) -> None:
    operator = FederationRoot("demo", SigningKey(b"o" * 32))
    store.append_member_entries([operator.add(operator.empty(), Role.PARTICIPANT, "s", KEYS["west"].public)])
    with pytest.raises(DataError, match="isn't signed by the federation root"):
        open_membership(config(root.public.hex()), tmp_path, store)
