"""A note beside the ledger of how far it has come: an older copy of the file, or none, doesn't pass for the newest.

The chain itself cannot tell: with its newest lines cut off it is a valid, shorter chain, and what they had spent would
be there again. The note catches what happens by accident, a file that was restored from a backup, copied without its
write-ahead log, or deleted. Who wants to cheat can change both files; then only receipts that left the site tell.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from privacy.ledger import Book, LedgerError
from wire.files import write_whole


@dataclasses.dataclass(frozen=True)
class Witness:
    """The note that belongs to a ledger's file.

    Formal Guarantees:
        The note is written after the line that it names is durable, so it never runs ahead of the ledger: what it says
        was there, was there. It may lag behind by the lines that a crash kept from being noted.

    Args:
        ledger: The ledger's SQLite file.
    """

    ledger: Path

    @property
    def path(self) -> Path:
        """The note's own file."""
        return self.ledger.with_name(self.ledger.name + ".head")

    def known(self) -> tuple[int, bytes] | None:
        """How many lines there were, and the hash of the last one; None where nothing was noted.

        Raises:
            LedgerError: "ledger-note" for a note that this class didn't write.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise self._unreadable(str(error)) from error
        try:
            note: Any = json.loads(text)
            count, head = note["lines"], bytes.fromhex(note["head"])
        except (ValueError, TypeError, KeyError) as error:
            raise self._unreadable("it is no note of a ledger") from error
        if type(count) is not int or count < 1 or len(head) != 32:
            raise self._unreadable("it is no note of a ledger")
        return count, head

    def check(self, count: int, head: bytes, known: tuple[int, bytes]) -> None:
        """Compare what was noted with what is there.

        Args:
            count: Lines of the ledger.
            head: Hash of the line that was the last one when the note was written; unused where there are fewer lines.
            known: The note.

        Raises:
            LedgerError: "ledger-older" if lines are missing at the end, "ledger-broken" if the noted one is another.
        """
        if count < known[0]:
            raise LedgerError(
                "ledger-older",
                f"{self.ledger} has {count} lines and had {known[0]}: lines {count} to {known[0] - 1} are missing, and "
                "with them what they spent",
                "Put the newest copy of the file back, with the files beside it that end in -wal and -shm. If it is "
                "lost, nobody here knows what was spent: ask the coordinators for this site's last receipts, lower the "
                f"budget by what is missing, then remove {self.path.name}.",
                line=count,
            )
        if head != known[1]:
            raise LedgerError(
                "ledger-broken",
                f"line {known[0] - 1} of the privacy ledger is another one than when it was written",
                "Somebody or something changed the file. Restore it from a backup.",
                line=known[0] - 1,
            )

    def note(self, book: Book) -> None:
        """Write down how far the ledger is. Its last line is durable already; a note that can't be written lags."""
        note = {"lines": book.count, "head": book.head.hex()}
        with contextlib.suppress(OSError):
            write_whole(self.path, json.dumps(note).encode(), 0o644)

    def _unreadable(self, why: str) -> LedgerError:
        return LedgerError(
            "ledger-note",
            f"{self.path} can't be used: {why}",
            "It notes how far this site's privacy ledger has come. Restore it from a backup, together with the ledger.",
        )
