"""Who masks with whom: groups drawn from randomness that no single party chose.

Each accepted participant reveals a value that its prekey had committed to. Their hash, the beacon, orders the
participants; consecutive ones form a group. Masks are agreed inside a group, and each group has a sum of its own.

Known limit: the coordinator sees the values before it fixes whom to count in, so it can try a few sets and keep the
draw it likes. An external beacon would end that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.thresholds import COMPLETE, corrupt_members, group_floor
from privacy.transcript import digest

_BEACON_LABEL = "fedloom/secure-aggregation/beacon/1"
_ORDER_LABEL = "fedloom/secure-aggregation/order/1"


@dataclasses.dataclass(frozen=True)
class Group:
    """Participants that mask with each other; ``floor`` of them at least must remain for their sum to be published."""

    members: tuple[int, ...]
    floor: int


def groups(context: RoundContext, beacons: Mapping[int, bytes]) -> tuple[Group, ...]:
    """The mask groups of the accepted participants.

    Args:
        context: Of the attempt.
        beacons: The revealed value of each accepted participant, by position.

    Returns:
        A partition of the accepted positions; each group's members ascend. One group for cohorts up to 128 without a
        group size.
    """
    accepted = sorted(beacons)
    count = len(accepted)
    corrupt = corrupt_members(len(context.roster), context.corrupt_percent)
    parts = max(1, count // context.group_size) if context.group_size else math.ceil(count / COMPLETE)
    if parts == 1:
        floor = group_floor(count, count, corrupt, clique=True)
        return (Group(tuple(accepted), max(floor, context.numbers.floor)),)
    seed = digest(_BEACON_LABEL, (context.hash, tuple((item, beacons[item]) for item in accepted)))
    ordered = sorted(accepted, key=lambda item: digest(_ORDER_LABEL, (seed, item)))
    found = []
    for part in range(parts):
        members = ordered[count * part // parts : count * (part + 1) // parts]
        floor = group_floor(len(members), count, corrupt, clique=not context.group_size)
        found.append(Group(tuple(sorted(members)), floor))
    return tuple(found)


def publishable(groups_of: tuple[Group, ...], survivors: frozenset[int]) -> frozenset[int]:
    """The survivors whose groups are large enough for their sums to be published; one below its floor goes whole."""
    kept: set[int] = set()
    for group in groups_of:
        members = survivors.intersection(group.members)
        if len(members) >= group.floor:
            kept |= members
    return frozenset(kept)
