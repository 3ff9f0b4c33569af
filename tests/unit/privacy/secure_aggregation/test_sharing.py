"""Seeds, sealed shares and commitments: the same at both ends, and nowhere else."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os

import pytest
from secure_world import World

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.field import PRIME, combine
from privacy.secure_aggregation.keys import AgreementKey, seal
from privacy.secure_aggregation.sharing import (
    MASK_KEY,
    SEED,
    Parcel,
    beacon_hash,
    commitment_of,
    deal,
    open_parcel,
    pair_seed,
    parcel_commitment,
    read_parcel,
    sealing_key,
    seed_commitment,
    share_hash,
)

KEYS = [AgreementKey(bytes([item]) * 32) for item in range(1, 9)]
SECRET = bytes(range(32))


@functools.cache
def context() -> RoundContext:
    """Five participants; position i has KEYS[i] as its share key."""
    plan = World(5).context()
    roster = tuple(dataclasses.replace(seat, share_key=KEYS[item].public) for item, seat in enumerate(plan.roster))
    return dataclasses.replace(plan, roster=roster)


@functools.cache
def dealt() -> list[tuple[bytes, bytes]]:
    """What position 1 deals."""

    return list(deal(context(), 1, KEYS[6], KEYS[1], SECRET, os.urandom))


def test_two_participants_agree_on_the_seed_of_their_mask() -> None:
    h = context().hash
    one = pair_seed(KEYS[0], KEYS[1].public, h, 0, 1)
    assert one == pair_seed(KEYS[1], KEYS[0].public, h, 1, 0)
    others = {
        pair_seed(KEYS[0], KEYS[1].public, h, 0, 2),
        pair_seed(KEYS[0], KEYS[1].public, bytes(32), 0, 1),
        pair_seed(KEYS[0], KEYS[2].public, h, 0, 1),
        sealing_key(KEYS[0], KEYS[1].public, h, 0, 1),
    }
    assert len(others | {one}) == 5


def test_a_sealing_key_is_for_one_direction() -> None:
    h = context().hash
    assert sealing_key(KEYS[0], KEYS[1].public, h, 0, 1) == sealing_key(KEYS[1], KEYS[0].public, h, 0, 1)
    assert sealing_key(KEYS[0], KEYS[1].public, h, 0, 1) != sealing_key(KEYS[0], KEYS[1].public, h, 1, 0)


@pytest.mark.parametrize("make", [pair_seed, sealing_key])
def test_no_key_comes_of_a_point_of_low_order(make) -> None:
    with pytest.raises(SecureAggregationError) as caught:
        make(KEYS[0], bytes(32), context().hash, 0, 1)
    assert caught.value.code == "key-invalid"


def test_each_keeper_opens_its_own_parcel_and_any_threshold_of_them_rebuild_both_secrets() -> None:
    parcels = []
    for keeper, (sealed, commitment) in enumerate(dealt()):
        assert (len(sealed), len(commitment)) == (82, 32)
        _, parcel = read_parcel(KEYS[keeper], context(), 1, keeper, sealed, commitment)
        assert parcel is not None
        parcels.append(parcel)
    threshold = context().numbers.threshold
    for chosen in itertools.combinations(range(5), threshold):
        assert combine([(item + 1, parcels[item].seed) for item in chosen], threshold=threshold) == SECRET
        key = combine([(item + 1, parcels[item].mask_key) for item in chosen], threshold=threshold)
        assert key == KEYS[6].secret


def test_a_parcel_opens_for_its_keeper_its_dealer_and_its_attempt_alone() -> None:
    sealed, commitment = dealt()[2]
    h = context().hash
    key, parcel = read_parcel(KEYS[2], context(), 1, 2, sealed, commitment)
    assert parcel is not None
    for opener, dealer, keeper in ((KEYS[3], 1, 2), (KEYS[2], 1, 3), (KEYS[2], 0, 2), (KEYS[2], 2, 1)):
        assert read_parcel(opener, context(), dealer, keeper, sealed, commitment)[1] is None
    later = dataclasses.replace(context(), attempt=2)
    assert read_parcel(KEYS[2], later, 1, 2, sealed, commitment)[1] is None
    assert open_parcel(key, sealed, later.hash, 1, 2) is None
    for index in range(len(sealed)):
        spoilt = sealed[:index] + bytes([sealed[index] ^ 1]) + sealed[index + 1 :]
        assert open_parcel(key, spoilt, h, 1, 2) is None
    assert read_parcel(KEYS[2], context(), 1, 2, sealed, dealt()[3][1])[1] is None
    assert read_parcel(KEYS[2], context(), 1, 2, b"", commitment)[1] is None


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        bytes(65),
        bytes(67),
        PRIME.to_bytes(33, "big") + bytes(33),
        bytes(33) + PRIME.to_bytes(33, "big"),
        b"\xff" * 66,
    ],
)
def test_what_is_no_pair_of_shares_is_no_parcel(plain: bytes) -> None:
    h = context().hash
    key = sealing_key(KEYS[1], KEYS[2].public, h, 1, 2)
    bound = h + (1).to_bytes(2, "big") + (2).to_bytes(2, "big")
    assert open_parcel(key, seal(key, plain, bound), h, 1, 2) is None
    largest = (PRIME - 1).to_bytes(33, "big") * 2
    key = sealing_key(KEYS[1], KEYS[2].public, h, 1, 2)
    assert open_parcel(key, seal(key, largest, bound), h, 1, 2) == Parcel(largest[:33], largest[33:])


def test_a_share_can_be_shown_alone_and_no_other_passes_for_it() -> None:
    h = context().hash
    parcel = Parcel(b"m" * 33, b"s" * 33)
    commitment = commitment_of(h, 1, 2, parcel)
    mask_key, seed = (share_hash(h, 1, 2, MASK_KEY, parcel.mask_key), share_hash(h, 1, 2, SEED, parcel.seed))
    assert parcel_commitment(mask_key, seed) == commitment
    assert parcel_commitment(seed, mask_key) != commitment
    for other in (
        commitment_of(h, 1, 3, parcel),
        commitment_of(h, 2, 2, parcel),
        commitment_of(bytes(32), 1, 2, parcel),
        commitment_of(h, 1, 2, Parcel(parcel.seed, parcel.mask_key)),
        commitment_of(h, 1, 2, Parcel(b"m" * 32 + b"n", parcel.seed)),
    ):
        assert other != commitment


def test_commitments_to_seeds_and_beacons_bind_everything() -> None:
    h = context().hash
    made = {
        seed_commitment(h, 1, SECRET),
        seed_commitment(h, 2, SECRET),
        seed_commitment(bytes(32), 1, SECRET),
        seed_commitment(h, 1, bytes(32)),
        beacon_hash(SECRET),
        beacon_hash(bytes(32)),
    }
    assert len(made) == 6


def test_a_dealers_low_order_keeper_stops_the_dealing() -> None:
    roster = (*context().roster[:4], dataclasses.replace(context().roster[4], share_key=bytes(32)))

    with pytest.raises(SecureAggregationError) as caught:
        list(deal(dataclasses.replace(context(), roster=roster), 1, KEYS[6], KEYS[1], SECRET, os.urandom))
    assert caught.value.code == "key-invalid"
