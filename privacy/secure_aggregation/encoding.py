"""Model updates as ring elements: clip, weight, clip each coordinate, scale, round at random; and back.

A participant's update x (float32, plus what rounding kept back before, see below) becomes one integer a coordinate:

``v = clip(x * min(1, C / |x|) * w / W, -r, r) * scale``,  ``q = floor(v + u)``,  ``q mod 2^ring_bits``

with C the L2 clipping norm, w = min(examples, W) the weight, r the largest value of a coordinate after weighting,
scale = (2^(b-1) - 1) / r for integers of b signed bits, and u uniform in [0, 1) from a seeded AES-256-CTR keystream, so
that q is one of the two integers around v, and v on average (``rounding`` says how). The sum of the q over the
participants, divided by scale * (sum of w) / W, is the weighted mean of the clipped updates.

**The same bytes on every processor.** The encoding uses multiplications, additions, comparisons and conversions of
IEEE 754 only, one numpy call each, so that no compiler contracts two of them to a fused one and no thread count
decides an order. The norm isn't left to a library's sum: 32,768 lanes add the squares in float64 in the order of the
coordinates, then the lanes are folded in halves (:func:`sum_of_squares`). Denormal numbers, which a process may have
told its processor to flush to zero, round to the same integer either way. How callers cut a vector into slices
changes nothing.

**Error feedback.** :meth:`Encoder.write` gives back what rounding lost, in the update's own units (before weighting),
for the participant to add to its next update. What clipping lost is not in it: it is lost on purpose.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.packing import RINGS, Buffer, RingArray, pack, ring_dtype, unpack, wire_bytes
from privacy.secure_aggregation.rounding import Rounding
from privacy.secure_aggregation.tail import MAX_WEIGHT, TailLayout

MAX_VALUE_BITS: Final = 30

# Clipping bounds beyond these are mistakes, and inside them every factor of the encoding is finite in float32.
_SMALLEST: Final = 2.0**-60
_LARGEST: Final = 2.0**60

# The work goes by tiles that stay in the level-2 cache. The lanes of the norm belong to the definition of the encoding;
# the tile doesn't, and may be tuned.
_LANES: Final = 32_768
_TILE: Final = 32_768

Float: TypeAlias = NDArray[np.float32] | NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a round writes updates as ring elements; part of the round's context, the same for every participant.

    Example:
        >>> encoding = Encoding(
        ...     ring_bits=16, wire_bits=16, value_bits=13, clip_norm=1.0, clip_value=0.25, weight_cap=100
        ... )
        >>> encoding.check(8)
        >>> update = np.array([0.25, -0.125], dtype=np.float32)
        >>> total = sum(encoding.encode(update, 100, bytes([i] * 32)) for i in range(8))
        >>> encoding.decode(total, 8 * 100).round(3).tolist()
        [0.25, -0.125]

    Args:
        ring_bits: Masks and sums are integers mod 2^ring_bits: 16 or 32.
        wire_bits: Low bits that are sent: 16 of the ring of 16 bits; 20, 24 or 32 of that of 32.
        value_bits: Signed width b of one participant's integers, 2 to 30: they lie in +-(2^(b-1) - 1).
        clip_norm: L2 bound C on an update, before weighting.
        clip_value: Bound r on each coordinate, after weighting.
        weight_cap: Examples W beyond which a participant's weight doesn't grow, 1 to 2^20.

    Raises:
        SecureAggregationError: "encoding-invalid" if a value is out of its range, "overflow" if value_bits alone
            exceed wire_bits.
    """

    ring_bits: int
    wire_bits: int
    value_bits: int
    clip_norm: float
    clip_value: float
    weight_cap: int

    def __post_init__(self) -> None:
        for name in ("ring_bits", "wire_bits", "value_bits", "weight_cap"):
            value: object = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise _invalid(f"{name} must be an integer, not {value!r}")
        if self.wire_bits not in RINGS or RINGS[self.wire_bits] != self.ring_bits:
            raise _invalid(f"{self.wire_bits} bits on the wire don't belong to a ring of {self.ring_bits} bits")
        if not 2 <= self.value_bits <= MAX_VALUE_BITS:
            raise _invalid(f"value_bits is {self.value_bits}; it goes from 2 to {MAX_VALUE_BITS}")
        for name, bound in (("clip_norm", self.clip_norm), ("clip_value", self.clip_value)):
            # An int would be another value in the round's context hash.
            if not isinstance(bound, float):
                raise _invalid(f"{name} must be a float, not {bound!r}")
            if not _SMALLEST <= bound <= _LARGEST:  # false for NaN
                raise _invalid(f"{name} is {bound}; it must be positive, and between 2^-60 and 2^60")
        if not 1 <= self.weight_cap <= MAX_WEIGHT:
            raise _invalid(f"weight_cap is {self.weight_cap}; it goes from 1 to {MAX_WEIGHT}")
        self.check(1)

    @property
    def limit(self) -> int:
        """The largest integer of one coordinate of one participant, 2^(value_bits-1) - 1."""
        return (1 << (self.value_bits - 1)) - 1

    @property
    def scale(self) -> float:
        """Ring units to one unit of the weighted update."""
        return self.limit / self.clip_value

    @property
    def quantum(self) -> float:
        """The value of one ring unit, in units of the weighted update."""
        return self.clip_value / self.limit

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The dtype of ring elements, '<u2' or '<u4'."""
        return ring_dtype(self.ring_bits)

    def check(self, participants: int) -> None:
        """Check that the sum of this many participants can't overflow: n * 2^(b-1) <= 2^(wire_bits-1).

        Formal Guarantees:
            Each addend lies in +-(2^(b-1) - 1), so after this check a sum of any subset of n addends lies strictly
            inside +-2^(wire_bits-1), and the signed number of wire_bits bits that is decoded is the sum itself.

        Raises:
            SecureAggregationError: "overflow", with the numbers and what may be changed.
        """
        if participants < 1:
            raise _invalid(f"a sum has at least one participant, not {participants}")
        fits = largest_value_bits(self.wire_bits, participants)
        if self.value_bits <= fits:
            return
        most = (1 << self.wire_bits) >> self.value_bits
        ways = [f"set value_bits to at most {fits}"] if fits >= 2 else []
        ways += [f"let at most {most} participants into a sum"] if most >= 2 else []
        ways += ["send more bits (wire_bits)"] if self.wire_bits < 32 else []
        raise SecureAggregationError(
            "overflow",
            f"the sum of {participants} values of {self.value_bits} bits can need "
            f"{self.value_bits + (participants - 1).bit_length()} bits, and {self.wire_bits} are sent",
            f"{'; or '.join(ways).capitalize()}.",
        )

    def weight(self, examples: int) -> int:
        """A participant's integer weight, min(examples, weight_cap)."""
        if examples < 0:
            raise _invalid(f"a participant can't have {examples} examples")
        return min(int(examples), self.weight_cap)

    def error_bound(self, participants: int, total_weight: int) -> float:
        """Bound how far a decoded mean can be from the exact one, in each coordinate.

        Formal Guarantees:
            Let x_i be the update that participant i encodes (its residual included) and
            y_i = clip(x_i * min(1, C / |x_i|) * w_i / W, -r, r) in real arithmetic. Then the float64 result of
            :meth:`decode` is within this bound of sum(y_i) / sum(w_i / W).

            Proof: with v_i the float that is rounded, |q_i - v_i| < 1: bringing v_i to a multiple of 2^-16 moves it by
            less than 2^-16, rounding that to an integer by at most 1 - 2^-16. v_i differs from y_i * scale by three
            roundings to float32 (of the sum with the residual, of the factor, of the product), each a relative 2^-24
            of a number below 2^15, and by some of float64, which are the only ones where integers have more than 16
            bits; together that is less than 2^-7. So the sum of the q_i misses that of the y_i * scale by less than
            n * (1 + 2^-7), in which the roundings of ``decode`` vanish; divide by scale * sum(w_i / W).

        Args:
            participants: n, those in the sum.
            total_weight: Their total integer weight, sum(w_i).

        Returns:
            n * (1 + 2^-7) * quantum / (total_weight / W), in units of the update.
        """
        return participants * (1 + 2.0**-7) * self.quantum * self.weight_cap / total_weight

    def encoder(
        self, update: NDArray[np.float32], examples: int, dither: bytes, residual: NDArray[np.float32] | None = None
    ) -> Encoder:
        """Measure an update once; the result then writes any slices of its encoding.

        Args:
            update: Shape [d], float32. Not copied: it must not change while the encoder is used.
            examples: Examples that stand behind the update, at least 1.
            dither: 32 secret bytes, fresh for each update and participant. The same seed gives the same bytes.
            residual: Shape [d]: what :meth:`Encoder.write` gave back last time, added to the update before clipping.

        Raises:
            SecureAggregationError: "update-not-finite", naming the first coordinate; "update-malformed" for a wrong
                shape or dtype; "encoding-invalid" if there are no examples.
        """
        return Encoder(self, update, examples, dither, residual)

    def encode(
        self,
        update: NDArray[np.float32],
        examples: int,
        dither: bytes,
        *,
        out: RingArray | None = None,
        mask: RingArray | None = None,
        residual: NDArray[np.float32] | None = None,
        residual_out: NDArray[np.float32] | None = None,
    ) -> RingArray:
        """Encode a whole update: :meth:`encoder`, then :meth:`Encoder.write` for all its coordinates.

        Returns:
            ``out``, or a new array, shape [d].
        """
        encoder = self.encoder(update, examples, dither, residual)
        target: RingArray = np.empty(encoder.dimension, dtype=self.dtype) if out is None else out
        encoder.write(target, mask=mask, residual_out=residual_out)
        return target

    def decode(self, total: RingArray, weight_total: int, out: Float | None = None) -> Float:
        """Turn a sum of encodings (of a slice, or of all coordinates) into the weighted mean of the updates.

        Args:
            total: Sum mod 2^ring_bits or of its low wire_bits alone, shape [m]; bits above wire_bits are ignored.
            weight_total: Sum of the participants' integer weights, at least 1 (from the tail).
            out: Shape [m], float32 or float64; a new float64 array without it.

        Returns:
            ``out``. In float64 it is within :meth:`error_bound`; float32 adds the rounding to the nearest float32.
        """
        if weight_total < 1:
            raise _invalid(f"a sum over the total weight {weight_total} has no mean")
        result: Float = np.empty(total.shape[0], dtype=np.float64) if out is None else out
        factor = self.quantum * self.weight_cap / weight_total
        scratch = np.empty(min(_TILE, total.shape[0]), dtype=np.float64)
        for at in range(0, total.shape[0], _TILE):
            signed = self._signed(total[at : at + _TILE])
            tile = scratch[: signed.shape[0]]
            np.copyto(tile, signed)
            np.multiply(tile, factor, out=tile)
            result[at : at + _TILE] = tile
        return result

    def check_sum(self, total: RingArray, participants: int, start: int = 0) -> None:
        """Refuse a sum that honest participants can't have made.

        Formal Guarantees:
            A sum of ``participants`` encodings passes. A coordinate that is still masked by a uniform one passes with
            the probability (2 n (2^(b-1) - 1) + 1) / 2^wire_bits, which is close to 1 where n fills the wire: this
            finds garbage in a long vector, not in one coordinate, and no well-formed lie at all.

        Args:
            total: Shape [m], as for :meth:`decode`.
            participants: n, those in the sum.
            start: The first coordinate of ``total`` in the whole vector, for the message.

        Raises:
            SecureAggregationError: "sum-implausible", naming a coordinate with |sum| > n * (2^(b-1) - 1).
        """
        bound = participants * self.limit
        for at in range(0, total.shape[0], _TILE):
            signed = self._signed(total[at : at + _TILE])
            if int(signed.max()) <= bound and int(signed.min()) >= -bound:
                continue
            wide = signed.astype(np.int64)
            first = int(np.argmax(np.abs(wide) > bound))
            raise SecureAggregationError(
                "sum-implausible",
                f"coordinate {start + at + first} of the sum of {participants} participants is {int(wide[first])}, "
                f"beyond +-{bound}",
                "A mask was not removed, or a participant sent a wrong vector; audit the round to see which.",
            )

    def wire_bytes(self, dimension: int) -> int:
        """Bytes of a packed vector of this many coordinates."""
        return wire_bytes(self.wire_bits, dimension)

    def upload_bytes(self, dimension: int, layout: TailLayout) -> int:
        """Bytes of a whole upload: the packed vector, then the tail."""
        return self.wire_bytes(dimension) + layout.wire_bytes

    def pack(self, values: RingArray, out: Buffer | None = None) -> memoryview:
        """Write ring elements in the order of the wire; see :func:`packing.pack`."""
        return pack(values, self.wire_bits, out)

    def unpack(
        self, buffer: Buffer, dimension: int, start: int = 0, stop: int | None = None, out: RingArray | None = None
    ) -> RingArray:
        """Read the coordinates [start, stop) of a packed vector; see :func:`packing.unpack`."""
        return unpack(buffer, self.wire_bits, dimension, start, stop, out)

    def _signed(self, total: RingArray) -> NDArray[np.signedinteger[Any]]:
        """The low wire_bits bits as signed numbers, shape [m]: a view where that is the whole ring."""
        signed: NDArray[np.signedinteger[Any]] = total.view(f"<i{self.ring_bits // 8}")
        unused = self.ring_bits - self.wire_bits
        return signed << unused >> unused if unused else signed


class Encoder:
    """One update on its way into the ring: clipping factor and weight are fixed, slices are written as asked.

    Made by :meth:`Encoding.encoder`. It holds references to the update and the residual, and no state that a slice
    changes: any slices in any order, also in several processes, give the same bytes.
    """

    def __init__(
        self,
        encoding: Encoding,
        update: NDArray[np.float32],
        examples: int,
        dither: bytes,
        residual: NDArray[np.float32] | None = None,
    ) -> None:
        if examples < 1:
            raise _invalid(f"an update that {examples} examples stand behind has no weight")
        if update.ndim != 1 or update.dtype != np.dtype("<f4"):
            raise _malformed(f"an update is a vector of float32, not {update.ndim}-d {update.dtype}")
        if residual is not None and (residual.shape != update.shape or residual.dtype != update.dtype):
            raise _malformed(f"the residual is {residual.dtype}{list(residual.shape)}, the update {list(update.shape)}")
        self.encoding = encoding
        self.dimension = update.shape[0]
        self.weight = encoding.weight(examples)
        # np.asarray drops the subclass of a memory map, whose slices are slow to make.
        self._update = np.asarray(update)
        self._residual = None if residual is None else np.asarray(residual)
        squares = sum_of_squares(self._update, self._residual)
        if not math.isfinite(squares):
            raise _not_finite(self._update, self._residual)
        norm = math.sqrt(squares)
        self.clip_factor = 1.0 if norm <= encoding.clip_norm else encoding.clip_norm / norm
        factor = self.clip_factor * self.weight / encoding.weight_cap * encoding.scale
        # What one ring unit is worth in the update's own units, before weighting.
        unit = encoding.quantum * encoding.weight_cap / self.weight
        self._rounding = Rounding(dither, factor=factor, unit=unit, limit=encoding.limit, ring=encoding.dtype)

    def write(
        self,
        out: RingArray,
        start: int = 0,
        *,
        mask: RingArray | None = None,
        residual_out: NDArray[np.float32] | None = None,
    ) -> None:
        """Write the ring elements of the coordinates [start, start + m), with the mask added if there is one.

        Formal Guarantees:
            Each element is an integer in +-(2^(b-1) - 1) mod 2^ring_bits, plus the mask's. Its expectation over the
            seed is the scaled value v up to 2^-16 of a unit, and two coordinates are rounded independently (as long as
            AES-256-CTR is a pseudorandom generator). Unrounded, the weighted vector has an L2 norm of at most
            C * w / W * (1 + 2^-22); rounding moves each coordinate by less than one quantum more.

        Args:
            out: Where to write, shape [m], the ring's dtype; may be ``mask`` itself.
            start: The first coordinate in the update.
            mask: Shape [m], the ring's dtype; added mod 2^ring_bits in the same pass.
            residual_out: Shape [m]: receives what rounding lost, in units of the update before weighting, each at
                most quantum * W / w. May be the same slice of the residual that was read, but then this encoder can't
                be asked for these coordinates again: a participant that may have to repeat a round keeps the old one.

        Raises:
            SecureAggregationError: "update-malformed" if an array has a wrong shape or dtype.
        """
        stop = start + out.shape[0]
        if not 0 <= start <= stop <= self.dimension:
            raise _malformed(f"coordinates {start} to {stop} don't lie in an update of {self.dimension}")
        ring = self.encoding.dtype
        for name, array, dtype in (("out", out, ring), ("mask", mask, ring), ("residual_out", residual_out, "<f4")):
            if array is not None and (array.shape != out.shape or array.dtype != np.dtype(dtype)):
                raise _malformed(f"{name} is {array.dtype}{list(array.shape)}, not {dtype}[{stop - start}]")
        out = np.asarray(out)
        mask = None if mask is None else np.asarray(mask)
        lost = None if residual_out is None else np.asarray(residual_out)
        keystream = self._rounding.keystream(start)
        tile = self._rounding.tile(min(_TILE, stop - start))
        for first in range(start, stop, _TILE):
            last = min(first + _TILE, stop)
            here = slice(first - start, last - start)
            kept = None if self._residual is None else self._residual[first:last]
            values = tile.round(self._update[first:last], kept, keystream)
            if mask is None:
                out[here] = values
            else:
                np.add(values, mask[here], out=out[here])
            if lost is not None:
                tile.lost(lost[here])


def largest_value_bits(wire_bits: int, participants: int) -> int:
    """The most value_bits with which this many participants can't overflow: wire_bits - ceil(log2(participants)).

    At most 30; below 2 no encoding fits.
    """
    return min(MAX_VALUE_BITS, wire_bits - (participants - 1).bit_length())


def sum_of_squares(update: NDArray[np.float32], residual: NDArray[np.float32] | None = None) -> float:
    """Sum the squares of update + residual in one fixed order, so that every machine gets the same bits.

    Lane k of 32,768 adds the squares of the coordinates k, k + 32,768, k + 65,536, ... in that order. Then the upper
    half of the lanes is added to the lower half, fifteen times. Everything is float64, in which the square of a float32
    is exact. NaN or an infinity among the coordinates gives NaN or infinity; finite ones can't.

    Args:
        update: Shape [d].
        residual: Shape [d], added to it.
    """
    lanes = np.zeros(_LANES, dtype=np.float64)
    squares = np.empty(min(_LANES, update.shape[0]), dtype=np.float64)
    addend = np.empty(0 if residual is None else squares.shape[0], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        for at in range(0, update.shape[0], _LANES):
            part = update[at : at + _LANES]
            tile = squares[: part.shape[0]]
            np.copyto(tile, part)  # converting first is twice as fast as a multiplication that converts
            if residual is not None:
                kept = addend[: part.shape[0]]
                np.copyto(kept, residual[at : at + _LANES])
                np.add(tile, kept, out=tile)
            np.multiply(tile, tile, out=tile)
            sums = lanes[: part.shape[0]]
            np.add(sums, tile, out=sums)
        while lanes.shape[0] > 1:
            half = lanes.shape[0] // 2
            lanes = lanes[:half] + lanes[half:]
    return float(lanes[0])


def _not_finite(update: NDArray[np.float32], residual: NDArray[np.float32] | None) -> SecureAggregationError:
    """The error that names the first coordinate that isn't finite."""
    for name, vector in (("update", update), ("residual", residual)):
        for at in range(0, 0 if vector is None else vector.shape[0], _TILE):
            tile = vector[at : at + _TILE] if vector is not None else update
            finite = np.isfinite(tile)
            if not finite.all():
                first = int(np.argmin(finite))
                return SecureAggregationError(
                    "update-not-finite",
                    f"coordinate {at + first} of the {name} is {float(tile[first])}",
                    "Training diverged: lower the learning rate, or look for a record that isn't finite.",
                )
    raise AssertionError("finite coordinates have a finite sum of squares in float64")


def _invalid(message: str) -> SecureAggregationError:
    return SecureAggregationError("encoding-invalid", message, "The round's plan sets the encoding.")


def _malformed(message: str) -> SecureAggregationError:
    return SecureAggregationError(
        "update-malformed", message, "The manifest fixes the dimension, the encoding the ring."
    )
