"""A small task for private training, with all the ways in which one can go wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from core_model import TrainingConfig
from core_model.tasks import Evaluation, LearningTask
from privacy.accounting.events import Placement, Unit
from privacy.mechanisms.noise import NoiseKey
from privacy.mechanisms.plan import PrivacyPlan, Share, solve

RECORDS = 60
CLIP = 0.5

SGD = TrainingConfig(
    optimizer="sgd", learning_rate=1.0, momentum=0.0, schedule="constant", warmup_steps=0, weight_decay=0
)


class Regression(LearningTask):
    """Linear regression on random inputs [n, 3].

    Args:
        records: n.
        scale: Of the inputs, and so of the gradients.
        fault: "mean" adds the batch's mean to each loss, "size" divides by the batch's size, "earlier" adds the losses
            of earlier rows, "scalar" returns one number.
        persons: For each record its person.
        views: Of each record.
        group_count: Couple the losses of each of so many groups.
    """

    def __init__(
        self,
        records: int = RECORDS,
        *,
        scale: float = 1.0,
        fault: str = "",
        persons: Any = None,
        views: int = 1,
        group_count: int | None = None,
    ) -> None:
        self.inputs = scale * torch.randn(records, 3, generator=torch.Generator().manual_seed(1))
        self.fault = fault
        self._persons = persons
        self._views = views
        self._group_count = group_count
        self.seen: list[int] = []
        self.seeds: list[int | None] = []

    @property
    def examples(self) -> int:
        return len(self.inputs)

    @property
    def persons(self) -> Any:
        return self._persons

    @property
    def views(self) -> int:
        return self._views

    @property
    def group_count(self) -> int | None:
        return self._group_count

    def groups(self, index: Any) -> Any:
        keys = index if self._persons is None else self._persons[index]
        return (keys * 11 + 3) % self._group_count

    def build_model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Linear(3, 1)

    def batches(self, seed: int, steps: int) -> Iterator[Any]:
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        raise NotImplementedError

    def sampled(self, index: Any, seed: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen.append(len(index) * self._views)
        self.seeds.append(seed)
        rows = self.inputs[torch.from_numpy(np.repeat(index, self._views))]
        if self._views > 1 and seed is not None:
            rows = rows + torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
        groups = self.groups(index) if self._group_count else index
        return rows, torch.from_numpy(np.repeat(groups, self._views))

    def record_losses(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        rows, groups = batch
        found = (model(rows).squeeze(1) - rows.sum(1)) ** 2 / self._views
        if self._group_count:
            found = ((groups[:, None] == groups) * found).sum(1) * found
        if self.fault == "mean":
            return found + found.mean()
        if self.fault == "size":
            return found / len(found)
        if self.fault == "earlier":
            return found * (1 + found.cumsum(0) - found)
        return found.mean() if self.fault == "scalar" else found

    def evaluate(self, model: nn.Module) -> Evaluation:
        raise NotImplementedError


def make_plan(**changes: Any) -> PrivacyPlan:
    """A plan for :class:`Regression`, without regard to its budget."""
    fields: dict[str, Any] = {
        "unit": Unit.RECORD,
        "placement": Placement.LOCAL,
        "target_epsilon": 1e3,
        "delta": 1e-4,
        "records": RECORDS,
        "sampling_rate": 0.25,
        "clip_norm": CLIP,
        "rounds": 3,
        "steps_per_round": 4,
        "dimension": 4,
        "multiplier": 1.0,
    }
    return solve(**{**fields, **changes})


def shared_plan(**changes: Any) -> PrivacyPlan:
    """A plan whose noise four honest sites share."""
    share = Share(std=0.6, honest=4, grid=1e-4)
    return make_plan(**{"placement": Placement.SHARED, "steps_per_round": 1, "share": share, **changes})


def counted_keys(start: int = 0) -> Callable[[], NoiseKey]:
    """Keys that are the same in each test run."""
    counter = itertools.count(start)
    return lambda: NoiseKey(next(counter).to_bytes(32, "big"))
