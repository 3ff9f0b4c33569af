"""Canaries: what they add to a task, and what their records' gradients are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from participant.privacy_audit.canaries import PREFIX, Canaries, CanaryModel, CanaryTask
from participant.privacy_audit.reference import ReferenceTask
from participant.training.private import RecordGradients

BASE, CLIP = 20, 0.5


def task(base: ReferenceTask | None = None, *, quiet: bool = False, **settings: object) -> CanaryTask:
    included = np.array([True, False, True])
    canaries = Canaries(included=included, **settings)  # type: ignore[arg-type]
    return CanaryTask(base or ReferenceTask(BASE), canaries, CLIP, quiet=quiet)


def gradients(of: CanaryTask, index: np.ndarray) -> tuple[CanaryModel, list[dict[str, torch.Tensor]]]:
    """Each record's gradient, by autograd."""
    model = of.build_model(0)
    assert isinstance(model, CanaryModel)
    losses = of.record_losses(model, of.sampled(index, None))
    named = dict(model.named_parameters())
    found = []
    for loss in losses:
        parts = torch.autograd.grad(loss, list(named.values()), retain_graph=True, materialize_grads=True)
        found.append(dict(zip(named, parts, strict=True)))
    return model, found


@pytest.mark.parametrize(("anchors", "tables"), [(1, 1), (3, 2), (0, 4)])
def test_records_pull_their_rows_and_nothing_else(anchors: int, tables: int) -> None:
    of = task(anchors=anchors, tables=tables)
    assert of.examples == BASE + 3 * anchors + 2
    index = np.arange(of.examples)
    _, found = gradients(of, index)
    rows = np.concatenate([np.repeat([0, 1, 2], anchors), [0, 2]]).astype(int)
    strength = of.length / np.sqrt(tables)
    for record, gradient in enumerate(found):
        behind = record - BASE
        for name, part in gradient.items():
            if name.startswith(PREFIX):
                wanted = torch.zeros_like(part)
                if behind >= 0:
                    turned = behind >= 3 * anchors
                    wanted[rows[behind]] = strength * (anchors + 1 if turned else -1)
                assert torch.allclose(part, wanted)
            else:
                assert (part.abs().max() > 0) == (behind < 0)
        norm = torch.cat([part.flatten() for part in gradient.values()]).norm()
        assert behind < 0 or norm >= 900 * CLIP


def test_the_base_tasks_records_are_what_they_were() -> None:
    base = ReferenceTask(BASE)
    of = task(base)
    index = np.array([3, 7, BASE, BASE + 1])
    model, _ = gradients(of, index)
    together = of.record_losses(model, of.sampled(index, None))
    alone = base.record_losses(model.base, base.sampled(index[:2], None))
    assert torch.allclose(together[:2], alone)
    loss, _ = of.loss(model, base.sampled(index[:2], None))
    assert torch.allclose(loss, alone.mean())
    assert next(of.batches(0, 1))[0].shape[1:] == (2, 6)
    assert of.evaluate(model).examples == 0


def test_quiet_records_stay_within_any_norm() -> None:
    of = task(quiet=True)
    model = of.build_model(0)
    engine = RecordGradients(model)
    batch = of.sampled(np.arange(of.examples), None)
    norms = engine.clipped_sum(lambda: of.record_losses(model, batch), CLIP).norms
    assert float(norms[:BASE].max()) < 1e-3 * CLIP < CLIP < float(norms[BASE:].min())
    assert task().quiet is False


def test_who_is_where() -> None:
    of = task(anchors=2)
    here, anchors = of.whereabouts(np.array([1, BASE, BASE + 1, BASE + 5, BASE + 7]))
    assert here.tolist() == [False, False, True]
    assert anchors.tolist() == [2, 0, 1]
    nothing, none = of.whereabouts(np.empty(0, np.int64))
    assert not nothing.any() and not none.any()


def test_persons_have_all_records_of_a_canary() -> None:
    base = ReferenceTask(BASE, persons=np.arange(BASE) // 4)
    of = task(base, records=2)
    assert of.examples == BASE + 3 + 4
    persons = of.persons
    assert persons is not None and len(persons) == of.examples
    assert len(np.unique(persons)) == 5 + 3 + 2
    assert persons[BASE + 3] == persons[BASE + 4] != persons[BASE + 5] == persons[BASE + 6]
    assert task().persons is None
    _, found = gradients(of, np.arange(of.examples))
    first, second = (found[BASE + 3 + k][f"{PREFIX}0.weight"][0] for k in (0, 1))
    assert float(first + second) == pytest.approx(2 * of.length)


def test_a_canary_is_in_a_group_with_its_anchors() -> None:
    base = ReferenceTask(BASE, "contrastive")
    of = task(base)
    assert of.group_count == 40 + 3
    groups = of.groups(np.arange(of.examples))
    assert groups[:BASE].tolist() == base.groups(np.arange(BASE)).tolist()
    assert groups[BASE:].tolist() == [40, 41, 42, 40, 42]
    # Stand-ins would be compared with the records of a group, so that its losses are left out.
    _, found = gradients(of, np.arange(of.examples))
    assert all(float(part["base.first.weight"].abs().max()) == 0 for part in found)


def test_views_divide_a_canarys_gradient() -> None:
    of = task(ReferenceTask(BASE, views=3))
    batch = of.sampled(np.array([2, BASE]), 5)
    assert batch.pull.tolist() == pytest.approx([0, 0, 0, *([-of.length / 3] * 3)])
    assert batch.own.tolist() == [1, 1, 1, 0, 0, 0]
    assert of.views == 3


@pytest.mark.parametrize("loss", ["classification", "regression", "contrastive"])
def test_the_reference_tasks_losses_decompose(loss: str) -> None:
    base = ReferenceTask(40, loss)  # type: ignore[arg-type]
    model = base.build_model(1)
    index = np.array([1, 2, 5])
    alone = base.record_losses(model, base.sampled(index[:1], None))
    among = base.record_losses(model, base.sampled(index, None))
    assert alone.shape == (1,) and among.shape == (3,)
    assert torch.allclose(alone[0], among[0])
    with pytest.raises(AssertionError):
        base.record_losses(torch.nn.Linear(1, 1), base.sampled(index, None))
