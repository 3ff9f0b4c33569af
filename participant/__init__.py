"""The participant's daemon: its journal, local training, and its side of a round.

Names are loaded when they are first used: torch only when something is to be trained.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from participant.agent import Agent
    from participant.daemon import Daemon
    from participant.joining import join
    from participant.site import Site, SiteConfig
    from participant.work import Workbench

_HOME = {
    "Agent": "agent",
    "Daemon": "daemon",
    "Site": "site",
    "SiteConfig": "site",
    "Workbench": "work",
    "join": "joining",
}

__all__ = ["Agent", "Daemon", "Site", "SiteConfig", "Workbench", "join"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
