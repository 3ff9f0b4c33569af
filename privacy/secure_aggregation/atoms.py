"""Atoms: institutions whose updates are summed together or not at all, for a whole run.

Where sums of groups are published, a participant's update would stand in other company in every round, and differences
and intersections of the rounds' sums would tell about fewer and fewer (So et al., AAAI 2023, "Securing secure
aggregation: mitigating multi-round privacy leakage"). Their answer is kept here: participants are partitioned once, and
only whole parts enter a sum. Groups are unions of atoms, drawn anew for every attempt (``graph``).

Formal Guarantees:
    In every sum that is revealed in a run, rounds of scoring included, the coefficients of an atom's members are equal:
    all one or all zero. So whatever is computed from all of the run's sums, differences of any of them included, is a
    function of the atoms' sums, round by round; nothing about one member's update follows from it beyond what follows
    from the sums of its atom. This holds against any coordinator, as long as at most c share keepers of each attempt
    are corrupt (``thresholds``): every honest keeper checks that survivors are whole atoms (``checks``), and every site
    that its own atom is the one it remembers of the run (``history``).

    Limits. Members that work with the coordinator know their own updates: a site hides among the *honest* members of
    its atom, with k of them corrupt among size - k. The coordinator draws the atoms, so it can choose who is together.
    Another run draws other atoms, and the promise doesn't span runs. What the sum of an atom tells is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from privacy.secure_aggregation.thresholds import MIN_COHORT
from privacy.transcript import digest

_LARGEST: Final = 5
_DRAW_LABEL: Final = "fedloom/secure-aggregation/atoms/1"


def atoms_per_group(group_size: int) -> tuple[int, int]:
    """How many atoms make a group, and how many participants an atom has at least.

    Up to five a group is one atom: the promise over all rounds is then the same as that of one round. Larger groups are
    made of several, so that a group that loses an atom's company in one round finds another in the next. Atoms of three
    to five are chosen so that groups are as small as asked for; of two ways the one with smaller atoms, which lose
    fewer participants when somebody is away.

    Args:
        group_size: s, at least 3.

    Returns:
        (k, a) with k a >= s.
    """
    if group_size <= _LARGEST:
        return 1, group_size
    ways = ((-(-group_size // size), size) for size in range(MIN_COHORT, _LARGEST + 1))
    return min(ways, key=lambda way: way[0] * way[1])


def smallest_group(group_size: int) -> int:
    """Participants of the smallest group that atoms make: ``group_size``, or a little more where they don't divide it.

    >>> [smallest_group(size) for size in (3, 5, 6, 7, 10)]
    [3, 5, 6, 8, 10]
    """
    count, size = atoms_per_group(group_size)
    return count * size


def draw_atoms(names: Iterable[str], group_size: int, run: str, first: int) -> dict[str, int]:
    """Partition newcomers into new atoms, as equal as they come.

    Args:
        names: Who isn't in an atom yet.
        group_size: s of the run.
        run: Its name; the draw follows from it and the names.
        first: Number of the first new atom.

    Returns:
        The atom of each name; empty where they are too few for one.
    """
    ordered = sorted(names, key=lambda name: digest(_DRAW_LABEL, (run, name)))
    count = len(ordered)
    parts = count // atoms_per_group(group_size)[1]
    cuts = [count * part // parts for part in range(parts + 1)] if parts else []
    return {name: first + part for part, at in enumerate(cuts[:-1]) for name in ordered[at : cuts[part + 1]]}


def whole(atoms: Iterable[frozenset[int]], there: frozenset[int]) -> frozenset[int]:
    """Those whose whole atom is ``there``."""
    return frozenset().union(*(atom for atom in atoms if atom <= there))
