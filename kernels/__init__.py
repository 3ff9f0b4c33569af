"""Numeric kernels, each a folder with its reference, its fast versions, and one public function that dispatches.

Importing this package loads nothing; a kernel's folder is imported when its name is first used, and a framework only
when an array of that framework is passed.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernels import device, gram, rows, selection, weighted_sum

__all__ = ["device", "gram", "rows", "selection", "weighted_sum"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"kernels.{name}")
    raise AttributeError(f"module 'kernels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
