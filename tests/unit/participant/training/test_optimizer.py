"""The local optimizer and its step sizes."""

import pytest
import torch
from torch import nn

from core_model import TrainingConfig
from participant.training.optimizer import learning_rate, make_optimizer


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_decay_goes_to_matrices_only(name, kind):
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    model[1].weight.requires_grad = False
    optimizer = make_optimizer(model, TrainingConfig(optimizer=name, weight_decay=0.3, learning_rate=0.5))
    assert isinstance(optimizer, kind)
    decayed, free = optimizer.param_groups
    assert decayed["weight_decay"] == 0.3 and [p.shape for p in decayed["params"]] == [(2, 3)]
    assert free["weight_decay"] == 0.0 and len(free["params"]) == 2


def test_the_cosine_runs_over_the_whole_run():
    config = TrainingConfig(learning_rate=1.0, schedule="cosine", warmup_steps=0)
    rates = [learning_rate(config, round_number, 4, step, 5) for round_number in (1, 2, 3, 4) for step in range(5)]
    assert rates[0] == 1.0 and rates[10] == pytest.approx(0.5) and 0 < rates[-1] < 0.01
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(config, 9, 4, 0, 5) == 0.0


def test_each_round_warms_up():
    config = TrainingConfig(learning_rate=1.0, schedule="constant", warmup_steps=3)
    for round_number in (1, 7):
        assert [learning_rate(config, round_number, 9, step, 6) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    # A warm-up longer than the round ends with it.
    assert learning_rate(config, 1, 9, 1, 2) == pytest.approx(2 / 3)
