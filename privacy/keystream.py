"""AES-256 in counter mode, entered at any byte, by whichever of OpenSSL's two ways to it is faster on this processor.

One way is its CTR. The other is its GCM (NIST SP 800-38D), whose ciphertext of zeros is a counter-mode keystream too:
where a processor has vector AES instructions, OpenSSL (as of 4.0) uses them for GCM and not for CTR, and GCM is then
two and a half times as fast although it computes an authentication tag that nobody asks for. The bytes are the same.

GCM doesn't take a counter block but derives its first one, J0, from the initialization vector; for an IV of 16 bytes
J0 = (IV * H + L) * H over GF(2^128), with H = AES(0) and L the IV's length. That is linear, so it is solved for the IV
that gives the counter we want: IV = (J0 / H + L) / H. GCM counts in the low 32 bits of the block and begins at J0 + 1;
a keystream that runs over the end of those 32 bits (one in 1,700 of 40 MB) is made by CTR.

What is secret stays so. The keystream is the same function of key and counter, so whatever holds for AES-CTR holds for
it; GCM's rule that an IV be fresh is here the stream's own rule that a seed masks one vector once. No tag is ever
finished. The IV is computed in variable time from H, the block that AES makes of zeros: a watcher of the clock learns
something of that block at most, which is no block of the keystream (but with the probability that a random counter
passes 0) and tells nothing of the others unless AES itself is broken.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Generator = Callable[[memoryview, memoryview], int]
"""Called with zeros and a buffer of as many bytes, writes the keystream's next bytes there."""

_BLOCK: Final = 16
_COUNTERS: Final = 1 << 8 * _BLOCK
_LOW: Final = 1 << 32
_MODULUS: Final = 1 << 128 | 0x87  # x^128 + x^7 + x^2 + x + 1; bit k of a number is the coefficient of x^k

# Solving for the IV takes some 50 us, in which CTR makes 400 KB on a fast processor.
_WORTH_IT: Final = 1 << 20
_PROBE: Final = 1 << 16


def keystream(key: bytes, counter: bytes, position: int, length: int) -> Generator:
    """Open a keystream at a byte.

    Args:
        key: 32 bytes.
        counter: The initial counter block, 16 bytes, a big-endian number that wraps.
        position: The first byte.
        length: How many bytes will be asked for.
    """
    block, skipped = divmod(position, _BLOCK)
    first = (int.from_bytes(counter, "big") + block) % _COUNTERS
    blocks = -(-(skipped + length) // _BLOCK)
    straight = first % _LOW > 0 and first % _LOW + blocks < _LOW
    make = _by_gcm if length >= _WORTH_IT and straight and _gcm_is_faster() else _by_ctr
    generate = make(key, first)
    generate(memoryview(bytes(skipped)), memoryview(bytearray(skipped + _BLOCK)))
    return generate


def _by_ctr(key: bytes, first: int) -> Generator:
    return Cipher(algorithms.AES(key), modes.CTR(first.to_bytes(_BLOCK, "big"))).encryptor().update_into


def _by_gcm(key: bytes, first: int) -> Generator:
    hashed = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(bytes(_BLOCK))
    inverse = _inverse(_polynomial(hashed))
    wanted = _polynomial((first - 1).to_bytes(_BLOCK, "big"))
    length = _polynomial((8 * _BLOCK).to_bytes(_BLOCK, "big"))
    vector = _block(_product(_product(wanted, inverse) ^ length, inverse))
    return Cipher(algorithms.AES(key), modes.GCM(vector)).encryptor().update_into


@functools.cache
def _gcm_is_faster() -> bool:
    """Try both, once in a process: a tenth of a millisecond."""
    zeros, buffer = memoryview(bytes(_PROBE)), np.empty(_PROBE, np.uint8).data

    def best_s(generate: Generator) -> float:
        times = []
        for _ in range(4):
            started = time.perf_counter()
            generate(zeros, buffer)
            times.append(time.perf_counter() - started)
        return min(times)

    return best_s(_by_gcm(bytes(32), 1)) < best_s(_by_ctr(bytes(32), 1))


def _polynomial(block: bytes) -> int:
    """GCM's blocks have the coefficient of x^0 in the first bit."""
    return int(f"{int.from_bytes(block, 'big'):0128b}"[::-1], 2)


def _block(polynomial: int) -> bytes:
    return int(f"{polynomial:0128b}"[::-1], 2).to_bytes(_BLOCK, "big")


def _product(one: int, other: int) -> int:
    result = 0
    while other:
        lowest = other & -other
        result ^= one * lowest
        other ^= lowest
    return _reduced(result)


def _inverse(value: int) -> int:
    """By Euclid's algorithm; ``value`` isn't 0 (with probability 2^-128 it would be, and this would not end)."""
    one, other, of_one, of_other = value, _MODULUS, 1, 0
    while one != 1:
        shift = one.bit_length() - other.bit_length()
        if shift < 0:
            one, other, of_one, of_other, shift = other, one, of_other, of_one, -shift
        one ^= other << shift
        of_one ^= of_other << shift
    return _reduced(of_one)


def _reduced(value: int) -> int:
    while value >= 1 << 128:
        value ^= _MODULUS << (value.bit_length() - 129)
    return value
