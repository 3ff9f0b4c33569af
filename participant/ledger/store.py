"""The privacy ledger in a SQLite file of its own: synced before a call returns, appended to and never changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from participant.ledger.schema import HEAD, MIGRATIONS, lines
from participant.ledger.witness import Witness
from privacy.accounting.accountant import COARSE, FINE
from privacy.accounting.events import Event, Unit
from privacy.ledger import Balance, Book, JobInfo, LedgerError, Receipt, SignedEntry, SignedReceipt, entry_hash
from privacy.ledger.book import Line
from privacy.ledger.chain import first_key
from privacy.secure_aggregation.keys import SigningKey, verify
from wire.database import READ_ONLY, open_at


class BudgetLedger:
    """A site's ledger: one for all its data sets, runs, models and coordinators.

    Each writing method takes the database's write lock, reads what other processes have written meanwhile, decides, and
    writes; when it returns, the line is on the disk. So two processes can't both take the last of a budget, and nothing
    is ever counted that isn't written. All methods are safe to call from any thread.

    Args:
        path: The SQLite file, made if it isn't there.
        key: The site's signing key.
        site: The site's name.
        clock: Seconds since the epoch; written down, never decided by.

    Raises:
        LedgerError: "ledger-broken" if a line was changed, added or removed; the message names it. "ledger-older" if
            lines at the end are missing that the note beside the file knows of (:class:`Witness`).
        ConfigError, DataError, ResourceError: As for the journal.
    """

    def __init__(self, path: Path, key: SigningKey, *, site: str, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self._witness = Witness(path)
        # Read before the ledger: another process may write both meanwhile, and the note must never seem to be ahead.
        noted = self._witness.known()
        self._engine = open_at(path, HEAD, MIGRATIONS)
        try:
            with self._engine.connect().execution_options(**{READ_ONLY: True}) as connection:
                self._first = _first_key(connection, key.public)
                self._book = Book(site, self._first)
                self._catch_up(connection)
                if self._book.public != key.public:
                    raise LedgerError(
                        "ledger-foreign",
                        f"the privacy ledger of {site} was handed over to another key than this site's",
                        "Put the site's present identity back, or its own ledger.sqlite.",
                    )
                if noted is not None:
                    last = connection.execute(_from(noted[0] - 1)).first()
                    self._witness.check(self._book.count, b"" if last is None else entry_hash(last.body), noted)
        except BaseException:
            self._engine.dispose()
            raise

    def open_dataset(self, dataset: str, *, records: int, unit: Unit, epsilon: float, delta: float) -> None:
        """Give a data set its budget; nothing changes where it has it. See ``privacy.ledger.Book``."""
        self._write(lambda book: book.open_dataset(dataset, records=records, unit=unit, epsilon=epsilon, delta=delta))

    def reserve(self, task_id: str, dataset: str, job: JobInfo, events: Sequence[Event]) -> None:
        """Reserve what a task will cost, before it is trained.

        Raises:
            BudgetError: "budget-exhausted": that isn't left.
            LedgerError: The task was reserved for something else.
        """
        self._write(lambda book: book.reserve(task_id, dataset, job, events))

    def charge(self, task_id: str) -> None:
        """Spend what a task costs, before anything of its result leaves.

        Raises:
            LedgerError: It isn't reserved.
        """
        self._write(lambda book: book.charge(task_id))

    def settle(self, task_id: str, events: Sequence[Event] | None = None) -> None:
        """Write down what a charged task has cost in the end.

        Raises:
            LedgerError: That is more than was charged.
        """
        self._write(lambda book: book.settle(task_id, events))

    def give_back(self, task_id: str) -> None:
        """Free the reservation of a task whose result never left.

        Raises:
            LedgerError: It was charged: its result may have left.
        """
        self._write(lambda book: book.give_back(task_id))

    def drop(self, task_id: str) -> None:
        """Free a task's reservation, unless its result may have left: then it stays spent."""
        self._write(lambda book: book.drop(task_id))

    def hand_over(self, key: SigningKey) -> None:
        """Go on with another key of this site."""
        self._write(lambda book: book.hand_over(key))
        self._key = key

    def balance(self, dataset: str) -> Balance:
        """A data set's budget, finely computed.

        Raises:
            LedgerError: "dataset-unknown".
        """
        return self.book().balance(dataset, interval=FINE)

    def receipt(self, dataset: str, run_id: str, round_number: int) -> SignedReceipt:
        """What the coordinator is shown of a data set's budget."""
        book = self.book()
        balance = book.balance(dataset, interval=COARSE)
        receipt = Receipt.of(
            balance,
            site=book.site,
            run_id=run_id,
            round_number=round_number,
            lines=book.count,
            head=book.head,
            at_s=self._clock(),
        )
        return receipt.sign(self._key)

    def book(self) -> Book:
        """The whole ledger as it is now, checked; what is written later doesn't change it."""
        with self._lock, self._engine.connect().execution_options(**{READ_ONLY: True}) as connection:
            self._catch_up(connection)
            return self._book.copy()

    def entries(self) -> list[SignedEntry]:
        """All lines."""
        with self._engine.connect().execution_options(**{READ_ONLY: True}) as connection:
            return [SignedEntry(row.body, row.signature) for row in connection.execute(_from(0))]

    def close(self) -> None:
        """Release the file. Calling it twice is allowed."""
        self._engine.dispose()

    def _write(self, decide: Callable[[Book], Line | None]) -> None:
        with self._lock:
            known = None
            try:
                with self._engine.begin() as connection:
                    self._catch_up(connection)
                    known = self._book.count
                    line = decide(self._book)
                    if line is None:
                        return
                    signed = self._book.line(self._key, self._clock(), *line)
                    connection.execute(
                        sa.insert(lines).values(number=known, body=signed.body, signature=signed.signature)
                    )
            except BaseException:
                if known is not None and self._book.count != known:
                    # What the book has taken in may not be on the disk: read it anew from there.
                    self._book = Book(self._book.site, self._first)
                raise
            self._witness.note(self._book)

    def _catch_up(self, connection: sa.Connection) -> None:
        """Take in what other processes have written. The last line that is known must still be there."""
        known = self._book.count
        found = iter(connection.execute(_from(max(0, known - 1))))
        if known:
            last = next(found, None)
            if last is None or entry_hash(last.body) != self._book.head:
                raise LedgerError(
                    "ledger-broken",
                    f"line {known - 1} of the privacy ledger is gone or another one since this process read it",
                    "Was the file replaced by an older copy? Put the newer one back: what it says was spent is spent.",
                    line=known - 1,
                )
        self._book.follow(_numbered(found, known))


def _first_key(connection: sa.Connection, own: bytes) -> bytes:
    """The key with which the ledger was begun."""
    first = connection.execute(_from(0).limit(1)).first()
    if first is None or verify(own, first.signature, first.body):
        return own
    return first_key((SignedEntry(row.body, row.signature) for row in connection.execute(_from(0))), own)


def _from(number: int) -> sa.Select[Any]:
    # SQLite keeps text in a column of bytes if somebody puts it there, and stumbles over it when it reads.
    columns = (
        sa.case((sa.func.typeof(column) == "blob", column), else_=sa.literal(b"")).label(column.name)
        for column in (lines.c.body, lines.c.signature)
    )
    return sa.select(lines.c.number, *columns).where(lines.c.number >= number).order_by(lines.c.number)


def _numbered(rows: Iterable[sa.Row[Any]], first: int) -> Iterator[SignedEntry]:
    """The lines from ``first`` on; a row at another place than its line is one that somebody moved."""
    for number, row in enumerate(rows, first):
        if row.number != number:
            raise LedgerError(
                "ledger-broken",
                f"line {number} of the privacy ledger is missing: the row in its place has the number {row.number!r}",
                "Somebody or something changed the file. Restore it from a backup.",
                line=number,
            )
        yield SignedEntry(row.body, row.signature)
