"""What a site demands of a run; no coordinator can override it."""

from __future__ import annotations

import dataclasses

from privacy.secure_aggregation.policy import SitePolicy


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
class SiteRules:
    """What a site demands of a run before it takes part.

    Attributes:
        allow_plain: Whether the coordinator may see this site's updates where a plan asks for plain averaging.
        secure: The rules for secure sums.
        privacy: The budget for private runs.
    """

    allow_plain: bool = False
    secure: SitePolicy = dataclasses.field(default_factory=SitePolicy)
    privacy: PrivacyRules = dataclasses.field(default_factory=PrivacyRules)
