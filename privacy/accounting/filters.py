"""Privacy filters: budgets that hold although the noise is chosen from what has been released before.

Ordinary composition, whether by PLD or moments, assumes parameters that were fixed before the first release. A filter
(Rogers et al. 2016) is a rule, fixed beforehand, that stops in time whatever is chosen.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from privacy.accounting.events import Event, dp_event
from privacy.mechanisms.errors import PrivacyError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RdpFilter:
    """Stops before the Renyi divergence of one order, fixed beforehand, exceeds what the budget allows.

    Formal Guarantees:
        Releases that :meth:`allows` has allowed, each with parameters that may depend on all earlier ones, are together
        (epsilon, delta)-differentially private (Feldman & Zrnic 2021, arXiv 2008.11193, Theorem 4.3).

    Args:
        order: Of the divergence, above 1, at most 256; :meth:`best` finds one for an expected schedule.
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
        if not 1 < self.order <= 256 or self.budget <= 0:
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

    def spent(self, events: list[Event]) -> float:
        """Divergence of these events."""
        return sum(
            event.count * _divergence(event.noise_multiplier, event.sampling_rate, self.order) for event in events
        )

    def allows(self, events: list[Event], more: Event) -> bool:
        """Whether ``more`` may be released after ``events``."""
        return self.spent([*events, more]) <= self.budget

    @classmethod
    def best(cls, expected: list[Event], epsilon: float, delta: float) -> RdpFilter:
        """The order that leaves most of the budget after an expected list of events."""
        orders = [1.1 + 0.1 * step for step in range(100)] + [12.0 + step for step in range(52)]
        possible = []
        for order in orders:
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
        As :class:`RdpFilter`; it costs nothing beside fixed parameters (Smith & Thakurta 2022; Koskela et al. 2022,
        arXiv 2208.10094: fully adaptive composition of Gaussian mechanisms is one Gaussian mechanism).
    """

    epsilon: float
    delta: float

    @functools.cached_property
    def budget(self) -> float:
        """Mu squared, the inverse variance of the one Gaussian mechanism that costs as much."""
        import dp_accounting as dp

        return float(dp.get_sigma_gaussian(self.epsilon, self.delta)) ** -2

    def allows(self, events: list[Event], more: Event) -> bool:
        """Whether ``more`` may be released after ``events``.

        Raises:
            PrivacyError: "filter-invalid" for a release on a sample.
        """
        if any(event.sampling_rate != 1.0 for event in (*events, more)):
            raise PrivacyError("filter-invalid", "a GDP filter is for releases without sampling", "Use an RDP filter.")
        return sum(event.count / event.noise_multiplier**2 for event in (*events, more)) <= self.budget


@functools.lru_cache(maxsize=4096)
def _divergence(sigma: float, rate: float, order: float) -> float:
    from dp_accounting.rdp import RdpAccountant

    from privacy.accounting.events import GaussianEvent

    accountant = RdpAccountant(orders=[order])
    accountant.compose(dp_event([GaussianEvent(noise_multiplier=sigma, sampling_rate=rate)]))
    return float(accountant._rdp[0])
