"""What all round machines have in common: who is asked, under which name, with which seed, and whose answer was bad."""

from __future__ import annotations

import hashlib
from typing import Final

from coordinator.rounds.state import Round

# Refusals of an update for what is in it: whoever hands such a one in counts among those that a robust rule must stand.
_UNMERGEABLE: Final = frozenset({"update-shape", "update-not-finite", "update-norm", "examples-invalid"})


def turned_away(current: Round) -> tuple[tuple[str, str], ...]:
    """Whose updates can't be merged for what is in them, and why."""
    return tuple(
        (name, f"{seat.code}: {seat.message}")
        for name, seat in sorted(current.seats.items())
        if seat.outcome == "refused" and seat.code in _UNMERGEABLE
    )


def task_id(run_id: str, round_number: int, attempt: int, participant: str) -> str:
    """The name of a task: the same after any restart, unique in the federation."""
    return f"{run_id}/{round_number}.{attempt}/{participant}"


def seat_task(run_id: str, item: Round, participant: str) -> str:
    """The name of the task whose result a seat is for; in asynchronous rounds it may have been issued rounds ago."""
    seat = item.seats[participant]
    number = item.number if seat.base_version is None else seat.base_version + 1
    return task_id(run_id, number, seat.attempt, participant)


def away_text(name: str, reason: str) -> str:
    """Why a participant takes no tasks for a while, for a person."""
    why = {"hours": "its opening hours are over", "rounds": "its rounds of the day are done"}
    return f"{name} is away: {why.get(reason, 'its bytes of the day are used up')}"


def attempt_seed(seed: int, attempt: int) -> int:
    """The seed that a task carries: the plan's own for a first attempt, another for each further one.

    A deterministic training that failed would otherwise fail again in the same way.
    """
    if attempt == 1:
        return seed
    return int.from_bytes(hashlib.sha256(f"fedloom/attempt/{seed}/{attempt}".encode()).digest()[:8], "big") >> 1


def sample(names: list[str], count: int, seed: int, round_number: int) -> list[str]:
    """``count`` of the names, the same for the same seed and round whatever the order they came in.

    Every subset is equally likely: names are ranked by a keyed hash. No privacy amplification is claimed for it.
    """

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"fedloom/cohort/{seed}/{round_number}/{name}".encode()).digest()

    return sorted(sorted(names, key=rank)[:count])
