"""The contrastive loss between two modalities, and the ranks by which retrieval is scored."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def contrastive_loss(first: torch.Tensor, second: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE (van den Oord 2018, Radford 2021) of unit vectors [n, e] whose equal rows belong together."""
    logits = scale * first @ second.T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def bank_losses(
    images: torch.Tensor,
    texts: torch.Tensor,
    bank: torch.Tensor,
    own: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Match each picture and its own caption against a bank of public captions: one loss for each pair.

    Formal Guarantees:
        A pair's loss depends on that pair and on the bank alone. The bank's vectors carry no gradient, so they are the
        same constants for every pair of a step.

    Args:
        images: Unit vectors [n, e] of pictures.
        texts: Unit vectors [n, e] of their captions.
        bank: Unit vectors [m, e] of public captions, without gradients.
        own: bool [n, m], where a caption of the bank is one of the pair's own: no negative for it.
        scale: Inverse temperature, [1] or [n].

    Returns:
        [n] The mean of two cross-entropies: the picture finds its caption, and the caption its picture, each among the
        bank's captions.
    """
    matched = (images * texts).sum(1, keepdim=True)
    scale = scale.reshape(-1, 1)
    target = torch.zeros(len(images), dtype=torch.int64)
    total = torch.zeros(len(images))
    for vectors in (images, texts):
        # Left out after scaling: the scale's own gradient would be 0 times infinity.
        others = (scale * (vectors @ bank.T)).masked_fill(own, -torch.inf)
        total = total + F.cross_entropy(torch.cat((scale * matched, others), 1), target, reduction="none")
    return total / 2


def spread(vectors: torch.Tensor) -> torch.Tensor:
    """How close together unit vectors [n, e] lie: log of the mean of exp(-2 d^2) over pairs (Wang and Isola 2020).

    Where negatives carry no gradient, nothing else keeps captions apart: each is drawn to its picture, and all of them
    end in one point. Of public captions, this term does it, and costs no privacy.
    """
    return torch.pdist(vectors).square().mul(-2.0).exp().mean().log()


def group_losses(images: torch.Tensor, texts: torch.Tensor, apart: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The contrastive loss among the pairs of each group: one loss for each pair, coupled within its group only.

    Formal Guarantees:
        Where ``apart`` holds for all pairs of two groups, neither group's losses depend on the other. So adding or
        removing a pair changes the gradient of one group, from g to g': if each is clipped to C, the sum of all groups
        changes by at most 2 C.

    Args:
        images: Unit vectors [n, e].
        texts: Unit vectors [n, e].
        apart: bool [n, n], symmetric and False on the diagonal: pairs that aren't told apart.
        scale: Inverse temperature, [1] or [n].
    """
    scale = scale.reshape(-1, 1)
    target = torch.arange(len(images))
    total = torch.zeros(len(images))
    for one, other in ((images, texts), (texts, images)):
        logits = (scale * (one @ other.T)).masked_fill(apart, -torch.inf)
        total = total + F.cross_entropy(logits, target, reduction="none")
    return total / 2


def ranks(queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """For each query [n, e] the rank, from 1, of the gallery's row [n, e] with the same index.

    Ties count against us: a model that maps everything to one point ranks last, not first.
    """
    similarity = queries @ gallery.T
    own = similarity.diagonal().unsqueeze(1)
    return (similarity >= own).sum(1)
