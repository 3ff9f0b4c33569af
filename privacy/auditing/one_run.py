"""A lower bound on epsilon from a single training (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846).

Each of m canaries is in the data by the toss of a coin. Whoever sees the releases guesses the coins of those with
the highest and the lowest scores, and abstains from the others. Guesses that are right too often for an (epsilon,
delta)-private training refute that epsilon.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.auditing.bounds import at_least

CONFIDENCE: Final = 0.95
_LARGEST: Final = 100.0
_STEPS: Final = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneRun:
    """The outcome of a one-run audit.

    Attributes:
        epsilon: Lower bound at ``delta``, with ``confidence``.
        delta: As given.
        confidence: As given.
        canaries: m.
        guesses: r, how many coins were guessed.
        right: v, how many of them rightly.
    """

    epsilon: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    right: int


def one_run(
    scores: NDArray[np.float64],
    included: NDArray[np.bool_],
    *,
    guesses: int,
    delta: float,
    confidence: float = CONFIDENCE,
) -> OneRun:
    """Guess coins from scores, and bound epsilon.

    Formal Guarantees:
        Let the coins be fair and independent, and the scores a function of what an (epsilon, delta)-private training
        released of the included canaries. Then ``result.epsilon`` exceeds epsilon with probability at most ``1 -
        confidence``. ``guesses`` has to be fixed before the scores are seen: choosing the best of several costs
        confidence.

    Args:
        scores: [m] The larger, the likelier included.
        included: [m] The coins.
        guesses: r, even, at most m: r / 2 highest scores are guessed as included, r / 2 lowest as not.
        delta: Of the claim, in [0, 1).
        confidence: In (0, 1).

    Raises:
        ValueError: Shapes or ranges that don't fit; scores that are NaN.
    """
    canaries = len(scores)
    if scores.shape != (canaries,) or included.shape != (canaries,) or np.isnan(scores).any():
        raise ValueError("scores and coins are two vectors of one length, without NaN")
    if guesses < 2 or guesses % 2 or guesses > canaries:
        raise ValueError(f"{guesses} coins can't be guessed half and half from {canaries} canaries")
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise ValueError(f"delta {delta} or confidence {confidence} is out of range")
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    right = int(included[order[-half:]].sum()) + int((~included[order[:half]]).sum())
    epsilon = largest_refuted(canaries, guesses, right, delta, confidence)
    return OneRun(epsilon=epsilon, delta=delta, confidence=confidence, canaries=canaries, guesses=guesses, right=right)


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Bound the probability of so many right guesses against an (epsilon, delta)-private training (Theorem 5.2).

    >>> round(p_value(100, 100, 50, 0.0, 0.0), 3)
    0.54
    """
    rate = 1.0 / (1.0 + math.exp(-epsilon))
    beta = float(at_least(right, guesses, rate))
    if delta == 0 or right == 0:
        return beta
    # P[v > Bin >= v - i] / i, for every i up to v; beyond that the numerator grows no more.
    shifts = np.arange(1, right + 1)
    gained = (at_least(right - shifts, guesses, rate) - beta) / shifts
    return min(1.0, beta + 2.0 * canaries * delta * float(gained.max()))


def largest_refuted(canaries: int, guesses: int, right: int, delta: float, confidence: float) -> float:
    """The largest epsilon whose p-value is at most 1 - confidence; 0 if none is.

    >>> round(largest_refuted(1000, 1000, 1000, 0.0, 0.95), 2)
    5.81
    """
    allowed = 1 - confidence
    if p_value(canaries, guesses, right, 0.0, delta) > allowed:
        return 0.0
    low, high = 0.0, _LARGEST
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if p_value(canaries, guesses, right, middle, delta) <= allowed:
            low = middle
        else:
            high = middle
    return low
