"""A model and a data set with nothing to learn: what is left of a round is the federation's own cost."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset


class Trivial(nn.Module):
    """A head of four parameters that learns, so that every update differs from zero, and a body without a purpose.

    The body gets no gradient: what a step costs would be counted as the federation's otherwise.

    Args:
        parameters: How many float32 numbers in all, at least 5.
    """

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.head = nn.Parameter(torch.linspace(-1.0, 1.0, 4))
        self.body = nn.Parameter(torch.linspace(-1.0, 1.0, parameters - 4))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Batch [n, 4] times the head: [n]."""
        return batch @ self.head


class Numbers(Dataset[torch.Tensor]):
    """Eight rows of four numbers."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return torch.full((4,), float(index + 1))


def model(parameters: int) -> Trivial:
    """Factory for ``[model] factory``."""
    return Trivial(parameters)


def loss(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Loss for ``[task] loss``."""
    value: torch.Tensor = module(batch).square().mean()
    return value


def data() -> Numbers:
    """Data source for ``participant join --data``."""
    return Numbers()
