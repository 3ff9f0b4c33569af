"""No secret is printed, logged, pickled or kept for longer than it is needed."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterable
from typing import Any

import pytest
from secure_world import World

from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.keys import AgreementKey, SigningKey
from privacy.secure_aggregation.memory import Expand, Mask, Note, Step
from privacy.secure_aggregation.sharing import MaskTerm, Parcel
from privacy.secure_aggregation.statements import Signed
from privacy.transcript import decode


@pytest.fixture(autouse=True)
def few_prekeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prekeys, "STOCK", 3)
    monkeypatch.setattr(prekeys, "LOW", 1)


def forms(secret: bytes) -> list[str]:
    """The ways in which bytes may appear in a text."""
    return [secret.hex(), repr(secret)[2:-1], str(list(secret)), str(int.from_bytes(secret, "big"))]


def shown(text: str, secrets: Iterable[bytes]) -> list[str]:
    return [form for secret in secrets for form in forms(secret) if form in text]


def secrets_of(world: World) -> set[bytes]:
    """Everything private that the participants' notes and work hold."""
    found = {site.key.secret for site in world.sites.values()} | {world.key.secret, world.root.key.secret}
    for site in world.sites.values():
        for note in site.store.notes:
            if note.kind == "prekey":
                found.update(decode(note.body)[2:])  # type: ignore[index, arg-type]
            elif note.kind == "secrets":
                found.update(decode(note.body))  # type: ignore[arg-type]
            elif note.kind == "share-key":
                found.add(note.body)
        hand = site.machine._hand
        if hand is not None:
            found.update(share for parcel in hand.parcels.values() for share in (parcel.mask_key, parcel.seed))
    for terms in world.expansions.values():
        found.update(term.seed for group in terms for term in group)
    return found


STAGES = ("delivery", "freeze", "survivors", "quorum")


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_that_a_machine_holds_or_says_shows_a_secret(stage: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    world = World(4, dimension=3)
    steps: list[Step] = []
    for site in world.sites.values():
        perform = site.perform
        site.perform = lambda step, perform=perform: (steps.append(step), perform(step))[1]  # type: ignore[method-assign]
    world.hold = {stage}
    world.run()
    secrets = secrets_of(world)
    assert len(secrets) > 30
    texts = [repr(steps), repr(world.attempt._book.__dict__ if world.attempt else "")]
    for site in world.sites.values():
        machine = site.machine
        texts += [repr(machine), repr(machine._hand), repr(vars(machine)), repr(vars(machine.stock)), repr(site.key)]
        texts += [repr(vars(machine._history)), repr(site.store.notes)]
    world.released()
    texts += [repr(steps), repr(world.outcome), repr(world.sent), repr(world.records), caplog.text]
    secrets |= secrets_of(world)
    assert shown("\n".join(texts), secrets) == []
    assert caplog.records == []


def test_a_refusal_says_nothing_of_a_secret() -> None:
    world = World(4, dimension=3)
    world.hold = {"delivery"}
    world.run()
    secrets = secrets_of(world)
    words: list[str] = []
    for name, statement in world.held:
        for other in ("site-000", "site-003"):
            if other != name:
                step = world.hear(other, statement)
                words.append(repr(step))
                words += [repr(decode(item.body)) for item in step.answers]
    assert shown("\n".join(words), secrets) == []


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
def test_what_holds_a_secret_cannot_be_pickled_or_copied(how: Any) -> None:
    world = World(3, dimension=3)
    world.hold = {"freeze"}
    world.run()
    machine = world.sites["site-000"].machine
    hand = machine._hand
    assert hand is not None
    secret = next(iter(machine.stock._unused.values()))
    for item in (
        machine,
        machine.stock,
        secret,
        hand,
        hand.parcels[1],
        Parcel(bytes(33), bytes(33)),
        SigningKey.generate(),
        AgreementKey.generate(),
    ):
        with pytest.raises(TypeError, match="holds a secret"):
            how(item)


def test_the_seeds_of_masks_go_to_worker_processes_and_show_nothing_on_the_way() -> None:
    term = MaskTerm(bytes(range(32)), -1)
    assert pickle.loads(pickle.dumps(term)) == term
    world = World(3)
    for work in (Expand(world.context(), (term,)), Mask(world.context(), (term,))):
        assert shown(repr(work), [term.seed]) == []


def test_the_coordinators_statements_and_records_can_be_pickled_and_hold_no_private_key() -> None:
    world = World(3, dimension=3)
    world.run()
    private = {site.key.secret for site in world.sites.values()} | {world.key.secret}
    data = pickle.dumps((world.records, world.outcome, [item for _, _, item in world.sent]))
    assert not any(secret in data for secret in private)


def test_the_private_halves_are_gone_when_an_attempt_is_over() -> None:
    world = World(4, dimension=3)
    world.hold = {"freeze"}
    world.run()
    used: set[bytes] = set()
    for site in world.sites.values():
        for note in site.store.notes:
            if note.kind == "secrets":
                used.update(decode(note.body))  # type: ignore[arg-type]
            elif note.kind == "share-key":
                used.add(note.body)
    assert len(used) == 12
    world.released()
    left = b"".join(note.body for site in world.sites.values() for note in site.store.notes)
    assert not any(secret in left for secret in used)  # already after the release
    world.finish()
    for site in world.sites.values():
        assert site.machine._hand is None
        assert not any(secret in repr(site.store.notes).encode() for secret in used)
        assert all(note.context == b"" for note in site.store.notes)


def test_the_note_of_a_prekey_is_erased_in_the_step_that_uses_it() -> None:
    world = World(3, dimension=3)
    site = world.sites["site-000"]
    before = {note.body for note in site.store.notes if note.kind == "prekey"}
    world.hold = {"delivery"}
    world.begin()
    world.settle()
    after = {note.body for note in site.store.notes if note.kind == "prekey"}
    assert len(before - after) == 1 and after < before
    assert all(isinstance(note, Note) for note in site.store.notes)
    assert repr(Signed(b"body", b"signature")) == "Signed()"
