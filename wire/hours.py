"""Opening hours: windows of the week in a place's own time, across midnight and across changes of the clock.

A window begins at the first moment at which the clock on the wall shows its beginning or later, and ends at the first
moment at which it shows its end or later. So a beginning in the hour that is skipped in spring is the moment of the
change, and of a time that comes twice in autumn the first one counts. Everything else follows: windows are intervals of
real time, and those that touch are one.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
import re
import zoneinfo
from collections.abc import Iterable, Sequence
from typing import Final, Self

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_TIME: Final = r"([01][0-9]|2[0-4]):([0-5][0-9])"
_WINDOW: Final = re.compile(rf"(?P<days>[a-z,-]+)?(?:\s+|$|^)(?:(?P<start>{_TIME})-(?P<end>{_TIME}))?")
_EXAMPLES: Final = 'write for example "mon-fri 19:00-06:00", "sat-sun", or "20:00-06:00" for every day'
_DAY: Final = datetime.timedelta(days=1)
_AHEAD_DAYS: Final = 9
"""Further than a week ahead nothing new comes: whoever is open until then is always open."""


@dataclasses.dataclass(frozen=True)
class Window:
    """A window of the week.

    Attributes:
        days: On which it begins; 0 is Monday.
        start: Minutes after midnight.
        end: Minutes after midnight of the same day; more than 1,440 where it is on the next.
    """

    days: frozenset[int]
    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a window.

        Raises:
            ValueError: It isn't one; the message says what one looks like.

        >>> window = Window.parse("fri-sat 19:00-06:00")
        >>> sorted(window.days), window.start, window.end
        ([4, 5], 1140, 1800)
        """
        found = _WINDOW.fullmatch(text.strip().lower())
        if found is None or not (found["days"] or found["start"]):
            raise ValueError(f"is no window of the week: {_EXAMPLES}")
        start, end = (_minutes(found[name] or default) for name, default in (("start", "00:00"), ("end", "24:00")))
        if start == 1440:
            raise ValueError("begins at 24:00: write 00:00 of the next day")
        if end == start:
            raise ValueError("begins when it ends: for whole days write the days alone")
        return cls(_days(found["days"] or "mon-sun"), start, end if end > start else end + 1440)


@dataclasses.dataclass(frozen=True)
class OpeningHours:
    """When a place is open, by its own clock.

    Args:
        windows: None of them: always.
        zone: Of the place; days are its days, too.

    Example:
        >>> hours = OpeningHours.parse(["mon-fri 19:00-06:00", "sat-sun"], "Europe/Zurich")
        >>> noon = datetime.datetime(2026, 11, 25, 12, 0, tzinfo=hours.zone).timestamp()
        >>> hours.open_until(noon) is None, (hours.opens_at(noon) - noon) / 3600
        (True, 7.0)
    """

    windows: tuple[Window, ...] = ()
    zone: zoneinfo.ZoneInfo = dataclasses.field(default_factory=lambda: zoneinfo.ZoneInfo("UTC"))

    @classmethod
    def parse(cls, windows: Iterable[str], zone: str) -> Self:
        """Read windows and the name of a time zone.

        Raises:
            ValueError: As :meth:`Window.parse` and :func:`parse_zone`.
        """
        return cls(tuple(Window.parse(text) for text in windows), parse_zone(zone))

    def open_until(self, at_s: float) -> float | None:
        """When the window of this moment ends, in seconds since the epoch.

        Infinity where it is always open, None where it is closed.
        """
        if not self.windows:
            return math.inf
        for start, end in self._around(at_s):
            if start <= at_s < end:
                return math.inf if end >= at_s + 8 * 86_400 else end
        return None

    def opens_at(self, at_s: float) -> float:
        """The first moment from this one on at which it is open, in seconds since the epoch."""
        if self.open_until(at_s) is not None:
            return at_s
        return min(start for start, _ in self._around(at_s) if start > at_s)

    def after(self, at_s: float, open_s: float) -> float:
        """The moment at which it was open for so many seconds from this one on."""
        moment = at_s
        while True:
            moment = self.opens_at(moment)
            end = self.open_until(moment)
            assert end is not None
            if open_s <= end - moment:
                return moment + open_s
            open_s -= end - moment
            moment = end

    def day(self, at_s: float) -> str:
        """The date on the place's calendar, as ``2026-11-25``."""
        return _local(at_s, self.zone).date().isoformat()

    def midnight(self, at_s: float) -> float:
        """When the place's next day begins, in seconds since the epoch."""
        return _moment(_local(at_s, self.zone).date() + _DAY, 0, self.zone)

    def shown(self, at_s: float, now_s: float) -> str:
        """A moment for a person at the place: the time, with the date where that isn't today's."""
        moment, today = _local(at_s, self.zone), _local(now_s, self.zone).date()
        return f"{moment:%H:%M}" if moment.date() == today else f"{moment:%H:%M on %a %d %b}"

    def _around(self, at_s: float) -> Sequence[tuple[float, float]]:
        """Open intervals from two days before to nine days after this moment's day, joined where they touch."""
        return _intervals(self.windows, self.zone, _local(at_s, self.zone).date())


def parse_zone(name: str) -> zoneinfo.ZoneInfo:
    """The time zone of that name in the IANA database.

    Raises:
        ValueError: There is none.
    """
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("is no time zone of the IANA database: write for example Europe/Zurich") from None


def opening_window(text: str) -> str:
    """A window's text, if it is one: for configurations.

    Raises:
        ValueError: As :meth:`Window.parse`.
    """
    Window.parse(text)
    return text


def time_zone(name: str) -> str:
    """A time zone's name, if there is one: for configurations.

    Raises:
        ValueError: As :func:`parse_zone`.
    """
    parse_zone(name)
    return name


@functools.lru_cache(maxsize=64)
def _intervals(
    windows: tuple[Window, ...], zone: zoneinfo.ZoneInfo, today: datetime.date
) -> tuple[tuple[float, float], ...]:
    found = []
    for offset in range(-2, _AHEAD_DAYS + 1):
        date = today + offset * _DAY
        for window in windows:
            if date.weekday() in window.days:
                found.append((_moment(date, window.start, zone), _moment(date, window.end, zone)))
    joined: list[tuple[float, float]] = []
    for start, end in sorted(found):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        elif end > start:  # of a window inside an hour that is skipped nothing is left
            joined.append((start, end))
    return tuple(joined)


def _moment(date: datetime.date, minutes: int, zone: zoneinfo.ZoneInfo) -> float:
    """The first moment at which the wall's clock shows this time of that date, or a later one."""
    date += (minutes // 1440) * _DAY
    wall = datetime.datetime.combine(date, datetime.time(minutes % 1440 // 60, minutes % 60))
    first, second = (wall.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1))
    if first <= second:
        return first  # an ordinary time; or one that comes twice
    low, high = int(second), int(first)  # a time that is skipped: the moment of the change lies between
    while low < high:
        middle = (low + high) // 2
        if _local(middle, zone).replace(tzinfo=None) >= wall:
            high = middle
        else:
            low = middle + 1
    return float(low)


def _local(at_s: float, zone: zoneinfo.ZoneInfo) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at_s, zone)


def _minutes(text: str) -> int:
    hours, minutes = map(int, text.split(":"))
    if hours * 60 + minutes > 1440:
        raise ValueError(f"names the time {text}: a day ends at 24:00")
    return hours * 60 + minutes


def _days(text: str) -> frozenset[int]:
    """Of ``mon-fri``, ``sat``, ``mon,wed-thu``; ``sat-mon`` goes over the week's end."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS or part.endswith("-"):
            raise ValueError(f"names the days {text!r}: days are {', '.join(DAYS)}, as in mon-fri or sat,sun")
        start, count = DAYS.index(first), (DAYS.index(last or first) - DAYS.index(first)) % 7
        found.update((start + step) % 7 for step in range(count + 1))
    return frozenset(found)
