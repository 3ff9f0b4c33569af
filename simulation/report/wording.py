"""Numbers and names as people read them."""

from __future__ import annotations

import datetime
import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, Final

from simulation.report.record import Metric

MISSING: Final = "–"
_THIN: Final = "\u202f"  # narrow no-break space, between a number and its unit
_MINUS: Final = "\u2212"

# Characters that reorder the text around them: a name could make a page read as what it doesn't say.
_REORDERING: Final = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(text: str, limit: int = 400) -> str:
    """Text that is safe to lay out: one line, no control or reordering characters, at most ``limit`` characters.

    Escaping for HTML isn't done here; the template does it for every value.
    """
    kept = (
        " " if unicodedata.category(sign) in ("Cc", "Zl", "Zp") else sign
        for sign in text.encode("utf-8", "replace").decode()
        if sign not in _REORDERING
    )
    line = " ".join("".join(kept).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def number(value: float, metric: Metric) -> str:
    """A metric's value with its unit, for example ``"52.3 %"``; a dash for NaN."""
    if not math.isfinite(value):
        return MISSING
    if metric.unit == "fraction":
        return f"{100 * value:.1f}{_THIN}%".replace("-", _MINUS)
    return _with_unit(value, metric.unit)


def difference(value: float, metric: Metric) -> str:
    """A gain or loss without its sign, in points for fractions, for example ``"38.2 points"``."""
    if not math.isfinite(value):
        return MISSING
    if metric.unit == "fraction":
        points = f"{100 * abs(value):.1f}"
        return f"{points} point" if points == "1.0" else f"{points} points"
    return _with_unit(abs(value), metric.unit)


def signed(value: float, metric: Metric) -> str:
    """A difference with its sign, for example ``"+38.2 points"``."""
    if not math.isfinite(value):
        return MISSING
    return ("+" if value >= 0 else _MINUS) + difference(value, metric)


def _with_unit(value: float, unit: str) -> str:
    shown = f"{value:#.3g}" if 1e-4 <= abs(value) < 99.95 else f"{value:,.6g}"
    shown = shown.replace("-", _MINUS)
    return f"{shown}{_THIN}{clean(unit, 12)}" if unit and unit != "fraction" else shown


def plain(value: float) -> str:
    """A number without a unit, three digits or more, a dash for NaN."""
    return _with_unit(value, "") if math.isfinite(value) else MISSING


def count(value: int) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,}".replace(",", _THIN)


def large(value: int) -> str:
    """A whole number in short, for example ``"1.2 million"``."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if value >= size:
            return f"{value / size:.3g}{_THIN}{word}"
    return count(value)


def duration(seconds: float) -> str:
    """A length of time in its two largest units, for example ``"3 min 20 s"``."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f}{_THIN}s"
    whole = round(seconds)
    parts = [(whole // 86_400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((place for place, (amount, _) in enumerate(parts) if amount), 3)
    return " ".join(f"{amount}{_THIN}{unit}" for amount, unit in parts[first : first + 2] if amount)


def ordinal(rank: int) -> str:
    """``1`` as ``"1st"``."""
    ending = "th" if 10 <= rank % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{ending}"


def words(amount: int) -> str:
    """A small number in words, a larger one in digits."""
    small = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    return small[amount] if amount < len(small) else count(amount)


def moment(text: str) -> str:
    """An RFC 3339 time as people write it, in its own offset; unchanged where it isn't one."""
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        return clean(text, 60)
    zone = when.strftime("%Z") or "local time"
    return f"{when.day} {when:%B %Y, %H:%M} {zone}"


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and JSON values of a nested table, in order."""
    for key, value in table.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, path + ".")
        else:
            yield clean(path, 200), clean(json.dumps(value, ensure_ascii=False, default=str), 2_000)


def plural(amount: int, noun: str) -> str:
    """An amount in words with its noun, for example ``"four institutions"``."""
    return f"{words(amount)} {noun}{'s' * (amount != 1)}"


def sentence(text: str) -> str:
    """Cleaned text with its first letter large."""
    line = clean(text, 120)
    return line[:1].upper() + line[1:]
