"""Records made to be found: a task and a model with canaries of known gradient added to them.

The model gets tables that nothing but canaries uses. Row j is moved by canary j, if it is in the data, and by its
*anchors*, which always are, in the opposite direction; all of them far beyond any clipping norm. So whoever sees a
noisy sum knows where to look for canary j, and

* clipped as they should be, anchors take C off each and the canary adds C: its record moves the release by the most
  that clipping allows;
* clipped together (a sum that is clipped, a group), the canary turns -C into C, twice as much;
* divided by the true size of a batch, what the anchors take off changes with the canary, too.

Everything else, model, losses, sampler, clipping and noise, is what private training uses. Only a loss on public data,
where the task has one, is left out: its gradient is no release, and would hide which numbers are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from core_model.tasks.base import Evaluation, LearningTask

LENGTH: Final = 1_000.0
"""Canaries' gradients in clipping norms."""

_WHISPER: Final = 1e-6

PREFIX: Final = "canaries."
"""Of the names of the tables' parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Canaries:
    """Which canaries there are.

    Attributes:
        included: [m] Whether canary j is in the data.
        anchors: How many records pull each row the other way.
        tables: Over how many tables a canary's gradient is spread evenly: layers that are clipped by themselves are
            caught at keeping to their shares then.
        records: Records that a canary consists of, all of one person, where persons are protected; 1 otherwise.
    """

    included: npt.NDArray[np.bool_]
    anchors: int = 1
    tables: int = 1
    records: int = 1

    @property
    def count(self) -> int:
        """The number of canaries m, included or not."""
        return len(self.included)


class CanaryModel(nn.Module):
    """A model beside the canaries' tables; :class:`CanaryTask` knows which records use which."""

    def __init__(self, base: nn.Module, canaries: Canaries) -> None:
        super().__init__()
        self.base = base
        # A row more than there are canaries, for the other records.
        self.canaries = nn.ModuleList(nn.Embedding(canaries.count + 1, 1) for _ in range(canaries.tables))
        for table in self.canaries:
            nn.init.zeros_(table.weight)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class CanaryBatch:
    """A batch of the base task with, for each of its rows [B], the canary's row and how strongly it is pulled."""

    base: Any
    rows: torch.Tensor
    pull: torch.Tensor
    own: torch.Tensor


class CanaryTask(LearningTask):
    """A task with canaries behind its own records.

    Args:
        base: The task.
        canaries: Which there are.
        clip_norm: C, in which the canaries' length is measured.
        quiet: Whether the base task's losses are made so small that its records stay within any clipping norm: an
            auditor knows how many do then. Where the base task compares records they are left out, since the records
            that stand in for canaries would be compared, too.
    """

    def __init__(self, base: LearningTask, canaries: Canaries, clip_norm: float, *, quiet: bool = False) -> None:
        self.base = base
        self.canaries = canaries
        self.quiet = quiet or base.group_count is not None
        self._weight = np.float32(0.0 if base.group_count is not None else _WHISPER if quiet else 1.0)
        self.length = LENGTH * clip_norm + 100.0
        rows = np.arange(canaries.count)
        anchored = np.repeat(rows, canaries.anchors)
        present = np.repeat(rows[canaries.included], canaries.records)
        # Row and pull of every record behind the base task's.
        self._rows = np.concatenate((anchored, present)).astype(np.int64)
        pull = np.concatenate(
            (np.full(len(anchored), -1.0), np.full(len(present), (canaries.anchors + 1.0) / canaries.records))
        )
        self._pull = (pull * self.length / np.sqrt(canaries.tables)).astype(np.float32)
        self._canary = np.concatenate((np.full(len(anchored), -1), present))
        self.seen: list[npt.NDArray[np.int64]] = []

    @property
    def examples(self) -> int:
        """The base task's, anchors, and the canaries that are in."""
        return self.base.examples + len(self._rows)

    def build_model(self, seed: int) -> nn.Module:
        """The base task's model with the tables."""
        return CanaryModel(self.base.build_model(seed), self.canaries)

    def batches(self, seed: int, steps: int) -> Iterator[Any]:
        """Those of the base task: training without privacy has no canaries."""
        return self.base.batches(seed, steps)

    def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        """That of the base task."""
        return self.base.loss(_of(model).base, batch)

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Score the base task's model."""
        return self.base.evaluate(_of(model).base)

    @property
    def persons(self) -> npt.NDArray[np.int64] | None:
        """The base task's, and new ones: each anchor by itself, each canary with its records."""
        known = self.base.persons
        if known is None:
            return None
        first = int(known.max()) + 1
        anchors = self.canaries.count * self.canaries.anchors
        inside = np.repeat(np.arange(int(self.canaries.included.sum())), self.canaries.records)
        return np.concatenate((known, first + np.arange(anchors), first + anchors + inside)).astype(np.int64)

    @property
    def views(self) -> int:
        """The base task's."""
        return self.base.views

    @property
    def group_count(self) -> int | None:
        """The base task's and one for each canary with its anchors."""
        count = self.base.group_count
        return None if count is None else count + self.canaries.count

    def groups(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The base task's; a canary is in one group with its anchors."""
        count = self.base.group_count
        assert count is not None
        found = np.empty(len(index), np.int64)
        ordinary = index < self.base.examples
        found[ordinary] = self.base.groups(index[ordinary])
        found[~ordinary] = count + self._rows[index[~ordinary] - self.base.examples]
        return found

    def sampled(self, index: npt.NDArray[np.int64], seed: int | None) -> CanaryBatch:
        """A batch of the base task, some of whose records stand in for canaries; their own losses don't count."""
        self.seen.append(index)
        behind = index - self.base.examples
        ordinary = behind < 0
        stand_in = np.where(ordinary, index, behind % self.base.examples)
        rows = np.full(len(index), self.canaries.count)
        pull = np.zeros(len(index), np.float32)
        rows[~ordinary] = self._rows[behind[~ordinary]]
        pull[~ordinary] = self._pull[behind[~ordinary]] / self.views
        rows, pull, ordinary = (np.repeat(part, self.views) for part in (rows, pull, ordinary))
        own = torch.from_numpy(ordinary.astype(np.float32) * self._weight)
        return CanaryBatch(self.base.sampled(stand_in, seed), torch.from_numpy(rows), torch.from_numpy(pull), own)

    def record_losses(self, model: nn.Module, batch: CanaryBatch) -> torch.Tensor:
        """The base task's losses, and for canaries the entry of their row, times its pull."""
        whole = _of(model)
        found = self.base.record_losses(whole.base, batch.base) * batch.own
        for table in whole.canaries:
            found = found + table(batch.rows).squeeze(-1) * batch.pull
        return found

    def whereabouts(self, index: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Of a sample of records: which canaries are in it [m], and how many anchors of each row [m]."""
        behind = index[index >= self.base.examples] - self.base.examples
        canary = self._canary[behind]
        here = np.zeros(self.canaries.count, bool)
        here[canary[canary >= 0]] = True
        anchors = np.bincount(self._rows[behind[canary < 0]], minlength=self.canaries.count)
        return here, anchors


def _of(model: nn.Module) -> CanaryModel:
    assert isinstance(model, CanaryModel)
    return model
