"""Attacks in the data: flipped labels, and a backdoor with a trigger; with the measure of a backdoor's success.

They change what a hostile site learns from. Its training, and all that follows, is honest.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from core_model.data.examples import Alteration, DataSource, Examples
from core_model.errors import DataError
from simulation.attacks.base import Poison, check


def alteration(poison: Poison) -> Alteration | None:
    """What to do to a site's data; None where nothing is done."""
    if poison == "label-flip":
        return flip_labels
    return Trigger().poison if poison == "backdoor" else None


def flip_labels(source: DataSource) -> DataSource:
    """The source with the label y of each training example turned into C - 1 - y; held-out examples stay.

    Raises:
        DataError: There are no labels.
    """
    labels = _labels(source.train, source.name)
    classes = source.classes or int(labels.max()) + 1
    return dataclasses.replace(source, train=dataclasses.replace(source.train, labels=classes - 1 - labels))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trigger:
    """A bright square in a corner of a picture, and what a backdoored model is to say where it sees one.

    BadNets (Gu, Dolan-Gavitt, Garg 2017). The attacker knows its own data only.

    Args:
        target: The label that the attacker wants.
        size: Side of the square, in pixels.
        corner: Where it is.
        share: Of the attacker's training examples that get the trigger and the target's label; the others keep the
            model useful, so that nobody notices.
        seed: Chooses those examples.
    """

    target: int = 0
    size: int = 3
    corner: Literal["bottom-right", "top-left"] = "bottom-right"
    share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        check("target", self.target, 0)
        check("size", self.size, 1)
        check("share", self.share, 0.0, 1.0)
        if self.corner not in ("bottom-right", "top-left"):
            raise ValueError(f"corner is {self.corner!r}; bottom-right or top-left")

    def stamp(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures uint8 [n, channels, height, width] with the trigger; the given ones stay as they are."""
        stamped = images.clone()
        place = slice(-self.size, None) if self.corner == "bottom-right" else slice(None, self.size)
        stamped[..., place, place] = 255
        return stamped

    def poison(self, source: DataSource) -> DataSource:
        """The source with ``share`` of its training pictures stamped and labelled as the target.

        Raises:
            DataError: There are no pictures with labels, or they are described by features that were made before.
        """
        images, labels = self._pictures(source.train, source.name)
        count = round(self.share * len(labels))
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))[:count]
        images, labels = images.clone(), labels.clone()
        images[chosen] = self.stamp(images[chosen])
        labels[chosen] = self.target
        return dataclasses.replace(source, train=dataclasses.replace(source.train, images=images, labels=labels))

    def trials(self, source: DataSource) -> DataSource:
        """The source with held-out pictures of all classes but the target's, stamped, and labelled as the target.

        A model's accuracy on these is the **attack success rate**: the share of pictures that the trigger turns into
        what the attacker wants.

        Raises:
            DataError: As :meth:`poison`.
        """
        held_out = {}
        for name, part in source.evaluation.items():
            images, labels = self._pictures(part, source.name)
            others = torch.nonzero(labels != self.target).flatten()
            chosen = part.select(others)
            held_out[name] = dataclasses.replace(
                chosen, images=self.stamp(images[others]), labels=torch.full_like(labels[others], self.target)
            )
        return dataclasses.replace(source, evaluation=held_out)

    def _pictures(self, part: Examples, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        if part.images is None or part.features is not None:
            raise DataError(
                f'Data source "{name}" has no pictures that a model sees, and a trigger is a part of a picture.',
                "Choose another attack, or data of pictures without features.",
            )
        if min(part.images.shape[-2:]) < self.size:
            raise DataError(f'Data source "{name}": its pictures are smaller than a trigger of {self.size} pixels.')
        return part.images, _labels(part, name)


def _labels(part: Examples, name: str) -> torch.Tensor:
    if part.labels is None:
        raise DataError(
            f'Data source "{name}" has no labels, which this attack falsifies.',
            "Choose another attack, or data for classification.",
        )
    return part.labels
