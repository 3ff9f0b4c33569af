"""The site's privacy ledger on its disk."""

from participant.ledger.opening import keep_key, ledger_lines, open_ledger
from participant.ledger.store import BudgetLedger

__all__ = ["BudgetLedger", "keep_key", "ledger_lines", "open_ledger"]
