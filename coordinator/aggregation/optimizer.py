"""Server optimizers: from the weighted mean of the updates to the next model, a slice of coordinates at a time.

The mean of differences takes the place of a gradient (Reddi et al., "Adaptive Federated Optimization", ICLR 2021).
Every rule here works coordinate by coordinate, in float64, and rounds to float32 once at the end; so the result doesn't
depend on how the coordinates are sliced. The optimizer's vectors are stored as float32, rounded once a step from the
float64 values that moved the model: half the disk and half the hashing of float64, for a relative error of 6e-8 a round
in quantities that are themselves running averages of noisy updates.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wire import AggregationSpec


class ServerOptimizer(abc.ABC):
    """A coordinate-wise rule with as many vectors of state as it has ``state_names``."""

    @property
    @abc.abstractmethod
    def state_names(self) -> tuple[str, ...]:
        """What its vectors are called, in the order of ``step``'s ``state``."""

    @abc.abstractmethod
    def fresh(self) -> tuple[float, ...]:
        """The value that each vector of state has everywhere before the first step."""

    @abc.abstractmethod
    def step(
        self,
        model: NDArray[np.float32],
        mean: NDArray[np.float64],
        state: Sequence[NDArray[np.float32]],
        scratch: NDArray[np.float64],
    ) -> None:
        """Move a slice of the model and of the state, in place.

        A result too large for float32 becomes infinite or NaN without a warning; the caller looks.

        Args:
            model: [m] In: the base. Out: the next version.
            mean: [m] The weighted mean of the differences; overwritten.
            state: one [m] for each of ``state_names``; in: before the step, out: after it.
            scratch: [2, m] working space; overwritten.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class FedAvg(ServerOptimizer):
    """``x += learning_rate * m`` with ``m = momentum * m + mean``.

    With learning rate 1 and no momentum this is federated averaging (McMahan et al. 2017); with momentum it is FedAvgM
    (Hsu et al. 2019).

    Args:
        learning_rate: Above 0.
        momentum: In [0, 1). At 0 there is no state.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _positive("learning_rate", self.learning_rate)
        _fraction("momentum", self.momentum)

    @property
    def state_names(self) -> tuple[str, ...]:
        """One vector, ``momentum``, or none."""
        return ("momentum",) if self.momentum else ()

    def fresh(self) -> tuple[float, ...]:
        """Zero."""
        return (0.0,) if self.momentum else ()

    def step(
        self,
        model: NDArray[np.float32],
        mean: NDArray[np.float64],
        state: Sequence[NDArray[np.float32]],
        scratch: NDArray[np.float64],
    ) -> None:
        """See :meth:`ServerOptimizer.step`."""
        wide = scratch[0]
        with np.errstate(over="ignore", invalid="ignore"):
            for velocity in state:
                wide[...] = velocity
                wide *= self.momentum
                mean += wide
                velocity[...] = mean
            if self.learning_rate != 1.0:
                mean *= self.learning_rate
            wide[...] = model
            wide += mean
            model[...] = wide


@dataclasses.dataclass(frozen=True, kw_only=True)
class FedAdam(ServerOptimizer):
    """Adam on the server, as in Algorithm 2 of Reddi et al. 2021: no bias correction.

    ``m = beta1 m + (1 - beta1) mean``; ``v = beta2 v + (1 - beta2) mean^2``;
    ``x += learning_rate * m / (sqrt(v) + tau)``. Before
    the first step m is 0 and v is ``tau^2``, the least that the paper's algorithm allows.

    Args:
        learning_rate: Above 0.
        beta1: In [0, 1).
        beta2: In [0, 1).
        tau: Above 0. Degree of adaptivity; larger is closer to momentum.
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    _names: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")

    def __post_init__(self) -> None:
        _positive("learning_rate", self.learning_rate)
        _positive("tau", self.tau)
        _fraction("beta1", self.beta1)
        _fraction("beta2", self.beta2)

    @property
    def state_names(self) -> tuple[str, ...]:
        """``first_moment`` (m) and ``second_moment`` (v)."""
        return self._names

    def fresh(self) -> tuple[float, ...]:
        """0 and ``tau^2``."""
        return (0.0, self.tau * self.tau)

    def step(
        self,
        model: NDArray[np.float32],
        mean: NDArray[np.float64],
        state: Sequence[NDArray[np.float32]],
        scratch: NDArray[np.float64],
    ) -> None:
        """See :meth:`ServerOptimizer.step`."""
        first, second = state
        root, wide = scratch
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(mean, mean, out=wide)
            wide *= 1.0 - self.beta2
            root[...] = second
            root *= self.beta2
            root += wide
            second[...] = root
            np.sqrt(root, out=root)
            root += self.tau
            mean *= 1.0 - self.beta1
            wide[...] = first
            wide *= self.beta1
            mean += wide
            first[...] = mean
            mean /= root
            mean *= self.learning_rate
            wide[...] = model
            wide += mean
            model[...] = wide


def server_optimizer(spec: AggregationSpec, step_scale: float = 1.0) -> ServerOptimizer:
    """The optimizer that a run's plan asks for, its learning rate times ``step_scale``."""
    learning_rate = spec.learning_rate * step_scale
    if spec.optimizer == "fedavg":
        return FedAvg(learning_rate=learning_rate, momentum=spec.momentum)
    return FedAdam(learning_rate=learning_rate, beta1=spec.beta1, beta2=spec.beta2, tau=spec.tau)


def _positive(name: str, value: float) -> None:
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} is {value}, but must be a finite number above 0")


def _fraction(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} is {value}, but must be at least 0 and under 1")
