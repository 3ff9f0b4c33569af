"""GCM's keystream is CTR's, whatever the key, the counter and the byte it is entered at."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from privacy import keystream as module
from privacy.keystream import keystream

ZEROS = memoryview(bytes(1000))


def by_hand(key: bytes, counter: int, position: int, length: int) -> bytes:
    """One block after another, by AES alone."""
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    first = position // 16
    blocks = [
        aes.update(((counter + index) % (1 << 128)).to_bytes(16, "big"))
        for index in range(first, (position + length) // 16 + 1)
    ]
    return b"".join(blocks)[position % 16 : position % 16 + length]


@given(
    key=st.binary(min_size=32, max_size=32),
    counter=st.integers(0, (1 << 128) - 1) | st.sampled_from([0, 1, (1 << 32) - 3, (1 << 32) - 1, (1 << 128) - 2]),
    position=st.integers(0, 300),
    length=st.integers(1, 500),
)
def test_both_ways_give_the_same_bytes(key: bytes, counter: int, position: int, length: int) -> None:
    right = by_hand(key, counter, position, length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WORTH_IT", 0)
        for faster in (True, False):
            patch.setattr(module, "_gcm_is_faster", lambda faster=faster: faster)
            out = bytearray(length)
            generate = keystream(key, counter.to_bytes(16, "big"), position, length)
            half = length // 2
            generate(ZEROS[:half], memoryview(out)[:half])
            generate(ZEROS[: length - half], memoryview(out)[half:])
            assert bytes(out) == right


@given(value=st.integers(1, (1 << 128) - 1))
def test_inverses(value: int) -> None:
    assert module._product(value, module._inverse(value)) == 1


def test_a_keystream_over_the_end_of_the_low_counter_is_left_to_ctr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_IT", 0)
    monkeypatch.setattr(module, "_gcm_is_faster", lambda: True)
    monkeypatch.setattr(module, "_by_ctr", lambda key, first: (_ for _ in ()).throw(ZeroDivisionError))
    keystream(bytes(32), ((1 << 32) - 3).to_bytes(16, "big"), 0, 32)
    for counter, length in (((1 << 32) - 3, 33), (0, 16), (1 << 32, 16)):
        with pytest.raises(ZeroDivisionError):
            keystream(bytes(32), counter.to_bytes(16, "big"), 0, length)
