"""What tasks give private training: batches of chosen records, losses for each, groups and persons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from core_model import CoupledLossError, DataError, LearningConfig, UserCodeError, make_task
from core_model.data.public import emoji_captions
from core_model.tasks.custom import CustomTask

MODEL = {"image_size": 8, "width": 16, "heads": 2, "depth": 1, "embedding": 8, "text_buckets": 64, "text_tokens": 4}


def config(task: dict[str, Any], **model: Any) -> LearningConfig:
    return LearningConfig.model_validate({"model": {**MODEL, **model}, "task": task, "training": {"batch_size": 8}})


@pytest.fixture
def shapes(tmp_path: Any) -> str:
    lines = ["file,text,person,split"]
    for i in range(24):
        Image.new("RGB", (8, 8), (10 * i, 255 - 10 * i, 40)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,shade number {i},p{i % 5},{'test' if i % 4 == 0 else 'train'}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    return str(tmp_path)


@pytest.fixture
def nameless(shapes: str, tmp_path: Any) -> str:
    """The same without persons."""
    lines = (tmp_path / "manifest.csv").read_text().splitlines()
    parts = [line.split(",") for line in lines]
    (tmp_path / "manifest.csv").write_text("\n".join(f"{a},{b},{d}" for a, b, _, d in parts))
    return shapes


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [{"negatives": "bank", "bank": ["x", "y"]}, {"negatives": "group"}, {"negatives": "group", "views": 3}],
)
def test_sampled_pairs_follow_the_seed_and_without_one_they_are_as_they_are(table: dict[str, Any], shapes: str) -> None:
    task = make_task(config(table), shapes)
    index = np.array([4, 1, 9])
    one, same, other = task.sampled(index, 3), task.sampled(index, 3), task.sampled(index, 4)
    assert torch.equal(one[0], same[0]) and not torch.equal(one[0], other[0])
    plain = task.sampled(index, None)
    assert len(plain[0]) == len(plain[1]) == 3 * task.views
    for k in range(3):
        views = plain[0][k * task.views : (k + 1) * task.views]
        assert (views == views[0]).all() and torch.equal(views[:1], task.sampled(index[k : k + 1], None)[0][:1])


def test_views_of_a_picture_differ_and_their_losses_add_up_to_their_mean() -> None:
    one = make_task(config({"kind": "classification"}, classes=10), "digits:1/4")
    three = make_task(config({"kind": "classification", "views": 3}, classes=10), "digits:1/4")
    model = one.build_model(0)
    images, _, labels = three.sampled(np.array([5, 6]), 1)
    assert len(images) == 6 and labels[:3].unique().numel() == 1
    assert not torch.equal(images[0], images[1])
    losses = three.record_losses(model, three.sampled(np.array([5, 6]), None))
    expected = one.record_losses(model, one.sampled(np.array([5, 6]), None))
    torch.testing.assert_close(losses.reshape(2, 3).sum(1), expected)
    assert one.views == 1 and three.views == 3


def test_several_views_enter_batches_without_privacy_too() -> None:
    task = make_task(config({"kind": "classification", "views": 3}, classes=10), "digits:1/4")
    images, _, labels = next(task.batches(0, 1))
    assert len(images) == len(labels) == 24
    model = task.build_model(0)
    value, _ = task.loss(model, (images, None, labels))
    torch.testing.assert_close(value, task.record_losses(model, (images, None, labels)).mean() * 3)


@pytest.mark.parametrize("negatives", ["bank", "group"])
@pytest.mark.parametrize("views", [1, 2])
def test_without_privacy_the_same_losses_are_trained_on(negatives: str, views: int, shapes: str) -> None:
    bank = {"bank": ["shade number 2", "other", "third"]} if negatives == "bank" else {}
    task = make_task(config({"negatives": negatives, "views": views, **bank}), shapes)
    model = task.build_model(0)
    batch = next(task.batches(0, 1))
    value, figures = task.loss(model, batch)
    losses = task.record_losses(model, batch)
    assert len(losses) == 8 * views
    assert figures["image_text_loss"] == pytest.approx(losses.mean().item() * views, rel=1e-5)
    public = task.public_loss(model, 0)  # The bank is small enough that each step draws all of it.
    expected = losses.mean() * views + (0 if public is None else public)
    torch.testing.assert_close(value, expected)
    assert (public is None) == (negatives == "group")
    again = next(task.batches(0, 1))
    assert torch.equal(batch[0], again[0]) and not torch.equal(batch[0], next(task.batches(1, 1))[0])


def test_retrieval_against_a_bank_is_learnt(nameless: str) -> None:
    """Captions of all pictures, others' too, are the bank; what is learnt tells a site's own apart."""
    bank = [f"shade number {i}" for i in range(30)]
    task = make_task(config({"negatives": "bank", "bank": bank, "augment": 0.0, "outlines": 0.0}), nameless)
    model = task.build_model(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    first = task.evaluate(model).metrics["loss"]
    start = []
    for batch in task.batches(0, 150):
        optimizer.zero_grad()
        value, figures = task.loss(model, batch)
        start.append(figures["image_text_loss"])
        value.backward()
        optimizer.step()
    assert np.mean(start[-10:]) < 0.8 * np.mean(start[:10])
    with torch.no_grad():
        texts = model.embed_texts(task.queries("test"))
    assert torch.pdist(texts).mean() > 0.3, "captions haven't fallen together"
    assert np.isfinite(first)


# --- the bank ---------------------------------------------------------------------------------------------------------


def test_a_pair_is_not_told_apart_from_its_own_captions(shapes: str) -> None:
    bank = ["something longer than that", "shade number 1", "shade number 5"]
    task = make_task(config({"negatives": "bank", "bank": bank}), shapes)
    texts = [texts[0] for texts in task.source.train.captions]
    batch = task.sampled(np.arange(len(texts)), 0)
    hits = {texts[row]: batch.apart[row].tolist() for row in range(len(texts)) if batch.apart[row].any()}
    assert hits == {"shade number 1": [False, True, False], "shade number 5": [False, False, True]}
    assert torch.equal(batch.public, task._hash(bank))


def test_all_captions_of_a_pair_are_its_own() -> None:
    table = {"task": {"negatives": "bank", "bank_size": 10_000}}
    task = make_task(LearningConfig.model_validate(table), "emoji:twemoji")
    batch = task.sampled(np.arange(50), 0)
    assert len(batch.public) == len(emoji_captions())
    # Hashes of longer captions may be cut alike; none of a pair's own captions is missing.
    own = [len(set(texts)) for texts in task.source.train.captions[:50]]
    assert (batch.apart.sum(1).numpy() >= np.array(own)).all() and batch.apart.sum(1).max() <= 6


def test_each_step_draws_from_the_bank(shapes: str) -> None:
    bank = [f"word{i}" for i in range(40)]
    task = make_task(config({"negatives": "bank", "bank": bank, "bank_size": 7}), shapes)
    model = task.build_model(0)
    one, same, other = (task.sampled(np.arange(3), seed).public for seed in (1, 1, 2))
    assert len(one) == 7 and torch.equal(one, same) and not torch.equal(one, other)
    assert task.public_loss(model, 1).item() != task.public_loss(model, 2).item()


def test_the_bank_carries_no_gradient_in_a_records_loss(shapes: str) -> None:
    task = make_task(config({"negatives": "bank", "bank": ["red", "blue"]}), shapes)
    model = task.build_model(0)
    texts = []
    embed = model.embed_texts
    model.embed_texts = lambda hashed: texts.append(embed(hashed)) or texts[-1]
    task.record_losses(model, task.sampled(np.arange(3), 0))
    assert [(len(part), part.requires_grad) for part in texts] == [(2, False), (3, True)]
    assert task.public_loss(model, 0).requires_grad


def test_public_captions_look_like_the_sites_own() -> None:
    captions = emoji_captions()
    assert len(captions) > 3000 and list(captions) == sorted(set(captions))
    source = make_task(LearningConfig.model_validate({"task": {"negatives": "group"}}), "emoji:noto").source
    assert {text for texts in source.train.captions for text in texts} <= set(captions)


def test_without_the_lists_a_bank_of_ones_own_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import core_model.data.public as module

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="aren't installed") as caught:
        emoji_captions()
    assert "bank = [...]" in caught.value.hint


# --- groups -----------------------------------------------------------------------------------------------------------


def test_a_pairs_group_follows_from_the_pair_alone(nameless: str) -> None:
    """Whoever else is there: with another record removed, all others stay in their groups."""
    task = make_task(config({"negatives": "group", "group_size": 2}), nameless)
    assert task.group_count == 4
    before = task.groups(np.arange(task.examples))
    assert set(before) <= set(range(4)) and len(set(before)) > 1
    kept = [i for i in range(task.examples) if i != 7]
    fewer = make_task(config({"negatives": "group", "group_size": 2}), nameless)
    fewer.source = type(task.source)(name="", train=task.source.train.select(kept), evaluation={}, classes=0)
    fewer._pixels, fewer._hashed = fewer._pixels[kept], [fewer._hashed[i] for i in kept]
    assert fewer.groups(np.arange(len(kept))).tolist() == before[kept].tolist()
    assert task.groups(np.array([5, 2])).tolist() == [before[5], before[2]]


def test_records_of_one_person_are_in_one_group(shapes: str) -> None:
    task = make_task(config({"negatives": "group", "group_size": 2}), shapes)
    groups = task.groups(np.arange(task.examples))
    for person in np.unique(task.persons):
        assert len(set(groups[task.persons == person])) == 1


def test_no_group_sees_another(nameless: str) -> None:
    task = make_task(config({"negatives": "group", "group_size": 2, "views": 2}), nameless)
    index = np.arange(10)
    apart = task.sampled(index, 0).apart
    groups = np.repeat(task.groups(index), 2)
    pairs = np.repeat(index, 2)
    for i in range(20):
        for j in range(20):
            assert apart[i, j].item() == (groups[i] != groups[j] or (pairs[i] == pairs[j] and i != j))


def test_groups_are_there_for_the_group_loss_only(nameless: str) -> None:
    assert make_task(config({"negatives": "bank", "bank": ["a", "b"]}), nameless).group_count is None
    task = make_task(config({"kind": "classification"}, classes=10), "digits:1/4")
    assert task.group_count is None and task.persons is None
    with pytest.raises(NotImplementedError):
        task.groups(np.arange(2))


# --- persons ----------------------------------------------------------------------------------------------------------


def test_a_persons_number_follows_from_the_name(shapes: str) -> None:
    task = make_task(config({"negatives": "bank", "bank": ["a", "b"]}), shapes)
    persons = task.persons
    assert persons.dtype == np.int64 and len(persons) == task.examples and len(set(persons)) == 5
    first = [int(text.split()[-1]) % 5 for (text,) in task.source.train.captions]
    for number in range(5):
        assert len({int(p) for p, name in zip(persons, first, strict=True) if name == number}) == 1


class Named(TensorDataset):
    persons: Any = None


def test_a_data_set_of_ones_own_may_name_persons() -> None:
    custom = LearningConfig.model_validate({"task": {"kind": "custom", "loss": "a:b"}})
    data = Named(torch.zeros(4, 2))
    task = CustomTask(custom, data, None, lambda model, batch: model(batch[0]).sum(1), None)
    assert task.persons is None
    data.persons = ["ann", "bob", "ann", "eve"]
    persons = task.persons
    assert persons[0] == persons[2] and len(set(persons)) == 3
    data.persons = ["ann"]
    with pytest.raises(DataError, match="4 examples, and an attribute persons of 1"):
        task.persons  # noqa: B018


# --- what is refused --------------------------------------------------------------------------------------------------


def test_losses_over_the_batch_are_refused(shapes: str) -> None:
    task = make_task(config({}), shapes)
    with pytest.raises(CoupledLossError) as caught:
        task.record_losses(task.build_model(0), task.sampled(np.arange(2), 0))
    assert "bank" in caught.value.hint


def test_a_loss_of_ones_own_returns_one_value_for_each_record() -> None:
    custom = LearningConfig.model_validate({"task": {"kind": "custom", "loss": "a:b"}})
    data = TensorDataset(torch.arange(8.0).reshape(4, 2))

    def task(loss: Any) -> CustomTask:
        return CustomTask(custom, data, None, loss, None)

    def each(model: Any, batch: Any) -> torch.Tensor:
        found: torch.Tensor = model(batch[0]).square().sum(1)
        return found

    model = torch.nn.Linear(2, 1)
    batch = task(each).sampled(np.array([3, 1]), 0)
    assert batch[0].tolist() == [[6, 7], [2, 3]]
    losses = task(each).record_losses(model, batch)
    assert losses.shape == (2,)
    torch.testing.assert_close(task(lambda m, b: (each(m, b), {"a": 1})).record_losses(model, batch), losses)
    value, figures = task(lambda m, b: (each(m, b), {"a": 1})).loss(model, batch)
    torch.testing.assert_close(value, losses.mean())
    assert figures == {"a": 1.0}
    for wrong in (lambda m, b: each(m, b).mean(), lambda m, b: each(m, b)[:, None], lambda m, b: 3.0):
        with pytest.raises(CoupledLossError):
            task(wrong).record_losses(model, batch)
    with pytest.raises(UserCodeError, match="one value for each record"):
        task(lambda m, b: each(m, b)[:, None]).loss(model, batch)


def test_a_tasks_own_losses_are_refused_until_it_declares_them() -> None:
    from core_model.tasks import LearningTask

    task = make_task(config({"kind": "classification"}, classes=10), "digits:1/4")
    for ask in (
        lambda: LearningTask.sampled(task, np.arange(2), 0),
        lambda: LearningTask.record_losses(task, task.build_model(0), None),
    ):
        with pytest.raises(CoupledLossError, match="compares records"):
            ask()
