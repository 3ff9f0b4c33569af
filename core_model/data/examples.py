"""What a data source hands to a task: pictures, captions and labels as plain tensors and lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch

from core_model.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Aligned examples; what a source doesn't have is None.

    Attributes:
        images: uint8 [n, channels, height, width], 1 or 3 channels.
        captions: For each example one or more texts that describe it; the first is the one used in evaluation.
        labels: int64 [n].
        persons: int64 [n], a number for the person whose record each is, where one person may have several. It follows
            from the person alone. For private training.
        features: float [n, d], numbers that describe each example and follow from it alone; for a linear model.
    """

    images: torch.Tensor | None = None
    captions: Sequence[Sequence[str]] | None = None
    labels: torch.Tensor | None = None
    persons: torch.Tensor | None = None
    features: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse parts of different length."""
        parts = (self.images, self.captions, self.labels, self.persons, self.features)
        sizes = {len(part) for part in parts if part is not None}
        if len(sizes) != 1:
            raise DataError(
                f"Pictures, captions, labels, persons and features must be equally many, got {sorted(sizes)}."
            )

    def __len__(self) -> int:
        """Number of examples."""
        return next(len(part) for part in (self.images, self.captions, self.labels, self.features) if part is not None)

    def select(self, indices: Sequence[int] | torch.Tensor) -> Examples:
        """Those examples, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return Examples(
            images=None if self.images is None else self.images[index],
            captions=None if self.captions is None else [self.captions[i] for i in index.tolist()],
            labels=None if self.labels is None else self.labels[index],
            persons=None if self.persons is None else self.persons[index],
            features=None if self.features is None else self.features[index],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSource:
    """One institution's data.

    Attributes:
        name: The source string it came from.
        train: What the institution trains on.
        evaluation: Held-out examples by name; the first is the one whose score matters most.
        classes: Number of classes where there are labels, else 0.
    """

    name: str
    train: Examples
    evaluation: Mapping[str, Examples]
    classes: int = 0


Alteration = Callable[[DataSource], DataSource]
"""What is done to a site's data before anything learns from them; the simulator's hostile sites poison theirs so."""
