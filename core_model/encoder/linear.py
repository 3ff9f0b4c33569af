"""Logistic regression on fixed features: the model that a little privacy budget goes furthest with."""

from __future__ import annotations

import torch
from torch import nn


class LinearClassifier(nn.Module):
    """One linear layer from features to logits. It starts at zero, where all classes are equally likely.

    Args:
        inputs: Numbers that describe a record.
        classes: Outputs.
    """

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def classify(self, features: torch.Tensor | None, hashed: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [n, classes] from features float [n, inputs]; ``hashed`` is there for the encoder's sake."""
        if features is None:
            raise ValueError("a linear model is given features")
        logits: torch.Tensor = self.head(features)
        return logits
