"""The secrets of one attempt and what is derived from them: mask seeds, sealed shares, commitments.

Everything is bound to the context's hash H_R: a key that was derived for one attempt fits no other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.field import PRIME, SHARE_BYTES, split
from privacy.secure_aggregation.keys import AgreementKey, Random, Secret, derive, seal, unseal
from privacy.transcript import digest

_SEED_LABEL: Final = "fedloom/secure-aggregation/seed/1"
_SHARE_LABEL: Final = "fedloom/secure-aggregation/share/1"
_PARCEL_LABEL: Final = "fedloom/secure-aggregation/parcel/1"
_BEACON_LABEL: Final = "fedloom/secure-aggregation/beacon-commitment/1"

MASK_KEY: Final = "mask-key"
SEED: Final = "seed"


@dataclasses.dataclass(frozen=True)
class Parcel(Secret):
    """One keeper's shares of a dealer's two secrets, 33 bytes each."""

    mask_key: bytes = dataclasses.field(repr=False)
    seed: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class MaskTerm:
    """One summand of a mask: the seed of its stream (32 bytes), added or subtracted (``sign`` 1 or -1)."""

    seed: bytes = dataclasses.field(repr=False)
    sign: int


def beacon_hash(beacon: bytes) -> bytes:
    """What a prekey commits to, 32 bytes."""
    return digest(_BEACON_LABEL, beacon)


def seed_commitment(context: bytes, position: int, seed: bytes) -> bytes:
    """com(b_i), 32 bytes."""
    return digest(_SEED_LABEL, (context, position, seed))


def share_hash(context: bytes, dealer: int, keeper: int, kind: str, share: bytes) -> bytes:
    """Hash of one share. It hides the share, which is uniform in a field of 2^256 elements."""
    return digest(_SHARE_LABEL, (context, dealer, keeper, kind, share))


def parcel_commitment(mask_key_hash: bytes, seed_hash: bytes) -> bytes:
    """What a dealer commits to for one keeper: either share can be shown alone, with the hash of the other."""
    return digest(_PARCEL_LABEL, (mask_key_hash, seed_hash))


def commitment_of(context: bytes, dealer: int, keeper: int, parcel: Parcel) -> bytes:
    """The commitment of a whole parcel."""
    return parcel_commitment(
        share_hash(context, dealer, keeper, MASK_KEY, parcel.mask_key),
        share_hash(context, dealer, keeper, SEED, parcel.seed),
    )


def pair_seed(key: AgreementKey, peer: bytes, context: bytes, one: int, other: int) -> bytes:
    """The seed of the mask that two participants share, the same at both ends.

    Raises:
        SecureAggregationError: "key-invalid" for a peer's key of low order.
    """
    low, high = sorted((one, other))
    info = b"mask" + low.to_bytes(2, "big") + high.to_bytes(2, "big")
    return derive(key.agree(peer), salt=context, info=info)


def sealing_key(key: AgreementKey, peer: bytes, context: bytes, dealer: int, keeper: int) -> bytes:
    """The key under which a dealer seals one parcel for one keeper, the same at both ends.

    Raises:
        SecureAggregationError: "key-invalid" for a peer's key of low order.
    """
    info = b"share" + dealer.to_bytes(2, "big") + keeper.to_bytes(2, "big")
    return derive(key.agree(peer), salt=context, info=info)


def _bound_to(context: bytes, dealer: int, keeper: int) -> bytes:
    return context + dealer.to_bytes(2, "big") + keeper.to_bytes(2, "big")


def open_parcel(key: bytes, sealed: bytes, context: bytes, dealer: int, keeper: int) -> Parcel | None:
    """The parcel, or None if it wasn't sealed under this key for this keeper in this attempt."""
    plain = unseal(key, sealed, _bound_to(context, dealer, keeper))
    if plain is None or len(plain) != 2 * SHARE_BYTES:
        return None
    parcel = Parcel(plain[:SHARE_BYTES], plain[SHARE_BYTES:])
    # A number outside the field is no share: nothing could be rebuilt with it.
    fits = all(int.from_bytes(share, "big") < PRIME for share in (parcel.mask_key, parcel.seed))
    return parcel if fits else None


def read_parcel(
    key: AgreementKey, context: RoundContext, dealer: int, keeper: int, sealed: bytes, commitment: bytes
) -> tuple[bytes, Parcel | None]:
    """Open a dealer's parcel at its keeper.

    Args:
        key: The keeper's, e_sk.
        context: Of the attempt.
        dealer: Its position.
        keeper: Its position.
        sealed: 82 bytes.
        commitment: What the dealer committed to, 32 bytes.

    Returns:
        The key under which it should be sealed, and the parcel; None where it doesn't open, or isn't what was
        committed to.

    Raises:
        SecureAggregationError: "key-invalid" for a dealer's key of low order.
    """
    sealed_under = sealing_key(key, context.roster[dealer].share_key, context.hash, dealer, keeper)
    parcel = open_parcel(sealed_under, sealed, context.hash, dealer, keeper)
    if parcel is not None and commitment_of(context.hash, dealer, keeper, parcel) != commitment:
        parcel = None
    return sealed_under, parcel


def deal(
    context: RoundContext, position: int, mask_key: AgreementKey, share_key: AgreementKey, seed: bytes, random: Random
) -> Iterator[tuple[bytes, bytes]]:
    """Share a participant's two secrets among the keepers.

    Formal Guarantees:
        Fewer than ``context.numbers.threshold`` keepers together learn nothing about either secret (Shamir 1979);
        a parcel opens at its keeper only, and only in this attempt.

    Args:
        context: Of the attempt.
        position: The dealer's.
        mask_key: c_sk, from which pairwise masks are agreed.
        share_key: e_sk, under which parcels are sealed.
        seed: b_i, 32 bytes, of the self mask.
        random: Where the polynomials come from.

    Returns:
        For each keeper in order: the sealed parcel (82 bytes) and its commitment (32 bytes).

    Raises:
        SecureAggregationError: "key-invalid" for a keeper's key of low order.
    """
    points = [keeper + 1 for keeper in context.keepers]
    threshold = context.numbers.threshold
    of_key = split(mask_key.secret, threshold=threshold, points=points, random=random)
    of_seed = split(seed, threshold=threshold, points=points, random=random)
    for keeper, key_share, seed_share in zip(context.keepers, of_key, of_seed, strict=True):
        parcel = Parcel(key_share, seed_share)
        key = sealing_key(share_key, context.roster[keeper].share_key, context.hash, position, keeper)
        sealed = seal(key, key_share + seed_share, _bound_to(context.hash, position, keeper))
        yield sealed, commitment_of(context.hash, position, keeper, parcel)
