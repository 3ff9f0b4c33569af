"""What a site demands of a run; no coordinator can override it."""

from __future__ import annotations

import dataclasses

from privacy.secure_aggregation.policy import SitePolicy
from wire import OpeningHours


@dataclasses.dataclass(frozen=True)
class PrivacyRules:
    """A site's privacy budget.

    Attributes:
        required: Take part only in runs with noise for records.
        epsilon: What its data set may pay in all, over all runs.
        delta: Of that promise; 0 for a tenth of 1 / records, at most 1e-5.
    """

    required: bool = False
    epsilon: float = 10.0
    delta: float = 0.0

    def delta_for(self, records: int) -> float:
        """The promise's delta for a data set of this size."""
        return self.delta or min(1e-5, 0.1 / max(records, 1))


@dataclasses.dataclass(frozen=True)
class ScheduleRules:
    """When a site works, and how much.

    Attributes:
        hours: When it takes tasks; its time zone is that of its days.
        pause: Whether a training is paused when a window ends, until the next one; else it is finished.
        max_rounds_a_day: Trainings that it begins in a day; 0 for any number.
        max_bytes_a_day: Bytes of models and updates, both ways, in a day; 0 for any number.
    """

    hours: OpeningHours = dataclasses.field(default_factory=OpeningHours)
    pause: bool = False
    max_rounds_a_day: int = 0
    max_bytes_a_day: int = 0


@dataclasses.dataclass(frozen=True)
class SiteRules:
    """What a site demands of a run before it takes part.

    Attributes:
        allow_plain: Whether the coordinator may see this site's updates where a plan asks for plain averaging.
        secure: The rules for secure sums.
        privacy: The budget for private runs.
        schedule: When it works, and how much in a day.
    """

    allow_plain: bool = False
    secure: SitePolicy = dataclasses.field(default_factory=SitePolicy)
    privacy: PrivacyRules = dataclasses.field(default_factory=PrivacyRules)
    schedule: ScheduleRules = dataclasses.field(default_factory=ScheduleRules)
