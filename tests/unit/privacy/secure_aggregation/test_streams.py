"""Mask streams against an independent reference, at every offset, tile, slice and order; and what must never happen."""

from __future__ import annotations

import doctest
import hmac
import itertools
import multiprocessing
import pickle
import tracemalloc
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from privacy.secure_aggregation import streams
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.streams import (
    MAIN,
    TAIL,
    TILE_BYTES,
    Pair,
    RingVector,
    Stream,
    Term,
    add_pairs,
    add_streams,
    dtype_of,
    expand,
    slices,
)

RINGS = (16, 32, 64)
# SP 800-38A, F.5.5: CTR-AES256.Encrypt
KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
PLAIN = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
SEALED = bytes.fromhex(
    "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
)


def seed(index: int) -> bytes:
    return index.to_bytes(32, "big")


# ------------------------------------------------------------------------------------------------------- the reference


def material_by_hand(stream: Stream) -> tuple[bytes, bytes]:
    """HKDF-Expand of RFC 5869 from HMAC alone."""
    block, material = b"", b""
    for number in (1, 2):
        block = hmac.digest(stream.seed, block + b"mask" + stream.name + bytes([number]), "sha256")
        material += block
    return material[:32], material[32:48]


def keystream_by_hand(key: bytes, counter: bytes, length: int) -> bytes:
    """Counter mode from single blocks: no library's counter is involved, so a wrong carry in one would show."""
    first, blocks = int.from_bytes(counter, "big"), -(-length // 16)
    counters = b"".join(((first + block) % 2**128).to_bytes(16, "big") for block in range(blocks))
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return (encryptor.update(counters) + encryptor.finalize())[:length]


def reference(terms: list[Term], ring_bits: int, start: int, stop: int) -> list[int]:
    """The signed sum in Python's integers, element by element."""
    size = ring_bits // 8
    total = [0] * (stop - start)
    for stream, sign in terms:
        stretch = keystream_by_hand(*material_by_hand(stream), stop * size)
        for index, place in enumerate(range(start * size, stop * size, size)):
            total[index] += sign * int.from_bytes(stretch[place : place + size], "little")
    return [value % 2**ring_bits for value in total]


terms_of = st.lists(
    st.tuples(
        st.builds(Stream, st.integers(0, 3).map(seed), st.sampled_from([MAIN, TAIL])),
        st.sampled_from([1, -1]),
    ),
    max_size=5,
)


# ------------------------------------------------------------------------------------------------- the published vector


def test_the_vector_of_sp_800_38a() -> None:
    out = bytearray(64)
    streams.keystream(KEY, COUNTER, 0, 64)(memoryview(PLAIN), memoryview(out))
    assert bytes(out) == SEALED
    assert keystream_by_hand(KEY, COUNTER, 64) == bytes(a ^ b for a, b in zip(PLAIN, SEALED, strict=True))


@pytest.mark.parametrize("position", range(64))
def test_the_vector_entered_at_every_byte(position: int) -> None:
    out = bytearray(64 - position)
    streams.keystream(KEY, COUNTER, position, 64 - position)(memoryview(PLAIN)[position:], memoryview(out))
    assert bytes(out) == SEALED[position:]


@pytest.mark.parametrize(
    "counter",
    [
        2**128 - 1,  # the next counter is zero
        2**128 - 3,
        2**64 - 2,  # a carry into the upper half
        2**32 - 2,  # a carry out of the word that fast implementations count in
        2**96 + 2**32 - 1,
        0,
    ],
)
@pytest.mark.parametrize("position", [0, 1, 15, 16, 31, 32, 33, 48, 64, 4096 + 5])
def test_the_counter_is_one_number_that_wraps(counter: int, position: int) -> None:
    expected = keystream_by_hand(KEY, counter.to_bytes(16, "big"), position + 200)[position:]
    out = bytearray(200)
    streams.keystream(KEY, counter.to_bytes(16, "big"), position, 200)(memoryview(bytes(200)), memoryview(out))
    assert bytes(out) == expected


def test_a_stream_whose_counter_wraps_within_the_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = (2**128 - 5).to_bytes(16, "big")
    monkeypatch.setattr(streams, "_material", lambda stream: (KEY, counter))
    expected = np.frombuffer(keystream_by_hand(KEY, counter, 400), "<u4")
    assert (expand([(Stream(seed(1)), 1)], 32, 0, 100) == expected).all()
    for start, stop in itertools.pairwise([0, 19, 20, 21, 50, 100]):
        assert (expand([(Stream(seed(1)), 1)], 32, start, stop) == expected[start:stop]).all()


def test_key_and_counter_come_from_hkdf_expand() -> None:
    for stream in (Stream(seed(1)), Stream(seed(2), TAIL), Stream(b"\xff" * 32, b"")):
        assert streams._material(stream) == material_by_hand(stream)


def test_golden_values() -> None:
    """Fixes the format: two installations that differ here can't take part in one round."""
    assert expand([(Stream(bytes(32)), 1)], 32, 0, 4).tolist() == [4149072480, 2799555874, 3926460081, 122765630]
    assert expand([(Stream(bytes(32), TAIL), 1)], 64, 0, 2).tolist() == [4927075728139245033, 15530161106734205909]


# ------------------------------------------------------------------------------------------- the sum and its invariance


@given(terms_of, st.sampled_from(RINGS), st.integers(0, 60), st.integers(0, 150))
def test_expand_equals_the_reference(terms: list[Term], ring_bits: int, start: int, length: int) -> None:
    total = expand(terms, ring_bits, start, start + length)
    assert total.dtype == dtype_of(ring_bits)
    assert total.tolist() == reference(terms, ring_bits, start, start + length)


@given(
    terms_of,
    st.sampled_from(RINGS),
    st.integers(0, 60),
    st.integers(0, 150),
    st.sampled_from([64, 65, 80, 128, 200, TILE_BYTES]),
    st.integers(0, 9),
)
def test_adding_equals_the_reference(
    terms: list[Term], ring_bits: int, start: int, length: int, tile_bytes: int, offset: int
) -> None:
    # The offset puts the vector anywhere in a cache line.
    held = np.random.default_rng(length).integers(0, 2**ring_bits, length + offset, dtype_of(ring_bits), endpoint=False)
    out = held.copy()
    add_streams(out[offset:], terms, start=start, tile_bytes=tile_bytes)
    expected = reference(terms, ring_bits, start, start + length)
    assert out[offset:].tolist() == [
        (before + added) % 2**ring_bits for before, added in zip(held[offset:].tolist(), expected, strict=True)
    ]
    assert (out[:offset] == held[:offset]).all()
    add_streams(out[offset:], terms, start=start, tile_bytes=tile_bytes, overwrite=True)
    assert out[offset:].tolist() == expected
    assert (out[:offset] == held[:offset]).all()


def test_a_vector_that_numpy_holds_unaligned() -> None:
    storage = bytearray(4 * 100 + 1)
    out = np.frombuffer(storage, "<u4", offset=1)
    terms: list[Term] = [(Stream(seed(1)), 1), (Stream(seed(2)), -1)]
    for tile_bytes in (64, 128):
        add_streams(out, terms, tile_bytes=tile_bytes, overwrite=True)
        assert out.tolist() == reference(terms, 32, 0, 100)


@given(terms_of, st.sampled_from(RINGS), st.lists(st.integers(0, 300), max_size=6), st.randoms())
def test_any_cut_and_any_order_give_the_same_sum(terms: list[Term], ring_bits: int, cuts: list[int], random) -> None:
    whole = expand(terms, ring_bits, 0, 300)
    shuffled = [*terms]
    random.shuffle(shuffled)
    pieces = [expand(shuffled, ring_bits, *piece) for piece in itertools.pairwise(sorted({0, 300, *cuts}))]
    assert (np.concatenate(pieces) == whole).all()


@pytest.mark.parametrize("ring_bits", RINGS)
@pytest.mark.parametrize("start", [0, 3])
def test_vectors_of_several_tiles(ring_bits: int, start: int) -> None:
    length = 2 * TILE_BYTES // (ring_bits // 8) + 1001
    terms: list[Term] = [(Stream(seed(1)), -1), (Stream(seed(2)), 1), (Stream(seed(3), TAIL), -1)]
    size = ring_bits // 8
    expected = np.zeros(length, dtype_of(ring_bits))
    for stream, sign in terms:
        stretch = keystream_by_hand(*material_by_hand(stream), (start + length) * size)
        values = np.frombuffer(stretch, expected.dtype)[start:]
        expected = expected + values if sign == 1 else expected - values
    for tile_bytes in (1024, 48_000, TILE_BYTES, 1 << 20):
        out = np.full(length, 7, expected.dtype)
        add_streams(out, terms, start=start, tile_bytes=tile_bytes)
        assert (out == expected + expected.dtype.type(7)).all()
    pieces = [expand(terms, ring_bits, start + begin, start + end) for begin, end in slices(length, 3)]
    assert (np.concatenate(pieces) == expected).all()


@pytest.mark.parametrize("ring_bits", RINGS)
def test_sums_wrap_in_the_ring(ring_bits: int) -> None:
    stream = Stream(seed(5))
    values = expand([(stream, 1)], ring_bits, 0, 64)
    top = np.full(64, 2**ring_bits - 1, dtype_of(ring_bits))
    add_streams(top, [(stream, 1)])
    assert (top == values - values.dtype.type(1)).all()
    nothing = np.zeros(64, dtype_of(ring_bits))
    add_streams(nothing, [(stream, -1)])
    assert (nothing == -values).all()
    assert (expand([(stream, -1)], ring_bits, 0, 64) == nothing).all()
    assert (expand([(stream, 1)] * 5, ring_bits, 0, 64) == values * values.dtype.type(5)).all()


def test_no_terms_and_no_coordinates() -> None:
    assert expand([], 32, 5, 8).tolist() == [0, 0, 0]
    assert expand([(Stream(seed(1)), 1)], 16, 5, 5).tolist() == []
    out = np.array([1, 2], "<u4")
    add_streams(out, [])
    assert out.tolist() == [1, 2]


def test_the_arguments_are_left_alone() -> None:
    terms: list[Term] = [(Stream(seed(1)), -1), (Stream(seed(2)), 1)]
    expand(terms, 32, 0, 100)
    assert terms == [(Stream(seed(1)), -1), (Stream(seed(2)), 1)]


def test_two_processes_equal_one() -> None:
    terms: list[Term] = [(Stream(seed(index)), 1 if index % 2 else -1) for index in range(5)]
    whole = expand(terms, 16, 0, 150_000)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        pieces = [pool.submit(expand, terms, 16, *piece) for piece in slices(150_000, 4)]
        assert (np.concatenate([piece.result(timeout=60) for piece in pieces]) == whole).all()


# --------------------------------------------------------------------------------------------------------- the protocol


@pytest.mark.parametrize("ring_bits", RINGS)
@pytest.mark.parametrize("participants", range(2, 7))
def test_pairwise_masks_cancel_and_self_masks_come_off(participants: int, ring_bits: int) -> None:
    def pair(one: int, other: int) -> Stream:
        return Stream(seed(100 * min(one, other) + max(one, other)))

    length = 333
    pairwise: list[RingVector] = []
    for me in range(participants):
        peers = [peer for peer in range(participants) if peer != me]
        pairwise.append(expand([(pair(me, peer), 1 if me < peer else -1) for peer in peers], ring_bits, 0, length))
        assert pairwise[-1].any()
    total = np.zeros(length, dtype_of(ring_bits))
    for mask in pairwise:
        total += mask
    assert not total.any()

    # Every pattern of drop-outs: what is left over is what the coordinator can take off.
    for kept in itertools.product([True, False], repeat=participants):
        survivors = [me for me in range(participants) if kept[me]]
        dropped = [me for me in range(participants) if not kept[me]]
        total = np.zeros(length, dtype_of(ring_bits))
        for me in survivors:
            total += pairwise[me]
            add_streams(total, [(Stream(seed(me), b"self"), 1)])
        unmask: list[Term] = [(Stream(seed(me), b"self"), -1) for me in survivors]
        unmask += [(pair(me, gone), -1 if me < gone else 1) for me in survivors for gone in dropped]
        add_streams(total, unmask)
        assert not total.any()


# ------------------------------------------------------------------------------------------------------- whole cohorts


@given(
    pairs=st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 18), st.none() | st.integers(0, 18)),
        max_size=40,
    ),
    ring_bits=st.sampled_from(RINGS),
    start=st.integers(0, 100),
    length=st.integers(0, 70),
)
def test_pairs_equal_single_vectors(
    pairs: list[tuple[int, int, int | None]], ring_bits: int, start: int, length: int
) -> None:
    outs = [np.arange(length, dtype=dtype_of(ring_bits)) for _ in range(19)]
    work: list[Pair] = [(Stream(seed(index)), plus, minus) for index, plus, minus in pairs]
    add_pairs(outs, work, start=start)
    for number, out in enumerate(outs):
        terms: list[Term] = [(stream, 1) for stream, plus, _ in work if plus == number]
        terms += [(stream, -1) for stream, _, minus in work if minus == number]
        right = np.arange(length, dtype=dtype_of(ring_bits))
        add_streams(right, terms, start=start)
        assert out.tolist() == right.tolist()


@pytest.mark.parametrize("ring_bits", RINGS)
def test_pairs_of_several_tiles(ring_bits: int) -> None:
    length = 3 * TILE_BYTES // (ring_bits // 8) // 2 + 5
    outs = [np.zeros(length, dtype_of(ring_bits)) for _ in range(3)]
    add_pairs(outs, [(Stream(seed(1)), 0, 1), (Stream(seed(2)), 2, 0), (Stream(seed(3)), 1, None)], start=3)
    assert (outs[1] == expand([(Stream(seed(3)), 1), (Stream(seed(1)), -1)], ring_bits, 3, 3 + length)).all()
    assert (sum(outs) == expand([(Stream(seed(3)), 1)], ring_bits, 3, 3 + length)).all()


def test_vectors_that_are_no_cohort() -> None:
    pairs: list[Pair] = [(Stream(seed(1)), 0, 1)]
    add_pairs([], [])
    for other in (np.zeros(5, "<u4"), np.zeros(4, "<u2"), np.zeros(8, "<u4")[::2]):
        with pytest.raises(SecureAggregationError) as caught:
            add_pairs([np.zeros(4, "<u4"), other], pairs)
        assert caught.value.code == "ring-invalid"
    with pytest.raises(IndexError):
        add_pairs([np.zeros(4, "<u4")], pairs)
    with pytest.raises(ValueError, match="coordinate -1"):
        add_pairs([np.zeros(4, "<u4")] * 2, pairs, start=-1)


# -------------------------------------------------------------------------------------------------------- how it looks


def chi_square(values: np.ndarray) -> float:
    """The statistic over the 256 values of a byte; 255 expected, standard deviation 22.6."""
    counts = np.bincount(values.view(np.uint8), minlength=256)
    expected = values.nbytes / 256
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("ring_bits", RINGS)
def test_bytes_are_uniform(ring_bits: int) -> None:
    terms: list[Term] = [(Stream(seed(1)), 1), (Stream(seed(2)), -1), (Stream(seed(3)), -1)]
    for count in (1, 3):
        # Within four standard deviations; the seeds are fixed, so this passes always or never.
        assert 165 < chi_square(expand(terms[:count], ring_bits, 0, 1 << 18)) < 345


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Stream(seed(1)), Stream(seed(2))),
        (Stream(seed(1)), Stream(b"\x80" + seed(1)[1:])),
        (Stream(seed(1), MAIN), Stream(seed(1), TAIL)),
        (Stream(seed(1), b""), Stream(seed(1), b"\0")),
    ],
)
def test_other_seeds_and_names_give_unrelated_streams(one: Stream, other: Stream) -> None:
    length = 1 << 18
    first, second = expand([(one, 1)], 16, 0, length), expand([(other, 1)], 16, 0, length)
    assert 165 < chi_square(first - second) < 345
    assert 165 < chi_square(first ^ second) < 345
    # Two unrelated streams agree in 4 coordinates of 2^18.
    assert np.count_nonzero(first == second) < 20
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / length**0.5


def test_a_stream_does_not_repeat() -> None:
    words = expand([(Stream(seed(1)), 1)], 64, 0, 1 << 18)
    assert len(np.unique(words)) == len(words)


def test_no_secret_is_shown() -> None:
    secret = bytes(range(32))
    for shown in (repr(Stream(secret)), str(Stream(secret, TAIL)), repr([(Stream(secret), 1)])):
        assert repr(secret)[2:10] not in shown and secret.hex()[:16] not in shown
        assert "name=" in shown
    with pytest.raises(SecureAggregationError) as caught:
        Stream(secret[:31])
    assert secret.hex()[:16] not in f"{caught.value!r}" and repr(secret)[2:10] not in f"{caught.value!r}"


def test_a_stream_reaches_a_worker_process_whole() -> None:
    assert pickle.loads(pickle.dumps(Stream(seed(9), TAIL))) == Stream(seed(9), TAIL)


def test_many_streams_need_no_buffer_each() -> None:
    terms: list[Term] = [(Stream(seed(index)), 1) for index in range(2000)]
    out = np.zeros(100, "<u2")
    tracemalloc.start()
    try:
        add_streams(out, terms)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * TILE_BYTES + 1024 * len(terms)


# ------------------------------------------------------------------------------------------------------------- slices


@given(st.integers(0, 5000), st.integers(1, 40))
def test_slices_cover_the_vector_in_balanced_whole_lines(dimension: int, parts: int) -> None:
    cut = slices(dimension, parts)
    assert [coordinate for start, stop in cut for coordinate in range(start, stop)] == list(range(dimension))
    assert len(cut) == min(parts, -(-dimension // 32))
    assert all(start % 32 == 0 and start < stop for start, stop in cut)
    lengths = [stop - start for start, stop in cut]
    assert not lengths or max(lengths) - min(lengths) < 64


def test_slices_of_the_usual_vector() -> None:
    assert slices(10_000_000, 2) == [(0, 5_000_000), (5_000_000, 10_000_000)]
    assert slices(0, 4) == []
    assert slices(1, 4) == [(0, 1)]


@pytest.mark.parametrize(("dimension", "parts"), [(-1, 2), (10, 0), (10, -1)])
def test_slices_that_make_no_sense(dimension: int, parts: int) -> None:
    with pytest.raises(ValueError, match=f"{dimension} coordinates can't be cut into {parts} parts"):
        slices(dimension, parts)


# ----------------------------------------------------------------------------------------------------- what is refused


def read_only() -> np.ndarray:
    out = np.zeros(4, "<u4")
    out.flags.writeable = False
    return out


@pytest.mark.parametrize(
    "out",
    [
        np.zeros(4, np.int32),
        np.zeros(4, np.uint8),
        np.zeros(4, np.float32),
        np.zeros(4, ">u4"),
        np.zeros((2, 2), "<u4"),
        np.zeros(8, "<u4")[::2],
        read_only(),
    ],
)
def test_vectors_that_are_no_ring_vectors(out: np.ndarray) -> None:
    with pytest.raises(SecureAggregationError, match="masks are added to") as caught:
        add_streams(out, [(Stream(seed(1)), 1)])
    assert caught.value.code == "ring-invalid"
    assert not out.any()


@pytest.mark.parametrize("ring_bits", [0, 8, 20, 24, 31, 128])
def test_rings_that_do_not_exist(ring_bits: int) -> None:
    with pytest.raises(SecureAggregationError, match=f"not {ring_bits}") as caught:
        expand([], ring_bits, 0, 1)
    assert caught.value.code == "ring-invalid"


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_seeds_of_another_length(length: int) -> None:
    with pytest.raises(SecureAggregationError, match=f"has {length} bytes") as caught:
        Stream(bytes(length))
    assert caught.value.code == "seed-invalid"


def test_arguments_that_make_no_sense() -> None:
    out = np.zeros(4, "<u4")
    stream = Stream(seed(1))
    for sign in (0, 2, -2):
        with pytest.raises(ValueError, match="sign is 1 or -1"):
            add_streams(out, [(stream, 1), (stream, sign)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="coordinate -1"):
        add_streams(out, [(stream, 1)], start=-1)
    with pytest.raises(ValueError, match="tile of 63 bytes"):
        add_streams(out, [(stream, 1)], tile_bytes=63)
    for start, stop in ((-1, 2), (3, 2)):
        with pytest.raises(ValueError, match=f"coordinates {start} to {stop}"):
            expand([(stream, 1)], 32, start, stop)
    assert not out.any()


def test_examples() -> None:
    assert doctest.testmod(streams).failed == 0
