"""Parameters that belong to no layer: positions, class tokens, scales."""

from __future__ import annotations

import torch
from torch import nn


class PerRecord(nn.Module):
    """Stands where a model uses a parameter itself, rather than through a layer.

    Private training watches this place and so knows each record's gradient; a parameter that is used past it has one
    gradient for the whole batch. The module has no parameters of its own, so that a model's tensors keep their names.

    Example:
        >>> scale = nn.Parameter(torch.ones(2))
        >>> PerRecord()(scale, 3).shape
        torch.Size([1, 2])
    """

    def forward(self, parameter: torch.Tensor, records: int) -> torch.Tensor:
        """View a parameter [*shape] as one for each record.

        Args:
            parameter: The parameter.
            records: How many records the result is combined with, along its first dimension.

        Returns:
            [1, *shape], which broadcasts over the records; private training makes it [records, *shape].
        """
        return parameter.unsqueeze(0)
