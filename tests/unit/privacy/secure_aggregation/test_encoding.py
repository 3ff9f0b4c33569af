"""The encoding: overflow rule, error bound, error feedback, the same bytes everywhere."""

from __future__ import annotations

import doctest
import hashlib
import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.secure_aggregation import encoding as module
from privacy.secure_aggregation.encoding import Encoding, largest_value_bits, sum_of_squares
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.tail import TailLayout

WIDTHS = [(16, 16), (32, 20), (32, 24), (32, 32)]


def make(**changes) -> Encoding:
    values = {
        "ring_bits": 16,
        "wire_bits": 16,
        "value_bits": 12,
        "clip_norm": 1.0,
        "clip_value": 0.25,
        "weight_cap": 100,
    }
    return Encoding(**(values | changes))


NARROW = make()
WIDE = make(ring_bits=32, wire_bits=32, value_bits=24)


def seed(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "little")).digest()


def pattern(dimension: int, size: float = 1.0) -> np.ndarray:
    """A fixed vector that depends on no generator: values in [-size / 2, size / 2)."""
    words = (np.arange(1, dimension + 1, dtype=np.uint64) * 2654435761) % (1 << 32)
    return ((words / 2.0**32 - 0.5) * size).astype(np.float32)


def clipped(encoding: Encoding, update: np.ndarray, weight: int) -> np.ndarray:
    """The weighted, clipped update in float64: what the encoding stands for before rounding."""
    wide = update.astype(np.float64)
    norm = math.sqrt(math.fsum(wide * wide))
    factor = min(1.0, encoding.clip_norm / norm) if norm else 1.0
    return np.clip(wide * factor * weight / encoding.weight_cap, -encoding.clip_value, encoding.clip_value)


def signed(values: np.ndarray) -> np.ndarray:
    return values.view(f"<i{values.itemsize}").astype(np.int64)


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ring_bits": 32}, "16 bits on the wire don't belong to a ring of 32"),
        ({"wire_bits": 20}, "20 bits on the wire"),
        ({"wire_bits": 12}, "12 bits on the wire"),
        ({"value_bits": 1}, "value_bits is 1"),
        ({"ring_bits": 32, "wire_bits": 32, "value_bits": 31}, "value_bits is 31"),
        ({"value_bits": 12.0}, "value_bits must be an integer"),
        ({"weight_cap": True}, "weight_cap must be an integer"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"clip_norm": math.nan}, "clip_norm is nan"),
        ({"clip_norm": math.inf}, "clip_norm is inf"),
        ({"clip_norm": 1}, "clip_norm must be a float"),
        ({"clip_value": -1.0}, "clip_value is -1.0"),
        ({"weight_cap": 0}, "weight_cap is 0"),
        ({"weight_cap": (1 << 20) + 1}, "weight_cap is 1048577"),
    ],
)
def test_an_encoding_out_of_range_is_refused(changes, words) -> None:
    with pytest.raises(SecureAggregationError, match=re.escape(words)) as caught:
        make(**changes)
    assert caught.value.code == "encoding-invalid"


def test_scale_quantum_and_limit() -> None:
    assert NARROW.limit == 2047
    assert NARROW.quantum == 0.25 / 2047
    assert NARROW.scale == 2047 / 0.25
    assert NARROW.dtype == np.dtype("<u2")
    assert WIDE.dtype == np.dtype("<u4")


# ---------------------------------------------------------------------------------------------------- the overflow rule


@given(st.sampled_from([16, 20, 24, 32]), st.integers(1, 3000))
def test_largest_value_bits_is_the_rule(wire_bits, participants) -> None:
    fitting = [bits for bits in range(1, 31) if participants * 2 ** (bits - 1) <= 2 ** (wire_bits - 1)]
    assert largest_value_bits(wire_bits, participants) == max(fitting)


@pytest.mark.parametrize(("ring_bits", "wire_bits"), WIDTHS)
@pytest.mark.parametrize("participants", [1, 3, 4, 5, 100])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_overflow_bound_is_tight(ring_bits, wire_bits, participants, sign) -> None:
    bits = largest_value_bits(wire_bits, participants)
    values = {"ring_bits": ring_bits, "wire_bits": wire_bits, "clip_norm": 10.0, "clip_value": 1.0}
    encoding = make(**values, value_bits=bits)
    encoding.check(participants)
    update = np.full(3, 5.0 * sign, dtype=np.float32)
    total = np.zeros(3, dtype=encoding.dtype)
    for _ in range(participants):
        total += encoding.encode(update, 100, seed(0))
    encoding.check_sum(total, participants)
    assert encoding.decode(total, 100 * participants).tolist() == pytest.approx([sign * 1.0] * 3, rel=1e-15)
    if bits == 30:
        return
    with pytest.raises(SecureAggregationError, match=f"the sum of {participants} values of {bits + 1} bits") as caught:
        make(**values, value_bits=bits + 1).check(participants)
    assert caught.value.code == "overflow"


def test_an_overflow_says_what_to_change() -> None:
    with pytest.raises(SecureAggregationError) as caught:
        make(value_bits=14).check(12)
    assert caught.value.message == "the sum of 12 values of 14 bits can need 18 bits, and 16 are sent"
    assert caught.value.hint == (
        "Set value_bits to at most 12; or let at most 4 participants into a sum; or send more bits (wire_bits)."
    )
    with pytest.raises(SecureAggregationError, match="at least one participant"):
        NARROW.check(0)
    with pytest.raises(SecureAggregationError) as caught:
        make(value_bits=17)
    assert caught.value.code == "overflow"


# ------------------------------------------------------------------------------------------------------- what comes out


def test_the_weight_is_capped() -> None:
    assert [NARROW.weight(examples) for examples in (0, 7, 100, 101)] == [0, 7, 100, 100]
    with pytest.raises(SecureAggregationError, match="-1 examples"):
        NARROW.weight(-1)


@given(
    st.sampled_from([NARROW, WIDE, make(ring_bits=32, wire_bits=24, value_bits=16), make(value_bits=8)]),
    st.lists(
        st.tuples(st.lists(st.floats(-2, 2, width=32), min_size=5, max_size=5), st.integers(1, 150)),
        min_size=1,
        max_size=9,
    ),
    st.integers(0, 1000),
)
def test_the_decoded_mean_is_within_the_bound(encoding, inputs, first_seed) -> None:
    total = np.zeros(5, dtype=encoding.dtype)
    exact, weights = np.zeros(5), 0
    encoding.check(len(inputs))
    for number, (values, examples) in enumerate(inputs):
        update = np.array(values, dtype=np.float32)
        total += encoding.encode(update, examples, seed(first_seed + number))
        exact += clipped(encoding, update, min(examples, 100))
        weights += min(examples, 100)
    mean = encoding.decode(total, weights)
    error = np.abs(mean - exact / (weights / 100)).max()
    assert error <= encoding.error_bound(len(inputs), weights)
    assert encoding.error_bound(len(inputs), weights) < 1.01 * len(inputs) * encoding.quantum / (weights / 100)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20), st.integers(1, 100))
def test_no_input_leaves_the_range(values, examples) -> None:
    update = np.array(values, dtype=np.float32)
    for encoding in (NARROW, WIDE):
        integers = signed(encoding.encode(update, examples, seed(1)))
        assert (np.abs(integers) <= encoding.limit).all()
        assert (np.sign(integers) * np.sign(update) >= 0).all()


@pytest.mark.parametrize("encoding", [NARROW, WIDE])
def test_the_norm_is_clipped_before_weighting(encoding) -> None:
    update = pattern(5000, size=8.0)
    norm = np.linalg.norm(encoding.decode(encoding.encode(update, 40, seed(2)), 40))
    # Rounding adds noise of at most half a quantum's standard deviation a coordinate.
    assert norm == pytest.approx(1.0, abs=encoding.quantum / 0.4 * math.sqrt(5000))
    assert signed(make(clip_norm=1e3).encode(update, 100, seed(2))).max() == NARROW.limit


def test_an_update_far_beyond_float32_factors_keeps_its_direction() -> None:
    # The clipping factor is below 2^-126, float32's smallest normal number: the wide form takes over.
    encoding = make(clip_norm=2.0**-50, clip_value=2.0**60, value_bits=16)
    assert not signed(encoding.encode(np.full(4, 3e38, dtype=np.float32), 1, seed(3))).any()
    encoding = make(clip_norm=2.0**-10, clip_value=2.0**-10, value_bits=16)
    update = np.array([3e38, -3e38, 0.0, 1e-38], dtype=np.float32)
    for examples in (1, 100):
        got = encoding.decode(encoding.encode(update, examples, seed(3)), examples)
        bound = encoding.error_bound(1, examples)
        assert np.abs(got - [2.0**-10.5, -(2.0**-10.5), 0, 0]).max() <= bound


def test_the_mean_of_many_seeds_is_the_value() -> None:
    draws, update = 2000, pattern(64, size=0.02)
    for encoding in (make(value_bits=6), make(ring_bits=32, wire_bits=32, value_bits=17)):
        mean = sum(signed(encoding.encode(update, 37, seed(number))) for number in range(draws)) / draws
        value = clipped(encoding, update, 37) * encoding.scale
        part = value - np.floor(value)
        sigma = np.sqrt(part * (1 - part) / draws)
        assert (np.abs(mean - value) <= 5 * sigma + 2.0**-8).all()


def test_error_bounds_grow_as_weights_shrink() -> None:
    assert NARROW.error_bound(3, 300) == pytest.approx(NARROW.quantum * (1 + 2**-7))
    assert NARROW.error_bound(3, 3) == pytest.approx(100 * NARROW.quantum * (1 + 2**-7))


# ------------------------------------------------------------------------------------------------------- error feedback


@pytest.mark.parametrize("encoding", [NARROW, WIDE, make(value_bits=16)])
@pytest.mark.parametrize("size", [0.001, 0.02])
def test_encoding_and_residual_make_the_input(encoding, size) -> None:
    update, before = pattern(4000, size=size), pattern(4000, size=0.001)[::-1].copy()
    residual = np.empty_like(update)
    encoded = encoding.encode(update, 60, seed(4), residual=before, residual_out=residual)
    summed = update.astype(np.float64) + before
    assert np.linalg.norm(summed) < 1
    sent = signed(encoded) * encoding.quantum / 0.6
    # What float32 can't say: the roundings of input, product and residual.
    tolerance = 2.0**-22 * np.abs(summed).max() + 2.0**-16 * encoding.quantum
    assert np.abs(sent + residual - summed).max() <= tolerance
    assert np.abs(residual).max() < encoding.quantum / 0.6 * 1.0001


def test_what_clipping_lost_is_not_fed_back() -> None:
    update = np.array([3.0, -4.0, 0.0], dtype=np.float32)
    for encoding in (NARROW, WIDE):
        residual = np.empty_like(update)
        encoding.encode(update, 100, seed(5), residual_out=residual)
        assert residual.tolist() == [0.0, 0.0, 0.0]
    # The norm is clipped to 1, then nothing else happens: the loss is that of the clipped update.
    encoding = make(clip_value=1.0)
    encoded = encoding.encode(update, 100, seed(5), residual_out=residual)
    assert np.abs(signed(encoded) * encoding.quantum + residual - [0.6, -0.8, 0]).max() < 1e-6


def test_the_residual_carries_values_below_a_quantum() -> None:
    encoding = make(value_bits=4, clip_value=0.7)
    update, residual, total = np.full(50, 0.03, dtype=np.float32), np.zeros(50, dtype=np.float32), np.zeros(50)
    for number in range(40):
        encoded = encoding.encode(update, 100, seed(number), residual=residual, residual_out=residual)
        total += encoding.decode(encoded, 100)
    # 40 roundings without feedback would stray by several quanta; with it never by more than one.
    assert np.abs(total - 40 * 0.03).max() < encoding.quantum * 1.001


def test_reading_a_residual_leaves_it_as_it_was() -> None:
    update, before = pattern(100, 0.01), pattern(100, 0.001)
    kept, after = before.copy(), np.empty_like(before)
    first = NARROW.encode(update, 50, seed(6), residual=before, residual_out=after)
    assert (before == kept).all()
    assert (NARROW.encode(update, 50, seed(6), residual=before) == first).all()


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 40_000, 99_999])
def test_the_first_coordinate_that_is_not_finite_is_named(value, place) -> None:
    update = np.zeros(100_000, dtype=np.float32)
    update[place] = update[-1] = value
    with pytest.raises(SecureAggregationError, match=f"coordinate {place} of the update is {value}") as caught:
        NARROW.encode(update, 1, seed(0))
    assert caught.value.code == "update-not-finite"
    with pytest.raises(SecureAggregationError, match=f"coordinate {place} of the residual is {value}"):
        NARROW.encode(np.zeros_like(update), 1, seed(0), residual=update)


def test_opposite_infinities_in_update_and_residual_are_found() -> None:
    update = np.array([0, math.inf], dtype=np.float32)
    with pytest.raises(SecureAggregationError, match="coordinate 1 of the update is inf"):
        NARROW.encode(update, 1, seed(0), residual=-update)


def test_wrong_arrays_are_refused() -> None:
    update = np.zeros(4, dtype=np.float32)
    encoder = NARROW.encoder(update, 1, seed(0))
    out = np.zeros(4, dtype=np.uint16)
    attempts = [
        (lambda: NARROW.encode(update.astype(np.float64), 1, seed(0)), "vector of float32, not 1-d float64"),
        (lambda: NARROW.encode(update.reshape(2, 2), 1, seed(0)), "not 2-d float32"),
        (lambda: NARROW.encode(update, 1, seed(0), residual=update[:3]), "the residual is float32[3]"),
        (lambda: NARROW.encode(update, 1, b"short"), "a seed has 32 bytes, not 5"),
        (lambda: NARROW.encode(update, 1, seed(0), out=out.astype(np.uint32)), "out is uint32[4]"),
        (lambda: NARROW.encode(update, 1, seed(0), mask=out[:3]), "mask is uint16[3]"),
        (lambda: encoder.write(out, residual_out=np.zeros(4)), "residual_out is float64[4], not <f4[4]"),
        (lambda: encoder.write(out, 1), "coordinates 1 to 5 don't lie in an update of 4"),
    ]
    for attempt, words in attempts:
        with pytest.raises(SecureAggregationError, match=re.escape(words)) as caught:
            attempt()
        assert caught.value.code == "update-malformed"
    with pytest.raises(SecureAggregationError, match="0 examples"):
        NARROW.encode(update, 0, seed(0))


# ---------------------------------------------------------------------------------------------------------- determinism


def hexdigest(encoding: Encoding, **options) -> str:
    encoded = encoding.encode(pattern(100_003, 0.02), 77, bytes(range(32)), **options)
    return hashlib.sha256(encoded.tobytes()).hexdigest()[:32]


def test_a_fixed_input_gives_fixed_bytes() -> None:
    residual, lost = pattern(100_003, 0.0001)[::-1].copy(), np.empty(100_003, dtype=np.float32)
    assert hexdigest(NARROW) == "f22e1f28fa78fc9ad663b9ea47bef318"
    assert hexdigest(NARROW, residual=residual, residual_out=lost) == "e57a098435a1dc3987ac19dea5e0e860"
    assert hashlib.sha256(lost.tobytes()).hexdigest()[:32] == "4a022d5d5aa69e9c000ca6380d25d1f8"
    assert hexdigest(WIDE) == "12860090343e76b505ebcaef1e65687d"
    assert hexdigest(WIDE, residual=residual, residual_out=lost) == "e8d221f001ae2d9e030ff4ffd5fffec0"
    assert hashlib.sha256(lost.tobytes()).hexdigest()[:32] == "5d6147d633deff37366aa1b926449cb0"


@pytest.mark.parametrize("encoding", [NARROW, WIDE])
@pytest.mark.parametrize("tile", [1000, 4096, 10_001, 1 << 20])
def test_the_tile_size_changes_nothing(monkeypatch, encoding, tile) -> None:
    update = pattern(33_000, 0.05)
    lost, lost_again = np.empty_like(update), np.empty_like(update)
    expected = encoding.encode(update, 9, seed(7), residual_out=lost)
    monkeypatch.setattr(module, "_TILE", tile)
    assert (encoding.encode(update, 9, seed(7), residual_out=lost_again) == expected).all()
    assert lost.tobytes() == lost_again.tobytes()


@given(st.lists(st.integers(0, 300), max_size=6), st.sampled_from([NARROW, WIDE]))
def test_slices_make_the_whole(cuts, encoding) -> None:
    update, mask = pattern(300, 0.2), (pattern(300, 2.0**14)).astype(np.int64).astype(encoding.dtype)
    encoder = encoding.encoder(update, 5, seed(8))
    out = np.zeros(300, dtype=encoding.dtype)
    edges = sorted({0, 300, *cuts})
    for start, stop in reversed(list(itertools.pairwise(edges))):
        encoder.write(out[start:stop], start, mask=mask[start:stop])
    assert (out == encoding.encode(update, 5, seed(8), mask=mask)).all()


@pytest.mark.parametrize("encoding", [NARROW, WIDE])
def test_a_mask_is_added_in_the_ring(encoding, tmp_path) -> None:
    update = pattern(70_000, 0.05)
    mask = np.frombuffer(hashlib.shake_256(b"mask").digest(70_000 * encoding.dtype.itemsize), dtype=encoding.dtype)
    plain = encoding.encode(update, 33, seed(9))
    expected = plain + mask
    assert (encoding.encode(update, 33, seed(9), mask=mask) == expected).all()
    (tmp_path / "mask").write_bytes(mask.tobytes())
    mapped = np.memmap(tmp_path / "mask", dtype=encoding.dtype, mode="r+")
    encoding.encode(update, 33, seed(9), mask=mapped, out=mapped)
    mapped.flush()
    assert (tmp_path / "mask").read_bytes() == expected.tobytes()


def test_other_seeds_round_otherwise() -> None:
    update = pattern(1000, 0.05)
    assert (NARROW.encode(update, 50, seed(1)) != NARROW.encode(update, 50, seed(2))).any()


@pytest.mark.parametrize("dimension", [0, 1, 5, 32_768, 32_769, 100_000])
def test_the_sum_of_squares_has_the_documented_order(dimension) -> None:
    update = pattern(dimension, 3.0)
    padded = np.zeros(-(-max(dimension, 1) // 32_768) * 32_768)
    padded[:dimension] = update
    lanes = padded.reshape(-1, 32_768)
    sums = np.zeros(32_768)
    for row in lanes:
        sums = sums + row * row
    while len(sums) > 1:
        sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
    assert sum_of_squares(update) == sums[0]
    assert sum_of_squares(update) == pytest.approx(math.fsum(padded * padded), rel=1e-13)
    assert sum_of_squares(update, update) == 4 * sum_of_squares(update)


def test_the_largest_floats_have_a_finite_norm() -> None:
    assert math.isfinite(sum_of_squares(np.full(70_000, np.finfo(np.float32).max, dtype=np.float32)))


# ------------------------------------------------------------------------------------------------------------- decoding


def test_bits_above_the_wire_are_ignored() -> None:
    encoding = make(ring_bits=32, wire_bits=20, value_bits=13)
    encoded = encoding.encode(pattern(100, 0.02), 100, seed(0))
    noisy = (encoded & np.uint32(0xFFFFF)) | (np.arange(100, dtype=np.uint32) << np.uint32(20))
    assert (encoding.decode(noisy, 100) == encoding.decode(encoded, 100)).all()
    encoding.check_sum(noisy, 1)


def test_decoding_writes_where_it_is_told() -> None:
    encoded = NARROW.encode(pattern(40_000, 0.002), 100, seed(0))
    single = np.empty(40_000, dtype=np.float32)
    assert NARROW.decode(encoded, 100, single) is single
    double = NARROW.decode(encoded, 100)
    assert double.dtype == np.float64
    assert (single == double.astype(np.float32)).all()
    assert (NARROW.decode(encoded[123:4000], 100) == double[123:4000]).all()
    with pytest.raises(SecureAggregationError, match="total weight 0"):
        NARROW.decode(encoded, 0)


@pytest.mark.parametrize(("ring_bits", "wire_bits"), WIDTHS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_beyond_what_participants_can_send_is_refused(ring_bits, wire_bits, sign) -> None:
    encoding = make(ring_bits=ring_bits, wire_bits=wire_bits, value_bits=10)
    total = np.zeros(50_000, dtype=encoding.dtype)
    total[40_001] = (sign * 3 * encoding.limit) % 2**wire_bits
    encoding.check_sum(total, 3)
    total[40_001] = (sign * (3 * encoding.limit + 1)) % 2**wire_bits
    with pytest.raises(SecureAggregationError, match="coordinate 45001 of the sum of 3 participants is") as caught:
        encoding.check_sum(total, 3, start=5000)
    assert caught.value.code == "sum-implausible"


def test_a_masked_vector_is_no_plausible_sum() -> None:
    mask = np.frombuffer(hashlib.shake_256(b"mask").digest(2000), dtype="<u2")
    with pytest.raises(SecureAggregationError):
        NARROW.check_sum(NARROW.encode(pattern(1000, 0.02), 10, seed(0), mask=mask), 4)


@pytest.mark.parametrize(("ring_bits", "wire_bits"), WIDTHS)
def test_a_scoring_round_has_no_coordinates(ring_bits, wire_bits) -> None:
    encoding = make(ring_bits=ring_bits, wire_bits=wire_bits)
    empty = np.zeros(0, dtype=np.float32)
    encoded = encoding.encode(empty, 5, seed(0), mask=np.zeros(0, dtype=encoding.dtype), residual=empty)
    assert encoded.shape == (0,)
    assert encoding.pack(encoded).nbytes == encoding.wire_bytes(0) == 0
    assert encoding.unpack(encoding.pack(encoded), 0).shape == (0,)
    encoding.check_sum(encoded, 5)
    assert encoding.decode(encoded, 5).shape == (0,)
    assert encoding.upload_bytes(0, TailLayout(("loss",))) == 32


def test_upload_bytes_count_vector_and_tail() -> None:
    assert NARROW.upload_bytes(1000, TailLayout()) == 2016
    assert make(ring_bits=32, wire_bits=20).upload_bytes(1001, TailLayout()) == 2002 + 501 + 16


def test_no_secret_is_shown() -> None:
    encoder = NARROW.encoder(pattern(10), 5, seed(0))
    assert not any(name in repr(encoder) for name in ("seed", "key", "0."))
