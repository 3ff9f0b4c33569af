"""What a round with a secure sum waits for, in sentences for the operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from coordinator.rounds.state import Round
from privacy.secure_aggregation.coordinator import Attempt
from wire import SecureSpec

_SHOWN: Final = 5  # names in a sentence

_PHASES: Final = {
    "accepting": "waits for agreement of",
    "training": "waits for the training of",
    "uploading": "waits for the masked updates of",
    "signing": "waits for signatures of",
    "releasing": "waits for the shares of",
    "unmasking": "is being unmasked",
}


def sentences(*parts: str) -> str:
    """Those that say something, one after the other."""
    return " ".join(part for part in parts if part)


def under_way(current: Round, attempt: Attempt) -> str:
    """Whose answer the open attempt waits for."""
    head = f"Round {current.number}, secure sum, {_PHASES.get(attempt.phase, attempt.phase)}"
    if attempt.phase == "unmasking":  # the coordinator's own work
        return f"{head}."
    return f"{head}: {listed(attempt.waiting_for()) or 'nobody; its deadline decides'}."


def merging(current: Round) -> str:
    """What becomes the next version."""
    revealed = current.revealed
    if revealed is not None and revealed.groups:
        return f"Merging the sums of {len(revealed.groups)} groups of round {current.number}."
    return f"Merging {len(current.done())} updates of round {current.number}."


def buffered(number: int, there: Sequence[str], size: int, training: Sequence[str], away: Sequence[str]) -> str:
    """How full a buffer is whose updates wait at their participants.

    >>> buffered(3, ["a"], 2, ["b"], ["c"])
    'Version 3: 1 of 2 updates are trained (a); in training: b; trained and away: c.'
    """
    who = f" ({listed(there)})" if there else ""
    gone = f"; trained and away: {listed(away)}" if away else ""
    busy = listed(training) or "nobody"
    return f"Version {number}: {len(there)} of {size} updates are trained{who}; in training: {busy}{gone}."


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are.

    >>> listed(["a", "b"]), listed([*"abcdefgh"])
    ('a, b', 'a, b, c, d, e and 3 more')
    """
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def pausing(current: Round) -> str:
    """Why the last attempt ended; the next one begins after a pause."""
    last = current.attempts[-1].failed if current.attempts else None
    why = f"Attempt {last.attempt} ended: {last.message}." if last is not None else ""
    return sentences(f"Round {current.number} waits to try again.", why)


def needs(settings: SecureSpec) -> str:
    """What a roster needs, where none is possible."""
    if settings.group_size:
        return (
            f"Sums of groups need at least {max(settings.min_cohort, settings.group_size)} certified participants with "
            "prekeys in whole atoms, and enough keepers of shares."
        )
    return (
        f"A secure sum needs at least {settings.min_cohort} certified participants with prekeys, and a roster that "
        f"equals the last ones or differs from them by at least {settings.min_roster_change} "
        "([secure_aggregation] min_roster_change)."
    )
