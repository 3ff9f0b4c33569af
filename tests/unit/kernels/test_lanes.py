"""Explicit vectors in compiled code: each operation against numpy, and addresses that aren't integers are refused."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from kernels.lanes import (
    address,
    aligned,
    load,
    multiply_add,
    narrow,
    plus,
    prefetch,
    spread,
    store,
    times,
    widen,
    zero,
)


@numba.njit
def every_operation(a: np.ndarray, b: np.ndarray, f: float, wide: np.ndarray, single: np.ndarray) -> None:
    x, y = widen(address(a)), load(address(b))
    prefetch(address(a) + 1_000_000)
    store(address(wide), plus(x, y))
    store(address(wide) + 64, times(x, spread(f)))
    store(address(wide) + 128, multiply_add(y, x, x))
    store(address(wide) + 192, zero())
    narrow(address(single), y)


def test_every_operation_is_that_of_numpy() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.standard_normal(8, dtype=np.float32), generator.standard_normal(8)
    wide, single = np.full(32, np.nan), np.full(8, np.nan, np.float32)
    every_operation(a, b, 0.3, wide, single)
    assert np.array_equal(wide[:8], a + b)
    assert np.array_equal(wide[8:16], a * np.float64(0.3))
    assert np.allclose(wide[16:24], b + a.astype(np.float64) ** 2, rtol=1e-15)
    assert np.array_equal(wide[24:], np.zeros(8))
    assert np.array_equal(single, b.astype(np.float32))


def test_an_address_that_became_a_float_is_not_compiled() -> None:
    @numba.njit
    def wrong(a: np.ndarray, offset: int) -> None:
        at = a.ctypes.data
        for _ in range(2):
            store(at, zero())
            at += offset  # one variable that is unsigned and signed is a float64

    with pytest.raises(TypeError, match="must be an integer, not float64"):
        wrong(np.zeros(8), 0)


@pytest.mark.parametrize("size", [0, 1, 7, 1_000])
def test_arrays_are_aligned(size: int) -> None:
    found = aligned(size)
    assert (found.shape, found.dtype) == ((size,), np.float64)
    assert found.ctypes.data % 64 == 0 or not size
