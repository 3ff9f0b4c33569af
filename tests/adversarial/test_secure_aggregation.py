"""The adversarial behaviours of the specification of secure aggregation, one test each: a lying coordinator.

The numbers are the specification's: 1 to 21, 34 and 35. Those of participants and of the network, 22 to 33, are in
``test_secure_aggregation_peers``.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from secure_lies import (
    context_of,
    fresh_keys,
    held,
    note,
    planned,
    quorum,
    rebuilt,
    refuses,
    released,
    reseated,
    signed_by,
    statement,
    survivors_without,
    with_seat,
)
from secure_world import ENCODING, SMALL, STEP_S, World

from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.audit import Claim, check_record, check_sum, verify_chain
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.coordinator import Failed, Unmask
from privacy.secure_aggregation.encoding import Encoding
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.graph import groups
from privacy.secure_aggregation.keys import AgreementKey, SigningKey
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.sharing import pair_seed
from privacy.secure_aggregation.statements import (
    ACCEPTANCES,
    PARCELS,
    RELEASES,
    UPLOADS,
    Accept,
    Delivery,
    Doubt,
    Freeze,
    Plan,
    Prekey,
    Result,
    Survivors,
    Upload,
    kind_of,
    positions_bytes,
)
from privacy.secure_aggregation.streams import MAIN, Stream, add_streams
from privacy.secure_aggregation.summing import sums_hash, uploads_hash
from privacy.transcript import decode, encode


@pytest.fixture(autouse=True)
def few_prekeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prekeys, "STOCK", 6)
    monkeypatch.setattr(prekeys, "LOW", 1)


# ---- a lying coordinator ---------------------------------------------------------------------------------------------


def test_01_one_id_in_survivors_and_dropped() -> None:
    world = held("survivors")
    all_five = statement(world, Survivors)
    rows = signed_by(world, all_five, world.names)
    # Everyone survives; then the coordinator wants a mask key as well, of one it calls dropped.
    fewer = survivors_without(world, "site-002")
    for name in world.names:
        refuses(world.whisper(name, fewer), "second-survivors")
    for name, release in released(world, quorum(world, rows), world.names).items():
        seeds = {row[0] for row in RELEASES.read(release.seeds)}
        mask_keys = {row[0] for row in RELEASES.read(release.mask_keys)}
        assert len(seeds) == 5 and mask_keys == set(), name
    for name in world.names:
        refuses(world.whisper(name, fewer), "second-survivors")


def test_02_second_survivors_with_another_hash() -> None:
    world = held("survivors")
    first = statement(world, Survivors)
    step = world.whisper("site-000", first)
    assert step.refusal is None
    refuses(world.whisper("site-000", survivors_without(world, "site-004")), "second-survivors")
    world.sites["site-000"].restart()
    refuses(world.whisper("site-000", survivors_without(world, "site-004")), "second-survivors")
    assert world.whisper("site-000", first).answers == step.answers


def test_03_different_survivors_to_two_halves() -> None:
    for count in (5, 6, 10):
        world = held("survivors", count)
        one, other = statement(world, Survivors), survivors_without(world, world.names[-1])
        half = count // 2
        rows = {
            one: signed_by(world, one, world.names[:half]),
            other: signed_by(world, other, world.names[half:]),
        }
        need = context_of(world).numbers.quorum
        for mine, theirs, names in ((one, other, world.names[:half]), (other, one, world.names[half:])):
            assert len(rows[mine]) < need
            for name in names:
                refuses(world.whisper(name, quorum(world, rows[mine])), "quorum-short")
                # The other half's signatures are for another set, and don't fill up what is missing.
                refuses(world.whisper(name, quorum(world, rows[mine] + rows[theirs])), "quorum-signature")


@pytest.mark.parametrize("field", ["mask_key", "share_key"])
def test_04_swapped_keys_in_the_roster(field: str) -> None:
    world = World(4)
    context = world.context()
    mine = AgreementKey.generate().public
    swapped = with_seat(context, 2, dataclasses.replace(context.roster[2], **{field: mine}))
    refuses(planned(world, swapped), "prekey-signature")
    # Signed by the coordinator, or by another member, it is no better.
    for signer in (world.key, world.sites["site-003"].key):
        refuses(planned(world, reseated(world, context, 2, signer, **{field: mine})), "prekey-signature")
    # One's own seat with keys that one never offered.
    own = reseated(world, context, 0, world.sites["site-000"].key, **{field: mine})
    refuses(planned(world, own), "prekey-foreign")


def test_05_sybil_that_the_root_never_certified() -> None:
    world = World(4)
    context = world.context()
    sybil = SigningKey.generate()
    seat = dataclasses.replace(context.roster[0], name="site-9", index=1, **fresh_keys())
    prekey = Prekey("clinics", seat.name, seat.index, seat.mask_key, seat.share_key, seat.beacon_hash, seat.expires_s)
    seat = dataclasses.replace(seat, signature=prekey.signed(sybil).signature)
    step = planned(world, dataclasses.replace(context, roster=(*context.roster, seat)))
    refuses(step, "member-unknown")
    assert step.refusal is not None and "site-9" in step.refusal.message


def test_06_another_model_to_one_participant() -> None:
    world = World(4)
    context = world.context()
    other = dataclasses.replace(context, base_digest=b"x" * 32)
    refuses(planned(world, other), "model-mismatch")
    # With the task forged as well, the victim accepts a plan that nobody else has.
    victim = world.sites["site-000"]
    plan = Plan(other.canonical()).signed(world.key)
    step = victim.machine.plan(plan, world.assignment(base_digest=b"x" * 32), world.now)
    assert [kind_of(item.body) for item in step.answers] == ["accept"]
    forged = Accept.parse(step.answers[0].body)
    world.hold = {"delivery"}
    world.begin(context, absent=["site-000"])
    world.settle()
    world.pass_time(STEP_S)
    honest = statement(world, Delivery, "site-001")
    row = (bytes(2), forged.beacon, forged.commitment, forged.acceptance_signature)
    rows = [row, *ACCEPTANCES.read(honest.acceptances)]
    # Neither side takes the other's acceptance: it is signed for another hash.
    mixed = dataclasses.replace(honest, acceptances=ACCEPTANCES.write(rows))
    refuses(world.whisper("site-001", mixed), "acceptance-signature")
    theirs = dataclasses.replace(mixed, context=other.hash)
    refuses(note(victim, victim.machine.receive(theirs.signed(world.key), world.now)), "acceptance-signature")


def test_07_replay_of_a_round_or_attempt() -> None:
    world = World(4, round=3)
    world.run(attempt=2)
    world.finish()
    for place in ({"round": 3, "attempt": 2}, {"round": 3, "attempt": 1}, {"round": 2, "attempt": 9}):
        refuses(planned(world, world.context(**place)), "round-replayed")
    for name in world.names:
        world.reconnect(name)
    refuses(planned(world, world.context(attempt=2)), "round-replayed")
    old = next(item for way, name, item in world.sent if way == "down" and kind_of(item.body) == "plan")
    refuses(world.hear("site-000", old), "round-replayed")


def test_08_replay_of_a_prekey() -> None:
    world = World(4)
    first = world.context()
    assert planned(world, first).refusal is None
    again = dataclasses.replace(world.context(attempt=2), roster=first.roster)
    refuses(planned(world, again), "prekey-used")
    world.sites["site-000"].restart()
    refuses(planned(world, again), "prekey-used")
    never = reseated(world, world.context(attempt=2), 0, world.sites["site-000"].key, **fresh_keys())
    seat = dataclasses.replace(never.roster[0], index=99)
    prekey = Prekey("clinics", seat.name, 99, seat.mask_key, seat.share_key, seat.beacon_hash, seat.expires_s)
    seat = dataclasses.replace(seat, signature=prekey.signed(world.sites["site-000"].key).signature)
    refuses(planned(world, with_seat(never, 0, seat)), "prekey-used")


def test_09_cohort_survivors_or_bucket_below_the_floor() -> None:
    world = World(5)
    refuses(planned(world, world.context(world.names[:2])), "cohort-too-small")
    refuses(planned(world, world.context(min_cohort=6)), "cohort-floor", "min_cohort")
    cautious = World(5, policy=SitePolicy(min_cohort=5, min_group=4))
    refuses(planned(cautious, cautious.context(min_cohort=4)), "cohort-floor", "min_cohort")
    refuses(planned(cautious, cautious.context(min_cohort=5, group_size=3)), "group-floor", "min_group")
    world = held("delivery")
    delivery = statement(world, Delivery)
    few = dataclasses.replace(
        delivery,
        acceptances=ACCEPTANCES.write(ACCEPTANCES.read(delivery.acceptances)[:3]),
        parcels=PARCELS.write(PARCELS.read(delivery.parcels)[:3]),
    )
    refuses(world.whisper("site-000", few), "cohort-floor", "min_cohort")
    world = held("freeze")
    step = world.whisper("site-000", Freeze(context_of(world).hash, positions_bytes(range(3))))
    refuses(step, "cohort-floor", "min_cohort")
    world = held("survivors")
    refuses(world.whisper("site-000", survivors_without(world, "site-003", "site-004")), "cohort-floor", "min_cohort")


def test_10_threshold_quorum_or_corrupt_bound_changed() -> None:
    # t and Q are worked out by each site, not told; what they are worked out from is bounded by its policy.
    big = World(6, policy=SitePolicy(min_corrupt_percent=15))
    refuses(planned(big, big.context(corrupt_percent=14)), "corrupt-bound", "min_corrupt_percent")
    for percent in (0, 34, 100):
        refuses(planned(big, big.context(corrupt_percent=percent)), "corrupt-range")
    world = held("survivors", 6)
    rows = signed_by(world, statement(world, Survivors), world.names)
    need = context_of(world).numbers.quorum
    for name in world.names:
        refuses(world.whisper(name, quorum(world, rows[: need - 1])), "quorum-short")
        assert world.whisper(name, quorum(world, rows[:need])).refusal is None


def test_11_dropped_claim_although_a_receipt_exists() -> None:
    world = held("survivors")
    victim, others = "site-002", ["site-000", "site-001", "site-003", "site-004"]
    assert "receipt" in world.sites[victim].store.kinds()
    fewer = survivors_without(world, victim)
    rows = signed_by(world, fewer, world.names)
    answers = released(world, quorum(world, rows), world.names)
    context = context_of(world)
    position = context.names.index(victim)
    found = rebuilt(world, answers)
    # The coordinator has the masked update and, as of one that dropped, its mask key. Its own mask stays.
    assert set(found["mask_keys"]) == {position}
    assert set(found["seeds"]) == {context.names.index(name) for name in others}
    content = next(iter(world.sites[victim].files.values()))
    left = context.encoding.unpack(content[: 4 * context.dimension], context.dimension).copy()
    key = AgreementKey(found["mask_keys"][position])
    for name in others:
        peer = context.names.index(name)
        seed = pair_seed(key, context.roster[peer].mask_key, context.hash, position, peer)
        add_streams(left, [(Stream(seed, MAIN), -1 if position < peer else 1)])
    update, examples, _ = world.inputs[victim]
    plain = context.encoding.encode(update, examples, victim.encode().ljust(32, b"d"))
    assert (left != plain).all()
    for seed in itertools.chain(found["seeds"].values(), found["mask_keys"].values()):
        guess = left.copy()
        add_streams(guess, [(Stream(seed, MAIN), -1)])
        assert (guess != plain).all()
    # And no keeper gives a share of that mask afterwards.
    for name in world.names:
        refuses(world.whisper(name, statement(world, Survivors)), "second-survivors")


def test_12_ids_and_signatures_counted_twice() -> None:
    world = World(4)
    context = world.context()
    refuses(
        planned(world, dataclasses.replace(context, roster=(*context.roster, context.roster[3]))), "roster-duplicate"
    )
    two = world.context(attempt=2)
    same_keys = reseated(
        world, two, 3, world.sites["site-003"].key, mask_key=two.roster[2].mask_key, share_key=two.roster[2].share_key
    )
    refuses(planned(world, same_keys), "prekey-duplicate")
    world = held("delivery")
    delivery = statement(world, Delivery)
    rows, parcels = ACCEPTANCES.read(delivery.acceptances), PARCELS.read(delivery.parcels)
    twice = dataclasses.replace(
        delivery,
        acceptances=ACCEPTANCES.write([*rows[:3], rows[2], rows[2]]),
        parcels=PARCELS.write([*parcels[:3], parcels[2], parcels[2]]),
    )
    refuses(world.whisper("site-000", twice), "roster-duplicate")
    world = held("survivors")
    survivors = statement(world, Survivors)
    uploads = UPLOADS.read(survivors.uploads)
    doubled = dataclasses.replace(survivors, uploads=UPLOADS.write([*uploads[:3], uploads[0], uploads[1]]))
    refuses(world.whisper("site-000", doubled), "roster-duplicate")
    signatures = signed_by(world, survivors, world.names)
    few = [signatures[0], signatures[1], signatures[1], signatures[0], signatures[1]]
    refuses(world.whisper("site-000", quorum(world, few)), "quorum-foreign")


def test_13_forged_or_foreign_upload_signature() -> None:
    world = held("survivors")
    survivors = statement(world, Survivors)
    rows = UPLOADS.read(survivors.uploads)
    context = context_of(world)
    position, digest, signature = rows[3]
    own = world.sites["site-003"].key
    for row in (
        (position, bytes(32), signature),  # another upload in its name
        (position, digest, rows[2][2]),  # another participant's signature
        (position, digest, bytes(64)),
        (position, digest, Upload(b"o" * 32, 3, bytes(32), bytes(32), digest).signed(own).signature),  # another attempt
        (position, digest, Upload(context.hash, 2, bytes(32), bytes(32), digest).signed(own).signature),
    ):
        forged = dataclasses.replace(survivors, uploads=UPLOADS.write([*rows[:3], row, rows[4]]))
        refuses(world.whisper("site-000", forged), "upload-signature")
    # A second upload of the victim's own making doesn't exist: it signs one. Nor does one that it never made pass.
    assert world.whisper("site-003", survivors).refusal is None


def test_14_share_of_someone_who_never_accepted() -> None:
    world = World(6, dimension=6)
    world.hold = {"survivors"}
    outsider = "site-005"
    world.begin(absent=[outsider])
    world.settle()
    world.pass_time(STEP_S)
    world.train_all(but={outsider})
    world.settle()
    survivors = statement(world, Survivors)
    rows = UPLOADS.read(survivors.uploads)
    context = context_of(world)
    foreign = Upload(
        context.hash, 5, context.set_hash(tuple(range(5))), context.set_hash(tuple(range(5))), bytes(32)
    ).signed(world.sites[outsider].key)
    more = [*rows, ((5).to_bytes(2, "big"), bytes(32), foreign.signature)]
    for name in world.names[:5]:
        refuses(world.whisper(name, dataclasses.replace(survivors, uploads=UPLOADS.write(more))), "survivor-foreign")
    # Nor is it dropped: no keeper holds a share of it at all.
    signed = signed_by(world, survivors, world.names[:5])
    for release in released(world, quorum(world, signed), world.names[:5]).values():
        dealers = {row[0] for row in RELEASES.read(release.seeds) + RELEASES.read(release.mask_keys)}
        assert (5).to_bytes(2, "big") not in dealers


def test_15_second_release_request() -> None:
    world = held("survivors")
    first = statement(world, Survivors)
    rows = signed_by(world, first, world.names)
    answers = released(world, quorum(world, rows), world.names)
    assert len(answers) == 5
    h = context_of(world).hash
    for name, site in world.sites.items():
        # The key that opens the parcels is erased with the release; only what was said once can be said again.
        assert "share-key" not in site.store.kinds(h)
        refuses(world.whisper(name, survivors_without(world, "site-004")), "second-survivors")
        site.restart()
        refuses(world.whisper(name, survivors_without(world, "site-004")), "second-survivors")
        assert released(world, quorum(world, rows[1:]), [name]) == {name: answers[name]}
        assert site.machine._hand is not None
        assert (site.machine._hand.parcels, site.machine._hand.share_key) == ({}, None)


def test_16_second_upload_or_freeze() -> None:
    world = held("survivors")
    h = context_of(world).hash
    fewer = Freeze(h, positions_bytes(range(4)))
    for name, site in world.sites.items():
        refuses(world.whisper(name, fewer), "second-freeze")
        refuses(note(site, site.machine.masked(h, b"another upload".ljust(32))), "second-upload")
        site.restart()
        refuses(world.whisper(name, fewer), "second-freeze")
        refuses(note(site, site.machine.masked(h, b"another upload".ljust(32))), "second-upload")
        # Its own masks are gone: nothing is left with which to mask anything else.
        assert "secrets" not in site.store.kinds(h)
    again = world.whisper("site-000", Freeze(h, positions_bytes(range(5))))
    assert again.refusal is None and again.answers == []


def test_17_sealed_shares_routed_to_the_wrong_keeper_or_from_another_attempt() -> None:
    world = held("delivery")
    earlier = PARCELS.read(statement(world, Delivery).parcels)
    world.held, world.deaf = [], False
    world.begin(world.context(attempt=2))
    world.settle()
    world.deaf = True
    mine, other = statement(world, Delivery), statement(world, Delivery, "site-001")
    rows = PARCELS.read(mine.parcels)
    wrong = {
        "another keeper's": PARCELS.read(other.parcels)[2],
        "another attempt's": earlier[2],
        "another dealer's": rows[3],
        "flipped": (bytes([rows[2][0][0] ^ 1]) + rows[2][0][1:], rows[2][1]),
        "another commitment": (rows[2][0], rows[1][1]),
    }
    for what, row in wrong.items():
        spoilt = dataclasses.replace(mine, parcels=PARCELS.write([*rows[:2], row, *rows[3:]]))
        step = world.whisper("site-000", spoilt)
        (answer,) = step.answers
        assert Doubt.parse(answer.body).dealer == 2, what
        assert (step.changes, step.work) == ([], [])
        # The coordinator can only show what the dealer signed, which isn't what it delivered: no key is shown.
        assert world.attempt is not None
        (proof,) = world.attempt.receive("site-000", answer, world.now).effects
        refuses(world.hear("site-000", proof.statement), "parcel-foreign")  # type: ignore[union-attr]
    assert world.whisper("site-000", mine).refusal is None


def test_18_bits_or_clips_raised() -> None:
    policy = SitePolicy(max_value_bits=20, max_clip_norm=10.0, max_clip_value=1.0)
    world = World(5, policy=policy)

    def encoded(**changes: float) -> RoundContext:
        return world.context(encoding=dataclasses.replace(ENCODING, **changes))  # type: ignore[arg-type]

    refuses(planned(world, encoded(value_bits=21)), "encoding-range", "max_value_bits")
    refuses(planned(world, encoded(clip_norm=10.5)), "encoding-range", "max_clip_norm")
    refuses(planned(world, encoded(clip_value=1.5)), "encoding-range", "max_clip_value")
    # Five values of 30 bits don't fit in 32: the sum could wrap.
    wide = World(5)
    refuses(planned(wide, wide.context(encoding=dataclasses.replace(ENCODING, value_bits=30))), "overflow")
    assert planned(wide, wide.context(encoding=dataclasses.replace(ENCODING, value_bits=29))).refusal is None
    broken = dict(zip((field.name for field in dataclasses.fields(Encoding)), (32, 32, 99, 1.0, 1.0, 50), strict=True))
    context = wide.context(attempt=3)
    version, *fields, roster = decode(context.canonical())  # type: ignore[misc]
    fields[12] = tuple(broken.values())
    step = wide.whisper("site-000", Plan(encode((version, *fields, roster))))
    refuses(step, "encoding-invalid")


def test_19_roster_that_differs_by_one_member() -> None:
    world = World(7)
    world.begin(world.context(world.names[:5]))
    world.settle()
    for names in (world.names[:6], world.names[:4]):
        step = planned(world, world.context(names, attempt=2))
        refuses(step, "roster-change", "min_roster_change")
    world.sites["site-000"].restart()
    refuses(planned(world, world.context(world.names[:6], attempt=2)), "roster-change", "min_roster_change")
    for attempt, names in ((2, world.names[:5]), (3, world.names)):
        assert planned(world, world.context(names, attempt=attempt)).refusal is None
    strict = World(7, policy=SitePolicy(min_roster_change=4))
    strict.begin(strict.context(strict.names[:5]))
    strict.settle()
    refuses(planned(strict, strict.context(attempt=2)), "roster-change", "min_roster_change")


def test_20_a_wrong_sum_is_published() -> None:
    world = held("freeze", 5)
    world.deaf = False
    world.kill("site-003")
    world.released()
    world.conclude()
    world.assert_exact([name for name in world.names if name != "site-003"])
    assert isinstance(world.outcome, Unmask) and world.attempt is not None
    uploads = {digest: np.frombuffer(content, np.uint8) for digest, content in world.uploads.items()}
    sums = [(main, tail) for _, main, tail in world.sums()]
    record = encode(world.attempt.public_record())
    digests = [world.attempt.digests()[item] for item in sorted(world.attempt.survivors())]
    honest = dataclasses.replace(
        world.result(), sum_hash=sums_hash(context_of(world), sums), uploads_hash=uploads_hash(digests)
    )
    (line,) = verify_chain([honest.signed(world.key)], world.members)
    claim = check_record(line.result, record, world.members)
    assert claim == Claim(world.outcome, ())
    check_sum(line.result, claim, uploads.__getitem__)
    # Any site recomputes the sum from public material; the signed line is the evidence.
    main, tail = sums[0]
    main[2] += 1
    for wrong in ([(main, tail)], [(main - 1, tail + 1)]):
        lie = dataclasses.replace(honest, sum_hash=sums_hash(context_of(world), wrong)).signed(world.key)
        (line,) = verify_chain([lie], world.members)
        with pytest.raises(SecureAggregationError) as caught:
            check_sum(line.result, check_record(line.result, record, world.members), uploads.__getitem__)
        assert caught.value.code == "sum-wrong"
    # Nor does a record pass that would lead to another sum: with another seed, or without one of the uploads.
    statements, acceptances, retired, seeds, mask_keys = world.attempt.public_record()
    other = ((seeds[0][0], bytes(32)), *seeds[1:])
    for forged, code in (
        ((statements, acceptances, retired, other, mask_keys), "seed-wrong"),
        ((statements, acceptances, retired, seeds, ((3, bytes(32)),)), "mask-key-wrong"),
        ((statements, acceptances, retired, seeds[1:], mask_keys), "record-foreign"),
        ((statements[:-1], acceptances, retired, seeds, mask_keys), "record-malformed"),
    ):
        with pytest.raises(SecureAggregationError) as caught:
            check_record(honest, encode(forged), world.members)
        assert caught.value.code == code


def test_21_truncated_extended_or_reordered_upload() -> None:
    def half_swapped(content: bytes) -> bytes:
        return content[len(content) // 2 :] + content[: len(content) // 2]

    for bend in (lambda c: c[:-1], lambda c: c + b"\0", half_swapped, lambda c: c[:8] + c[4:8] + c[12:]):
        world = World(5, dimension=6)
        world.filter_blob = lambda name, content, bend=bend: bend(content) if name == "site-001" else content
        world.run()
        world.pass_time(700)
        # Its digest isn't that of what came, so the participant can't announce it: the sum is made without it.
        assert world.refused == [("site-001", "upload-malformed")]
        world.assert_exact(sorted(set(world.names) - {"site-001"}))


def test_34_split_freeze_or_delivery() -> None:
    # The victim gets a frozen set of its own, so that it would mask with those alone whom the coordinator then drops.
    world = held("freeze", 7)
    h = context_of(world).hash
    victim, everyone, split = "site-000", frozenset(range(7)), frozenset({0, 1, 2, 3, 4})
    assert world.whisper(victim, Freeze(h, positions_bytes(split))).refusal is None
    for name in world.names[1:]:
        world.whisper(name, Freeze(h, positions_bytes(everyone)))
    world.hold = {"survivors"}
    world.settle()
    uploads = {Upload.parse(item.body).position: item for way, _, item in world.sent if kind_of(item.body) == "upload"}
    rows = [
        (position.to_bytes(2, "big"), Upload.parse(item.body).digest, item.signature)
        for position, item in sorted(uploads.items())
    ]
    assert len(rows) == 7
    with_victim = Survivors(h, UPLOADS.write(rows))
    for name in world.names:
        refuses(world.whisper(name, with_victim), "upload-signature")
    # The same with two deliveries: U1 stands in every upload's signature.
    world = held("delivery", 7)
    full = statement(world, Delivery, victim)
    fewer = dataclasses.replace(
        full,
        acceptances=ACCEPTANCES.write(ACCEPTANCES.read(full.acceptances)[:6]),
        parcels=PARCELS.write(PARCELS.read(full.parcels)[:6]),
    )
    assert world.whisper(victim, fewer).refusal is None
    refuses(world.whisper(victim, full), "second-delivery")
    for name, item in world.held:
        if name != victim:
            world.hear(name, item)
    h = context_of(world).hash
    six = frozenset(range(6))
    world.hold = {"survivors"}
    for name in world.names[:6]:
        world.whisper(name, Freeze(h, positions_bytes(six)))
    world.settle()
    uploads = {Upload.parse(item.body).position: item for way, _, item in world.sent if kind_of(item.body) == "upload"}
    rows = [
        (position.to_bytes(2, "big"), Upload.parse(item.body).digest, item.signature)
        for position, item in sorted(uploads.items())
    ]
    assert [row[0][1] for row in rows] == list(range(6))
    for name in world.names[:6]:
        refuses(world.whisper(name, Survivors(h, UPLOADS.write(rows))), "upload-signature")


def test_35_all_honest_mates_of_a_bucket_dropped() -> None:
    world = World(12, dimension=6, group_size=4, encoding=SMALL)
    attempt = world.begin()
    world.settle()
    world.hold = {"freeze"}
    world.train_all()
    world.settle()
    found = groups(attempt.context, {item: accept.beacon for item, accept in attempt._book.accepts.items()})
    bucket = found[0].members
    victim, mates = world.names[bucket[0]], [world.names[item] for item in bucket[1:3]]
    for mate in mates:
        world.kill(mate)
    world.released()
    world.conclude()
    # Two of that atom are left: nothing of it is published, and no secret of it released.
    assert isinstance(world.outcome, Unmask | Failed)
    gone = {world.names[item] for item in bucket}
    world.assert_exact(sorted(set(world.names) - gone))
    _, _, _, seeds, mask_keys = attempt.public_record()
    assert {world.names[item] for item, _ in (*seeds, *mask_keys)}.isdisjoint(gone)
    # A coordinator that asks for the victim's sum all the same gets no signature.
    context = attempt.context
    rows = [(item.to_bytes(2, "big"), *attempt._book.uploads[item]) for item in sorted(attempt._book.uploads)]
    assert context.names.index(victim) in attempt._book.uploads
    fresh = Survivors(context.hash, UPLOADS.write(rows))
    for name in sorted(set(world.names) - set(mates)):
        assert world.whisper(name, fresh).refusal is not None


def test_no_result_for_another_survivor_set_passes_a_keeper() -> None:
    world = held("survivors")
    rows = signed_by(world, statement(world, Survivors), world.names)
    released(world, quorum(world, rows), world.names)
    zeros = bytes(32)
    lie = Result(0, zeros, context_of(world).hash, positions_bytes(range(4)), zeros, zeros, zeros, zeros)
    refuses(world.whisper("site-000", lie), "result-foreign")
