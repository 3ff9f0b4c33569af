"""Selection networks: which comparators bring the wanted ranks of m values to their places.

Batcher's merge exchange (Knuth, The Art of Computer Programming 3, algorithm 5.2.2M), of which only the comparators
remain that a wanted output depends on, and of those only the live ends.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Comparator(NamedTuple):
    """Puts the smaller of two values at ``low`` and the larger at ``high``, as far as each is still wanted."""

    low: int
    high: int
    keep_low: bool
    keep_high: bool


@functools.lru_cache(maxsize=256)
def network(size: int, first: int, last: int) -> tuple[Comparator, ...]:
    """The comparators, in order, after which places ``first`` to ``last`` - 1 of ``size`` hold those ranks."""
    live = [first <= place < last for place in range(size)]
    kept = []
    for low, high in reversed(_merge_exchange(size)):
        if live[low] or live[high]:
            kept.append(Comparator(low, high, live[low], live[high]))
            live[low] = live[high] = True
    return tuple(reversed(kept))


def table(size: int, first: int, last: int) -> NDArray[np.int64]:
    """The same as an array [c, 2] of places."""
    pairs = [(step.low, step.high) for step in network(size, first, last)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _merge_exchange(size: int) -> list[tuple[int, int]]:
    found = []
    top = 1 << max((size - 1).bit_length() - 1, 0)
    p = top
    while size > 1 and p > 0:
        q, r, d = top, 0, p
        while True:
            found += [(i, i + d) for i in range(size - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return found
