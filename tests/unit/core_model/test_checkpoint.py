"""Checkpoint files: readable by anyone, loaded only into the model they were made for."""

import hashlib

import numpy as np
import pytest
import safetensors.numpy
from torch import nn

from core_model import Manifest, ManifestError, flatten, read_manifest, read_vector, write_checkpoint
from wire import CheckpointHeader


@pytest.fixture
def saved(tmp_path):
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    manifest, vector = Manifest.of(module), flatten(module)
    path = tmp_path / "model.safetensors"
    digest = write_checkpoint(path, manifest, vector)
    return path, manifest, vector, digest, module


def test_the_safetensors_library_reads_it(saved):
    path, _, _, digest, module = saved
    tensors = safetensors.numpy.load_file(path)
    assert list(tensors) and set(tensors) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(tensors[name], tensor.numpy())
    assert hashlib.sha256(path.read_bytes()).digest() == digest
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_wire_reads_the_same_header(saved):
    path, manifest, _, _, _ = saved
    header = CheckpointHeader.parse(path.read_bytes())
    assert (header.dimension, header.manifest_hash) == (manifest.dimension, manifest.digest)
    assert header.data_offset == len(manifest.header())


def test_the_data_section_is_the_vector(saved):
    path, manifest, vector, _, _ = saved
    assert path.read_bytes()[len(manifest.header()) :] == vector.tobytes()
    np.testing.assert_array_equal(read_vector(path, manifest), vector)
    assert read_manifest(path) == manifest


def test_another_model_refuses_it(saved):
    path, _, _, _, _ = saved
    with pytest.raises(ManifestError, match="aren't those of this model"):
        read_vector(path, Manifest.of(nn.Linear(3, 4)))


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0"])
def test_truncated_and_overlong_files_are_refused(saved, change):
    path, manifest, _, _, _ = saved
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ManifestError, match="bytes where its header promises"):
        read_vector(path, manifest)
    with pytest.raises(ManifestError, match="bytes where its header promises"):
        read_manifest(path)


@pytest.mark.parametrize(
    "content", [b"", b"abc", (2**60).to_bytes(8, "little") + b"{}", b"\x08" + b"\0" * 7 + b"not json"]
)
def test_other_files_are_refused_before_anything_is_allocated(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=str(path)):
        read_manifest(path)


def test_a_vector_that_does_not_fit_leaves_the_old_file(saved):
    path, manifest, vector, _, _ = saved
    with pytest.raises(ManifestError):
        write_checkpoint(path, manifest, vector[1:])
    np.testing.assert_array_equal(read_vector(path, manifest), vector)
