"""Rules, pre-aggregators, and how they are put together: ``NormClip(adaptive=True) >> NNM() >> TrimmedMean()``."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, overload

from coordinator.merging.errors import MergeRefused
from coordinator.merging.gate import largest_share
from coordinator.merging.plane import Floats, Indices, Plane
from coordinator.merging.tolerance import Tolerance, check_tolerance

if TYPE_CHECKING:
    from coordinator.merging.merger import Merged


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Combination:
    """The result of a linear rule: one weighted sum.

    Attributes:
        weights: [m] of the plane's rows.
        reference_weight: Of the coordinator's own vector.
        scores: [m] What the rule judged the rows by, or None.
        dropped: [k] Rows that were found wanting.
        warnings: For the operator.
    """

    weights: Floats
    reference_weight: float = 0.0
    scores: Floats | None = None
    dropped: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """The result of a coordinate rule: what to select at each coordinate.

    Attributes:
        trim: Values to drop on each side, where ``around`` is 0.
        around: How many values around the median to average instead; 0 for none.
        rows: [k] The plane's rows that are selected from; None for all.
        scores: [m] What the rule judged the rows by, or None.
        dropped: Rows that are left out altogether.
        warnings: For the operator.
    """

    trim: int = 0
    around: int = 0
    rows: Indices | None = None
    scores: Floats | None = None
    dropped: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()


Plan = Combination | Selection


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part(abc.ABC):
    """What a recipe is made of: frozen, and told apart by name."""

    name: ClassVar[str]
    needs_gram: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False

    @abc.abstractmethod
    def require(self, participants: int, bad: int) -> None:
        """Refuse more bad participants than this part can stand.

        Raises:
            MergeRefused: "merge-tolerance".
        """

    def __str__(self) -> str:
        """The canonical name, with every setting that isn't the default."""
        settings = [
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if field.name != "f" and getattr(self, field.name) != field.default
        ]
        return self.name + (f"({', '.join(settings)})" if settings else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreAggregator(Part):
    """Turns n updates into m rows that a rule is then applied to; a matrix in the Gram plane.

    One that mixes rows needs the Gram matrix; one that scales them needs only their norms.
    """

    @abc.abstractmethod
    def apply(self, plane: Plane) -> Plane:
        """The plane of the new rows."""

    def size(self, participants: int) -> int:
        """How many rows come out."""
        return participants

    def bound(self, kappa: float | None, participants: int, bad: int) -> float | None:
        """What (bad, kappa)-robustness of the rule behind becomes; None where no bound is known."""
        return None

    @overload
    def __rshift__(self, other: PreAggregator | Chain) -> Chain: ...
    @overload
    def __rshift__(self, other: Rule | Recipe) -> Recipe: ...
    def __rshift__(self, other: PreAggregator | Chain | Rule | Recipe) -> Chain | Recipe:
        """First this, then the other."""
        return Chain(steps=(self,)) >> other


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """Pre-aggregators one after the other, that still lack a rule."""

    steps: tuple[PreAggregator, ...]

    @overload
    def __rshift__(self, other: PreAggregator | Chain) -> Chain: ...
    @overload
    def __rshift__(self, other: Rule | Recipe) -> Recipe: ...
    def __rshift__(self, other: PreAggregator | Chain | Rule | Recipe) -> Chain | Recipe:
        """First these, then the other."""
        if isinstance(other, PreAggregator):
            return Chain(steps=(*self.steps, other))
        if isinstance(other, Chain):
            return Chain(steps=(*self.steps, *other.steps))
        if isinstance(other, Rule):
            return Recipe(steps=self.steps, rule=other)
        return Recipe(steps=(*self.steps, *other.steps), rule=other.rule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule(Part):
    """From n updates to one vector.

    Args:
        f: How many participants may be bad: a count, or a fraction that is counted anew each round. None leaves it to
            the call.
    """

    f: Tolerance | None = None

    def __post_init__(self) -> None:
        """Refuse an ``f`` that can't be meant."""
        check_tolerance(self.f)

    @abc.abstractmethod
    def plan(self, plane: Plane) -> Plan:
        """Decide on the result."""

    def largest_share(self, participants: int, bad: int) -> float:
        """The most that one participant's examples may make it count for."""
        return largest_share(participants, bad)

    def kappa(self, participants: int, bad: int) -> float | None:
        """The kappa for which the rule is known to be (bad, kappa)-robust; None where we know of none.

        The bounds are those of the papers that the rules name, or are proved where the rule stands; tests see that they
        aren't exceeded, and prove nothing.

        A rule F is (f, kappa)-robust if for every set S of n - f rows, whatever the other f rows are,
        ``|F(x) - mean_S|^2 <= kappa * mean_S |x_i - mean_S|^2`` (Allouah et al., AISTATS 2023). No rule has a kappa
        under f / (n - 2 f).
        """
        return None

    def __call__(self, updates: Any, **options: Any) -> Merged:
        """Merge; arguments as for `coordinator.merging.merge`."""
        return Recipe(rule=self)(updates, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Pre-aggregators and a rule.

    Args:
        steps: Applied first to last.
        rule: Applied to what they make.
    """

    steps: tuple[PreAggregator, ...] = ()
    rule: Rule

    @property
    def name(self) -> str:
        """The canonical name."""
        return " >> ".join(str(part) for part in (*self.steps, self.rule))

    @property
    def needs_gram(self) -> bool:
        """Whether any part looks at dot products; the norms of the updates themselves are known without them."""
        return any(part.needs_gram for part in (*self.steps, self.rule))

    def require(self, participants: int, bad: int, *, reference: bool = True) -> None:
        """Refuse what any part can't stand.

        Raises:
            MergeRefused: "merge-tolerance", or "merge-reference" without the coordinator's own vector.
        """
        size = participants
        for step in self.steps:
            step.require(size, bad)
            size = step.size(size)
        self.rule.require(size, bad)
        if self.rule.needs_reference and not reference:
            raise MergeRefused(
                "merge-reference",
                f"{self.rule.name} weighs updates by the coordinator's own update, and there is none.",
                "Give the coordinator a root data set, or choose another rule.",
            )

    def plan(self, plane: Plane) -> tuple[Plan, Plane]:
        """The result, in terms of the rows of the plane that is returned with it."""
        for step in self.steps:
            plane = step.apply(plane)
        return self.rule.plan(plane), plane

    def kappa(self, participants: int, bad: int) -> float | None:
        """The known kappa of the whole, see `Rule.kappa`."""
        sizes = [participants]
        for step in self.steps:
            sizes.append(step.size(sizes[-1]))
        bound = self.rule.kappa(sizes[-1], bad)
        for step, size in zip(reversed(self.steps), reversed(sizes[:-1]), strict=True):
            bound = step.bound(bound, size, bad)
        return bound

    def __call__(self, updates: Any, **options: Any) -> Merged:
        """Merge; arguments as for `coordinator.merging.merge`."""
        from coordinator.merging.merger import merge

        return merge(self, updates, **options)
