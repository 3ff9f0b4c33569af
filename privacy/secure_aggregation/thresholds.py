"""How many may be corrupt, how many must agree, how many must remain: the numbers of a round.

With m share keepers of which at most c are corrupt, ``Q = t = floor((m + c) / 2) + 1``. Two sets of Q keepers share
more than c, hence an honest one, and an honest keeper signs one survivor set only: no two sets ever both get Q
signatures (the argument of Bonawitz et al. 2017, section 6.2, against a coordinator that lies).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Final

from privacy.secure_aggregation.errors import SecureAggregationError

MIN_COHORT: Final = 3
"""No fewer: the sum of two updates tells each of the two the other's."""

MAX_COHORT: Final = 1024
"""Positions and the tail's sums are sized for so many."""

ALL_KEEP: Final = 100
"""Up to so many participants everyone keeps shares; above, so many are drawn."""

COMPLETE: Final = 128
"""Up to so many participants the mask graph is complete; above, it is made of cliques no larger than this."""

# A draw has more corrupt members than its bound with probability at most 2^-44, so that sixteen draws of a round
# (its keepers, its cliques) all stay within their bounds but with probability 2^-40.
_FAILURE_BITS: Final = 44


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thresholds:
    """A round's numbers.

    Attributes:
        keepers: m, participants that hold shares.
        corrupt: c, the most of them that may be corrupt.
        quorum: Q, signatures on one survivor set before a share is released.
        threshold: t, shares that rebuild a secret. Equal to ``quorum``.
        floor: The fewest participants whose sum is ever published.
    """

    keepers: int
    corrupt: int
    quorum: int
    threshold: int
    floor: int


def thresholds(participants: int, corrupt_percent: int, min_cohort: int) -> Thresholds:
    """Work out the numbers for a roster.

    Formal Guarantees:
        As long as at most ``corrupt`` keepers are corrupt: (1) at most one survivor set gets ``quorum`` signatures;
        (2) fewer than ``threshold`` shares of any secret are in corrupt hands before the quorum; (3) since ``floor``
        is at least ``corrupt + 2``, at least two honest updates are mixed in every published sum of up to 128
        participants, whomever the coordinator declares dropped; larger cohorts have the same from :func:`clique_floor`.

    Args:
        participants: n, the roster's length, 3 to 1024.
        corrupt_percent: Assumed corrupt share of all participants, 1 to 33. Only cohorts of more than 100 use it;
            smaller ones assume ``floor((n - 1) / 3)`` corrupt participants.
        min_cohort: The plan's or the site's own floor, at least 3.

    Raises:
        SecureAggregationError: "cohort-too-small", "cohort-too-large" or "corrupt-range".
    """
    if participants < MIN_COHORT:
        raise SecureAggregationError(
            "cohort-too-small",
            f"a secure sum needs at least {MIN_COHORT} participants, not {participants}",
            "With two participants each could work out the other's update; use more sites, or plain averaging.",
        )
    if participants > MAX_COHORT:
        raise SecureAggregationError("cohort-too-large", f"a round has at most {MAX_COHORT} participants")
    if not 1 <= corrupt_percent <= 33:
        raise SecureAggregationError("corrupt-range", f"corrupt_percent is {corrupt_percent}; 1 to 33 is possible")
    keepers = min(participants, ALL_KEEP)
    corrupt = draw_bound(participants, corrupt_members(participants, corrupt_percent), keepers)
    # Three at least: with n = 3 the formula would let two participants publish a sum.
    quorum = max((keepers + corrupt) // 2 + 1, MIN_COHORT)
    floor = max(quorum, corrupt + 2, min_cohort)
    return Thresholds(keepers=keepers, corrupt=corrupt, quorum=quorum, threshold=quorum, floor=floor)


def corrupt_members(participants: int, corrupt_percent: int) -> int:
    """The most members of a roster that are taken to be corrupt: a third of up to 100, else the assumed share."""
    return (participants - 1) // 3 if participants <= ALL_KEEP else participants * corrupt_percent // 100


def clique_floor(size: int, accepted: int, corrupt: int) -> int:
    """The fewest members of a clique of the mask graph whose sum is published.

    Formal Guarantees:
        If at most ``corrupt`` of the ``accepted`` participants are corrupt and the cliques are a random partition of
        them, a clique's sum holds two honest updates whomever the coordinator declares dropped, but with probability
        at most 2^-44 for each clique. Who is accepted may be chosen in the worst way; with one group that holds
        everyone the statement is certain.

    Args:
        size: Members of the clique at the start.
        accepted: Participants that the cliques were drawn from.
        corrupt: The most of the whole roster that may be corrupt: all of them may be among the accepted.

    Returns:
        At least 3; more than ``size`` where the clique is too small to publish anything.
    """
    return max(MIN_COHORT, draw_bound(accepted, min(corrupt, accepted), size) + 2)


@functools.lru_cache(maxsize=1024)
def draw_bound(population: int, corrupt: int, drawn: int) -> int:
    """The corrupt members that a random draw doesn't exceed, but with probability at most 2^-44.

    Args:
        population: n.
        corrupt: So many of them are corrupt.
        drawn: Members drawn without replacement.

    Returns:
        The smallest c with P[Hypergeometric(n, corrupt, drawn) > c] <= 2^-44, in exact integer arithmetic.
    """
    total = math.comb(population, drawn)
    tail = 0
    for count in range(min(corrupt, drawn), 0, -1):
        tail += math.comb(corrupt, count) * math.comb(population - corrupt, drawn - count)
        if tail << _FAILURE_BITS > total:
            return count
    return 0
