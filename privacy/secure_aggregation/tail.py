"""The tail block: example counts and metrics of a round, summed under a mask of their own, never sent in clear.

The tail is a vector over the integers mod 2^64, '<u8', appended to the packed main vector. With m metrics it has
2 + 2 m elements:

``[1, w, w * fixed(v_1), w_1, w * fixed(v_2), w_2, ...]``

where w is the participant's weight, ``fixed(v)`` its metric v clipped to +-1024 in steps of 2^-20, and w_k is w if it
reports metric k and 0 if it doesn't (then the element before it is 0, too). From the sums over the survivors the
coordinator learns how many they are, their total weight, and each metric's weighted mean over those that reported it.

Nothing overflows: n <= 2^10 participants, w <= 2^20 and |fixed(v)| <= 2^10 * 2^20 = 2^30, so every sum lies in
[-2^60, 2^60], and a signed number of 64 bits holds up to 2^63 - 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from privacy.secure_aggregation.errors import SecureAggregationError

MAX_PARTICIPANTS: Final = 1 << 10
MAX_WEIGHT: Final = 1 << 20
MAX_METRICS: Final = 64
METRIC_LIMIT: Final = 1024.0
"""Metrics are clipped to +- this."""

_MAX_NAME: Final = 64
_STEPS: Final = float(1 << 20)  # fixed-point steps to one unit of a metric
_TERM: Final = int(METRIC_LIMIT * _STEPS)  # the largest |fixed(v)|


@dataclasses.dataclass(frozen=True)
class TailLayout:
    """Which metrics a round's tail sums, in which order; part of the round's context.

    Args:
        metrics: Names, distinct and sorted by code point; up to 64, each of 1 to 64 printable characters.

    Raises:
        SecureAggregationError: "metrics-invalid" if they aren't.
    """

    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.metrics) > MAX_METRICS:
            raise _invalid(f"{len(self.metrics)} metrics were named; a round sums at most {MAX_METRICS}")
        for name in self.metrics:
            if not 1 <= len(name) <= _MAX_NAME or not name.isprintable():
                raise _invalid(f"a metric's name has 1 to {_MAX_NAME} printable characters, which {name[:80]!r} hasn't")
        if list(self.metrics) != sorted(set(self.metrics)):
            raise _invalid("the names of metrics must be distinct and in sorted order")

    @property
    def size(self) -> int:
        """Elements of the tail: 2 + 2 for each metric."""
        return 2 + 2 * len(self.metrics)

    @property
    def wire_bytes(self) -> int:
        """Bytes of the tail: 8 for each element."""
        return 8 * self.size

    def check(self, participants: int) -> None:
        """Check that this many participants can't overflow the tail.

        Raises:
            SecureAggregationError: "overflow" if they are more than 1,024, or none.
        """
        if not 1 <= participants <= MAX_PARTICIPANTS:
            raise SecureAggregationError(
                "overflow",
                f"a tail sums 1 to {MAX_PARTICIPANTS} participants, not {participants}",
                "Invite fewer participants to a round, or use groups.",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TailSum:
    """What the tail's sum says.

    Args:
        count: Participants in the sum.
        weight: Their total weight, an integer; `Encoding.decode` divides by it.
        means: Weighted mean of each metric over those that reported it; one that nobody reported is missing.
    """

    count: int
    weight: int
    means: dict[str, float]


def encode_tail(layout: TailLayout, weight: int, metrics: Mapping[str, float]) -> NDArray[np.uint64]:
    """Encode one participant's weight and metrics.

    Formal Guarantees:
        Every element lies in [-2^50, 2^50] as a signed number, whatever the metrics are: one participant moves a
        metric's sum by at most weight * 1024.

    Args:
        layout: The round's.
        weight: The participant's integer weight, 0 to 2^20 (see `Encoding.weight`).
        metrics: Values by name. One that is missing or isn't finite is not reported.

    Returns:
        Shape [layout.size], '<u8'.

    Raises:
        SecureAggregationError: "metrics-invalid" if a name isn't in the layout or the weight is out of range.
    """
    unknown = sorted(set(metrics) - set(layout.metrics))
    if unknown:
        raise _invalid(f"the round sums no metric {unknown[0]!r}")
    if not 0 <= weight <= MAX_WEIGHT:
        raise _invalid(f"a weight of {weight} doesn't lie between 0 and {MAX_WEIGHT}")
    elements = [1, weight]
    for name in layout.metrics:
        value = float(metrics.get(name, math.nan))
        if math.isfinite(value):
            # The product with a power of two is exact; round() takes the even one of two equally near integers.
            fixed = round(min(max(value, -METRIC_LIMIT), METRIC_LIMIT) * _STEPS)
            elements += [weight * fixed, weight]
        else:
            elements += [0, 0]
    return np.array([element % (1 << 64) for element in elements], dtype="<u8")


def decode_tail(
    layout: TailLayout, total: NDArray[np.uint64], *, participants: int, weight_cap: int = MAX_WEIGHT
) -> TailSum:
    """Read the unmasked sum of tails, and refuse one that honest participants can't have made.

    Formal Guarantees:
        A sum of tails of ``participants`` honest participants is accepted. A sum that is still masked by one uniform
        vector is accepted with a probability below 2^-97: its first element has one admissible value of 2^64, and the
        second at most 2^30 + 1 of 2^64.

    Args:
        layout: The round's.
        total: Sum mod 2^64, shape [layout.size].
        participants: How many are in the sum, at most 1,024.
        weight_cap: The largest weight of one participant (`Encoding.weight_cap`).

    Returns:
        Count, weight and means. The means are within 2^-20 of those of the clipped metrics.

    Raises:
        SecureAggregationError: "tail-implausible", naming the element; "upload-malformed" if the shape is wrong;
            "overflow" if there are too many participants.
    """
    layout.check(participants)
    if total.shape != (layout.size,):
        raise SecureAggregationError(
            "upload-malformed", f"the round's tail has {layout.size} elements, not shape {list(total.shape)}"
        )
    count, weight, *pairs = (_signed(int(element)) for element in total)
    if count != participants:
        raise _implausible(f"it counts {count} participants where {participants} are in the sum")
    if not 0 <= weight <= participants * min(weight_cap, MAX_WEIGHT):
        raise _implausible(f"the weights of {participants} participants, each at most {weight_cap}, can't be {weight}")
    means: dict[str, float] = {}
    for name, term, reported in zip(layout.metrics, pairs[::2], pairs[1::2], strict=True):
        if not 0 <= reported <= weight or abs(term) > reported * _TERM:
            raise _implausible(f"metric {name!r} has the sum {term} over the weight {reported}")
        if reported:
            means[name] = term / reported / _STEPS
    return TailSum(count=count, weight=weight, means=means)


def split_upload(
    buffer: bytes | bytearray | memoryview | NDArray[Any], layout: TailLayout
) -> tuple[memoryview, NDArray[np.uint64]]:
    """Cut an upload into the packed main vector and the tail behind it.

    Args:
        buffer: The upload, `Encoding.upload_bytes` long.
        layout: The round's.

    Returns:
        A view of the main vector's bytes, and a copy of the tail, shape [layout.size].

    Raises:
        SecureAggregationError: "upload-malformed" if the buffer is shorter than the tail alone.
    """
    data = np.frombuffer(buffer, dtype=np.uint8)
    main = data.shape[0] - layout.wire_bytes
    if main < 0:
        raise SecureAggregationError(
            "upload-malformed", f"an upload of {len(data)} bytes is shorter than its tail of {layout.wire_bytes}"
        )
    # A copy, since the tail may begin at any byte and is added to as a vector of 64-bit elements.
    return data[:main].data, data[main:].copy().view("<u8")


def _signed(element: int) -> int:
    return element - (1 << 64) if element >> 63 else element


def _invalid(message: str) -> SecureAggregationError:
    return SecureAggregationError("metrics-invalid", message, "The round's plan lists the metrics.")


def _implausible(message: str) -> SecureAggregationError:
    return SecureAggregationError(
        "tail-implausible",
        f"the sum of the tails can't be right: {message}",
        "A mask was not removed, or a participant sent a wrong tail; audit the round to see which.",
    )
