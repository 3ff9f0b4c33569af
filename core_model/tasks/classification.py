"""Predicting a label from a picture, a text, or both; or from features, with a linear model."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from core_model.config import LearningConfig
from core_model.data.examples import DataSource, Examples
from core_model.encoder import LinearClassifier, MultimodalEncoder, new_model
from core_model.errors import DataError
from core_model.modalities import augment, hash_captions, to_float
from core_model.tasks.base import Evaluation, LearningTask, index_batches, seeded_build

Batch = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]
_CHUNK = 512


class ClassificationTask(LearningTask):
    """Cross-entropy over the label; scores ``accuracy`` and ``loss`` on each held-out set together."""

    def __init__(self, config: LearningConfig, source: DataSource) -> None:
        self._config = config
        if source.train.labels is None:
            raise DataError(f'Data source "{source.name}" has no labels.', "Classification needs them.")
        for part in (source.train, *source.evaluation.values()):
            highest = -1 if part.labels is None or not len(part) else int(part.labels.max())
            if highest >= config.model.classes:
                raise DataError(
                    f'Data source "{source.name}" has label {highest}; the model has {config.model.classes} classes.',
                    f"Set classes = {max(source.classes, highest + 1)} in [model].",
                )
            if config.model.kind == "linear":
                _check_features(part, config.model.inputs, source.name)
        self._linear = config.model.kind == "linear"
        self._train = source.train
        self._held_out = next(iter(source.evaluation.values()), None)

    @property
    def examples(self) -> int:
        """Number of local training examples."""
        return len(self._train)

    def build_model(self, seed: int) -> nn.Module:
        """A new encoder with a classification head, or a linear model."""
        return seeded_build(functools.partial(new_model, self._config.model), seed)

    def batches(self, seed: int, steps: int) -> Iterator[Batch]:
        """Yield (images or features, hashed captions, labels)."""
        generator = torch.Generator().manual_seed(seed)
        for index in index_batches(len(self._train), self._config.training.batch_size, seed, steps):
            images, hashed, labels = self._tensors(self._train.select(torch.from_numpy(np.repeat(index, self.views))))
            if images is not None and not self._linear:
                images = augment(images, self._config.task.augment, generator)
            yield images, hashed, labels

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """Cross-entropy and the batch's accuracy."""
        assert isinstance(model, MultimodalEncoder | LinearClassifier)
        images, hashed, labels = batch
        logits = model.classify(images, hashed)
        accuracy = (logits.detach().argmax(1) == labels).float().mean().item()
        loss = F.cross_entropy(logits, labels, label_smoothing=self._config.task.label_smoothing)
        return loss, {"accuracy": accuracy}

    @property
    def persons(self) -> npt.NDArray[np.int64] | None:
        """As the data source knows them."""
        return None if self._train.persons is None else self._train.persons.numpy()

    @property
    def views(self) -> int:
        """As configured."""
        return self._config.task.views

    def sampled(self, index: npt.NDArray[np.int64], seed: int | None) -> Batch:
        """Images or features, hashed captions, labels of these examples."""
        images, hashed, labels = self._tensors(self._train.select(torch.from_numpy(np.repeat(index, self.views))))
        if images is not None and seed is not None and not self._linear:
            images = augment(images, self._config.task.augment, torch.Generator().manual_seed(seed))
        return images, hashed, labels

    def record_losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Cross-entropy of each view, over the number of views."""
        assert isinstance(model, MultimodalEncoder | LinearClassifier)
        images, hashed, labels = batch
        logits = model.classify(images, hashed)
        smoothing = self._config.task.label_smoothing
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none") / self.views

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Accuracy and mean cross-entropy on the held-out examples."""
        assert isinstance(model, MultimodalEncoder | LinearClassifier)
        if self._held_out is None or not len(self._held_out):
            return Evaluation({}, 0)
        count = len(self._held_out)
        correct = loss = 0.0
        training = model.training
        model.eval()
        with torch.inference_mode():
            for start in range(0, count, _CHUNK):
                chunk = self._held_out.select(range(start, min(count, start + _CHUNK)))
                images, hashed, labels = self._tensors(chunk)
                logits = model.classify(images, hashed)
                loss += F.cross_entropy(logits, labels, reduction="sum").item()
                correct += (logits.argmax(1) == labels).sum().item()
        model.train(training)
        return Evaluation({"accuracy": correct / count, "loss": loss / count}, count)

    def _tensors(self, examples: Examples) -> Batch:
        model = self._config.model
        if self._linear:
            assert examples.features is not None and examples.labels is not None
            return examples.features.to(torch.float32), None, examples.labels
        images = None if examples.images is None else to_float(examples.images, model.image_size)
        hashed = None
        if examples.captions is not None:
            first = [texts[0] for texts in examples.captions]
            hashed = hash_captions(first, model.text_buckets, model.text_tokens)
        assert examples.labels is not None
        return images, hashed, examples.labels


def _check_features(part: Examples, inputs: int, name: str) -> None:
    if part.features is None:
        raise DataError(
            f'Data source "{name}" has no features, which a linear model is trained on.',
            "Add features=scattering to its options.",
        )
    if part.features.shape[1] != inputs:
        raise DataError(
            f'Data source "{name}" has {part.features.shape[1]} features; the model has inputs = {inputs}.',
            f"Set inputs = {part.features.shape[1]} in [model].",
        )
