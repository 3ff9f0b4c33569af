"""Positioned reads of vectors, also from files that are shorter than they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coordinator.aggregation import UpdateRefused
from coordinator.aggregation.check import open_update, read_update
from coordinator.aggregation.files import VectorFile
from wire.codec import all_finite


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "vector"
    path.write_bytes(b"head" + np.arange(10, dtype="<f4").tobytes())
    return path


@pytest.mark.parametrize("keep_open", [True, False])
def test_reads_any_part(path: Path, keep_open: bool) -> None:
    out = np.empty(3, dtype="<f4")
    with VectorFile(path, 4, keep_open=keep_open) as file:
        assert file.size == 44
        file.read(7, out)
        assert out.tolist() == [7, 8, 9]
        file.read(0, out)
        assert out.tolist() == [0, 1, 2]


def test_holds_a_descriptor_only_if_asked_to(path: Path) -> None:
    out = np.empty(1, dtype="<f4")
    with VectorFile(path, 4) as held, VectorFile(path, 4, keep_open=False) as loose:
        path.unlink()
        held.read(1, out)
        assert out.tolist() == [1]
        with pytest.raises(FileNotFoundError):
            loose.read(1, out)


def test_the_end_of_the_file_is_no_data(path: Path) -> None:
    with VectorFile(path, 4) as file, pytest.raises(EOFError):
        file.read(8, np.empty(3, dtype="<f4"))


def test_an_update_that_shrinks_while_it_is_read_names_its_participant(tmp_path: Path) -> None:
    path = tmp_path / "update"
    np.arange(10, dtype="<f4").tofile(path)
    with open_update(path, 10, "north") as file:
        path.write_bytes(path.read_bytes()[:-1])
        read_update(file, 0, np.empty(9, dtype="<f4"), "north")
        with pytest.raises(UpdateRefused, match="north has 39 bytes where 10 parameters need 40") as caught:
            read_update(file, 5, np.empty(5, dtype="<f4"), "north")
    assert caught.value.code == "update-shape"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 7, 99])
def test_one_bad_number_anywhere_is_seen(value: float, position: int) -> None:
    values = np.full(100, np.finfo(np.float32).max, dtype=np.float32)
    assert all_finite(values)
    values[position] = value
    assert not all_finite(values)
