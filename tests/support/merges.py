"""What a merge leaves, for tests that don't merge."""

from __future__ import annotations

from coordinator.aggregation import MergeResult
from coordinator.merging import MergeReport

NO_REPORT = MergeReport(rule="mean", tolerated=0, remaining=0, kappa=None, participants=())


def merge_result(digest: str, size: int, state: tuple[bytes, ...] = (), report: MergeReport = NO_REPORT) -> MergeResult:
    """A result of this digest, in hex."""
    return MergeResult(digest=bytes.fromhex(digest), size=size, state=state, examples=1, report=report)
