"""Other projects' merging rules, where they are installed: ByzFL's objects and Flower's functions."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Merge = Callable[[NDArray[np.float32]], Any]


def byzfl(f: int) -> Mapping[str, Merge]:
    """ByzFL's rules by our canonical names, on numpy arrays handed over as tensors without a copy; empty without it.

    Its geometric median takes three steps and its filter one random power step; ours run to the end.
    """
    if "byzfl" not in sys.modules and importlib.util.find_spec("byzfl") is None:
        return {}
    library: Any = _import_byzfl()
    torch: Any = importlib.import_module("torch")
    nnm = library.NNM(f)
    rules: dict[str, Callable[[Any], Any]] = {
        "mean": library.Average(),
        "median": library.Median(),
        "trimmed-mean": library.TrMean(f),
        "geometric-median": library.GeometricMedian(),
        "multi-krum": library.MultiKrum(f),
        "centered-clipping": library.CenteredClipping(L=3, tau=10.0),
        "caf": library.CAF(f),
        "nnm": nnm,
        "nnm >> trimmed-mean": lambda x: library.TrMean(f)(nnm(x)),
    }
    return {name: _on_tensors(torch, rule) for name, rule in rules.items()}


def flower(f: int) -> Mapping[str, Merge]:
    """Flower's functions behind its strategies by our canonical names; empty without it."""
    try:
        library: Any = importlib.import_module("flwr.server.strategy.aggregate")
    except ImportError:
        return {}
    rules: dict[str, Callable[[Any], Any]] = {
        "mean": library.aggregate,
        "median": library.aggregate_median,
        "trimmed-mean": lambda x: library.aggregate_trimmed_avg(x, f / len(x)),
        "multi-krum": lambda x: library.aggregate_krum(x, f, len(x) - f),
        "bulyan": lambda x: library.aggregate_bulyan(x, f, library.aggregate_krum, to_keep=0),
    }
    return {name: _on_lists(rule) for name, rule in rules.items()}


def version(distribution: str) -> str:
    """Its name and version."""
    return f"{distribution} {importlib.metadata.version(distribution)}"


def _import_byzfl() -> Any:
    """Its rules without its front page, which imports a training benchmark with libraries that rules don't need."""
    if "byzfl" not in sys.modules:
        found = importlib.util.find_spec("byzfl")
        assert found is not None
        bare = types.ModuleType("byzfl")
        bare.__path__ = list(found.submodule_search_locations or ())
        sys.modules["byzfl"] = bare
    return importlib.import_module("byzfl.aggregators")


def _on_tensors(torch: Any, rule: Callable[[Any], Any]) -> Merge:
    return lambda rows: rule(torch.from_numpy(rows))


def _on_lists(rule: Callable[[Any], Any]) -> Merge:
    return lambda rows: rule([([row], 1) for row in rows])
