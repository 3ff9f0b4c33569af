"""The local optimizer: a fresh one each round, as the plan asks."""

from __future__ import annotations

import math

import torch
from torch import nn

from core_model import TrainingConfig


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Build the optimizer; weight decay goes to matrices and kernels only."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.98), eps=1e-8)


def learning_rate(config: TrainingConfig, round_number: int, rounds: int, step: int, steps: int) -> float:
    """Step size of step ``step`` (from 0) of round ``round_number`` (from 1).

    The schedule runs over the whole run, the warm-up over the beginning of each round.
    """
    rate = config.learning_rate * min(1.0, (step + 1) / (min(config.warmup_steps, steps) + 1))
    if config.schedule == "cosine":
        progress = min(1.0, (round_number - 1 + step / steps) / max(1, rounds))
        rate *= 0.5 * (1.0 + math.cos(math.pi * progress))
    return rate
