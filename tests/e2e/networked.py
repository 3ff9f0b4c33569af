"""A deployed federation whose sites reach the coordinator through relays that break their connections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from relays import Relay, Step

from participant.site import CONFIG
from tests.e2e.killing import SITES, Fragile, Nursery
from tests.e2e.writes import numbered

TRAINED = "~tasks(trained)"
"""What a site's journal writes when it has trained, as ``tests.e2e.writes`` calls it."""


class Networked(Fragile):
    """Each site's connections pass a relay of its own. Every durable write is counted, and every blob kept."""

    def __init__(self, folder: Path, config: Path, nursery: Nursery, names: tuple[str, ...] = SITES) -> None:
        super().__init__(folder, config, nursery, names)
        self.relays: dict[str, Relay] = {}
        self.numbered = {"coordinator", *names}
        self._endings: list[Callable[[], None]] = []

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for relay in self.relays.values():
            relay.close()

    def start_participant(self, name: str, *arguments: str) -> Any:
        """Start a site's daemon, behind its relay."""
        if name not in self.relays:
            port = int(self.listening["session"].rpartition(":")[2])
            relay = self.relays[name] = Relay(port, seed=self.names.index(name))
            path = self.home(name) / CONFIG
            text = path.read_text()
            assert f"localhost:{port}" in text
            text = text.replace(f"localhost:{port}", relay.address)
            path.write_text(text.replace("allow_plain = false", "allow_plain = true"))
        return super().start_participant(name, *arguments)

    def follow(self, plans: Mapping[str, Any]) -> None:
        """Break the connections of these sites, each by its own plan of :class:`relays.Step`."""
        self._endings = [self.relays[name].follow(steps) for name, steps in plans.items()]

    def calm(self) -> None:
        """End the plans, and whatever of them holds."""
        for end in self._endings:
            end()
        self._endings = []

    def running(self) -> bool:
        """Whether nobody has ended."""
        everyone = {"coordinator": self.coordinator, **self.participants}
        ended = {name: process.poll() for name, process in everyone.items() if process is not None}
        assert set(ended.values()) == {None}, f"{ended}\n{self.logs()}"
        return True

    def said(self) -> dict[str, list[tuple[float, Step]]]:
        """What has been broken, to repeat it by hand."""
        return {name: relay.said for name, relay in self.relays.items()}

    def trainings(self, name: str) -> int:
        """How often a site has trained."""
        return numbered(self.folder, name)[TRAINED]
