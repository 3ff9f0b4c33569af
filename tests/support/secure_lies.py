"""A coordinator, or a participant, that says what its machine never would: for tests of what the others answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import pytest
from secure_world import Site, World

from privacy.secure_aggregation import participant
from privacy.secure_aggregation.context import RoundContext, Seat
from privacy.secure_aggregation.field import combine, split
from privacy.secure_aggregation.keys import AgreementKey, SigningKey, seal
from privacy.secure_aggregation.memory import Step
from privacy.secure_aggregation.sharing import Parcel, commitment_of, sealing_key
from privacy.secure_aggregation.statements import (
    PARCELS,
    QUORUM,
    RELEASES,
    UPLOADS,
    Accept,
    Plan,
    Prekey,
    Quorum,
    Refused,
    Release,
    Signed,
    Survivors,
    kind_of,
)


def held(kind: str, count: int = 5, **changes: object) -> World:
    """A world in which everything has happened but what follows from the coordinator's statements of this kind."""
    world = World(count, dimension=6, **changes)
    world.hold = {kind}
    world.run()
    assert world.held
    world.deaf = True
    return world


def context_of(world: World) -> RoundContext:
    assert world.attempt is not None
    return world.attempt.context


def refuses(step: Step, code: str, setting: str = "") -> None:
    """A named, signed reason, and nothing else: no share, no key, no work, nothing to remember."""
    assert step.refusal is not None, step
    assert step.refusal.code == code
    assert step.refusal.setting == (f"[secure_aggregation] {setting}" if setting else "")
    assert [kind_of(item.body) for item in step.answers] == ["refused"]
    assert Refused.parse(step.answers[0].body).code == code
    assert (step.changes, step.work) == ([], [])


def statement(world: World, kind: type, name: str = "site-000"):  # type: ignore[no-untyped-def]
    """What the honest coordinator has for a participant."""
    return kind.parse(next(item.body for to, item in world.held if to == name))


def survivors_without(world: World, *names: str) -> Survivors:
    """The survivor set that leaves some out."""
    gone = {context_of(world).position(name) for name in names}
    rows = UPLOADS.read(statement(world, Survivors).uploads)
    kept = [row for row in rows if int.from_bytes(row[0], "big") not in gone]
    return Survivors(context_of(world).hash, UPLOADS.write(kept))


def signed_by(world: World, survivors: Survivors, names: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """Show these keepers a survivor set; the rows of a quorum that come of it."""
    rows = []
    for name in names:
        step = world.whisper(name, survivors)
        for answer in step.answers:
            if kind_of(answer.body) == "survived":
                position = context_of(world).position(name)
                assert position is not None
                rows.append((position.to_bytes(2, "big"), answer.signature))
    return rows


def quorum(world: World, rows: Iterable[tuple[bytes, bytes]]) -> Quorum:
    return Quorum(context_of(world).hash, QUORUM.write(rows))


def released(world: World, asked: Quorum, names: Iterable[str]) -> dict[str, Release]:
    """Ask these keepers for their shares; what they give."""
    steps = {name: world.whisper(name, asked) for name in names}
    answers = {name: [item.body for item in step.answers] for name, step in steps.items()}
    return {name: Release.parse(item[0]) for name, item in answers.items() if kind_of(item[0]) == "release"}


def planned(world: World, context: RoundContext, name: str = "site-000") -> Step:
    return world.whisper(name, Plan(context.canonical()))


def reseated(world: World, context: RoundContext, position: int, signer: SigningKey, **changes: bytes) -> RoundContext:
    """The context with other keys in a seat, under a new signature."""
    seat = dataclasses.replace(context.roster[position], **changes)
    prekey = Prekey("clinics", seat.name, seat.index, seat.mask_key, seat.share_key, seat.beacon_hash, seat.expires_s)
    seat = dataclasses.replace(seat, signature=prekey.signed(signer).signature)
    return with_seat(context, position, seat)


def with_seat(context: RoundContext, position: int, seat: Seat) -> RoundContext:
    roster = (*context.roster[:position], seat, *context.roster[position + 1 :])
    return dataclasses.replace(context, roster=roster)


def fresh_keys() -> dict[str, bytes]:
    return {"mask_key": AgreementKey.generate().public, "share_key": AgreementKey.generate().public}


def note(site: Site, step: Step) -> Step:
    site.store.change(step.changes)
    return step


def rebuilt(world: World, answers: Mapping[str, Release]) -> dict[str, dict[int, bytes]]:
    """What a coordinator can rebuild from these releases."""
    context = context_of(world)
    found: dict[str, dict[int, bytes]] = {}
    for kind in ("seeds", "mask_keys"):
        shares: dict[int, list[tuple[int, bytes]]] = {}
        for name, release in answers.items():
            for dealer, share, _ in RELEASES.read(getattr(release, kind)):
                shares.setdefault(int.from_bytes(dealer, "big"), []).append((context.names.index(name) + 1, share))
        found[kind] = {
            dealer: combine(pairs, threshold=context.numbers.threshold)
            for dealer, pairs in shares.items()
            if len(pairs) >= context.numbers.threshold
        }
    return found


def dealt(world: World, dealer: str, change) -> None:  # type: ignore[no-untyped-def]
    """This participant deals other parcels than the protocol says, and signs them."""

    def up(name: str, signed: Signed) -> list[Signed]:
        if name != dealer or kind_of(signed.body) != "accept":
            return [signed]
        accept = Accept.parse(signed.body)
        rows = change(accept, PARCELS.read(accept.parcels))
        return [dataclasses.replace(accept, parcels=PARCELS.write(rows)).signed(world.sites[name].key)]

    world.filter_up = up


def crooked(world: World, name: str):  # type: ignore[no-untyped-def]
    """A participant whose shares lie on no polynomial of the right degree, though each fits its commitment."""

    class Crooked(participant.Participant):
        def plan(self, signed: Signed, task: object, now_s: float) -> Step:
            def deal(context, position, mask_key, share_key, seed, draw):  # type: ignore[no-untyped-def]
                for keeper in context.keepers:
                    one, two = (split(draw(32), threshold=1, points=[keeper + 1])[0] for _ in range(2))
                    key = sealing_key(share_key, context.roster[keeper].share_key, context.hash, position, keeper)
                    bound = context.hash + position.to_bytes(2, "big") + keeper.to_bytes(2, "big")
                    parcel = Parcel(one, two)
                    yield seal(key, one + two, bound), commitment_of(context.hash, position, keeper, parcel)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(participant, "deal", deal)
                return super().plan(signed, task, now_s)  # type: ignore[arg-type]

    return Crooked(name, world.sites[name].key, world.members, world.policy)
