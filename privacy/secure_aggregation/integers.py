"""Updates that are integers already: sums with shared privacy noise, which must reach the ring exactly as drawn.

A site that shares its noise rounds its clipped sum to a lattice and adds integer noise before anything else happens
(``privacy.mechanisms.lattice``). Clipping, scaling or rounding these integers again would change the noise, so they
enter the ring as they are; what a unit is worth is the encoding's quantum.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privacy.secure_aggregation.encoding import Encoding
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.packing import RingArray


class IntegerEncoder:
    """An update of integers on its way into the ring; the counterpart of :class:`encoding.Encoder`.

    Formal Guarantees:
        What is written is the update itself mod 2^ring_bits, plus the mask; nothing is clipped, rounded or carried
        over. So a sum of n such updates is exact wherever ``Encoding.check(n)`` passes.

    Args:
        encoding: The round's; every participant has weight 1 in it.
        update: Shape [d], int32, each in +-``encoding.limit``. Not copied.

    Raises:
        SecureAggregationError: "update-malformed" for another dtype or shape, or an integer beyond the limit
            (the message names the first), since a sum with it could overflow.
    """

    def __init__(self, encoding: Encoding, update: NDArray[np.int32]) -> None:
        if update.ndim != 1 or update.dtype != np.dtype("<i4"):
            raise _malformed(f"an update with shared noise is a vector of int32, not {update.ndim}-d {update.dtype}")
        if encoding.ring_bits != 32:
            raise _malformed(f"integers of 32 bits don't enter a ring of {encoding.ring_bits} bits")
        self.encoding = encoding
        self.dimension = update.shape[0]
        self.weight = encoding.weight(1)
        self._update = np.asarray(update)
        if self.dimension and max(int(update.max()), -int(update.min())) > encoding.limit:
            first = int(np.argmax((update > encoding.limit) | (update < -encoding.limit)))
            raise _malformed(f"coordinate {first} is {int(update[first])}, beyond +-{encoding.limit}")

    def write(
        self,
        out: RingArray,
        start: int = 0,
        *,
        mask: RingArray | None = None,
        residual_out: NDArray[np.float32] | None = None,
    ) -> None:
        """Write the ring elements of the coordinates [start, start + m), with the mask added if there is one.

        Args:
            out: Shape [m], uint32; may be ``mask`` itself.
            start: The first coordinate in the update.
            mask: Shape [m], uint32; added mod 2^32.
            residual_out: Shape [m]: set to zero, since nothing is lost.
        """
        values = self._update[start : start + out.shape[0]].view(out.dtype)
        if mask is None:
            out[:] = values
        else:
            np.add(values, mask, out=out)
        if residual_out is not None:
            residual_out[:] = 0.0


def _malformed(message: str) -> SecureAggregationError:
    return SecureAggregationError(
        "update-malformed", message, "The run's plan fixes the lattice; both sides must run the same release."
    )
