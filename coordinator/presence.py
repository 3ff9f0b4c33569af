"""Who is connected, what it says that it is doing, and until when it is away by rules of its own."""

from __future__ import annotations

import dataclasses
import math
from typing import Final

from protos import session_pb2 as pb
from wire import RefusedError

STAGES: Final = ("idle", "downloading", "training", "evaluating", "summing", "uploading", "other")
"""What a site says that it is doing; "other" stands for anything else that it says."""

REASONS: Final = ("hours", "rounds", "bytes")
"""Of a site's own rules by which it is away."""

_LONGEST_S: Final = 15 * 86_400.0


@dataclasses.dataclass(frozen=True)
class Absence:
    """A connected participant takes no tasks until a time, in seconds by the hub's clock."""

    until_s: float
    reason: str
    working: bool


@dataclasses.dataclass
class Presence:
    """What the coordinator knows of a connected participant. Times are the hub's clock, in seconds."""

    expires_s: float
    heard_s: float
    connected: bool = True
    ready: bool = False
    examples: int = 0
    stage: str = "idle"
    task_id: str = ""
    done: int = 0
    total: int = 0
    members: int = 0  # entries of the member list that it has
    absence: Absence | None = None

    def progress(self, message: pb.Progress) -> None:
        """It says what it is doing."""
        # The operator's tables and metrics have these words: a site that says another one adds none to them.
        self.stage = message.stage if message.stage in STAGES else "other"
        self.task_id = message.task_id
        self.done, self.total = message.done, message.total


def announced(peer: str, message: pb.Availability, now_s: float) -> Absence | None:
    """What a participant says of its availability; None where it takes tasks.

    The time is relative, since clocks differ. Longer than two weeks is cut: it will say so again.

    Raises:
        RefusedError: "availability-invalid".
    """
    if not (math.isfinite(message.away_s) and message.away_s >= 0):
        raise RefusedError("availability-invalid", f"{peer} says that it is away for {message.away_s} seconds")
    if message.away_s == 0:
        return None
    if message.reason not in REASONS:
        raise RefusedError(
            "availability-invalid", f"{peer} is away for a reason that isn't one of {', '.join(REASONS)}"
        )
    return Absence(now_s + min(message.away_s, _LONGEST_S), message.reason, message.working)
