"""Federations with one first model, and the simulator's word on what a run of theirs must end with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.deployment import configuration
from tests.e2e.killing import Fragile, Nursery


class Stages:
    """Federations with one first model, and what the simulator makes of each configuration."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        self._folder = folder
        self._nursery = nursery
        self._initial: Path | None = None
        self._simulated: dict[str, str] = {}

    def make(self, folder: Path, **settings: Any) -> Fragile:
        config = configuration(folder, min_updates=3, steps=2, **settings)
        if self._initial is None:
            self._initial = self._folder / "initial.safetensors"
            made = Fragile(self._folder, config, self._nursery)
            made.run_once("model", "init", "--config", str(config), "--out", str(self._initial), "--seed", "11")
        text = config.read_text().replace("\nlease_s", f'\ninitial_model = "{self._initial}"\nlease_s')
        config.write_text(text)
        return Fragile(folder, config, self._nursery)

    def simulated(self, federation: Fragile, rounds: int) -> str:
        """Digest of the final model of the same run in the simulator."""
        key = str(rounds)
        if key not in self._simulated:
            lines = federation.run_once(
                "simulate", "--config", str(federation.config), "--out", "report", "--workers", "1"
            )
            self._simulated[key] = lines[-1]["digest"]
        return self._simulated[key]


def outcomes(status: dict[str, Any], number: int) -> dict[str, str]:
    return {item["name"]: item["outcome"] for item in status["history"][number - 1]["participants"]}
