"""The shared model and all that is learnt with it: data, encoder, objectives, tasks, and the model as a flat vector.

Importing the package, its configuration or its command line loads no deep-learning framework: the names below are
imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core_model._gallery import GalleryRow, gallery
    from core_model.checkpoint import read_manifest, read_vector, write_checkpoint
    from core_model.config import LearningConfig, ModelConfig, TaskConfig, TrainingConfig
    from core_model.errors import (
        CoreModelError,
        CoupledLossError,
        DataError,
        LearningConfigError,
        ManifestError,
        TrainingError,
        UserCodeError,
    )
    from core_model.initial import initial_checkpoint
    from core_model.manifest import Manifest, difference, flatten, load
    from core_model.seeds import derive
    from core_model.settings import parse_learning, read_learning
    from core_model.tasks import RNG_LOCK, Evaluation, LearningTask, make_task

_HOME = {
    "CoreModelError": "errors",
    "CoupledLossError": "errors",
    "DataError": "errors",
    "Evaluation": "tasks",
    "GalleryRow": "_gallery",
    "LearningConfig": "config",
    "LearningConfigError": "errors",
    "LearningTask": "tasks",
    "Manifest": "manifest",
    "ManifestError": "errors",
    "ModelConfig": "config",
    "RNG_LOCK": "tasks",
    "TaskConfig": "config",
    "TrainingConfig": "config",
    "TrainingError": "errors",
    "UserCodeError": "errors",
    "derive": "seeds",
    "difference": "manifest",
    "flatten": "manifest",
    "gallery": "_gallery",
    "initial_checkpoint": "initial",
    "load": "manifest",
    "make_task": "tasks",
    "parse_learning": "settings",
    "read_learning": "settings",
    "read_manifest": "checkpoint",
    "read_vector": "checkpoint",
    "write_checkpoint": "checkpoint",
}

__all__ = [
    "RNG_LOCK",
    "CoreModelError",
    "CoupledLossError",
    "DataError",
    "Evaluation",
    "GalleryRow",
    "LearningConfig",
    "LearningConfigError",
    "LearningTask",
    "Manifest",
    "ManifestError",
    "ModelConfig",
    "TaskConfig",
    "TrainingConfig",
    "TrainingError",
    "UserCodeError",
    "derive",
    "difference",
    "flatten",
    "gallery",
    "initial_checkpoint",
    "load",
    "make_task",
    "parse_learning",
    "read_learning",
    "read_manifest",
    "read_vector",
    "write_checkpoint",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
