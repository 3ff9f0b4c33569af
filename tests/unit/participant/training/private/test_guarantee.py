"""What one record can do to a sum: no more than the clipping norm, whatever the model, the rule and the record."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from private_models import CASES, RECORDS, Case, losses, make
from private_tasks import Regression, make_plan
from torch import nn

from participant.training.private import RecordGradients
from participant.training.private.loop import PrivateTraining
from privacy.mechanisms.clipping import ClippingRule
from privacy.mechanisms.errors import PrivacyError

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

RULES = ("flat", "automatic", "layers")


def engine_of(case: Case, kind: str, engine: str = "book-keeping") -> RecordGradients:
    plain = RecordGradients(case.model, engine=engine)  # type: ignore[arg-type]
    rule = ClippingRule.layers(len(plain.layers)) if kind == "layers" else ClippingRule(kind=kind)  # type: ignore[arg-type]
    return RecordGradients(case.model, rule=rule, engine=engine)  # type: ignore[arg-type]


def total(
    engine: RecordGradients, case: Case, rows: torch.Tensor, clip: float, **options: torch.Tensor
) -> torch.Tensor:
    inputs = case.inputs[rows]
    found = engine.clipped_sum(lambda: losses(case.model, inputs), clip, **options)
    return engine.flat(found.total).double()


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(sorted(CASES)),
    kind=st.sampled_from(RULES),
    clip=st.sampled_from([1e-3, 0.1, 10.0]),
    size=st.sampled_from([0.0, 1e-3, 1.0, 1e4]),
    removed=st.integers(0, RECORDS - 1),
)
def test_adding_a_record_moves_the_sum_by_at_most_the_norm(
    name: str, kind: str, clip: float, size: float, removed: int
) -> None:
    case = make(name)
    if case.inputs.is_floating_point():
        case.inputs[removed] *= size
    engine = engine_of(case, kind)
    rows = torch.arange(RECORDS)
    moved = total(engine, case, rows, clip) - total(engine, case, rows[rows != removed], clip)
    assert float(moved.norm()) <= clip


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["linear-3d", "conv", "tied", "shared", "direct", "attention"]),
    kind=st.sampled_from(RULES),
    owners=st.lists(st.integers(0, 2), min_size=RECORDS, max_size=RECORDS),
)
def test_adding_a_person_moves_the_sum_by_at_most_the_norm(name: str, kind: str, owners: list[int]) -> None:
    case, who = make(name), torch.tensor(owners)
    engine = engine_of(case, kind)
    rest = (who != who[0]).nonzero().squeeze(1)
    whole = total(engine, case, torch.arange(RECORDS), 0.3, owners=who)
    others = total(engine, case, rest, 0.3, owners=who[rest]) if len(rest) else torch.zeros_like(whole)
    assert float((whole - others).norm()) <= 0.3


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_a_record_that_is_no_number_adds_nothing(kind: str, value: float) -> None:
    case = make("linear-3d")
    rows = torch.arange(RECORDS)
    engine = engine_of(case, kind)
    without = total(engine, case, rows[1:], 0.5)
    case.inputs[0] = value
    with_it = total(engine, case, rows, 0.5)
    assert torch.isfinite(with_it).all()
    assert float((with_it - without).norm()) <= 0.5


def test_views_are_averaged_before_they_are_clipped() -> None:
    """Three views of a record in one row each: the record counts once, not three times."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(4, 3, 6)

    def averaged(records: torch.Tensor) -> torch.Tensor:
        return net(x[records].flatten(0, 1)).square().sum(1).view(len(records), 3).mean(1)

    engine = RecordGradients(net)
    for record in range(4):
        alone = engine.clipped_sum(lambda record=record: averaged(torch.tensor([record])), 0.01)
        assert engine.flat(alone.total).double().norm() == pytest.approx(0.01, rel=2e-5)
    exact = [torch.cat([g.flatten() for g in torch.autograd.grad(averaged(torch.tensor([i])).sum(), net.parameters())])
             for i in range(4)]  # fmt: skip
    found = engine.clipped_sum(lambda: averaged(torch.arange(4)), 1e9)
    assert torch.allclose(found.norms, torch.stack(exact).norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize("engine", ["book-keeping", "opacus"])
def test_a_frozen_batch_norm_may_not_wake_up(engine: str) -> None:
    """In eval mode it is a constant map of each record; model.train() makes it one of the batch."""
    pytest.importorskip("opacus")
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)), torch.randn(6, 4)
    model[1].requires_grad_(False)
    model.eval()
    gradients = RecordGradients(model, engine=engine)  # type: ignore[arg-type]

    def total_of(rows: torch.Tensor) -> torch.Tensor:
        return gradients.flat(gradients.clipped_sum(lambda: model(x[rows]).square().sum(1), 0.1).total).double()

    assert float((total_of(torch.arange(6)) - total_of(torch.arange(5))).norm()) <= 0.1
    model.train()
    before = model[1].running_mean.clone()
    with pytest.raises(PrivacyError) as error:
        total_of(torch.arange(6))
    assert error.value.code == "layer-batch-norm" and "eval" in error.value.hint
    assert torch.equal(before, model[1].running_mean)
    with pytest.raises(PrivacyError, match="normalizes over the batch"):
        RecordGradients(
            nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False, track_running_stats=False)).eval()
        )


# --- Opacus's hooks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("name", ["linear-3d", "conv", "embedding-all", "group-norm"])
def test_opacus_engine_keeps_the_norm_as_well(name: str, kind: str) -> None:
    pytest.importorskip("opacus")
    case = make(name)
    engine, ours = engine_of(case, kind, "opacus"), engine_of(case, kind)
    rows = torch.arange(RECORDS)
    whole = total(engine, case, rows, 0.3)
    assert float((whole - total(engine, case, rows[1:], 0.3)).norm()) <= 0.3
    assert float((whole - total(ours, case, rows, 0.3)).norm()) <= 1e-5 * float(whole.norm())


def test_opacus_engine_clips_owners() -> None:
    pytest.importorskip("opacus")
    case, who = make("linear-3d"), torch.tensor([4, 4, 1, 0, 1, 4, 4])
    engine, ours = engine_of(case, "flat", "opacus"), engine_of(case, "flat")
    rows = torch.arange(RECORDS)
    found = total(engine, case, rows, 0.3, owners=who)
    assert float((found - total(ours, case, rows, 0.3, owners=who)).norm()) <= 1e-5 * float(found.norm())


class Rows(nn.Module):
    """A layer that isn't given one row for each record."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.table, self.head = nn.Embedding(9, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, _ = x.shape
        if self.form == "views":
            return self.head((x + self.table(torch.zeros(n, 1, dtype=torch.int64))).flatten(0, 1)).view(n, tokens, 2)
        if self.form == "positions":  # as many as records, by chance
            return self.head(x + self.table(torch.arange(tokens)))
        return self.head(x + self.table(torch.arange(tokens).unsqueeze(0)))


@pytest.mark.parametrize(("form", "records"), [("views", 4), ("positions", 3), ("one row", 4)])
def test_opacus_hooks_would_take_rows_for_records(form: str, records: int) -> None:
    """They clip each row by itself: K rows of a record together have K times the norm."""
    pytest.importorskip("opacus")
    torch.manual_seed(0)
    model, x = Rows(form), torch.randn(records, 5, 6)
    with pytest.raises(PrivacyError) as error:
        RecordGradients(model, engine="opacus").clipped_sum(lambda: model(x).square().sum((1, 2)), 0.01)
    assert error.value.code == "layer-shape" and error.value.hint
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_opacus_engine_ignores_uses_without_gradients() -> None:
    pytest.importorskip("opacus")
    torch.manual_seed(0)
    layer, x, bank = nn.Linear(4, 3), torch.randn(3, 4), torch.randn(11, 4)

    def run() -> torch.Tensor:
        with torch.no_grad():
            constant = layer(bank).mean()
        return (layer(x) * constant).sum(1)

    one, two = (RecordGradients(layer, engine=engine) for engine in ("opacus", "book-keeping"))
    first, second = one.clipped_sum(run, 0.2), two.clipped_sum(run, 0.2)
    assert torch.allclose(one.flat(first.total), two.flat(second.total), rtol=1e-5)


class Stretch(nn.Module):
    """A layer that no rule knows: each input times a number of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factors


@pytest.mark.parametrize("training", [True, False])
def test_opacus_engine_in_either_mode(training: bool) -> None:
    """Opacus's hooks overlook layers in eval mode, in which models are checked before training."""
    pytest.importorskip("opacus")
    torch.manual_seed(0)
    model = nn.Sequential(Stretch(4), nn.Dropout(0.5), nn.Linear(4, 3)).train(training)
    model[1].eval()
    x, engine = torch.randn(5, 4), RecordGradients(model)
    assert engine.engine == "opacus"
    found = engine.clipped_sum(lambda: losses(model, x), 1e9)
    for record in range(5):
        gradients = torch.autograd.grad(losses(model, x[record : record + 1]).sum(), list(model.parameters()))
        exact = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert float(found.norms[record]) == pytest.approx(float(exact), rel=1e-5)
    assert [module.training for module in model] == [training, False, training]


def test_a_broken_off_pass_leaves_nothing_to_the_next() -> None:
    pytest.importorskip("opacus")
    torch.manual_seed(0)
    model, x = nn.Sequential(Stretch(4), nn.Linear(4, 3)).eval(), torch.randn(5, 4)
    engine = RecordGradients(model)
    expected = engine.clipped_sum(lambda: losses(model, x), 0.3)
    with pytest.raises(ZeroDivisionError):
        engine.clipped_sum(lambda: losses(model, x[:2]) / (1 // 0), 0.3)
    with pytest.raises(PrivacyError, match="one number"):
        engine.clipped_sum(lambda: losses(model, x[:3]).sum(), 0.3)
    assert not any(hasattr(module, "activations") for module in model)
    assert not any(module.training for module in model.modules())
    again = engine.clipped_sum(lambda: losses(model, x), 0.3)
    assert torch.equal(engine.flat(again.total), engine.flat(expected.total))


def test_models_with_unknown_layers_pass_the_check_before_training() -> None:
    """It runs the engine in both modes."""
    pytest.importorskip("opacus")
    task = Regression()
    model = nn.Sequential(Stretch(3), nn.Linear(3, 1))
    dimension = sum(p.numel() for p in model.parameters())
    PrivateTraining(model, task, make_plan(dimension=dimension), max_chunk=64).check()
    with pytest.raises(PrivacyError) as error:
        PrivateTraining(model, Regression(fault="mean"), make_plan(dimension=dimension), max_chunk=64).check()
    assert error.value.code == "loss-coupled"
