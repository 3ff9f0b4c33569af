"""The contrastive loss between two modalities, and the ranks by which retrieval is scored."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def contrastive_loss(first: torch.Tensor, second: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE (van den Oord 2018, Radford 2021) of unit vectors [n, e] whose equal rows belong together."""
    logits = scale * first @ second.T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def ranks(queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """For each query [n, e] the rank, from 1, of the gallery's row [n, e] with the same index.

    Ties count against us: a model that maps everything to one point ranks last, not first.
    """
    similarity = queries @ gallery.T
    own = similarity.diagonal().unsqueeze(1)
    return (similarity >= own).sum(1)
