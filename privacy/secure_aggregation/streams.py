"""Mask streams: a 32-byte seed becomes as many ring elements as a vector has coordinates, added where they are needed.

The stream of a seed is ``HKDF-Expand(SHA-256, seed, info=b"mask" + name, 48)``, read as a 32-byte AES-256 key and a
16-byte initial counter block, and then AES-256 in counter mode; the counter is one big-endian number of 128 bits that
wraps. Coordinate ``k`` of a ring of ``B`` bits is the keystream's bytes ``[k B/8, (k + 1) B/8)``, little endian. So a
stream can be entered at any coordinate, and slices of one vector can be computed in different processes.

The speed is that of AES as long as the sum stays out of its way: a vector is worked through in tiles, all streams pass
over one tile before the next, and the tile, the keystream and the zeros that are encrypted to get it stay in the
second-level cache together.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from numpy.typing import NDArray

from privacy.keystream import Generator, keystream
from privacy.secure_aggregation.errors import SecureAggregationError

MAIN: Final = b"main"
"""Name of the stream that masks an update."""
TAIL: Final = b"tail"
"""Name of the stream that masks the tail block."""

SEED_BYTES: Final = 32
TILE_BYTES: Final = 128 * 1024
"""Three of them (zeros, keystream, sum) fit in 512 KiB; half of it costs 2 %, a quarter 8 % to the calls' overhead."""

RingVector = NDArray[np.unsignedinteger[Any]]
"""[d] Elements of a ring of 16, 32 or 64 bits, little endian."""
Sign = Literal[1, -1]

_LINE_BYTES: Final = 64  # a cache line
_BLOCK_BYTES: Final = 16  # an AES block
_KEY_BYTES: Final = 32
_DTYPES: Final[dict[int, np.dtype[np.unsignedinteger[Any]]]] = {
    16: np.dtype("<u2"),
    32: np.dtype("<u4"),
    64: np.dtype("<u8"),
}


def dtype_of(ring_bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Give numpy's type for elements of the ring of integers mod 2^``ring_bits``.

    Raises:
        SecureAggregationError: "ring-invalid" if it isn't 16, 32 or 64 bits.
    """
    if ring_bits not in _DTYPES:
        raise SecureAggregationError("ring-invalid", f"a ring has 16, 32 or 64 bits, not {ring_bits}")
    return _DTYPES[ring_bits]


@dataclasses.dataclass(frozen=True, slots=True)
class Stream:
    """A mask stream.

    Formal Guarantees:
        Its coordinates are indistinguishable from uniform and independent ring elements for whoever doesn't know the
        seed, as long as AES-256 is a pseudorandom permutation and HKDF-Expand a pseudorandom function. Streams of
        different seeds or names are unrelated. A seed masks one vector under one name, once.

    Args:
        seed: 32 secret bytes. Pickling a stream copies them; do it for a worker process, never for a file.
        name: Which of the seed's streams, :data:`MAIN` or :data:`TAIL`.

    Raises:
        SecureAggregationError: "seed-invalid" if the seed hasn't 32 bytes.
    """

    seed: bytes = dataclasses.field(repr=False)
    name: bytes = MAIN

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            raise SecureAggregationError("seed-invalid", f"a mask's seed has {len(self.seed)} bytes, not {SEED_BYTES}")


Term = tuple[Stream, Sign]
"""A stream, and whether it is added (1) or subtracted (-1)."""

Pair = tuple[Stream, int, int | None]
"""A stream, the number of the vector that it is added to and that of the one it is subtracted from, if there is one."""

# Streams that meet in the same few vectors are taken one after another: two times eight tiles stay in the cache.
_NEIGHBOURS: Final = 8
_PAIR_TILE_BYTES: Final = TILE_BYTES // 2


def add_streams(
    out: RingVector,
    terms: Sequence[Term],
    *,
    start: int = 0,
    overwrite: bool = False,
    tile_bytes: int = TILE_BYTES,
) -> None:
    """Add signed streams to a vector in place, wrapping in its ring.

    ``out[k] += sum of sign * stream[start + k]`` for every ``k``. The sum in a ring doesn't depend on its order, so the
    result is the same whatever the order of the terms, the tiles, and the slices in which a caller cuts the vector.

    Cost for n terms and d coordinates of b bytes: n d b bytes of AES; reads and writes ``out`` once, or only writes it
    with ``overwrite`` and at least one added stream. Beside ``out`` it needs two tiles and about 1 KiB a term. It holds
    the interpreter lock: parallelism is processes over :func:`slices`.

    Example:
        >>> out = np.array([5, 6, 7], dtype_of(32))
        >>> add_streams(out, [(Stream(bytes(32)), 1)])
        >>> add_streams(out[1:], [(Stream(bytes(32)), -1)], start=1)
        >>> out[1:].tolist()
        [6, 7]

    Args:
        out: [d] uint16, uint32 or uint64, contiguous and little endian.
        terms: n streams with their signs.
        start: The coordinate of the streams that belongs to ``out[0]``.
        overwrite: Count ``out`` as zeros, whatever it holds.
        tile_bytes: Size of a tile, at least 64. Changes the speed, never the result.

    Raises:
        SecureAggregationError: "ring-invalid" if ``out`` is no such vector.
        ValueError: A sign other than 1 and -1, a negative ``start`` or a tile under 64 bytes.
    """
    _check(out, start)
    if tile_bytes < _LINE_BYTES:
        raise ValueError(f"a tile of {tile_bytes} bytes is too small")
    _run(out, _open(terms, start * out.itemsize, out.nbytes), tile_bytes, overwrite=overwrite)


def expand(terms: Sequence[Term], ring_bits: int, start: int, stop: int) -> RingVector:
    """Sum signed streams into a new vector, which is what a worker process does with its slice.

    >>> stream = Stream(bytes(32))
    >>> whole = expand([(stream, 1)], 16, 0, 100)
    >>> bool((expand([(stream, 1)], 16, 7, 9) == whole[7:9]).all())
    True

    Args:
        terms: n streams with their signs.
        ring_bits: 16, 32 or 64.
        start: First coordinate.
        stop: The coordinate after the last.

    Returns:
        [stop - start] of the ring's type.

    Raises:
        SecureAggregationError: "ring-invalid" if there is no such ring.
        ValueError: A sign other than 1 and -1, or coordinates that are negative or in the wrong order.
    """
    if not 0 <= start <= stop:
        raise ValueError(f"coordinates {start} to {stop} are no range")
    out: RingVector = np.empty(stop - start, dtype_of(ring_bits))
    add_streams(out, terms, start=start, overwrite=True)
    return out


def add_pairs(outs: Sequence[RingVector], pairs: Sequence[Pair], *, start: int = 0) -> None:
    """Add streams to vectors and subtract the same ones from others in place, each computed once.

    What a simulation of a whole cohort does: of the n * n streams that its n participants expand, n * (n - 1) / 2 are
    there twice, with opposite signs. The result is that of :func:`add_streams` for each vector.

    Cost for n pairs and d coordinates of b bytes: n d b bytes of AES, and up to two additions for each stream.

    Example:
        >>> outs = [np.zeros(3, dtype_of(16)) for _ in range(2)]
        >>> add_pairs(outs, [(Stream(bytes(32)), 0, 1)])
        >>> (outs[0] + outs[1]).tolist()
        [0, 0, 0]

    Args:
        outs: Vectors [d] as :func:`add_streams` takes them, of one dimension and ring; none may overlap another.
        pairs: n streams.
        start: The coordinate of the streams that belongs to the vectors' first.

    Raises:
        SecureAggregationError: "ring-invalid" if ``outs`` are no such vectors.
        ValueError: A negative ``start``.
        IndexError: A pair names a vector that isn't there.
    """
    for out in outs:
        _check(out, start)
        if len(out) != len(outs[0]) or out.dtype != outs[0].dtype:
            raise SecureAggregationError("ring-invalid", "the vectors of a cohort have one dimension and one ring")
    if not outs or not len(outs[0]):
        return
    width, dtype = outs[0].itemsize, outs[0].dtype
    near = sorted(
        pairs, key=lambda pair: (pair[1] // _NEIGHBOURS, (pair[1] if pair[2] is None else pair[2]) // _NEIGHBOURS)
    )
    position, length = start * width, outs[0].nbytes
    terms = [(keystream(*_material(stream), position, length), plus, minus) for stream, plus, minus in near]
    longest = min(_PAIR_TILE_BYTES, outs[0].nbytes)
    zeros, buffer = memoryview(bytes(longest)), _aligned(longest)
    for begin in range(0, len(outs[0]), longest // width):
        tiles = [out[begin : begin + longest // width] for out in outs]
        plain, made = zeros[: tiles[0].nbytes], buffer[: tiles[0].nbytes]
        elements = np.frombuffer(made, dtype)
        for generate, plus, minus in terms:
            generate(plain, made)
            np.add(tiles[plus], elements, tiles[plus])
            if minus is not None:
                np.subtract(tiles[minus], elements, tiles[minus])


def slices(dimension: int, parts: int) -> list[tuple[int, int]]:
    """Cut a vector into ranges of coordinates for as many processes.

    The ranges begin at whole cache lines of every ring, which are whole AES blocks too: no two processes write one
    line, and no stream is entered within a block.

    >>> slices(100, 3)
    [(0, 32), (32, 64), (64, 100)]

    Args:
        dimension: Coordinates of the vector.
        parts: How many ranges, if there are that many cache lines.

    Returns:
        At most ``parts`` ranges (start, stop), in order, not empty, covering the vector; their lengths differ by less
        than 64 coordinates.

    Raises:
        ValueError: A negative dimension or no parts.
    """
    if dimension < 0 or parts < 1:
        raise ValueError(f"{dimension} coordinates can't be cut into {parts} parts")
    unit = _LINE_BYTES // min(dtype.itemsize for dtype in _DTYPES.values())
    lines = -(-dimension // unit)
    parts = min(parts, lines)
    cuts = [lines * part // parts * unit for part in range(parts)] + [dimension]
    return list(itertools.pairwise(cuts))


def _check(out: RingVector, start: int) -> None:
    if out.ndim != 1 or out.dtype not in _DTYPES.values() or not out.flags.c_contiguous or not out.flags.writeable:
        raise SecureAggregationError(
            "ring-invalid",
            f"masks are added to a writable, contiguous vector of <u2, <u4 or <u8, not to {out.dtype.str} {out.shape}",
        )
    if start < 0:
        raise ValueError(f"a stream has no coordinate {start}")


def _material(stream: Stream) -> tuple[bytes, bytes]:
    """Derive the AES key and the initial counter block."""
    material = HKDFExpand(hashes.SHA256(), _KEY_BYTES + _BLOCK_BYTES, b"mask" + stream.name).derive(stream.seed)
    return material[:_KEY_BYTES], material[_KEY_BYTES:]


def _open(terms: Sequence[Term], position: int, length: int) -> list[tuple[Generator, np.ufunc]]:
    operations: dict[int, np.ufunc] = {1: np.add, -1: np.subtract}
    if any(sign not in operations for _, sign in terms):
        raise ValueError("a stream's sign is 1 or -1")
    return [(keystream(*_material(stream), position, length), operations[sign]) for stream, sign in terms]


def _run(out: RingVector, generators: list[tuple[Generator, np.ufunc]], tile_bytes: int, *, overwrite: bool) -> None:
    """Pass all streams over each tile. To overwrite, one added stream is written where the others are then added."""
    raw = out.view(np.uint8).data
    longest = min(tile_bytes, out.nbytes)
    zeros, buffer = memoryview(bytes(longest)), _aligned(longest)
    write = None
    if overwrite:
        added = next((index for index, (_, operation) in enumerate(generators) if operation is np.add), None)
        if added is None:
            out.fill(0)
        else:
            write = generators.pop(added)[0]
    size = 0
    for begin, end in _tiles(out, tile_bytes):
        # Made once for all tiles of one length, that is for all but the first and the last.
        if end - begin != size:
            size = end - begin
            plain = zeros[: size * out.itemsize]
            made = buffer[: size * out.itemsize]
            elements = np.frombuffer(made, out.dtype)
        tile = out[begin:end]
        if write is not None:
            write(plain, raw[begin * out.itemsize : end * out.itemsize])
        for generate, operation in generators:
            generate(plain, made)
            operation(tile, elements, tile)


def _tiles(out: RingVector, tile_bytes: int) -> Iterator[tuple[int, int]]:
    # Where numpy puts a vector is 16 bytes off a cache line more often than not, and adding is then a third slower. A
    # first tile that is shorter by what is missing puts all others on whole lines.
    tile = tile_bytes // out.itemsize
    begin, end = 0, (tile_bytes - out.ctypes.data % _LINE_BYTES) // out.itemsize or tile
    while begin < len(out):
        yield begin, min(end, len(out))
        begin, end = end, end + tile


def _aligned(size: int) -> memoryview:
    storage = np.empty(size + _LINE_BYTES, np.uint8)
    shift = -storage.ctypes.data % _LINE_BYTES
    return storage[shift : shift + size].data
