"""A model, a loss and a data set of your own: three functions that a federation names as ``module:function``.

Here: a small recurrent network that foretells the next value of a machine's vibration from the 16 before it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

WINDOW = 16


class Forecaster(nn.Module):
    """Maps windows [n, WINDOW] to the next value [n]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.recurrent = nn.GRU(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        states, _ = self.recurrent(windows.unsqueeze(-1))
        value: torch.Tensor = self.head(states[:, -1]).squeeze(-1)
        return value


def model(hidden: int = 16) -> nn.Module:
    """[model] factory: its keyword arguments come from ``options``."""
    return Forecaster(hidden)


def loss(module: nn.Module, batch: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """[task] loss: a scalar to minimise, and figures for the report."""
    windows, following = batch
    error = module(windows) - following
    return error.square().mean(), {"mean_absolute_error": error.detach().abs().mean().item()}


def press() -> tuple[Dataset[tuple[torch.Tensor, ...]], Dataset[tuple[torch.Tensor, ...]]]:
    """--data at the first site: (training, held out)."""
    return _machine(speed=0.31, seed=1)


def mill() -> tuple[Dataset[tuple[torch.Tensor, ...]], Dataset[tuple[torch.Tensor, ...]]]:
    """--data at the second site, whose machine turns faster."""
    return _machine(speed=0.47, seed=2)


def _machine(speed: float, seed: int) -> tuple[TensorDataset, TensorDataset]:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(800, dtype=torch.float32)
    signal = torch.sin(speed * time) + 0.3 * torch.sin(3.1 * speed * time)
    signal += 0.05 * torch.randn(len(time), generator=generator)
    windows = signal.unfold(0, WINDOW + 1, 1)
    inputs, following = windows[:, :WINDOW].contiguous(), windows[:, WINDOW].contiguous()
    cut = 640
    return TensorDataset(inputs[:cut], following[:cut]), TensorDataset(inputs[cut:], following[cut:])
