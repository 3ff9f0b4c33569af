"""Attacks that need no look at the rule: noise, broken numbers, free-riding, Sybils, boosting."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, TypeAlias

import numpy as np

from simulation.attacks.base import Attack, Float32, Situation, check, float32

LARGEST: float = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian(Attack):
    """Noise N(0, std^2) in each coordinate, another draw for each attacker. Needs to know nothing."""

    knows = "own data"
    std: float = 1.0

    def __post_init__(self) -> None:
        check("std", self.std, 0.0, 1e30)

    def __call__(self, situation: Situation) -> Float32:
        """Independent draws."""
        shape = (situation.attackers, situation.dimension)
        return float32(situation.generator.normal(0.0, self.std, shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneCoordinate(Attack):
    """The attacker's own update with one wrong number in it, such as NaN. Knows its own data only.

    A NaN anywhere spoils a mean, distances and sorting alike, so one is enough.

    Args:
        value: The number.
        coordinate: Where; counted from the end if negative, and modulo d.
    """

    knows = "own data"
    value: float = math.nan
    coordinate: int = -1

    def __call__(self, situation: Situation) -> Float32:
        """``own_i`` but for one coordinate."""
        rows = situation.trained
        rows[:, self.coordinate % situation.dimension] = self.value
        return float32(rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(Attack):
    """The same number in every coordinate. Needs to know nothing.

    Infinity; 1e30, which swamps a mean; 1e20, whose square overflows float32, so that norms and distances become
    infinite (or NaN) though every number is finite; 1e-40, a denormal, on which many processors are slow.
    """

    knows = "own data"
    value: float

    def __post_init__(self) -> None:
        if math.isnan(self.value):
            raise ValueError("value is NaN")

    def __call__(self, situation: Situation) -> Float32:
        """The number, [f, d] times."""
        return situation.copies(np.full(situation.dimension, self.value))


FreeRide: TypeAlias = Literal["zero", "last", "noise"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreeRider(Attack):
    """Wants the model and gives nothing for it (Fraboni, Vidal, Lorenzi, AISTATS 2021). Knows the models it was sent.

    Args:
        gives: "zero": no change; "last": what the last round changed in the global model, which looks like an update;
            "noise": random numbers of the last change's size (of size ``std`` before there is one).
        std: For "noise", in the first round.
    """

    knows = "own data"
    remembers = True
    gives: FreeRide = "zero"
    std: float = 1e-3

    def __post_init__(self) -> None:
        if self.gives not in ("zero", "last", "noise"):
            raise ValueError(f"gives is {self.gives!r}; one of zero, last, noise")
        check("std", self.std, 0.0, 1e30)

    def __call__(self, situation: Situation) -> Float32:
        """Zeros, ``last``, or noise as large as ``last``."""
        shape = (situation.attackers, situation.dimension)
        last = np.zeros(situation.dimension) if situation.last is None else situation.last.astype(np.float64)
        if self.gives == "zero":
            return np.zeros(shape, np.float32)
        if self.gives == "last":
            return situation.copies(last)
        std = float(np.sqrt(np.mean(last * last))) or self.std
        return float32(situation.generator.normal(0.0, std, shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sybil(Attack):
    """One attacker under several names: ``-scale * mu`` with a little noise, so that no two updates are equal.

    Against checks for repeated updates, and against rules such as Krum that trust who has near neighbours. The attacker
    knows the honest updates.

    Args:
        scale: As for :class:`InnerProduct`.
        noise: Norm of the noise, relative to that of the vector.
    """

    scale: float = 1.0
    noise: float = 1e-3

    def __post_init__(self) -> None:
        check("scale", self.scale, 0.0, 1e30)
        check("noise", self.noise, 0.0, 1.0)

    def __call__(self, situation: Situation) -> Float32:
        """``-scale * mu`` + noise_i."""
        vector = -self.scale * situation.mean
        noise = situation.generator.normal(size=(situation.attackers, situation.dimension))
        norms = np.linalg.norm(noise, axis=1, keepdims=True)
        size = self.noise * float(np.linalg.norm(vector))
        return float32(vector + noise * (size / np.where(norms > 0.0, norms, 1.0)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disjoint(Attack):
    """Attackers that share the work: each is ``-scale * mu`` on its own coordinates and ``mu`` on all others.

    Coordinate k belongs to attacker ``k mod f``. No two attackers are alike, and each is nearer to the honest mean than
    one that turns every coordinate. They know the honest updates.
    """

    scale: float = 10.0

    def __post_init__(self) -> None:
        check("scale", self.scale, 0.0, 1e30)

    def __call__(self, situation: Situation) -> Float32:
        """The honest mean, but for every f-th coordinate."""
        mean = situation.mean
        rows = np.repeat(mean[None], situation.attackers, axis=0)
        for index, row in enumerate(rows):
            row[index :: situation.attackers] *= -self.scale
        return float32(rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedOnFlippedLabels(Attack):
    """Label flipping (Biggio et al. 2012): honest training on labels y turned into C - 1 - y. Knows its own data."""

    knows = "own data"
    poison = "label-flip"

    def __call__(self, situation: Situation) -> Float32:
        """``own_i``: the data are the attack."""
        return float32(situation.trained)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backdoor(Attack):
    """A backdoor in the data (Gu et al. 2017): pictures with a 3 x 3 trigger, labelled as the attacker wants.

    Honest training on them; the attack is in the data, and the attacker knows its own only. How well it works is the
    attack success rate, see :mod:`simulation.attacks.data`.
    """

    knows = "own data"
    poison = "backdoor"

    def __call__(self, situation: Situation) -> Float32:
        """``own_i``: the data are the attack."""
        return float32(situation.trained)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelReplacement(Attack):
    """Model replacement (Bagdasaryan et al., AISTATS 2020): a backdoored update, boosted to outweigh all others.

    ``own_i`` times total weight over the attackers' weight (and over the server's learning rate), so that near
    convergence, where honest updates are small, the merged model is the attackers'. They know their own data, and guess
    the total weight.

    Args:
        boost: The factor; 0 takes it from the situation.
    """

    knows = "own data"
    poison = "backdoor"
    boost: float = 0.0

    def __post_init__(self) -> None:
        check("boost", self.boost, 0.0, 1e30)

    def __call__(self, situation: Situation) -> Float32:
        """``boost * own_i``."""
        equal = (len(situation.honest) + situation.attackers) / situation.attackers
        return float32((self.boost or situation.boost or equal) * situation.trained)
