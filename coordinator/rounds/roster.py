"""Whom a secure sum is proposed to: a roster that every site's rule on changes allows, or one of whole atoms.

Two sums over rosters that differ by one institution tell about that institution. Sites therefore refuse a roster that
differs from one of the last ones by fewer members than ``min_roster_change`` (none is allowed). Someone who is away for
a round stays in the roster all the same: it has left prekeys, and the sum is made without it. Sums of groups are made
of whole atoms, so that rosters may change by atoms; who is away takes its atom with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.thresholds import thresholds
from wire import ConfigError, SecureSpec

_REMEMBERED = SitePolicy().remembered_rosters


def choose_roster(
    *,
    wanted: frozenset[str],
    possible: frozenset[str],
    certified: frozenset[str],
    there: frozenset[str],
    earlier: Sequence[frozenset[str]],
    settings: SecureSpec,
    encoding: Callable[[int], object],
) -> tuple[str, ...]:
    """Choose the roster of the next attempt.

    Args:
        wanted: Whom the round would like to have.
        possible: Certified participants with an unused prekey.
        certified: All that the root certifies now; who isn't among them doesn't count as a change.
        there: Participants that can answer now.
        earlier: The run's rosters so far, oldest first.
        settings: The plan's.
        encoding: The plan's encoding for a roster of so many; raises ConfigError where their values don't fit.

    Returns:
        Names, sorted: the wanted ones if that is allowed, else the latest roster that still is. Empty where none is.
    """
    earlier = [roster & certified for roster in earlier]
    for candidate in (wanted & possible, *reversed(earlier)):
        enough = candidate <= possible and _enough(candidate, there, settings, encoding)
        if enough and _allowed(candidate, earlier, settings):
            return tuple(sorted(candidate))
    return ()


def choose_atoms(
    *,
    wanted: frozenset[str],
    there: frozenset[str],
    atoms: Mapping[str, int],
    settings: SecureSpec,
    encoding: Callable[[int], object],
) -> tuple[str, ...]:
    """Choose the roster of the next attempt at sums of groups.

    Args:
        wanted: Certified participants with an unused prekey that the round would like to have.
        there: Participants that can answer now.
        atoms: The atom of each that is in one.
        settings: The plan's.
        encoding: As for :func:`choose_roster`.

    Returns:
        Names, sorted: all whole atoms of the wanted, or those that are all there. Empty where neither is enough.
    """
    for candidate in (whole_atoms(wanted, atoms), whole_atoms(wanted & there, atoms)):
        together = len(whole_atoms(candidate & there, atoms))
        if together >= max(settings.min_cohort, settings.group_size) and _enough(candidate, there, settings, encoding):
            return tuple(sorted(candidate))
    return ()


def whole_atoms(names: frozenset[str], atoms: Mapping[str, int]) -> frozenset[str]:
    """Those of the names whose whole atom is among them."""
    split = {atom for name, atom in atoms.items() if name not in names}
    return frozenset(name for name in names if name in atoms and atoms[name] not in split)


def _enough(
    roster: frozenset[str], there: frozenset[str], settings: SecureSpec, encoding: Callable[[int], object]
) -> bool:
    try:
        floor = thresholds(len(roster), settings.corrupt_percent, settings.min_cohort).floor
        encoding(len(roster))
    except (SecureAggregationError, ConfigError):
        return False
    return len(roster & there) >= floor


def _allowed(roster: frozenset[str], earlier: Sequence[frozenset[str]], settings: SecureSpec) -> bool:
    changes = (len(roster ^ other) for other in earlier[-_REMEMBERED:])
    return all(count == 0 or count >= settings.min_roster_change for count in changes)
