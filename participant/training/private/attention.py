"""torch's attention, computed so that its projections can be watched: torch uses their weights past any layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from participant.training.private.layers import OPACUS_HINT, Book
from privacy.mechanisms.errors import PrivacyError


def attention(book: Book, module: nn.MultiheadAttention) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """A forward for torch's attention by its own arithmetic, with its projections watched."""
    if module.bias_k is not None or module.add_zero_attn:
        raise PrivacyError("layer-unknown", "MultiheadAttention with bias_k or add_zero_attn has no rule", OPACUS_HINT)

    def project(inputs: torch.Tensor, number: int) -> torch.Tensor:
        width = module.embed_dim
        rows = (number * width, (number + 1) * width)
        packed: torch.Tensor | None = getattr(module, "in_proj_weight", None)
        biases: torch.Tensor | None = getattr(module, "in_proj_bias", None)
        own = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)[number]
        weight = own if packed is None else packed[rows[0] : rows[1]]
        bias = None if biases is None else biases[rows[0] : rows[1]]
        output = F.linear(inputs, weight, bias)
        whole, part = (own, None) if packed is None else (packed, rows)
        return book.linear(whole, biases, inputs, output, part, rows)

    def forward(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if query.dim() != 3:
            raise PrivacyError("layer-shape", "MultiheadAttention needs inputs of three dimensions")
        if not module.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        batch, length, heads = len(query), query.shape[1], module.num_heads
        q, k, v = (
            project(x, number).reshape(batch, x.shape[1], heads, -1).transpose(1, 2)
            for number, x in enumerate((query, key, value))
        )
        mask = _attention_mask(attn_mask, key_padding_mask, q, k)
        dropout = module.dropout if module.training else 0.0
        weights: torch.Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, dropout) if dropout else weights
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        output = module.out_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return (output if module.batch_first else output.transpose(0, 1)), weights

    return forward


def _attention_mask(
    mask: torch.Tensor | None, padding: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor
) -> torch.Tensor | None:
    """Both masks of torch's attention as one that is added to the scores [B, heads, T, S]."""

    def added(part: torch.Tensor) -> torch.Tensor:
        if part.dtype != torch.bool:
            return part.to(q.dtype)
        return torch.zeros(part.shape, dtype=q.dtype, device=q.device).masked_fill_(part, float("-inf"))

    total: torch.Tensor | None = None
    if mask is not None:
        total = added(mask)
        if mask.dim() == 3:
            total = total.reshape(len(q), -1, q.shape[2], k.shape[2])
    if padding is not None:
        keys = added(padding)[:, None, None, :]
        total = keys if total is None else total + keys
    return total
