"""A clipping norm that follows a quantile of the gradients' norms, privately (Andrew et al. 2021, arXiv 1905.03871).

Besides the clipped sum a step releases how many gradients were within the norm, with noise of its own. Both together
are one Gaussian mechanism whose noise multiplier z is what is accounted; the gradient's noise is a little larger then.
"""

from __future__ import annotations

import dataclasses
import math

from privacy.mechanisms.errors import PrivacyError


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantileClipping:
    """How the norm follows the data.

    Args:
        target: Share of gradients that should be within the norm, in (0, 1).
        learning_rate: Of the geometric update, in (0, 1].
        count_multiplier: Standard deviation of the count's noise as a multiple of z, above 0.5; the larger, the less it
            takes from the gradient.

    Raises:
        PrivacyError: "quantile-invalid".
    """

    target: float = 0.5
    learning_rate: float = 0.2
    count_multiplier: float = 5.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, low, high in (("target", 0.0, 1.0), ("learning_rate", 0.0, 1.0), ("count_multiplier", 0.5, 1e6)):
            value = getattr(self, name)
            if not low < value <= high or (name == "target" and value == high):
                raise PrivacyError("quantile-invalid", f"{name} is {value}; it must lie between {low} and {high}")

    def count_std(self, multiplier: float) -> float:
        """Standard deviation of the count's noise, for an accounted noise multiplier z."""
        return self.count_multiplier * multiplier

    def gradient_multiplier(self, multiplier: float) -> float:
        """The gradient's noise multiplier z_D with which both releases together have ``multiplier``.

        Formal Guarantees:
            The indicator minus one half has sensitivity 1/2, so its noise multiplier is 2 * count_std. With
            z_D^-2 + (2 count_std)^-2 = z^-2 the joint release is one Gaussian mechanism of multiplier z (Theorem 1).

        >>> round(QuantileClipping(count_multiplier=5.0).gradient_multiplier(1.0), 5)
        1.00504

        Raises:
            PrivacyError: "quantile-invalid" if the count alone costs all of it.
        """
        rest = multiplier**-2 - (2.0 * self.count_std(multiplier)) ** -2
        if rest <= 0:
            raise PrivacyError(
                "quantile-invalid", "the count's noise is so small that nothing is left for the gradient"
            )
        return 1.0 / math.sqrt(rest)

    def next_norm(self, norm: float, noisy_count: float, expected_batch: float) -> float:
        """The clipping norm of the next step.

        Args:
            norm: Of this one.
            noisy_count: Sum over the batch of (within the norm) - 1/2, with its noise.
            expected_batch: q * N. The batch's true size is private and isn't used.

        Returns:
            A positive norm, at most e times smaller or larger.
        """
        share = min(max(noisy_count / expected_batch + 0.5, 0.0), 1.0)
        return norm * math.exp(-self.learning_rate * (share - self.target))
