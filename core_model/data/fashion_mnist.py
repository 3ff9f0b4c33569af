"""Fashion-MNIST (Xiao et al. 2017) from the files of Debian's package ``dataset-fashion-mnist``."""

from __future__ import annotations

import functools
import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from core_model.data.examples import DataSource, Examples
from core_model.data.partition import partition
from core_model.errors import DataError

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_HINT = "apt-get install dataset-fashion-mnist    (or set FEDLOOM_FASHION_MNIST to the folder with its four .gz files)"
_MAX_BYTES = 256 * 1024 * 1024


def folder() -> Path:
    """``$FEDLOOM_FASHION_MNIST``, or where Debian's package puts the files."""
    named = os.environ.get("FEDLOOM_FASHION_MNIST")
    return Path(named).expanduser() if named else DEFAULT_FOLDER


def load_fashion_mnist(part: int, parts: int, options: dict[str, str], source: str) -> DataSource:
    """Part ``part`` of ``parts`` of the 60,000 training pictures; the 10,000 test pictures are the same for all.

    Raises:
        DataError: If the files are missing or damaged, or an option can't be used.
    """
    train = _read(folder(), "train")
    assert train.labels is not None
    mine = partition(train.labels.numpy(), part, parts, options, source)
    return DataSource(
        name=source,
        train=train.select(torch.from_numpy(mine)),
        evaluation={"test": _read(folder(), "t10k")},
        classes=10,
    )


def check_fashion_mnist() -> str:
    """Look at the headers of the four files and return their folder.

    Raises:
        DataError: If one is missing or isn't what its name says.
    """
    for name in ("train", "t10k"):
        read_idx(folder() / f"{name}-labels-idx1-ubyte.gz", 1)
    for name in ("train", "t10k"):
        _open_header(folder() / f"{name}-images-idx3-ubyte.gz", 3)
    return str(folder())


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes.

    The size is taken from the header, bounded, and compared with what is there.

    Raises:
        DataError: If the file is missing, damaged, or of another type or shape.
    """
    shape = _open_header(path, dimensions)
    expected = int(np.prod(shape, dtype=np.int64))
    try:
        with gzip.open(path, "rb") as file:
            file.seek(4 + 4 * dimensions)
            content = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}.", _HINT) from None
    if len(content) != expected:
        raise DataError(f"{path} holds {len(content)} bytes where its header says {expected}.", _HINT)
    return np.frombuffer(content, np.uint8).reshape(shape)


def _open_header(path: Path, dimensions: int) -> tuple[int, ...]:
    try:
        with gzip.open(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
    except FileNotFoundError:
        raise DataError(f"{path}: Fashion-MNIST isn't installed here.", _HINT) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}.", _HINT) from None
    if len(header) != 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{path} isn't an IDX file of bytes with {dimensions} dimensions.", _HINT)
    shape = tuple(int.from_bytes(header[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))
    if int(np.prod(shape, dtype=np.float64)) > _MAX_BYTES:
        raise DataError(f"{path} announces {shape}, more than Fashion-MNIST has.", _HINT)
    return shape


@functools.cache
def _read(place: Path, name: str) -> Examples:
    """Read once in a process, where a simulation has many institutions; what is returned is never written to."""
    images = read_idx(place / f"{name}-images-idx3-ubyte.gz", 3)
    labels = read_idx(place / f"{name}-labels-idx1-ubyte.gz", 1)
    if len(images) != len(labels) or images.shape[1:] != (28, 28) or (len(labels) and int(labels.max()) > 9):
        raise DataError(f"{place}: pictures {images.shape} and labels {labels.shape} don't fit together.", _HINT)
    pixels = torch.from_numpy(images.copy()).unsqueeze(1)
    return Examples(images=pixels, labels=torch.from_numpy(labels.astype(np.int64)))
