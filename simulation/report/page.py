"""From a record to one HTML file."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from simulation.report import wording
from simulation.report.record import Institution, Metric, Retrieval, RunRecord
from simulation.report.staleness import staleness
from simulation.report.summary import (
    FEW,
    Comparison,
    Curve,
    attendance,
    comparisons,
    curves,
    finite,
    headline,
    quantile,
    round_rows,
    score,
    verdicts,
)
from wire.errors import ResourceError

TEMPLATES: Final = Path(__file__).parent / "templates"

# Queries shown at once for an institution, and institutions shown at once; the rest is one click away.
_QUERIES_SHOWN: Final = 6
_GALLERIES_SHOWN: Final = 4
_SHARE: Final = Metric(name="share", label="share")
_QUANTILES: Final = ((0.0, "lowest"), (0.1, "10 %"), (0.5, "median"), (0.9, "90 %"), (1.0, "highest"))


def write_report(record: RunRecord, path: Path) -> None:
    """Write the record as one self-contained HTML page.

    The file appears whole or not at all: it is written beside its place and moved there.

    Args:
        record: What happened.
        path: Of the HTML file; missing folders are created.

    Raises:
        ResourceError: A library of the ``demo`` extra isn't installed, or the file can't be written.
    """
    page = render(record)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        draft = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(page)
            draft.chmod(0o644)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(
            f"the report can't be written to {path}: {error.strerror or error}", "Name another file, or make room."
        ) from error


def render(record: RunRecord) -> str:
    """The page as text.

    Raises:
        ResourceError: A library of the ``demo`` extra isn't installed.
    """
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise _lacking(error) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        clean=wording.clean,
        count=wording.count,
        large=wording.large,
        duration=wording.duration,
        ordinal=wording.ordinal,
    )
    lines, rows = curves(record), comparisons(record)
    try:
        drawings = _drawings(lines, rows, record.headline_metric)
    except ImportError as error:
        raise _lacking(error) from error
    page = environment.get_template("report.html.j2").render(
        **_context(record, lines, rows),
        drawings={name: markupsafe.Markup(svg) for name, svg in drawings.items()},
        style=markupsafe.Markup((TEMPLATES / "report.css").read_text()),
    )
    return page.encode("utf-8", "replace").decode()


def _lacking(error: ImportError) -> ResourceError:
    return ResourceError(
        f"the report needs the package {error.name}, which isn't installed",
        "Install it with: pip install 'fedloom[demo]'",
        code="package-missing",
    )


def _drawings(lines: Sequence[Curve], rows: Sequence[Comparison], metric: Metric) -> dict[str, str]:
    """Each chart twice, for wide screens and for phones: the style sheet shows one. Charts with nothing to see lack."""
    from simulation.report import charts

    drawings = {}
    for width, size in (("wide", charts.WIDE), ("narrow", charts.NARROW)):
        if any(len(line.points) > 1 for line in lines):
            drawings[f"curves_{width}"] = charts.learning_curves(lines, metric, size, f"curves-{width}")
        if any(math.isfinite(row.gain) for row in rows):
            height = 60 + 60 * len(rows) if len(rows) <= FEW else size[1]
            drawings[f"comparison_{width}"] = charts.comparison(rows, metric, (size[0], height), f"comparison-{width}")
    return drawings


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Card:
    """One institution, as shown. ``scores`` are (label, federation, alone, gain, whether it is a gain)."""

    place: int
    institution: Institution
    scores: tuple[tuple[str, str, str, str, bool | None], ...]
    merged: int
    asked: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Numbers:
    """A table behind a chart: headings, and rows whose first cell heads the row."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Gallery:
    """The queries of one institution: those shown at once, those behind a click."""

    place: int
    name: str
    first: tuple[Retrieval, ...]
    more: tuple[Retrieval, ...]


def _context(record: RunRecord, lines: Sequence[Curve], rows: Sequence[Comparison]) -> dict[str, Any]:
    galleries = _galleries(record)
    asked = [part for entry in record.rounds for part in entry.participants]
    return {
        "record": record,
        "few": len(record.institutions) <= FEW,
        "headline": headline(record),
        "label": wording.clean(record.headline_metric.label, 120),
        "title_label": wording.sentence(record.headline_metric.label),
        "cards": _cards(record),
        "curve_numbers": _curve_numbers(lines, record.headline_metric),
        "gains": _gain_numbers(rows, record.headline_metric),
        "galleries": galleries[:_GALLERIES_SHOWN] if len(record.institutions) > FEW else galleries,
        "more_galleries": galleries[_GALLERIES_SHOWN:] if len(record.institutions) > FEW else (),
        "rounds": round_rows(record),
        "verdicts": verdicts(record),
        "staleness": staleness(record),
        "any_score": any(record.headline_metric.name in part.evaluation for part in asked),
        "any_alone": any(finite(table.values()) for table in record.local_only.values()),
        "any_loss": any(math.isfinite(part.metrics.get("loss", math.nan)) for part in asked),
        "config": tuple(wording.flat(record.config)),
        "started": wording.moment(record.started),
        "hostile_score": "".join(wording.number(item.score, record.headline_metric) for item in record.hostility),
        "hostile_success": "".join(
            wording.number(item.success, _SHARE) for item in record.hostility if math.isfinite(item.success)
        ),
        "records": sum(institution.examples for institution in record.institutions),
    }


def _metrics(record: RunRecord) -> list[Metric]:
    """The headline metric, the declared others, then what was reported without being declared, by name."""
    declared = [record.headline_metric, *record.other_metrics]
    known = {metric.name for metric in declared}
    found = {name for table in (*record.final.values(), *record.local_only.values()) for name in table}
    return declared + [Metric(name=name, label=name, unit="") for name in sorted(found - known)]


def _cards(record: RunRecord) -> list[_Card]:
    present, cards = attendance(record), []
    for place, institution in enumerate(record.institutions):
        scores = []
        for metric in _metrics(record):
            ours, alone = (
                score(record.final, institution.name, metric),
                score(record.local_only, institution.name, metric),
            )
            if not finite([ours, alone]):
                continue
            better = (ours > alone) == (metric.better == "higher") if ours != alone else None
            # An undeclared metric has no known good direction, so its difference is stated without a verdict.
            known = math.isfinite(ours - alone) and (metric is record.headline_metric or metric in record.other_metrics)
            scores.append(
                (
                    wording.clean(metric.label, 80),
                    wording.number(ours, metric),
                    wording.number(alone, metric),
                    wording.signed(ours - alone, metric),
                    better if known else None,
                )
            )
        merged, asked = present[institution.name]
        cards.append(_Card(place=place, institution=institution, scores=tuple(scores), merged=merged, asked=asked))
    return cards


def _curve_numbers(lines: Sequence[Curve], metric: Metric) -> _Numbers:
    versions = sorted({version for line in lines for version, _ in line.points})
    caption = f"{wording.clean(metric.label, 120)} by version of the shared model"
    if len(lines) <= FEW:
        tables = [dict(line.points) for line in lines]
        body = [
            (str(version), *(wording.number(table.get(version, math.nan), metric) for table in tables))
            for version in versions
        ]
        body.append(("alone", *(wording.number(line.local_only, metric) for line in lines)))
        return _Numbers(
            caption=caption, headings=("version", *(wording.clean(line.name, 60) for line in lines)), rows=tuple(body)
        )
    columns = [(str(version), [dict(line.points).get(version, math.nan) for line in lines]) for version in versions]
    columns.append(("alone", [line.local_only for line in lines]))
    return _Numbers(
        caption=caption,
        headings=("version", *(name for _, name in _QUANTILES), "reports"),
        rows=tuple(
            (
                head,
                *(wording.number(quantile(values, share), metric) for share, _ in _QUANTILES),
                str(len(finite(values))),
            )
            for head, values in columns
        ),
    )


def _gain_numbers(rows: Sequence[Comparison], metric: Metric) -> _Numbers:
    """Federation, alone and gain of every institution, the largest gain first where there are many."""
    ordered = list(rows)
    if len(rows) > FEW:
        ordered.sort(key=lambda row: -row.gain if math.isfinite(row.gain) else math.inf)
    return _Numbers(
        caption=f"{wording.clean(metric.label, 120)} at the end, by institution",
        headings=("institution", "federation", "alone", "difference"),
        rows=tuple(
            (
                wording.clean(row.name, 60),
                wording.number(row.federation, metric),
                wording.number(row.local_only, metric),
                wording.signed(row.federation - row.local_only, metric),
            )
            for row in ordered
        ),
    )


def _galleries(record: RunRecord) -> list[_Gallery]:
    places = {institution.name: place for place, institution in enumerate(record.institutions)}
    grouped: dict[str, list[Retrieval]] = {}
    for query in record.gallery:
        grouped.setdefault(query.institution, []).append(query)
    return [
        _Gallery(
            place=places.get(name, FEW),
            name=name,
            first=tuple(queries[:_QUERIES_SHOWN]),
            more=tuple(queries[_QUERIES_SHOWN:]),
        )
        for name, queries in sorted(grouped.items(), key=lambda entry: places.get(entry[0], FEW))
    ]
