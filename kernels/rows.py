"""Rows of float32, read where they lie: one array, a list of rows, memory maps, or readers of files.

What every kernel over the updates starts from. Rows that lie contiguously in memory are handed on as addresses; others
(strided views, readers, memory maps where there are many) go through a staging area a slab of coordinates at a time.
Nothing is copied whole.
"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kernels.device import as_array, is_tensor

ITEM: Final = 4
"""Bytes of a float32."""

STAGING: Final = 1 << 22
"""Bytes that one thread may hold of rows that are copied piece by piece; more where pieces would be under 16 KiB."""

_PIECE: Final = 4_096  # coordinates of a row that are copied at a time, at least: 16 KiB
_RESIDENT: Final = 1 << 26  # bytes of memory maps that may stay mapped in before they are let go
_AROUND: Final = 1 << 21  # bytes that the system may map around a page that is touched: a large page at most
_MAPPED_ROWS: Final = 64  # so many large pages are 128 MiB for each thread; more mapped rows are copied piece by piece


@runtime_checkable
class RowReader(Protocol):
    """A row that is read piece by piece, such as a file."""

    def read(self, start: int, out: NDArray[np.float32], /) -> None:
        """Fill ``out`` [m] with the coordinates from ``start`` on."""


RowsLike: TypeAlias = "Sequence[NDArray[np.float32] | RowReader] | NDArray[np.float32] | Rows"


class Rows:
    """n rows of d coordinates.

    Args:
        rows: One array [n, d], or n arrays [d] (memory maps are arrays), or n readers, in any mixture. float32. A torch
            tensor in memory counts as an array and isn't copied.
        dimension: d; needed where every row is a reader.

    Raises:
        ValueError: No rows, or rows that aren't vectors of one length.
        TypeError: A row that isn't float32.
    """

    def __init__(self, rows: RowsLike, dimension: int | None = None) -> None:
        parts: list[Any] = rows.parts if isinstance(rows, Rows) else [as_array(part) for part in rows]
        if isinstance(rows, Rows) and dimension is None:
            dimension = rows.dimension
        if not parts:
            raise ValueError("no rows")
        for part in parts:
            if dimension is None and isinstance(part, np.ndarray) and part.ndim == 1:
                dimension = part.shape[0]
        if dimension is None:
            raise ValueError("row 0 is no vector: rows are arrays [d], or readers with `dimension` given")
        for index, part in enumerate(parts):
            _check(part, index, dimension)
        self.parts: list[Any] = parts
        self.dimension: int = dimension
        self._direct = all(_lies_contiguously(part) for part in parts)
        self._maps = [_Map(*found) for part in parts if (found := _map_of(part)) is not None]
        self._bases = np.array([part.ctypes.data if self._direct else 0 for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.parts)

    def window(self, start: int, out: NDArray[np.float32]) -> None:
        """Copy the coordinates from ``start`` on into ``out`` [n, k]."""
        for part, target in zip(self.parts, out, strict=True):
            if isinstance(part, np.ndarray):
                target[:] = part[start : start + out.shape[1]]
            else:
                part.read(start, target)
            if (found := _map_of(part)) is not None:
                _Map(*found).let_go(start, start + out.shape[1])

    def take(self, indices: Sequence[int]) -> Rows:
        """Some of the rows, in the order given; nothing is copied."""
        return Rows([self.parts[index] for index in indices], self.dimension)

    def slabs(self, start: int, stop: int, width: int, grain: int = 1) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """Go through coordinates ``start`` to ``stop``, at most ``width`` at a time.

        Args:
            start: First coordinate.
            stop: One past the last.
            width: Coordinates in a slab; fewer where rows have to be staged.
            grain: Slabs begin at multiples of it, counted from ``start``.

        Yields:
            The slab's first coordinate, its width, and the address of each row's part [n], valid until the next slab.
        """
        staged = not self._direct or len(self._maps) > _MAPPED_ROWS
        if staged:
            width = min(width, max(STAGING // (ITEM * len(self.parts)), _PIECE))
        elif self._maps:
            width = min(width, max(_RESIDENT // (ITEM * len(self._maps)), 1))
        width = max(width // grain, 1) * grain
        yield from self._staged(start, stop, width) if staged else self._in_place(start, stop, width)

    def _staged(self, start: int, stop: int, width: int) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        staging = np.empty((len(self.parts), min(width, stop - start)), dtype=np.float32)
        places = staging.ctypes.data + np.arange(len(staging), dtype=np.int64) * staging.strides[0]
        for first in range(start, stop, width):
            count = min(width, stop - first)
            self.window(first, staging[:, :count])
            yield first, count, places

    def _in_place(self, start: int, stop: int, width: int) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        mapped = 0
        for first in range(start, stop, width):
            count = min(width, stop - first)
            yield first, count, self._bases + ITEM * first
            mapped += ITEM * count * len(self._maps)
            if mapped > _RESIDENT // 2 or (self._maps and first + count == stop):
                for found in self._maps:
                    found.let_go(max(first + count - mapped // (ITEM * len(self._maps)), 0), first + count)
                mapped = 0


@dataclasses.dataclass(frozen=True)
class _Map:
    """The memory map behind a row, and the row's place in it in bytes."""

    owner: mmap.mmap
    offset: int

    def let_go(self, start: int, stop: int) -> None:
        """Unmap the pages between two coordinates: they stay in the system's cache, not in ours.

        The system maps a neighbourhood at each fault, so what lies around is unmapped as well; whoever needs it still
        (another row, another thread) has it mapped again.
        """
        first = max(self.offset + ITEM * start - _AROUND, 0) // mmap.PAGESIZE * mmap.PAGESIZE
        last = min(self.offset + ITEM * stop + _AROUND, len(self.owner))
        if last > first:
            self.owner.madvise(mmap.MADV_DONTNEED, first, last - first)


@dataclasses.dataclass(frozen=True)
class Span:
    """Coordinates ``start`` to ``stop``: one thread's share."""

    start: int
    stop: int


def over_spans(dimension: int, threads: int, grain: int, work: Callable[[Span], None]) -> None:
    """Do ``work`` on as many spans of coordinates as there are threads, side by side.

    Spans begin at multiples of ``grain``. What ``work`` calls should release the interpreter's lock.
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}, but must be at least 1")
    pieces = -(-dimension // grain)
    each = -(-pieces // threads) * grain if pieces else grain
    spans = [Span(start, min(start + each, dimension)) for start in range(0, dimension, each)]
    if len(spans) <= 1:
        for span in spans:
            work(span)
        return
    with ThreadPoolExecutor(len(spans)) as pool:
        for done in [pool.submit(work, span) for span in spans]:
            done.result()


def _check(part: Any, index: int, dimension: int) -> None:
    if not isinstance(part, np.ndarray):
        if is_tensor(part):
            raise TypeError(
                f"row {index} is a tensor on {part.device}, and other rows are in memory: bring them together"
            )
        if not isinstance(part, RowReader):
            raise TypeError(f"row {index} is a {type(part).__name__}, neither an array nor a reader")
        return
    if part.dtype != np.float32:
        raise TypeError(f"row {index} is {part.dtype}, not float32")
    if part.shape != (dimension,):
        raise ValueError(
            f"row {index} has shape {part.shape}, not ({dimension},) like the first: rows are vectors of one length"
        )


def _lies_contiguously(part: Any) -> bool:
    return isinstance(part, np.ndarray) and part.flags.c_contiguous and part.flags.aligned


def _map_of(part: Any) -> tuple[mmap.mmap, int] | None:
    """The map behind a row and the row's place in it in bytes; None for other rows and for private copies."""
    if not isinstance(part, np.memmap) or part.mode == "c" or not part.flags.c_contiguous:
        return None
    owner = part._mmap  # type: ignore[attr-defined]  # the only way to its pages
    if not isinstance(owner, mmap.mmap):
        return None
    return owner, part.ctypes.data - np.frombuffer(owner, dtype=np.uint8).ctypes.data
