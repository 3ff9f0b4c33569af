"""The attempt that a participant has in hand: what it has accepted, learnt, promised and not yet erased."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, cast

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.graph import Group, group_of, groups
from privacy.secure_aggregation.keys import AgreementKey, Secret
from privacy.secure_aggregation.memory import Assignment, Expand, Mask, Note
from privacy.secure_aggregation.sharing import MASK_KEY, SEED, MaskTerm, Parcel, pair_seed, read_parcel, share_hash
from privacy.secure_aggregation.statements import (
    ACCEPTANCES,
    PARCELS,
    RELEASES,
    UPLOADS,
    Acceptance,
    Delivery,
    Release,
    Signed,
    Survived,
    Survivors,
    Upload,
    positions_of,
)
from privacy.transcript import decode


@dataclasses.dataclass(frozen=True)
class Unreadable(Secret):
    """A parcel that came and can't be read: the bytes that were delivered, and the key under which they should be."""

    dealer: int
    sealed: bytes
    commitment: bytes
    key: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass
class Hand(Secret):
    """The attempt in hand. Keys and seed are None once erased; ``early`` holds statements whose turn hasn't come."""

    context: RoundContext
    position: int
    accept: Signed
    mask_key: AgreementKey | None = None
    share_key: AgreementKey | None = None
    seed: bytes | None = dataclasses.field(default=None, repr=False)
    delivery: bytes | None = dataclasses.field(default=None, repr=False)
    acceptances: Mapping[int, Acceptance] = dataclasses.field(default_factory=dict)
    parcels: Mapping[int, Parcel] = dataclasses.field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    doubted: Unreadable | None = None
    frozen: frozenset[int] | None = None
    digest: bytes | None = None
    survivors: frozenset[int] | None = None
    survivors_body: bytes = dataclasses.field(default=b"", repr=False)
    survived: Signed | None = None
    release: Signed | None = None
    expanded: bool = False
    masking: bool = False
    early: dict[str, Signed] = dataclasses.field(default_factory=dict)

    @property
    def accepted(self) -> frozenset[int]:
        """U1."""
        return frozenset(self.acceptances)

    @property
    def keeps(self) -> bool:
        """Whether this site is a keeper of shares."""
        return self.position in self.context.keepers

    @property
    def masks(self) -> bool:
        """Whether a mask is still to be made, or to be put on the update."""
        left_out = self.group() is None or (self.frozen is not None and self.position not in self.frozen)
        return self.delivery is not None and self.digest is None and self.seed is not None and not left_out

    def is_for(self, task: Assignment | None) -> bool:
        """Whether the attempt sums the results of this task."""
        return task is not None and not differences(self.context, self.position, task)

    def group(self) -> Group | None:
        """My mask group; None before the delivery, and where my atom isn't whole: I only keep shares then."""
        return group_of(self.groups, self.position)

    def missed_by(self, members: frozenset[int]) -> bool:
        """Whether a frozen set leaves me out although my update could be summed with the others in it."""
        group = self.group()
        return group is not None and self.position in group.publishable(members | {self.position})

    def take(
        self,
        delivery: bytes,
        acceptances: Mapping[int, Acceptance],
        found: tuple[Group, ...],
        parcels: Mapping[int, Parcel],
    ) -> None:
        """The delivery is in order: from here on the accepted set is fixed."""
        self.delivery, self.acceptances, self.groups, self.parcels = delivery, acceptances, found, parcels
        self.doubted = None

    # ---- masks ------------------------------------------------------------------------------------------------------

    def expand(self) -> Expand:
        """Work: the self mask, and a mask with each other member of the group."""
        group = self.group()
        assert self.seed is not None and group is not None
        peers = set(group.members) - {self.position}
        return Expand(self.context, (MaskTerm(self.seed, 1), *self._pair_terms(peers)))

    def mask(self) -> Mask:
        """Work: encode and mask, and take out the masks shared with those that dropped before the freeze."""
        group = self.group()
        assert self.frozen is not None and group is not None
        gone = frozenset(group.members) - self.frozen
        return Mask(self.context, tuple(MaskTerm(term.seed, -term.sign) for term in self._pair_terms(gone)))

    def _pair_terms(self, peers: Iterable[int]) -> list[MaskTerm]:
        """The mask that is shared with each peer: added by the one in front in the roster, subtracted by the other."""
        assert self.mask_key is not None
        context, me = self.context, self.position
        return [
            MaskTerm(
                pair_seed(self.mask_key, context.roster[peer].mask_key, context.hash, me, peer), 1 if me < peer else -1
            )
            for peer in sorted(peers)
        ]

    # ---- what is said -----------------------------------------------------------------------------------------------

    def upload(self) -> Upload:
        """The masked update is at the coordinator."""
        assert self.frozen is not None and self.digest is not None
        accepted, frozen = self.context.set_hash(self.accepted), self.context.set_hash(self.frozen)
        return Upload(self.context.hash, self.position, accepted, frozen, self.digest)

    def survived_by(self, members: frozenset[int]) -> Survived:
        """A keeper's word on these survivors."""
        assert self.frozen is not None
        return Survived(self.context.hash, self.context.set_hash(self.frozen), self.context.set_hash(members))

    def sets(self, members: frozenset[int]) -> list[frozenset[str]]:
        """Names behind each sum that would be published for these survivors."""
        names = self.context.names
        found = (members.intersection(group.members) for group in self.groups)
        return [frozenset(names[item] for item in part) for part in found if part]

    def released(self) -> Release:
        """This keeper's shares: of a survivor's seed, or of the mask key of one that dropped, never both of one."""
        assert self.frozen is not None and self.survivors is not None
        live = {item for group in self.groups if self.survivors.intersection(group.members) for item in group.members}
        dropped = (self.frozen - self.survivors) & live
        return Release(
            self.context.hash,
            self.context.set_hash(self.survivors),
            RELEASES.write(self._share_row(dealer, SEED) for dealer in sorted(self.survivors)),
            RELEASES.write(self._share_row(dealer, MASK_KEY) for dealer in sorted(dropped)),
        )

    def _share_row(self, dealer: int, kind: str) -> tuple[bytes, bytes, bytes]:
        parcel = self.parcels[dealer]
        shares = {SEED: parcel.seed, MASK_KEY: parcel.mask_key}
        other = MASK_KEY if kind == SEED else SEED
        hashed = share_hash(self.context.hash, dealer, self.position, other, shares[other])
        return dealer.to_bytes(2, "big"), shares[kind], hashed


def differences(context: RoundContext, position: int, task: Assignment) -> list[str]:
    """The fields in which a seat of a context isn't about this task, the model's last."""
    names = [field.name for field in dataclasses.fields(task)]
    own = dict(zip(("round", "task_attempt", "base_digest"), context.task_of(position), strict=True))
    found = {name: own[name] if name in own else getattr(context, name) for name in names if name != "asynchronous"}
    found["asynchronous"] = bool(context.bases)
    return [name for name in names if found[name] != getattr(task, name)]


# ---- memory ----------------------------------------------------------------------------------------------------------


def planned(note: Note, name: str) -> Hand:
    """The attempt that a note of kind "planned" began."""
    context, body, signature = cast(Any, decode(note.body))
    parsed = RoundContext.parse(context)
    position = parsed.position(name)
    assert position is not None
    return Hand(parsed, position, Signed(body, signature))


def recall(hand: Hand, note: Note) -> None:
    """Take a further note of the attempt in. What was checked before it was stored isn't checked again."""
    if note.kind == "secrets":
        mask_key, hand.seed = cast(Any, decode(note.body))
        hand.mask_key = AgreementKey(mask_key)
    elif note.kind == "share-key":
        hand.share_key = AgreementKey(note.body)
    elif note.kind == "delivered":
        opened = Delivery.parse(note.body)
        acceptances = _acceptances(hand.context, opened)
        found = groups(hand.context, {item: acceptance.beacon for item, acceptance in acceptances.items()})
        hand.take(note.body, acceptances, found, _parcels(hand, opened))
    elif note.kind == "frozen":
        hand.frozen = frozenset(positions_of(note.body))
    elif note.kind == "masked":
        hand.digest = note.body
    elif note.kind == "survived":
        hand.survivors_body, body, signature = cast(Any, decode(note.body))
        rows = UPLOADS.read(Survivors.parse(hand.survivors_body).uploads)
        hand.survivors = frozenset(int.from_bytes(row[0], "big") for row in rows)
        hand.survived = Signed(body, signature)
    elif note.kind == "released":
        hand.release = Signed(*cast(Any, decode(note.body)))
    else:
        raise ValueError(f"a note of an attempt is of kind {note.kind!r}")


def _acceptances(context: RoundContext, opened: Delivery) -> dict[int, Acceptance]:
    retired = dict(opened.retired)
    found = {}
    for position, beacon, commitment, _ in ACCEPTANCES.read(opened.acceptances):
        item = int.from_bytes(position, "big")
        found[item] = Acceptance(context.hash, item, beacon, commitment, retired.get(item, ()))
    return found


def _parcels(hand: Hand, opened: Delivery) -> dict[int, Parcel]:
    """The parcels of a stored delivery; none where the key that opens them is erased."""
    if not hand.keeps or hand.share_key is None:
        return {}
    found = {}
    dealers = (int.from_bytes(row[0], "big") for row in ACCEPTANCES.read(opened.acceptances))
    for dealer, (sealed, commitment) in zip(dealers, PARCELS.read(opened.parcels), strict=True):
        _, parcel = read_parcel(hand.share_key, hand.context, dealer, hand.position, sealed, commitment)
        assert parcel is not None
        found[dealer] = parcel
    return found
