"""What is refused before any training: losses that couple records, models that remember them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from private_tasks import Regression, make_plan
from torch import nn

from core_model import CoupledLossError, LearningConfig, make_task
from participant.training.private.checks import freeze_unused, unchanged
from participant.training.private.loop import PrivateTraining
from privacy.accounting.events import Unit
from privacy.mechanisms.errors import PrivacyError


def check(task: Any, model: nn.Module | None = None, **changes: Any) -> None:
    model = model or task.build_model(0)
    dimension = sum(p.numel() for p in model.parameters() if p.requires_grad)
    PrivateTraining(model, task, make_plan(dimension=dimension, **changes), max_chunk=64).check()


@pytest.mark.parametrize("records", [1, 2, 3, 60])
@pytest.mark.parametrize("views", [1, 3])
def test_losses_of_each_record_alone_pass(records: int, views: int) -> None:
    check(Regression(records, views=views), records=records)


def test_losses_coupled_in_groups_pass_where_the_plan_doubles_the_sensitivity() -> None:
    check(Regression(group_count=9), group_factor=2)
    check(Regression(group_count=5, persons=np.arange(60) % 20), group_factor=2, unit=Unit.PERSON, records=20)


def test_persons_pass() -> None:
    check(Regression(persons=np.arange(60) % 7), unit=Unit.PERSON, records=7)


@pytest.mark.parametrize("fault", ["mean", "size", "earlier"])
@pytest.mark.parametrize("options", [{}, {"views": 2}, {"group_count": 9}], ids=["records", "views", "groups"])
def test_a_loss_that_looks_at_other_records_is_found_out(fault: str, options: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError) as caught:
        check(Regression(fault=fault, **options), group_factor=2 if "group_count" in options else 1)
    assert caught.value.code == "loss-coupled" and caught.value.exit_code == 3
    assert "of each record alone" in caught.value.hint


def test_a_batch_size_is_found_out_with_two_records() -> None:
    with pytest.raises(PrivacyError, match="adding records"):
        check(Regression(2, fault="size"), records=2)


def test_a_loss_that_is_one_number() -> None:
    with pytest.raises(PrivacyError) as caught:
        check(Regression(fault="scalar"))
    assert caught.value.code == "loss-shape"


class Keeper(nn.Module):
    """Writes into a tensor of its own while it computes."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("running", torch.zeros(3))
        self.where = where

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        running = self.running
        assert isinstance(running, torch.Tensor)
        with torch.no_grad():
            if self.where == "buffer":
                running.lerp_(x.mean(0), 0.1)
            if self.where == "data":
                running.data.copy_(x[0])
            if self.where == "weight":
                self.layer.bias.fill_(x.mean())
        found: torch.Tensor = self.layer(x)
        return found


@pytest.mark.parametrize("where", ["buffer", "data", "weight"])
def test_a_model_that_remembers_records(where: str) -> None:
    with pytest.raises(PrivacyError) as caught:
        check(Regression(), Keeper(where))
    assert caught.value.code in ("model-state", "loss-coupled")
    if where != "weight":
        assert 'tensor "running"' in caught.value.message
    check(Regression(), Keeper(""))


@pytest.mark.parametrize("where", ["buffer", "weight"])
def test_a_model_that_begins_to_remember_in_the_middle_of_a_run(where: str) -> None:
    model = Keeper("")
    private = PrivateTraining(model, Regression(), make_plan(), max_chunk=64)
    private._clipped(np.arange(5), 1.0)
    model.where = where
    with pytest.raises(PrivacyError) as caught:
        private._clipped(np.arange(5), 1.0)
    assert caught.value.code == "model-state"


def test_an_update_of_what_is_not_trained_is_refused() -> None:
    model = Keeper("")
    private = PrivateTraining(model, Regression(), make_plan(), max_chunk=64)
    update = np.zeros(7, np.float32)
    update[:4] = 1.0
    order = [name for name in model.state_dict() if name != "running"]
    assert order == ["layer.weight", "layer.bias"] and next(iter(model.state_dict())) == "running"
    with pytest.raises(PrivacyError, match="running"):
        private.check_untrained(update)
    private.check_untrained(np.roll(update, 3))


def test_reading_is_not_writing() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    with unchanged(model):
        model(torch.ones(2, 3)).sum().backward()
    with pytest.raises(PrivacyError), unchanged(model):
        torch.nn.init.zeros_(model[0].weight)


def test_dropout_is_no_coupling() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    check(Regression(), model)
    assert model.training and model[1].training


class OwnBatchNorm(nn.Module):
    """Standardizes over the batch, in training mode only, and keeps no state."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(0)) / (x.std(0, unbiased=False) + 1e-3) if self.training else x


def test_batch_statistics_of_ones_own_are_found_out() -> None:
    with pytest.raises(PrivacyError) as caught:
        check(Regression(), nn.Sequential(nn.Linear(3, 4), OwnBatchNorm(), nn.Linear(4, 1)))
    assert caught.value.code == "loss-coupled"


def test_a_check_leaves_every_generator_as_it_was() -> None:
    task = Regression()
    model = task.build_model(0)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    check(task, model)
    found = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert found == (random.random(), np.random.rand(), torch.rand(1).item())


# --- built-in tasks ---------------------------------------------------------------------------------------------------


def built_in(task: dict[str, Any], data: str, classes: int = 0) -> tuple[Any, nn.Module]:
    table = {
        "model": {
            "image_size": 8, "width": 16, "depth": 1, "heads": 2, "embedding": 16, "text_buckets": 64,
            "classes": classes,
        },
        "task": task,
        "training": {"batch_size": 16},
    }  # fmt: skip
    made = make_task(LearningConfig.model_validate(table), data)
    return made, made.build_model(0)


def test_a_tower_that_nothing_reaches_is_frozen() -> None:
    task, model = built_in({"kind": "classification"}, "digits:1/4", 10)
    everything = sum(parameter.numel() for parameter in model.parameters())
    trained = freeze_unused(model, task)
    assert not any(parameter.requires_grad for parameter in model.text.parameters())  # type: ignore[union-attr]
    assert all(parameter.requires_grad for parameter in model.image.parameters())  # type: ignore[union-attr]
    assert trained == sum(p.numel() for p in model.parameters() if p.requires_grad) < everything
    check(task, model, records=task.examples)


@pytest.mark.parametrize("views", [1, 2])
def test_classification_decomposes(views: int) -> None:
    task, model = built_in({"kind": "classification", "views": views, "label_smoothing": 0.1}, "digits:1/4", 10)
    freeze_unused(model, task)
    check(task, model, records=task.examples)


def test_a_contrastive_loss_over_the_batch_is_refused(shapes: str) -> None:
    task, model = built_in({}, shapes)
    with pytest.raises(CoupledLossError) as caught:
        freeze_unused(model, task)
    assert caught.value.code == "loss-coupled" and "bank" in caught.value.hint


def test_the_naive_contrastive_loss_is_found_out_whatever_it_says_of_itself(shapes: str) -> None:
    """As a loss of one's own might be: one value for each record, each against all others of the batch."""
    task, model = built_in({"negatives": "bank", "bank": ["red", "green", "blue"]}, shapes)

    def naive(model: Any, batch: Any) -> torch.Tensor:
        images, texts = model.embed_images(batch.views), model.embed_texts(batch.captions)
        logits = model.scale(len(images)).reshape(-1, 1) * images @ texts.T
        return F.cross_entropy(logits, torch.arange(len(images)), reduction="none")

    freeze_unused(model, task)
    check(task, model, records=task.examples)
    task.record_losses = naive
    with pytest.raises(PrivacyError) as caught:
        check(task, model, records=task.examples)
    assert caught.value.code == "loss-coupled"


@pytest.mark.parametrize(
    "table",
    [
        {"negatives": "bank", "bank": ["shade number 3", "something else", "two words"]},
        {"negatives": "bank", "bank": ["a", "b"], "views": 2},
        {"negatives": "group", "group_size": 3},
        {"negatives": "group", "group_size": 4, "views": 3},
    ],
)
def test_private_retrieval_decomposes(table: dict[str, Any], shapes: str) -> None:
    task, model = built_in(table, shapes)
    freeze_unused(model, task)
    factor = 2 if table["negatives"] == "group" else 1
    check(task, model, records=task.examples, group_factor=factor)
