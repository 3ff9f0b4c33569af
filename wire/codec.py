"""The two kinds of vector files, read without torch and without trusting them.

A *checkpoint* is a safetensors file whose data section is the flat vector: all tensors F32, contiguous, without gaps.
An *update* is the bare vector: ``4 * d`` bytes, little-endian float32.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from wire.errors import DataError, RefusedError

MAX_HEADER_BYTES: Final = 16 << 20
"""Of a checkpoint's JSON header."""

_LENGTH_BYTES = 8
_SLICE_FLOATS = 1 << 16  # 256 KiB of float32 at a time: they stay in the cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointHeader:
    """What a checkpoint's header says.

    Args:
        dimension: Parameters d, the float32 numbers in the data section.
        data_offset: Bytes in front of the data section.
        manifest_hash: SHA-256 of those bytes.
    """

    dimension: int
    data_offset: int
    manifest_hash: bytes

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.data_offset + 4 * self.dimension

    @staticmethod
    def length(prefix: bytes) -> int:
        """Bytes of header (length field and JSON) that :meth:`parse` needs, from the first 8 bytes of a file.

        Raises:
            RefusedError: ``manifest-mismatch`` if the length is impossible.
        """
        if len(prefix) < _LENGTH_BYTES:
            _refuse(f"the checkpoint has {len(prefix)} bytes, less than the length field of its header")
        length = int.from_bytes(prefix[:_LENGTH_BYTES], "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            _refuse(f"the checkpoint's header would have {length} bytes; 2 to {MAX_HEADER_BYTES} are allowed")
        return _LENGTH_BYTES + length

    @classmethod
    def parse(cls, prefix: bytes) -> CheckpointHeader:
        """Read a header.

        Args:
            prefix: The first bytes of a checkpoint, at least the whole header.

        Raises:
            RefusedError: ``manifest-mismatch``, with what is wrong.
        """
        end = cls.length(prefix)
        if len(prefix) < end:
            _refuse(f"the checkpoint's header has {end} bytes, of which {len(prefix)} are there")
        try:
            table = json.loads(prefix[_LENGTH_BYTES:end], object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            _refuse(f"the checkpoint's header is not JSON: {error}")
        if not isinstance(table, dict):
            _refuse("the checkpoint's header is not a table")
        spans = sorted(_span(name, entry) for name, entry in table.items() if name != "__metadata__")
        position = 0
        for begin, stop, name in spans:
            if begin != position:
                _refuse(f"tensor {name!r} begins at byte {begin} of the data, not at {position}")
            position = stop
        if position == 0:
            _refuse("the checkpoint holds no parameters")
        digest = hashlib.sha256(prefix[:end]).digest()
        return cls(dimension=position // 4, data_offset=end, manifest_hash=digest)


def _span(name: str, entry: Any) -> tuple[int, int, str]:
    if not isinstance(entry, dict):
        _refuse(f"tensor {name!r} has no description")
    if entry.get("dtype") != "F32":
        _refuse(f"tensor {name!r} has dtype {entry.get('dtype')!r}; a checkpoint holds F32 only")
    shape, offsets = _naturals(entry.get("shape")), _naturals(entry.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        _refuse(f"tensor {name!r} has an impossible shape or offsets")
    begin, stop = offsets
    if stop - begin != 4 * math.prod(shape):
        _refuse(f"tensor {name!r} of shape {shape} can't have {stop - begin} bytes")
    return begin, stop, name


def _naturals(value: Any) -> list[int] | None:
    """``value`` if it is a short list of numbers that sizes can have, else None."""
    if not isinstance(value, list) or len(value) > 64:
        return None
    if not all(type(item) is int and 0 <= item < 1 << 48 for item in value):
        return None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name appears twice")
    return table


def _refuse(message: str) -> NoReturn:
    raise RefusedError("manifest-mismatch", message, "Is this a checkpoint that fedloom wrote?")


def read_header(path: Path) -> CheckpointHeader:
    """Read and check a checkpoint's header, and that the file has the size it says.

    Raises:
        RefusedError: ``manifest-mismatch``.
        DataError: If the file can't be read.
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(_LENGTH_BYTES)
            prefix += file.read(CheckpointHeader.length(prefix) - _LENGTH_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    header = CheckpointHeader.parse(prefix)
    if header.size != size:
        _refuse(f"the checkpoint has {size} bytes; its header describes {header.size}")
    return header


def check_update(path: Path, dimension: int) -> None:
    """Refuse an update that isn't ``dimension`` finite numbers. Reads the file in slices of 256 KiB.

    Args:
        path: Of the update blob.
        dimension: Parameters d of the model.

    Raises:
        RefusedError: ``update-shape`` or ``update-not-finite``, which names the first bad number.
        DataError: If the file can't be read.
    """
    try:
        size = path.stat().st_size
        if size != 4 * dimension:
            raise RefusedError(
                "update-shape",
                f"the update has {size} bytes; {dimension} parameters need {4 * dimension}",
                "The participant trains another model, or its update was written by another version.",
            )
        with path.open("rb") as file:
            buffer = np.empty(min(_SLICE_FLOATS, dimension), dtype="<f4")
            for start in range(0, dimension, _SLICE_FLOATS):
                part = buffer[: min(_SLICE_FLOATS, dimension - start)]
                if file.readinto(part.data.cast("B")) != part.nbytes:
                    raise DataError(f"{path}: the file became shorter while it was read")
                _check_finite(part, start)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def all_finite(values: np.ndarray[Any, np.dtype[np.float32]]) -> bool:
    """Whether [m] holds no NaN and no infinity; m at least 1.

    NaN passes through a minimum and infinity through one of the two: two reads in cache and no array of flags.
    """
    return bool(np.isfinite(values.min()) and np.isfinite(values.max()))


def _check_finite(part: np.ndarray[Any, np.dtype[np.float32]], start: int) -> None:
    if all_finite(part):
        return
    finite = np.isfinite(part)
    first = int(np.argmin(finite))
    raise RefusedError(
        "update-not-finite",
        f"the update holds {part[first]} at position {start + first}",
        "The participant's training diverged: lower the learning rate or look at its data.",
    )
