"""Stochastic rounding against a plain reference: exact rationals, and the keystream made in one piece."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.rounding import Rounding

SEED = bytes(range(32))
FORMS = {"narrow": ((1 << 15) - 1, "<u2"), "narrow in 32 bits": ((1 << 12) - 1, "<u4"), "wide": ((1 << 29) - 1, "<u4")}


def rounding(factor: float = 1.0, unit: float = 1.0, limit: int = (1 << 15) - 1, ring: str = "<u2") -> Rounding:
    return Rounding(SEED, factor=factor, unit=unit, limit=limit, ring=np.dtype(ring))


def reference_keystream(count: int) -> np.ndarray:
    material = HKDF(algorithm=hashes.SHA256(), length=48, salt=None, info=b"dither").derive(SEED)
    return np.frombuffer(
        Cipher(AES(material[:32]), CTR(material[32:])).encryptor().update(bytes(2 * count)), dtype="<u2"
    )


@pytest.mark.parametrize("start", [0, 1, 7, 8, 9, 4095, 100_001])
def test_the_keystream_can_be_entered_anywhere(start) -> None:
    stream, out = rounding().keystream(start), np.zeros(40, dtype=np.uint16)
    for first, last in ((0, 3), (3, 25), (25, 40)):
        stream.fill(out[first:last])
    assert (out == reference_keystream(start + 40)[start:]).all()


def test_the_counter_wraps() -> None:
    subject = rounding()
    subject._counter = (1 << 128) - 2
    out, ahead = np.zeros(32, dtype=np.uint16), np.zeros(8, dtype=np.uint16)
    subject.keystream(0).fill(out)
    subject.keystream(24).fill(ahead)  # block 3, whose counter is 1
    assert (out[24:] == ahead).all()


@pytest.mark.parametrize("form", FORMS)
@given(values=st.lists(st.floats(-40_000, 40_000, width=32) | st.floats(-4, 4, width=32), min_size=1, max_size=30))
def test_rounding_is_floor_and_exact_fraction(form, values) -> None:
    limit, ring = FORMS[form]
    subject = rounding(limit=limit, ring=ring)
    update = np.array(values, dtype=np.float32)
    got = subject.tile(len(values)).round(update, None, subject.keystream(0)).view(f"<i{np.dtype(ring).itemsize}")
    for value, integer, dither in zip(update.tolist(), got.tolist(), reference_keystream(len(values)), strict=True):
        exact = Fraction(min(max(value, -limit), limit))
        # round() takes the even one of two equally near integers.
        steps = round(exact * 65536) if form == "wide" else math.trunc(exact * 65536)
        assert integer == (steps + int(dither)) // 65536
        assert abs(integer - exact) < 1
        assert exact.denominator > 1 or integer == exact


@pytest.mark.parametrize("form", FORMS)
@given(
    values=st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=20),
    kept=st.floats(-1, 1, width=32),
    unit=st.floats(0.001, 100),
)
def test_the_loss_is_what_was_not_sent(form, values, kept, unit) -> None:
    limit, ring = FORMS[form]
    subject = rounding(unit=unit, limit=limit, ring=ring)
    update, residual = np.array(values, dtype=np.float32), np.full(len(values), kept, dtype=np.float32)
    tile = subject.tile(32)
    got = tile.round(update, residual, subject.keystream(0)).view(f"<i{np.dtype(ring).itemsize}").astype(np.int64)
    lost = np.empty_like(update)
    tile.lost(lost)
    exact = (update.astype(np.float64) + residual - got) * unit
    assert np.abs(lost - exact).max() <= unit * (2.0**-13 + 2.0**-22)
    assert np.abs(lost).max() <= unit * (1 + 2.0**-22)


@pytest.mark.parametrize("form", FORMS)
def test_the_extremes_stay_in_range(form) -> None:
    limit, ring = FORMS[form]
    subject = rounding(factor=1e9, limit=limit, ring=ring)
    update = np.array([3e38, -3e38] * 500, dtype=np.float32)
    got = subject.tile(1000).round(update, None, subject.keystream(0)).view(f"<i{np.dtype(ring).itemsize}")
    assert got.tolist() == [limit, -limit] * 500


@pytest.mark.parametrize("form", FORMS)
def test_denormals_round_to_zero(form) -> None:
    limit, ring = FORMS[form]
    subject = rounding(factor=2.0**80, limit=limit, ring=ring)
    update = np.array([2.0**-127, -(2.0**-127), 2.0**-149, -0.0] * 64, dtype=np.float32)
    assert not subject.tile(256).round(update, None, subject.keystream(0)).any()


def test_the_form_depends_on_the_numbers_only() -> None:
    kinds = [
        type(rounding(factor=factor, limit=limit, ring="<u4").tile(size)).__name__
        for factor, limit, size in [(1.0, 32767, 1), (1.0, 32767, 999), (1.0, 32768, 1), (2.0**-143, 7, 1)]
    ]
    assert kinds == ["_Narrow", "_Narrow", "_Wide", "_Wide"]


def test_a_seed_has_32_bytes() -> None:
    with pytest.raises(SecureAggregationError, match="32 bytes, not 31"):
        Rounding(bytes(31), factor=1.0, unit=1.0, limit=7, ring=np.dtype("<u2"))
