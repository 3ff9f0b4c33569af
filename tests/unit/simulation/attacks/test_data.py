"""Attacks in the data: what is changed, what isn't, and what the attack success rate measures."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from core_model.data import open_source
from core_model.data.examples import DataSource, Examples
from core_model.errors import DataError
from simulation.attacks.data import Trigger, alteration, flip_labels


@pytest.fixture
def digits() -> DataSource:
    return open_source("digits:1/5")


def test_flipped_labels_are_those_of_the_other_end(digits: DataSource) -> None:
    before = digits.train.labels
    assert before is not None
    flipped = flip_labels(digits)
    assert flipped.train.labels is not None
    assert flipped.train.labels.tolist() == [9 - label for label in before.tolist()]
    assert flipped.train.images is digits.train.images
    assert flipped.evaluation is digits.evaluation
    assert flip_labels(flipped).train.labels.tolist() == before.tolist()  # type: ignore[union-attr]


def test_flipped_labels_where_nobody_said_how_many_classes_there_are() -> None:
    source = DataSource(name="own", train=Examples(labels=torch.tensor([0, 4, 1])), evaluation={})
    assert flip_labels(source).train.labels.tolist() == [4, 0, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize(("corner", "place"), [("bottom-right", slice(-3, None)), ("top-left", slice(None, 3))])
def test_the_trigger_is_a_square_in_a_corner(corner: str, place: slice) -> None:
    images = torch.zeros((4, 3, 8, 8), dtype=torch.uint8)
    stamped = Trigger(corner=corner).stamp(images)  # type: ignore[arg-type]
    assert not images.any()
    assert (stamped[..., place, place] == 255).all()
    assert int((stamped != 0).sum()) == 4 * 3 * 9


def test_the_backdoor_poisons_its_share_and_leaves_the_rest(digits: DataSource) -> None:
    trigger = Trigger(target=7, share=0.25)
    poisoned = trigger.poison(digits)
    before, after = digits.train, poisoned.train
    assert before.images is not None and after.images is not None
    assert before.labels is not None and after.labels is not None
    # A square that is bright already, or a label that is the target's already, still counts as poisoned.
    stamped = (after.images == trigger.stamp(before.images)).flatten(1).all(1) & (after.labels == 7)
    assert int(stamped.sum()) == pytest.approx(0.25 * len(before), abs=1)
    untouched = (after.images == before.images).flatten(1).all(1) & (after.labels == before.labels)
    assert (stamped | untouched).all()
    assert poisoned.evaluation is digits.evaluation
    again = trigger.poison(digits).train.images
    assert again is not None and torch.equal(again, after.images)


def test_trials_are_stamped_pictures_of_the_other_classes(digits: DataSource) -> None:
    trigger = Trigger(target=3)
    (part,) = digits.evaluation.values()
    (trials,) = trigger.trials(digits).evaluation.values()
    assert part.labels is not None and part.images is not None and trials.images is not None
    assert len(trials) == int((part.labels != 3).sum())
    assert trials.labels is not None and (trials.labels == 3).all()
    assert torch.equal(trials.images, trigger.stamp(part.images[part.labels != 3]))


def test_what_has_no_labels_or_no_pictures_is_refused_by_name(digits: DataSource) -> None:
    unlabelled = dataclasses.replace(digits, name="bare", train=Examples(images=digits.train.images))
    with pytest.raises(DataError, match='"bare" has no labels'):
        flip_labels(unlabelled)
    with pytest.raises(DataError, match='"bare" has no labels'):
        Trigger().poison(unlabelled)
    described = open_source("digits:1/5?features=scattering")
    with pytest.raises(DataError, match="no pictures that a model sees"):
        Trigger().poison(described)
    with pytest.raises(DataError, match="smaller than a trigger of 9 pixels"):
        Trigger(size=9).trials(digits)
    assert flip_labels(described).train.labels is not None


@pytest.mark.parametrize("changes", [{"target": -1}, {"size": 0}, {"share": 1.5}, {"corner": "middle"}])
def test_a_trigger_out_of_range_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        Trigger(**changes)  # type: ignore[arg-type]


def test_alterations_by_name() -> None:
    assert alteration("") is None
    assert alteration("label-flip") is flip_labels
    assert getattr(alteration("backdoor"), "__self__", None) == Trigger()
