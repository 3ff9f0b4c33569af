"""The numeric work of a round, on arrays: expand a participant's mask, write its upload, add up and unmask.

A mask buffer holds the main vector's ring elements, then the tail's, as they are added to an upload.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.encoding import Encoder
from privacy.secure_aggregation.integers import IntegerEncoder
from privacy.secure_aggregation.sharing import MaskTerm
from privacy.secure_aggregation.streams import MAIN, TAIL, RingVector, Stream, Term, add_streams
from privacy.transcript import digest

_SUM_LABEL: Final = "fedloom/secure-aggregation/sum/1"
_DITHER_LABEL: Final = "fedloom/secure-aggregation/dither/1"


def mask_bytes(context: RoundContext) -> int:
    """Size of a mask buffer."""
    return context.dimension * context.encoding.ring_bits // 8 + context.layout.wire_bytes


def streams(terms: Sequence[MaskTerm], name: bytes) -> list[Term]:
    """The terms' streams of this name."""
    return [(Stream(term.seed, name), 1 if term.sign > 0 else -1) for term in terms]


def split_mask(context: RoundContext, mask: NDArray[np.uint8]) -> tuple[RingVector, NDArray[np.uint64]]:
    """A mask buffer's main vector, as a view, and its tail, as a view where it is aligned and else as a copy."""
    end = context.dimension * context.encoding.ring_bits // 8
    main: RingVector = mask[:end].view(context.encoding.dtype)
    return main, mask[end:].view(np.dtype("<u8")) if end % 8 == 0 else mask[end:].copy().view("<u8")


def expand_mask(context: RoundContext, terms: Sequence[MaskTerm]) -> tuple[RingVector, NDArray[np.uint64]]:
    """Add up a participant's mask streams.

    Args:
        context: Of the attempt.
        terms: n streams; costs n * d ring elements of AES (see ``streams.add_streams``).

    Returns:
        The main vector's mask [d] and the tail's [layout.size].
    """
    main: RingVector = np.empty(context.dimension, context.encoding.dtype)
    tail = np.zeros(context.layout.size, "<u8")
    add_streams(main, streams(terms, MAIN), overwrite=True)
    add_streams(tail, streams(terms, TAIL))
    return main, tail


def dither_seed(seed: int, round_number: int, name: str) -> bytes:
    """The seed of an update's random rounding, 32 bytes.

    It follows from the plan's seed, so that a simulation and a deployment round alike and a participant that is asked
    again uploads the same bytes. No privacy rests on it: rounding is no noise mechanism here.
    """
    return digest(_DITHER_LABEL, (seed, round_number, name))


def masked_upload(
    context: RoundContext,
    encoder: Encoder | IntegerEncoder | None,
    tail: NDArray[np.uint64],
    mask: tuple[RingVector, NDArray[np.uint64]],
    terms: Sequence[MaskTerm],
    residual_out: NDArray[np.float32] | None = None,
) -> tuple[memoryview, bytes]:
    """Encode and mask: what a participant does between the end of its training and the first byte that leaves.

    Args:
        context: Of the attempt.
        encoder: Of the trained update (``Encoding.encoder``, or of its integers); None where only metrics are summed.
        tail: Encoded weight and metrics, [layout.size].
        mask: As expanded while the model trained. Overwritten.
        terms: Further streams to add: the negated masks shared with participants that dropped before the freeze.
        residual_out: Shape [d]: gets what rounding lost.

    Returns:
        The packed main vector and the tail; one behind the other they are the upload.
    """
    main, tail_mask = mask
    if encoder is not None:
        encoder.write(main, mask=main, residual_out=residual_out)
        add_streams(main, streams(terms, MAIN))
    masked_tail = np.add(tail, tail_mask)
    add_streams(masked_tail, streams(terms, TAIL))
    return context.encoding.pack(main), masked_tail.astype("<u8").tobytes()


def sum_hash(main: RingVector | bytes | memoryview, tail: NDArray[np.uint64], wire_bits: int) -> bytes:
    """Hash of one group's unmasked sum, 32 bytes; bits above ``wire_bits`` don't count."""
    data: Any = main
    if not isinstance(main, bytes | memoryview):
        unused = main.dtype.itemsize * 8 - wire_bits
        data = (main & main.dtype.type((1 << wire_bits) - 1) if unused else main).data.cast("B") if len(main) else b""
    return digest(_SUM_LABEL, (bytes(data), tail.astype("<u8").tobytes()))
