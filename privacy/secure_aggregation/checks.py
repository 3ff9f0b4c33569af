"""What a participant checks in the coordinator's statements before it goes on: signatures, sets, floors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.errors import Refusal
from privacy.secure_aggregation.graph import Group, publishable
from privacy.secure_aggregation.hand import Hand, Unreadable
from privacy.secure_aggregation.members import MemberList
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.sharing import Parcel, beacon_hash, read_parcel
from privacy.secure_aggregation.statements import (
    ACCEPTANCES,
    PARCELS,
    QUORUM,
    UPLOADS,
    Accept,
    Acceptance,
    Complaint,
    Delivery,
    Evidence,
    Quorum,
    Signed,
    Statement,
    Survivors,
    Upload,
    signature_holds,
)

FLOOR_SETTING = "[secure_aggregation] min_cohort"


def holds(statement: Statement, signature: bytes, context: RoundContext, members: MemberList, position: int) -> bool:
    """Whether the participant at ``position`` signed this statement."""
    member = members.participant(context.names[position])
    return member is not None and signature_holds(Signed(statement.body(), signature), member.public_key)


def coordinator_key(members: MemberList, now_s: float) -> bytes:
    """The signing key of the coordinator whom the root has certified.

    Raises:
        Refusal: "coordinator-uncertified" or "coordinator-expired".
    """
    member = members.coordinator
    if member is None:
        raise Refusal("coordinator-uncertified", "the federation's root has certified no coordinator")
    if not member.valid_at(now_s):
        raise Refusal("coordinator-expired", "the coordinator's certificate has expired")
    return member.public_key


def enough(count: int, floor: int, what: str) -> None:
    """Refuse a set that is too small for its sum to be published.

    Raises:
        Refusal: "cohort-floor".
    """
    if count < floor:
        raise Refusal("cohort-floor", f"{count} participants {what}; a sum needs {floor}", FLOOR_SETTING)


def read_acceptances(opened: Delivery, context: RoundContext, members: MemberList) -> dict[int, Acceptance]:
    """All of U1, each of whom accepted this very context (A1, A2, A3); large enough (A5).

    Raises:
        Refusal: "roster-duplicate", "acceptance-signature", "beacon-mismatch" or "cohort-floor".
    """
    retired = dict(opened.retired)
    found: dict[int, Acceptance] = {}
    for cells in ACCEPTANCES.read(opened.acceptances):
        position = int.from_bytes(cells[0], "big")
        if position >= len(context.roster) or position in found:
            raise Refusal("roster-duplicate", "the accepted set names a position twice, or none of the roster")
        acceptance = Acceptance(context.hash, position, cells[1], cells[2], retired.get(position, ()))
        name = context.names[position]
        if not holds(acceptance, cells[3], context, members, position):
            raise Refusal("acceptance-signature", f"{name} hasn't accepted this plan: its signature doesn't hold")
        if beacon_hash(acceptance.beacon) != context.roster[position].beacon_hash:
            raise Refusal("beacon-mismatch", f"{name} reveals another beacon than its prekey committed to")
        found[position] = acceptance
    enough(len(found), context.numbers.floor, "accepted")
    return found


_ALONE: Final = "leaves too few of those who trained from one version: the sum could tell about them alone"


def check_group(hand: Hand, group: Group | None, members: frozenset[int], policy: SitePolicy, what: str) -> None:
    """Refuse a set that leaves too few in this site's own group; another's fate is its members' to judge.

    Raises:
        Refusal: "atom-split" where a mate of this site's own atom is left out of the sum; "group-floor";
            "base-alone" where too few are left that trained from the version that this site did.
    """
    if group is None or hand.position not in members:
        return
    _check_whole(hand, (atom for atom in group.atoms if hand.position in atom), members, what)
    left = group.publishable(members)
    if not left:
        raise Refusal(
            "group-floor",
            f"{what} leaves {len(members.intersection(group.members))} participants in this site's group; its sum "
            f"needs {group.floor}",
            _floor_setting(hand, policy),
        )
    if hand.position not in left:
        raise Refusal("base-alone", f"{what} {_ALONE}", policy.setting("min_same_base"))


def check_published(hand: Hand, members: frozenset[int], policy: SitePolicy) -> None:
    """Refuse survivors of whom a split atom, or a group below its floor, would be published (A14).

    Raises:
        Refusal: "atom-split", "base-alone" or "group-floor".
    """
    _check_whole(hand, hand.context.atom_members, members, "the survivor set")
    if any(group.alone(members.intersection(group.members)) for group in hand.groups):
        raise Refusal("base-alone", f"the survivor set {_ALONE}", policy.setting("min_same_base"))
    if publishable(hand.groups, members) != members:
        raise Refusal(
            "group-floor",
            "the sum of a group with too few survivors would be published",
            _floor_setting(hand, policy),
        )


def _check_whole(hand: Hand, atoms: Iterable[frozenset[int]], members: frozenset[int], what: str) -> None:
    names = hand.context.names
    for atom in atoms:
        gone = atom - members
        if gone and gone != atom:
            raise Refusal(
                "atom-split",
                f"{what} holds {', '.join(names[item] for item in sorted(atom & members))} without "
                f"{', '.join(names[item] for item in sorted(gone))}; a run sums their updates together or not at all",
            )


def _floor_setting(hand: Hand, policy: SitePolicy) -> str:
    return policy.setting("min_group" if hand.context.group_size else "min_cohort")


def read_parcels(opened: Delivery, hand: Hand, acceptances: Mapping[int, Acceptance]) -> dict[int, Parcel] | Unreadable:
    """The shares that were dealt to this keeper; or the first parcel that can't be read.

    Raises:
        Refusal: "parcels-missing".
    """
    if not hand.keeps or hand.share_key is None:
        return {}
    rows = PARCELS.read(opened.parcels)
    if len(rows) != len(acceptances):
        raise Refusal("parcels-missing", f"{len(rows)} parcels came for {len(acceptances)} participants")
    found: dict[int, Parcel] = {}
    for dealer, (sealed, commitment) in zip(acceptances, rows, strict=True):
        key, parcel = read_parcel(hand.share_key, hand.context, dealer, hand.position, sealed, commitment)
        if parcel is None:
            return Unreadable(dealer, sealed, commitment, key)
        found[dealer] = parcel
    return found


def check_evidence(opened: Evidence, hand: Hand, doubted: Unreadable, members: MemberList) -> Complaint:
    """Complain of a dealer, once it is proven that the unreadable parcel is the one that the dealer signed.

    Formal Guarantees:
        The key of a parcel is shown only if its dealer signed exactly these unreadable bytes in this attempt, which no
        honest dealer does: whatever a coordinator delivers, no share of an honest dealer gets known.

    Raises:
        Refusal: "parcel-foreign" if the coordinator can't show that.
    """
    context = hand.context
    name = context.names[doubted.dealer]
    member = members.participant(name)
    proof = Signed(opened.accept, opened.signature)
    if opened.dealer != doubted.dealer or member is None or not signature_holds(proof, member.public_key):
        raise Refusal("parcel-foreign", f"the unreadable parcel in the name of {name} isn't shown to be {name}'s own")
    accept = Accept.parse(opened.accept)
    rows = PARCELS.read(accept.parcels)
    place = (accept.context, accept.position, len(rows))
    if place != (context.hash, doubted.dealer, len(context.keepers)):
        raise Refusal("parcel-foreign", f"what {name} signed belongs to another attempt or place")
    if rows[context.keepers.index(hand.position)] != (doubted.sealed, doubted.commitment):
        raise Refusal("parcel-foreign", f"the coordinator delivered another parcel than {name} has signed")
    return Complaint(context.hash, doubted.dealer, doubted.key)


def read_survivors(
    opened: Survivors, context: RoundContext, members: MemberList, accepted: frozenset[int], frozen: frozenset[int]
) -> dict[int, bytes]:
    """The uploads of U3, all made for the same sets U1 and U2 as this keeper knows (a split freeze isolates nobody).

    Returns:
        Digest of each upload, by position.

    Raises:
        Refusal: "survivor-foreign", "roster-duplicate", "upload-signature" or "cohort-floor".
    """
    accepted_hash, frozen_hash = context.set_hash(accepted), context.set_hash(frozen)
    found: dict[int, bytes] = {}
    for cells in UPLOADS.read(opened.uploads):
        position = int.from_bytes(cells[0], "big")
        if position not in frozen:
            raise Refusal("survivor-foreign", f"position {position} survives but wasn't in the frozen set")
        if position in found:
            raise Refusal("roster-duplicate", f"position {position} stands twice in the survivor set")
        upload = Upload(context.hash, position, accepted_hash, frozen_hash, cells[1])
        if not holds(upload, cells[2], context, members, position):
            raise Refusal(
                "upload-signature",
                f"{context.names[position]} hasn't signed this upload for the sets that this site knows",
            )
        found[position] = cells[1]
    enough(len(found), context.floor, "uploaded")
    return found


def check_quorum(opened: Quorum, signed: Statement, context: RoundContext, members: MemberList) -> None:
    """Q distinct keepers signed the very survivor set that this keeper signed (A1).

    Raises:
        Refusal: "quorum-foreign", "quorum-signature" or "quorum-short".
    """
    seen: set[int] = set()
    for cells in QUORUM.read(opened.signatures):
        position = int.from_bytes(cells[0], "big")
        if position not in context.keepers or position in seen:
            raise Refusal("quorum-foreign", f"position {position} signs twice, or keeps no shares")
        if not holds(signed, cells[1], context, members, position):
            raise Refusal(
                "quorum-signature", f"{context.names[position]} hasn't signed the survivor set that this site signed"
            )
        seen.add(position)
    if len(seen) < context.numbers.quorum:
        raise Refusal(
            "quorum-short", f"{len(seen)} keepers signed the survivor set; {context.numbers.quorum} are needed"
        )
