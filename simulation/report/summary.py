"""What the page says: the record's numbers arranged for people, before any drawing or markup."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from simulation.report import wording
from simulation.report.record import Metric, Metrics, Participation, Round, RunRecord

# More institutions than this share no colours, cards or lines of their own: the page shows their distribution.
FEW: Final = 8

_WEIGHT: Final = Metric(name="weight", label="weight")

MOST_ROWS: Final = 40
"""Institutions in the table of verdicts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """One institution's score of the global model by version, and the score of its own model (NaN if unknown)."""

    name: str
    points: tuple[tuple[int, float], ...]
    local_only: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One institution's two scores; ``gain`` is positive where the federation is better, NaN where one is missing."""

    name: str
    federation: float
    local_only: float
    gain: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Headline:
    """The result in words and in at most three figures, each (label, value)."""

    sentence: str
    explanation: str
    figures: tuple[tuple[str, str], ...]
    won: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seat:
    """One institution's part in one round: place in the order of institutions, whether merged, the outcome."""

    place: int
    name: str
    merged: bool
    outcome: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundRow:
    """A line of the table of rounds, as shown. ``seats`` is empty where there are too many to show one by one."""

    number: int
    version: str
    merged: int
    invited: int
    seats: tuple[Seat, ...]
    absences: str
    duration: str
    loss: str
    score: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """One institution's updates: for each round a verdict (empty for none) and why, and how often each.

    ``weight`` is the mean of its weights, in per cent.
    """

    name: str
    cells: tuple[tuple[str, str], ...]
    kept: int
    clipped: int
    rejected: int
    weight: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdicts:
    """The table of verdicts: those that matter most first; ``more`` institutions aren't shown.

    ``warnings`` are the merges' commonest, each with the number of rounds.
    """

    rounds: tuple[int, ...]
    rows: tuple[VerdictRow, ...]
    more: int
    warnings: tuple[tuple[str, int], ...]


def score(table: Mapping[str, Metrics], institution: str, metric: Metric) -> float:
    """One number of a table of metrics, NaN where it is missing."""
    return table.get(institution, {}).get(metric.name, math.nan)


def finite(values: Iterable[float]) -> list[float]:
    """The values that are numbers."""
    return [value for value in values if math.isfinite(value)]


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean of the finite values, NaN if there are none."""
    kept = finite(values)
    return statistics.fmean(kept) if kept else math.nan


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the finite values lie, interpolated; NaN if there are none."""
    kept = sorted(finite(values))
    if not kept:
        return math.nan
    place = share * (len(kept) - 1)
    low = math.floor(place)
    high = min(low + 1, len(kept) - 1)
    return kept[low] + (kept[high] - kept[low]) * (place - low)


def curves(record: RunRecord) -> list[Curve]:
    """The headline metric by version, for each institution.

    A round's evaluation is of the version it started from; the last version's is in ``final``.
    """
    metric = record.headline_metric
    points: dict[str, dict[int, float]] = {institution.name: {} for institution in record.institutions}
    committed = 0
    for entry in record.rounds:
        for part in entry.participants:
            value = part.evaluation.get(metric.name, math.nan)
            if part.name in points and math.isfinite(value):
                points[part.name][committed] = value
        committed = entry.version or committed
    for name, found in points.items():
        if math.isfinite(value := score(record.final, name, metric)):
            found[record.model.version] = value
    return [
        Curve(name=name, points=tuple(sorted(found.items())), local_only=score(record.local_only, name, metric))
        for name, found in points.items()
    ]


def comparisons(record: RunRecord) -> list[Comparison]:
    """Federation and local-only scores of the headline metric, in the order of institutions."""
    metric = record.headline_metric
    sign = 1.0 if metric.better == "higher" else -1.0
    rows = []
    for institution in record.institutions:
        ours, alone = score(record.final, institution.name, metric), score(record.local_only, institution.name, metric)
        gain = sign * (ours - alone)
        rows.append(Comparison(name=institution.name, federation=ours, local_only=alone, gain=gain))
    return rows


def headline(record: RunRecord) -> Headline:
    """How the federation did against the best institution on its own, in words."""
    metric = record.headline_metric
    label = wording.clean(metric.label, 120)
    rows = comparisons(record)
    ours = mean(row.federation for row in rows)
    alone = [row for row in rows if math.isfinite(row.local_only)]
    size = len(record.institutions)
    if not math.isfinite(ours):
        return Headline(
            sentence=f"The federation finished {wording.plural(len(record.rounds), 'round')}.",
            explanation=f"No institution reported its {label} at the end, so there is nothing to compare.",
            figures=(),
            won=False,
        )
    over = "" if size == 1 else f", averaged over {wording.plural(size, 'institution')},"
    shared = f"The shared model’s {label}{over} is {wording.number(ours, metric)}"
    if not alone:
        return Headline(
            sentence=f"The shared model reaches {wording.number(ours, metric)}.",
            explanation=f"{shared}. No institution trained a model alone, so there is nothing to compare it with.",
            figures=((f"Federation, {label}", wording.number(ours, metric)),),
            won=False,
        )
    best = (max if metric.better == "higher" else min)(alone, key=lambda row: row.local_only)
    return _against_best(record, rows, ours, best, shared)


def _against_best(
    record: RunRecord, rows: Sequence[Comparison], ours: float, best: Comparison, shared: str
) -> Headline:
    metric, size = record.headline_metric, len(record.institutions)
    gain = (ours - best.local_only) * (1 if metric.better == "higher" else -1)
    shown = wording.difference(gain, metric)
    rival = "the best single institution" if size > 1 else "training alone"
    if shown == wording.difference(0.0, metric):
        sentence = f"The federation draws level with {rival}."
    elif gain > 0:
        sentence = f"The federation beats {rival} by {shown}."
    else:
        sentence = f"The federation falls short of {rival} by {shown}."
    compared = [row for row in rows if math.isfinite(row.gain)]
    gainers = sum(row.gain > 0 for row in compared)
    name = wording.clean(best.name, 60)
    alone = f"the best that one institution trained alone ({name})" if size > 1 else f"the one {name} trained alone"
    verdict = _verdict(gainers, len(compared), size) if len(compared) > 1 else ""
    return Headline(
        sentence=sentence,
        explanation=f"{shared}; {alone} reaches {wording.number(best.local_only, metric)}. {verdict}".strip(),
        figures=(
            ("Federation" + (", mean" if size > 1 else ""), wording.number(ours, metric)),
            (f"Best alone, {name}" if size > 1 else "Alone", wording.number(best.local_only, metric)),
            ("Difference", wording.signed(ours - best.local_only, metric)),
        ),
        won=gain > 0,
    )


def _verdict(gainers: int, compared: int, size: int) -> str:
    if gainers == size:
        return f"All {wording.words(size)} institutions gain from taking part."
    who = wording.words(gainers).capitalize() if gainers else "None"
    return (
        f"{who} of the {wording.words(compared)} institutions {'gains' if gainers == 1 else 'gain'} from taking part."
    )


def attendance(record: RunRecord) -> dict[str, tuple[int, int]]:
    """For each institution: rounds in which its update was merged, rounds it was asked to."""
    merged: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for entry in record.rounds:
        for part in entry.participants:
            asked[part.name] += 1
            merged[part.name] += part.outcome == "merged"
    return {one.name: (merged[one.name], asked[one.name]) for one in record.institutions}


def verdicts(record: RunRecord) -> Verdicts | None:
    """What merges made of each institution's updates; None where no merge judged any."""
    numbers = [entry.number for entry in record.rounds if any(part.verdict for part in entry.participants)]
    if not numbers:
        return None
    found: dict[str, dict[int, Participation]] = {institution.name: {} for institution in record.institutions}
    for entry in record.rounds:
        for part in entry.participants:
            if part.name in found:
                found[part.name][entry.number] = part
    rows = [_verdict_row(name, [parts.get(number) for number in numbers]) for name, parts in found.items()]
    hostile = {name for item in record.hostility for name in item.institutions}
    rows.sort(key=lambda row: (row.name not in hostile, -row.rejected, -row.clipped))
    warnings = Counter(text for entry in record.rounds for text in entry.warnings)
    return Verdicts(
        rounds=tuple(numbers),
        rows=tuple(rows[:MOST_ROWS]),
        more=max(len(rows) - MOST_ROWS, 0),
        warnings=tuple((wording.clean(text, 300), amount) for text, amount in warnings.most_common(5)),
    )


def _verdict_row(name: str, parts: Sequence[Participation | None]) -> VerdictRow:
    judged = Counter(part.verdict for part in parts if part is not None)
    return VerdictRow(
        name=name,
        cells=tuple(
            ("", "") if part is None else (part.verdict, wording.clean(part.reason or part.outcome, 200))
            for part in parts
        ),
        kept=judged["kept"],
        clipped=judged["clipped"],
        rejected=judged["rejected"],
        weight=wording.number(mean(part.weight for part in parts if part is not None), _WEIGHT),
    )


def weighted_loss(participants: Sequence[Participation]) -> float:
    """Example-weighted mean training loss of the merged updates, NaN if none reported one."""
    pairs = [
        (part.metrics["loss"], part.examples)
        for part in participants
        if part.outcome == "merged" and math.isfinite(part.metrics.get("loss", math.nan)) and part.examples > 0
    ]
    total = sum(examples for _, examples in pairs)
    return sum(loss * examples for loss, examples in pairs) / total if total else math.nan


def round_rows(record: RunRecord) -> list[RoundRow]:
    """The table of rounds."""
    places = {institution.name: place for place, institution in enumerate(record.institutions)}
    return [_round_row(entry, places, record.headline_metric) for entry in record.rounds]


def _round_row(entry: Round, places: Mapping[str, int], metric: Metric) -> RoundRow:
    seats = tuple(
        Seat(
            place=places.get(part.name, FEW),
            name=wording.clean(part.name, 60),
            merged=part.outcome == "merged",
            outcome=wording.clean(part.outcome, 80),
        )
        for part in entry.participants
    )
    reasons = Counter(seat.outcome for seat in seats if not seat.merged)
    few = len(places) <= FEW
    absences = (
        "; ".join(f"{seat.name}: {seat.outcome}" for seat in seats if not seat.merged)
        if few
        else "; ".join(f"{amount} {reason}" for reason, amount in reasons.most_common())
    )
    return RoundRow(
        number=entry.number,
        version=str(entry.version) if entry.version else "none",
        merged=sum(seat.merged for seat in seats),
        invited=len(seats),
        seats=tuple(sorted(seats, key=lambda seat: seat.place)) if few else (),
        absences=wording.clean(absences, 300),
        duration=wording.duration(entry.seconds),
        loss=wording.plain(weighted_loss(entry.participants)),
        score=wording.number(mean(part.evaluation.get(metric.name, math.nan) for part in entry.participants), metric),
    )
