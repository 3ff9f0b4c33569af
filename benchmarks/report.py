"""What every benchmark ends with: a table for a person, JSON for a program, the machine and the versions in both."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

VERSIONS_OF: Final = ("numpy", "torch", "cryptography", "grpcio", "protobuf", "sqlalchemy", "numba", "flwr", "byzfl")
"""Distributions whose versions are stated where they are installed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.

    Attributes:
        case: What was measured, with its size.
        metric: What of it.
        value: The figure; NaN where it couldn't be measured.
        unit: Of the value.
        better: Which way is good.
        target: What the figure should reach; None for a figure that only informs.
        peer: Whose figure it is compared with, by name and version; None where no peer was run.
        ratio: How many times better than the peer's, so that above 1 is good.
    """

    case: str
    metric: str
    value: float
    unit: str
    better: Literal["higher", "lower"]
    target: float | None = None
    peer: str | None = None
    ratio: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the value reaches the target; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


class Report:
    """The figures of one benchmark, dated when it began.

    Args:
        name: Of the benchmark, as in ``python -m benchmarks.NAME``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[Row] = []
        self._began = datetime.datetime.now(datetime.UTC)

    def add(self, row: Row) -> None:
        """Add a figure."""
        self.rows.append(row)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values. NaN and infinity, which JSON doesn't have, become null."""
        return {
            "name": self.name,
            "date": self._began.isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(),
            "rows": [_plain({**dataclasses.asdict(row), "met": row.met}) for row in self.rows],
        }

    def table(self) -> str:
        """The figures as lines of text."""
        head = ("case", "metric", "value", "target", "met", "against")
        lines = [_cells(row) for row in self.rows]
        widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
        text = [_line(head, widths), "  ".join("-" * width for width in widths)]
        return "\n".join([*text, *(_line(line, widths) for line in lines)])

    def finish(self, path: Path | None) -> None:
        """Print the table, and write the JSON where a path is given."""
        described = machine()
        installed = "  ".join(f"{name} {version}" for name, version in versions().items())
        print(f"benchmarks.{self.name}  {self._began:%Y-%m-%d %H:%M} UTC")
        print(
            f"{described['processor']}, {described['cores']} cores, {described['memory_gb']} GB, {described['system']}"
        )
        print(f"{installed}\n\n{self.table()}", flush=True)
        if path is not None:
            path.write_text(json.dumps(self.as_json(), indent=2, allow_nan=False) + "\n")


def machine() -> dict[str, str | int | float]:
    """What the figures were taken on."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(pages / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Python's version, and those of the libraries that bear on speed and are installed."""
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cells(row: Row) -> tuple[str, ...]:
    sign = ">=" if row.better == "higher" else "<="
    target = "" if row.target is None else f"{sign} {row.target:.4g}"
    met = {True: "yes", False: "no", None: ""}[row.met]
    against = "" if row.peer is None else row.peer + ("" if row.ratio is None else f" x {row.ratio:.3g}")
    return row.case, row.metric, f"{row.value:.4g} {row.unit}", target, met, against


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
