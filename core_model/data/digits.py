"""scikit-learn's handwritten digits: 1,797 pictures of 8 x 8 pixels, always there, for tests and first steps."""

from __future__ import annotations

import numpy as np
import torch

from core_model.data.examples import DataSource, Examples
from core_model.data.partition import partition
from core_model.errors import DataError

_TEST = 360
_HINT = "pip install scikit-learn"


def load_digits(part: int, parts: int, options: dict[str, str], source: str) -> DataSource:
    """Part ``part`` of ``parts`` of the training digits; 360 digits, the same for all, are the test.

    Raises:
        DataError: If scikit-learn isn't installed or an option can't be used.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise DataError("The digits come with scikit-learn, which isn't installed.", _HINT) from None
    bunch = datasets.load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    everything = Examples(images=images, labels=labels)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:_TEST], order[_TEST:]
    mine = train[partition(labels.numpy()[train], part, parts, options, source)]
    return DataSource(
        name=source,
        train=everything.select(torch.from_numpy(mine)),
        evaluation={"test": everything.select(torch.from_numpy(test))},
        classes=10,
    )
