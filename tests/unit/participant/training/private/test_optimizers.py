"""Adam without the noise's share, against the formula written out; averages of weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from participant.training.private import DPAdamBC, WeightAverage
from privacy.mechanisms.errors import PrivacyError


def stepped(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradients: torch.Tensor, stds: list[float]) -> None:
    for gradient, std in zip(gradients, stds, strict=True):
        weight.grad = gradient.clone()
        for group in optimizer.param_groups:
            group["noise_std"] = std
        optimizer.step()


def test_is_the_formula_with_noise_that_changes() -> None:
    gradients, stds = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), [1.0, 0.5, 0.5, 0.2, 2.0, 0.1]
    weight = nn.Parameter(torch.ones(4))
    stepped(DPAdamBC([weight], 0.01, betas=(0.8, 0.9), floor=1e-3, weight_decay=0.1), weight, gradients, stds)
    expected = []
    for coordinate in range(4):
        w, m, v, phi = 1.0, 0.0, 0.0, 0.0
        for t, (g, std) in enumerate(zip(gradients[:, coordinate].tolist(), stds, strict=True), 1):
            m, v, phi = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g, 0.9 * phi + 0.1 * std**2
            second = max((v - phi) / (1 - 0.9**t), 1e-3)
            w = w * (1 - 0.01 * 0.1) - 0.01 * m / (1 - 0.8**t) / math.sqrt(second)
        expected.append(w)
    assert weight.tolist() == pytest.approx(expected, rel=1e-5)


def test_without_noise_it_is_adamw() -> None:
    gradients = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    mine, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    stepped(DPAdamBC([mine], 0.01, floor=1e-30, weight_decay=0.01), mine, gradients, [0.0] * 5)
    stepped(torch.optim.AdamW([other], 0.01, eps=0.0, weight_decay=0.01), other, gradients, [0.0] * 5)
    assert torch.allclose(mine, other, rtol=1e-5)


def test_takes_the_noise_out_of_the_second_moment() -> None:
    """Of two coordinates under the same noise, the one with the smaller gradient moves as far, as in noiseless Adam."""
    generator = torch.Generator().manual_seed(2)
    truth, std = torch.tensor([1.0, 0.3]), 2.0
    gradients = truth + std * torch.randn(20_000, 2, generator=generator)
    weight, adam = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = DPAdamBC([weight], 1e-3, betas=(0.9, 0.9999), floor=1e-2)
    stepped(optimizer, weight, gradients, [std] * len(gradients))
    stepped(torch.optim.Adam([adam], 1e-3, betas=(0.9, 0.9999)), adam, gradients, [std] * len(gradients))
    state = optimizer.state[weight]
    moment = (state["square"] - state["noise"]) / (1 - 0.9999**20_000)
    assert moment.tolist() == pytest.approx((truth**2).tolist(), abs=0.1)
    assert (adam[1] / adam[0]).item() < 0.4  # as the gradients: no more than momentum
    assert (weight[1] / weight[0]).item() > 0.6


def test_floor_bounds_the_step() -> None:
    weight = nn.Parameter(torch.zeros(1))
    stepped(DPAdamBC([weight], 1.0, floor=4.0), weight, torch.tensor([[3.0]]), [100.0])
    assert weight.item() == pytest.approx(-1.5)


def test_parameters_without_a_gradient_stay() -> None:
    moved, still = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = DPAdamBC([{"params": [moved]}, {"params": [still], "weight_decay": 0.5}], 0.1, floor=1.0)
    stepped(optimizer, moved, torch.ones(1, 1), [0.0])
    assert (moved.item(), still.item()) == (pytest.approx(0.9), 1.0)


def test_closure_gives_the_gradients() -> None:
    weight = nn.Parameter(torch.ones(1))

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert DPAdamBC([weight], 0.5, floor=1.0).step(closure) == 1.0
    assert weight.item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"floor": 0.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"weight_decay": -0.1}]
)
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(PrivacyError) as error:
        DPAdamBC([nn.Parameter(torch.ones(1))], **{"lr": 0.1, **wrong})
    assert error.value.code == "optimizer-invalid"


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_noise_that_makes_no_sense(std: float) -> None:
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(PrivacyError, match="standard deviation"):
        stepped(DPAdamBC([weight], 0.1), weight, torch.ones(1, 1), [std])


def test_weight_average() -> None:
    weight = nn.Parameter(torch.zeros(2))
    average = WeightAverage([weight], decay=0.5)
    expected = 0.0
    for step in range(1, 12):
        weight.data.fill_(float(step))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.applied():
        assert weight.tolist() == pytest.approx([expected] * 2)
    assert weight.tolist() == [11.0, 11.0]
    average.store()
    assert weight.tolist() == pytest.approx([expected] * 2)


def test_weights_come_back_after_an_error() -> None:
    weight = nn.Parameter(torch.zeros(1))
    average = WeightAverage([weight])
    weight.data.fill_(3.0)
    with pytest.raises(ZeroDivisionError), average.applied():
        assert weight.item() == 0
        _ = 1 // 0
    assert weight.item() == 3.0


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_that_makes_no_sense(decay: float) -> None:
    with pytest.raises(PrivacyError) as error:
        WeightAverage([], decay)
    assert error.value.code == "optimizer-invalid"
