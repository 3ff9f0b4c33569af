"""Splits: disjoint, complete, seeded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_model import DataError
from core_model.data.partition import dirichlet, iid, partition, shards

LABELS = np.arange(1000) % 10


@pytest.mark.parametrize(
    "cut",
    [
        lambda seed: iid(1000, 7, seed),
        lambda seed: dirichlet(LABELS, 7, 0.1, seed),
        lambda seed: shards(LABELS, 7, 2, seed),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_example_belongs_to_exactly_one_part(cut, seed):
    parts = cut(seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
    assert all(np.array_equal(a, b) for a, b in zip(parts, cut(seed), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(parts, cut(seed + 2), strict=True))


@given(st.integers(1, 30), st.floats(0.001, 100), st.integers(0, 5))
def test_no_part_is_empty(parts, alpha, seed):
    assert all(len(part) for part in dirichlet(LABELS[:60], parts, alpha, seed))


def test_small_alpha_means_few_classes_and_shards_mean_at_most_so_many():
    few = np.mean([len(np.unique(LABELS[part])) for part in dirichlet(LABELS, 10, 0.05, 0)])
    many = np.mean([len(np.unique(LABELS[part])) for part in dirichlet(LABELS, 10, 100.0, 0)])
    assert few < 5 < 9 < many
    assert max(len(np.unique(LABELS[part])) for part in shards(LABELS, 10, 2, 0)) <= 4


@pytest.mark.parametrize(
    ("part", "parts", "options", "reason"),
    [
        (0, 3, {}, "part 0 of 3"),
        (4, 3, {}, "part 4 of 3"),
        (1, 2000, {}, "out of range"),
        (1, 3, {"splitt": "iid"}, '"splitt"'),
        (1, 3, {"split": "sorted"}, '"sorted"'),
        (1, 3, {"split": "dirichlet", "alpha": "0"}, "alpha = 0"),
        (1, 3, {"seed": "x"}, "seed = x"),
        (1, 3, {"seed": "nan"}, "seed = nan"),
        (1, 900, {"split": "shards"}, "exceed 1000"),
    ],
)
def test_what_cannot_be_cut_is_said(part, parts, options, reason):
    with pytest.raises(DataError, match=reason) as caught:
        partition(LABELS, part, parts, options, "digits:test")
    assert "digits:test" in caught.value.message
