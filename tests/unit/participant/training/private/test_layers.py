"""Layers in all precisions, used again and again, and used in ways that would give wrong gradients and are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from private_models import CASES, RECORDS, FakeQuantLinear, losses, make
from torch import nn
from torch.utils.checkpoint import checkpoint

from core_model.modalities import PerRecord
from participant.training.private import ClippedSum, RecordGradients
from participant.training.private.layers import rule_for
from privacy.mechanisms.errors import PrivacyError

TOLERANCE = 1e-5

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

Run = Callable[[], torch.Tensor]


def unclipped(model: nn.Module, run: Run, **options: Any) -> ClippedSum:
    return RecordGradients(model, engine="book-keeping", **options).clipped_sum(run, 1e9)


def exact(model: nn.Module, run: Callable[[nn.Module, int], torch.Tensor], records: int) -> torch.Tensor:
    """Each record's gradient [B, d] by an ordinary backward pass in float64."""
    twin = copy.deepcopy(model).double()
    parameters = [p for p in twin.parameters() if p.requires_grad]
    return torch.stack(
        [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(run(twin, i).sum(), parameters, materialize_grads=True)]
            )
            for i in range(records)
        ]
    )


def agrees(found: ClippedSum, gradients: torch.Tensor) -> None:
    assert torch.allclose(found.norms.double(), gradients.norm(dim=1), rtol=TOLERANCE, atol=0)
    total = torch.cat([part.flatten() for part in found.total]).double()
    assert (total - gradients.sum(0)).norm() <= TOLERANCE * gradients.sum(0).norm()


def refused(code: str) -> Any:
    return pytest.raises(PrivacyError, check=lambda error: error.code == code and bool(error.message and error.hint))


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_models_in_double_precision(name: str) -> None:
    case = make(name)
    model = case.model.double()
    inputs = case.inputs.double() if case.inputs.is_floating_point() else case.inputs
    found = unclipped(model, lambda: losses(model, inputs))
    agrees(found, exact(model, lambda twin, i: losses(twin, inputs[i : i + 1]), RECORDS))
    assert {part.dtype for part in found.total} == {torch.float32}


def kept(model: nn.Module, run: Run) -> dict[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """What each layer is given and the gradients of what it returns, by an ordinary pass with torch's own hooks."""
    seen: dict[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: seen.setdefault(module, []).append((args[0].detach(), gradient)))

    layers = [module for module in model.modules() if list(module.parameters(recurse=False))]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    run().sum().backward()
    model.zero_grad(set_to_none=True)
    for handle in handles:
        handle.remove()
    return seen


class HalfNet(nn.Module):
    """A linear layer, a normalization and a convolution, each used once or twice."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 6, 3, bias=False)
        self.linear = nn.Linear(6, 6, bias=False)
        self.norm = nn.LayerNorm(6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.convolution(x).flatten(2).transpose(1, 2)
        return self.linear(torch.tanh(self.linear(self.norm(tokens))))


def from_halves(model: HalfNet, seen: dict[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]) -> torch.Tensor:
    """Per-record gradients [B, d] in float64 of the very tensors in half precision."""
    ((x, g),) = seen[model.convolution]
    patches = F.unfold(x.double(), 3)
    convolution = torch.einsum("bpl,bdl->bpd", g.double().flatten(2), patches)
    linear = sum(torch.einsum("btp,btd->bpd", g.double(), a.double()) for a, g in seen[model.linear])
    ((x, g),) = seen[model.norm]
    norm = (g.double() * F.layer_norm(x.double(), [6])).sum(1)
    return torch.cat([convolution.flatten(1), linear.flatten(1), norm], 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(dtype: torch.dtype, autocast: bool) -> None:
    """Activations and gradients are rounded; what is made of them isn't."""
    torch.manual_seed(0)
    model, x = HalfNet(), torch.randn(5, 2, 6, 6)
    if not autocast:
        model, x = model.to(dtype), x.to(dtype)

    def run() -> torch.Tensor:
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            return model(x).float().square().sum((1, 2))

    gradients = from_halves(model, kept(model, run))
    found = unclipped(model, run)
    agrees(found, gradients)
    clip = float(gradients.norm(dim=1).median())
    clipped = RecordGradients(model).clipped_sum(run, clip)
    factors = (clip * (1 - 1e-5) / gradients.norm(dim=1)).clamp(max=1)
    total = torch.cat([part.flatten() for part in clipped.total]).double()
    assert (total - factors @ gradients).norm() <= TOLERANCE * total.norm()


# --- layers that are used again ---------------------------------------------------------------------------------------


class Twice(nn.Module):
    """A layer for the first tokens, and again for others, as many or fewer."""

    def __init__(self, layer: nn.Module, dimension: int = 1) -> None:
        super().__init__()
        self.layer, self.dimension = layer, dimension

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.split([x.shape[self.dimension] - 2, 2], self.dimension)
        return torch.cat([torch.tanh(self.layer(part)).flatten(1) for part in (first, second, first)], 1)


def reused() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(5)

    def floats(*shape: int) -> torch.Tensor:
        return torch.randn(4, *shape)

    ids = torch.randint(0, 9, (4, 5))
    return {
        "linear": (Twice(nn.Linear(20, 30)), floats(5, 20)),
        "linear, small": (Twice(nn.Linear(3, 2)), floats(5, 3)),
        "layer norm": (Twice(nn.LayerNorm(6)), floats(5, 6)),
        "rms norm": (Twice(nn.RMSNorm(6)), floats(5, 6)),
        "group norm": (Twice(nn.GroupNorm(2, 4), 2), floats(4, 5, 3)),
        "convolution": (Twice(nn.Conv2d(2, 3, 2), 2), floats(2, 6, 4)),
        "convolution, wide": (Twice(nn.Conv2d(12, 40, 2), 2), floats(12, 4, 3)),
        "convolution in groups": (Twice(nn.Conv2d(4, 6, 2, groups=2), 2), floats(4, 4, 3)),
        "embedding": (Twice(nn.Embedding(9, 6)), ids),
        "embedding, padded": (Twice(nn.Embedding(9, 6, padding_idx=0)), ids),
        "quantized": (Twice(FakeQuantLinear(6, 5, 3, True)), floats(5, 6)),
        "attention": (Twice(Attended()), floats(5, 8)),
    }


class Attended(nn.Module):
    """Self-attention, one argument for three."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("name", reused())
@pytest.mark.parametrize("owners", [None, torch.tensor([3, 0, 3, 1])])
def test_uses_of_one_layer_are_added_before_anything_is_clipped(name: str, owners: torch.Tensor | None) -> None:
    model, inputs = reused()[name]
    gradients = exact(
        model,
        lambda twin, i: losses(twin, inputs[i : i + 1].double() if inputs.is_floating_point() else inputs[i : i + 1]),
        4,
    )
    if owners is not None:
        gradients = torch.stack([gradients[owners == owner].sum(0) for owner in owners.unique()])
    engine = RecordGradients(model, engine="book-keeping")
    agrees(engine.clipped_sum(lambda: losses(model, inputs), 1e9, owners=owners), gradients)


class Recomputed(nn.Module):
    """One layer, three times, with activations that are computed again in the backward pass."""

    def __init__(self, reentrant: bool, times: int = 3) -> None:
        super().__init__()
        self.first, self.shared = nn.Linear(5, 20), nn.Linear(20, 20)
        self.reentrant, self.times = reentrant, times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for _ in range(self.times):
            x = checkpoint(lambda y: torch.tanh(self.shared(y)), x, use_reentrant=self.reentrant)
        return x


def test_activations_that_are_computed_again() -> None:
    torch.manual_seed(0)
    model, x = Recomputed(reentrant=False), torch.randn(4, 3, 5)
    plain = copy.deepcopy(model)
    agrees(
        unclipped(model, lambda: losses(model, x)),
        exact(plain, lambda twin, i: losses(twin, x[i : i + 1].double()), 4),
    )


def test_layers_that_are_used_after_their_norms_were_taken() -> None:
    """The reentrant form runs layers, and their backward passes, inside the backward pass."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5)
    with refused("layer-late"):
        model = Recomputed(reentrant=True)
        unclipped(model, lambda: losses(model, x))
    once = Recomputed(reentrant=True, times=1)
    plain = Recomputed(reentrant=False, times=1)
    plain.load_state_dict(once.state_dict())
    agrees(unclipped(once, lambda: losses(once, x)), exact(plain, lambda t, i: losses(t, x[i : i + 1].double()), 4))


def test_uses_without_gradients_do_not_count() -> None:
    torch.manual_seed(0)
    layer, x, other = nn.Linear(4, 3), torch.randn(3, 4), torch.randn(17, 4)

    def run() -> torch.Tensor:
        with torch.no_grad():
            constant = layer(other).mean()
        layer(other)  # with a gradient that nothing asks for
        return (layer(x) * constant).sum(1)

    with torch.no_grad():
        constant = float(layer(other).mean())
    agrees(unclipped(layer, run), exact(layer, lambda twin, i: (twin(x[i : i + 1].double()) * constant).sum(1), 3))


def test_outputs_that_are_views_of_something_else() -> None:
    """Such as of a module that returns a part of what it was given: they can't become part of the graph in place."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"direct": PerRecord(), "linear": nn.Linear(3, 2)})
    model.scale = nn.Parameter(torch.ones(2))  # type: ignore[assignment]
    x = torch.randn(3, 4, 3)

    def run(net: Any, batch: torch.Tensor) -> torch.Tensor:
        return (net["linear"](batch).sum(1) * net["direct"](net.scale, len(batch))).square().sum(1)

    agrees(unclipped(model, lambda: run(model, x)), exact(model, lambda t, i: run(t, x[i : i + 1].double()), 3))


# --- inputs that change -----------------------------------------------------------------------------------------------


def changing() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(6)
    return {
        "linear": (nn.Linear(4, 3), torch.randn(2, 5, 4)),
        "layer norm": (nn.LayerNorm(4), torch.randn(2, 5, 4)),
        "rms norm": (nn.RMSNorm(4), torch.randn(2, 5, 4)),
        "group norm": (nn.GroupNorm(2, 4), torch.randn(2, 4, 3)),
        "convolution": (nn.Conv1d(4, 3, 2), torch.randn(2, 4, 5)),
        "embedding": (nn.Embedding(9, 3), torch.randint(0, 8, (2, 5))),
        "bag": (nn.EmbeddingBag(9, 3, mode="sum"), torch.randint(0, 8, (2, 5))),
        "quantized": (FakeQuantLinear(4, 3, 8, False), torch.randn(2, 5, 4)),
    }


@pytest.mark.parametrize("name", changing())
def test_inputs_that_change_in_place_are_refused(name: str) -> None:
    layer, x = changing()[name]

    def run() -> torch.Tensor:
        given = x.clone()
        output = layer(given)
        given += 1
        return output.flatten(1).square().sum(1)

    with refused("layer-inplace"):
        unclipped(layer, run)


# --- tokens that cancel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owners", [None, torch.tensor([1, 0, 1])])
def test_positions_of_a_convolution_that_cancel(owners: torch.Tensor | None) -> None:
    """Patches alike with gradients of opposite signs: the sum of a Gram product's terms would be all rounding."""
    torch.manual_seed(0)
    layer = nn.Conv2d(20, 30, 3, bias=False)
    x = torch.randn(3, 20, 3, 1).expand(3, 20, 3, 4).contiguous()
    signs = torch.tensor([1.0, -1.0 + 1e-3])

    def run(net: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (torch.linspace(1, 2, 30, dtype=batch.dtype).view(30, 1, 1) * net(batch) * signs * 100).sum((1, 2, 3))

    gradients = exact(layer, lambda twin, i: run(twin, x[i : i + 1].double()), 3)
    if owners is not None:
        gradients = torch.stack([gradients[owners == owner].sum(0) for owner in owners.unique()])
    found = RecordGradients(layer).clipped_sum(lambda: run(layer, x), 1e9, owners=owners)
    # Of float32 inputs that cancel to 1e-3.
    assert torch.allclose(found.norms.double(), gradients.norm(dim=1), rtol=1e-4, atol=0)


# --- quantized layers -------------------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    """A quantized layer whose weight another layer has, too."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.first, self.second = FakeQuantLinear(12, 10, 3, False), other
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.second(x)


@pytest.mark.parametrize("other", [nn.Linear(12, 10), FakeQuantLinear(12, 10, 2, False)])
def test_a_weight_that_is_quantized_in_two_ways(other: nn.Module) -> None:
    torch.manual_seed(1)
    model = TwoHeads(other)
    model.first.weight.data.mul_(3)  # far outside of three bits
    with refused("layer-shared"):
        unclipped(model, lambda: losses(model, torch.randn(2, 12)))


def test_a_quantized_layer_without_a_bias() -> None:
    torch.manual_seed(1)
    layer = FakeQuantLinear(6, 5, 3, True)
    layer.bias = None
    x = torch.randn(4, 3, 6)
    agrees(unclipped(layer, lambda: losses(layer, x)), exact(layer, lambda t, i: losses(t, x[i : i + 1].double()), 4))


def test_a_quantized_layer_of_which_a_part_is_trained() -> None:
    torch.manual_seed(1)
    x = torch.randn(4, 3, 6)
    for frozen in ("weight", "scale", "bias"):
        layer = FakeQuantLinear(6, 5, 3, False)
        getattr(layer, frozen).requires_grad_(False)
        found = unclipped(layer, lambda layer=layer: losses(layer, x))
        agrees(found, exact(layer, lambda t, i: losses(t, x[i : i + 1].double()), 4))


class QuantizedConvolution(nn.Conv2d):
    """Has what a quantized linear layer has, and is none."""

    def __init__(self) -> None:
        super().__init__(2, 3, 3)
        self.scale = nn.Parameter(torch.tensor(0.1))

    def quantize(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return weight * scale


class Transposed(FakeQuantLinear):
    """Quantizes as it should and then multiplies the other way round."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.quantize(self.weight, self.scale)


def test_layers_that_only_look_quantized() -> None:
    assert rule_for(QuantizedConvolution()) is None
    assert rule_for(FakeQuantLinear(2, 2, 8, False)) is not None
    layer = Transposed(4, 3, 8, False)
    with refused("layer-shape"):
        unclipped(layer, lambda: layer(torch.ones(2, 3)).sum(1))


def test_scales_of_other_shapes() -> None:
    layer = FakeQuantLinear(4, 3, 8, False)
    layer.scale = nn.Parameter(torch.ones(1, 4))
    with refused("layer-shape"):
        unclipped(layer, lambda: layer(torch.ones(2, 4)).sum(1))


# --- tables -----------------------------------------------------------------------------------------------------------


def test_tables_with_a_life_of_their_own_have_no_rule() -> None:
    assert rule_for(nn.Embedding(4, 2, max_norm=1.0)) is None
    assert rule_for(nn.Embedding(4, 2, scale_grad_by_freq=True)) is None
    assert rule_for(nn.Embedding(4, 2)) is not None


@pytest.mark.parametrize(
    ("bag", "arguments"),
    [
        (nn.EmbeddingBag(5, 2, mode="max"), (torch.ones(2, 3, dtype=torch.int64),)),
        (nn.EmbeddingBag(5, 2), (torch.ones(4, dtype=torch.int64), torch.tensor([0, 2]))),
    ],
)
def test_bags_of_other_kinds(bag: nn.EmbeddingBag, arguments: tuple[torch.Tensor, ...]) -> None:
    with refused("layer-shape"):
        unclipped(bag, lambda: bag(*arguments).sum(1))


def test_ids_that_are_the_same_for_all_records() -> None:
    """Expanded, they have a row for each record; as one row they are refused."""
    torch.manual_seed(0)
    table, head = nn.Embedding(5, 6), nn.Linear(6, 2)
    model, x = nn.ModuleList([table, head]), torch.randn(3, 5, 6)

    def run(net: Any, batch: torch.Tensor, rows: int) -> torch.Tensor:
        return net[1](batch + net[0](torch.arange(5).expand(rows, 5))).square().sum((1, 2))

    agrees(unclipped(model, lambda: run(model, x, 3)), exact(model, lambda t, i: run(t, x[i : i + 1].double(), 1), 3))
    with refused("layer-shape"):
        unclipped(model, lambda: run(model, x, 1))
