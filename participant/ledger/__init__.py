"""The site's privacy ledger on its disk."""

from participant.ledger.store import BudgetLedger

__all__ = ["BudgetLedger"]
