"""Tasks on real digits, on pictures drawn here, and on user code."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from core_model import (
    DataError,
    LearningConfig,
    Manifest,
    UserCodeError,
    flatten,
    gallery,
    initial_checkpoint,
    make_task,
)
from core_model.tasks.base import index_batches

SMALL = {"image_size": 8, "width": 16, "heads": 2, "depth": 1, "embedding": 8, "text_buckets": 64, "text_tokens": 4}
DIGITS = LearningConfig.model_validate(
    {
        "model": {**SMALL, "classes": 10},
        "task": {"kind": "classification", "augment": 0},
        "training": {"batch_size": 32},
    }
)
RETRIEVAL = LearningConfig.model_validate({"model": SMALL, "training": {"batch_size": 8}})
CUSTOM = LearningConfig.model_validate(
    {
        "model": {"kind": "custom", "factory": "custom_code:model", "options": {"width": 3}},
        "task": {"kind": "custom", "loss": "custom_code:loss"},
        "training": {"batch_size": 4},
    }
)
CODE = """
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset


def model(width):
    return nn.Linear(2, width)

def loss(module, batch):
    (x,) = batch
    value = module(x).square().mean()
    return value, {"twice": 2 * value.item()}

def no_scalar(module, batch):
    return module(batch[0])

def data():
    points = torch.arange(20.0).reshape(10, 2)
    return TensorDataset(points[:7]), TensorDataset(points[7:])

def no_data():
    return [1, 2]

def endless():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(range(9))

    return Endless()

def empty():
    return TensorDataset(torch.zeros(0, 2))

def not_a_model(width):
    return "model"
"""
ALL = frozenset(
    f"custom_code:{n}" for n in ("model", "loss", "no_scalar", "data", "no_data", "endless", "empty", "not_a_model")
)


@pytest.fixture
def code(tmp_path, monkeypatch):
    (tmp_path / "custom_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "custom_code", raising=False)


@pytest.fixture
def shapes(tmp_path):
    lines = ["file,text,split"]
    for i in range(24):
        Image.new("RGB", (8, 8), (10 * i, 255 - 10 * i, 40)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,shade number {i},{'test' if i % 4 == 0 else 'train'}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    return str(tmp_path)


def test_batches_pass_over_everything_before_they_repeat():
    seen = np.concatenate(list(index_batches(10, 5, 0, 4)))
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert [len(part) for part in index_batches(3, 8, 0, 2)] == [3, 3]


@pytest.mark.parametrize("config", [DIGITS, RETRIEVAL], ids=["classification", "retrieval"])
def test_models_and_batches_follow_their_seed_alone(config, shapes):
    task = make_task(config, shapes if config is RETRIEVAL else "digits:1/5")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = flatten(task.build_model(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    np.testing.assert_array_equal(first, flatten(task.build_model(5)))
    assert (first != flatten(task.build_model(6))).any()
    again = [list(task.batches(3, 2)), list(task.batches(3, 2))]
    for one, other in zip(*again, strict=True):
        assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(next(task.batches(3, 1))[0], next(task.batches(4, 1))[0])


def train(task, steps, rate=1e-2):
    model = task.build_model(0)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for batch in task.batches(0, steps):
        optimizer.zero_grad()
        task.loss(model, batch)[0].backward()
        optimizer.step()
    return model


def test_digits_are_learnt():
    task = make_task(DIGITS, "digits:1/1")
    before = task.evaluate(task.build_model(0))
    after = task.evaluate(train(task, 60, 5e-3))
    assert before.examples == after.examples == 360
    assert before.metrics["accuracy"] < 0.3 < 0.7 < after.metrics["accuracy"]
    assert after.metrics["loss"] < before.metrics["loss"]


def test_retrieval_learns_and_scores_each_held_out_set(shapes):
    config = RETRIEVAL.model_copy(update={"task": RETRIEVAL.task.model_copy(update={"image_image": 0.5})})
    task = make_task(config, shapes)
    model = train(task, 30)
    model.train()
    scores = task.evaluate(model)
    assert set(scores.metrics) == {"test_r_at_1", "test_r_at_10", "loss"} and scores.examples == 6
    assert scores.metrics["test_r_at_10"] == 1.0 and model.training
    loss, figures = task.loss(model, next(task.batches(1, 1)))
    assert loss.item() > figures["image_text_loss"] > 0


def test_the_gallery_shows_five_pictures_and_the_rank(shapes):
    task = make_task(RETRIEVAL, shapes)
    model = task.build_model(0)
    rows = gallery(task, model, 4, seed=2)
    assert len(rows) == 4 and rows == gallery(task, model, 4, seed=2)
    for row in rows:
        assert row.query.startswith("shade number") and 1 <= row.rank <= row.of == 6
        assert len(row.pictures) == 5 and all(p.png.startswith(b"\x89PNG") for p in (*row.pictures,))
        assert [p.caption == row.query for p in row.pictures] == [p.correct for p in row.pictures]
        assert sum(p.correct for p in row.pictures) == (row.rank <= 5)
        assert row.wanted.startswith(b"\x89PNG")
    with pytest.raises(DataError, match="this task is another"):
        gallery(make_task(DIGITS, "digits:1/5"), model, 1, 0)


def test_data_that_do_not_fit_the_task_are_refused(shapes):
    with pytest.raises(DataError, match="no texts"):
        make_task(RETRIEVAL, "digits:1/5")
    with pytest.raises(DataError, match="no labels"):
        make_task(DIGITS, shapes)
    two = LearningConfig.model_validate({"model": {**SMALL, "classes": 2}, "task": {"kind": "classification"}})
    with pytest.raises(DataError, match="label 9; the model has 2 classes") as caught:
        make_task(two, "digits:1/5")
    assert "classes = 10" in caught.value.hint


def test_code_of_the_users_own(code):
    task = make_task(CUSTOM, "custom_code:data", allow=ALL)
    assert task.examples == 7
    model = task.build_model(0)
    assert isinstance(model, nn.Linear)
    (batch,) = task.batches(0, 1)
    value, figures = task.loss(model, batch)
    assert figures == {"twice": pytest.approx(2 * value.item())}
    scores = task.evaluate(model)
    assert scores.examples == 3 and scores.metrics["twice"] == pytest.approx(2 * scores.metrics["loss"], rel=1e-5)


@pytest.mark.parametrize("missing", ["custom_code:model", "custom_code:loss", "custom_code:data"])
def test_each_piece_of_user_code_needs_leave(code, missing):
    with pytest.raises(UserCodeError, match=missing):
        make_task(CUSTOM, "custom_code:data", allow=ALL - {missing})


@pytest.mark.parametrize(
    ("change", "data", "error", "reason"),
    [
        ({}, "custom_code:no_data", UserCodeError, "must return a torch Dataset"),
        ({}, "custom_code:endless", DataError, "no length"),
        ({}, "custom_code:empty", DataError, "no training examples"),
        ({"loss": "custom_code:no_scalar"}, "custom_code:data", UserCodeError, "scalar tensor"),
        ({"factory": "custom_code:not_a_model"}, "custom_code:data", UserCodeError, "not a torch.nn.Module"),
        ({"options": {"depth": 1}}, "custom_code:data", UserCodeError, "does not take options"),
    ],
)
def test_user_code_that_does_something_else_is_named(code, change, data, error, reason):
    table = CUSTOM.model_dump(mode="json")
    table["task"].update({k: v for k, v in change.items() if k == "loss"})
    table["model"].update({k: v for k, v in change.items() if k != "loss"})
    with pytest.raises(error, match=reason):
        task = make_task(LearningConfig.model_validate(table), data, allow=ALL)
        task.loss(task.build_model(0), next(task.batches(0, 1)))


def test_a_custom_model_on_a_built_in_source(code):
    table = {"model": {"kind": "custom", "factory": "custom_code:model"}, "task": {"kind": "classification"}}
    config = LearningConfig.model_validate(table)
    task = make_task(config, "digits:1/5", allow=ALL)
    images, labels = next(task.batches(0, 1))
    assert images.shape[1:] == (3, config.model.image_size, config.model.image_size) and labels.dtype == torch.int64
    with pytest.raises(DataError, match="reads pictures and texts from its own sources"):
        make_task(RETRIEVAL, "custom_code:data", allow=ALL)


def test_version_zero_fits_every_institution(tmp_path, shapes):
    path = tmp_path / "model"
    manifest = initial_checkpoint(DIGITS, 3, path, data="digits:1/5")
    assert manifest == Manifest.of(make_task(DIGITS, "digits:2/5").build_model(0))
    first = path.read_bytes()
    assert initial_checkpoint(DIGITS, 3, path).digest == manifest.digest and path.read_bytes() == first
    initial_checkpoint(DIGITS, 4, path)
    assert path.read_bytes() != first
    with pytest.raises(DataError, match="no labels"):
        initial_checkpoint(DIGITS, 3, tmp_path / "other", data=shapes)
    assert not (tmp_path / "other").exists()


def test_version_zero_of_user_code_needs_leave(tmp_path, code):
    with pytest.raises(UserCodeError, match="doesn't allow"):
        initial_checkpoint(CUSTOM, 0, tmp_path / "m")
    assert initial_checkpoint(CUSTOM, 0, tmp_path / "m", allow=ALL).dimension == 9


def test_a_data_set_of_tensors_gives_the_batches_that_one_by_one_gives():
    """The short way through ``TensorDataset`` changes no batch."""
    from torch.utils.data import Dataset, TensorDataset

    from core_model.tasks.custom import CustomTask, cross_entropy

    class Visited(Dataset):
        def __init__(self, tensors):
            self.whole = TensorDataset(*tensors)

        def __len__(self):
            return len(self.whole)

        def __getitem__(self, index):
            return self.whole[index]

    tensors = (torch.randn(30, 3, 2), torch.arange(30))
    tasks = [
        CustomTask(CUSTOM, made, made, cross_entropy, None) for made in (TensorDataset(*tensors), Visited(tensors))
    ]
    for short, long in zip(*(task.batches(seed=4, steps=9) for task in tasks), strict=True):
        assert type(short) is type(long) is list
        assert all(torch.equal(one, other) for one, other in zip(short, long, strict=True))
