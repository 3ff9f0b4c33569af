"""What the coordinator checks before a participant's word stands in its log, and how it goes on without some."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import pytest
from secure_world import DEADLINE_S, NOW, STEP_S, World

from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.coordinator import Attempt, Decision, Failed, Record, Tell, WakeAt
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.statements import (
    PARCELS,
    RELEASES,
    Accept,
    Complaint,
    Doubt,
    Ready,
    Refused,
    Release,
    Signed,
    Statement,
    Survived,
    Upload,
    UploadReceipt,
    kind_of,
)

NAME = "site-001"


@functools.cache
def without(kind: str, name: str = NAME) -> tuple[World, list[Record], Signed]:
    """Five participants; the records when one's statement of this kind is all that is missing, and the statement."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prekeys, "STOCK", 2)
        patch.setattr(prekeys, "LOW", 1)
        world = World(5, dimension=3)
    kept: list[Signed] = []

    def up(sender: str, statement: Signed) -> list[Signed]:
        if (sender, kind_of(statement.body)) == (name, kind):
            kept.append(statement)
            return []
        # Signing and releasing end with the first quorum: let one keeper more be missing, so that there is none yet.
        return (
            []
            if (sender, kind_of(statement.body)) == ("site-004", kind) and kind in ("survived", "release")
            else [statement]
        )

    world.filter_up = up
    world.run()
    return world, list(world.records), kept[0]


def attempt(kind: str) -> tuple[Attempt, World, Signed]:
    world, records, statement = without(kind)
    assert world.attempt is not None
    found = Attempt(world.attempt.context, world.members, world.key, step_s=STEP_S, deadline_s=DEADLINE_S)
    found.replay(records)
    for name in world.names:
        found.back(name, NOW)
    return found, world, statement


def say(found: Attempt, world: World, statement: Statement, name: str = NAME) -> Decision:
    return found.receive(name, statement.signed(world.sites[name].key), NOW)


def refused(code: str, work: Callable[[], object], *words: str) -> None:
    with pytest.raises(SecureAggregationError) as caught:
        work()
    assert caught.value.code == code
    assert all(word in caught.value.message for word in words)


def recorded(decision: Decision) -> list[str]:
    return [kind_of(record.statement.body) for record in decision.records if record.sender]


KINDS = {
    "accept": "accepting",
    "ready": "training",
    "upload": "uploading",
    "survived": "signing",
    "release": "releasing",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_statement_counts_once_and_only_in_its_phase(kind: str) -> None:
    for phase in KINDS:
        found, _, _ = attempt(phase)
        assert found.phase == KINDS[phase]
        statement = without(kind)[2]
        if phase != kind:
            # Of another world's attempt: it is late or foreign news, and changes nothing.
            assert found.receive(NAME, resigned(statement, kind, phase), NOW).records == []
    found, _, statement = attempt(kind)
    assert recorded(found.receive(NAME, statement, NOW)) == [kind]
    assert found.receive(NAME, statement, NOW).records == []


def resigned(statement: Signed, kind: str, phase: str) -> Signed:
    """A statement of one world said again in another's attempt."""
    found, world, _ = attempt(phase)
    classes = {"accept": Accept, "ready": Ready, "upload": Upload, "survived": Survived, "release": Release}
    opened = classes[kind].parse(statement.body)  # type: ignore[attr-defined]
    moved = dataclasses.replace(opened, context=found.context.hash)
    return moved.signed(world.sites[NAME].key)


def test_what_is_of_another_attempt_changes_nothing() -> None:
    found, world, _ = attempt("ready")
    for statement in (Ready(b"x" * 32), Doubt(b"x" * 32, 0), Complaint(b"x" * 32, 0, bytes(32))):
        assert say(found, world, statement).records == []
        assert say(found, world, statement).effects == []


def test_nothing_is_taken_once_the_attempt_is_over() -> None:
    found, world, statement = attempt("ready")
    found.abort("stopped", "the operator stopped it", NOW)
    assert found.receive(NAME, statement, NOW).records == []
    assert say(found, world, Refused(found.context.hash, "no", "", "no")).records == []
    assert found.back(NAME, NOW).effects == []
    assert found.tick(NOW + 1e6).effects == []
    assert found.abort("again", "again", NOW).effects == []
    assert found.excuse(NAME, "no data", NOW).records == []


# ---- accept ----------------------------------------------------------------------------------------------------------


def test_an_accept_must_hold_together() -> None:
    found, world, statement = attempt("accept")
    true = Accept.parse(statement.body)
    key = world.sites[NAME].key

    def forged(resign: bool = True, **changes: object) -> Callable[[], object]:
        accept = dataclasses.replace(true, **changes)  # type: ignore[arg-type]
        if resign:
            accept = dataclasses.replace(accept, acceptance_signature=accept.acceptance().signed(key).signature)
        return lambda: say(found, world, accept)

    refused("acceptance-signature", forged(resign=False, acceptance_signature=bytes(64)), NAME)
    refused("acceptance-signature", forged(resign=False, commitment=bytes(32)), NAME)
    refused("acceptance-signature", forged(resign=False, retired=(bytes(32),)), NAME)
    refused("acceptance-signature", forged(position=2), NAME)
    refused("beacon-mismatch", forged(beacon=bytes(32)), NAME)
    rows = PARCELS.read(true.parcels)
    for wrong in (rows[:4], [*rows, rows[0]], []):
        refused("parcels-missing", forged(parcels=PARCELS.write(wrong)), NAME)
    assert recorded(found.receive(NAME, statement, NOW)) == ["accept"]


def test_who_was_excused_or_has_refused_cannot_accept_any_more() -> None:
    found, world, statement = attempt("accept")
    say(found, world, Refused(found.context.hash, "roster-change", "", "no"))
    assert "accept" not in recorded(found.receive(NAME, statement, NOW))


# ---- upload ----------------------------------------------------------------------------------------------------------


def test_an_upload_is_for_the_announced_sets_and_its_own_place() -> None:
    found, world, statement = attempt("upload")
    true = Upload.parse(statement.body)
    for changes in ({"position": 2}, {"accepted_hash": bytes(32)}, {"frozen_hash": bytes(32)}):
        refused("upload-foreign", lambda changes=changes: say(found, world, dataclasses.replace(true, **changes)), NAME)
    decision = found.receive(NAME, statement, NOW)
    receipts = [
        item for item in decision.effects if isinstance(item, Tell) and kind_of(item.statement.body) == "receipt"
    ]
    opened = UploadReceipt.opened(receipts[0].statement, world.key.public, "the coordinator")
    assert (receipts[0].name, opened) == (NAME, UploadReceipt(found.context.hash, 1, true.digest))
    # Its repetition gets the receipt again, another digest gets none.
    assert [kind_of(item.statement.body) for item in found.receive(NAME, statement, NOW).effects] == ["receipt"]  # type: ignore[union-attr]
    assert say(found, world, dataclasses.replace(true, digest=bytes(32))).effects == []


def test_an_upload_is_awaited_from_whoever_is_in_the_frozen_set_once() -> None:
    found, _, statement = attempt("upload")
    assert [found.awaits_upload(name) for name in ("site-000", NAME, "nobody")] == [False, True, False]
    assert found.waiting_for() == [NAME]
    found.receive(NAME, statement, NOW)
    assert not found.awaits_upload(NAME)
    assert not attempt("ready")[0].awaits_upload(NAME)


# ---- signing and releasing -------------------------------------------------------------------------------------------


def test_a_keepers_word_is_for_the_announced_survivors() -> None:
    found, world, statement = attempt("survived")
    true = Survived.parse(statement.body)
    for changes in ({"frozen_hash": bytes(32)}, {"survivors_hash": bytes(32)}):
        refused(
            "survivors-foreign", lambda changes=changes: say(found, world, dataclasses.replace(true, **changes)), NAME
        )
    assert recorded(found.receive(NAME, statement, NOW)) == ["survived"]


def test_a_release_holds_exactly_what_was_asked_for_and_each_share_as_it_was_dealt() -> None:
    found, world, statement = attempt("release")
    true = Release.parse(statement.body)
    rows = RELEASES.read(true.seeds)

    def forged(seeds: list[tuple[bytes, ...]] = rows, **changes: object) -> Callable[[], object]:
        release = dataclasses.replace(true, seeds=RELEASES.write(seeds), **changes)  # type: ignore[arg-type]
        return lambda: say(found, world, release)

    refused("release-foreign", forged(survivors_hash=bytes(32)), NAME)
    refused("release-foreign", forged(rows[:4]), NAME)
    refused("release-foreign", forged([*rows, rows[0]]), NAME)
    refused("release-foreign", forged(list(reversed(rows))), NAME)
    refused("release-foreign", forged(mask_keys=RELEASES.write(rows[:1])), NAME)
    refused("release-foreign", forged([*rows[:4], (b"\0\x09", *rows[4][1:])]), NAME)
    for wrong in ((rows[2][0], bytes(33), rows[2][2]), (*rows[2][:2], bytes(32)), (rows[2][0], *rows[3][1:])):
        refused("share-wrong", forged([*rows[:2], wrong, *rows[3:]]), NAME, "site-002")
    assert recorded(found.receive(NAME, statement, NOW)) == ["release"]


def test_only_keepers_that_were_dealt_shares_sign_and_release() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prekeys, "STOCK", 2)
        patch.setattr(prekeys, "LOW", 1)
        world = World(6, dimension=3)
    world.hold = {"survivors"}
    world.begin(absent=["site-005"])
    world.settle()
    world.pass_time(STEP_S)
    world.train_all(but={"site-005"})
    world.settle()
    assert world.attempt is not None and world.attempt.phase == "signing"
    found, context = world.attempt, world.attempt.context
    word = Survived(context.hash, context.set_hash(tuple(range(5))), context.set_hash(tuple(range(5))))
    assert say(found, world, word, "site-005").records == []
    assert say(found, world, Ready(context.hash), "site-005").records == []
    assert recorded(say(found, world, word, "site-000")) == ["survived"]


# ---- doubts and complaints -------------------------------------------------------------------------------------------


def test_a_parcel_is_in_question_between_a_keeper_and_another_dealer_until_there_are_survivors() -> None:
    for kind in KINDS:
        found, world, _ = attempt(kind)
        open_question = found.phase in ("training", "uploading")
        for dealer, owed in ((0, open_question), (1, False), (5, False), (2**40, False)):
            decision = say(found, world, Doubt(found.context.hash, dealer))
            assert [item.name for item in decision.effects if isinstance(item, Tell)] == ([NAME] if owed else [])
            assert decision.records == []
        complaint = say(found, world, Complaint(found.context.hash, 0, bytes(32)))
        assert recorded(complaint) == (["complaint"] if open_question else [])
        if open_question:
            (failed,) = [item for item in complaint.effects if isinstance(item, Failed)]
            assert (failed.code, failed.excluded, failed.spent) == ("parcel-unreadable", {"site-000", NAME}, False)


# ---- going on without some -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("accept", "too-few-ready"),
        ("ready", "too-few-uploads"),
        ("upload", "quorum-short"),
        ("survived", "quorum-short"),
        ("release", "release-short"),
    ],
)
def test_a_phase_ends_before_its_time_once_too_few_can_still_answer(missing: str, code: str) -> None:
    found, world, _ = attempt(missing)
    failed: list[Failed] = []
    # The first is done without, which opens the next phase where four suffice; two more are too many.
    for name in (NAME, "site-004", "site-000"):
        decision = say(found, world, Refused(found.context.hash, "expired", "", f"{name} is late"), name)
        failed += [item for item in decision.effects if isinstance(item, Failed)]
    (only,) = failed
    assert (only.code, only.spent) == (code, missing == "release")
    assert NAME in only.excluded
    assert f"{NAME} refuses: expired" in only.message


def test_a_refusal_is_counted_once() -> None:
    found, world, _ = attempt("ready")
    refusal = Refused(found.context.hash, "group-floor", "[secure_aggregation] min_group", "too few")
    assert recorded(say(found, world, refusal, "site-000")) == ["refused"]
    assert say(found, world, refusal, "site-000").records == []


def test_timers_end_with_the_contexts_own_end() -> None:
    world = without("accept")[0]
    assert world.attempt is not None
    context = dataclasses.replace(world.attempt.context, expires_s=int(NOW) + 10)
    found = Attempt(context, world.members, world.key, step_s=STEP_S, deadline_s=DEADLINE_S)
    begun = found.begin(world.names, NOW)
    assert [item.at_s for item in begun.effects if isinstance(item, WakeAt)] == [NOW + 10]
    late = found.tick(NOW + 10)
    assert [item.code for item in late.effects if isinstance(item, Failed)] == ["too-few-accepts"]


def test_someone_who_is_not_in_the_roster_is_nobody() -> None:
    found, world, _ = attempt("ready")
    for work in (found.back, found.gone):
        assert work("nobody", NOW) == Decision()
    assert found.excuse("nobody", "reason", NOW) == Decision()
    refused("roster-foreign", lambda: found.receive("nobody", Ready(bytes(32)).signed(world.key), NOW))


def test_gone_twice_is_gone_once_and_those_who_are_gone_are_not_waited_for() -> None:
    found, _, _ = attempt("ready")
    assert found.waiting_for() == [NAME]
    decision = found.gone(NAME, NOW)
    assert [kind_of(record.statement.body) for record in decision.records] == ["freeze"]
    assert found.gone(NAME, NOW) == Decision()


def test_a_stale_machine_event_of_a_participant_does_nothing() -> None:
    world = without("ready")[0]
    for machine in (world.sites[NAME].machine, World(3).sites[NAME].machine):
        for h in (bytes(32), b"x" * 32):
            assert (machine.masked(h, bytes(32)).changes, machine.masked(h, bytes(32)).answers) == ([], [])
            assert machine.delivered(h).answers == []
            assert [type(item).__name__ for item in machine.expanded(h).work] == ["Discard"]
    machine = world.sites["site-000"].machine
    assert machine._hand is not None
    own = machine._hand.context.hash
    assert machine.masked(own, bytes(32)).changes == []  # before the freeze
    assert machine.delivered(own).answers == []
