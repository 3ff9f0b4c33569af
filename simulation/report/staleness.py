"""Who is in which version of asynchronous rounds, and how old its update was: the numbers of that table."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Final

from simulation.report import wording
from simulation.report.record import Participation, RunRecord
from simulation.report.summary import MOST_ROWS

_LEVELS: Final = (0, 1, 3, 7)
"""The oldest of each shade, in versions; what is older has the last shade."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StalenessRow:
    """One institution: for each version a shade (``age0`` fresh to ``age4``, ``out`` refused, empty) and its meaning.

    ``mean`` and ``most`` are versions that its merged updates were behind.
    """

    name: str
    cells: tuple[tuple[str, str], ...]
    merged: int
    mean: str
    most: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Staleness:
    """The table of ages, those that were merged least often first; ``more`` institutions aren't shown."""

    versions: tuple[int, ...]
    rows: tuple[StalenessRow, ...]
    more: int


def staleness(record: RunRecord) -> Staleness | None:
    """Ages of all updates; None where none was behind, as in synchronous rounds."""
    if not any(part.staleness for entry in record.rounds for part in entry.participants):
        return None
    parts = [{part.name: part for part in entry.participants} for entry in record.rounds]
    names = [institution.name for institution in record.institutions]
    rows = sorted((_row(name, [table.get(name) for table in parts]) for name in names), key=lambda row: row.merged)
    return Staleness(
        versions=tuple(entry.number for entry in record.rounds),
        rows=tuple(rows[:MOST_ROWS]),
        more=max(len(rows) - MOST_ROWS, 0),
    )


def _row(name: str, parts: Sequence[Participation | None]) -> StalenessRow:
    ages = [part.staleness for part in parts if part is not None and part.outcome == "merged"]
    return StalenessRow(
        name=name,
        cells=tuple(_cell(part) for part in parts),
        merged=len(ages),
        mean=f"{statistics.fmean(ages):.1f}" if ages else "",
        most=str(max(ages)) if ages else "",
    )


def _cell(part: Participation | None) -> tuple[str, str]:
    if part is None:
        return "", "no update"
    if part.outcome != "merged":
        return "out", wording.clean(part.outcome, 80)
    level = next((place for place, oldest in enumerate(_LEVELS) if part.staleness <= oldest), len(_LEVELS))
    behind = f"{part.staleness} version{'' if part.staleness == 1 else 's'} behind" if part.staleness else "fresh"
    return f"age{level}", behind
