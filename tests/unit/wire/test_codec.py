"""Checkpoint headers and updates, honest and hostile."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from wire import CheckpointHeader, DataError, RefusedError, check_update, read_header
from wire.codec import MAX_HEADER_BYTES


def framed(table: Any) -> bytes:
    body = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(body)) + body


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(prefix: bytes) -> str:
    with pytest.raises(RefusedError) as caught:
        CheckpointHeader.parse(prefix)
    assert caught.value.code == "manifest-mismatch"
    return caught.value.message


def test_a_file_of_the_safetensors_library(tmp_path: Path) -> None:
    tensors = {"b": np.ones((3, 4), np.float32), "a": np.zeros(5, np.float32), "scalar": np.ones((), np.float32)}
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    header = read_header(path)
    assert header.dimension == 18
    assert header.size == path.stat().st_size
    assert header.manifest_hash == hashlib.sha256(path.read_bytes()[: header.data_offset]).digest()
    assert header.data_offset == CheckpointHeader.length(path.read_bytes()[:8])


def test_what_stands_behind_the_header_does_not_matter() -> None:
    prefix = framed({"a": entry([2], 0, 8), "__metadata__": {"x": "y"}})
    assert CheckpointHeader.parse(prefix + b"data") == CheckpointHeader.parse(prefix)


@pytest.mark.parametrize(
    ("prefix", "part"),
    [
        (b"", "length field"),
        (b"1234567", "length field"),
        (struct.pack("<Q", 2**63) + b"{}", "allowed"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "allowed"),
        (struct.pack("<Q", 1) + b"{", "allowed"),
        (struct.pack("<Q", 100) + b"{}", "of which"),
        (framed(b"{]"), "JSON"),
        (framed(b"[" * 100_000), "JSON"),
        (framed(b'"' + b"\xff" * 8 + b'"'), "JSON"),
        (framed([1]), "table"),
        (framed({}), "no parameters"),
        (framed({"a": entry([0], 0, 0)}), "no parameters"),
        (framed({"a": 1}), "description"),
        (framed({"a": entry([1], 0, 2, "F16")}), "'F16'"),
        (framed({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}), "not at 4"),
        (framed({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}), "not at 4"),
        (framed({"a": entry([1], 4, 8)}), "not at 0"),
        (framed({"a": entry([2], 0, 4)}), "can't have 4"),
        (framed({"a": entry([-1], 0, -4)}), "impossible"),
        (framed({"a": entry([2**60, 2**60], 0, 4)}), "impossible"),
        (framed({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}), "impossible"),
        (framed({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}), "impossible"),
        (framed({"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}), "impossible"),
        (framed(b'{"a": 1, "a": 1}'), "twice"),
    ],
)
def test_hostile_headers(prefix: bytes, part: str) -> None:
    assert part in refused(prefix)


@given(st.binary(max_size=400))
def test_fuzz_bytes(data: bytes) -> None:
    refused(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
hostile_entry = st.fixed_dictionaries(
    {}, optional={"dtype": st.just("F32") | json_values, "shape": json_values, "data_offsets": json_values}
)


@given(st.dictionaries(st.text(max_size=4), json_values | hostile_entry, max_size=3))
def test_fuzz_json(table: dict[str, Any]) -> None:
    try:
        header = CheckpointHeader.parse(framed(table))
    except RefusedError:
        return
    assert header.dimension > 0


@given(st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=6))
def test_any_contiguous_manifest_is_read(shapes: list[list[int]]) -> None:
    table, position = {}, 0
    for index, shape in enumerate(shapes):
        size = 4 * int(np.prod(shape, dtype=int))
        table[f"t{index}"] = entry(shape, position, position + size)
        position += size
    assert CheckpointHeader.parse(framed(table)).dimension * 4 == position


def test_a_file_that_is_not_as_long_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for extra in (b"1234567", b"123456789"):
        path.write_bytes(framed({"a": entry([2], 0, 8)}) + extra)
        with pytest.raises(RefusedError, match="describes"):
            read_header(path)
    with pytest.raises(DataError, match="missing"):
        read_header(tmp_path / "missing")


def update(tmp_path: Path, values: np.ndarray[Any, Any]) -> Path:
    path = tmp_path / "update"
    path.write_bytes(values.astype("<f4").tobytes())
    return path


SLICE = 1 << 18


@pytest.mark.parametrize("dimension", [1, 7, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE + 3])
def test_a_good_update(tmp_path: Path, dimension: int) -> None:
    check_update(update(tmp_path, np.full(dimension, 3.4e38)), dimension)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 5, SLICE - 1, SLICE, 2 * SLICE + 2])
def test_the_first_bad_number_is_named(tmp_path: Path, bad: float, position: int) -> None:
    values = np.zeros(2 * SLICE + 3, np.float32)
    values[position] = bad
    values[-1] = np.nan
    with pytest.raises(RefusedError, match=f"position {position}$") as caught:
        check_update(update(tmp_path, values), len(values))
    assert caught.value.code == "update-not-finite"


@pytest.mark.parametrize("dimension", [9, 11, 1 << 40])
def test_the_shape_must_fit(tmp_path: Path, dimension: int) -> None:
    path = update(tmp_path, np.zeros(10))
    with pytest.raises(RefusedError, match="40 bytes") as caught:
        check_update(path, dimension)
    assert caught.value.code == "update-shape"
    path.write_bytes(bytes(41))
    with pytest.raises(RefusedError, match="41 bytes"):
        check_update(path, 10)
    with pytest.raises(DataError):
        check_update(tmp_path / "missing", 10)
