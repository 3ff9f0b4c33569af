"""What a participant checks in the coordinator's statements, rule by rule."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import pytest
from secure_world import World

from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.checks import (
    FLOOR_SETTING,
    check_evidence,
    check_quorum,
    enough,
    read_acceptances,
    read_parcels,
    read_survivors,
)
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.errors import Refusal
from privacy.secure_aggregation.hand import Hand, Unreadable
from privacy.secure_aggregation.members import Role
from privacy.secure_aggregation.memory import Step
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.sharing import seed_commitment
from privacy.secure_aggregation.statements import (
    ACCEPTANCES,
    PARCELS,
    QUORUM,
    UPLOADS,
    Accept,
    Acceptance,
    Delivery,
    Evidence,
    Freeze,
    Plan,
    Quorum,
    Refused,
    Signed,
    Survived,
    Survivors,
    Upload,
    UploadReceipt,
    kind_of,
    positions_bytes,
)

RETIRED = ((2, (b"1" * 32,)),)


@functools.cache
def world() -> World:
    """Five participants whose acceptances are in, and nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prekeys, "STOCK", 2)
        patch.setattr(prekeys, "LOW", 1)
        found = World(5, dimension=3)
    found.hold = {"delivery"}
    found.begin()
    found.settle()
    return found


def context() -> RoundContext:
    found = world().attempt
    assert found is not None
    return found.context


@functools.cache
def delivery() -> Delivery:
    """For site-000."""
    return Delivery.parse(world().held[0][1].body)


def hand() -> Hand:
    found = world().sites["site-000"].machine._hand
    assert found is not None
    return found


@functools.cache
def accepts() -> dict[int, Accept]:
    found = [Accept.parse(item.body) for _, _, item in world().sent if kind_of(item.body) == "accept"]
    return {item.position: item for item in found}


def refused(code: str, check: Callable[[], object], *words: str, setting: str = "") -> None:
    with pytest.raises(Refusal) as caught:
        check()
    assert (caught.value.code, caught.value.setting) == (code, setting)
    assert all(word in caught.value.message for word in words)


def key(position: int):  # type: ignore[no-untyped-def]
    return world().sites[f"site-00{position}"].key


def test_a_set_below_the_floor_is_refused_with_the_numbers() -> None:
    enough(4, 4, "uploaded")
    refused("cohort-floor", lambda: enough(3, 4, "uploaded"), "3", "4", "uploaded", setting=FLOOR_SETTING)


# ---- acceptances -----------------------------------------------------------------------------------------------------


def acceptances(*rows: tuple[bytes, ...], retired: object = ()) -> Callable[[], object]:
    changed = dataclasses.replace(delivery(), acceptances=ACCEPTANCES.write(rows), retired=retired)
    return lambda: read_acceptances(changed, context(), world().members)


def accepted_rows() -> list[tuple[bytes, ...]]:
    return ACCEPTANCES.read(delivery().acceptances)


def acceptance_row(position: int, /, **changes: object) -> tuple[bytes, ...]:
    """An acceptance with other content, and a signature of its own maker that fits."""
    item = dataclasses.replace(accepts()[position].acceptance(), **changes)  # type: ignore[arg-type]
    signature = item.signed(key(position)).signature
    return position.to_bytes(2, "big"), item.beacon, item.commitment, signature


def test_acceptances_in_order_are_read_as_they_were_signed() -> None:
    found = read_acceptances(delivery(), context(), world().members)
    assert found == {position: accept.acceptance() for position, accept in accepts().items()}
    assert list(found) == sorted(found)


def test_an_acceptance_that_is_not_signed_for_this_very_context_is_refused() -> None:
    rows = accepted_rows()
    for row in (
        (*rows[2][:3], rows[1][3]),
        (*rows[2][:3], bytes(64)),
        (rows[2][0], rows[2][1], bytes(32), rows[2][3]),
        acceptance_row(2, context=b"x" * 32),
        acceptance_row(2, position=3),
        acceptance_row(2, retired=(b"1" * 32,)),  # signed, but not shown
    ):
        refused("acceptance-signature", acceptances(*rows[:2], row, *rows[3:]), "site-002")
    # What is shown of the retired attempts is under the signature, too.
    refused("acceptance-signature", acceptances(*rows, retired=RETIRED), "site-002")
    told = acceptances(*rows[:2], acceptance_row(2, retired=(b"1" * 32,)), *rows[3:], retired=RETIRED)()
    assert told[2].retired == (b"1" * 32,)  # type: ignore[index]


def test_another_beacon_than_the_prekey_committed_to_is_refused() -> None:
    rows = accepted_rows()
    refused("beacon-mismatch", acceptances(*rows[:2], acceptance_row(2, beacon=bytes(32)), *rows[3:]), "site-002")


def test_positions_twice_or_outside_the_roster_are_refused() -> None:
    rows = accepted_rows()
    refused("roster-duplicate", acceptances(*rows, rows[0]))
    refused("roster-duplicate", acceptances(*rows, ((5).to_bytes(2, "big"), *rows[0][1:])))
    refused("roster-duplicate", acceptances(*rows, (b"\xff\xff", *rows[0][1:])))


def test_too_few_acceptances_are_refused() -> None:
    assert len(acceptances(*accepted_rows()[:4])()) == 4  # type: ignore[arg-type]
    refused("cohort-floor", acceptances(*accepted_rows()[:3]), setting=FLOOR_SETTING)
    refused("cohort-floor", acceptances(), setting=FLOOR_SETTING)


# ---- parcels ---------------------------------------------------------------------------------------------------------


def parcels(rows: list[tuple[bytes, ...]], mine: Hand | None = None) -> object:
    found = {position: accept.acceptance() for position, accept in sorted(accepts().items())}
    return read_parcels(dataclasses.replace(delivery(), parcels=PARCELS.write(rows)), mine or hand(), found)


def test_every_parcel_is_opened_and_the_first_that_cannot_be_is_named() -> None:
    rows = PARCELS.read(delivery().parcels)
    opened = parcels(rows)
    assert isinstance(opened, dict) and sorted(opened) == list(range(5))
    bad = parcels([*rows[:3], (bytes(82), rows[3][1]), (bytes(82), rows[4][1])])
    assert isinstance(bad, Unreadable)
    assert (bad.dealer, bad.sealed, bad.commitment) == (3, bytes(82), rows[3][1])
    assert bad.key.hex() not in repr(bad)


def test_a_missing_parcel_is_refused_and_a_participant_that_keeps_none_needs_none() -> None:
    rows = PARCELS.read(delivery().parcels)
    refused("parcels-missing", lambda: parcels(rows[:4]))
    refused("parcels-missing", lambda: parcels([*rows, rows[0]]))
    refused("parcels-missing", lambda: parcels([]))
    assert parcels([], dataclasses.replace(hand(), share_key=None)) == {}


def evidence(**changes: object) -> Evidence:
    assert world().attempt is not None
    return dataclasses.replace(world().attempt._book.evidence(3), **changes)  # type: ignore[union-attr, arg-type]


def spoilt_accept(position: int = 3, /, **changes: object) -> Evidence:
    """Evidence of another acceptance that its maker has signed."""
    accept = dataclasses.replace(accepts()[position], **changes)  # type: ignore[arg-type]
    signed = accept.signed(key(position))
    return evidence(accept=signed.body, signature=signed.signature)


def test_a_key_is_shown_only_for_the_very_bytes_that_the_dealer_signed() -> None:
    rows = PARCELS.read(accepts()[3].parcels)
    bad = PARCELS.write([(bytes(82), rows[0][1]), *rows[1:]])
    doubted = Unreadable(3, bytes(82), rows[0][1], b"k" * 32)
    complaint = check_evidence(spoilt_accept(parcels=bad), hand(), doubted, world().members)
    assert (complaint.offender, complaint.key) == (3, b"k" * 32)
    short = PARCELS.write(PARCELS.read(bad)[:4])
    for proof in (
        evidence(),  # the dealer signed something that can be read
        spoilt_accept(parcels=short),
        spoilt_accept(parcels=bad, context=b"x" * 32),
        spoilt_accept(parcels=bad, position=2),
        spoilt_accept(2, parcels=bad),  # another participant's
        evidence(dealer=2),
        evidence(signature=bytes(64)),
        evidence(accept=b"", signature=bytes(64)),
        dataclasses.replace(spoilt_accept(parcels=bad), dealer=10**6),
    ):
        refused(
            "parcel-foreign", lambda proof=proof: check_evidence(proof, hand(), doubted, world().members), "site-003"
        )


def test_evidence_without_a_doubt_is_ignored() -> None:
    step = world().whisper("site-000", evidence())
    assert (step.refusal, step.answers, step.changes) == (None, [], [])


# ---- survivors and quorum --------------------------------------------------------------------------------------------

ALL = frozenset(range(5))


def upload_row(position: int, /, signer: int | None = None, **changes: object) -> tuple[bytes, ...]:
    sets = (context().set_hash(ALL), context().set_hash(ALL))
    upload = dataclasses.replace(Upload(context().hash, position, *sets, bytes([position]) * 32), **changes)
    signed = upload.signed(key(position if signer is None else signer))
    return position.to_bytes(2, "big"), bytes([position]) * 32, signed.signature


def survivors(*rows: tuple[bytes, ...], frozen: frozenset[int] = ALL) -> Callable[[], dict[int, bytes]]:
    opened = Survivors(context().hash, UPLOADS.write(rows))
    return lambda: read_survivors(opened, context(), world().members, ALL, frozen)


def test_survivors_are_read_with_their_digests() -> None:
    rows = [upload_row(item) for item in range(5)]
    assert survivors(*rows)() == {item: bytes([item]) * 32 for item in range(5)}
    assert sorted(survivors(*rows[1:])()) == [1, 2, 3, 4]


def test_an_upload_for_other_sets_another_attempt_or_by_someone_else_is_refused() -> None:
    rows = [upload_row(item) for item in range(5)]
    other = context().set_hash(frozenset(range(4)))
    for row in (
        upload_row(2, accepted_hash=other),
        upload_row(2, frozen_hash=other),
        upload_row(2, context=b"x" * 32),
        upload_row(2, position=3),
        upload_row(2, digest=b"other".ljust(32)),
        upload_row(2, signer=3),
    ):
        refused("upload-signature", survivors(*rows[:2], row, *rows[3:]), "site-002")
    refused("upload-signature", survivors(*rows[:4], frozen=frozenset(range(4))))
    refused("survivor-foreign", survivors(rows[4], *rows[:4], frozen=frozenset(range(4))))
    refused("roster-duplicate", survivors(*rows, rows[4]))
    refused("cohort-floor", survivors(*rows[:3]), setting=FLOOR_SETTING)


def word() -> Survived:
    return Survived(context().hash, context().set_hash(ALL), context().set_hash(ALL))


def word_row(position: int, /, signer: int | None = None, **changes: object) -> tuple[bytes, ...]:
    said = dataclasses.replace(word(), **changes)  # type: ignore[arg-type]
    return position.to_bytes(2, "big"), said.signed(key(position if signer is None else signer)).signature


def quorum(*rows: tuple[bytes, ...]) -> Callable[[], None]:
    return lambda: check_quorum(Quorum(context().hash, QUORUM.write(rows)), word(), context(), world().members)


def test_a_quorum_is_so_many_distinct_keepers_words_on_this_very_set() -> None:
    rows = [word_row(item) for item in range(5)]
    quorum(*rows[:4])()
    quorum(*rows[1:])()
    quorum(*reversed(rows))()
    refused("quorum-short", quorum(*rows[:3]), "3", "4")
    refused("quorum-short", quorum())
    refused("quorum-foreign", quorum(*rows[:3], rows[0]))
    refused("quorum-foreign", quorum(*rows[:4], (b"\0\5", bytes(64))))
    for row in (
        word_row(2, signer=3),
        word_row(2, survivors_hash=bytes(32)),
        word_row(2, frozen_hash=bytes(32)),
        word_row(2, context=bytes(32)),
    ):
        refused("quorum-signature", quorum(*rows[:2], row, rows[3]), "site-002")


def test_commitments_in_the_acceptances_are_to_fresh_seeds() -> None:
    commitments = {item.commitment for item in accepts().values()}
    assert len(commitments) == 5
    seed = hand().seed
    assert seed is not None
    assert accepts()[0].commitment == seed_commitment(context().hash, 0, seed)
    assert isinstance(accepts()[0].acceptance(), Acceptance)


# ---- time and place --------------------------------------------------------------------------------------------------


def stopped(kind: str, count: int = 4) -> tuple[World, dict[str, Signed]]:
    """A world that stops before the coordinator's statements of this kind; each participant's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prekeys, "STOCK", 3)
        patch.setattr(prekeys, "LOW", 1)
        found = World(count, dimension=3)
    found.hold = {kind}
    found.run()
    found.deaf = True
    return found, dict(found.held)


@pytest.mark.parametrize("kind", ["delivery", "freeze", "survivors", "quorum"])
def test_nothing_is_answered_after_the_attempts_end_but_news_of_it(kind: str) -> None:
    found, told = stopped(kind)
    assert found.attempt is not None
    found.now = found.attempt.context.expires_s + 0.5
    step = found.hear("site-000", told["site-000"])
    assert step.refusal is not None and step.refusal.code == "expired"
    assert (step.changes, step.work) == ([], [])
    assert found.whisper("site-000", Refused(found.attempt.context.hash, "stopped", "", "")).refusal is None
    assert found.sites["site-000"].machine._hand is None


def test_the_last_moment_is_not_over() -> None:
    found, told = stopped("survivors")
    assert found.attempt is not None
    found.now = float(found.attempt.context.expires_s)
    assert found.hear("site-000", told["site-000"]).refusal is None


def test_a_coordinator_that_the_root_has_not_certified_is_told_so() -> None:
    found, told = stopped("delivery")
    machine = found.sites["site-000"].machine
    members = found.members
    machine.members = members.extend([found.root.remove(members, "coordinator")])
    assert_code(machine.receive(told["site-000"], found.now), "coordinator-uncertified")
    until = int(found.now) + 5
    entry = found.root.add(machine.members, Role.COORDINATOR, "coordinator", found.key.public, valid_until=until)
    machine.members = machine.members.extend([entry])
    assert machine.receive(told["site-000"], found.now).refusal is None
    assert_code(machine.receive(told["site-000"], found.now + 5), "coordinator-expired")


def assert_code(step: Step, code: str) -> None:
    assert step.refusal is not None and step.refusal.code == code


def test_a_roster_or_an_accepted_set_without_this_site_is_refused() -> None:
    found, told = stopped("delivery", 5)
    others = found.context(found.names[1:], attempt=2, roster_change=1)
    found.sites["site-000"].machine._policy = SitePolicy(min_roster_change=1)
    assert_code(found.whisper("site-000", Plan(others.canonical())), "roster-without-me")
    delivery = Delivery.parse(told["site-000"].body)
    without = dataclasses.replace(
        delivery,
        acceptances=ACCEPTANCES.write(ACCEPTANCES.read(delivery.acceptances)[1:]),
        parcels=PARCELS.write(PARCELS.read(delivery.parcels)[1:]),
    )
    assert_code(found.whisper("site-000", without), "not-accepted")


def test_a_receipt_for_another_upload_is_refused() -> None:
    found, _ = stopped("survivors")
    hand = found.sites["site-000"].machine._hand
    assert hand is not None and hand.digest is not None
    h = hand.context.hash
    for receipt in (UploadReceipt(h, 0, bytes(32)), UploadReceipt(h, 1, hand.digest)):
        assert_code(found.whisper("site-000", receipt), "receipt-foreign")
    before = found.sites["site-000"].store.kinds().count("receipt")
    assert found.whisper("site-000", UploadReceipt(h, 0, hand.digest)).changes == []
    assert before == 1


def test_a_survivor_set_with_another_upload_in_this_sites_name_is_refused() -> None:
    found, told = stopped("survivors")
    site = found.sites["site-000"]
    opened = Survivors.parse(told["site-000"].body)
    rows = UPLOADS.read(opened.uploads)
    context = site.machine._hand.context if site.machine._hand else None
    assert context is not None
    # Signed with this site's own key, as if it had made two: it knows that it hasn't.
    sets = (context.set_hash(range(4)), context.set_hash(range(4)))
    upload = Upload(context.hash, 0, *sets, bytes(32)).signed(site.key)
    other = [(rows[0][0], bytes(32), upload.signature), *rows[1:]]
    assert_code(found.whisper("site-000", dataclasses.replace(opened, uploads=UPLOADS.write(other))), "upload-foreign")


def test_a_frozen_set_may_leave_out_only_who_is_not_ready() -> None:
    found, _ = stopped("freeze", 5)
    assert found.attempt is not None
    h = found.attempt.context.hash
    assert_code(found.whisper("site-000", Freeze(h, positions_bytes([1, 2, 3, 4]))), "freeze-without-me")
    assert_code(found.whisper("site-000", Freeze(h, positions_bytes([0, 1, 2, 3, 9]))), "freeze-foreign")
    found.sites["site-004"].machine._trained = None
    step = found.whisper("site-004", Freeze(h, positions_bytes([0, 1, 2, 3])))
    assert step.refusal is None
    assert [type(item).__name__ for item in step.work] == ["Discard"]
    assert "secrets" not in found.sites["site-004"].store.kinds(h)
