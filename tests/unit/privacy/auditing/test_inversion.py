"""Reading a record off a gradient: works without noise, and no more with it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from privacy.auditing.inversion import inverted, peak_signal_to_noise
from privacy.mechanisms.lattice import Lattice
from privacy.mechanisms.noise import NoiseKey

OUTPUTS, PIXELS = 32, 784


def gradients(records: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a linear layer for a batch of pictures: one record's pixels, and each record's gradients, flat."""
    generator = np.random.default_rng(seed)
    pictures = generator.random((records, PIXELS))
    errors = generator.normal(0, 1, (records, OUTPUTS))
    flat = np.concatenate([np.einsum("bp,bd->bpd", errors, pictures).reshape(records, -1), errors], axis=1)
    return pictures, flat, errors


def attacked(release: np.ndarray) -> np.ndarray:
    return inverted(release[: OUTPUTS * PIXELS].reshape(OUTPUTS, PIXELS), release[OUTPUTS * PIXELS :])


def noisy(flat: np.ndarray, sigma: float, key: int = 0) -> np.ndarray:
    """The clipped sum with noise, as it is released."""
    clip = 1.0
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    total = (flat * np.minimum(1.0, clip / norms)).sum(0)
    lattice = Lattice.for_clip(clip, len(total))
    return lattice.values(lattice.release(total, sigma * clip, NoiseKey(bytes([key] * 32))))


def test_the_attack_is_alive() -> None:
    pictures, flat, _ = gradients(1)
    assert peak_signal_to_noise(attacked(flat[0]), pictures[0]) > 140


@pytest.mark.parametrize(("sigma", "low", "high"), [(1e-6, 40, 150), (0.5, 0, 7), (1.0, 0, 7), (4.0, 0, 7)])
def test_noise_stops_it(sigma: float, low: float, high: float) -> None:
    """Over 40 dB is a copy. A picture of even noise against another is at 7.8 dB; a guess at grey is at 10.8."""
    pictures, flat, _ = gradients(1)
    assert low < peak_signal_to_noise(attacked(noisy(flat, sigma)), pictures[0]) < high


def test_clipping_alone_does_not() -> None:
    pictures, flat, _ = gradients(1)
    assert peak_signal_to_noise(attacked(flat[0] / np.linalg.norm(flat[0])), pictures[0]) > 140


def test_a_sum_hides_each_of_its_records_somewhat() -> None:
    """What a secure sum of ten sites shows; noise has to do the rest."""
    pictures, flat, _ = gradients(10)
    found = attacked(flat.sum(0))
    assert all(peak_signal_to_noise(found, picture) < 15 for picture in pictures)
    assert all(peak_signal_to_noise(attacked(noisy(flat, 1.0, 3)), picture) < 7 for picture in pictures)


def test_gradients_that_are_zero() -> None:
    assert inverted(np.zeros((3, 4)), np.zeros(3)).tolist() == [0.0] * 4


def test_the_measure() -> None:
    picture = np.array([0.0, 0.5, 1.0])
    assert peak_signal_to_noise(picture, picture) == math.inf
    assert peak_signal_to_noise(picture + 5.0, np.ones(3)) == math.inf  # cut to what a pixel can be
    assert peak_signal_to_noise(255 * picture + 25.5, 255 * picture, 255.0) == pytest.approx(21.76, abs=0.1)
