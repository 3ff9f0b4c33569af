"""When a site takes tasks, and how much it does in a day: its own rules, which nothing from the network changes.

What a day has cost is counted in the journal, before it is spent: a restart doesn't begin the day anew, and a process
that is killed in a transfer has counted at most what it didn't move.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, Literal

from participant.rules import ScheduleRules
from participant.store import Day, ParticipantStore
from wire import RefusedError, ResourceError, RunPlan

DAY_OVER: Final = "day-over"
"""The code of a transfer that would take more bytes than are left of the day."""


@dataclasses.dataclass(frozen=True)
class Absence:
    """The site takes no tasks until a time, in seconds since the epoch, by one of its rules."""

    until_s: float
    reason: Literal["hours", "rounds", "bytes"]


def round_bytes(plan: RunPlan) -> int:
    """What a round moves at most: the version to start from, and an update of 4 bytes a parameter."""
    return plan.initial.size + 4 * plan.initial.dimension


class Schedule:
    """A site's hours and days.

    Args:
        rules: The site's.
        store: The journal, which counts.
        clock: Seconds since the epoch.
    """

    def __init__(self, rules: ScheduleRules, store: ParticipantStore, clock: Callable[[], float]) -> None:
        self._rules = rules
        self._store = store
        self._clock = clock

    @property
    def pauses(self) -> bool:
        """Whether a training stops when a window ends."""
        return self._rules.pause

    def check(self, plan: RunPlan) -> None:
        """Whether this site could ever take part in a round of the run.

        Raises:
            RefusedError: "policy".
        """
        most, need = self._rules.max_bytes_a_day, round_bytes(plan)
        if 0 < most < need:
            raise RefusedError(
                "policy",
                f"a round of run {plan.run_id} moves {need} bytes, and this site allows {most} a day",
                "To take part all the same, raise max_bytes_a_day in [schedule] of this site's participant.toml.",
            )

    def absence(self, need: int, takes_s: float = 0.0) -> Absence | None:
        """Until when the site takes no tasks; None where it takes them.

        Args:
            need: Bytes that a task moves.
            takes_s: Seconds for which the window must still be open.
        """
        rules, now_s = self._rules, self._clock()
        closes_s = rules.hours.open_until(now_s)
        if closes_s is None or self._too_late(closes_s, takes_s, now_s):
            return Absence(rules.hours.opens_at(now_s if closes_s is None else closes_s), "hours")
        day = self._today()
        reason: Literal["rounds", "bytes"] = "rounds"
        if not 0 < rules.max_rounds_a_day <= day.rounds:
            if not self._short(day, need):
                return None
            reason = "bytes"
        return Absence(rules.hours.opens_at(rules.hours.midnight(now_s)), reason)

    def _too_late(self, closes_s: float, takes_s: float, now_s: float) -> bool:
        """Whether what takes so long doesn't fit into this window and does into the next; else it is begun."""
        if closes_s >= now_s + takes_s:
            return False
        opens_s = self._rules.hours.opens_at(closes_s)
        next_closes_s = self._rules.hours.open_until(opens_s)
        return next_closes_s is not None and takes_s <= next_closes_s - opens_s

    def closed(self) -> bool:
        """Whether no window is open."""
        return self._rules.hours.open_until(self._clock()) is None

    def affords(self, size: int) -> bool:
        """Whether so many bytes are left of the day."""
        return not self._short(self._today(), size)

    def begin(self, rounds: int = 1) -> None:
        """A training begins; with -1, it didn't."""
        if self._rules.max_rounds_a_day:
            self._store.count(self._date(), rounds=rounds)

    def meter(self, direction: Literal["sent", "received"]) -> Meter:
        """Counts one transfer."""
        return Meter(self, direction)

    def spend(self, direction: Literal["sent", "received"], size: int) -> None:
        """Count bytes before they move; negative ones didn't.

        Raises:
            ResourceError: "day-over": so many aren't left.
        """
        if not self._rules.max_bytes_a_day:
            return
        if size > 0 and not self.affords(size):
            raise ResourceError(
                f"{size} bytes more than this site's [schedule] max_bytes_a_day allows would be moved",
                "It goes on tomorrow.",
                code=DAY_OVER,
            )
        self._store.count(self._date(), **{direction: size})

    def today(self) -> dict[str, Any]:
        """What is open, and what is left of the day, for people and programs; None where a limit isn't set."""
        rules, now_s, day = self._rules, self._clock(), self._today()
        absence = self.absence(0)
        closes_s = rules.hours.open_until(now_s)
        moved = day.sent + day.received
        most_rounds, most_bytes = rules.max_rounds_a_day, rules.max_bytes_a_day
        return {
            "time_zone": rules.hours.zone.key,
            "day": self._date(),
            "away_until": rules.hours.shown(absence.until_s, now_s) if absence else None,
            "away_reason": absence.reason if absence else None,
            "open_until": rules.hours.shown(closes_s, now_s) if closes_s and closes_s != float("inf") else None,
            "rounds": day.rounds if most_rounds else None,
            "rounds_left": max(0, most_rounds - day.rounds) if most_rounds else None,
            "bytes": moved if most_bytes else None,
            "bytes_left": max(0, most_bytes - moved) if most_bytes else None,
        }

    def _short(self, day: Day, need: int) -> bool:
        most = self._rules.max_bytes_a_day
        return most > 0 and day.sent + day.received + max(need, 1) > most

    def _today(self) -> Day:
        limited = self._rules.max_rounds_a_day or self._rules.max_bytes_a_day
        return self._store.day(self._date()) if limited else Day()

    def _date(self) -> str:
        return self._rules.hours.day(self._clock())


class Meter:
    """Counts one transfer against the day: before its bytes move, and off again what didn't move.

    Args:
        schedule: The site's.
        direction: Of the transfer.
    """

    def __init__(self, schedule: Schedule, direction: Literal["sent", "received"]) -> None:
        self._schedule = schedule
        self._direction: Literal["sent", "received"] = direction
        self._left = 0  # counted, and not moved yet

    def before(self, size: int) -> None:
        """So many bytes are about to move; after a broken connection, what is left of them.

        Raises:
            ResourceError: As :meth:`Schedule.spend`.
        """
        if size > self._left:
            self._schedule.spend(self._direction, size - self._left)
            self._left = size

    def moved(self, done: int, total: int) -> None:
        """So many of all bytes are there."""
        self._left = min(self._left, total - done)

    def close(self) -> None:
        """The transfer is over, or broke off for good."""
        if self._left:
            self._schedule.spend(self._direction, -self._left)
            self._left = 0
