"""A model, a loss and a data set of the user's own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sized
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset, default_collate

from core_model.config import LearningConfig, ModelConfig, TrainingConfig
from core_model.encoder import MultimodalEncoder
from core_model.errors import DataError, UserCodeError
from core_model.seeds import derive
from core_model.tasks.base import Evaluation, LearningTask, coupled, index_batches, seeded_build

Loss = Callable[[nn.Module, Any], Any]
_CHUNK = 256


def user_model(factory: Callable[..., Any], model: ModelConfig, seed: int) -> nn.Module:
    """Build the user's module with a seed.

    Raises:
        UserCodeError: If the factory doesn't take the options or returns something else than a module.
    """

    def build() -> nn.Module:
        try:
            module = factory(**model.options)
        except TypeError as error:
            raise UserCodeError(f'"{model.factory}" does not take options {model.options}: {error}.') from error
        if not isinstance(module, nn.Module):
            raise UserCodeError(f'"{model.factory}" returned {type(module).__name__}, not a torch.nn.Module.')
        return module

    return seeded_build(build, seed)


def cross_entropy(model: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of ``kind = "classification"``: batch (inputs, labels), ``model(inputs)`` gives logits [n, classes]."""
    inputs, labels = batch
    logits = model(inputs)
    accuracy = (logits.detach().argmax(-1) == labels).float().mean().item()
    return F.cross_entropy(logits, labels), {"accuracy": accuracy}


class CustomTask(LearningTask):
    """Batches from a map-style data set, collated by torch's default rules.

    Scores are ``loss`` and the means of what the loss function reports, over the held-out data set.
    """

    def __init__(
        self,
        config: LearningConfig,
        train: Dataset[Any],
        held_out: Dataset[Any] | None,
        loss: Loss,
        factory: Callable[..., Any] | None,
    ) -> None:
        self._model = config.model
        self._training: TrainingConfig = config.training
        self._train = train
        self._held_out = held_out
        self._loss = loss
        self._factory = factory
        if length(train) == 0:
            raise DataError("The data set has no training examples.", "Check what the data function returns.")

    @property
    def examples(self) -> int:
        """Length of the training data set."""
        return length(self._train)

    def build_model(self, seed: int) -> nn.Module:
        """A new module from the user's factory, or the multimodal encoder."""
        if self._factory is None:
            return seeded_build(functools.partial(MultimodalEncoder, self._model), seed)
        return user_model(self._factory, self._model, seed)

    def batches(self, seed: int, steps: int) -> Iterator[Any]:
        """Yield collated batches."""
        for index in index_batches(self.examples, self._training.batch_size, seed, steps):
            yield _collated(self._train, index)

    def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        """Call the user's loss and check what it returns.

        Raises:
            UserCodeError: If it isn't a scalar tensor, or a pair of one and a dictionary of numbers.
        """
        result = self._loss(model, batch)
        value, figures = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
        if isinstance(value, torch.Tensor) and value.dim() == 1 and len(value):
            value = value.mean()  # one loss for each record, as private training needs it
        if not isinstance(value, torch.Tensor) or value.dim() != 0:
            raise UserCodeError(
                "The loss must return a scalar tensor, or one value for each record, or a pair of that and metrics."
            )
        return value, {str(name): float(figure) for name, figure in figures.items()}

    @property
    def persons(self) -> npt.NDArray[np.int64] | None:
        """The data set's attribute ``persons``, if it has one.

        Raises:
            DataError: They aren't as many as the examples.
        """
        names = getattr(self._train, "persons", None)
        if names is None:
            return None
        if len(names) != self.examples:
            raise DataError(
                f"The data set has {self.examples} examples, and an attribute persons of {len(names)}.",
                "One entry for each example: the name or number of the person whose record it is.",
            )
        return np.array([derive("person", str(name)) for name in names], np.int64)

    def sampled(self, index: npt.NDArray[np.int64], seed: int | None) -> Any:
        """These examples, collated; what the data set draws at random is its own affair."""
        return _collated(self._train, index)

    def record_losses(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Call the user's loss, which has to return one value for each record here.

        Raises:
            CoupledLossError: It returns a mean or a sum.
        """
        if self._loss is cross_entropy:
            inputs, labels = batch
            return F.cross_entropy(model(inputs), labels, reduction="none")
        result = self._loss(model, batch)
        value = result[0] if isinstance(result, tuple) and len(result) == 2 else result
        if not isinstance(value, torch.Tensor) or value.dim() != 1:
            raise coupled(self)
        return value

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Mean loss and mean of the reported figures, weighted by batch size."""
        held_out = self._held_out
        count = 0 if held_out is None else length(held_out)
        if held_out is None or count == 0:
            return Evaluation({}, 0)
        totals: dict[str, float] = {}
        training = model.training
        model.eval()
        with torch.no_grad():
            for start in range(0, count, _CHUNK):
                stop = min(count, start + _CHUNK)
                value, figures = self.loss(model, _collated(held_out, np.arange(start, stop)))
                for name, figure in {**figures, "loss": value.item()}.items():
                    totals[name] = totals.get(name, 0.0) + figure * (stop - start)
        model.train(training)
        return Evaluation({name: t / count for name, t in totals.items() if math.isfinite(t)}, count)


def _collated(dataset: Dataset[Any], index: npt.NDArray[np.int64]) -> Any:
    """These examples as a batch, by torch's default rules."""
    if type(dataset) is TensorDataset:  # the same batch, without a visit to each example
        chosen = torch.from_numpy(index)
        return [tensor[chosen] for tensor in dataset.tensors]
    return default_collate([dataset[int(i)] for i in index])


def length(dataset: Dataset[Any]) -> int:
    """Number of examples.

    Raises:
        DataError: If the data set has no length (an iterable one).
    """
    if not isinstance(dataset, Sized):
        raise DataError("The data set has no length.", "Return a map-style torch Dataset with __len__ and __getitem__.")
    return len(dataset)
