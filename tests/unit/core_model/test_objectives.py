"""The contrastive loss and the ranks, against definitions written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from core_model.objectives import bank_losses, contrastive_loss, group_losses, ranks, spread


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


# --- objectives of private training -----------------------------------------------------------------------------------


def test_bank_losses_are_two_cross_entropies_against_public_captions():
    images, texts, bank, scale = unit(0, 3), unit(1, 3), unit(2, 5), torch.tensor([7.0])
    own = torch.zeros(3, 5, dtype=torch.bool)
    own[1, 4] = True
    found = bank_losses(images, texts, bank, own, scale)
    for i in range(3):
        total = 0.0
        match = math.exp(7 * float(images[i] @ texts[i]))
        for vector in (images[i], texts[i]):
            others = sum(math.exp(7 * float(vector @ bank[j])) for j in range(5) if not own[i, j])
            total -= math.log(match / (match + others))
        assert found[i].item() == pytest.approx(total / 2, rel=1e-5)


def test_a_pair_whose_captions_are_all_of_the_bank_learns_nothing_and_stays_finite():
    images, texts = unit(0, 2).requires_grad_(), unit(1, 2)
    scale = torch.tensor([5.0], requires_grad=True)
    losses = bank_losses(images, texts, unit(2, 3), torch.ones(2, 3, dtype=torch.bool), scale)
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0] and images.grad.abs().max() == 0 and scale.grad.item() == 0


def test_the_spread_is_lowest_where_vectors_lie_apart():
    apart = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert spread(apart).item() == pytest.approx(-8.0)
    assert spread(torch.ones(4, 2) / math.sqrt(2)).item() == 0.0
    near = F.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1]]), dim=1).requires_grad_()
    spread(near).backward()
    assert near.grad[0, 1] < 0 < near.grad[1, 1]


def test_group_losses_are_infonce_within_each_group():
    images, texts, scale = unit(0, 7), unit(1, 7), torch.tensor([6.0])
    groups = torch.tensor([0, 1, 0, 2, 1, 0, 1])
    found = group_losses(images, texts, groups[:, None] != groups, scale)
    for group in range(3):
        members = groups == group
        alone = contrastive_loss(images[members], texts[members], scale)
        assert found[members].mean().item() == pytest.approx(alone.item(), abs=1e-6)
    assert found[3] == 0


def test_in_one_group_of_all_it_is_the_contrastive_loss():
    images, texts, scale = unit(0), unit(1), torch.tensor(7.0)
    losses = group_losses(images, texts, torch.zeros(6, 6, dtype=torch.bool), scale)
    torch.testing.assert_close(losses.mean(), contrastive_loss(images, texts, scale))


# A model of two linear towers, by hand: gradients of each record's or group's loss, clipped to length 1.


def towers(seed, n):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(4, 3, generator=generator, requires_grad=True) for _ in range(2)]
    return weights, torch.randn(n, 3, generator=generator), torch.randn(n, 3, generator=generator)


def embedded(weights, pictures, captions):
    return (F.normalize(x @ w.T, dim=1) for w, x in zip(weights, (pictures, captions), strict=True))


def clipped(loss, weights):
    gradient = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, weights, retain_graph=True)])
    return gradient / max(1.0, gradient.norm().item())


SCALE = torch.tensor([50.0])


def clipped_groups(weights, pictures, captions, groups):
    images, texts = embedded(weights, pictures, captions)
    losses = group_losses(images, texts, groups[:, None] != groups, SCALE)
    return torch.stack([clipped(losses[groups == group].sum(), weights) for group in groups.unique()]).sum(0)


def test_a_record_moves_the_sum_over_groups_by_two_norms_at_most_and_by_more_than_one():
    """The factor 2 of group contrastive training holds, and is needed: a change of more than one norm does occur."""
    moved = []
    for seed in range(300):
        weights, pictures, captions = towers(seed, 9)
        groups = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
        removed = seed % 9
        kept = torch.arange(9) != removed
        whole = clipped_groups(weights, pictures, captions, groups)
        without = clipped_groups(weights, pictures[kept], captions[kept], groups[kept])
        moved.append((whole - without).norm().item())
    assert 1.2 < max(moved) <= 2.0


def test_a_record_moves_the_sum_over_records_by_one_norm_at_most_with_a_bank():
    moved = []
    for seed in range(100):
        weights, pictures, captions = towers(seed, 6)
        bank = F.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)), dim=1)

        def total(kept, weights=weights, pictures=pictures, captions=captions, bank=bank):
            images, texts = embedded(weights, pictures[kept], captions[kept])
            losses = bank_losses(images, texts, bank, torch.zeros(len(kept), 8, dtype=torch.bool), SCALE)
            return torch.stack([clipped(loss, weights) for loss in losses]).sum(0)

        moved.append((total(list(range(6))) - total(list(range(5)))).norm().item())
    assert 0.9 < max(moved) <= 1.0 + 1e-5


def test_a_record_moves_the_naive_contrastive_sum_by_many_norms():
    """Why a loss over the batch is refused: one more record turns the clipped gradients of all others."""
    n = 64
    weights, pictures, captions = towers(0, n + 1)
    pictures[:n], captions[:n] = pictures[0], captions[0]

    def total(count):
        images, texts = embedded(weights, pictures[:count], captions[:count])
        logits = SCALE * images @ texts.T
        losses = F.cross_entropy(logits, torch.arange(count), reduction="none")
        return torch.stack([clipped(loss, weights) for loss in losses]).sum(0)

    assert (total(n + 1) - total(n)).norm().item() > 10
