"""The tail block: sums of weights and metrics, its bounds, what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.secure_aggregation.encoding import Encoding
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.tail import MAX_PARTICIPANTS, TailLayout, decode_tail, encode_tail, split_upload

LAYOUT = TailLayout(("accuracy", "loss"))


def total(layout: TailLayout, *parts: tuple[int, dict[str, float]]) -> np.ndarray:
    out = np.zeros(layout.size, dtype="<u8")
    for weight, metrics in parts:
        out += encode_tail(layout, weight, metrics)
    return out


def test_one_tail_is_laid_out_as_documented() -> None:
    tail = encode_tail(LAYOUT, 3, {"loss": -1.5})
    assert tail.dtype == np.dtype("<u8")
    assert tail.tolist() == [1, 3, 0, 0, 2**64 - 3 * 3 * 2**19, 3]
    assert LAYOUT.size == 6
    assert LAYOUT.wire_bytes == tail.nbytes == 48
    assert encode_tail(TailLayout(), 5, {}).tolist() == [1, 5]


values = st.none() | st.floats(width=32) | st.floats(-2000, 2000)


@given(st.lists(st.tuples(st.integers(0, 1 << 20), values, values), min_size=1, max_size=20))
def test_the_means_are_those_of_who_reported(inputs) -> None:
    parts, wanted = [], {name: [0, 0.0] for name in LAYOUT.metrics}
    for weight, *reported in inputs:
        metrics = {name: value for name, value in zip(LAYOUT.metrics, reported, strict=True) if value is not None}
        parts.append((weight, metrics))
        for name, value in metrics.items():
            if math.isfinite(value):
                wanted[name][0] += weight
                wanted[name][1] += weight * min(max(value, -1024), 1024)
    result = decode_tail(LAYOUT, total(LAYOUT, *parts), participants=len(inputs))
    assert result.count == len(inputs)
    assert result.weight == sum(weight for weight, *_ in inputs)
    assert set(result.means) == {name for name, (weight, _) in wanted.items() if weight}
    for name, mean in result.means.items():
        assert abs(mean - wanted[name][1] / wanted[name][0]) <= 2.0**-20


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sum_does_not_overflow(sign) -> None:
    tail = encode_tail(LAYOUT, 1 << 20, {"accuracy": sign * 1e9, "loss": sign * 1024.0})
    summed = np.zeros(LAYOUT.size, dtype="<u8")
    for _ in range(MAX_PARTICIPANTS):
        summed += tail
    assert summed.view("<i8").tolist() == [1024, 2**30, sign * 2**60, 2**30, sign * 2**60, 2**30]
    result = decode_tail(LAYOUT, summed, participants=MAX_PARTICIPANTS)
    assert result.means == {"accuracy": sign * 1024.0, "loss": sign * 1024.0}


def test_more_participants_than_the_tail_holds_are_refused() -> None:
    LAYOUT.check(1)
    LAYOUT.check(1024)
    for participants in (0, 1025):
        with pytest.raises(SecureAggregationError, match=f"not {participants}") as caught:
            LAYOUT.check(participants)
        assert caught.value.code == "overflow"
        with pytest.raises(SecureAggregationError):
            decode_tail(LAYOUT, total(LAYOUT, (1, {})), participants=participants)


def test_a_metric_out_of_the_layout_or_a_weight_out_of_range_is_refused() -> None:
    with pytest.raises(SecureAggregationError, match="no metric 'f1'"):
        encode_tail(LAYOUT, 1, {"loss": 1.0, "f1": 0.5})
    for weight in (-1, (1 << 20) + 1):
        with pytest.raises(SecureAggregationError, match=f"a weight of {weight}"):
            encode_tail(LAYOUT, weight, {})


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("b", "a"), "sorted order"),
        (("a", "a"), "distinct"),
        (("",), "1 to 64 printable"),
        (("x" * 65,), "1 to 64 printable"),
        (("a\nb",), "printable"),
        (tuple(f"m{number:03}" for number in range(65)), "65 metrics"),
    ],
)
def test_bad_names_are_refused(names, words) -> None:
    with pytest.raises(SecureAggregationError, match=words) as caught:
        TailLayout(names)
    assert caught.value.code == "metrics-invalid"


def test_the_widest_layout_is_accepted() -> None:
    assert TailLayout(tuple(f"{number:064}" for number in range(64))).size == 130


@pytest.mark.parametrize(
    ("element", "value", "words"),
    [
        (0, 3, "counts 3 participants where 2"),
        (0, 2**64 - 1, "counts -1"),
        (1, 201, "each at most 100, can't be 201"),
        (1, 2**64 - 1, "can't be -1"),
        (2, 2**63, "'accuracy' has the sum"),
        (2, 31 * 2**30, "'accuracy' has the sum"),
        (2, 2**64 - 30 * 2**30 - 1, "'accuracy' has the sum"),
        (3, 31, "'accuracy' has the sum"),
        (5, 2**64 - 1, "'loss' has the sum"),
    ],
)
def test_an_implausible_sum_is_refused(element, value, words) -> None:
    summed = total(LAYOUT, (10, {"accuracy": 0.5, "loss": 1.0}), (20, {"accuracy": 0.75}))
    assert decode_tail(LAYOUT, summed, participants=2, weight_cap=100).weight == 30
    summed[element] = value
    with pytest.raises(SecureAggregationError, match=words) as caught:
        decode_tail(LAYOUT, summed, participants=2, weight_cap=100)
    assert caught.value.code == "tail-implausible"


def test_a_tail_of_another_layout_is_refused() -> None:
    with pytest.raises(SecureAggregationError, match="has 6 elements, not shape") as caught:
        decode_tail(LAYOUT, total(TailLayout(), (1, {})), participants=1)
    assert caught.value.code == "upload-malformed"


@pytest.mark.parametrize("dimension", [0, 1, 7])
@pytest.mark.parametrize(("ring_bits", "wire_bits"), [(16, 16), (32, 20), (32, 24), (32, 32)])
def test_an_upload_is_cut_into_vector_and_tail(dimension, ring_bits, wire_bits) -> None:
    encoding = Encoding(
        ring_bits=ring_bits, wire_bits=wire_bits, value_bits=10, clip_norm=1.0, clip_value=1.0, weight_cap=10
    )
    ring = encoding.encode(np.linspace(-1, 1, dimension, dtype=np.float32), 3, bytes(32))
    tail = encode_tail(LAYOUT, 3, {"loss": 2.0})
    upload = bytearray(encoding.upload_bytes(dimension, LAYOUT))
    encoding.pack(ring, upload)
    upload[encoding.wire_bytes(dimension) :] = tail.tobytes()
    for buffer in (upload, bytes(upload), np.frombuffer(upload, dtype=np.uint8)):
        main, cut = split_upload(buffer, LAYOUT)
        assert (cut == tail).all()
        cut += tail  # a copy that may be added to
        assert (encoding.decode(encoding.unpack(main, dimension), 3) == encoding.decode(ring, 3)).all()
    with pytest.raises(SecureAggregationError, match="shorter than its tail"):
        split_upload(upload[:47] if dimension == 0 else b"", LAYOUT)
