"""A virtual clock: things happen in the order of their times, and time costs nothing."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Final

EPOCH_S: Final = 1_000_000_000.0
"""Where virtual time begins: a real moment in the past, so that times look like times in logs and tables."""


class VirtualClock:
    """A queue of callbacks by time; equal times keep the order in which they were asked for.

    Example:
        >>> clock = VirtualClock()
        >>> clock.after(2.0, lambda: print("second"))
        >>> clock.after(1.0, lambda: print("first"))
        >>> clock.run(lambda: False)
        first
        second
    """

    def __init__(self) -> None:
        self.now_s = EPOCH_S
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, at_s: float, what: Callable[[], None]) -> None:
        """Call ``what`` at this time, or now if it is past."""
        heapq.heappush(self._queue, (max(at_s, self.now_s), next(self._order), what))

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        """Call ``what`` after so many seconds."""
        self.at(self.now_s + delay_s, what)

    def run(self, done: Callable[[], bool]) -> None:
        """Let time pass until ``done()`` or until nothing is left to happen."""
        while self._queue and not done():
            self.now_s, _, what = heapq.heappop(self._queue)
            what()

    def settle(self) -> None:
        """Let happen what is due now, and what follows from it at once: messages that are on their way."""
        while self._queue and self._queue[0][0] <= self.now_s:
            heapq.heappop(self._queue)[2]()
