"""Statements with something in them changed at random, rightly signed: refused or taken, and nobody crashes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.statements import Ready, Signed
from privacy.transcript import TranscriptError, decode, encode
from tests.adversarial.liars import SITES, VICTIM, Liar, lying

HOSTILE = VICTIM
_EACH = 12


class Mutator:
    """Changes one thing somewhere in a canonical body, also inside of bodies that are carried as bytes."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def body(self, body: bytes) -> bytes:
        """Another body; mostly a canonical one."""
        if self._random.random() < 0.1:
            return self._bytes(body)
        try:
            return encode(self._changed(decode(body)))
        except (TranscriptError, ValueError, OverflowError):
            return self._bytes(body)

    def _changed(self, value: Any) -> Any:
        if isinstance(value, tuple) and value and self._random.random() < 0.85:
            at = self._random.randrange(len(value))
            return (*value[:at], self._changed(value[at]), *value[at + 1 :])
        if isinstance(value, bytes) and len(value) > 40 and self._random.random() < 0.5:
            try:
                return encode(self._changed(decode(value)))
            except TranscriptError:
                pass
        return self._random.choice(self._other(value))

    def _other(self, value: Any) -> list[Any]:
        anything = [None, True, -1, 0, 2**63, "", "\u202e", b"", (), ((),), 1.5]
        if isinstance(value, bool):
            return [not value, *anything]
        if isinstance(value, int):
            return [value + 1, value - 1, -value, 1 << 62, 1 << 80, *anything]
        if isinstance(value, float):
            return [-value, value * 1e9, 0.0, *anything]
        if isinstance(value, str):
            return [value + "x", value[:-1], value.upper(), *anything]
        if isinstance(value, bytes):
            return [self._bytes(value) for _ in range(6)] + anything
        if isinstance(value, tuple):
            return [value[1:], value[:-1], value + value[-1:], value[::-1], *anything]
        return anything

    def _bytes(self, value: bytes) -> bytes:
        if not value:
            return b"\0"
        at = self._random.randrange(len(value))
        flipped = value[:at] + bytes([value[at] ^ 1 << self._random.randrange(8)]) + value[at + 1 :]
        half = len(value) // 2
        return self._random.choice([flipped, value[:at], value + value[-7:], value[half:] + value[:half], value * 2])


def signed_body(key: SigningKey, body: bytes) -> Signed:
    """Any bytes, signed as a statement is."""

    class Bytes(Ready):
        def body(self) -> bytes:
            return body

    return Bytes(b"").signed(key)


async def settled(liar: Liar, count: Callable[[], int]) -> None:
    """Wait until the sum is known, or nothing more is said."""
    seen, since = -1, 0
    while liar.version() == 0 and since < 40:
        await asyncio.sleep(0.025)
        seen, since = (count(), 0) if count() != seen else (seen, since + 1)


@pytest.mark.parametrize("seed", range(3))
async def test_mutated_statements_of_a_coordinator_crash_no_site(tmp_path: Path, seed: int) -> None:
    mutator = Mutator(seed)
    seen: set[tuple[str, bytes]] = set()

    def down(peer: str, signed: Signed) -> Sequence[Signed]:
        if (peer, signed.body) in seen:
            return [signed]
        seen.add((peer, signed.body))
        return [*(signed_body(liar.key, mutator.body(signed.body)) for _ in range(_EACH)), signed]

    async with lying(tmp_path) as liar:
        liar.down = down
        await liar.until(lambda: len(liar.told) > _EACH * len(SITES), "plans are told")
        await settled(liar, lambda: len(liar.told) + len(liar.heard))
        assert set(SITES) <= {peer for _, peer in liar.store.refusals()}


@pytest.mark.parametrize("seed", range(3))
async def test_mutated_statements_of_a_site_crash_neither_the_coordinator_nor_another_site(
    tmp_path: Path, seed: int
) -> None:
    mutator = Mutator(seed)
    async with lying(tmp_path, hostile=[HOSTILE], deaf=False, lease_s=3.0) as liar:
        site = liar.sites[HOSTILE]

        def bent(signed: Signed) -> Sequence[Signed]:
            return [*(signed_body(site.site.signing_key, mutator.body(signed.body)) for _ in range(_EACH)), signed]

        site.bend = bent
        await liar.until(lambda: liar.version() > 0 or bool(liar.failures()), "a sum, or an end with a name")
        assert HOSTILE in {peer for _, peer in liar.store.refusals()}
