"""What a site's ledger says, as rows for people and programs, and signed for whoever has to rely on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from privacy.accounting.accountant import COARSE, epsilon
from privacy.accounting.events import Unit
from privacy.ledger import Book, LedgerError, Phase, SignedEntry
from privacy.ledger.chain import first_key
from privacy.secure_aggregation.keys import SigningKey, verify

FORMAT: Final = "fedloom/ledger-export/2"

STATEMENT: Final = (
    "Each event is a release of a Gaussian mechanism to whoever sees the model: normal noise of noise_multiplier times "
    "the sensitivity, added to a sum over a Poisson sample with probability sampling_rate. The figures bound the loss "
    "of one unit that is added or removed, over all runs of all coordinators. The number of records counts as public."
)
_CHECK: Final = (
    "signature is Ed25519 by signing_key over the UTF-8 bytes of everything but 'signature' as JSON with sorted keys "
    "and no spaces (Python: json.dumps(rest, sort_keys=True, separators=(',', ':'))). Each line's body is signed by "
    "the same key, or by an earlier one up to a line of kind 'key' that names its successor, and names SHA-256 of "
    "'fedloom/ledger/line' and the body before it; head is that of the last body."
)
_WHO: Final = {
    Unit.RECORD: "one record",
    Unit.PERSON: "all records of one person",
    Unit.PARTICIPANT: "all of this site's records",
}


def data_row(book: Book, name: str) -> dict[str, Any]:
    """One data set's budget: figures, the runs that it was spent on, the events.

    Args:
        book: The site's ledger.
        name: Of the data set.
    """
    balance = book.balance(name)
    runs = run_rows(book, name)
    return {
        "dataset": name,
        "unit": str(balance.unit),
        "records": balance.records,
        "epsilon": balance.epsilon,
        "delta": balance.delta,
        "spent": balance.spent,
        "reserved": balance.reserved,
        "left": balance.left,
        "rounds_by_run": {run["run"]: run["rounds"] for run in runs},
        "runs": runs,
        "events": [event.plain() for event in balance.events],
        "statement": data_statement(book, name),
    }


def run_rows(book: Book, name: str) -> list[dict[str, Any]]:
    """What each run has cost a data set, taken by itself; such figures don't add up to what all of them cost."""
    found: dict[str, list[Any]] = {}
    for task in book.tasks.values():
        if task.dataset == name and task.phase is not Phase.RETURNED:
            found.setdefault(task.job.run_id, []).append(task)
    delta = book.dataset(name).delta
    return [
        {
            "run": run,
            "coordinators": sorted({task.job.coordinator for task in tasks}),
            "rounds": len(tasks),
            "open": sum(task.phase is Phase.RESERVED for task in tasks),
            "epsilon_alone": epsilon([event for task in tasks for event in task.events], delta, interval=COARSE),
        }
        for run, tasks in sorted(found.items())
    ]


def data_statement(book: Book, name: str) -> str:
    """The promise that holds for a data set so far, in words."""
    balance = book.balance(name)
    return (
        f"Whoever saw everything that left {book.site} so far finds any conclusion at most e^{balance.committed:.4g} "
        f"times as likely, up to a probability of {balance.delta:.3g}, because {_WHO[balance.unit]} of {name!r} took "
        f"part than if not. The site allows e^{balance.epsilon:g}."
    )


def export(book: Book, lines: Sequence[SignedEntry], federation: str, key: SigningKey) -> dict[str, Any]:
    """The whole ledger with what it adds up to, signed.

    Formal Guarantees:
        The signature covers the statement, the figures, the head and all lines, so that none can be left out; each line
        is also signed by itself and holds the hash of the one before.

    Args:
        book: The site's ledger, checked.
        lines: All of its lines.
        federation: The federation's name.
        key: The site's.
    """
    body: dict[str, Any] = {
        "format": FORMAT,
        "site": book.site,
        "federation": federation,
        "signing_key": book.public.hex(),
        "statement": STATEMENT,
        "how_to_check": _CHECK,
        "head": book.head.hex(),
        "clock_went_back_before_lines": book.backwards,
        "datasets": [data_row(book, name) for name in sorted(book.data)],
        "lines": [{"body": item.body.hex(), "signature": item.signature.hex()} for item in lines],
    }
    return {**body, "signature": key.sign(_signed(body)).hex()}


def read_export(body: Any, *, key: bytes | None = None) -> Book:
    """The ledger of an export, after all of its signatures, its chain and its figures have been checked.

    Args:
        body: What stands in the file.
        key: The site's signing key as it is known from elsewhere, 32 bytes; without it, the export's own counts.

    Raises:
        LedgerError: "export-invalid" naming what is wrong; "ledger-broken" naming the line.
    """
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise _invalid(f"it isn't of the format {FORMAT}")
    try:
        public, head = bytes.fromhex(body["signing_key"]), bytes.fromhex(body["head"])
        signature = bytes.fromhex(body["signature"])
        lines = [SignedEntry(bytes.fromhex(it["body"]), bytes.fromhex(it["signature"])) for it in body["lines"]]
        book = Book(str(body["site"]), first_key(lines, public))
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid(f"a field is missing or can't be read: {error}") from None
    if key is not None and key != public:
        raise _invalid(f"it is signed with the key {public.hex()}, and the site's is {key.hex()}")
    if not verify(public, signature, _signed({name: value for name, value in body.items() if name != "signature"})):
        raise _invalid("its signature isn't that of its site over what stands in it")
    book.follow(lines)
    if (book.head, book.public) != (head, public):
        raise _invalid("lines are missing at its end")
    if body["datasets"] != [data_row(book, name) for name in sorted(book.data)]:
        raise _invalid("its figures aren't those of its lines")
    return book


def _signed(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode("utf-8")


def _invalid(what: str) -> LedgerError:
    return LedgerError("export-invalid", f"the export can't be relied on: {what}", "Ask the site for a new one.")
