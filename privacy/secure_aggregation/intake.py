"""What the coordinator checks in a participant's statement before it stands in the log."""

from __future__ import annotations

from privacy.secure_aggregation.book import Book
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.members import MemberList
from privacy.secure_aggregation.sharing import MASK_KEY, SEED, beacon_hash, parcel_commitment, share_hash
from privacy.secure_aggregation.statements import (
    PARCELS,
    RELEASES,
    Accept,
    Complaint,
    Doubt,
    Ready,
    Refused,
    Release,
    RoundStatement,
    Signed,
    Survived,
    Upload,
    signature_holds,
)

NO_CONTEXT = bytes(32)


def is_news(book: Book, members: MemberList, position: int, opened: RoundStatement) -> bool:
    """Whether a statement of the participant at ``position`` changes something; False for repetitions and latecomers.

    Raises:
        SecureAggregationError: It breaks a rule of the protocol.
    """
    match opened:
        case Accept():
            return _accept(book, members, position, opened)
        case Ready():
            return book.phase == "training" and position in book.accepted and position not in book.ready
        case Upload():
            return _upload(book, position, opened)
        case Survived():
            return _survived(book, position, opened)
        case Release():
            return _release(book, position, opened)
        case Complaint():
            return _parcel_in_question(book, position, opened.offender)
        case Refused():
            return _refused(book, position, opened)
        case _:
            return False


def may_doubt(book: Book, position: int, opened: Doubt) -> bool:
    """Whether a keeper is owed the evidence that it asks for."""
    return _parcel_in_question(book, position, opened.dealer)


def _accept(book: Book, members: MemberList, position: int, opened: Accept) -> bool:
    if position in book.accepts or book.phase != "accepting" or position in book.excluded:
        return False
    name, seat = book.context.names[position], book.context.roster[position]
    member = members.participant(name)
    acceptance = Signed(opened.acceptance().body(), opened.acceptance_signature)
    if opened.position != position or member is None or not signature_holds(acceptance, member.public_key):
        raise SecureAggregationError("acceptance-signature", f"the acceptance of {name} isn't signed by it")
    if beacon_hash(opened.beacon) != seat.beacon_hash:
        raise SecureAggregationError("beacon-mismatch", f"{name} reveals another beacon than it committed to")
    if len(PARCELS.read(opened.parcels)) != len(book.context.keepers):
        raise SecureAggregationError("parcels-missing", f"{name} hasn't sent a parcel to each keeper")
    return True


def _upload(book: Book, position: int, opened: Upload) -> bool:
    if book.phase != "uploading" or position not in book.frozen or position in book.uploads:
        return False
    context = book.context
    expected = (position, context.set_hash(book.accepted), context.set_hash(book.frozen))
    if (opened.position, opened.accepted_hash, opened.frozen_hash) != expected:
        raise SecureAggregationError(
            "upload-foreign", f"{context.names[position]} made its upload for other sets than were announced"
        )
    return True


def _survived(book: Book, position: int, opened: Survived) -> bool:
    if book.phase not in ("signing", "releasing") or position not in book.keepers or position in book.survived:
        return False
    expected = (book.context.set_hash(book.frozen), book.context.set_hash(book.survivors))
    if (opened.frozen_hash, opened.survivors_hash) != expected:
        raise SecureAggregationError(
            "survivors-foreign", f"{book.context.names[position]} signed another survivor set than was announced"
        )
    return True


def _release(book: Book, position: int, opened: Release) -> bool:
    """Every share is the one that its dealer committed to: otherwise the keeper is at fault, alone."""
    if book.phase != "releasing" or position in book.releases or position not in book.keepers:
        return False
    names = book.context.names
    asked = (book.survivors, book.dropped())
    if opened.survivors_hash != book.context.set_hash(book.survivors):
        raise SecureAggregationError("release-foreign", f"{names[position]} released shares for another survivor set")
    for rows, dealers, kind in zip((opened.seeds, opened.mask_keys), asked, (SEED, MASK_KEY), strict=True):
        table = RELEASES.read(rows)
        if [int.from_bytes(row[0], "big") for row in table] != sorted(dealers):
            raise SecureAggregationError(
                "release-foreign", f"{names[position]} released other shares than were asked for"
            )
        for row in table:
            _check_share(book, position, int.from_bytes(row[0], "big"), kind, row[1], row[2])
    return True


def _check_share(book: Book, keeper: int, dealer: int, kind: str, share: bytes, other: bytes) -> None:
    context = book.context
    commitment = PARCELS.read(book.accepts[dealer].parcels)[context.keepers.index(keeper)][1]
    own = share_hash(context.hash, dealer, keeper, kind, share)
    if parcel_commitment(*((own, other) if kind == MASK_KEY else (other, own))) != commitment:
        raise SecureAggregationError(
            "share-wrong",
            f"{context.names[keeper]} released a share of {context.names[dealer]} that isn't the one it was dealt",
        )


def _parcel_in_question(book: Book, keeper: int, dealer: int) -> bool:
    """Whether a keeper may still speak of a dealer's parcel: until there are survivors."""
    return book.phase in ("training", "uploading") and keeper in book.keepers and dealer in book.accepted - {keeper}


def _refused(book: Book, position: int, opened: Refused) -> bool:
    if position in book.refusers:
        return False
    # A refusal that names no attempt is of a plan that couldn't even be read.
    unread = opened.context == NO_CONTEXT and book.phase == "accepting" and position not in book.accepts
    return unread or opened.context == book.context.hash
