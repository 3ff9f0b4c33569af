"""From released shares to the order of what to add up: secrets rebuilt, dealers checked, masks worked out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from privacy.secure_aggregation.book import Book
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.decisions import GroupSum, Unmask
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.field import combine
from privacy.secure_aggregation.graph import Group
from privacy.secure_aggregation.keys import AgreementKey
from privacy.secure_aggregation.sharing import MaskTerm, pair_seed, seed_commitment
from privacy.secure_aggregation.statements import RELEASES


@dataclasses.dataclass(frozen=True)
class Secrets:
    """What the released shares rebuild, by position. A secret whose shares rebuild nothing stands there as zeros.

    Attributes:
        seeds: b_i of each survivor.
        mask_keys: c_sk of each participant that dropped between freeze and upload.
    """

    seeds: Mapping[int, bytes] = dataclasses.field(repr=False)
    mask_keys: Mapping[int, bytes] = dataclasses.field(repr=False)


def rebuild(book: Book) -> Secrets:
    """Rebuild the secrets from the shares of the first ``threshold`` keepers, each of which was checked before."""
    keepers = sorted(book.releases)[: book.context.numbers.threshold]
    seeds = ((keeper, book.releases[keeper].seeds) for keeper in keepers)
    mask_keys = ((keeper, book.releases[keeper].mask_keys) for keeper in keepers)
    return Secrets(_rebuilt(book.context, seeds), _rebuilt(book.context, mask_keys))


def _rebuilt(context: RoundContext, released: Iterable[tuple[int, bytes]]) -> dict[int, bytes]:
    shares: dict[int, list[tuple[int, bytes]]] = {}
    for keeper, rows in released:
        for position, share, _ in RELEASES.read(rows):
            shares.setdefault(int.from_bytes(position, "big"), []).append((keeper + 1, share))
    found = {}
    for dealer, pairs in shares.items():
        try:
            found[dealer] = combine(pairs, threshold=context.numbers.threshold)
        except SecureAggregationError:
            found[dealer] = bytes(32)
    return found


def inconsistent(book: Book, secrets: Secrets) -> list[int]:
    """The dealers whose shares don't rebuild what they committed to. Every share was checked, so it is their fault."""
    context = book.context
    liars = [
        item
        for item, seed in secrets.seeds.items()
        if seed_commitment(context.hash, item, seed) != book.accepts[item].commitment
    ]
    liars += [
        item for item, key in secrets.mask_keys.items() if AgreementKey(key).public != context.roster[item].mask_key
    ]
    return sorted(liars)


def unmask(book: Book, secrets: Secrets) -> Unmask:
    """The order to add up and unmask."""
    uploads = {item: book.uploads[item][0] for item in book.survivors}
    return Unmask(book.context, group_sums(book.context, book.groups, uploads, secrets.seeds, secrets.mask_keys))


def group_sums(
    context: RoundContext,
    groups_of: tuple[Group, ...],
    uploads: Mapping[int, bytes],
    seeds: Mapping[int, bytes],
    mask_keys: Mapping[int, bytes],
) -> tuple[GroupSum, ...]:
    """Work out which masks are left in each group's sum of uploads.

    Args:
        context: Of the attempt.
        groups_of: The mask groups.
        uploads: Digest of each survivor's upload, by position.
        seeds: b_i of each survivor.
        mask_keys: c_sk of each that dropped between freeze and upload.

    Returns:
        For each group with survivors: what to add up, and what to add so that all masks cancel.
    """
    found = []
    for group in groups_of:
        members = tuple(item for item in group.members if item in uploads)
        if not members:
            continue
        terms = [MaskTerm(seeds[item], -1) for item in members]
        for gone in sorted(set(group.members).intersection(mask_keys)):
            key = AgreementKey(mask_keys[gone])
            for item in members:
                seed = pair_seed(key, context.roster[item].mask_key, context.hash, gone, item)
                terms.append(MaskTerm(seed, -1 if item < gone else 1))
        found.append(GroupSum(members, tuple(uploads[item] for item in members), tuple(terms)))
    return tuple(found)
