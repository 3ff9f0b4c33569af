"""The clipped sums against gradients that are taken record by record, for every layer type and way of use."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from private_models import CASES, RECORDS, losses, make
from torch import nn

from participant.training.private import RecordGradients, check_records
from privacy.mechanisms.clipping import ClippingRule
from privacy.mechanisms.errors import PrivacyError

TOLERANCE = 1e-5

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


def explicit(model: nn.Module, inputs: torch.Tensor) -> list[list[torch.Tensor]]:
    """Each record's gradients by an ordinary backward pass in float64, [B][parameters]."""
    exact = copy.deepcopy(model).double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    parameters = [p for p in exact.parameters() if p.requires_grad]
    return [
        list(torch.autograd.grad(losses(exact, inputs[i : i + 1]).sum(), parameters, materialize_grads=True))
        for i in range(len(inputs))
    ]


def norms_of(gradients: list[list[torch.Tensor]]) -> torch.Tensor:
    return torch.stack([torch.cat([part.flatten() for part in record]).norm() for record in gradients])


def weighted(gradients: list[list[torch.Tensor]], factors: torch.Tensor) -> list[torch.Tensor]:
    return [
        sum(factor * part for factor, part in zip(factors, parts, strict=True))
        for parts in zip(*gradients, strict=True)
    ]


def close(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    """Compare sums, relative to the whole of them."""
    size = torch.cat([part.flatten() for part in wanted]).norm()
    for mine, other in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32
        assert mine.shape == other.shape
        assert (mine - other).norm() <= TOLERANCE * size


@pytest.mark.parametrize("name", CASES)
def test_clipped_sum_is_that_of_explicit_gradients(name: str) -> None:
    case = make(name)
    gradients = explicit(case.model, case.inputs)
    norms = norms_of(gradients)
    clip = float(norms.median())
    engine = RecordGradients(case.model, engine="book-keeping")
    found = engine.clipped_sum(lambda: losses(case.model, case.inputs), clip)
    assert torch.allclose(found.norms.double(), norms, rtol=TOLERANCE, atol=0)
    close(found.total, weighted(gradients, (clip * (1 - 1e-5) / norms).clamp(max=1)))
    assert found.below in (RECORDS // 2, RECORDS // 2 + 1)  # the median itself may fall on either side
    assert found.loss == pytest.approx(float(losses(case.model, case.inputs).sum().detach()), rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_records_of_an_owner_are_clipped_as_one(name: str) -> None:
    case = make(name)
    owners = torch.tensor([5, 2, 5, 5, -1, 2, 9])
    gradients = explicit(case.model, case.inputs)
    together = [
        [sum(gradients[i][k] for i in range(RECORDS) if owners[i] == owner) for k in range(len(gradients[0]))]
        for owner in owners.unique()
    ]
    norms = norms_of(together)
    clip = float(norms.median())
    engine = RecordGradients(case.model)
    found = engine.clipped_sum(lambda: losses(case.model, case.inputs), clip, owners=owners)
    assert torch.allclose(found.norms.double(), norms, rtol=TOLERANCE, atol=0)
    close(found.total, weighted(together, (clip * (1 - 1e-5) / norms).clamp(max=1)))


@pytest.mark.parametrize("name", CASES)
def test_layers_are_clipped_by_themselves(name: str) -> None:
    case = make(name)
    gradients = explicit(case.model, case.inputs)
    names = [name.rpartition(".")[0] or name for name, _ in case.model.named_parameters()]
    layers = list(dict.fromkeys(names))
    engine = RecordGradients(case.model, rule=ClippingRule.layers(len(layers)))
    found = engine.clipped_sum(lambda: losses(case.model, case.inputs), 0.7)
    assert len(engine.layers) == len(layers)
    wanted: dict[int, torch.Tensor] = {}
    for layer in layers:
        keys = [k for k, owner in enumerate(names) if owner == layer]
        mine = [[record[k] for k in keys] for record in gradients]
        factors = (0.7 * (1 - 1e-5) / len(layers) ** 0.5 / norms_of(mine)).clamp(max=1)
        wanted.update(zip(keys, weighted(mine, factors), strict=True))
    close(found.total, [wanted[k] for k in range(len(names))])


def test_agrees_with_torch_func() -> None:
    """The second way to a record's gradient: vmap over grad."""
    case = make("linear-3d")
    weights = {name: parameter.detach() for name, parameter in case.model.named_parameters()}

    def loss(weights: dict[str, torch.Tensor], record: torch.Tensor) -> torch.Tensor:
        output = torch.func.functional_call(case.model, weights, (record.unsqueeze(0),)).flatten(1)
        factors = torch.linspace(-1.0, 1.5, output.shape[1])
        return ((torch.tanh(output) * factors).sum(1) + output.square().mean(1)).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, case.inputs)
    found = RecordGradients(case.model).clipped_sum(lambda: losses(case.model, case.inputs), 1e9)
    for mine, other in zip(found.total, each.values(), strict=True):
        assert torch.allclose(mine, other.sum(0), rtol=1e-4, atol=1e-5)
    squared = sum(part.flatten(1).square().sum(1) for part in each.values())
    assert torch.allclose(found.norms, squared.sqrt(), rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("name", ["linear-3d", "embedding-all", "layer-norm", "group-norm", "conv", "shared"])
def test_opacus_hooks_give_the_same(name: str) -> None:
    """As the engine for unknown layers, and as an oracle that isn't ours."""
    pytest.importorskip("opacus")
    case = make(name)
    found = RecordGradients(case.model).clipped_sum(lambda: losses(case.model, case.inputs), 0.5)
    other = RecordGradients(case.model, engine="opacus").clipped_sum(lambda: losses(case.model, case.inputs), 0.5)
    assert torch.allclose(found.norms, other.norms, rtol=TOLERANCE, atol=0)
    close(found.total, [part.double() for part in other.total])
    assert not any(hasattr(parameter, "grad_sample") for parameter in case.model.parameters())


def test_automatic_clipping() -> None:
    case = make("linear-3d")
    gradients = explicit(case.model, case.inputs)
    engine = RecordGradients(case.model, rule=ClippingRule(kind="automatic"))
    found = engine.clipped_sum(lambda: losses(case.model, case.inputs), 2.0)
    close(found.total, weighted(gradients, 2.0 * (1 - 1e-5) / (norms_of(gradients) + 0.01)))


@pytest.mark.parametrize("rule", [ClippingRule(), ClippingRule(kind="automatic"), ClippingRule.layers(2)])
def test_one_record_moves_the_sum_by_no_more_than_the_norm(rule: ClippingRule) -> None:
    """Whatever its gradient is; computed in float64 from what is released."""
    case = make("linear-3d")
    inputs = case.inputs.clone()
    inputs[0] *= 1e3
    engine = RecordGradients(case.model, rule=rule)
    with_it = engine.clipped_sum(lambda: losses(case.model, inputs), 0.25)
    without = engine.clipped_sum(lambda: losses(case.model, inputs[1:]), 0.25)
    moved = (engine.flat(with_it.total).double() - engine.flat(without.total).double()).norm()
    assert 0.15 < moved <= 0.25


def test_chunks_add_up() -> None:
    case = make("shared")
    engine = RecordGradients(case.model)
    whole = engine.clipped_sum(lambda: losses(case.model, case.inputs), 0.4)
    parts = [engine.clipped_sum(lambda part=part: losses(case.model, part), 0.4) for part in case.inputs.split(3)]
    close(whole.total, [sum(p.double() for p in ps) for ps in zip(*(part.total for part in parts), strict=True)])
    assert whole.below == sum(part.below for part in parts)
    assert torch.allclose(whole.norms, torch.cat([part.norms for part in parts]), rtol=TOLERANCE)


def test_empty_chunk_is_a_sum_of_nothing() -> None:
    case = make("linear")
    found = RecordGradients(case.model).clipped_sum(lambda: losses(case.model, case.inputs[:0]), 1.0)
    assert [part.shape for part in found.total] == [p.shape for p in case.model.parameters()]
    assert not any(part.any() for part in found.total)
    assert (found.below, found.loss, len(found.norms)) == (0, 0.0, 0)


def test_model_is_left_as_it_was() -> None:
    case = make("attention")
    frozen = case.model.attention.out_proj.weight.requires_grad_(False)
    before = [parameter.clone() for parameter in case.model.parameters()]
    engine = RecordGradients(case.model)
    engine.clipped_sum(lambda: losses(case.model, case.inputs), 1.0)
    with pytest.raises(ZeroDivisionError):
        engine.clipped_sum(lambda: losses(case.model, case.inputs) / (1 // 0), 1.0)
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in engine.parameters)
    assert all(p.grad is None for p in case.model.parameters())
    assert all(torch.equal(p, old) for p, old in zip(case.model.parameters(), before, strict=True))
    assert not any(module._forward_hooks for module in case.model.modules())
    assert "forward" not in vars(case.model.attention)


def test_frozen_parameters_are_left_out() -> None:
    case = make("linear-3d")
    case.model[0].weight.requires_grad_(False)
    gradients = explicit(case.model, case.inputs)
    engine = RecordGradients(case.model)
    found = engine.clipped_sum(lambda: losses(case.model, case.inputs), 1e9)
    assert engine.names == ["0.bias", "2.weight", "2.bias"]
    assert engine.dimension == len(engine.flat(found.total)) == 30 + 600 + 20
    close(found.total, weighted(gradients, torch.ones(RECORDS)))


def test_half_precision_is_clipped_as_exactly() -> None:
    """Under autocast the gradients are coarser, but norms and sums are of the same gradients."""
    case = make("linear-3d")

    def half() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return losses(case.model, case.inputs).float()

    engine = RecordGradients(case.model)
    found = engine.clipped_sum(half, 1e9)
    assert torch.allclose(found.norms.double(), norms_of(explicit(case.model, case.inputs)), rtol=0.05)
    for record in range(RECORDS):

        def one(record: int = record) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return losses(case.model, case.inputs[record : record + 1]).float()

        alone = engine.clipped_sum(one, 0.125)
        assert engine.flat(alone.total).double().norm() == pytest.approx(0.125 * (1 - 1e-5), rel=TOLERANCE)


def test_tokens_that_cancel_are_computed_again() -> None:
    """A Gram product of gradients whose tokens cancel would keep few digits."""
    linear = nn.Linear(40, 30, bias=False)
    x = torch.randn(4, 1, 40).repeat(1, 6, 1)
    signs = torch.tensor([1.0, -1, 1, -1, 1, -1 + 1e-4]).view(1, 6, 1)
    found = RecordGradients(linear).clipped_sum(lambda: (linear(x) * signs * 100).sum((1, 2)), 1e9)
    exact = linear.weight.detach().double().requires_grad_(True)
    for record in range(4):
        output = x[record].double() @ exact.T
        (gradient,) = torch.autograd.grad((output * signs.double() * 100).sum(), exact)
        # What is left of float32 inputs that cancel to 1e-4.
        assert found.norms[record].item() == pytest.approx(gradient.norm().item(), rel=2e-3)


@pytest.mark.parametrize("name", ["linear-3d", "conv-gram", "conv", "embedding", "shared"])
@pytest.mark.parametrize("rule", [ClippingRule(), None])
def test_record_that_is_not_finite_counts_as_nothing(name: str, rule: ClippingRule | None) -> None:
    case = make(name)
    weights = torch.ones(RECORDS)
    weights[2] = torch.nan
    rest = torch.arange(RECORDS) != 2
    engine = RecordGradients(case.model, rule=rule)
    if rule is None:
        engine = RecordGradients(case.model, rule=ClippingRule.layers(len(engine.layers)))
    found = engine.clipped_sum(lambda: losses(case.model, case.inputs) * weights, 0.5)
    others = engine.clipped_sum(lambda: losses(case.model, case.inputs[rest]), 0.5)
    close(found.total, [part.double() for part in others.total])
    assert found.norms[2] == torch.inf
    assert found.below == others.below


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(code: str) -> Any:
    return pytest.raises(PrivacyError, check=lambda error: error.code == code and bool(error.message))


class Direct(nn.Module):
    """A parameter that is used past PerRecord."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.linear = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x * self.weight)


def test_batch_norm_is_refused() -> None:
    with refused("layer-batch-norm"):
        RecordGradients(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    with refused("layer-batch-norm"):
        RecordGradients(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False)), engine="opacus")


def test_layers_without_a_rule() -> None:
    with refused("layer-unknown"):
        RecordGradients(Direct(), engine="book-keeping")
    with refused("layer-unknown"):
        RecordGradients(nn.Sequential(nn.Bilinear(2, 2, 2)), engine="book-keeping")
    pytest.importorskip("opacus")
    assert RecordGradients(nn.Sequential(nn.Conv3d(1, 2, 2))).engine == "opacus"


@pytest.mark.parametrize("shape", [(), (RECORDS, 1), (RECORDS, 2)])
def test_losses_that_are_not_one_a_record(shape: tuple[int, ...]) -> None:
    case = make("linear")
    with refused("loss-shape"):
        RecordGradients(case.model).clipped_sum(lambda: case.model(case.inputs).sum() * torch.ones(shape), 1.0)


def test_parameters_that_the_loss_does_not_use() -> None:
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    x = torch.ones(2, 3)
    with refused("parameter-unused"):
        RecordGradients(model).clipped_sum(lambda: model[0](x).sum(1), 1.0)
    with refused("parameter-unused"):  # used, but past the layer
        RecordGradients(model).clipped_sum(
            lambda: (model[0](x) + nn.functional.linear(x, model[1].weight, model[1].bias)).sum(1), 1.0
        )


def test_inputs_without_records() -> None:
    model = nn.Sequential(nn.Embedding(5, 3))
    with refused("layer-shape"):
        RecordGradients(model).clipped_sum(lambda: model(torch.arange(5)).sum() * torch.ones(3), 1.0)


def test_inputs_that_change_after_use() -> None:
    linear = nn.Linear(3, 3)

    def changed() -> torch.Tensor:
        x = torch.ones(2, 3)
        y = linear(x)
        x += 1
        return y.sum(1)

    with refused("layer-inplace"):
        RecordGradients(linear).clipped_sum(changed, 1.0)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_clipping_norms_that_clip_nothing(clip: float) -> None:
    case = make("linear")
    with refused("clip-norm-invalid"):
        RecordGradients(case.model).clipped_sum(lambda: losses(case.model, case.inputs), clip)


def test_other_refusals() -> None:
    case = make("linear")
    with refused("nothing-to-train"):
        RecordGradients(copy.deepcopy(case.model).requires_grad_(False))
    with refused("clipping-invalid"):
        RecordGradients(case.model, rule=ClippingRule.layers(5))
    with refused("owners-shape"):
        RecordGradients(case.model).clipped_sum(
            lambda: losses(case.model, case.inputs), 1.0, owners=torch.zeros(2, dtype=torch.int64)
        )
    attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    with refused("layer-unknown"):
        RecordGradients(attention, engine="book-keeping").clipped_sum(
            lambda: attention(*[torch.ones(2, 3, 4)] * 3)[0], 1
        )


def test_check_finds_what_rules_cannot_see() -> None:
    case = make("shared")
    check_records(RecordGradients(case.model), lambda index: losses(case.model, case.inputs[index]), 4)

    def coupled(index: torch.Tensor) -> torch.Tensor:
        output = case.model(case.inputs[index])
        return (output - output.mean(0)).square().sum(1) + output.sum(1)

    with refused("loss-coupled"):
        check_records(RecordGradients(case.model), coupled, 4)

    table, head = nn.Embedding(4, 3), nn.Linear(3, 1)
    model = nn.ModuleList([table, head])
    x = torch.randn(4, 4, 3)

    def positions(index: torch.Tensor) -> torch.Tensor:
        """As many positions as records: the shapes fit by chance."""
        return head(x[index] + table(torch.arange(4))).squeeze(2).square().sum(1)

    with refused("loss-coupled"):
        RecordGradients(model)
        check_records(RecordGradients(model), positions, 4)
