"""Every durable write of a process, numbered: what a fault plan kills at.

The hook is at the lowest layer, so that no list of kinds can forget one: each SQLite transaction that changed a row
(``sqlite3.Connection.commit``), of whichever database, and each file that gets its name by a rename (blobs, the note
beside the ledger, masks). ``writes-NAME`` in the federation's folder has one line for each, with the kinds of rows that
are written together. Each kind is numbered by itself, from 1, over all lives of the process: who was killed writes
things that it wouldn't have written otherwise, and a number over all kinds would soon mean something else than in a
run without deaths. A death ``NAME:kind-number-moment`` is right before the write is durable or right after, and then
before anything follows from it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

BYPASSED = "past the hook: "
"""In front of a write that the hook sees, and can't stop: there must be none."""

_WRITE = re.compile(
    r"\s*(INSERT INTO|UPDATE|DELETE FROM|REPLACE INTO|CREATE \w+|DROP \w+|ALTER TABLE)\s+(?:IF NOT EXISTS\s+)?\"?(\w+)",
    re.IGNORECASE,
)
_ROWS = ("insert into", "update", "delete from", "replace into")
_SIGNS = {"insert into": "+", "update": "~", "delete from": "-"}
_WORD = re.compile(r"'([A-Za-z][A-Za-z_]{2,23})'")
_BYTES = re.compile(r"[xX]'([0-9a-fA-F]*)'")


class Around(Protocol):
    """``Fuse.around`` of ``tests.e2e.dying``."""

    def __call__(self, steps: list[tuple[str, int]]) -> contextlib.AbstractContextManager[None]:
        """These steps get durable inside the block."""


class Tally:
    """Counts a process's writes, and lets it die around each.

    Args:
        name: Of the process.
        folder: The federation's, where the count outlives the process.
        around: Kills.
    """

    def __init__(self, name: str, folder: Path, around: Around) -> None:
        self._name = name
        self._path = folder / f"writes-{name}"
        self._around = around
        self._lock = threading.RLock()
        self._count = numbered(folder, name)

    @contextlib.contextmanager
    def write(self, label: str) -> Iterator[None]:
        """Inside the block one write gets durable."""
        kinds = set(label.split())
        with self._lock, contextlib.ExitStack() as stack:
            # Numbered under the lock.
            steps = [(f"{self._name}:{kind}", self._count[kind] + 1) for kind in sorted(kinds)]
            stack.enter_context(self._around(steps))
            yield
            self._count.update(kinds)
            self._say(label)

    def bypassed(self, text: str) -> None:
        """Something was written, or will be, that no death can come before."""
        with self._lock:
            self._say(BYPASSED + " ".join(text.split())[:200])

    def _say(self, line: str) -> None:
        # Only the page cache has to survive: it is the process that dies, not the machine.
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def written(folder: Path, name: str) -> list[str]:
    """What a process has written, in order."""
    path = folder / f"writes-{name}"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in lines if not line.startswith(BYPASSED)]


def numbered(folder: Path, name: str) -> Counter[str]:
    """How many writes of each kind a process has made; rows of one kind in one transaction are one write."""
    return Counter(kind for line in written(folder, name) for kind in set(line.split()))


def bypassed(folder: Path, name: str) -> list[str]:
    """What a process has written past the hook."""
    path = folder / f"writes-{name}"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in lines if line.startswith(BYPASSED)]


def watch_writes(name: str, folder: Path, around: Around) -> None:
    """Number this process's durable writes under ``folder``, and die around those of the plan.

    A blob that the coordinator makes or receives also gets a second name under ``folder/kept``: collecting garbage
    must not keep a test from recomputing the run.
    """
    tally = Tally(name, folder, around)
    # The driver opens its connections with this name; a factory given by the caller would be lost, and there is none.
    sqlite3.dbapi2.connect = functools.partial(sqlite3.connect, factory=watched_connection(tally))  # type: ignore[assignment]
    for function in ("rename", "replace"):
        setattr(os, function, _watched(getattr(os, function), tally, folder, name == "coordinator"))


# ---- SQLite ---------------------------------------------------------------------------------------------------------


def watched_connection(tally: Tally) -> type[sqlite3.Connection]:
    """The driver's connections, with their commits counted."""

    class Watched(sqlite3.Connection):
        """A connection whose commits are counted."""

        def __init__(self, *args: Any, **keywords: Any) -> None:
            super().__init__(*args, **keywords)
            self._statements: list[str] = []
            self._changes = 0
            self._committing = False
            self.set_trace_callback(self._seen)

        def commit(self) -> None:
            """Durable when it returns."""
            rows = self.total_changes != self._changes
            labels = [item for item in self._statements if rows or item[0] not in _SIGNS.values()]
            self._forget()
            self._committing = True
            try:
                if labels:
                    with tally.write(" ".join(dict.fromkeys(labels))):
                        super().commit()
                else:
                    super().commit()
            finally:
                self._committing = False

        def rollback(self) -> None:
            """Nothing was written."""
            self._forget()
            super().rollback()

        def _forget(self) -> None:
            self._statements = []
            self._changes = self.total_changes

        def _seen(self, text: str) -> None:
            # An exception in here would be swallowed: what is wrong is written down.
            if text.strip().upper().startswith("COMMIT") and self._statements and not self._committing:
                tally.bypassed(text)
            if (found := _WRITE.match(text)) is None:
                return
            if not self.in_transaction:
                tally.bypassed(text)
            self._statements.append(_label(found[1].lower(), found[2], text))

    return Watched


def _label(verb: str, table: str, text: str) -> str:
    """What a statement writes: its table, and the kinds that its values name."""
    if verb not in _ROWS:
        return f"schema:{table}"
    kinds = _kinds(table, text) or list(dict.fromkeys(_WORD.findall(text)))[:3]
    return f"{_SIGNS.get(verb, '+')}{table}" + (f"({','.join(kinds)})" if kinds else "")


def _kinds(table: str, text: str) -> list[str]:
    """The kind of a row whose body is signed bytes."""
    from privacy.ledger.entries import unpack
    from privacy.secure_aggregation.statements import kind_of

    readers: dict[str, Callable[[bytes], str]] = {
        "lines": lambda body: str(unpack(body)["kind"]),
        "statements": kind_of,
        "results": lambda body: "result",
    }
    if table not in readers:
        return []
    for digits in _BYTES.findall(text):
        with contextlib.suppress(ValueError):
            return [readers[table](bytes.fromhex(digits))]
    return []


# ---- files ----------------------------------------------------------------------------------------------------------


def _watched(inner: Callable[..., None], tally: Tally, folder: Path, keep: bool) -> Callable[..., None]:
    @functools.wraps(inner)
    def outer(source: Any, target: Any, **keywords: Any) -> None:
        path = Path(os.fsdecode(target)).absolute()
        if folder not in path.parents:
            inner(source, target, **keywords)
            return
        blob = len(path.name) == 64
        with tally.write(f"file:{'blob' if blob else path.name if len(path.name) < 64 else path.suffix}"):
            inner(source, target, **keywords)
            if blob and keep:
                kept = folder / "kept" / path.name
                kept.parent.mkdir(exist_ok=True)
                if not kept.exists():
                    os.link(path, kept)

    return outer
