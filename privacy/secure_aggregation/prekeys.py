"""One-time prekeys: keys that a participant has signed and left with the coordinator for a round to come.

A round can begin with a single message because its keys are there already; a key that was used once is gone, so that no
mask and no sealed share ever depends on a long-term secret.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

from privacy.secure_aggregation.context import Seat
from privacy.secure_aggregation.errors import Refusal, SecureAggregationError
from privacy.secure_aggregation.keys import AgreementKey, Random, Secret, SigningKey
from privacy.secure_aggregation.memory import Forget, Note
from privacy.secure_aggregation.policy import agrees
from privacy.secure_aggregation.sharing import beacon_hash
from privacy.secure_aggregation.statements import PREKEYS, Prekey, PrekeyBatch, signature_holds
from privacy.transcript import decode, encode

STOCK: Final = 32
"""Unused prekeys after filling up."""

LOW: Final = 16
"""With fewer unused ones the stock is filled up."""

LIFE_S: Final = 30 * 86_400
"""For so long a new prekey may be used."""


@dataclasses.dataclass(frozen=True)
class PrekeySecret(Secret):
    """The private half of a prekey."""

    index: int
    expires_s: int
    mask_key: AgreementKey
    share_key: AgreementKey
    beacon: bytes = dataclasses.field(repr=False)

    def note(self) -> bytes:
        """As the participant's memory holds it."""
        return encode((self.index, self.expires_s, self.mask_key.secret, self.share_key.secret, self.beacon))


class PrekeyStock(Secret):
    """A participant's unused prekeys.

    Args:
        federation: Its name.
        name: The participant's.
        key: Its signing key.
        random: Where keys come from.
    """

    def __init__(self, federation: str, name: str, key: SigningKey, random: Random) -> None:
        self._federation = federation
        self._name = name
        self._key = key
        self._random = random
        self._last = 0
        self._unused: dict[int, PrekeySecret] = {}

    def restore(self, kind: str, body: bytes) -> None:
        """Take a stored note of kind "prekey" or "prekey-last" in."""
        if kind == "prekey-last":
            self._last = int.from_bytes(body, "big")
            return
        index, expires_s, mask_key, share_key, beacon = cast(Any, decode(body))
        self._unused[index] = PrekeySecret(index, expires_s, AgreementKey(mask_key), AgreementKey(share_key), beacon)

    def low(self, now_s: float) -> bool:
        """Whether new prekeys are due."""
        return sum(1 for item in self._unused.values() if item.expires_s > now_s) < LOW

    def fill(self, now_s: float) -> Iterator[Note | Forget]:
        """Make new prekeys where few are left, and drop the expired; the changes to store before they are offered."""
        if not self.low(now_s):
            return
        for secret in [item for item in self._unused.values() if item.expires_s <= now_s]:
            yield self.burn(secret)
        while len(self._unused) < STOCK:
            self._last += 1
            self._unused[self._last] = secret = PrekeySecret(
                self._last,
                int(now_s) + LIFE_S,
                AgreementKey.generate(self._random),
                AgreementKey.generate(self._random),
                self._random(32),
            )
            yield Note("prekey", b"", secret.note())
        # An index is never given twice, even after all of these are used and their notes erased.
        yield Forget(b"", "prekey-last")
        yield Note("prekey-last", b"", self._last.to_bytes(8, "big"))

    def batch(self) -> PrekeyBatch:
        """All unused prekeys, each signed."""
        rows = []
        for _, secret in sorted(self._unused.items()):
            prekey = self._public(secret)
            rows.append(Seat.of(prekey, prekey.signed(self._key).signature).cells())
        return PrekeyBatch(PREKEYS.write(rows))

    def find(self, seat: Seat) -> PrekeySecret:
        """The secret of the prekey that a plan wants to use up.

        Raises:
            Refusal: "prekey-used" where it was used before or never was this participant's.
        """
        secret = self._unused.get(seat.index)
        if secret is None:
            raise Refusal("prekey-used", f"prekey {seat.index} was used up, or was never offered by this site")
        public = self._public(secret)
        if (public.mask_key, public.share_key, public.beacon_hash) != (seat.mask_key, seat.share_key, seat.beacon_hash):
            raise Refusal("prekey-foreign", f"prekey {seat.index} in the roster isn't the one that this site offered")
        return secret

    def burn(self, secret: PrekeySecret) -> Forget:
        """The prekey is used up: erase its note durably before any key of it speaks."""
        del self._unused[secret.index]
        return Forget(b"", "prekey", secret.note())

    def _public(self, secret: PrekeySecret) -> Prekey:
        return Prekey(
            self._federation,
            self._name,
            secret.index,
            secret.mask_key.public,
            secret.share_key.public,
            beacon_hash(secret.beacon),
            secret.expires_s,
        )


def offered(batch: PrekeyBatch, name: str) -> Iterator[Seat]:
    """The prekeys of a batch as seats for ``name``; whether they may be used is for :func:`check_offered`."""
    return (Seat.read(name, cells) for cells in PREKEYS.read(batch.rows))


def check_offered(seats: Iterable[Seat], federation: str, public: bytes) -> list[Seat]:
    """The prekeys of one participant that every site would take in a plan, by index.

    Args:
        seats: From :func:`offered`.
        federation: Its name.
        public: The participant's signing key, from the member list.

    Raises:
        SecureAggregationError: "prekey-signature", "prekey-duplicate" or "key-invalid": one bad prekey among them
            would make all sites refuse the plan that holds it.
    """
    found: dict[int, Seat] = {}
    for seat in seats:
        if not signature_holds(seat.prekey(federation), public):
            raise SecureAggregationError("prekey-signature", f"prekey {seat.index} of {seat.name} isn't signed by it")
        if seat.index in found or not 0 < seat.index < 1 << 53 or seat.expires_s >= 1 << 53:
            raise SecureAggregationError("prekey-duplicate", f"{seat.name} offers a prekey twice, or one out of range")
        if not (agrees(seat.mask_key) and agrees(seat.share_key)):
            raise SecureAggregationError("key-invalid", f"prekey {seat.index} of {seat.name} is a point of low order")
        found[seat.index] = seat
    return [found[index] for index in sorted(found)]
