"""Finding the most harmful strength of an attack: a line search over one number, with the rule as a black box."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from simulation.attacks.base import Float64, Situation
from wire.errors import FedloomError

_GOLDEN: Final = (math.sqrt(5.0) - 1.0) / 2.0


def harm(situation: Situation, vector: Float64) -> float:
    """How far the merged update is from the honest mean, if all attackers hand in ``vector`` [d].

    A rule that gives something that isn't finite, or refuses, is counted as unharmed: such a round is repeated without
    the attackers.
    """
    rows = np.concatenate([situation.honest, situation.copies(vector)])
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            distance = float(np.linalg.norm(np.asarray(situation.rule(rows), np.float64) - situation.mean))
    except (ValueError, FedloomError):
        return 0.0
    return distance if math.isfinite(distance) else 0.0


def most_harmful(
    situation: Situation, vector_at: Callable[[float], Float64], candidates: Iterable[float], refinements: int
) -> float:
    """The strength at which ``vector_at(strength)`` [d] harms the most.

    Harm needn't have a single peak (a rule drops an attacker once it is far enough out), so the candidates are tried
    one by one, and a golden-section search refines the best between its neighbours. The result is never less harmful
    than any candidate.

    Args:
        situation: The round, with the rule under attack.
        vector_at: From a strength to the attackers' common update.
        candidates: Strengths to try, in any order.
        refinements: Further strengths tried between the best candidate's neighbours.
    """
    ordered = sorted(set(candidates))
    harms = [harm(situation, vector_at(strength)) for strength in ordered]
    place = int(np.argmax(harms))
    best, worst = ordered[place], harms[place]
    low, high = ordered[max(place - 1, 0)], ordered[min(place + 1, len(ordered) - 1)]
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    found = [harm(situation, vector_at(strength)) for strength in inner[:refinements]]
    for strength, value in zip(inner, found, strict=False):
        if value > worst:
            best, worst = strength, value
    for _ in range(refinements - 2):
        if found[0] > found[1]:
            high, inner[1], found[1] = inner[1], inner[0], found[0]
            inner[0] = high - _GOLDEN * (high - low)
            moved = 0
        else:
            low, inner[0], found[0] = inner[0], inner[1], found[1]
            inner[1] = low + _GOLDEN * (high - low)
            moved = 1
        found[moved] = harm(situation, vector_at(inner[moved]))
        if found[moved] > worst:
            best, worst = inner[moved], found[moved]
    return best
