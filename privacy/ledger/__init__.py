"""The privacy ledger of a site: append-only, hash-chained and signed; the only place where budget is spent."""

from privacy.ledger.book import Balance, Book, BudgetError, Data, JobInfo, Spending
from privacy.ledger.entries import LedgerError, SignedEntry, entry_hash
from privacy.ledger.receipts import Receipt, SignedReceipt

__all__ = [
    "Balance",
    "Book",
    "BudgetError",
    "Data",
    "JobInfo",
    "LedgerError",
    "Receipt",
    "SignedEntry",
    "SignedReceipt",
    "Spending",
    "entry_hash",
]
