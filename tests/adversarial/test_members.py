"""A coordinator that would like members of its own, and newcomers that would like another's key: all over real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import grpc
import pytest

from coordinator.serving import operator_credentials
from participant.daemon import Daemon
from participant.joining import certified, join, pinned_by
from participant.ledger import BudgetLedger, ledger_lines, open_ledger
from participant.site import BLOBS, CONFIG, JOURNAL, LEDGER, Site
from participant.store import ParticipantStore
from participant.work import Prepared, Workbench
from privacy.accounting import Unit
from privacy.secure_aggregation.identities import COORDINATOR_NAME, MemberRequest, Role
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import FederationRoot, MemberEntry, MemberList, signed_message
from protos import control_pb2, control_pb2_grpc, enrolment_pb2, enrolment_pb2_grpc, session_pb2_grpc
from protos import session_pb2 as pb
from tests.adversarial.puppets import Puppet, Stage, stage
from wire import (
    PROTOCOL_VERSION,
    BlobStore,
    ConfigError,
    FedloomError,
    RefusedError,
    Token,
    client_credentials,
    connect,
    error_from,
    load_root,
    make_csr,
    make_key_and_csr,
    newcomer_credentials,
    pack_members,
)

SYBIL = SigningKey(b"sybil".ljust(32, b"."))


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as running:
        yield running


@pytest.fixture
async def apart(tmp_path: Path) -> AsyncIterator[tuple[Stage, FederationRoot]]:
    """A stage whose root is not on the coordinator's machine."""
    root = FederationRoot("stage", SigningKey(b"r" * 32))
    async with stage(tmp_path, root.public.hex()) as running:
        yield running, root


def members(live: Stage) -> MemberList:
    return live.running.membership.members


async def refusals(live: Stage) -> dict[str, int]:
    return dict((await live.status()).refusals)


# --- newcomers --------------------------------------------------------------------------------------------------------


async def enrol(live: Stage, token: Token, **changes: object) -> FedloomError | None:
    """Enrol by hand with something changed in the request; the refusal, if there is one."""
    key = SigningKey.generate()
    _, csr = make_key_and_csr(token.name)
    binding = hashlib.sha256(csr).digest()
    wish = MemberRequest.make(key, federation="stage", role=Role.PARTICIPANT, name=token.name, binding=binding)
    fields = {
        "protocol_version": PROTOCOL_VERSION,
        "name": token.name,
        "secret": token.secret,
        "csr_pem": csr,
        "signing_key": wish.public_key,
        "signing_proof": wish.signature,
        **changes,
    }
    ca_pem = operator_credentials(live.state)[1].ca_pem
    async with connect(token.address, newcomer_credentials(ca_pem), "stage") as channel:
        try:
            await enrolment_pb2_grpc.EnrolmentStub(channel).Enrol(enrolment_pb2.EnrolRequest(**fields))  # type: ignore[arg-type]
        except grpc.aio.AioRpcError as error:
            return error_from(error)
    return None


def proof(key: SigningKey, name: str, federation: str = "stage", role: Role = Role.PARTICIPANT) -> bytes:
    return MemberRequest.make(key, federation=federation, role=role, name=name, binding=b"b" * 32).signature


OTHER = SigningKey(b"o" * 32)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"signing_key": OTHER.public}, "member-proof"),
        ({"signing_key": OTHER.public, "signing_proof": proof(OTHER, "a")}, "member-proof"),
        ({"signing_key": OTHER.public, "signing_proof": proof(OTHER, "b")}, "member-proof"),
        ({"signing_key": OTHER.public, "signing_proof": proof(OTHER, "a", "elsewhere")}, "member-proof"),
        ({"signing_proof": b""}, "member-proof"),
        ({"signing_key": b"", "signing_proof": b""}, "member-key-invalid"),
        ({"signing_key": b"k" * 31}, "member-key-invalid"),
        (
            {"signing_key": (1).to_bytes(32, "little"), "signing_proof": (1).to_bytes(64, "little")},
            "member-key-invalid",
        ),
    ],
)
async def test_a_signing_key_without_proof_of_possession_is_refused_and_uses_no_token_up(
    live: Stage, changes: dict[str, object], code: str
) -> None:
    token = await live.invite("a")
    before = members(live)
    error = await enrol(live, token, **changes)
    assert error is not None
    assert error.code == code
    assert (await refusals(live))[code] == 1
    assert members(live) == before
    assert await enrol(live, token) is None
    assert members(live).participant("a") is not None


async def test_the_key_of_another_member_is_refused_even_with_its_proof(live: Stage) -> None:
    site = await live.site("a")
    for key in (site.signing_key, live.running.membership.signing_key):
        _, csr = make_key_and_csr("b")
        binding = hashlib.sha256(csr).digest()
        wish = MemberRequest.make(key, federation="stage", role=Role.PARTICIPANT, name="b", binding=binding)
        error = await enrol(
            live,
            await live.invite("b"),
            csr_pem=csr,
            signing_key=wish.public_key,
            signing_proof=wish.signature,
        )
        assert error is not None
        assert error.code == "member-duplicate"


async def test_nobody_is_invited_under_the_coordinators_name(live: Stage) -> None:
    async with live.operator() as control:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await control.Invite(control_pb2.InviteRequest(names=["a", COORDINATOR_NAME]))
    assert "coordinator" in error_from(failure.value).message


async def test_renewal_keeps_the_signing_key_and_a_new_enrolment_replaces_it(live: Stage) -> None:
    site = await live.site("a")
    before = members(live)
    async with connect(site.config.session_address, client_credentials(site.credentials), "stage") as channel:
        csr = make_csr(site.credentials.key_pem, "a")
        await session_pb2_grpc.SessionStub(channel).Renew(pb.RenewRequest(csr_pem=csr))
    assert members(live) == before
    known = live.running.daemon.store.member("a")
    assert known is not None
    assert known.signing_key == site.signing_key.public
    ledger = open_ledger(site)
    ledger.open_dataset("scans", records=1_000, unit=Unit.RECORD, epsilon=4.0, delta=1e-5)
    ledger.close()
    with pytest.raises(ConfigError, match="holds the privacy ledger of a"):
        await join(await live.invite("b"), site.folder, data="nothing", replace=True)
    again = await join(await live.invite("a"), site.folder, data="nothing", replace=True)
    assert again.signing_key != site.signing_key
    assert members(live).members()["a"].public_key == again.signing_key.public
    assert pinned_by(again) == members(live)
    assert certified(again, pinned_by(again))
    assert ledger_lines(again) == 2, "the budget goes on under the new key"


# --- the root that a site pins ----------------------------------------------------------------------------------------


async def test_a_site_that_was_told_another_root_refuses_before_it_shows_its_token(live: Stage) -> None:
    token = await live.invite("a")
    with pytest.raises(RefusedError, match="was told") as refusal:
        await join(token, live.folder / "a", data="nothing", root=OTHER.public)
    assert refusal.value.code == "root-mismatch"
    assert not (live.folder / "a").exists()
    site = await join(token, live.folder / "a", data="nothing", root=token.root)
    assert site.root == token.root


async def test_a_token_whose_root_did_not_sign_the_member_list_joins_nobody(live: Stage) -> None:
    token = dataclasses.replace(await live.invite("a"), root=OTHER.public)
    with pytest.raises(RefusedError) as refusal:
        await join(token, live.folder / "a", data="nothing")
    assert refusal.value.code == "members-signature"
    assert not (live.folder / "a" / CONFIG).exists()
    weak = dataclasses.replace(await live.invite("b"), root=bytes(32))
    with pytest.raises(RefusedError) as refusal:
        await join(weak, live.folder / "b", data="nothing")
    assert refusal.value.code == "member-key-invalid"


async def test_joining_anew_under_another_root_needs_the_consortiums_word(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with stage(tmp_path / "one") as one:
        first = await join(await one.invite("a"), home, data="nothing")
    async with stage(tmp_path / "two") as two:
        token = await two.invite("a")
        with pytest.raises(ConfigError, match="belongs to a"):
            await join(token, home, data="nothing")
        with pytest.raises(RefusedError, match="has pinned") as refusal:
            await join(token, home, data="nothing", replace=True)
        assert refusal.value.code == "root-mismatch"
        assert Site.load(home) == first
        assert first.root == pinned_by(first).root
        site = await join(token, home, data="nothing", root=token.root, replace=True)
        assert pinned_by(site) == members(two)


# --- what a lying coordinator shows in a session ----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def daemon(live: Stage, site: Site, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Daemon]:
    """A real participant; only its model is a dummy."""
    manifest = bytes.fromhex(live.plan.initial.manifest_hash)
    monkeypatch.setattr(Workbench, "prepare", lambda self, learning, run: Prepared(manifest_hash=manifest, examples=10))
    store = ParticipantStore(site.folder / JOURNAL)
    ledger = BudgetLedger(site.folder / LEDGER, site.signing_key, site=site.name)
    running = Daemon(site, store, BlobStore(site.folder / BLOBS), ledger, software="test")
    try:
        yield running
    finally:
        await running.close()
        ledger.close()
        store.close()


def resigned(entry: MemberEntry, signer: SigningKey, **changes: object) -> MemberEntry:
    changed = dataclasses.replace(entry, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(changed, signature=signer.sign(signed_message(changed)))


def with_sybil(chain: MemberList, signer: SigningKey) -> list[MemberEntry]:
    """The list with a member behind it that ``signer`` made up."""
    forged = resigned(
        chain.entries[-1], signer, index=chain.count, previous=chain.head, name="sybil", public_key=SYBIL.public
    )
    return [*chain.entries, forged]


def rewritten(chain: MemberList, root: FederationRoot) -> list[MemberEntry]:
    """The same members, added in another order: two histories that only a root can sign."""
    other = root.empty()
    first, *rest = chain.entries
    for entry in [first, *reversed(rest)]:
        other = other.extend([root.add(other, entry.role, entry.name, entry.public_key)])
    return list(other.entries)


@dataclasses.dataclass
class Liar:
    """What the hub takes for the federation: the list is shown as it stands, though nobody has verified it."""

    members: MemberList
    signing_key: SigningKey

    @classmethod
    def showing(cls, entries: Sequence[MemberEntry]) -> Liar:
        return cls(MemberList("stage", OTHER.public, tuple(entries), {}), OTHER)


Lie = Callable[[Stage, FederationRoot], Sequence[MemberEntry]]

LIES: dict[str, tuple[Lie, str]] = {
    "a Sybil that the coordinator signed": (
        lambda live, root: with_sybil(members(live), live.running.membership.signing_key),
        "members-signature",
    ),
    "a Sybil that signed itself": (lambda live, root: with_sybil(members(live), SYBIL), "members-signature"),
    "a Sybil with another entry's signature": (
        lambda live, root: [
            *members(live).entries,
            dataclasses.replace(with_sybil(members(live), SYBIL)[-1], signature=members(live).entries[-1].signature),
        ],
        "members-signature",
    ),
    "a history of its own root": (
        lambda live, root: rewritten(members(live), FederationRoot("stage", OTHER)),
        "members-fork",
    ),
    "another history of the true root": (lambda live, root: rewritten(members(live), root), "members-fork"),
    "a shortened list": (lambda live, root: members(live).entries[:-1], "members-fork"),
    "no list at all": (lambda live, root: [], "members-fork"),
    "a gap": (
        lambda live, root: [
            *members(live).entries,
            resigned(with_sybil(members(live), root.key)[-1], root.key, index=members(live).count + 1),
        ],
        "members-gap",
    ),
    "an entry that continues another history": (
        lambda live, root: [
            *members(live).entries,
            resigned(with_sybil(members(live), root.key)[-1], root.key, previous=b"p" * 32),
        ],
        "members-fork",
    ),
    "a second coordinator": (
        lambda live, root: [
            *members(live).entries,
            resigned(with_sybil(members(live), root.key)[-1], root.key, name=COORDINATOR_NAME, role=Role.COORDINATOR),
        ],
        "member-duplicate",
    ),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_participant_leaves_a_coordinator_that_lies_about_the_members(
    live: Stage, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    await live.site("b")
    site = await live.site("a")
    pinned = pinned_by(site)
    assert pinned == members(live)
    make, code = LIES[lie]
    hub = await live.running.daemon.opened()
    hub._federation = Liar.showing(make(live, load_root(live.state / "root", "stage")))
    async with daemon(live, site, monkeypatch) as participant:
        with pytest.raises(RefusedError) as refusal:
            await asyncio.wait_for(participant.run(once=True), 20)
    assert refusal.value.code == code
    assert pinned_by(site) == pinned


async def test_a_sybil_that_comes_in_the_middle_of_a_session_ends_it(
    live: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await live.site("a")
    hub = await live.running.daemon.opened()
    async with daemon(live, site, monkeypatch) as participant:
        running = asyncio.create_task(participant.run(once=True))
        while participant.connections == 0 or not hub.presence["a"].ready:
            await asyncio.sleep(0.05)
        forged = with_sybil(members(live), live.running.membership.signing_key)
        hub._federation = Liar.showing(forged)
        live.running.daemon.perform(hub.members_grew())
        with pytest.raises(RefusedError) as refusal:
            await asyncio.wait_for(running, 20)
    assert refusal.value.code == "members-signature"
    assert pinned_by(site) == members(live)


# --- what an honest one shows -----------------------------------------------------------------------------------------


async def listen(puppet: Puppet, known: int = 0) -> pb.Members:
    await puppet.say(check_in=pb.CheckIn(protocol_version=PROTOCOL_VERSION, software="puppet", members=known))
    return await puppet.hear("members")  # type: ignore[no-any-return]


async def test_connected_participants_are_shown_who_joins_and_who_is_revoked(live: Stage) -> None:
    site = await live.site("a")
    async with live.puppet(site) as puppet:
        shown = await listen(puppet, known=2)
        assert (list(shown.entries), shown.total, shown.head) == ([], 2, members(live).head)
        await live.site("b")
        joined = await puppet.hear("members")
        assert (len(joined.entries), joined.total) == (1, 3)
        async with live.operator() as control:
            await control.Revoke(control_pb2.RevokeRequest(name="b", reason="left"))
        left = await puppet.hear("members")
        chain = pinned_by(site).extend(members(live).entries[2:])
        assert (left.total, left.head) == (4, chain.head)
        assert sorted(chain.members()) == ["a", "coordinator"]


async def test_with_a_root_apart_the_coordinator_certifies_nobody_and_carries_what_the_root_signs(
    apart: tuple[Stage, FederationRoot],
) -> None:
    live, root = apart
    site = await live.site("a")
    assert not certified(site, pinned_by(site))
    assert "kept apart" in (await live.status()).root
    async with live.operator() as control, live.puppet(site) as puppet:
        assert (await listen(puppet)).total == 0
        reply = await control.GetMembers(control_pb2.MembersRequest())
        assert not reply.root_here
        assert [item.name for item in reply.pending] == [COORDINATOR_NAME, "a"]
        chain = root.empty()
        for item in reply.pending:
            chain = chain.extend([root.add(chain, Role(item.role), item.name, item.public_key)])
        request = control_pb2.ImportMembersRequest(
            entries=pack_members(chain.entries), total=chain.count, head=chain.head
        )
        imported = await control.ImportMembers(request)
        assert (imported.added, imported.total, list(imported.pending)) == (2, 2, [])
        shown = await puppet.hear("members")
        assert (len(shown.entries), shown.head) == (2, chain.head)
    assert members(live) == chain


async def test_the_operator_cannot_import_members_that_the_root_did_not_sign(
    apart: tuple[Stage, FederationRoot],
) -> None:
    live, root = apart
    chain = root.empty().extend([root.add(root.empty(), Role.PARTICIPANT, "a", OTHER.public)])
    forged = with_sybil(chain, live.running.membership.signing_key)
    async with live.operator() as control:
        for entries, code in (
            (forged, "members-signature"),
            ([dataclasses.replace(chain.entries[0], signature=bytes(64))], "members-signature"),
            ([chain.entries[0], chain.entries[0], forged[-1]], "members-signature"),
            (forged[1:], "members-gap"),
        ):
            request = control_pb2.ImportMembersRequest(entries=pack_members(entries), total=9, head=b"h" * 32)
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await control.ImportMembers(request)
            assert error_from(failure.value).code == code
    assert members(live).count == 0


async def test_the_member_list_is_the_operators_to_ask_for_and_to_import(live: Stage) -> None:
    site = await live.site("a")
    async with connect(site.config.session_address, client_credentials(site.credentials), "stage") as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        for call in (
            stub.GetMembers(control_pb2.MembersRequest()),
            stub.ImportMembers(control_pb2.ImportMembersRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await call
            assert error_from(failure.value).code == "certificate-role"


async def test_an_honest_participant_pins_what_it_is_shown_and_stays(
    live: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await live.site("a")
    hub = await live.running.daemon.opened()
    async with daemon(live, site, monkeypatch) as participant:
        running = asyncio.create_task(participant.run(once=True))
        while "a" not in hub.presence or not hub.presence["a"].ready:
            await asyncio.sleep(0.05)
        await live.site("b")
        while pinned_by(site) != members(live):
            await asyncio.sleep(0.05)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert sorted(pinned_by(site).members()) == ["a", "b", "coordinator"]
