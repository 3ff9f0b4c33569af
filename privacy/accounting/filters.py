"""Privacy filters: budgets that hold although the noise is chosen from what has been released before.

Ordinary composition, whether by PLD or moments, assumes parameters that were fixed before the first release. A filter
(Rogers et al. 2016) is a rule, fixed beforehand, that stops in time whatever is chosen.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

from privacy.accounting.accountant import gaussian_epsilon
from privacy.accounting.events import Event
from privacy.accounting.renyi import ORDERS, divergence
from privacy.mechanisms.errors import PrivacyError


def _check(epsilon: float, delta: float) -> None:
    if not 0 < epsilon < math.inf or not 0 < delta < 1:
        raise PrivacyError(
            "filter-invalid",
            f"a filter can't hold a budget of epsilon {epsilon} at delta {delta}",
            "Epsilon must be positive, and delta between 0 and 1.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RdpFilter:
    """Stops before the Renyi divergence of one order, fixed beforehand, exceeds what the budget allows.

    Formal Guarantees:
        Releases that :meth:`allows` has allowed, each with parameters that may depend on all earlier ones, are together
        (epsilon, delta)-differentially private (Feldman & Zrnic 2021, arXiv 2008.11193), whenever the last of them is
        and whatever decides about it.

    Args:
        order: Of the divergence, above 1; :meth:`best` finds one for an expected schedule. It must be fixed before the
            first release.
        epsilon: Budget.
        delta: Budget.

    Raises:
        PrivacyError: "filter-invalid" if the order allows nothing at all.
    """

    order: float
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        """Refuse a filter that is always shut."""
        _check(self.epsilon, self.delta)
        if not 1 < self.order <= ORDERS[-1] or self.budget <= 0:
            raise PrivacyError(
                "filter-invalid",
                f"a filter of order {self.order} allows nothing within epsilon {self.epsilon} at delta {self.delta}",
                "Choose another order, or a larger epsilon.",
            )

    @property
    def budget(self) -> float:
        """The divergence that may be spent: epsilon less what the conversion to (epsilon, delta) takes."""
        order = self.order
        return self.epsilon - math.log1p(-1 / order) + (math.log(self.delta) + math.log(order)) / (order - 1)

    def cost(self, event: Event) -> float:
        """Divergence of an event."""
        return event.count * divergence(event.noise_multiplier, event.sampling_rate, self.order)

    def spent(self, events: Sequence[Event]) -> float:
        """Divergence of events together."""
        return math.fsum(self.cost(event) for event in events)

    def allows(self, events: Sequence[Event], more: Event) -> bool:
        """Whether ``more`` may be released after ``events``."""
        return self.spent([*events, more]) <= self.budget

    @classmethod
    def best(cls, expected: Sequence[Event], epsilon: float, delta: float) -> RdpFilter:
        """The order that an expected list of events takes the smallest part of the budget of.

        Args:
            expected: What will be released if all goes as planned; from the plan, not from the data.
            epsilon: Budget.
            delta: Budget.
        """
        _check(epsilon, delta)
        possible = []
        for order in ORDERS:
            try:
                found = cls(order=order, epsilon=epsilon, delta=delta)
            except PrivacyError:
                continue
            possible.append((found.spent(expected) / found.budget, found.order))
        if not possible:
            raise PrivacyError("filter-invalid", f"no filter allows anything within epsilon {epsilon} at delta {delta}")
        return cls(order=min(possible)[1], epsilon=epsilon, delta=delta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GdpFilter:
    """For Gaussian releases without sampling: stops before the inverse variances exceed what the budget allows.

    Formal Guarantees:
        As :class:`RdpFilter`; it costs nothing beside fixed parameters, since Gaussian mechanisms compose fully
        adaptively into one Gaussian mechanism (Smith & Thakurta 2022, arXiv 2210.17520; Koskela, Tobaben & Honkela
        2023, arXiv 2209.15596).

    Args:
        epsilon: Budget.
        delta: Budget.

    Raises:
        PrivacyError: "filter-invalid" for a budget without meaning.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check(self.epsilon, self.delta)

    @functools.cached_property
    def budget(self) -> float:
        """Mu squared, the inverse variance of the one Gaussian mechanism that costs as much."""
        low, high = 1e-9, 1.0
        while gaussian_epsilon(high, self.delta) > self.epsilon:
            low, high = high, 2 * high
        while high - low > 1e-12 * high:
            middle = (low + high) / 2
            if gaussian_epsilon(middle, self.delta) > self.epsilon:
                low = middle
            else:
                high = middle
        return high**-2

    def cost(self, event: Event) -> float:
        """Inverse variance of an event.

        Raises:
            PrivacyError: "filter-invalid" for a release on a sample.
        """
        if event.sampling_rate != 1.0:
            raise PrivacyError("filter-invalid", "a GDP filter is for releases without sampling", "Use an RDP filter.")
        return event.count / event.noise_multiplier**2

    def spent(self, events: Sequence[Event]) -> float:
        """Inverse variance of events together."""
        return math.fsum(self.cost(event) for event in events)

    def allows(self, events: Sequence[Event], more: Event) -> bool:
        """Whether ``more`` may be released after ``events``."""
        return self.spent([*events, more]) <= self.budget
