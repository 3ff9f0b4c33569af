"""Ring elements as bytes on the wire: planes of whole bytes, so that any slice of coordinates is read without the rest.

=========  ==========  ============================================================================================
wire bits  ring bits   planes, one behind the other, for d coordinates
=========  ==========  ============================================================================================
16         16          the elements, 2 bytes each, little endian
20         32          bits 0-15 of each element, 2 bytes; then ceil(d/2) bytes, of which byte k holds bits 16-19 of
                       element k in its low and those of element k + ceil(d/2) in its high half
24         32          bits 0-15 of each element, 2 bytes; then bits 16-23 of each, 1 byte
32         32          the elements, 4 bytes each, little endian
=========  ==========  ============================================================================================

With odd d and 20 bits the last high half is zero. Planes, because interleaved groups of bytes would need a gather.

Keeping the low w bits is a ring homomorphism from the integers mod 2^32 to those mod 2^w. So vectors may be masked in
the ring of 32 bits, sent with w, and added in 32 bits again: the low w bits of that sum are the sum mod 2^w, and what
stands above them is to be ignored (:meth:`Encoding.decode` does).
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from privacy.secure_aggregation.errors import SecureAggregationError

RingArray: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""Ring elements: '<u2' for the ring of 16 bits, '<u4' for that of 32."""

Buffer: TypeAlias = "bytes | bytearray | memoryview | NDArray[Any]"

RINGS: Final[dict[int, int]] = {16: 16, 20: 32, 24: 32, 32: 32}
"""Wire width to ring width, in bits."""

# Elements of a 32-bit ring that are split into planes at a time; three arrays of them stay in the level-2 cache.
_TILE: Final = 32_768


def ring_dtype(ring_bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The little-endian dtype of ring elements: '<u2' or '<u4'."""
    return np.dtype("<u2" if ring_bits == 16 else "<u4")


def wire_bytes(wire_bits: int, dimension: int) -> int:
    """The bytes that ``dimension`` elements take with ``wire_bits`` each."""
    if wire_bits == 20:
        return 2 * dimension + (dimension + 1) // 2
    return wire_bits // 8 * dimension


def pack(values: RingArray, wire_bits: int, out: Buffer | None = None) -> memoryview:
    """Write the low ``wire_bits`` bits of ring elements in the order of the wire.

    Args:
        values: Ring elements, shape [d], contiguous.
        wire_bits: 16, 20, 24 or 32.
        out: A writable buffer of at least ``wire_bytes(wire_bits, d)`` bytes. Without it 20 and 24 bits get a new
            buffer, and 16 and 32 bits the memory of ``values`` itself, not copied.

    Returns:
        The packed bytes.

    Raises:
        SecureAggregationError: "upload-malformed" if ``values`` isn't a vector of this ring or ``out`` is too small.
    """
    dimension = values.shape[0] if values.ndim == 1 else -1
    if dimension < 0 or values.dtype != ring_dtype(RINGS[wire_bits]):
        raise _malformed(f"a vector of {ring_dtype(RINGS[wire_bits])} is packed, not {values.ndim}-d {values.dtype}")
    if out is None and wire_bits in (16, 32):
        return _as_bytes(np.ascontiguousarray(values))
    size = wire_bytes(wire_bits, dimension)
    target = bytearray(size) if out is None else out
    planes = np.frombuffer(target, dtype=np.uint8)
    if planes.shape[0] < size:
        raise _malformed(f"{dimension} coordinates of {wire_bits} bits need {size} bytes, the buffer has {len(planes)}")
    planes = planes[:size]
    if wire_bits in (16, 32):
        planes.view(values.dtype)[:] = values
    else:
        _split_low(values, planes[: 2 * dimension].view("<u2"))
        if wire_bits == 24:
            _split_high(values, planes[2 * dimension :])
        else:
            _split_nibbles(values, planes[2 * dimension :])
    return _as_bytes(planes)


def unpack(
    buffer: Buffer,
    wire_bits: int,
    dimension: int,
    start: int = 0,
    stop: int | None = None,
    out: RingArray | None = None,
) -> RingArray:
    """Read the elements of the coordinates [start, stop) from a packed vector.

    Args:
        buffer: What :func:`pack` wrote; exactly ``wire_bytes(wire_bits, dimension)`` bytes.
        wire_bits: 16, 20, 24 or 32.
        dimension: The whole vector's d.
        start: The first coordinate.
        stop: One past the last; the end without it.
        out: Where to write, shape [stop - start]. Without it 16 and 32 bits give a view of ``buffer``, read-only if
            that is, and 20 and 24 bits a new array.

    Returns:
        Ring elements, shape [stop - start]; with 20 and 24 bits the upper bits are zero.

    Raises:
        SecureAggregationError: "upload-malformed" if the buffer hasn't that size or the slice isn't one of the vector.
    """
    stop = dimension if stop is None else stop
    planes = np.frombuffer(buffer, dtype=np.uint8)
    if planes.shape[0] != wire_bytes(wire_bits, dimension):
        size = wire_bytes(wire_bits, dimension)
        raise _malformed(f"{dimension} coordinates of {wire_bits} bits take {size} bytes, not {len(planes)}")
    if not 0 <= start <= stop <= dimension:
        raise _malformed(f"coordinates {start} to {stop} don't lie in a vector of {dimension}")
    dtype = ring_dtype(RINGS[wire_bits])
    if wire_bits in (16, 32):
        raw: RingArray = planes.view(dtype)[start:stop]
        if out is None:
            return raw
        out[:] = raw
        return out
    values: RingArray = np.empty(stop - start, dtype=dtype) if out is None else out
    low, high = planes[: 2 * dimension].view("<u2"), planes[2 * dimension :]
    # Where the upper bits lie: stretches of the second plane, each read with its own shift.
    stretches = [(0, dimension, 0, 0xFF)]
    if wire_bits == 20:
        half = (dimension + 1) // 2
        stretches = [(0, half, 0, 0x0F), (half, dimension, 4, 0x0F)]
    scratch = np.empty(min(_TILE, stop - start), dtype=np.uint8)
    for first, last, shift, keep in stretches:
        begin, end = max(first, start), min(last, stop)
        for at in range(begin, end, _TILE):
            size = min(_TILE, end - at)
            upper, tile = scratch[:size], values[at - start : at - start + size]
            np.right_shift(high[at - first : at - first + size], shift, out=upper)
            np.bitwise_and(upper, keep, out=upper)
            tile[:] = upper
            np.left_shift(tile, 16, out=tile)
            np.bitwise_or(tile, low[at : at + size], out=tile)
    return values


def _split_low(values: RingArray, plane: NDArray[np.uint16]) -> None:
    np.copyto(plane, values, casting="unsafe")  # the conversion of a wider unsigned integer keeps its low bits


def _split_high(values: RingArray, plane: NDArray[np.uint8]) -> None:
    """Write bits 16-23 of each element into a byte each."""
    scratch = np.empty(min(_TILE, values.shape[0]), dtype=values.dtype)
    for at in range(0, values.shape[0], _TILE):
        tile = values[at : at + _TILE]
        upper = scratch[: tile.shape[0]]
        np.right_shift(tile, 16, out=upper)
        np.copyto(plane[at : at + _TILE], upper, casting="unsafe")


def _split_nibbles(values: RingArray, plane: NDArray[np.uint8]) -> None:
    """Write bits 16-19 of elements k and k + ceil(d/2) into the halves of byte k."""
    half = plane.shape[0]
    _split_high(values[:half], plane)
    np.bitwise_and(plane, 0x0F, out=plane)
    upper = np.empty(values.shape[0] - half, dtype=np.uint8)
    _split_high(values[half:], upper)
    np.left_shift(upper, 4, out=upper)
    np.bitwise_or(plane[: upper.shape[0]], upper, out=plane[: upper.shape[0]])


def _as_bytes(array: NDArray[Any]) -> memoryview:
    return array.view(np.uint8).data


def _malformed(message: str) -> SecureAggregationError:
    return SecureAggregationError("upload-malformed", message, "Both sides must use the same encoding and dimension.")
