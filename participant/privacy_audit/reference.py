"""A small network on made-up data: an audit of the mechanism needs no site's data, and takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from core_model.objectives import group_losses
from core_model.tasks.base import Evaluation, LearningTask, index_batches, seeded_build

Loss = Literal["classification", "regression", "contrastive"]

_INPUTS, _HIDDEN, _OUTPUTS, _GROUPS = 6, 5, 3, 40


class ReferenceTask(LearningTask):
    """Two linear layers, of which the first is used twice, and one of three losses.

    Args:
        records: How many.
        loss: "classification" (cross-entropy), "regression" (squared error), or "contrastive", which compares the two
            halves of a record with those of its group.
        views: Of each record, with fresh noise each.
        persons: For each record whose it is; None where each is its own person.
    """

    def __init__(
        self,
        records: int,
        loss: Loss = "classification",
        *,
        views: int = 1,
        persons: npt.NDArray[np.int64] | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(records)
        self._inputs = torch.randn(records, 2, _INPUTS, generator=generator)
        self._labels = torch.randint(_OUTPUTS, (records,), generator=generator)
        self._loss = loss
        self._views = views
        self._persons = persons

    @property
    def examples(self) -> int:
        """The records."""
        return len(self._inputs)

    @property
    def views(self) -> int:
        """As given."""
        return self._views

    @property
    def persons(self) -> npt.NDArray[np.int64] | None:
        """As given."""
        return self._persons

    @property
    def group_count(self) -> int | None:
        """For the contrastive loss."""
        return _GROUPS if self._loss == "contrastive" else None

    def groups(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """By the record's number."""
        return index % _GROUPS

    def build_model(self, seed: int) -> nn.Module:
        """A new network."""
        return seeded_build(_Network, seed)

    def batches(self, seed: int, steps: int) -> Iterator[Any]:
        """Shuffled passes."""
        for step, index in enumerate(index_batches(self.examples, 32, seed, steps)):
            yield self.sampled(index, seed + step)

    def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        """The mean over the batch."""
        return self.record_losses(model, batch).mean(), {}

    def sampled(
        self, index: npt.NDArray[np.int64], seed: int | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs, labels and groups."""
        rows = torch.from_numpy(np.repeat(index, self._views))
        inputs = self._inputs[rows]
        if seed is not None and self._views > 1:
            inputs = inputs + 0.1 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(seed))
        return inputs, self._labels[rows], torch.from_numpy(self.groups(rows.numpy()))

    def record_losses(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """One for each row."""
        inputs, labels, groups = batch
        assert isinstance(model, _Network)
        if self._loss == "contrastive":
            one, other = (F.normalize(model(inputs[:, half]), dim=1) for half in (0, 1))
            return group_losses(one, other, groups[:, None] != groups, torch.tensor([5.0])) / self._views
        found: torch.Tensor = model(inputs[:, 0]) + model(inputs[:, 1])
        if self._loss == "regression":
            return F.mse_loss(found, F.one_hot(labels, _OUTPUTS).float(), reduction="none").sum(1) / self._views
        return F.cross_entropy(found, labels, reduction="none") / self._views

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Nothing is held out."""
        return Evaluation({}, 0)


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(_INPUTS, _HIDDEN)
        self.second = nn.Linear(_HIDDEN, _OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(torch.tanh(self.first(x)))
        return found
