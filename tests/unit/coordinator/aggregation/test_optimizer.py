"""Server optimizers: their settings, and what one step does to one coordinate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordinator.aggregation import FedAdam, FedAvg, ServerOptimizer, server_optimizer
from wire import AggregationSpec


def step(optimizer: ServerOptimizer, model: float, mean: float, state: tuple[float, ...]) -> tuple[float, ...]:
    vectors = [np.float32([value]) for value in (model, *state)]
    optimizer.step(vectors[0], np.array([mean]), vectors[1:], np.empty((2, 1)))
    return tuple(float(vector[0]) for vector in vectors)


def test_the_plan_chooses() -> None:
    assert server_optimizer(AggregationSpec()) == FedAvg(learning_rate=1.0, momentum=0.0)
    assert server_optimizer(AggregationSpec(learning_rate=0.5, momentum=0.25)) == FedAvg(
        learning_rate=0.5, momentum=0.25
    )
    spec = AggregationSpec(optimizer="fedadam", learning_rate=0.5, beta1=0.25, beta2=0.5, tau=0.125)
    assert server_optimizer(spec) == FedAdam(learning_rate=0.5, beta1=0.25, beta2=0.5, tau=0.125)


@pytest.mark.parametrize(
    ("optimizer", "names", "fresh"),
    [
        (FedAvg(), (), ()),
        (FedAvg(momentum=0.5), ("momentum",), (0.0,)),
        (FedAdam(learning_rate=1.0, tau=0.5), ("first_moment", "second_moment"), (0.0, 0.25)),
    ],
)
def test_state_has_names_and_a_beginning(
    optimizer: ServerOptimizer, names: tuple[str, ...], fresh: tuple[float, ...]
) -> None:
    assert optimizer.state_names == names
    assert optimizer.fresh() == fresh


def test_one_step_by_hand() -> None:
    assert step(FedAvg(), 1.0, 0.5, ()) == (1.5,)
    assert step(FedAvg(learning_rate=2.0, momentum=0.5), 1.0, 0.5, (4.0,)) == (1.0 + 2.0 * 2.5, 2.5)
    # m = 0.5 * 1 + 0.5 * 2 = 1.5; v = 0.75 * 4 + 0.25 * 4 = 4; x = 1 + 3 * 1.5 / (2 + 1)
    assert step(FedAdam(learning_rate=3.0, beta1=0.5, beta2=0.75, tau=1.0), 1.0, 2.0, (1.0, 4.0)) == (2.5, 1.5, 4.0)


def test_the_model_is_moved_in_double_precision_and_rounded_once() -> None:
    # 2^24 + 1 isn't a float32; half of a double step away from it lies on the other side of the tie.
    assert step(FedAvg(), 2.0**24, 1.0 + 2.0**-20, ()) == (2.0**24 + 2,)
    assert step(FedAvg(), 2.0**24, 1.0, ()) == (2.0**24,)


def test_overflow_gives_infinity_and_no_warning() -> None:
    assert step(FedAvg(), 3e38, 3e38, ()) == (np.inf,)
    model, first, second = step(FedAdam(learning_rate=1.0), 0.0, 1e30, (0.0, 0.0))
    assert (model > 0, first, second) == (True, pytest.approx(1e29), np.inf)


@pytest.mark.parametrize(
    ("cls", "settings", "says"),
    [
        (FedAvg, {"learning_rate": 0.0}, "learning_rate"),
        (FedAvg, {"learning_rate": float("inf")}, "learning_rate"),
        (FedAvg, {"momentum": 1.0}, "momentum"),
        (FedAvg, {"momentum": float("nan")}, "momentum"),
        (FedAdam, {"learning_rate": -1.0}, "learning_rate"),
        (FedAdam, {"learning_rate": 1.0, "tau": 0.0}, "tau"),
        (FedAdam, {"learning_rate": 1.0, "beta1": -0.1}, "beta1"),
        (FedAdam, {"learning_rate": 1.0, "beta2": 1.0}, "beta2"),
    ],
)
def test_impossible_settings_are_refused_by_name(
    cls: type[ServerOptimizer], settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        cls(**settings)
