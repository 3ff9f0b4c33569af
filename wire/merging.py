"""How updates become one: the section ``[merging]`` of a federation, and of a run's plan."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from wire.frozen import Frozen

Setting = StrictBool | StrictInt | StrictFloat | StrictStr
"""A value of a rule's setting."""

MergingRule = Literal[
    "careful",
    "robust",
    "mean",
    "median",
    "trimmed-mean",
    "geometric-median",
    "multi-krum",
    "centered-clipping",
    "caf",
    "bulyan",
    "dnc",
]

RECIPES: Final = ("careful", "robust")
"""What names a whole recipe; all others are rules."""

DEFAULT_F: Final = 0.2
"""The fraction that may be bad where nothing is said."""


class MergingStep(Frozen):
    """What is done to the updates before the rule sees them."""

    name: Literal["norm-clip", "nnm", "bucketing"] = Field(description="norm-clip, nnm or bucketing.")
    settings: dict[str, Setting] = Field(default_factory=dict, description="Of the step, such as { adaptive = true }.")


class MergingSpec(Frozen):
    """How updates become one. Which rule stands what: docs/robustness.md."""

    rule: MergingRule = Field(
        default="careful",
        description="careful: no update longer than three median norms, no weight over three equal ones, then the "
        "mean; it stands mishaps, no adversary. robust: stands a share f of hostile participants. Or one rule by name: "
        "mean, median, trimmed-mean, geometric-median, multi-krum, centered-clipping, caf, bulyan, dnc.",
    )
    f: Annotated[StrictInt, Field(ge=0, le=100_000)] | Annotated[StrictFloat, Field(ge=0.0, lt=0.5)] | None = Field(
        default=None,
        description="How many of those who hand something in may be hostile: a count (2), or a fraction of them (0.2). "
        "Left out: 0.2, and 0 for the mean. With sums of groups it counts groups.",
    )
    before: tuple[MergingStep, ...] = Field(
        default=(),
        max_length=8,
        description='Steps before a rule by name, such as [{ name = "norm-clip", settings = { adaptive = true } }, '
        '{ name = "nnm" }].',
    )
    settings: dict[str, Setting] = Field(
        default_factory=dict, description="Of a rule by name, such as { m = 1 } of multi-krum, which makes it Krum."
    )
    max_norm: float | None = Field(
        default=None,
        gt=0.0,
        le=1e30,
        description="Updates with a larger L2 norm are refused on arrival. Left out: what float32 can't add up.",
    )

    @model_validator(mode="after")
    def _whole_recipes_have_no_parts(self) -> Self:
        if self.rule in RECIPES and (self.before or self.settings):
            raise ValueError(
                f'rule = "{self.rule}" is a whole recipe: leave out before and settings, or choose a rule by its name'
            )
        if self.rule == "careful" and self.f is not None:
            raise ValueError(
                f'f = {self.f} does nothing with rule = "careful", which stands no hostile participant: choose '
                'rule = "robust", or leave f out'
            )
        return self

    @property
    def tolerance(self) -> int | float:
        """How many may be hostile: a count or a fraction."""
        if self.f is not None:
            return self.f
        return 0 if self.rule in ("careful", "mean") else DEFAULT_F

    @property
    def robust(self) -> bool:
        """Whether it is meant to stand hostile participants, for which it must see more than one update or sum."""
        return self.rule not in ("careful", "mean")
