"""Vectors of float32 in compiled code: each operation against numpy, bit for bit."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from kernels.lanes import address
from kernels.singles import choose, fetch, fill, lower, magnitude, put, upper


@numba.njit
def every_operation(a: np.ndarray, b: np.ndarray, f: float, out: np.ndarray) -> None:
    x, y, at = fetch(address(a)), fetch(address(b)), address(out)
    put(at, x + y)
    put(at + 64, x - y)
    put(at + 128, x * y)
    put(at + 192, x / y)
    put(at + 256, fill(f))
    put(at + 320, lower(x, y))
    put(at + 384, upper(x, y))
    put(at + 448, magnitude(x))
    put(at + 512, choose(x, y, fill(f), y))


def test_every_operation_is_that_of_numpy() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.standard_normal((2, 16), dtype=np.float32)
    a[:5] = [np.nan, np.inf, -0.0, 1e-42, 3.4e38]
    b[:5] = [1.0, np.inf, 0.0, 2.0, 3.4e38]
    out = np.full((9, 16), np.nan, np.float32)
    f = np.float32(0.3)
    every_operation(a, b, f, out)
    with np.errstate(all="ignore"):
        expected = [a + b, a - b, a * b, a / b, np.full(16, f), np.where(a < b, a, b), np.where(a > b, a, b)]
        expected += [np.abs(a), np.where(a < b, f, b)]
    assert np.array_equal(out.view(np.int32)[:, 1:], np.array(expected, np.float32).view(np.int32)[:, 1:])
    assert np.array_equal(out[:, 0], np.array(expected)[:, 0], equal_nan=True)


def test_other_types_have_no_such_operators() -> None:
    @numba.njit
    def wrong(a: np.ndarray) -> None:
        put(address(a), fetch(address(a)) + 1.0)

    with pytest.raises(numba.TypingError, match="Singles, float64"):
        wrong(np.zeros(16, np.float32))
