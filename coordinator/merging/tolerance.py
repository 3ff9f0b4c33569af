"""How many bad participants a round must stand: a count, or a fraction of who is there."""

from __future__ import annotations

import math

from coordinator.merging.errors import MergeRefused

Tolerance = int | float
"""A count (int) or a fraction of the participants (float)."""


def check_tolerance(f: Tolerance | None) -> None:
    """Refuse what can't be meant, whatever the number of participants.

    Raises:
        ValueError: A negative count, a fraction outside [0, 0.5), or neither an int nor a float.
    """
    if f is None:
        return
    if isinstance(f, bool) or not isinstance(f, int | float):
        raise ValueError(f"f is {f!r}, but must be a count (int) or a fraction (float)")
    if isinstance(f, float) and not 0.0 <= f < 0.5:
        raise ValueError(f"f is {f}, but a fraction must be at least 0 and under 0.5; a count is an int")
    if f < 0:
        raise ValueError(f"f is {f}, but can't be negative")


def bad_count(f: Tolerance, participants: int) -> int:
    """How many of ``participants`` may be bad: ``f`` itself, or the whole part of the fraction of them.

    Example:
        >>> bad_count(0.2, 10), bad_count(0.2, 9), bad_count(3, 9)
        (2, 1, 3)
    """
    check_tolerance(f)
    if isinstance(f, int):
        return f
    # 0.29 * 100 is 28.999999999999996 in floating point and means 29.
    return math.floor(f * participants + 1e-9)


def require(rule: str, participants: int, bad: int, least: int) -> None:
    """Refuse fewer than ``least`` participants.

    Raises:
        MergeRefused: "merge-tolerance".
    """
    if participants < least:
        raise MergeRefused(
            "merge-tolerance",
            f"{rule} needs at least {least} participants to stand {bad} bad ones; here are {participants}.",
            "Lower merging.f, choose another rule, or wait for more participants.",
        )


def require_majority(rule: str, participants: int, bad: int) -> None:
    """Refuse ``2 bad >= participants``: where half may be bad, nobody can tell which half.

    Raises:
        MergeRefused: "merge-tolerance".
    """
    require(rule, participants, bad, 2 * bad + 1)
