"""Certified sites that don't keep to the protocol, over real TLS: refused by name, counted, and the round goes on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from privacy.secure_aggregation.keys import AgreementKey, SigningKey
from privacy.secure_aggregation.prekeys import LIFE_S
from privacy.secure_aggregation.sharing import beacon_hash
from privacy.secure_aggregation.statements import (
    MAX_STATEMENT_BYTES,
    PARCELS,
    PREKEYS,
    RELEASES,
    Accept,
    Plan,
    Prekey,
    PrekeyBatch,
    Ready,
    Refused,
    Release,
    Signed,
    Statement,
    Survived,
    Upload,
    kind_of,
)
from privacy.transcript import encode
from tests.adversarial.liars import SITES, VICTIM, Liar, lying, opened
from wire import upload

HOSTILE = VICTIM
HONEST = SITES[1:]

Make = Callable[[Liar, SigningKey, Any], Signed]
"""Something hostile in the place of a true statement; gets the site's own key."""


def by_another_key(liar: Liar, own: SigningKey, true: Statement) -> Signed:
    """The true statement under a signature that isn't the site's."""
    return true.signed(SigningKey(b"x" * 32))


def with_(**changes: object) -> Make:
    """The statement with other values, signed by the site."""
    return lambda liar, own, true: dataclasses.replace(true, **changes).signed(own)


def prekeys(name: str, owner: SigningKey, mask_key: bytes, index: int = 99) -> bytes:
    """A table with one prekey."""
    share_key = AgreementKey.generate().public
    prekey = Prekey("stage", name, index, mask_key, share_key, beacon_hash(bytes(32)), 2_000_000_000 + LIFE_S)
    expiry = prekey.expires_s.to_bytes(8, "big")
    row = (index.to_bytes(8, "big"), mask_key, share_key, prekey.beacon_hash, expiry, prekey.signed(owner).signature)
    return PREKEYS.write([row])


def _spoilt_release(true: Release) -> Release:
    rows = RELEASES.read(true.seeds)
    share = bytes([rows[0][1][0], rows[0][1][1] ^ 1, *rows[0][1][2:]])
    return dataclasses.replace(true, seeds=RELEASES.write([(rows[0][0], share, rows[0][2]), *rows[1:]]))


HOSTILITIES: dict[type[Statement], dict[str, tuple[Make, str]]] = {
    PrekeyBatch: {
        "prekeys that another key signed": (
            lambda liar, own, true: true.signed(SigningKey(b"x" * 32)),
            "signature-invalid",
        ),
        "a prekey of low order": (
            lambda liar, own, true: PrekeyBatch(prekeys(HOSTILE, own, bytes(32))).signed(own),
            "key-invalid",
        ),
        "a prekey twice": (
            lambda liar, own, true: PrekeyBatch(2 * prekeys(HOSTILE, own, AgreementKey.generate().public)).signed(own),
            "prekey-duplicate",
        ),
        "a prekey in another's name": (
            lambda liar, own, true: PrekeyBatch(prekeys(HONEST[0], own, AgreementKey.generate().public)).signed(own),
            "prekey-signature",
        ),
    },
    Accept: {
        "bytes that are no statement": (
            lambda liar, own, true: Signed(b"\xff\x00garbage", bytes(64)),
            "statement-malformed",
        ),
        "no bytes": (lambda liar, own, true: Signed(b"", b""), "statement-malformed"),
        "a statement that is too long": (
            lambda liar, own, true: Signed(bytes(MAX_STATEMENT_BYTES + 1), bytes(64)),
            "statement-malformed",
        ),
        "a statement of no kind": (lambda liar, own, true: Signed(encode((7,)), bytes(64)), "statement-malformed"),
        "a field too many": (
            lambda liar, own, true: signed_body(own, encode(("ready", true.context, b"more"))),
            "statement-malformed",
        ),
        "a statement that only the coordinator makes": (
            lambda liar, own, true: Plan(b"a context").signed(own),
            "statement-unknown",
        ),
        "an acceptance that another key signed": (by_another_key, "signature-invalid"),
        "an acceptance in another's place": (with_(position=1), "acceptance-signature"),
        "a beacon that it hadn't committed to": (
            lambda liar, own, true: rebeaconed(true, own),
            "beacon-mismatch",
        ),
        "too few parcels": (
            lambda liar, own, true: dataclasses.replace(
                true, parcels=PARCELS.write(PARCELS.read(true.parcels)[:2])
            ).signed(own),
            "parcels-missing",
        ),
        "a refusal that another key signed": (
            lambda liar, own, true: Refused(true.context, "invented", "", "").signed(SigningKey(b"x" * 32)),
            "signature-invalid",
        ),
    },
    Upload: {
        "an upload that never came": (
            lambda liar, own, true: dataclasses.replace(true, digest=b"d" * 32).signed(own),
            "update-missing",
        ),
        "another site's place": (
            lambda liar, own, true: dataclasses.replace(true, position=1).signed(own),
            "upload-foreign",
        ),
        "other sets": (
            lambda liar, own, true: dataclasses.replace(true, frozen_hash=bytes(32)).signed(own),
            "upload-foreign",
        ),
        "the base model as an upload": (
            lambda liar, own, true: dataclasses.replace(
                true, digest=bytes.fromhex(liar.hub.machine.state.digest)
            ).signed(own),
            "update-shape",
        ),
    },
    Survived: {"other survivors": (with_(survivors_hash=bytes(32)), "survivors-foreign")},
    Release: {
        "a share that it wasn't dealt": (lambda liar, own, true: _spoilt_release(true).signed(own), "share-wrong"),
        "too few shares": (
            lambda liar, own, true: dataclasses.replace(
                true, seeds=RELEASES.write(RELEASES.read(true.seeds)[:2])
            ).signed(own),
            "release-foreign",
        ),
        "shares for another set": (with_(survivors_hash=bytes(32)), "release-foreign"),
    },
}


def signed_body(key: SigningKey, body: bytes) -> Signed:
    """Any bytes, signed as a statement is."""

    class Bytes(Ready):
        def body(self) -> bytes:
            return body

    return Bytes(b"").signed(key)


def rebeaconed(true: Accept, own: SigningKey) -> Signed:
    acceptance = dataclasses.replace(true.acceptance(), beacon=b"b" * 32)
    signature = acceptance.signed(own).signature
    return dataclasses.replace(true, beacon=b"b" * 32, acceptance_signature=signature).signed(own)


async def test_everything_hostile_is_refused_by_name_and_the_right_statement_behind_it_counts(tmp_path: Path) -> None:
    """The hostile site is slow to release: of the others' releases enough are there, and none of its own is needed."""
    async with lying(tmp_path, deaf=False, hostile=[HOSTILE]) as liar:
        site = liar.sites[HOSTILE]
        done: set[str] = set()

        def hostile(signed: Signed) -> Sequence[Signed]:
            kind = next((item for item in HOSTILITIES if opened(item, signed) is not None), None)
            if kind is None or kind.KIND in done:
                return [signed]
            done.add(kind.KIND)
            true = opened(kind, signed)
            return [*(make(liar, site.site.signing_key, true) for make, _ in HOSTILITIES[kind].values()), signed]

        site.bend = hostile
        # Releases of the others are kept back until the hostile site's are all in.
        waiting: list[tuple[str, Signed]] = []
        liar.up = lambda peer, signed: (
            [signed] if peer == HOSTILE or opened(Release, signed) is None else waiting.append((peer, signed)) or []
        )
        await liar.until(lambda: len(liar.sent(Release, HOSTILE)) == 4, "all of the hostile site's releases have come")
        for peer, signed in waiting:
            liar.daemon.perform(liar.hub._said(peer, signed, 0.0))
        liar.up = lambda peer, signed: [signed]
        await liar.until_version(1)
        liar.check_sum(SITES)
        expected = {code for table in HOSTILITIES.values() for _, code in table.values()}
        assert {code for code, peer in liar.store.refusals() if peer == HOSTILE} == expected
        assert {peer for _, peer in liar.store.refusals()} == {HOSTILE}
        counted = sum(count for (_, peer), count in liar.store.refusals().items())
        assert counted == sum(len(table) for table in HOSTILITIES.values())
        assert done == {kind.KIND for kind in HOSTILITIES}


async def test_another_sites_prekeys_are_refused(tmp_path: Path) -> None:
    async with lying(tmp_path) as liar:
        await liar.until(
            lambda: all(liar.sent(PrekeyBatch, name) for name in (HOSTILE, HONEST[0])), "both have offered"
        )
        site = liar.sites[HOSTILE]
        stolen = next(signed for name, signed in liar.heard if name == HONEST[0] and opened(PrekeyBatch, signed))
        site.say(stolen)
        site.say(PrekeyBatch.parse(stolen.body).signed(site.site.signing_key))
        await liar.until(lambda: HOSTILE in liar.refused("signature-invalid"), "the signature isn't the sender's")
        await liar.until(lambda: HOSTILE in liar.refused("prekey-signature"), "no prekey is the sender's")
        await liar.until_version(1)
        liar.check_sum(SITES)


@pytest.mark.parametrize("change", [-1, 1, -20_000])
async def test_a_masked_update_of_another_size_is_refused_and_the_sum_is_that_of_the_others(
    tmp_path: Path, change: int
) -> None:
    async with lying(tmp_path, lease_s=2.0, deaf=False) as liar:
        site = liar.sites[HOSTILE]

        async def wrong(digest: bytes) -> bool:
            content = site.blobs.path(digest).read_bytes()
            other = content[:change] if change < 0 else content + bytes(change)
            stub = site.daemon._blob_stub
            assert stub is not None
            await upload(stub, memoryview(other), hashlib.sha256(other).digest())
            return True

        site.daemon._upload = wrong  # type: ignore[method-assign]
        await liar.until(lambda: HOSTILE in liar.refused("blob-size"), "the upload is refused")
        del liar.sites[HOSTILE]
        await site.close()
        await liar.until_version(1)
        liar.check_sum(HONEST)
        assert liar.refused("blob-size") == {HOSTILE}


async def test_a_site_that_withholds_its_release_or_gives_a_wrong_one_holds_nobody_up(tmp_path: Path) -> None:
    async with lying(tmp_path, deaf=False, hostile=[HOSTILE], count=2) as liar:
        site = liar.sites[HOSTILE]

        def worse(signed: Signed) -> Sequence[Signed]:
            true = opened(Release, signed)
            if true is None:
                return [signed]
            return [] if liar.attempt().round == 1 else [_spoilt_release(true).signed(site.site.signing_key)]

        site.bend = worse
        await liar.until_version(2)
        liar.check_sum(SITES, 1)
        liar.check_sum(SITES, 2)


async def test_a_site_that_invents_reasons_to_refuse_fills_no_table(tmp_path: Path) -> None:
    """Refusals are for the operator to see; a site may have as many reasons as there are rules, and no more."""
    async with lying(tmp_path) as liar:
        await liar.until_version(1)
        site = liar.sites[HOSTILE]
        for index in range(100):
            site.say(Refused(bytes(32), f"reason-{index}", "", "because").signed(site.site.signing_key))
        await liar.until(lambda: sum(liar.store.refusals().values()) == 100, "all are counted")
        assert len(liar.store.refusals()) == 65
        assert liar.store.refusals()["site-other", HOSTILE] == 36
        assert kind_of(liar.heard[-1][1].body) == Refused.KIND
