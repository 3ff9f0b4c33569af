"""What an attack is: from what the attackers know in a round to what they hand in."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]

Rule: TypeAlias = Callable[[Float32], "Float32 | Float64"]
"""A merging rule as an attack sees it: updates [n, d], the honest ones first, to the merged update [d]."""

Knowledge: TypeAlias = Literal["omniscient", "own data"]
"""Whether the attackers read the honest participants' updates, or nothing beyond their own machines."""

Poison: TypeAlias = Literal["", "label-flip", "backdoor"]
"""What is done to the attackers' own training data."""


def plain_mean(rows: Float32) -> Float64:
    """The mean of the rows [n, d], without weights."""
    mean: Float64 = rows.mean(axis=0, dtype=np.float64)
    return mean


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Situation:
    """What there is to know in one round.

    Attributes:
        honest: [h, d] The honest participants' updates, in the order of their names.
        attackers: How many attackers hand in an update, f.
        own: [f, d] What the attackers' own training gave; zeros where it isn't given.
        last: [d] What the last round changed in the global model; zeros where it isn't given.
        rule: How the coordinator merges, for attacks that are tuned against it.
        boost: By how much the sum of the attackers' updates must grow to become the merged one: total weight over
            attackers' weight. Equal weights where it isn't given.
        seed: Of everything drawn at random.
    """

    honest: Float32
    attackers: int
    own: Float32 | None = None
    last: Float32 | None = None
    rule: Rule = plain_mean
    boost: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.honest.ndim != 2 or not len(self.honest) or not self.honest.shape[1]:
            raise ValueError(f"honest updates are rows [h, d], at least one, not {list(self.honest.shape)}")
        if self.attackers < 1:
            raise ValueError(f"attackers is {self.attackers}; at least 1")
        if self.own is not None and self.own.shape != (self.attackers, self.dimension):
            raise ValueError(f"own is {list(self.own.shape)}, not {[self.attackers, self.dimension]}")
        if self.last is not None and self.last.shape != (self.dimension,):
            raise ValueError(f"last is {list(self.last.shape)}, not {[self.dimension]}")

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.honest.shape[1])

    @functools.cached_property
    def mean(self) -> Float64:
        """[d] The honest mean; read-only."""
        mean = plain_mean(self.honest)
        mean.flags.writeable = False
        return mean

    @functools.cached_property
    def deviation(self) -> Float64:
        """[d] The honest standard deviation of each coordinate, of the population (not of a sample); read-only."""
        deviation: Float64 = self.honest.std(axis=0, dtype=np.float64)
        deviation.flags.writeable = False
        return deviation

    @property
    def trained(self) -> Float64:
        """[f, d] ``own`` in float64."""
        shape = (self.attackers, self.dimension)
        return np.zeros(shape) if self.own is None else self.own.astype(np.float64)

    @property
    def generator(self) -> np.random.Generator:
        """A new generator from the seed."""
        return np.random.default_rng(self.seed)

    def copies(self, vector: Float64) -> Float32:
        """[f, d] The same vector for each attacker, as what is handed in."""
        return np.repeat(float32(vector)[None], self.attackers, axis=0)


class Attack(abc.ABC):
    """A way to spoil a round. Subclasses are frozen dataclasses of their parameters.

    An attack is a pure function: it reads the situation, changes nothing in it, and gives the same updates again.

    Attributes:
        knows: What the attackers must know.
        poison: What is done to their training data.
        remembers: Whether ``Situation.last`` is used.
    """

    knows: ClassVar[Knowledge] = "omniscient"
    poison: ClassVar[Poison] = ""
    remembers: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, situation: Situation) -> Float32:
        """The attackers' updates [f, d], float32."""


def float32(values: Float64) -> Float32:
    """The nearest float32; beyond its range infinity, without a warning."""
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float32)


def check(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    """Refuse a parameter outside [low, high].

    Raises:
        ValueError: It is outside, or not a number.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it goes from {low:g} to {high:g}")
