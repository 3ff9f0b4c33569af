"""Version 0 of a model."""

from __future__ import annotations

from pathlib import Path

from core_model.checkpoint import write_checkpoint
from core_model.config import LearningConfig
from core_model.encoder import new_model
from core_model.entry import resolve
from core_model.manifest import Manifest, flatten
from core_model.tasks import make_task
from core_model.tasks.base import seeded_build
from core_model.tasks.custom import user_model


def initial_checkpoint(
    config: LearningConfig,
    seed: int,
    path: Path,
    *,
    data: str | None = None,
    allow: frozenset[str] = frozenset(),
) -> Manifest:
    """Build a model from its configuration and a seed, and write its checkpoint file.

    Data have no influence: every shape is fixed by the configuration, so that all institutions build the same model.

    Args:
        config: What the plan asks for.
        seed: Draws the parameters.
        path: The file to write, atomically.
        data: A data source that the configuration is tried on before anything is written.
        allow: User code that may be imported here.

    Raises:
        DataError: If the data can't be opened or don't fit the task.
        UserCodeError: If the configuration names code that isn't in ``allow`` or doesn't do what it should.
        ManifestError: If the user's module has tensors that can't travel.
    """
    if data is not None:
        make_task(config, data, allow=allow)
    if config.model.factory is not None:
        model = user_model(resolve(config.model.factory, allow), config.model, seed)
    else:
        model = seeded_build(lambda: new_model(config.model, config.task.temperature), seed)
    manifest = Manifest.of(model)
    write_checkpoint(path, manifest, flatten(model))
    return manifest
