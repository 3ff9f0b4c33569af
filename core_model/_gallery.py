"""Retrieval for a person to look at: a caption, and the pictures that a model finds for it.

The module's name differs from the function's: ``core_model.gallery`` is the function, whatever was imported before.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import torch
from torch import nn

from core_model.errors import DataError
from core_model.tasks import LearningTask, RetrievalTask

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture found. ``png`` are the bytes of a PNG file; ``correct`` says whether it is the query's own picture."""

    png: bytes
    caption: str
    correct: bool


@dataclasses.dataclass(frozen=True)
class GalleryRow:
    """A query, its first five pictures from best to worst, its own picture, and the rank of that, from 1, of ``of``."""

    query: str
    pictures: tuple[Picture, ...]
    rank: int
    of: int
    wanted: bytes


def gallery(task: LearningTask, model: nn.Module, count: int, seed: int) -> list[GalleryRow]:
    """Search the task's first held-out set (for the emoji: the pairs that this institution lacks).

    Args:
        task: A retrieval task.
        model: The model to search with.
        count: Number of queries; the same seed gives the same queries for every model.
        seed: Draws the queries.

    Raises:
        DataError: If the task isn't retrieval or has nothing held out.
    """
    if not isinstance(task, RetrievalTask):
        raise DataError("A gallery shows retrieval; this task is another.")
    name, part = next(iter(task.source.evaluation.items()), ("", None))
    if part is None or not len(part) or part.images is None or part.captions is None:
        raise DataError("The data source holds no pairs back from training, so that there is nothing to search.")
    images, texts = task.embed(model, part, task.queries(name))
    similarity = texts @ images.T
    order = torch.argsort(similarity, dim=1, descending=True, stable=True)
    chosen = np.random.default_rng(seed).permutation(len(part))[:count]
    rows = []
    for query in chosen.tolist():
        found = order[query].tolist()
        pictures = tuple(Picture(_png(part.images[i]), part.captions[i][0], i == query) for i in found[:_SHOWN])
        wanted = _png(part.images[query])
        rows.append(GalleryRow(part.captions[query][0], pictures, found.index(query) + 1, len(part), wanted))
    return rows


def _png(image: torch.Tensor) -> bytes:
    """Encode uint8 [1 or 3, h, w]."""
    from PIL import Image

    pixels = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
