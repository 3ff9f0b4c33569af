"""Packing: round trips, slices, sums of what was packed, sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.secure_aggregation import packing
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.packing import RINGS, pack, ring_dtype, unpack, wire_bytes

WIRES = sorted(RINGS)
vectors = st.integers(0, 40).flatmap(lambda d: st.lists(st.integers(0, 2**32 - 1), min_size=d, max_size=d))


def elements(wire_bits: int, values: list[int]) -> np.ndarray:
    return np.array([value % 2 ** RINGS[wire_bits] for value in values], dtype=ring_dtype(RINGS[wire_bits]))


@pytest.mark.parametrize("wire_bits", WIRES)
@given(values=vectors)
def test_what_is_packed_is_unpacked(wire_bits, values) -> None:
    ring = elements(wire_bits, values)
    packed = pack(ring, wire_bits)
    assert packed.nbytes == wire_bytes(wire_bits, len(values))
    assert unpack(packed, wire_bits, len(values)).tolist() == [value % 2**wire_bits for value in ring.tolist()]


@pytest.mark.parametrize("wire_bits", WIRES)
@given(values=vectors, data=st.data())
def test_any_slice_is_read_alone(wire_bits, values, data) -> None:
    start = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(start, len(values)))
    packed = pack(elements(wire_bits, values), wire_bits)
    expected = unpack(packed, wire_bits, len(values))[start:stop]
    assert (unpack(packed, wire_bits, len(values), start, stop) == expected).all()
    out = np.full(stop - start, 0xFFFF, dtype=expected.dtype)
    assert unpack(packed, wire_bits, len(values), start, stop, out) is out
    assert (out == expected).all()


@pytest.mark.parametrize("wire_bits", WIRES)
@given(pairs=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=20))
def test_sums_in_the_ring_are_sums_on_the_wire(wire_bits, pairs) -> None:
    first, second = (elements(wire_bits, [pair[side] for pair in pairs]) for side in (0, 1))
    sent = [unpack(pack(vector, wire_bits), wire_bits, len(pairs)) for vector in (first, second)]
    wanted = unpack(pack(first + second, wire_bits), wire_bits, len(pairs))
    low = np.array(2**wire_bits - 1, dtype=first.dtype)
    assert ((sent[0] + sent[1]) & low == wanted).all()
    assert ((sent[0] - sent[1]) & low == unpack(pack(first - second, wire_bits), wire_bits, len(pairs))).all()


def test_the_planes_lie_as_documented() -> None:
    ring = np.array([0xA1B2C3D4, 0x00010002, 0x000F0005], dtype="<u4")
    assert bytes(pack(ring, 32)).hex() == "d4c3b2a102000100" + "05000f00"
    assert bytes(pack(ring, 24)).hex() == "d4c302000500" + "b2010f"
    assert bytes(pack(ring, 20)).hex() == "d4c302000500" + "f201"  # element 2 shares a byte with element 0
    assert bytes(pack(ring.astype("<u2"), 16)).hex() == "d4c302000500"


@pytest.mark.parametrize("wire_bits", WIRES)
@pytest.mark.parametrize("dimension", [99, 100])
def test_the_tile_size_changes_nothing(monkeypatch, wire_bits, dimension) -> None:
    ring = elements(wire_bits, [k * 2654435761 % 2**32 for k in range(dimension)])
    packed = bytes(pack(ring, wire_bits))
    values = unpack(packed, wire_bits, dimension, 3, 98)
    monkeypatch.setattr(packing, "_TILE", 16)
    assert bytes(pack(ring, wire_bits)) == packed
    assert (unpack(packed, wire_bits, dimension, 3, 98) == values).all()


@pytest.mark.parametrize("wire_bits", WIRES)
def test_packing_into_a_buffer_leaves_the_rest(wire_bits) -> None:
    ring = elements(wire_bits, list(range(70_000, 70_009)))
    size = wire_bytes(wire_bits, 9)
    buffer = bytearray(b"\xee" * (size + 16))
    assert pack(ring, wire_bits, buffer).nbytes == size
    assert buffer[:size] == bytes(pack(ring, wire_bits))
    assert buffer[size:] == b"\xee" * 16
    with pytest.raises(SecureAggregationError, match=f"need {size} bytes, the buffer has {size - 1}"):
        pack(ring, wire_bits, bytearray(size - 1))


@pytest.mark.parametrize("wire_bits", [16, 32])
def test_whole_bytes_are_not_copied(wire_bits) -> None:
    ring = elements(wire_bits, [1, 2, 3])
    packed = pack(ring, wire_bits)
    ring[0] = 7
    assert packed[0] == 7
    assert np.shares_memory(unpack(packed, wire_bits, 3, 1, 3), ring)


@pytest.mark.parametrize("wire_bits", WIRES)
def test_other_shapes_and_sizes_are_refused(wire_bits) -> None:
    ring = elements(wire_bits, [1, 2, 3, 4])
    packed = bytes(pack(ring, wire_bits))
    other = "<u4" if wire_bits == 16 else "<u2"
    for attempt in (
        lambda: pack(ring.astype(other), wire_bits),
        lambda: pack(ring.reshape(2, 2), wire_bits),
        lambda: unpack(packed[:-1], wire_bits, 4),
        lambda: unpack(packed + b"\0", wire_bits, 4),
        lambda: unpack(packed, wire_bits, 4, 2, 5),
        lambda: unpack(packed, wire_bits, 4, 3, 2),
        lambda: unpack(packed, wire_bits, 4, -1, 2),
    ):
        with pytest.raises(SecureAggregationError) as caught:
            attempt()
        assert caught.value.code == "upload-malformed"
