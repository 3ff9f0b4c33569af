"""Is it Poisson sampling? Frequencies, sizes, empty batches, and what shuffling looks like."""

from __future__ import annotations

import numpy as np
import pytest

from privacy.auditing.samples import poisson_p_value
from privacy.mechanisms.noise import NoiseKey
from privacy.mechanisms.sampling import PoissonSampler


def drawn(records: int, rate: float, steps: int, seed: int = 0) -> np.ndarray:
    sampler = PoissonSampler(records, rate, NoiseKey(seed.to_bytes(32, "big")))
    chosen = np.zeros((steps, records), bool)
    for row in chosen:
        row[sampler.sample()] = True
    return chosen


def shuffled(records: int, size: int, steps: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    chosen, left = np.zeros((steps, records), bool), np.empty(0, int)
    for row in chosen:
        if len(left) < size:
            left = generator.permutation(records)
        row[left[:size]], left = True, left[size:]
    return chosen


@pytest.mark.parametrize(("records", "rate", "steps"), [(100, 0.1, 300), (20, 0.02, 2_000), (1_000, 0.5, 50)])
def test_our_sampler_passes(records: int, rate: float, steps: int) -> None:
    values = [poisson_p_value(drawn(records, rate, steps, seed), rate) for seed in range(20)]
    assert min(values) > 1e-3
    assert sum(value < 0.1 for value in values) <= 6


def test_empty_batches_are_among_them() -> None:
    sizes = drawn(20, 0.02, 2_000).sum(1)
    assert (sizes == 0).mean() == pytest.approx(0.98**20, abs=0.04)


def test_batches_of_fixed_size_are_found() -> None:
    generator = np.random.default_rng(1)
    chosen = np.zeros((100, 200), bool)
    for row in chosen:
        row[generator.choice(200, 20, replace=False)] = True
    assert poisson_p_value(chosen, 0.1) < 1e-9


def test_shuffled_passes_are_found() -> None:
    assert poisson_p_value(shuffled(200, 20, 100), 0.1) < 1e-9


def test_a_record_that_is_drawn_by_turns_is_found() -> None:
    """Sizes and frequencies are right; only the order tells."""
    chosen = np.zeros((400, 60), bool)
    generator = np.random.default_rng(2)
    chosen[0] = generator.random(60) < 0.5
    for step in range(1, 400):
        again = np.where(chosen[step - 1], 0.35, 0.65)
        chosen[step] = generator.random(60) < again
    assert poisson_p_value(chosen, 0.5) < 1e-6


def test_records_that_are_preferred_are_found() -> None:
    rates = np.full(100, 0.1)
    rates[:10] = 0.2
    rates[10:] -= 0.1 / 9
    assert poisson_p_value(np.random.default_rng(3).random((400, 100)) < rates, 0.1) < 1e-6


@pytest.mark.parametrize("real", [0.09, 0.115])
def test_another_rate_is_found(real: float) -> None:
    assert poisson_p_value(drawn(200, real, 400), 0.1) < 1e-6


@pytest.mark.parametrize(("shape", "rate"), [((7, 10), 0.5), ((10, 1), 0.5), ((10, 10), 1.0), ((10, 10), 0.0)])
def test_what_shows_nothing(shape: tuple[int, int], rate: float) -> None:
    with pytest.raises(ValueError, match="show nothing"):
        poisson_p_value(np.ones(shape, bool), rate)
