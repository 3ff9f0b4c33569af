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

    # ---- what private training asks for -----------------------------------------------------------------------------

    @property
    def persons(self) -> npt.NDArray[np.int64] | None:
        """For each example a number of the person whose record it is, [n]; None where each record is its own person."""
        return None

    @property
    def views(self) -> int:
        """Random views of each example in a private batch; its gradient is their mean."""
        return 1

    @property
    def group_count(self) -> int | None:
        """How many groups there are; None where each example has a loss of its own."""
        return None

    def groups(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """For each of these examples the group whose loss it shares, [B] in [0, ``group_count``).

        Formal Guarantees:
            An example's group follows from that example (or its person) alone, whoever else is there and in whatever
            order. So adding or removing one changes one group; the loss of all others stays what it was.
        """
        raise NotImplementedError("without group_count there are no groups")

    def sampled(self, index: npt.NDArray[np.int64], seed: int | None) -> Any:
        """A training batch of these examples, for private training, which chooses them itself.

        Args:
            index: [B] At least one.
            seed: Of random changes to the examples; fresh and secret in private training, so that what is drawn for
                one example tells nothing of the others. None leaves them as they are.

        Returns:
            A batch of ``B * views`` rows, each example's views together.
        """
        raise coupled(self)

    def record_losses(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """One loss for each row of the batch, [B * views]; the gradient of an example is the sum over its rows.

        Formal Guarantees:
            A row's loss depends on its own example alone; with groups, on those of its own group alone.
            ``participant`` tests that before it trains.

        Raises:
            CoupledLossError: The loss compares examples with each other.
        """
        raise coupled(self)

    def public_loss(self, model: nn.Module, seed: int) -> torch.Tensor | None:
        """A scalar that a private step lowers, too, without clipping and without noise; None for none.

        Formal Guarantees:
            It depends on the model and on public data alone, so its gradient is no release.

        Args:
            model: The model.
            seed: Draws from the public data.
        """
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
