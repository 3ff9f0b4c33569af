"""Flower's secure aggregation (SecAgg+): its own functions in the order of its own workflow, for the ratios to ours.

Masks only: agreeing on keys, sharing and rebuilding secrets, serialising and waiting are left out, in Flower's favour.
Vectors are those of Flower's mod: the weight's element first, then the update, int64 once the first mask is added. What
is repeated is timed a few times and multiplied; case names say so where that is done.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks import flower_peer

MODULUS: Final = 1 << 32
"""Flower's default, a ring of 32 bits."""

_TARGET: Final = 1 << 22
"""Its default quantization range."""
_CLIP: Final = 8.0
# The first arrays of a process are slower by a factor of up to three, where their memory comes fresh from a hypervisor.
_WARM: Final = 5


def name() -> str | None:
    """Of the peer with its version; None where it isn't installed."""
    version = flower_peer.version()
    return None if version is None else f"flwr {version}"


def masking_s(dimension: int, peers: int, measured: int) -> float:
    """Processor seconds to mask one participant's update, as ``secaggplus_mod`` does it.

    Args:
        dimension: Coordinates.
        peers: Participants that it shares a mask with; its own mask is one more.
        measured: So many of these masks are timed, and the time is scaled to all of them.
    """
    flower = _Functions()
    update = [np.array([1]), np.random.default_rng(1).integers(0, _TARGET, dimension, dtype=np.int32)]
    shapes = [array.shape for array in update]
    masks_s = 0.0
    for index in range(-_WARM, measured):
        started = time.process_time()
        mask = flower.generate(os.urandom(32), MODULUS, shapes)
        update = flower.subtract(update, mask) if index % 2 else flower.add(update, mask)
        masks_s += time.process_time() - started if index >= 0 else 0.0
    started = time.process_time()
    flower.modulo(update, MODULUS)
    return masks_s * (peers + 1) / measured + time.process_time() - started


@dataclasses.dataclass(frozen=True)
class Unmasking:
    """Processor seconds of what Flower's server does once each.

    Attributes:
        upload_s: Add an upload.
        mask_s: Make a mask and take it off.
        end_s: Reduce and dequantize.
    """

    upload_s: float
    mask_s: float
    end_s: float

    def whole_s(self, survivors: int, drops: int) -> float:
        """Seconds for a round: a mask for each survivor, and one for each neighbour of each that dropped.

        All others are neighbours, those that dropped among them: Flower takes their common masks off twice.
        """
        masks = survivors + drops * (survivors + drops - 1)
        return (survivors - 1) * self.upload_s + masks * self.mask_s + self.end_s


def unmasking(dimension: int, measured: int) -> Unmasking:
    """Time the operations of ``secaggplus_workflow`` at this dimension, the repeated ones ``measured`` times."""
    flower = _Functions()
    generator = np.random.default_rng(2)
    total, upload = (
        [np.array([1], np.int64), generator.integers(0, MODULUS, dimension, dtype=np.int64)] for _ in range(2)
    )

    def mean_s(operation: Callable[[], None]) -> float:
        for _ in range(_WARM):
            operation()
        started = time.process_time()
        for _ in range(measured):
            operation()
        return (time.process_time() - started) / measured

    def take() -> None:
        nonlocal total
        total = flower.add(total, upload)

    def unmask() -> None:
        nonlocal total
        mask = flower.generate(os.urandom(32), MODULUS, [array.shape for array in total])
        total = flower.subtract(total, mask)

    upload_s, mask_s = mean_s(take), mean_s(unmask)
    started = time.process_time()
    for array in flower.dequantize(flower.modulo(total, MODULUS)[1:], _CLIP, _TARGET):
        array += 1.0  # in place, as the workflow shifts and scales what comes out
        array *= 0.5
    return Unmasking(upload_s, mask_s, time.process_time() - started)


def bytes_per_parameter() -> float:
    """What a masked vector takes on its way, as the mod serialises it."""
    from flwr.common import ndarray_to_bytes

    size = 1 << 20
    return len(ndarray_to_bytes(np.zeros(size, np.int64))) / size


class _Functions:
    """Flower's, imported when they are needed."""

    def __init__(self) -> None:
        from flwr.common.secure_aggregation import ndarrays_arithmetic, quantization, secaggplus_utils

        self.generate: Any = secaggplus_utils.pseudo_rand_gen
        self.add: Any = ndarrays_arithmetic.parameters_addition
        self.subtract: Any = ndarrays_arithmetic.parameters_subtraction
        self.modulo: Any = ndarrays_arithmetic.parameters_mod
        self.dequantize: Any = quantization.dequantize
