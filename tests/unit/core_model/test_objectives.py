"""The contrastive loss and the ranks, against definitions written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from core_model.objectives import contrastive_loss, ranks


def unit(seed, n=6, d=4):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_loss_is_symmetric_infonce():
    first, second, scale = unit(0), unit(1), torch.tensor(7.0)
    total = 0.0
    for i in range(6):
        row = [math.exp(7 * float(first[i] @ second[j])) for j in range(6)]
        column = [math.exp(7 * float(first[j] @ second[i])) for j in range(6)]
        total -= math.log(row[i] / sum(row)) + math.log(column[i] / sum(column))
    assert contrastive_loss(first, second, scale).item() == pytest.approx(total / 12, rel=1e-5)
    torch.testing.assert_close(contrastive_loss(first, second, scale), contrastive_loss(second, first, scale))


def test_matched_pairs_score_better_than_shuffled_ones():
    first = unit(0)
    assert contrastive_loss(first, first, torch.tensor(10.0)) < contrastive_loss(
        first, first.roll(1, 0), torch.tensor(10.0)
    )


def test_ranks_count_what_is_nearer():
    gallery = torch.eye(3)
    assert ranks(gallery, gallery).tolist() == [1, 1, 1]
    assert ranks(torch.tensor([[0.1, 0.5, 0.9], [0.1, 0.5, 0.9], [0.1, 0.5, 0.9]]), gallery).tolist() == [3, 2, 1]


def test_a_collapsed_model_ranks_last():
    same = torch.ones(5, 2)
    assert ranks(same, same).tolist() == [5] * 5
