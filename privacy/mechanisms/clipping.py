"""How the influence of one unit is bounded before noise is added."""

from __future__ import annotations

import dataclasses
import math
from typing import Final, Literal

from privacy.mechanisms.errors import PrivacyError

STABILISER: Final = 0.01
"""Automatic clipping's gamma: gradients much shorter than it aren't blown up (Bu et al. 2022, arXiv 2206.07136)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClippingRule:
    """What becomes of a unit's gradient g, given the clipping norm C of the step.

    Formal Guarantees:
        The result has an L2 norm of at most C, whatever g is.

    Args:
        kind: "flat": g * min(1, C / |g|). "automatic": g * C / (|g| + 0.01). "layers": each layer's part of g is
            clipped by itself, to its share of C.
        shares: For "layers": positive, one for each trained parameter group, with squares that add up to 1.

    Raises:
        PrivacyError: "clipping-invalid".
    """

    kind: Literal["flat", "automatic", "layers"] = "flat"
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse shares that don't add up."""
        if self.kind not in ("flat", "automatic", "layers"):
            raise PrivacyError("clipping-invalid", f"there is no clipping {self.kind!r}")
        if (self.kind == "layers") != bool(self.shares):
            raise PrivacyError("clipping-invalid", 'shares are for clipping "layers", which needs them')
        if self.shares:
            total = math.fsum(share * share for share in self.shares)
            if not all(share > 0 for share in self.shares) or total > 1 + 1e-9:
                raise PrivacyError(
                    "clipping-invalid",
                    f"the shares of the layers' clipping norms have squares that add up to {total:.6g}, not to 1",
                )

    @classmethod
    def layers(cls, count: int) -> ClippingRule:
        """Equal shares for so many layers."""
        if count < 1:
            raise PrivacyError("clipping-invalid", f"a model can't have {count} layers")
        return cls(kind="layers", shares=(1 / math.sqrt(count),) * count)
