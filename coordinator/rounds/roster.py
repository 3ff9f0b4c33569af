"""Whom a secure sum is proposed to: a roster that every site's rule on changes allows, or one of whole atoms.

Two sums over rosters that differ by one institution tell about that institution. Sites therefore refuse a roster that
differs from one of the last ones by fewer members than ``min_roster_change`` (none is allowed). Someone who is away for
a round stays in the roster all the same: it has left prekeys, and the sum is made without it. Sums of groups are made
of whole atoms, so that rosters may change by atoms; who is away takes its atom with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.thresholds import thresholds
from wire import ConfigError, SecureSpec

_REMEMBERED = SitePolicy().remembered_rosters
_HELD_BACK = 12  # of these some may have to wait for another sum


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


def choose_buffer(
    *,
    trained: frozenset[str],
    least: int,
    age: Mapping[str, int],
    earlier: Sequence[frozenset[str]],
    settings: SecureSpec,
    encoding: Callable[[int], object],
) -> tuple[str, ...]:
    """Choose the roster of an asynchronous sum: all who have trained, or all but a few where earlier rosters forbid it.

    Each site compares a roster with the last ones that it was in itself, and these may be long past for one that is
    slow; so do we. Those who wait in vain are the ones who trained from the newest versions.

    Args:
        trained: Who has trained and can answer now.
        least: So many are needed.
        age: The version that each has trained from.
        earlier: The run's rosters so far, oldest first.
        settings: The plan's.
        encoding: As for :func:`choose_roster`.

    Returns:
        Names, sorted; empty where no roster is possible yet.
    """
    known = {roster for name in trained for roster in [item for item in earlier if name in item][-_REMEMBERED:]}
    newest = sorted(trained, key=lambda name: (-age[name], name))[:_HELD_BACK]
    for count in range(settings.min_roster_change + 1):
        for held in itertools.combinations(newest, count):
            roster = trained.difference(held)
            if len(roster) < least or not _enough(roster, trained, settings, encoding):
                break
            if all(len(roster ^ other) in (0, *range(settings.min_roster_change, 2048)) for other in known):
                return tuple(sorted(roster))
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
