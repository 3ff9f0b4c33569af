"""Sites' privacy budgets, as far as their signed receipts tell: the federation's view of what was spent."""

from __future__ import annotations

from privacy.ledger import LedgerError, Receipt, SignedReceipt
from privacy.secure_aggregation.members import MemberList
from protos import session_pb2 as pb
from wire import RefusedError


def check_follows(peer: str, receipt: Receipt, before: Receipt | None) -> None:
    """Refuse a receipt of a ledger that is older than, or another one than, that of the receipt before.

    Raises:
        RefusedError: "receipt-older".
    """
    if before is None or receipt.lines > before.lines:
        return
    if receipt.lines < before.lines or receipt.head != before.head:
        raise RefusedError(
            "receipt-older",
            f"{peer} shows a privacy ledger of {receipt.lines} lines, and has shown one of {before.lines} before: "
            "lines are gone or were changed",
            "Ask the site: was an old copy of ledger.sqlite put back?",
        )


def checked_receipt(peer: str, message: pb.BudgetReceipt, members: MemberList, run_id: str) -> Receipt:
    """Read a receipt that a participant shows.

    Args:
        peer: Who shows it.
        message: The receipt.
        members: The federation's list, which says whose key is whose.
        run_id: The run that goes on.

    Raises:
        RefusedError: "participant-uncertified", "receipt-invalid".
    """
    member = members.participant(peer)
    if member is None:
        raise RefusedError("participant-uncertified", f"{peer} shows a budget, and isn't a certified member")
    try:
        receipt = Receipt.opened(SignedReceipt(message.body, message.signature), member.public_key, peer)
    except LedgerError as error:
        raise RefusedError(error.code, error.message) from None
    if receipt.run_id != run_id:
        raise RefusedError("receipt-invalid", f"the budget receipt of {peer} is of run {receipt.run_id}")
    return receipt
