"""One transformer block, pre-norm (Xiong et al. 2020), used for the tokens of every modality."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Self-attention, then a two-layer perceptron of four times the width, each with its residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map tokens [n, t, width] to the same shape; ``mask`` bool [n, t] is True where a token may be read."""
        batch, length, width = tokens.shape
        qkv = self.qkv(self.norm_attention(tokens)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        allowed = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        changed: torch.Tensor = tokens + self.down(F.gelu(self.up(self.norm_mlp(tokens))))
        return changed
