"""From configuration and data source to a task, under the site's policy on user code."""

from __future__ import annotations

from torch.utils.data import Dataset, TensorDataset

from core_model.config import LearningConfig
from core_model.data.examples import Alteration, Examples
from core_model.data.source import is_user_code, open_source
from core_model.entry import resolve
from core_model.errors import DataError, UserCodeError
from core_model.modalities import to_float
from core_model.tasks.base import LearningTask
from core_model.tasks.classification import ClassificationTask
from core_model.tasks.custom import CustomTask, cross_entropy
from core_model.tasks.retrieval import RetrievalTask


def make_task(
    config: LearningConfig, data: str, *, allow: frozenset[str] = frozenset(), alteration: Alteration | None = None
) -> LearningTask:
    """Open an institution's data and build its side of the task.

    Args:
        config: What the plan asks for.
        data: The site's data source, see :func:`core_model.data.open_source`, or ``module:function`` of a function that
            returns a torch ``Dataset`` or a pair (training, held-out).
        allow: User code that this site lets be imported. Nothing else is, whoever names it.
        alteration: Done to the data first; not to data that user code returns.

    Raises:
        UserCodeError: If ``config`` or ``data`` names code that isn't in ``allow`` or doesn't do what it should.
        DataError: If the data aren't there, can't be read, or don't fit the task.
    """
    factory = None if config.model.factory is None else resolve(config.model.factory, allow)
    loss = cross_entropy if config.task.loss is None else resolve(config.task.loss, allow)
    if is_user_code(data):
        if config.task.kind == "retrieval" or (config.task.kind == "classification" and factory is None):
            raise DataError(
                f'Task "{config.task.kind}" of the multimodal model reads pictures and texts from its own sources, '
                f'not from "{data}".',
                'Use a folder with a manifest, or task kind = "custom" with a loss of your own.',
            )
        if alteration is not None:
            raise DataError(
                f'What the function "{data}" returns can\'t be altered.', "Use a built-in source or a folder."
            )
        train, held_out = _user_data(data, allow)
        return CustomTask(config, train, held_out, loss, factory)
    source = open_source(data, image_size=config.model.image_size)
    if alteration is not None:
        source = alteration(source)
    if config.task.kind == "retrieval":
        return RetrievalTask(config, source)
    if config.task.kind == "classification" and factory is None:
        return ClassificationTask(config, source)
    parts = [_tensors(part, config, data) for part in (source.train, *list(source.evaluation.values())[:1])]
    return CustomTask(config, parts[0], parts[1] if len(parts) > 1 else None, loss, factory)


def _user_data(data: str, allow: frozenset[str]) -> tuple[Dataset[object], Dataset[object] | None]:
    found = resolve(data, allow)()
    pair = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(pair[0], Dataset) or not isinstance(pair[1], Dataset | None):
        raise UserCodeError(f'"{data}" must return a torch Dataset, or a pair (training, held-out) of them.')
    return pair


def _tensors(part: Examples, config: LearningConfig, data: str) -> Dataset[tuple[object, ...]]:
    """Pictures and labels of a built-in source for a model of the user's own: float [n, 3, s, s] and int64 [n]."""
    if part.images is None or part.labels is None:
        raise DataError(f'Data source "{data}" has no pictures with labels, which a custom model is given.')
    return TensorDataset(to_float(part.images, config.model.image_size).contiguous(), part.labels)
