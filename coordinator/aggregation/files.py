"""Vectors in files: positioned reads into arrays that are reused.

Reads and not memory maps: the pages of a map count as the process's resident memory for as long as the kernel likes,
and a file that shrinks under a map kills the process instead of raising an error.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

ITEM: Final = 4
"""Bytes of a float32."""


class VectorFile:
    """A file of which a part is a vector of little-endian float32. Use as a context manager.

    Args:
        path: The file.
        offset: Bytes before the vector.
        keep_open: Hold a file descriptor between reads. With very many files at once say False; each read then opens
            the file again.

    Raises:
        OSError: The file can't be opened.
    """

    def __init__(self, path: Path, offset: int = 0, *, keep_open: bool = True) -> None:
        self.path = path
        self._offset = offset
        self._descriptor: int | None = None
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(descriptor).st_size
        if keep_open:
            self._descriptor = descriptor
        else:
            os.close(descriptor)

    def read(self, start: int, out: NDArray[np.float32]) -> None:
        """Fill ``out`` [m] with the coordinates from ``start`` on.

        Raises:
            EOFError: The file ends before.
            OSError: The file can't be read.
        """
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _read_exactly(descriptor, self._offset + ITEM * start, memoryview(out.data).cast("B"))
        finally:
            if self._descriptor is None:
                os.close(descriptor)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_exactly(descriptor: int, position: int, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], position + done)
        if count == 0:
            raise EOFError
        done += count
