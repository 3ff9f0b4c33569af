"""The adversarial behaviours of the specification of secure aggregation, one test each: participants and the network.

The numbers are the specification's, 22 to 33; the lying coordinator's are in ``test_secure_aggregation``.
"""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from secure_lies import (
    context_of,
    crooked,
    dealt,
    held,
    planned,
    refuses,
    reseated,
)
from secure_world import ENCODING, NOW, SMALL, STEP_S, World

from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.coordinator import Failed, Unmask
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.keys import AgreementKey
from privacy.secure_aggregation.memory import Mask
from privacy.secure_aggregation.sharing import sealing_key
from privacy.secure_aggregation.statements import (
    PARCELS,
    RELEASES,
    Accept,
    Complaint,
    Freeze,
    Plan,
    Release,
    Signed,
    Upload,
    kind_of,
    positions_bytes,
)
from privacy.secure_aggregation.tail import decode_tail
from privacy.transcript import decode
from protos import session_pb2


@pytest.fixture(autouse=True)
def few_prekeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prekeys, "STOCK", 6)
    monkeypatch.setattr(prekeys, "LOW", 1)


# ---- participants ----------------------------------------------------------------------------------------------------


def test_22_inconsistent_shares() -> None:
    # A parcel that doesn't open, or isn't what was committed to: the keeper has the dealer's signature on it.
    for change in (
        lambda accept, rows: [(bytes(82), rows[0][1]), *rows[1:]],
        lambda accept, rows: [(rows[0][0], bytes(32)), *rows[1:]],
    ):
        world = World(5, dimension=6)
        dealt(world, "site-003", change)
        world.run()
        assert isinstance(world.outcome, Failed)
        assert (world.outcome.code, world.outcome.spent) == ("parcel-unreadable", False)
        assert world.outcome.excluded == {"site-003", "site-000"}
        assert "site-000 can't read the parcel that site-003 signed" in world.outcome.message
        # The next attempt does without the two, with the same roster.
        world.filter_up = lambda name, item: [item]
        world.hold = set()
        left = [name for name in world.names if name not in world.outcome.excluded]
        world.begin(world.context(attempt=2), absent=world.outcome.excluded)
        world.settle()
        assert world.attempt is not None and set(world.attempt.waiting_for()) <= set(left)
    # Shares that are each what was committed to, but rebuild nothing: found when the sum is due.
    world = World(5, dimension=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.sites["site-003"], "machine", crooked(world, "site-003"))
        world.sites["site-003"].perform(world.sites["site-003"].machine.offer(world.now))
        world.settle()
        world.run()
    assert isinstance(world.outcome, Failed)
    assert (world.outcome.code, world.outcome.spent) == ("dealer-inconsistent", True)
    assert world.outcome.excluded == {"site-003"}
    assert "site-003 dealt shares that don't rebuild its secret" in world.attempt._book.excluded[3]  # type: ignore[union-attr]
    # A keeper that complains of a parcel in order shows the key to it, and stands convicted alone.
    world = held("delivery")
    slandered = world.sites["site-000"].machine._hand
    assert slandered is not None and slandered.share_key is not None
    world.deaf = False
    h = context_of(world).hash
    key = sealing_key(slandered.share_key, context_of(world).roster[3].share_key, h, 3, 0)
    world.arrive("site-000", Complaint(h, 3, key).signed(world.sites["site-000"].key))
    assert isinstance(world.outcome, Failed)
    assert world.outcome.excluded == {"site-000"}
    assert "complains of a parcel of site-003 that is in order" in world.outcome.message


def test_23_wrong_released_share() -> None:
    for count in (5, 7):
        world = World(count, dimension=6)

        def up(name: str, signed: Signed, world: World = world) -> list[Signed]:
            if name != "site-001" or kind_of(signed.body) != "release":
                return [signed]
            release = Release.parse(signed.body)
            rows = RELEASES.read(release.seeds)
            wrong = [rows[0], (rows[1][0], bytes(33), rows[1][2]), *rows[2:]]
            return [dataclasses.replace(release, seeds=RELEASES.write(wrong)).signed(world.sites[name].key)]

        world.filter_up = up
        world.run()
        assert world.refused == [("site-001", "share-wrong")]
        world.assert_exact(world.names)  # with t others


@pytest.mark.parametrize(
    "point",
    [
        0,
        1,
        2**255 - 20,
        2**255 - 19,
        2**255 - 18,
        2**255,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    ],
)
def test_24_point_of_low_order(point: int) -> None:
    key = point.to_bytes(32, "little")
    with pytest.raises(SecureAggregationError):
        AgreementKey.generate().agree(key)
    world = World(4)
    for field in ("mask_key", "share_key"):
        context = reseated(world, world.context(), 3, world.sites["site-003"].key, **{field: key})
        refuses(planned(world, context), "key-invalid")
    # The coordinator notices when it is offered, before it makes a plan that all would refuse.
    with pytest.raises(SecureAggregationError) as caught:
        prekeys.check_offered([context.roster[3]], "clinics", world.sites["site-003"].key.public)
    assert caught.value.code == "key-invalid"


def test_25_replay_of_another_participants_sealed_shares() -> None:
    world = World(5, dimension=6)
    stolen: list[list[tuple[bytes, ...]]] = []
    dealt(world, "site-003", lambda accept, rows: stolen[0] if stolen else rows)
    inner = world.filter_up

    def up(name: str, signed: Signed) -> list[Signed]:
        if name == "site-000" and kind_of(signed.body) == "accept":
            stolen.append(PARCELS.read(Accept.parse(signed.body).parcels))
        return inner(name, signed)

    world.filter_up = up
    world.run()
    # Dealer and keeper are bound to the sealed bytes: site-000's parcels open for nobody in site-003's name.
    assert isinstance(world.outcome, Failed)
    assert world.outcome.code == "parcel-unreadable"
    assert "site-003" in world.outcome.excluded


def test_26_upload_of_wrong_length_twice_or_after_the_deadline() -> None:
    world = World(6, dimension=6)
    late: list[Signed] = []

    def up(name: str, signed: Signed) -> list[Signed]:
        if kind_of(signed.body) != "upload":
            return [signed]
        if name == "site-002":
            late.append(signed)
            return []
        if name == "site-001":
            other = dataclasses.replace(Upload.parse(signed.body), digest=b"second".ljust(32))
            return [signed, other.signed(world.sites[name].key)]
        return [signed]

    world.filter_up = up
    world.filter_blob = lambda name, content: content[:-8] if name == "site-003" else content
    world.run()
    assert world.outcome is None
    world.pass_time(700)
    world.assert_exact([name for name in world.names if name not in ("site-002", "site-003")])
    before = world.outcome
    world.arrive("site-002", late[0])
    assert world.outcome is before
    assert world.attempt is not None and 2 not in world.attempt.digests()
    assert isinstance(before, Unmask)


def test_27_garbage_instead_of_the_right_mask() -> None:
    world = World(9, dimension=6, group_size=3, encoding=SMALL)
    site = world.sites["site-004"]
    masked = site._masked

    def garbage(work: Mask) -> bytes:
        site.masks[work.context.hash] = (
            np.arange(6, dtype=work.context.encoding.dtype),
            np.arange(4, dtype=np.uint64) << np.uint64(60),
        )
        return masked(work)

    site._masked = garbage  # type: ignore[method-assign]
    world.run()
    spoilt, fine = [], []
    context = context_of(world)
    for members, _, tail in world.sums():
        try:
            decode_tail(context.layout, tail, participants=len(members), weight_cap=context.encoding.weight_cap)
            fine.append(members)
        except SecureAggregationError as error:
            assert error.code == "tail-implausible"
            spoilt.append(members)
    # Its own bucket is unusable and says so; the others are exact. Who it was, an audit of the pair seeds can tell.
    assert len(spoilt) == 1 and context.names.index("site-004") in spoilt[0]
    for members, main, tail in world.sums():
        if members in fine:
            right, right_tail = world.expected(members)
            assert main.tolist() == right.tolist() and tail.tolist() == right_tail.tolist()


def test_28_update_over_the_norm() -> None:
    # Only an honest participant's own clip bounds its norm; what a liar can still do is bounded by the width of its
    # values, which a bucket's sum shows. The sketch that would bound liars isn't built.
    huge = np.full(1_000, 1e3, np.float32)
    encoding = dataclasses.replace(ENCODING, clip_norm=2.0)
    values = encoding.encode(huge, 50, bytes(32)).view(np.int32) * encoding.quantum
    assert np.linalg.norm(values) <= 2.0 + 1_000**0.5 * encoding.quantum
    total = np.full(1_000, 3 * encoding.limit + 1, np.uint32)
    with pytest.raises(SecureAggregationError) as caught:
        encoding.check_sum(total, 3)
    assert caught.value.code == "sum-implausible"


def test_29_withheld_release() -> None:
    for count in (5, 7, 10):
        for seed in range(3):
            world = World(count, dimension=6)
            spare = count - world_numbers(count)
            silent = set(random.Random(seed).sample(world.names, spare))
            world.filter_up = lambda name, item, silent=silent: (
                [] if name in silent and kind_of(item.body) == "release" else [item]
            )
            world.run()
            world.assert_exact(world.names)  # any t of the rest suffice, and nobody waits for the silent
    world = World(5, dimension=6)
    world.filter_up = lambda name, item: [] if kind_of(item.body) == "release" and name < "site-002" else [item]
    world.run()
    assert world.outcome is None
    world.pass_time(STEP_S)
    assert isinstance(world.outcome, Failed)
    assert (world.outcome.code, world.outcome.spent) == ("release-short", True)


def world_numbers(count: int) -> int:
    return context_of(held("plan", count)).numbers.threshold


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_30_update_that_is_not_finite(value: float) -> None:
    world = World(5, dimension=6)
    world.inputs["site-002"][0][3] = value
    with pytest.raises(SecureAggregationError) as caught:
        world.run()
    assert caught.value.code == "update-not-finite"
    assert world.sites["site-002"].files == {}
    # The site says so, and the sum is made without it.
    assert world.attempt is not None
    world.perform(world.attempt.excuse("site-002", caught.value.message, world.now))
    world.settle()
    world.assert_exact([name for name in world.names if name != "site-002"])


def test_31_crash_after_the_prekey_is_marked_used() -> None:
    world = World(4, dimension=6)
    site = world.sites["site-001"]
    context = world.context()
    index = context.roster[1].index
    step = site.machine.plan(Plan(context.canonical()).signed(world.key), world.assignment(), NOW)
    site.store.change(step.changes)  # synced to disk; then the power fails before a word is sent
    site.restart()
    assert not any(note.kind == "prekey" and decode(note.body)[0] == index for note in site.store.notes)  # type: ignore[index]
    # Had the attempt been given up meanwhile, the prekey is burnt all the same, and the next attempt takes another.
    reused = dataclasses.replace(world.context(attempt=2), roster=context.roster)
    refuses(world.whisper("site-001", Plan(reused.canonical())), "prekey-used")
    world.next_attempt(3)
    world.assert_exact(world.names)


# ---- the network -----------------------------------------------------------------------------------------------------


def test_32_duplicated_delayed_and_reordered_messages() -> None:
    for seed in range(12):
        world = World(4, dimension=6)
        world.shuffle = random.Random(seed)
        world.filter_up = world.filter_down = lambda name, item: [item] * 3
        world.run()
        world.conclude()
        world.assert_exact(world.names)
        world.assert_promises_kept()
        assert world.refused == []
        assert all(site.refusals == [] for site in world.sites.values())
        delayed = [(way, name, item) for way, name, item in world.sent]
        world.filter_up = world.filter_down = lambda name, item: [item]
        outcome = world.outcome
        for way, name, item in world.shuffle.sample(delayed, 40):
            (world.hear if way == "down" else world.arrive)(name, item)
        world.settle()
        assert world.outcome is outcome
        world.assert_promises_kept()


def test_33_unknown_fields_and_bytes_that_are_not_canonical() -> None:
    world = held("freeze")
    original = next(item for name, item in world.held if name == "site-000")
    message = session_pb2.Statement(body=original.body, signature=original.signature)
    # Field 1000, length-delimited, which no release knows; and the fields in another order.
    wire = message.SerializeToString()
    padded = b"\xc2\x3e\x03abc" + wire + b"\xc2\x3e\x01x"
    back = session_pb2.Statement.FromString(padded)
    assert back.SerializeToString() != wire
    assert (back.body, back.signature) == (original.body, original.signature)
    # What is signed has one form: a longer integer, a padded length, another order of fields are all refused.
    h = context_of(world).hash
    body = Freeze(h, positions_bytes(range(5))).body()
    for other in (
        body + b"\0",
        body[:-1],
        body.replace(b"S\0\0\0\0\0\0\0\x06freeze", b"Y\0\0\0\0\0\0\0\x06freeze"),
        body.replace(b"\x06freeze", b"\x07freeze\0"),
    ):
        signature = world.key.sign(b"fedloom/secure-aggregation/statement/1\0" + other)
        assert world.hear("site-000", Signed(other, signature)).refusal is not None
    step = world.hear("site-000", Signed(back.body, back.signature))
    assert step.refusal is None
