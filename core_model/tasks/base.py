"""What a task is to the code that trains: a model to build, batches, a loss and a score."""

from __future__ import annotations

import abc
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from core_model.errors import CoupledLossError

RNG_LOCK = threading.RLock()
"""Held while torch's global generator or thread number is set: both belong to the whole process."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of a model and the number of held-out examples they rest on."""

    metrics: dict[str, float]
    examples: int


def coupled(task: object) -> CoupledLossError:
    """The error of a task whose loss compares records with each other."""
    return CoupledLossError(
        f"{type(task).__name__}: the loss compares records with each other, so one record's influence isn't bounded.",
        'For retrieval set negatives = "bank" (or "group") in [task]; a loss of your own has to return one value for '
        "each record.",
    )


class LearningTask(abc.ABC):
    """A model, an objective and one institution's data, brought together.

    Everything random takes a seed and is the same in every process.
    """

    @property
    @abc.abstractmethod
    def examples(self) -> int:
        """Number of local training examples: the weight of this institution's updates."""

    @abc.abstractmethod
    def build_model(self, seed: int) -> nn.Module:
        """A new model with parameters drawn from ``seed``. Torch's global generator is left as it was."""

    @abc.abstractmethod
    def batches(self, seed: int, steps: int) -> Iterator[Any]:
        """Yield ``steps`` training batches; the order of examples and random changes follow from ``seed``."""

    @abc.abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        """The scalar to minimise, and further figures worth reporting."""

    def sampled(self, index: npt.NDArray[np.int64], seed: int) -> Any:
        """A training batch of these examples, for private training, which chooses them itself.

        Args:
            index: [B] At least one.
            seed: Of random changes to the examples.
        """
        raise coupled(self)

    def record_losses(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """One loss for each example of the batch, [B], for private training.

        Where examples are grouped (:meth:`groups`), what is said of an example's loss holds for a group's.

        Formal Guarantees:
            An example's loss doesn't depend on the other examples of the batch; ``participant`` tests that before it
            trains.

        Raises:
            CoupledLossError: The loss compares examples with each other.
        """
        raise coupled(self)

    def groups(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """For each of these examples the group whose loss it shares, [B], by its own number alone; None for none."""
        return None

    @abc.abstractmethod
    def evaluate(self, model: nn.Module) -> Evaluation:
        """Score the model on held-out examples. The model's training mode is left as it was."""


def seeded_build(build: Any, seed: int) -> nn.Module:
    """Call ``build()`` with torch's global generator seeded, and restore the generator afterwards."""
    with RNG_LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    assert isinstance(model, nn.Module)
    return model


def index_batches(examples: int, batch_size: int, seed: int, steps: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield ``steps`` arrays of at most ``batch_size`` indices: shuffled passes, no index twice in one batch."""
    generator = np.random.default_rng(seed)
    size = min(batch_size, examples)
    order = generator.permutation(examples)
    position = 0
    for _ in range(steps):
        if position + size > examples:
            order = generator.permutation(examples)
            position = 0
        yield order[position : position + size]
        position += size
