"""How long a simulated institution trains: the paces of asynchronous learning's papers, or measured ones.

A pace says by how much each training takes longer or shorter than the institution's own ``seconds``. It depends on the
seed, the institution and the number of its training alone: the same institutions have the same times in synchronous and
in asynchronous rounds, so that the two can be compared.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from core_model import derive
from wire import ConfigError, SimulationSection

_LONGEST_S: Final = 1e9
_MOST_ROWS: Final = 1_000_000


class Speeds:
    """Virtual seconds of trainings.

    - ``fixed``: the institution's ``seconds``, always.
    - ``half-normal``: times ``|N(0, 1)|`` (FedBuff; Nguyen et al. 2022, who fitted it to a production system).
    - ``lognormal``: times ``exp(sigma N(0, 1))``, whose median is 1.
    - ``stragglers``: times ``straggler_factor`` for a share of the institutions, the same for the whole run.
    - with a trace, its seconds for each institution, one training after the other, and from the start again.

    Args:
        section: Of the configuration.

    Raises:
        ConfigError: The trace can't be read, or says nothing of an institution.
    """

    def __init__(self, section: SimulationSection) -> None:
        self._section = section
        names = [item.name for item in section.institutions]
        self._seconds = {item.name: item.seconds for item in section.institutions}
        self._trace = read_trace(section.speed_trace, names) if section.speed_trace is not None else {}
        slow = math.floor(section.straggler_share * len(names) + 0.5)
        ranked = sorted(names, key=lambda name: derive(section.speed_seed, "straggler", name))
        self.stragglers = frozenset(ranked[:slow]) if section.speeds == "stragglers" else frozenset()

    def seconds(self, name: str, number: int) -> float:
        """Virtual seconds of an institution's training.

        Args:
            name: The institution's.
            number: Of its training, from 0, whatever it was for.
        """
        if self._trace:
            row = self._trace[name]
            return row[number % len(row)]
        return self._seconds[name] * self._factor(name, number)

    def _factor(self, name: str, number: int) -> float:
        section = self._section
        if section.speeds == "stragglers":
            return section.straggler_factor if name in self.stragglers else 1.0
        if section.speeds == "fixed":
            return 1.0
        draw = float(np.random.default_rng(derive(section.speed_seed, "speed", name, number)).standard_normal())
        return abs(draw) if section.speeds == "half-normal" else math.exp(section.speed_sigma * draw)


def read_trace(path: Path, names: Sequence[str]) -> Mapping[str, tuple[float, ...]]:
    """Read a trace: a CSV file with the columns ``participant`` and ``seconds``, a line for each training.

    Raises:
        ConfigError: The file, a line of it, or an institution in it is missing or makes no sense.
    """
    hint = "A trace is a CSV file that begins with the line participant,seconds."
    found: dict[str, list[float]] = {name: [] for name in names}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            if lines.fieldnames != ["participant", "seconds"]:
                raise ConfigError(f"{path}: the first line isn't participant,seconds", hint)
            for number, line in enumerate(lines, 2):
                if number > _MOST_ROWS:
                    raise ConfigError(f"{path} has more than {_MOST_ROWS} lines", "Cut it.")
                if line["participant"] in found:
                    found[line["participant"]].append(_seconds(path, number, line["seconds"]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} can't be read: {error}", hint) from None
    missing = [name for name, row in found.items() if not row]
    if missing:
        raise ConfigError(
            f"{path} says nothing of {missing[0]}, which [simulation] names",
            "Give each institution a line at least; one line makes it always as fast.",
        )
    return {name: tuple(row) for name, row in found.items()}


def _seconds(path: Path, number: int, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= _LONGEST_S:
        raise ConfigError(f"{path}, line {number}: {text!r} is no number of seconds", f"From 0 to {_LONGEST_S:g}.")
    return value
