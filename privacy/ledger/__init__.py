"""The privacy ledger of a site: append-only, hash-chained and signed; the only place where budget is spent."""

from privacy.ledger.balance import Balance, Data, JobInfo, Phase, Spending
from privacy.ledger.book import BUDGET_EXHAUSTED, Book, BudgetError
from privacy.ledger.chain import entry_hash
from privacy.ledger.entries import LedgerError, SignedEntry
from privacy.ledger.receipts import Receipt, SignedReceipt

__all__ = [
    "BUDGET_EXHAUSTED",
    "Balance",
    "Book",
    "BudgetError",
    "Data",
    "JobInfo",
    "LedgerError",
    "Phase",
    "Receipt",
    "SignedEntry",
    "SignedReceipt",
    "Spending",
    "entry_hash",
]
