"""The flat vector: order, hash, and what may travel."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from core_model import Manifest, ManifestError, difference, flatten, load


class Odd(nn.Module):
    """Tied weights, float and integer buffers, a scalar."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.tied = self.first.weight
        self.norm = nn.BatchNorm1d(2)
        self.scalar = nn.Parameter(torch.tensor(5.0))
        self.register_buffer("index", torch.arange(4))
        self.register_buffer("scratch", torch.ones(2), persistent=False)


def test_entries_follow_the_state_dict_without_integers_and_twins():
    manifest = Manifest.of(Odd())
    assert [entry.name for entry in manifest.entries] == [
        *("tied", "scalar", "first.bias"),
        *("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"),
    ]
    assert manifest.dimension == 6 + 1 + 2 + 2 + 2 + 2 + 2
    offset = 0
    for entry in manifest.entries:
        assert (entry.offset, entry.dtype) == (offset, "F32")
        offset += entry.size


def test_flatten_and_load_are_inverse_and_keep_tensors_in_place():
    module, other = Odd(), Odd()
    weight = other.first.weight
    vector = flatten(module)
    load(other, vector)
    assert other.first.weight is weight and other.tied is weight
    np.testing.assert_array_equal(flatten(other), vector)
    np.testing.assert_array_equal(other.index, torch.arange(4))


def test_difference_is_what_changed():
    module = Odd()
    base = flatten(module)
    with torch.no_grad():
        module.scalar += 2
    update = difference(module, base)
    assert update.dtype == np.float32
    assert np.flatnonzero(update).tolist() == [
        next(e.offset for e in Manifest.of(module).entries if e.name == "scalar")
    ]
    np.testing.assert_array_equal(base + update, flatten(module))


@pytest.mark.parametrize("vector", [np.zeros(3, np.float32), np.zeros(17), np.zeros((17, 1), np.float32)])
def test_a_vector_that_does_not_fit_changes_nothing(vector):
    module = Odd()
    before = flatten(module)
    with pytest.raises(ManifestError, match="Expected a float32 vector of 17"):
        load(module, vector)
    with pytest.raises(ManifestError, match="Expected a float32 vector of 17"):
        Manifest.of(module).check(vector)
    np.testing.assert_array_equal(flatten(module), before)


def test_models_that_cannot_travel_are_refused():
    with pytest.raises(ManifestError, match="no floating-point parameters"):
        Manifest.of(nn.ReLU())
    with pytest.raises(ManifestError, match=r'"weight" is float64'):
        Manifest.of(nn.Linear(2, 2).double())
    with pytest.raises(ManifestError, match="on meta"):
        Manifest.of(nn.Linear(2, 2, device="meta"))


@given(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=5))
def test_header_is_canonical_and_reads_back(shapes):
    module = nn.ParameterList([torch.zeros(shape) for shape in [*shapes, [1]]])
    manifest = Manifest.of(module)
    header = manifest.header()
    assert len(header) % 8 == 0 and int.from_bytes(header[:8], "little") == len(header) - 8
    again = Manifest.parse(header)
    assert again == manifest and again.digest == manifest.digest and again.dimension == manifest.dimension


def test_the_hash_tells_models_apart():
    assert Manifest.of(nn.Linear(2, 3)).digest != Manifest.of(nn.Linear(3, 2)).digest
    assert Manifest.of(nn.Linear(2, 3)).digest == Manifest.of(nn.Linear(2, 3)).digest


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b'{"a":3}', b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', b"\xff",
    ],
)  # fmt: skip
def test_foreign_headers_are_refused(text):
    text += b" " * (-len(text) % 8)
    with pytest.raises(ManifestError, match="Not the header"):
        Manifest.parse(len(text).to_bytes(8, "little") + text)
