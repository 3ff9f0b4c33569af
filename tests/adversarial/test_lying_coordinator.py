"""A coordinator that lies, over real TLS, to sites that run as they are: refused by name, and nothing is revealed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.field import combine
from privacy.secure_aggregation.keys import AgreementKey
from privacy.secure_aggregation.masking import streams
from privacy.secure_aggregation.sharing import MaskTerm, pair_seed
from privacy.secure_aggregation.statements import (
    ACCEPTANCES,
    PARCELS,
    QUORUM,
    RELEASES,
    UPLOADS,
    Accept,
    Complaint,
    Delivery,
    Doubt,
    Evidence,
    Freeze,
    Plan,
    Quorum,
    Refused,
    Release,
    Result,
    Signed,
    Survived,
    Survivors,
    Upload,
    kind_of,
    positions_bytes,
)
from privacy.secure_aggregation.streams import MAIN, add_streams
from privacy.secure_aggregation.tail import split_upload
from protos import session_pb2 as pb
from tests.adversarial.liars import DIMENSION, SITES, VICTIM, Liar, bend, both, held, is_noise, lying, opened, update_of
from tests.adversarial.lies import LIES, told_with

OTHERS = SITES[1:]


async def test_an_honest_coordinator_gets_the_sum_and_nobody_refuses_anything(tmp_path: Path) -> None:
    async with lying(tmp_path) as liar:
        await liar.until_version(1)
        liar.check_sum(SITES)
        liar.check_uploads_masked()
        assert liar.store.refusals() == {}


def test_what_counts_as_noise_here_is_no_update() -> None:
    assert not is_noise(update_of(VICTIM).tobytes())
    assert not is_noise(np.full(DIMENSION, 1311, "<u2").tobytes())
    assert is_noise(np.random.default_rng(0).bytes(2 * DIMENSION))


async def test_every_lie_is_refused_by_name_and_the_truth_behind_it_still_gives_the_sum(tmp_path: Path) -> None:
    """Some fifty lies in one round: a refusal never changes what a site goes on with."""
    told: set[tuple[str, str]] = set()

    def down(peer: str, signed: Signed) -> Sequence[Signed]:
        kind = kind_of(signed.body)
        if (peer, kind) in told:  # what was said already comes again to whoever has offered new prekeys
            return [signed]
        told.add((peer, kind))
        return told_with(liar, signed, peer)

    async with lying(tmp_path) as liar:
        liar.down = down
        await liar.until_version(1)
        every = [lie for lies in LIES.values() for lie in lies.values()]
        for name in SITES:
            await liar.until(
                lambda name=name: len(liar.sent(Refused, name)) >= len(every), f"{name} refuses {len(every)} lies"
            )
            said = [(item.code, item.setting) for item in liar.sent(Refused, name)]
            assert sorted(said) == sorted((lie.code, lie.setting) for lie in every)
            for lie in every:
                counted = f"site-{lie.code}"
                await liar.until(lambda code=counted: liar.refused(code) == set(SITES), f"{counted} is counted")
                assert f"refused: {lie.code}:" in liar.site_log(name)
        assert told == {(name, kind.KIND) for name in SITES for kind in LIES}
        liar.check_sum(SITES)


# ---- different sets for different sites -----------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["delivery", "freeze"])
async def test_a_split_set_isolates_nobody(tmp_path: Path, split: str) -> None:
    """The victim masks with two others only; its upload then fits nobody's sets, and no keeper signs its survival."""
    small = positions_bytes([0, 1, 2])

    def delivered(peer: str, true: Delivery) -> Delivery:
        if peer != VICTIM or split != "delivery":
            return true
        rows, parcels = ACCEPTANCES.read(true.acceptances), PARCELS.read(true.parcels)
        return dataclasses.replace(true, acceptances=ACCEPTANCES.write(rows[:3]), parcels=PARCELS.write(parcels[:3]))

    async with lying(tmp_path) as liar:
        bent = bend(liar, Freeze, lambda peer, true: Freeze(true.context, small) if peer == VICTIM else true)
        bent_delivery = bend(liar, Delivery, delivered)
        liar.down = held(
            Survivors, by=lambda peer, signed: [s for d in bent_delivery(peer, signed) for s in bent(peer, d)]
        )
        # The coordinator's own machine would call the victim's upload foreign: it isn't shown it.
        liar.up = lambda peer, signed: [] if peer == VICTIM and opened(Upload, signed) else [signed]
        await liar.until(lambda: liar.senders(Upload) == set(SITES), "all have uploaded")
        liar.whisper(SITES, forged_survivors(liar))
        await liar.until_refused("upload-signature")
        liar.check_nothing_revealed()


async def test_a_second_survivor_set_is_signed_by_nobody(tmp_path: Path) -> None:
    async with lying(tmp_path) as liar:
        liar.down = held(Quorum)
        await liar.until(lambda: liar.senders(Survived) == set(SITES), "all have signed the survivors")
        liar.whisper(SITES, forged_survivors(liar, *OTHERS))
        await liar.until_refused("second-survivors")
        liar.check_nothing_revealed()


async def test_halves_that_sign_different_survivors_make_no_quorum(tmp_path: Path) -> None:
    half = SITES[2:]
    async with lying(tmp_path) as liar:
        bent = bend(liar, Survivors, lambda peer, true: forged_survivors(liar, *OTHERS) if peer in half else true)
        liar.down = held(Quorum, by=bent)
        liar.up = lambda peer, signed: [] if peer in half and opened(Survived, signed) else [signed]
        await liar.until(lambda: liar.senders(Survived) == set(SITES), "all have signed some survivors")
        assert len({item.survivors_hash for item in liar.sent(Survived)}) == 2
        signed = liar.said_by(Survived, liar.context().hash)
        rows = [(liar.context().position(name).to_bytes(2, "big"), signed[name].signature) for name in SITES]
        liar.whisper(SITES, Quorum(liar.context().hash, QUORUM.write(rows)))
        await liar.until_refused("quorum-signature")
        liar.whisper(SITES[:2], Quorum(liar.context().hash, QUORUM.write(rows[:2])))
        liar.whisper(half, Quorum(liar.context().hash, QUORUM.write(rows[2:])))
        await liar.until_refused("quorum-short")
        liar.check_nothing_revealed()


def forged_survivors(liar: Liar, *names: str) -> Survivors:
    """Survivors as the coordinator would like them, from the uploads that these sites (or all) have signed."""
    context = liar.context()
    rows = []
    for name, signed in sorted(liar.said_by(Upload, context.hash).items()):
        if not names or name in names:
            upload = Upload.parse(signed.body)
            rows.append((upload.position.to_bytes(2, "big"), upload.digest, signed.signature))
    return Survivors(context.hash, UPLOADS.write(rows))


# ---- another model for one ------------------------------------------------------------------------------------------


async def test_a_plan_with_another_model_is_refused_by_its_one_recipient_and_the_others_go_on(tmp_path: Path) -> None:
    async with lying(tmp_path, lease_s=2.0) as liar:
        liar.down = bend(
            liar,
            Plan,
            lambda peer, true: changed(true, base_digest=b"m" * 32) if peer == VICTIM else true,
        )
        await liar.until_refused("model-mismatch", [VICTIM])
        await liar.until_version(1)
        liar.check_sum(OTHERS)


async def test_one_site_on_another_model_masks_with_nobody(tmp_path: Path) -> None:
    """Task and plan agree for the victim, so it can't see the lie; all others do, in its acceptance."""
    other = tmp_path / "other.safetensors"
    save_file({"w": np.ones(DIMENSION, np.float32)}, other)
    digest = hashlib.sha256(other.read_bytes()).digest()

    def prepare(liar: Liar) -> None:
        liar.blobs.put_file(other)
        liar.hub.may_download = lambda peer, wanted: None  # type: ignore[method-assign]
        liar.bend_task = other_task
        liar.down = bend(liar, Plan, lambda peer, true: changed(true, base_digest=digest) if peer == VICTIM else true)

    def other_task(peer: str, task: pb.Task) -> None:
        if peer == VICTIM:
            task.base.digest = digest

    def delivered(peer: str, true: Delivery) -> Delivery:
        """With the acceptance that the victim has signed for its own context."""
        accept = next(item for item in liar.sent(Accept, VICTIM))
        context = liar.attempt()
        position = context.position(VICTIM)
        row = (position.to_bytes(2, "big"), accept.beacon, accept.commitment, accept.acceptance_signature)
        parcel = PARCELS.read(accept.parcels)[context.position(peer)]
        return dataclasses.replace(
            true,
            acceptances=ACCEPTANCES.write([row]) + true.acceptances,
            parcels=PARCELS.write([parcel]) + true.parcels,
        )

    async with lying(tmp_path, lease_s=3.0, bend_first=prepare) as liar:
        await liar.until(lambda: liar.senders(Accept) == set(SITES), "all have accepted something")
        assert len({item.context for item in liar.sent(Accept)}) == 2
        liar.down = bend(liar, Delivery, delivered)
        await liar.until_refused("acceptance-signature", OTHERS)
        liar.check_nothing_revealed()


def changed(true: Plan, **changes: object) -> Plan:
    """The plan with other values in its context."""
    return Plan(dataclasses.replace(RoundContext.parse(true.context), **changes).canonical())


# ---- again ----------------------------------------------------------------------------------------------------------


async def test_what_belongs_to_an_earlier_round_is_refused_in_the_next(tmp_path: Path) -> None:
    """Replayed plans, prekeys that were used, and the other statements of round 1 in round 2."""
    first: dict[str, list[Signed]] = {}

    def down(peer: str, signed: Signed) -> Sequence[Signed]:
        plan = opened(Plan, signed)
        round_number = liar.attempt().round if liar.hub.machine.attempt is not None else 0
        if round_number == 1:
            first.setdefault(peer, []).append(signed)
        if plan is None or round_number != 2:
            return [signed]
        old = [item for item in first[peer] if opened(Result, item) is None]
        roster = RoundContext.parse(opened(Plan, old[0]).context).roster
        return [*old, changed(plan, roster=roster).signed(liar.key), signed]

    async with lying(tmp_path, count=2) as liar:
        liar.down = down
        await liar.until_version(2)
        for code in ("round-replayed", "prekey-used", "context-unknown"):
            await liar.until_refused(code)
        liar.check_sum(SITES, 1)
        liar.check_sum(SITES, 2)


async def test_a_roster_that_differs_by_one_is_refused_and_the_setting_is_named(tmp_path: Path) -> None:
    def shorter(peer: str, true: Plan) -> Plan:
        context = RoundContext.parse(true.context)
        return changed(true, roster=context.roster[:3]) if context.round == 2 else true

    async with lying(tmp_path, count=2) as liar:
        bent = bend(liar, Plan, shorter)
        liar.down = lambda peer, signed: [*bent(peer, signed), signed] if opened(Plan, signed) else [signed]
        await liar.until_version(2)
        await liar.until_refused("roster-change", SITES[:3], "[secure_aggregation] min_roster_change")
        assert "site-3 only" in liar.site_log(VICTIM)
        liar.check_sum(SITES, 2)


async def test_a_site_keeps_its_own_floor_whatever_the_plan_says(tmp_path: Path) -> None:
    """An honest coordinator, a plan for sums of three, and sites that ask for four."""
    async with lying(tmp_path, rules={"min_cohort": 4}, deaf=False) as liar:
        await liar.until_refused("cohort-floor", SITES, "[secure_aggregation] min_cohort")
        await liar.until(lambda: bool(liar.failures()), "the attempt ends by name")
        assert liar.failures()[0].startswith("too-few-accepts:")
        assert " refuses: cohort-floor" in liar.failures()[0], "whoever refused first is named"
        assert "asks for 4 at least" in liar.failures()[0]
        liar.check_nothing_revealed()


async def test_messages_that_come_twice_and_again_change_nothing(tmp_path: Path) -> None:
    told: dict[str, list[Signed]] = {}
    heard: dict[str, list[Signed]] = {}

    def again(past: dict[str, list[Signed]], peer: str, signed: Signed) -> Sequence[Signed]:
        mine = past.setdefault(peer, [])
        if signed in mine:  # a repetition is answered, which would make another
            return [signed]
        mine.append(signed)
        return [signed, *mine]

    async with lying(tmp_path, bend_first=lambda liar: setattr(liar, "up", lambda p, s: again(heard, p, s))) as liar:
        liar.down = lambda peer, signed: [signed] if opened(Result, signed) else again(told, peer, signed)
        await liar.until_version(1)
        liar.check_sum(SITES)
        assert liar.store.refusals() == {}


async def test_statements_that_come_in_the_wrong_order_wait_for_their_turn(tmp_path: Path) -> None:
    """The victim, still training, gets what it is owed backwards. It keeps shares as if nothing had been."""
    kept: dict[type, Signed] = {}

    def down(peer: str, signed: Signed) -> Sequence[Signed]:
        for kind in (Delivery, Freeze, Survivors, Quorum):
            if opened(kind, signed) is not None and (peer == VICTIM) == (kind is Delivery):
                kept[kind] = signed
        if opened(Quorum, signed) is not None and not flushed:
            flushed.append(True)
            for kind in (Quorum, Survivors, Freeze, Delivery):
                liar.tell(VICTIM, kept[kind])
        return [] if peer == VICTIM and opened(Delivery, signed) else [signed]

    flushed: list[bool] = []
    async with lying(tmp_path, untrained=[VICTIM]) as liar:
        liar.down = down
        await liar.until(lambda: Delivery in kept, "the victim has accepted")
        liar.forsake(VICTIM)
        await liar.until_version(1)
        await liar.until(lambda: bool(liar.sent(Release, VICTIM)), "the victim has released its shares")
        liar.check_sum(OTHERS)
        assert len(liar.sent(Survived, VICTIM)) == 1
        assert liar.store.refusals() == {}


async def test_a_site_that_comes_back_trained_after_the_freeze_refuses_it_by_name(tmp_path: Path) -> None:
    """Nobody lies here, but the site can't know: it was ready and is left out. That costs a keeper, not the sum."""
    async with lying(tmp_path, untrained=[VICTIM]) as liar:
        liar.down = held(Quorum)
        await liar.until(lambda: bool(liar.sent(Accept, VICTIM)), "the victim has accepted")
        liar.forsake(VICTIM)
        await liar.until(lambda: liar.senders(Survived) == set(OTHERS), "the others have signed the survivors")
        site = liar.sites[VICTIM]
        site.work.gate.set()
        await liar.until(lambda: bool(site.store.undelivered()), "the victim has trained")
        site.daemon._reconnect("a test says so")
        await liar.until(lambda: bool(liar.sent(Refused, VICTIM)), "the victim refuses")
        assert set(liar.store.refusals()) == {("site-freeze-without-me", VICTIM)}
        assert liar.sent(Survived, VICTIM) == []


# ---- what was dropped stays hidden ----------------------------------------------------------------------------------


async def test_an_upload_that_was_called_missing_never_becomes_readable(tmp_path: Path) -> None:
    """The coordinator holds the victim's upload, calls it dropped, gets the sum of the others, and asks for more."""
    async with lying(tmp_path) as liar:
        liar.up = lambda peer, signed: [] if peer == VICTIM and opened(Upload, signed) else [signed]
        liar.down = held(Result)
        await liar.until(lambda: liar.senders(Upload) == set(SITES), "all have uploaded")
        context = liar.context()
        await liar.until(lambda: len(liar.hub.machine.attempt.digests()) == 3, "the others' uploads are in")
        upload = Upload.parse(liar.said_by(Upload, context.hash)[VICTIM].body)
        content = liar.blobs.path(upload.digest).read_bytes()
        liar.forsake(VICTIM)
        await liar.until_version(1)
        # Both kinds of share of the victim would open its update: the second is refused, before and after the result.
        for code in ("second-survivors", "context-unknown"):
            liar.whisper(OTHERS, forged_survivors(liar))
            await liar.until_refused(code, OTHERS)
            liar.down = lambda peer, signed: [signed]
            result = next(iter(liar.store.results()))
            for name in OTHERS:
                liar.tell(name, Signed(result.body, result.signature))
        liar.check_sum(OTHERS)
        seeds = [int.from_bytes(row[0], "big") for item in liar.sent(Release) for row in RELEASES.read(item.seeds)]
        assert seeds.count(0) == 0 and len(seeds) == 9
        unmasked = without_pair_masks(liar, context, content)
        assert is_noise(unmasked.tobytes())
        # With the seed that nobody has given away it would have been all there.
        add_streams(unmasked, streams([MaskTerm(liar.sites[VICTIM].terms[context.hash][0].seed, -1)], MAIN))
        assert np.ptp(unmasked) <= 1 and not is_noise(unmasked.tobytes())


def without_pair_masks(liar: Liar, context: RoundContext, content: bytes) -> np.ndarray:
    """The victim's upload after the coordinator has done with it what the released shares allow."""
    position = context.position(VICTIM)
    shares = []
    for name in OTHERS:
        rows = RELEASES.read(liar.sent(Release, name)[0].mask_keys)
        found = [row[1] for row in rows if int.from_bytes(row[0], "big") == position]
        shares.append((context.position(name) + 1, found[0]))
    mask_key = AgreementKey(combine(shares, threshold=context.numbers.threshold))
    assert mask_key.public == context.roster[position].mask_key
    main, _ = split_upload(content, context.layout)
    ring = context.encoding.unpack(main, context.dimension).copy()
    terms = [
        MaskTerm(pair_seed(mask_key, seat.mask_key, context.hash, position, other), -1 if position < other else 1)
        for other, seat in enumerate(context.roster)
        if other != position
    ]
    add_streams(ring, streams(terms, MAIN))
    return ring


async def test_a_second_release_is_the_first_one_again_or_none(tmp_path: Path) -> None:
    async with lying(tmp_path) as liar:
        liar.down = held(Result)
        await liar.until_version(1)
        await liar.until(lambda: liar.senders(Release) == set(SITES), "all have released")
        quorum = next(signed for _, signed in liar.told if opened(Quorum, signed))
        for name in SITES:
            liar.tell(name, quorum)
        await liar.until(lambda: len(liar.sent(Release)) >= 8, "all have repeated their release")
        liar.whisper(SITES, forged_survivors(liar, *OTHERS))
        await liar.until_refused("second-survivors")
        liar.whisper(SITES, Quorum(liar.context().hash, QUORUM.write([(bytes(2), bytes(64))])))
        await liar.until_refused("quorum-signature")
        assert len(liar.sent(Release)) == 8
        liar.check_promises_kept()
        liar.check_sum(SITES)


@pytest.mark.parametrize("evidence", ["true", "forged", "none"])
async def test_parcels_for_another_keeper_open_nothing_and_cost_no_dealer_its_key(
    tmp_path: Path, evidence: str
) -> None:
    """Keepers that can't read a parcel ask for the dealer's own word before they show any key."""

    def rotated(peer: str, true: Delivery) -> Delivery:
        """Everyone gets the parcels that others have dealt to the next keeper."""
        context = liar.attempt()
        me, rows = context.position(peer), PARCELS.read(true.parcels)
        for name, signed in liar.said_by(Accept, context.hash).items():
            dealer, dealt = context.position(name), PARCELS.read(Accept.parse(signed.body).parcels)
            rows[dealer] = dealt[me if dealer == me else (me + 1) % 4]
        return dataclasses.replace(true, parcels=PARCELS.write(rows))

    def worded(peer: str, true: Evidence) -> Evidence | None:
        if evidence == "forged":
            return dataclasses.replace(true, signature=bytes(64))
        return true if evidence == "true" else None

    async with lying(tmp_path) as liar:
        liar.down = both(bend(liar, Delivery, rotated), bend(liar, Evidence, worded))
        await liar.until(lambda: len(liar.sent(Doubt)) == 4, "all keepers ask")
        if evidence != "none":
            await liar.until_refused("parcel-foreign")
        assert not liar.sent(Complaint)
        liar.check_nothing_revealed()
