"""Sums over the closed rounds of a run: what a status says of all of them, without going through all each time."""

from __future__ import annotations

from collections import Counter

from coordinator.rounds import RunState


class Past:
    """What the closed rounds of a run come to.

    Attributes:
        rounds: How many are closed.
        seconds: From the start to the commit of each, in all.
        staleness: Of asynchronous rounds: by the versions that an update was behind, how many were merged.
    """

    def __init__(self) -> None:
        self._state: RunState | None = None
        self._clear()

    def _clear(self) -> None:
        self.rounds, self.seconds = 0, 0.0
        self.staleness: Counter[int] = Counter()

    def follow(self, state: RunState) -> None:
        """Take in what was closed since the last call. Another state, as after a failed write, is begun anew."""
        if state is not self._state:
            self._state = state
            self._clear()
        for item in state.rounds[self.rounds :]:
            if item.closed_s is None:
                return  # the rounds behind it aren't closed either
            self.rounds += 1
            self.seconds += item.closed_s - item.opened_s
            if item.version is not None:
                self.staleness.update(item.staleness(name) for name in item.done())
