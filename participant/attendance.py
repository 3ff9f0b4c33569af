"""What a site says of its hours and days, and when a training stands still."""

from __future__ import annotations

import logging
from collections.abc import Callable

from participant.actions import Action, Pause, Resume, Say
from participant.schedule import Absence, Schedule, round_bytes
from protos import session_pb2 as pb
from wire import RunPlan

_log = logging.getLogger("fedloom.participant")


class Attendance:
    """A site's announcements on one connection after the other, and the pauses of the training in hand.

    Args:
        schedule: The site's.
        clock: Seconds since the epoch.

    Attributes:
        paused: Whether the training in hand stands still.
    """

    def __init__(self, schedule: Schedule, clock: Callable[[], float]) -> None:
        self.paused = False
        self._schedule = schedule
        self._clock = clock
        self._said: tuple[Absence, bool] | None = None  # when it is away, and whether it goes on with its task
        self._began_s = 0.0
        self._trained_s = 0.0  # what the last training took

    def connected(self) -> None:
        """A new connection: nothing has been said on it."""
        self._said = None

    def began(self) -> None:
        """Work on a task begins."""
        self._began_s = self._clock()

    def worked(self) -> None:
        """It is done."""
        if not self.paused:
            self._trained_s = self._clock() - self._began_s

    def put_down(self) -> None:
        """No task is in hand any more."""
        self.paused = False

    def hold(self, task_id: str) -> list[Action]:
        """Pause the work on a task, or go on with it, as the site's hours want it."""
        stops = self._schedule.pauses and self._schedule.closed()
        if stops == self.paused:
            return []
        self.paused = stops
        # What a training takes is measured without its pauses.
        self._began_s = self._clock() - self._began_s
        return [Pause(task_id) if stops else Resume(task_id)]

    def absence(self, plan: RunPlan) -> Absence | None:
        """Until when the site takes no tasks of this run; None where it takes them."""
        # In a secure sum all wait for each other: who would have to stop in the middle doesn't begin.
        takes_s = self._trained_s if self._schedule.pauses and plan.secure is not None else 0.0
        return self._schedule.absence(round_bytes(plan), takes_s)

    def say(self, plan: RunPlan, *, busy: bool, again: bool = False) -> list[Action]:
        """Say when the site takes tasks, if that has changed.

        Args:
            plan: The run's.
            busy: Whether a task is in hand.
            again: Say that it is away also where that was said before.
        """
        absence = self.absence(plan)
        said = None if absence is None else (absence, busy and not self.paused)
        if said == self._said and not (again and said is not None):
            return []
        self._said = said
        if absence is None or said is None:
            return [Say(pb.FromParticipant(availability=pb.Availability()))]
        away_s = max(1.0, absence.until_s - self._clock())
        _log.info("takes no tasks for %.0f s (%s)", away_s, absence.reason)
        message = pb.Availability(away_s=away_s, reason=absence.reason, working=said[1])
        return [Say(pb.FromParticipant(availability=message))]
