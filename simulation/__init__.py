"""Whole federations on one machine: in-memory transport, virtual clock, worker processes, report.

Names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulation.clock import VirtualClock
    from simulation.federation import Event, Federation
    from simulation.run import Result, simulate

_HOME = {
    "Event": "federation",
    "Federation": "federation",
    "Result": "run",
    "VirtualClock": "clock",
    "simulate": "run",
}

__all__ = ["Event", "Federation", "Result", "VirtualClock", "simulate"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
