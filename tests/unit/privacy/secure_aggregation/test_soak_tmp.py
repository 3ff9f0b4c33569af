"""A coordinator with as many corrupt participants as are allowed, saying whatever it likes to whom it likes."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_world import World

from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.statements import (
    ACCEPTANCES,
    PARCELS,
    QUORUM,
    RELEASES,
    UPLOADS,
    Accept,
    Delivery,
    Freeze,
    Quorum,
    Release,
    Survived,
    Survivors,
    Upload,
    kind_of,
    positions_bytes,
)


class Conspiracy:
    """It knows all accepts, and the keys and shares of the corrupt; it chooses sets at random, often ones that fit."""

    def __init__(self, count: int, seed: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prekeys, "STOCK", 2)
            patch.setattr(prekeys, "LOW", 1)
            self.world = World(count, dimension=2)
        self.chance = random.Random(seed)
        self.world.hold = {"delivery"}
        self.world.run()
        self.world.deaf = True
        assert self.world.attempt is not None
        self.context: RoundContext = self.world.attempt.context
        self.numbers = self.context.numbers
        everyone = list(range(count))
        self.corrupt = frozenset(self.chance.sample(everyone, self.numbers.corrupt))
        self.honest = sorted(set(everyone) - self.corrupt)
        said = [Accept.parse(item.body) for _, _, item in self.world.sent if kind_of(item.body) == "accept"]
        self.accepts = {item.position: item for item in said}
        self.answers: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
        everybody = frozenset(everyone)
        self.sets = [everybody, *(everybody - {item} for item in self.chance.sample(everyone, 2))]
        self.boldness = self.chance.choice([0.0, 0.1, 0.4])

    def pick(self) -> frozenset[int]:
        """One set for all, or another one for whoever is told next."""
        return self.chance.choice(self.sets) if self.chance.random() < self.boldness else self.sets[0]

    def tell(self, position: int, statement: Delivery | Freeze | Survivors | Quorum) -> bool:
        """Whether it was taken without a refusal."""
        name = self.context.names[position]
        before = len(self.world.sent)
        step = self.world.whisper(name, statement)
        self.world.settle()
        for _, who, item in self.world.sent[before:]:
            self.answers[kind_of(item.body)].append((self.context.names.index(who), item.body))
        return step.refusal is None

    def delivery(self, to: int, accepted: frozenset[int]) -> Delivery:
        rows, parcels = [], []
        for item in sorted(accepted):
            accept = self.accepts[item]
            rows.append((item.to_bytes(2, "big"), accept.beacon, accept.commitment, accept.acceptance_signature))
            parcels.append(PARCELS.read(accept.parcels)[to])
        return Delivery(self.context.hash, ACCEPTANCES.write(rows), (), PARCELS.write(parcels))

    def upload_row(self, position: int, accepted: frozenset[int], frozen: frozenset[int]) -> tuple[bytes, ...] | None:
        """An upload's signature for these sets: an honest one if it was made, a corrupt one at will."""
        sets = (self.context.set_hash(accepted), self.context.set_hash(frozen))
        if position in self.corrupt:
            upload = Upload(self.context.hash, position, *sets, bytes(32))
            signed = upload.signed(self.world.sites[self.context.names[position]].key)
            return position.to_bytes(2, "big"), bytes(32), signed.signature
        for way, name, item in self.world.sent:
            if way == "up" and name == self.context.names[position] and kind_of(item.body) == "upload":
                made = Upload.parse(item.body)
                if (made.accepted_hash, made.frozen_hash) == sets or self.chance.random() < 0.1:
                    return position.to_bytes(2, "big"), made.digest, item.signature
        return None

    def conspire(self) -> None:
        chance = self.chance
        for position in self.honest:
            accepted = self.pick()
            if self.tell(position, self.delivery(position, accepted)):
                self.tell(position, self.delivery(position, chance.choice(self.sets)))
        for _ in range(2):
            for position in self.honest:
                self.tell(position, Freeze(self.context.hash, positions_bytes(self.pick())))
        shown: dict[bytes, Survived] = {}
        for _ in range(3):
            accepted, split = self.pick(), self.pick()
            size = chance.randint(self.numbers.floor, len(self.context.roster))
            members = sorted(chance.sample(range(len(self.context.roster)), size))
            rows = [row for item in members if (row := self.upload_row(item, accepted, split)) is not None]
            survivors = Survivors(self.context.hash, UPLOADS.write(rows))
            for position in self.honest:
                if chance.random() < 0.9:
                    self.tell(position, survivors)
        signatures: dict[bytes, set[tuple[bytes, bytes]]] = defaultdict(set)
        for way, name, item in self.world.sent:
            if way == "up" and kind_of(item.body) == "survived":
                shown[item.body] = Survived.parse(item.body)
                row = (self.context.names.index(name).to_bytes(2, "big"), item.signature)
                signatures[item.body].add(row)
        for body, said in shown.items():
            for position in self.corrupt:
                key = self.world.sites[self.context.names[position]].key
                signatures[body].add((position.to_bytes(2, "big"), said.signed(key).signature))
            for position in self.honest * 2:
                rows = sorted(signatures[body])
                self.tell(position, Quorum(self.context.hash, QUORUM.write(rows)))

    def known(self) -> tuple[dict[int, int], dict[int, int]]:
        """How many shares of each honest participant's seed and mask key are in the conspiracy's hands."""
        seeds: dict[int, set[int]] = defaultdict(set)
        keys: dict[int, set[int]] = defaultdict(set)
        for dealer in self.honest:
            seeds[dealer] |= self.corrupt
            keys[dealer] |= self.corrupt
        for keeper, body in self.answers["release"]:
            release = Release.parse(body)
            for found, rows in ((seeds, release.seeds), (keys, release.mask_keys)):
                for row in RELEASES.read(rows):
                    found[int.from_bytes(row[0], "big")].add(keeper)
        counted = [{item: len(found[item]) for item in self.honest} for found in (seeds, keys)]
        return counted[0], counted[1]


@given(seed=st.integers(0, 2**64), count=st.sampled_from([4, 5, 6, 7]))
@settings(max_examples=2500)
def test_no_conspiracy_learns_more_than_one_sum_over_two_honest_updates(seed: int, count: int) -> None:
    conspiracy = Conspiracy(count, seed)
    conspiracy.conspire()
    seeds, keys = conspiracy.known()
    threshold = conspiracy.numbers.threshold
    bare = {item for item, shares in seeds.items() if shares >= threshold}
    dropped = {item for item, shares in keys.items() if shares >= threshold}
    # Both secrets of nobody; and whoever's self mask is known still wears the pair masks with the others of them.
    assert bare.isdisjoint(dropped)
    assert len(bare) != 1
    hashes = {Release.parse(body).survivors_hash for _, body in conspiracy.answers["release"]}
    assert len(hashes) <= 1
    if bare:
        released = [Release.parse(body) for _, body in conspiracy.answers["release"]]
        sets = {tuple(int.from_bytes(row[0], "big") for row in RELEASES.read(item.seeds)) for item in released}
        assert len(sets) == 1
        (survivors,) = sets
        assert len(survivors) >= conspiracy.numbers.floor
        assert bare == set(survivors) - conspiracy.corrupt
    assert "complaint" not in conspiracy.answers
    conspiracy.world.assert_promises_kept()


def test_the_conspiracies_that_are_tried_do_get_somewhere() -> None:
    reached = []
    for seed in range(25):
        conspiracy = Conspiracy(5, seed)
        conspiracy.conspire()
        reached.append(bool(conspiracy.answers["release"]))
    assert 5 <= sum(reached) <= 24
