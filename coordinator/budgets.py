"""Sites' privacy budgets, as far as their signed receipts tell: the federation's view of what was spent."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from coordinator.store import Store
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


class Budgets:
    """Each site's last receipt in one run.

    Args:
        store: Where receipts are.
        members: Gives the federation's list as it is now.
        run_id: The run.
    """

    def __init__(self, store: Store, members: Callable[[], MemberList], run_id: str) -> None:
        self._store = store
        self._members = members
        self._run_id = run_id

    def known(self) -> dict[str, Receipt]:
        """All of them, by name. A receipt of an earlier run, or of a member that was removed since, isn't shown."""
        found = {}
        for name, (body, signature) in self._store.budgets().items():
            with contextlib.suppress(RefusedError):
                found[name] = self._checked(name, pb.BudgetReceipt(body=body, signature=signature))
        return found

    def take(self, peer: str, message: pb.BudgetReceipt) -> pb.BudgetKnown:
        """Keep a receipt; the answer is for after it is on the disk.

        Raises:
            RefusedError: As :func:`checked_receipt` and :func:`check_follows`.
        """
        receipt = self._checked(peer, message)
        check_follows(peer, receipt, self.known().get(peer))
        self._store.put_budget(peer, message.body, message.signature)
        return pb.BudgetKnown(lines=receipt.lines, head=receipt.head)

    def answer(self, peer: str, code: str = "") -> pb.BudgetKnown:
        """What is on the disk of this peer, so that it can show what is missing."""
        receipt = self.known().get(peer)
        if receipt is None:
            return pb.BudgetKnown(code=code)
        return pb.BudgetKnown(lines=receipt.lines, head=receipt.head, code=code)

    def _checked(self, peer: str, message: pb.BudgetReceipt) -> Receipt:
        return checked_receipt(peer, message, self._members(), self._run_id)
