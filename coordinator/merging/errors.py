"""Why a merge is refused."""

from __future__ import annotations

from wire.errors import RefusedError


class MergeRefused(RefusedError):
    """The rule can't keep its promise here.

    Codes: "merge-tolerance" (too few participants for as many bad ones), "merge-empty" (the gate left no update),
    "merge-reference" (the rule needs the coordinator's own vector).
    """
