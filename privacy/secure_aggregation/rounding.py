"""Stochastic rounding to ring elements, in tiles that stay in the cache, from a keystream that can be entered anywhere.

A coordinate v is brought to a multiple of 2^-16; 16 bits of keystream, as a multiple u of 2^-16 in [0, 1), are added;
the floor of that is the integer. It is floor(v) or floor(v) + 1, the latter with the probability frac(v), and an
integer stays what it is. There are two forms of it, both of which work on v * 2^16 as an integer:

narrow
    integers of up to 16 bits: float32, and v * 2^16 in 32-bit integers;
wide
    up to 30 bits: float64. Adding 1.5 * 2^36 aligns the float's last bit with 2^-16; its bit pattern then is that of
    the constant plus v * 2^16, so that the sum with u, shifted right by 16, has the integer in its low 32 bits.

Coordinate k uses bytes [2 k, 2 k + 2) of the keystream, as a little-endian number: AES-256-CTR with a 128-bit counter,
its key and first counter block being 32 and 16 bytes of HKDF-SHA256 of the seed under the label "dither".
"""

from __future__ import annotations

import abc
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.keys import KEY_BYTES, derive
from privacy.secure_aggregation.packing import RingArray

_LABEL: Final = b"dither"
_BLOCK: Final = 16  # bytes of one AES block
_STEPS: Final = 1 << 16  # of u, to one ring unit
_NARROW_LIMIT: Final = (1 << 15) - 1
_SMALLEST_NORMAL: Final = 2.0**-126  # of float32
# In [2^36, 2^37) the last bit of a float64 is worth 2^-16, and adding v in +-2^29 stays inside that interval.
_ALIGN: Final = 1.5 * 2.0**36


class Rounding:
    """How one update is scaled and rounded: the factor, the bound and the keystream.

    Args:
        seed: 32 bytes.
        factor: Ring units to one unit of the update, clipping and weight included.
        unit: What :meth:`Tile.lost` multiplies a loss by, which it knows in ring units.
        limit: The largest integer.
        ring: The dtype of ring elements.

    Raises:
        SecureAggregationError: "update-malformed" if the seed isn't 32 bytes.
    """

    def __init__(self, seed: bytes, *, factor: float, unit: float, limit: int, ring: np.dtype[Any]) -> None:
        if len(seed) != KEY_BYTES:
            raise SecureAggregationError("update-malformed", f"a seed has {KEY_BYTES} bytes, not {len(seed)}")
        material = derive(seed, salt=b"", info=_LABEL, length=KEY_BYTES + _BLOCK)
        self._key, self._counter = material[:KEY_BYTES], int.from_bytes(material[KEY_BYTES:], "big")
        self._factor = factor
        self._unit = unit
        self._limit = limit
        self._ring = ring

    def keystream(self, start: int) -> Keystream:
        """The keystream from coordinate ``start`` on."""
        block, skip = divmod(2 * start, _BLOCK)
        counter = (self._counter + block) % (1 << 128)
        context = Cipher(AES(self._key), CTR(counter.to_bytes(_BLOCK, "big"))).encryptor()
        context.update(bytes(skip))
        return Keystream(context)

    def tile(self, size: int) -> Tile:
        """Buffers for tiles of up to ``size`` coordinates.

        The form depends on the encoding and the update only, never on ``size``: an update so large that the factor
        which clips it has no normal float32 takes the wide form.
        """
        narrow = self._limit <= _NARROW_LIMIT and self._factor * _STEPS >= _SMALLEST_NORMAL
        return (_Narrow if narrow else _Wide)(self._factor, self._unit, self._limit, self._ring, size)


class Keystream:
    """Uniform 16-bit numbers from an AES-CTR context, in order."""

    def __init__(self, context: CipherContext) -> None:
        self._context = context
        self._zeros = memoryview(b"")

    def fill(self, out: NDArray[np.uint16]) -> None:
        """Overwrite ``out`` with the next numbers."""
        if self._zeros.nbytes < out.nbytes:
            self._zeros = memoryview(bytes(out.nbytes))
        self._context.update_into(self._zeros[: out.nbytes], out.view(np.uint8).data)


class Tile(abc.ABC):
    """Rounds one tile after another in the same buffers."""

    @abc.abstractmethod
    def round(
        self, update: NDArray[np.float32], residual: NDArray[np.float32] | None, keystream: Keystream
    ) -> RingArray:
        """Scale, clip and round (update + residual).

        Args:
            update: Shape [m], finite.
            residual: Shape [m], or None.
            keystream: Gives the next m numbers.

        Returns:
            Ring elements, shape [m], in a buffer that the next call overwrites.
        """

    @abc.abstractmethod
    def lost(self, out: NDArray[np.float32]) -> None:
        """Write what the last :meth:`round` took off the clipped values, times the unit; once for each tile."""


class _Narrow(Tile):
    """Integers of up to 16 bits, in float32 and 32-bit integers; all values are in steps of 2^-16."""

    def __init__(self, factor: float, unit: float, limit: int, ring: np.dtype[Any], size: int) -> None:
        self._factor = np.float32(factor * _STEPS)
        self._unit = np.float32(unit / _STEPS)
        self._bound = np.float32(limit * _STEPS)  # exact: 15 bits, shifted
        self._values = np.empty(size, dtype=np.float32)
        self._fixed = np.empty(size, dtype=np.int32)
        self._dither = np.empty(size, dtype="<u2")
        self._scratch = np.empty(size, dtype=np.int32)
        self._ring = np.empty(size, dtype=ring)

    def round(
        self, update: NDArray[np.float32], residual: NDArray[np.float32] | None, keystream: Keystream
    ) -> RingArray:
        size = update.shape[0]
        values, fixed, ring = self._values[:size], self._fixed[:size], self._ring[:size]
        dither, scratch = self._dither[:size], self._scratch[:size]
        # An overflow to infinity is clipped to the bound, as the exact value would be.
        with np.errstate(over="ignore", under="ignore"):
            if residual is not None:
                np.add(update, residual, out=values)
                update = values
            np.multiply(update, self._factor, out=values)
        np.clip(values, -self._bound, self._bound, out=values)
        np.copyto(fixed, values, casting="unsafe")  # cuts towards zero
        keystream.fill(dither)
        np.copyto(scratch, dither)
        # At most limit * 2^16 + (2^16 - 1) = 2^31 - 1.
        np.add(fixed, scratch, out=fixed)
        np.right_shift(fixed, 16, out=fixed)  # arithmetic: the floor
        np.copyto(ring, fixed, casting="unsafe")
        return ring

    def lost(self, out: NDArray[np.float32]) -> None:
        values = self._values[: out.shape[0]]
        integers = self._scratch.view(np.float32)[: out.shape[0]]
        np.copyto(integers, self._fixed[: out.shape[0]], casting="unsafe")  # exact: 16 bits
        np.multiply(integers, np.float32(_STEPS), out=integers)
        np.subtract(values, integers, out=values)
        np.multiply(values, self._unit, out=out)


class _Wide(Tile):
    """Integers of up to 30 bits, in float64 and 64-bit integers."""

    def __init__(self, factor: float, unit: float, limit: int, ring: np.dtype[Any], size: int) -> None:
        self._factor = factor
        self._unit = unit
        self._bound = float(limit)
        self._values = np.empty(size, dtype=np.float64)
        self._fixed = np.empty(size, dtype=np.uint64)
        self._dither = np.empty(size, dtype="<u2")
        self._scratch = np.empty(size, dtype=np.uint64)
        self._ring = np.empty(size, dtype=ring)

    def round(
        self, update: NDArray[np.float32], residual: NDArray[np.float32] | None, keystream: Keystream
    ) -> RingArray:
        size = update.shape[0]
        values, fixed, ring = self._values[:size], self._fixed[:size], self._ring[:size]
        dither, scratch = self._dither[:size], self._scratch[:size]
        np.copyto(values, update)
        if residual is not None:
            kept = scratch.view(np.float64)
            np.copyto(kept, residual)
            np.add(values, kept, out=values)
        np.multiply(values, self._factor, out=values)
        np.clip(values, -self._bound, self._bound, out=values)
        np.add(values, _ALIGN, out=fixed.view(np.float64))
        keystream.fill(dither)
        np.copyto(scratch, dither)
        np.add(fixed, scratch, out=fixed)
        np.right_shift(fixed, 16, out=fixed)
        np.copyto(ring, fixed, casting="unsafe")  # the low bits; the constant's lie above
        return ring

    def lost(self, out: NDArray[np.float32]) -> None:
        ring, values = self._ring[: out.shape[0]], self._values[: out.shape[0]]
        integers = self._scratch.view(np.float64)[: out.shape[0]]
        np.copyto(integers, ring.view(f"<i{ring.itemsize}"))
        np.subtract(values, integers, out=values)
        np.multiply(values, self._unit, out=values)
        np.copyto(out, values, casting="same_kind")
