"""The coordinator's daemon: rounds, aggregation, roster and services. It never loads a deep-learning framework.

Names are loaded when they are first used, so that a command that only asks something starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordinator.hub import Hub
    from coordinator.planning import make_plan
    from coordinator.serving import coordinator, open_run

_HOME = {
    "Hub": "hub",
    "coordinator": "serving",
    "make_plan": "planning",
    "open_run": "serving",
}

__all__ = ["Hub", "coordinator", "make_plan", "open_run"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
