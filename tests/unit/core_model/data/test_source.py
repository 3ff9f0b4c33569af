"""From a string to data."""

import pytest
import torch

from core_model import DataError
from core_model.data import Examples, is_user_code, open_source


@pytest.mark.parametrize(
    ("data", "yes"),
    [("pkg.mod:fn", True), ("emoji:noto", False), ("digits:1/2", False), ("folder:/x", False), ("/data/x", False)],
)
def test_only_a_function_is_user_code(data, yes):
    assert is_user_code(data) is yes


def test_digits_in_parts_are_disjoint_and_share_the_test():
    parts = [open_source(f"digits:{k}/3?split=dirichlet&alpha=0.3&seed=4") for k in (1, 2, 3)]
    assert sum(len(part.train) for part in parts) == 1797 - 360
    whole = open_source("digits")
    assert len(whole.train) == 1437 and whole.classes == 10
    for part in parts:
        assert torch.equal(part.evaluation["test"].images, whole.evaluation["test"].images)
    assert whole.train.images.dtype == torch.uint8 and whole.train.images.shape[1:] == (1, 8, 8)
    assert whole.train.images.max() == 255


@pytest.mark.parametrize(
    "data", ["digits:a/b", "digits:1", "digits:1/3?split", "digits:1/0", "digits:9/3", "emoji:apple"]
)
def test_a_source_that_is_not_understood_is_named(data):
    with pytest.raises(DataError) as caught:
        open_source(data)
    assert data in caught.value.message and caught.value.hint


def test_a_folder_that_is_not_there():
    with pytest.raises(DataError, match="not a folder"):
        open_source("/no/such/folder")


def test_examples_are_aligned():
    with pytest.raises(DataError, match="equally many"):
        Examples(images=torch.zeros(2, 1, 8, 8), labels=torch.zeros(3))
    some = Examples(captions=[("a",), ("b",), ("c",)], labels=torch.arange(3), persons=torch.arange(3)).select([2, 0])
    assert some.persons.tolist() == [2, 0]
    assert list(some.captions) == [("c",), ("a",)] and some.labels.tolist() == [2, 0] and some.images is None
    assert len(some) == 2
