"""What the parties say to each other in a secure sum: one class for each kind of statement.

How statements are written, read and signed is in :mod:`privacy.secure_aggregation.signed`, whose names stand here, too.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from privacy.secure_aggregation.signed import (
    HASH_BYTES,
    MAX_RETIRED,
    MAX_STATEMENT_BYTES,
    RoundStatement,
    Signed,
    Statement,
    Table,
    any_bytes,
    ascending,
    exactly,
    hashes,
    kind_of,
    natural,
    positions_bytes,
    positions_of,
    retirements,
    signature_holds,
    text,
)

__all__ = [
    "ACCEPTANCES",
    "MAX_RETIRED",
    "MAX_STATEMENT_BYTES",
    "PARCELS",
    "PREKEYS",
    "QUORUM",
    "RELEASES",
    "UPLOADS",
    "Accept",
    "Acceptance",
    "Accepted",
    "Complaint",
    "Delivery",
    "Doubt",
    "Evidence",
    "Excused",
    "Freeze",
    "Plan",
    "Prekey",
    "PrekeyBatch",
    "Quorum",
    "Ready",
    "Refused",
    "Release",
    "Result",
    "RoundStatement",
    "Signed",
    "Statement",
    "Survived",
    "Survivors",
    "Table",
    "Upload",
    "UploadReceipt",
    "kind_of",
    "positions_bytes",
    "positions_of",
    "signature_holds",
]

_HASH: Final = exactly(HASH_BYTES)

# ---- prekeys ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Prekey(Statement):
    """Offer one-time keys for one attempt of one round.

    Attributes:
        federation: The federation's name.
        name: Whose.
        index: Counts up from 1 and is never used twice.
        mask_key: X25519 public key from which pairwise masks are agreed (c_pk).
        share_key: X25519 public key under which shares are sealed (e_pk).
        beacon_hash: Hash of the owner's contribution to the round's randomness (H(rho)).
        expires_s: Seconds since the epoch; later it isn't taken any more.
    """

    KIND = "prekey"
    CHECKS = (text(63), text(63), natural, exactly(32), exactly(32), _HASH, natural)

    federation: str
    name: str
    index: int
    mask_key: bytes
    share_key: bytes
    beacon_hash: bytes
    expires_s: int


PREKEYS: Final = Table(8, 32, 32, 32, 8, 64)
"""index, mask key, share key, beacon hash, expiry, signature of the :class:`Prekey`."""


@dataclasses.dataclass(frozen=True)
class PrekeyBatch(Statement):
    """All unused prekeys of a participant; ``rows`` is a :data:`PREKEYS` table, each row signed for itself."""

    KIND = "prekeys"
    CHECKS = (PREKEYS.check,)

    rows: bytes


# ---- one attempt -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan(Statement):
    """The coordinator's proposal: ``context`` is the canonical round context, whose hash everything binds to."""

    KIND = "plan"
    CHECKS = (any_bytes,)

    context: bytes


PARCELS: Final = Table(82, 32)
"""For each keeper in order: sealed shares, share commitment."""


@dataclasses.dataclass(frozen=True)
class Acceptance(RoundStatement):
    """What every other participant sees of an acceptance.

    Attributes:
        context: Hash of the round context, H_R.
        position: The speaker's place in the roster.
        beacon: Its contribution to the round's randomness, rho.
        commitment: To the seed of its self mask.
        retired: Hashes of earlier attempts whose shares it has erased without releasing one.
    """

    KIND = "acceptance"
    CHECKS = (_HASH, natural, exactly(32), _HASH, hashes)

    context: bytes
    position: int
    beacon: bytes
    commitment: bytes
    retired: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True)
class Accept(RoundStatement):
    """Agree to a plan: the acceptance's parts and signature, and a sealed parcel of shares for each keeper."""

    KIND = "accept"
    CHECKS = (_HASH, natural, exactly(32), _HASH, hashes, exactly(64), PARCELS.check)

    context: bytes
    position: int
    beacon: bytes
    commitment: bytes
    retired: tuple[bytes, ...]
    acceptance_signature: bytes
    parcels: bytes

    def acceptance(self) -> Acceptance:
        """The part that everyone is shown."""
        return Acceptance(self.context, self.position, self.beacon, self.commitment, self.retired)


ACCEPTANCES: Final = Table(2, 32, 32, 64)
"""Position, beacon, commitment, signature of the :class:`Acceptance`."""


@dataclasses.dataclass(frozen=True)
class Delivery(RoundStatement):
    """Everyone's acceptance, and the parcels for one keeper.

    The recipient puts its own H_R into the acceptances before it checks their signatures: who accepted another context
    is found out.

    Attributes:
        context: H_R.
        acceptances: An :data:`ACCEPTANCES` table, ascending by position: the set U1.
        retired: (position, retired attempts) of those that have retired any.
        parcels: A :data:`PARCELS` table for the recipient, in the same order; empty if it isn't a keeper.
    """

    KIND = "delivery"
    CHECKS = (_HASH, ACCEPTANCES.check, retirements, PARCELS.check)

    context: bytes
    acceptances: bytes
    retired: tuple[tuple[int, tuple[bytes, ...]], ...]
    parcels: bytes


@dataclasses.dataclass(frozen=True)
class Accepted(RoundStatement):
    """The coordinator's own note of whom it counted in (the set U1); it stands in its log and in no message."""

    KIND = "accepted"
    CHECKS = (_HASH, ascending)

    context: bytes
    members: bytes


@dataclasses.dataclass(frozen=True)
class Excused(RoundStatement):
    """The coordinator's own note that a participant's update won't come, and why; it stands in its log alone."""

    KIND = "excused"
    CHECKS = (_HASH, natural, text(1000))

    context: bytes
    position: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Doubt(RoundStatement):
    """A keeper can't open a dealer's parcel as it was delivered, and asks for the dealer's own word on it."""

    KIND = "doubt"
    CHECKS = (_HASH, natural)

    context: bytes
    dealer: int


@dataclasses.dataclass(frozen=True)
class Evidence(RoundStatement):
    """The answer to a doubt: the dealer's whole :class:`Accept`, with the dealer's signature."""

    KIND = "evidence"
    CHECKS = (_HASH, natural, any_bytes, exactly(64))

    context: bytes
    dealer: int
    accept: bytes
    signature: bytes


@dataclasses.dataclass(frozen=True)
class Complaint(RoundStatement):
    """A keeper can't read a parcel that its dealer has signed: the key under which it should be sealed.

    A keeper shows the key for a parcel only once it has the dealer's signature over these very bytes. Otherwise a
    coordinator could spoil an honest dealer's parcels on their way and collect the keys to the real ones.
    """

    KIND = "complaint"
    CHECKS = (_HASH, natural, exactly(32))

    context: bytes
    offender: int
    key: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Ready(RoundStatement):
    """The update is trained, or there is nothing to train."""

    KIND = "ready"
    CHECKS = (_HASH,)

    context: bytes


@dataclasses.dataclass(frozen=True)
class Freeze(RoundStatement):
    """The participants whose masks are in the uploads (the set U2); one for all, once an attempt."""

    KIND = "freeze"
    CHECKS = (_HASH, ascending)

    context: bytes
    members: bytes


@dataclasses.dataclass(frozen=True)
class Upload(RoundStatement):
    """The masked update is at the coordinator: its digest, bound to the sets its masks are made for."""

    KIND = "upload"
    CHECKS = (_HASH, natural, _HASH, _HASH, _HASH)

    context: bytes
    position: int
    accepted_hash: bytes
    frozen_hash: bytes
    digest: bytes


@dataclasses.dataclass(frozen=True)
class UploadReceipt(RoundStatement):
    """The coordinator has the masked update of this digest."""

    KIND = "receipt"
    CHECKS = (_HASH, natural, _HASH)

    context: bytes
    position: int
    digest: bytes


UPLOADS: Final = Table(2, 32, 64)
"""Position, digest, signature of the :class:`Upload`."""


@dataclasses.dataclass(frozen=True)
class Survivors(RoundStatement):
    """Whose updates the sum will hold (the set U3), with their signatures; ``uploads`` is an :data:`UPLOADS` table."""

    KIND = "survivors"
    CHECKS = (_HASH, UPLOADS.check)

    context: bytes
    uploads: bytes


@dataclasses.dataclass(frozen=True)
class Survived(RoundStatement):
    """A keeper's one signature on a survivor set."""

    KIND = "survived"
    CHECKS = (_HASH, _HASH, _HASH)

    context: bytes
    frozen_hash: bytes
    survivors_hash: bytes


QUORUM: Final = Table(2, 64)
"""Position of a keeper, signature of its :class:`Survived`."""


@dataclasses.dataclass(frozen=True)
class Quorum(RoundStatement):
    """Enough keepers signed one survivor set: shares may be released. ``signatures`` is a :data:`QUORUM` table."""

    KIND = "quorum"
    CHECKS = (_HASH, QUORUM.check)

    context: bytes
    signatures: bytes


RELEASES: Final = Table(2, 33, 32)
"""Position of the dealer, share, hash of the dealer's other share (so that the commitment can be checked)."""


@dataclasses.dataclass(frozen=True)
class Release(RoundStatement):
    """A keeper's shares: of the self-mask seed of each survivor, of the mask key of each that dropped after the freeze.

    Attributes:
        context: H_R.
        survivors_hash: The set they are released for.
        seeds: A :data:`RELEASES` table for U3.
        mask_keys: A :data:`RELEASES` table for those of U2 without U3 whose group has survivors.
    """

    KIND = "release"
    CHECKS = (_HASH, _HASH, RELEASES.check, RELEASES.check)

    context: bytes
    survivors_hash: bytes
    seeds: bytes = dataclasses.field(repr=False)
    mask_keys: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Result(RoundStatement):
    """What came of a round: a line of the coordinator's log, which is a hash chain.

    Attributes:
        index: From 0 within the log.
        previous: Hash of the line before; zeros for the first.
        context: H_R.
        survivors: U3.
        uploads_hash: Over the survivors' digests, in order.
        sum_hash: Of the decoded sums, see ``masking.sum_hash``.
        record: Digest of the public material from which anyone can recompute the sum.
        model: Digest of the model that came of it; zeros where the round only scored.
    """

    KIND = "result"
    CHECKS = (natural, _HASH, _HASH, ascending, _HASH, _HASH, _HASH, _HASH)

    index: int
    previous: bytes
    context: bytes
    survivors: bytes
    uploads_hash: bytes
    sum_hash: bytes
    record: bytes
    model: bytes


@dataclasses.dataclass(frozen=True)
class Refused(RoundStatement):
    """A party will not go on: which rule, whose setting, in words. ``context`` may be zeros where none was agreed."""

    KIND = "refused"
    CHECKS = (_HASH, text(64), text(64), text(1000))

    context: bytes
    code: str
    setting: str
    message: str
