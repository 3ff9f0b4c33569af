"""Our arithmetic of torch's attention against torch's own, option by option; and what isn't watched is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from participant.training.private import RecordGradients
from participant.training.private.attention import attention
from participant.training.private.layers import Book
from privacy.mechanisms.errors import PrivacyError

BATCH, LENGTH, KEYS, WIDTH, HEADS = 3, 4, 5, 8, 2


def book(module: nn.Module) -> Book:
    trained = {id(p): p for p in module.parameters()}
    found = Book(trained, lambda key: None, torch.zeros((), requires_grad=True))
    found.records = BATCH
    return found


def inputs(batch_first: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(BATCH, length, WIDTH, generator=generator) for length in (LENGTH, KEYS, KEYS)]
    return found if batch_first else [x.transpose(0, 1) for x in found]


def masks() -> dict[str, dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    allowed = torch.rand(LENGTH, KEYS, generator=generator) < 0.3
    allowed[:, 0] = False
    padding = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    padding[1, 3:] = True
    added = torch.randn(BATCH * HEADS, LENGTH, KEYS, generator=generator)
    return {
        "none": {},
        "bool": {"attn_mask": allowed},
        "added": {"attn_mask": added},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": allowed, "key_padding_mask": padding},
        "per-head": {"attn_mask": added, "key_padding_mask": padding.float() * -3.0},
    }


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize(("batch_first", "weights", "average"), list(itertools.product([True, False], repeat=3)))
def test_is_torch_s_attention(mask: str, batch_first: bool, weights: bool, average: bool) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
    for bias in (module.in_proj_bias, module.out_proj.bias):
        nn.init.normal_(bias)
    options = {**masks()[mask], "need_weights": weights, "average_attn_weights": average}
    expected, seen = module(*inputs(batch_first), **options)
    found, other = attention(book(module), module)(*inputs(batch_first), **options)
    assert torch.allclose(found, expected, atol=1e-6)
    assert (other is None) is (seen is None)
    if seen is not None:
        assert torch.allclose(other, seen, atol=1e-6)


@pytest.mark.parametrize("options", [{"bias": False}, {"kdim": 6, "vdim": 7}, {"kdim": 6, "vdim": 7, "bias": False}])
def test_forms_of_the_projections(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)
    query, key, value = inputs(True)
    key, value = key[..., : module.kdim], value[..., : module.vdim]
    expected, _ = module(query, key, value)
    assert torch.allclose(attention(book(module), module)(query, key, value)[0], expected, atol=1e-6)


def test_dropout_is_only_of_training() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.9, batch_first=True)
    ours = attention(book(module), module)
    still, weights = module.eval()(*inputs(True))
    assert torch.allclose(ours(*inputs(True))[0], still, atol=1e-6)
    module.train()
    _, dropped = ours(*inputs(True))
    assert weights is not None and dropped is not None
    assert (dropped == 0).any() and not (weights == 0).any()


def test_records_need_a_dimension() -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS)
    with pytest.raises(PrivacyError) as error:
        attention(book(module), module)(*[torch.ones(LENGTH, WIDTH)] * 3)
    assert error.value.code == "layer-shape"


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_further_keys_have_no_rule(options: dict[str, bool]) -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS, **options)
    with pytest.raises(PrivacyError) as error:
        attention(book(module), module)
    assert error.value.code == "layer-unknown" and "opacus" in error.value.hint


class Scaled(nn.MultiheadAttention):
    """Computes something else than its base class."""

    def forward(self, *args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        output, weights = super().forward(*args, **options)
        return 2 * output, weights


def test_a_subclass_is_not_replaced() -> None:
    """Its forward may be its own."""
    with pytest.raises(PrivacyError) as error:
        RecordGradients(Scaled(WIDTH, HEADS), engine="book-keeping")
    assert error.value.code == "layer-unknown"


def test_frozen_attention_is_torch_s_own() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"mix": nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), "head": nn.Linear(WIDTH, 2)})
    model["mix"].requires_grad_(False)
    x = inputs(True)[0]
    seen: list[bool] = []

    def losses() -> torch.Tensor:
        seen.append("forward" in vars(model["mix"]))
        return model["head"](model["mix"](x, x, x)[0]).square().sum((1, 2))

    found = RecordGradients(model).clipped_sum(losses, 1.0)
    assert seen == [False] and len(found.total) == 2
