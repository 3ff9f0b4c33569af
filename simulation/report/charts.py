"""Charts as inline SVG: matplotlib lays them out, and the page's style sheet colours them.

A colour is drawn as a placeholder and becomes a CSS variable, so that one drawing serves light and dark pages. Text
stays text. The result holds no identifier that isn't prefixed, no style element, and no reference outside itself.
"""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

from simulation.report import wording
from simulation.report.record import Metric
from simulation.report.summary import FEW, Comparison, Curve, finite, quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE: Final = (900, 400)
NARROW: Final = (360, 340)

# Drawn colour -> CSS variable. The hues only have to differ from each other and from black, SVG's silent default.
_INK, _MUTED, _GRID, _PAPER, _ACCENT = "#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005"
_SERIES: Final = tuple(f"#0b00{place:02x}" for place in range(FEW))
_VARIABLES: Final = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--grid)",
    _PAPER: "var(--card)",
    _ACCENT: "var(--accent)",
    **{colour: f"var(--s{place})" for place, colour in enumerate(_SERIES)},
}
_COLOUR: Final = re.compile("|".join(_VARIABLES))
# matplotlib's identifiers of what is drawn repeatedly (m...) or clips (p...), where they are referred to.
_REFERENCE: Final = re.compile(r"#([mp][0-9a-f]{10})\b")

_STYLE: Final[Any] = {
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.labelsize": 12.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.left": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 12.5,
    "grid.color": _GRID,
    "grid.linewidth": 1.0,
    "lines.solid_capstyle": "round",
    "lines.dash_capstyle": "butt",
    "svg.fonttype": "none",
    "text.color": _INK,
    "text.parse_math": False,  # a name may hold dollar signs
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "ytick.major.size": 0,
}


def learning_curves(lines: Sequence[Curve], metric: Metric, size: tuple[int, int], key: str) -> str:
    """Score by version: a line for each institution with its local-only score dashed, or the spread of many.

    Args:
        lines: One for each institution, in order.
        metric: What is drawn.
        size: Width and height in CSS pixels.
        key: Prefix of identifiers, unique within the page.

    Returns:
        An ``svg`` element.
    """
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes) -> None:
        if len(lines) <= FEW:
            _draw_lines(axes, lines, with_names=size[0] >= 600)
        else:
            _draw_spread(axes, lines, with_names=size[0] >= 600)
        _metric_axis(axes.yaxis, metric)
        _limit(
            axes,
            "y",
            [value for line in lines for _, value in line.points] + [line.local_only for line in lines],
            metric,
        )
        axes.set_xlabel("rounds merged into the shared model")
        axes.xaxis.set_major_locator(MaxNLocator(10 if size[0] >= 600 else 5, integer=True, steps=[1, 2, 5, 10]))
        axes.grid(axis="y")

    described = (
        f"Learning curves of {wording.plural(len(lines), 'institution')}: {wording.clean(metric.label)} by round."
    )
    return _svg(draw, size, key, described)


def comparison(rows: Sequence[Comparison], metric: Metric, size: tuple[int, int], key: str) -> str:
    """Federation against local-only: two dots on a line for each institution, or a cloud of many over "no gain".

    Args:
        rows: One for each institution, in order.
        metric: What is drawn.
        size: Width and height in CSS pixels.
        key: Prefix of identifiers, unique within the page.

    Returns:
        An ``svg`` element.
    """

    def draw(axes: Axes) -> None:
        values = [value for row in rows for value in (row.federation, row.local_only)]
        if len(rows) <= FEW:
            _draw_dumbbells(axes, rows, metric, names_aside=size[0] >= 600)
            _metric_axis(axes.xaxis, metric)
            _limit(axes, "x", values, metric)
            axes.grid(axis="x")
        else:
            _draw_cloud(axes, rows)
            _metric_axis(axes.xaxis, metric)
            _metric_axis(axes.yaxis, metric)
            _limit(axes, "x", values, metric)
            _limit(axes, "y", values, metric)
            axes.set_xlabel("trained alone")
            axes.set_ylabel("federation")
            axes.grid(visible=True)

    described = f"{wording.clean(metric.label).capitalize()} of the federation and of each institution alone."
    return _svg(draw, size, key, described)


# --- drawing ----------------------------------------------------------------------------------------------------------


def _draw_lines(axes: Axes, lines: Sequence[Curve], *, with_names: bool) -> None:
    first = min((version for line in lines for version, _ in line.points), default=0)
    last = max((version for line in lines for version, _ in line.points), default=1)
    last = max(last, first + 1)
    for colour, line in zip(_SERIES, lines, strict=False):
        if math.isfinite(line.local_only):
            axes.plot([first, last], [line.local_only] * 2, color=colour, linewidth=1.4, dashes=(4, 3), alpha=0.85)
        if line.points:
            mark = "o" if len(line.points) <= 15 else ""
            axes.plot(*zip(*line.points, strict=True), color=colour, linewidth=2.4, marker=mark, markersize=4.5)
    axes.set_xlim(first, last + (last - first) * 0.015)
    if with_names:
        ends = [
            (line.points[-1][1], colour, line.name) for colour, line in zip(_SERIES, lines, strict=False) if line.points
        ]
        _names_at_the_end(axes, ends, [value for line in lines for _, value in line.points])


def _names_at_the_end(axes: Axes, ends: Sequence[tuple[float, str, str]], values: Sequence[float]) -> None:
    """Write each line's name beside its end, moved apart where ends are close."""
    if not ends:
        return
    gap = max((max(values) - min(min(values), 0.0)) / 18, 1e-9)
    ordered = sorted(ends)
    heights = [value for value, _, _ in ordered]
    for place in range(1, len(heights)):
        heights[place] = max(heights[place], heights[place - 1] + gap)
    shift = (sum(heights) - sum(value for value, _, _ in ordered)) / len(heights)
    for height, (_, colour, name) in zip(heights, ordered, strict=True):
        axes.annotate(
            wording.clean(name, 22),
            (1.0, height - shift),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            weight=600,
            annotation_clip=False,
        )


def _draw_spread(axes: Axes, lines: Sequence[Curve], *, with_names: bool) -> None:
    by_version: dict[int, list[float]] = {}
    for line in lines:
        for version, value in line.points:
            by_version.setdefault(version, []).append(value)
    versions = sorted(by_version)
    if versions:
        low, middle, high = (
            [quantile(by_version[version], share) for version in versions] for share in (0.1, 0.5, 0.9)
        )
        axes.fill_between(versions, low, high, color=_ACCENT, alpha=0.2, linewidth=0)
        axes.plot(versions, middle, color=_ACCENT, linewidth=2.6)
        axes.set_xlim(versions[0], max(versions[-1], versions[0] + 1))
    alone = quantile([line.local_only for line in lines], 0.5)
    if math.isfinite(alone):
        axes.axhline(alone, color=_INK, linewidth=1.4, dashes=(4, 3), alpha=0.85)
    if with_names:
        ends = [(quantile(by_version[versions[-1]], 0.5), _ACCENT, "federation, median")] if versions else []
        ends += [(alone, _INK, "alone, median")] if math.isfinite(alone) else []
        _names_at_the_end(axes, ends, [value for found in by_version.values() for value in found] or [alone])


def _draw_dumbbells(axes: Axes, rows: Sequence[Comparison], metric: Metric, *, names_aside: bool) -> None:
    places = range(len(rows))
    for place, row, colour in zip(places, rows, _SERIES, strict=False):
        if math.isfinite(row.gain):
            axes.plot([row.local_only, row.federation], [place] * 2, color=colour, linewidth=3, alpha=0.35, zorder=2)
        axes.plot(
            [row.local_only], [place], "o", color=_PAPER, markeredgecolor=colour, markeredgewidth=2, markersize=10
        )
        axes.plot([row.federation], [place], "o", color=colour, markersize=11)
        for value, other in ((row.federation, row.local_only), (row.local_only, row.federation)):
            if math.isfinite(value):
                right = not value < other
                axes.annotate(
                    wording.number(value, metric),
                    (value, place),
                    xytext=(10 if right else -10, 0),
                    textcoords="offset points",
                    ha="left" if right else "right",
                    va="center",
                    weight=600 if value is row.federation else 400,
                ).set_in_layout(False)
    names = [wording.clean(row.name, 26) for row in rows]
    axes.set_yticks(places, names if names_aside else [""] * len(rows))
    axes.tick_params(axis="y", labelcolor=_INK, pad=10)
    for place, name in zip(places, [] if names_aside else names, strict=False):
        # On a phone above the line, so that a long name takes no width away from the numbers.
        axes.annotate(
            name, (0, place), xycoords=("axes fraction", "data"), xytext=(0, 13), textcoords="offset points"
        ).set_in_layout(False)
    axes.set_ylim(len(rows) - 0.5, -0.5 if names_aside else -0.75)
    axes.tick_params(axis="x", length=0)
    axes.spines["bottom"].set_visible(False)


def _draw_cloud(axes: Axes, rows: Sequence[Comparison]) -> None:
    kept = [row for row in rows if math.isfinite(row.gain)]
    ends = finite([value for row in kept for value in (row.federation, row.local_only)])
    if ends:
        low, high = min(0.0, *ends), max(ends)
        axes.plot([low, high], [low, high], color=_MUTED, linewidth=1.4, dashes=(4, 3))
    axes.plot(
        [row.local_only for row in kept],
        [row.federation for row in kept],
        "o",
        color=_ACCENT,
        markersize=6.5,
        markeredgecolor=_PAPER,
        alpha=0.8,
    )


def _metric_axis(axis: Any, metric: Metric) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if metric.unit == "fraction":
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}\u202f%"))
    else:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))


def _limit(axes: Axes, which: str, values: Sequence[float], metric: Metric) -> None:
    """A fraction's axis starts at zero, so that lengths can be compared; others fit the numbers."""
    kept = finite(values) or [0.0, 1.0]
    low, high = min(kept), max(kept)
    if metric.unit == "fraction" or (low >= 0 and low < high / 2):
        low = min(low, 0.0)
    room = (high - low or abs(high) or 1.0) * (0.16 if which == "x" else 0.08)
    bounds = low if low == 0 else low - room, high + room
    if which == "x":
        axes.set_xlim(*bounds)
    else:
        axes.set_ylim(*bounds)


# --- from a drawing to markup -----------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep matplotlib from warning: its measuring font lacks scripts that the browser, which draws, has."""
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
            warnings.filterwarnings("ignore", message="Matplotlib currently does not support", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)


def _svg(draw: Callable[[Axes], None], size: tuple[int, int], key: str, described: str) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with _quiet(), matplotlib.rc_context({**_STYLE, "svg.hashsalt": key}):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), key, described)


def _inline(document: bytes, key: str, described: str) -> str:
    """A whole SVG document as one element that can stand in a page beside others."""
    root = ElementTree.fromstring(document)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style", "title"):
                parent.remove(child)
    used = set(_REFERENCE.findall(document.decode()))
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {
            _local(name): _REFERENCE.sub(lambda found: f"#{key}-{found.group(1)}", value)
            for name, value in element.attrib.items()
        }
        identifier = element.attrib.pop("id", "")
        if identifier in used:
            element.attrib["id"] = f"{key}-{identifier}"
        if "style" in element.attrib:
            # The browser's font, not the one that matplotlib measured with; size, weight and anchor stay.
            style = re.sub(r"'DejaVu Sans'[^;]*", "var(--font)", element.attrib["style"])
            element.attrib["style"] = _COLOUR.sub(lambda found: _VARIABLES[found.group()], style)
    box = root.attrib.get("viewBox", "0 0 1 1")
    root.attrib = {"viewBox": box, "role": "img", "aria-label": described, "class": "chart"}
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]
