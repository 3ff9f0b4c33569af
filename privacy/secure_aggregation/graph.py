"""Who masks with whom: groups drawn from randomness that no single party chose.

Each accepted participant reveals a value that its prekey had committed to. Their hash, the beacon, orders the
participants; consecutive ones form a group. Masks are agreed inside a group, and each group has a sum of its own. Where
a plan asks for sums of groups, the beacon orders whole atoms (``atoms``) instead of participants.

Known limit: the coordinator sees the values before it fixes whom to count in, so it can try a few sets and keep the
draw it likes. An external beacon would end that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from privacy.secure_aggregation.atoms import whole
from privacy.secure_aggregation.context import Base, RoundContext
from privacy.secure_aggregation.thresholds import COMPLETE, clique_floor, corrupt_members
from privacy.transcript import digest

_BEACON_LABEL = "fedloom/secure-aggregation/beacon/1"
_ORDER_LABEL = "fedloom/secure-aggregation/order/1"


@dataclasses.dataclass(frozen=True)
class Group:
    """Participants that mask with each other; ``floor`` of them at least must remain for their sum to be published.

    ``atoms`` partition the members where only whole atoms may remain; they are empty for a clique. ``same_base``
    partitions them by what they trained from, where at least ``least`` of each part must remain, or none of it.
    """

    members: tuple[int, ...]
    floor: int
    atoms: tuple[frozenset[int], ...] = ()
    same_base: tuple[frozenset[int], ...] = ()
    least: int = 1

    def publishable(self, survivors: frozenset[int]) -> frozenset[int]:
        """The members whose updates may be summed if these survive: none where too few are left."""
        left = survivors.intersection(self.members)
        if self.atoms:
            left = whole(self.atoms, left)
        left = left.difference(self.alone(left))
        return left if len(left) >= self.floor else frozenset()

    def alone(self, members: frozenset[int]) -> frozenset[int]:
        """Those of a set with whom too few of it were trained from the same version."""
        parts = (part & members for part in self.same_base)
        return frozenset().union(*(part for part in parts if len(part) < self.least))


def groups(context: RoundContext, beacons: Mapping[int, bytes]) -> tuple[Group, ...]:
    """The mask groups of the accepted participants.

    Args:
        context: Of the attempt.
        beacons: The revealed value of each accepted participant, by position.

    Returns:
        Without a group size a partition of the accepted positions: one group for cohorts up to 128, else cliques. With
        one, disjoint unions of whole atoms, of at least that many members each; who isn't accepted with its whole atom
        is in none. Each group's members ascend.
    """
    accepted = sorted(beacons)
    if context.group_size:
        return _unions(context, beacons)
    count = len(accepted)
    corrupt = corrupt_members(len(context.roster), context.corrupt_percent)
    parts = math.ceil(count / COMPLETE)
    if parts == 1:
        floor = clique_floor(count, count, corrupt)
        return (
            Group(
                tuple(accepted),
                max(floor, context.numbers.floor),
                same_base=_same_base(context, accepted),
                least=context.same_base,
            ),
        )
    seed = _seed(context, beacons)
    ordered = sorted(accepted, key=lambda item: digest(_ORDER_LABEL, (seed, item)))
    found = []
    for part in range(parts):
        members = ordered[count * part // parts : count * (part + 1) // parts]
        found.append(
            Group(
                tuple(sorted(members)),
                clique_floor(len(members), count, corrupt),
                same_base=_same_base(context, members),
                least=context.same_base,
            )
        )
    return tuple(found)


def _unions(context: RoundContext, beacons: Mapping[int, bytes]) -> tuple[Group, ...]:
    """Atoms in the order of the beacon, as many to a group as reach the group size; what is left joins in turn."""
    seed = _seed(context, beacons)
    there = [atom for atom in context.atom_members if atom <= beacons.keys()]
    ordered = sorted(there, key=lambda atom: digest(_ORDER_LABEL, (seed, min(atom))))
    unions: list[list[frozenset[int]]] = []
    open_now: list[frozenset[int]] = []
    for atom in ordered:
        open_now.append(atom)
        if sum(map(len, open_now)) >= context.group_size:
            unions.append(open_now)
            open_now = []
    if not unions:
        return ()
    for turn, atom in enumerate(open_now):
        unions[turn % len(unions)].append(atom)
    return tuple(Group(tuple(sorted(frozenset().union(*union))), context.group_size, tuple(union)) for union in unions)


def _same_base(context: RoundContext, members: Iterable[int]) -> tuple[frozenset[int], ...]:
    """Positions by what they trained from, where a context asks for company."""
    if context.same_base <= 1:
        return ()
    parts: dict[Base, set[int]] = {}
    for item in members:
        # Trainings from one version are alike, whichever of them they are.
        parts.setdefault(dataclasses.replace(context.bases[item], attempt=1), set()).add(item)
    return tuple(frozenset(part) for part in parts.values())


def _seed(context: RoundContext, beacons: Mapping[int, bytes]) -> bytes:
    return digest(_BEACON_LABEL, (context.hash, tuple((item, beacons[item]) for item in sorted(beacons))))


def group_of(groups_of: Iterable[Group], position: int) -> Group | None:
    """The group that a participant is in, if it is in one."""
    return next((group for group in groups_of if position in group.members), None)


def publishable(groups_of: tuple[Group, ...], survivors: frozenset[int]) -> frozenset[int]:
    """The survivors whose sums may be published: whole atoms, and groups that are large enough."""
    return frozenset().union(*(group.publishable(survivors) for group in groups_of))
