"""What a site demands of a run; no coordinator can override it."""

from __future__ import annotations

import dataclasses

from privacy.secure_aggregation.policy import SitePolicy


@dataclasses.dataclass(frozen=True)
class SiteRules:
    """What a site demands of a run before it takes part.

    Attributes:
        allow_plain: Whether the coordinator may see this site's updates where a plan asks for plain averaging.
        secure: The rules for secure sums.
    """

    allow_plain: bool = False
    secure: SitePolicy = dataclasses.field(default_factory=SitePolicy)
