"""Attacks on the protocol: what a site hands in isn't what a round asks for. They need no look at anybody's update.

A :class:`Forgery` turns a :class:`Submission` into another one, whatever carries it: a simulated site, a real daemon,
or a test that speaks to a real coordinator by hand. A coordinator must refuse each by name, or make it harmless.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import numpy as np

from simulation.attacks.base import Knowledge, Poison, check

_LARGEST_COUNT = 2**64 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """What a site hands in for a task.

    Attributes:
        content: The update as bytes: float32 [d], little-endian.
        examples: The records that it says the update was trained on.
        announced: The records that it has said it has, when it came.
    """

    content: bytes
    examples: int
    announced: int


class Forgery(abc.ABC):
    """A way to break the protocol. Subclasses are frozen dataclasses of their parameters; they are pure."""

    knows: ClassVar[Knowledge] = "own data"
    poison: ClassVar[Poison] = ""

    @abc.abstractmethod
    def __call__(self, true: Submission, previous: Submission | None = None) -> Submission:
        """The forged submission.

        Args:
            true: What an honest site would hand in.
            previous: What it would have handed in for the round before; None in its first.
        """

    def announced(self, examples: int) -> int:
        """The number of records that the site says it has, when it comes."""
        return examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForgedCount(Forgery):
    """A claimed example count that buys the round: the mean is weighted by what participants say they have.

    Knows its own data only. The update behind the count is the attacker's own, times ``scale``.

    Args:
        examples: The claim. A negative number is what reaches the coordinator as 2^64 less its size: the field has no
            sign.
        consistent: Whether the site has announced as many from the start, so that the claim contradicts nothing.
        scale: -1 turns the update round.
    """

    examples: int = 1_000_000_000
    consistent: bool = True
    scale: float = -1.0

    def __post_init__(self) -> None:
        check("examples", self.examples, -(2**63), _LARGEST_COUNT)
        check("scale", self.scale, -1e30, 1e30)

    def __call__(self, true: Submission, previous: Submission | None = None) -> Submission:
        """The own update, scaled, with the forged count."""
        with np.errstate(over="ignore"):
            update = np.frombuffer(true.content, "<f4") * np.float32(self.scale)
        count = self.examples % (_LARGEST_COUNT + 1)
        announced = self.announced(true.announced)
        return Submission(content=update.astype("<f4").tobytes(), examples=count, announced=announced)

    def announced(self, examples: int) -> int:
        """The forged count too, where the site is consistent."""
        return self.examples % (_LARGEST_COUNT + 1) if self.consistent else examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay(Forgery):
    """The update of the round before, once more: work that isn't done again. Knows its own data only.

    In the first round there is nothing to replay, and the true update goes out.
    """

    def __call__(self, true: Submission, previous: Submission | None = None) -> Submission:
        """The previous content."""
        return true if previous is None else dataclasses.replace(true, content=previous.content)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrongSize(Forgery):
    """An update of another model: some parameters too many, or too few. Knows its own data only.

    Args:
        parameters: How many more; fewer where it is negative. At least one always stays.
    """

    parameters: int = 1

    def __post_init__(self) -> None:
        if not self.parameters:
            raise ValueError("parameters is 0, which is the right size")

    def __call__(self, true: Submission, previous: Submission | None = None) -> Submission:
        """The content, longer or shorter."""
        if self.parameters > 0:
            content = true.content + bytes(4 * self.parameters)
        else:
            content = true.content[: max(4, len(true.content) + 4 * self.parameters)]
        return dataclasses.replace(true, content=content)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrongType(Forgery):
    """The numbers in another type than float32, little-endian. Knows its own data only.

    Args:
        dtype: "<f8" and "<f2" change the size; ">f4" (the other byte order) and "<i4" don't: the bytes are taken for
            float32, and mean nothing.
    """

    dtype: str = "<f8"

    def __post_init__(self) -> None:
        if self.dtype not in ("<f8", "<f2", ">f4", "<i4"):
            raise ValueError(f"dtype is {self.dtype!r}; one of <f8, <f2, >f4, <i4")

    def __call__(self, true: Submission, previous: Submission | None = None) -> Submission:
        """The content, converted; as integers, in millionths."""
        update = np.frombuffer(true.content, "<f4").astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = np.rint(update * 1e6) if self.dtype == "<i4" else update
            return dataclasses.replace(true, content=wanted.astype(self.dtype).tobytes())
