"""IDX files: sizes are checked before they are believed."""

import gzip

import numpy as np
import pytest

from core_model import DataError
from core_model.data import open_source
from core_model.data.fashion_mnist import check_fashion_mnist, read_idx


def idx(shape, content=None):
    header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    size = int(np.prod(shape))
    return gzip.compress(header + (bytes(i % 10 for i in range(size)) if content is None else content))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLOOM_FASHION_MNIST", str(tmp_path))
    for name, count in (("train", 60), ("t10k", 20)):
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(idx((count, 28, 28)))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx((count,)))
    return tmp_path


def test_a_part_of_the_training_set_and_all_of_the_test(folder):
    source = open_source("fashion-mnist:2/3?split=shards&shards=2")
    assert (len(source.train), len(source.evaluation["test"]), source.classes) == (20, 20, 10)
    assert source.train.images.shape == (20, 1, 28, 28)
    assert len(np.unique(source.train.labels)) <= 4
    assert check_fashion_mnist() == str(folder)


def test_files_are_read_once_for_all_institutions_of_a_process(folder):
    one, other = open_source("fashion-mnist:1/3"), open_source("fashion-mnist:2/3")
    assert one.evaluation["test"] is other.evaluation["test"]
    assert not np.array_equal(one.train.images, other.train.images)


def test_missing_files_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDLOOM_FASHION_MNIST", str(tmp_path))
    with pytest.raises(DataError, match="isn't installed") as caught:
        open_source("fashion-mnist:1/4")
    assert "apt-get install dataset-fashion-mnist" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not gzip", "damaged"),
        (idx((60,))[:-9], "damaged"),
        (idx((60,), b"123"), "holds 3 bytes where its header says 60"),
        (idx((60,), b"1" * 61), "holds 61 bytes"),
        (idx((6, 10)), "isn't an IDX file"),
        (gzip.compress(b"abc"), "isn't an IDX file"),
        (idx((2**31,), b""), "more than Fashion-MNIST has"),
    ],
)
def test_damaged_files_are_refused(folder, content, reason):
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_idx(path, 1)
    assert str(path) in caught.value.message
    with pytest.raises(DataError, match=reason):
        check_fashion_mnist()


def test_pictures_and_labels_that_do_not_fit(folder):
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(idx((59,)))
    with pytest.raises(DataError, match="don't fit together"):
        open_source("fashion-mnist:1/4")


def test_debians_files_where_they_are(monkeypatch):
    from core_model.data.fashion_mnist import DEFAULT_FOLDER

    monkeypatch.delenv("FEDLOOM_FASHION_MNIST", raising=False)
    if not DEFAULT_FOLDER.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist isn't installed")
    source = open_source("fashion-mnist:1/6?split=dirichlet")
    assert len(source.evaluation["test"]) == 10_000 and 1 <= len(source.train) < 60_000
