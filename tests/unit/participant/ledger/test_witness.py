"""The note beside the ledger: an older copy of the file, or none, is no way to get a budget back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from participant.ledger import BudgetLedger
from participant.ledger.witness import Witness
from privacy.accounting import GaussianEvent, Unit
from privacy.ledger import JobInfo, LedgerError
from privacy.secure_aggregation.keys import SigningKey

KEY = SigningKey(bytes(range(32)))
JOB = JobInfo(run_id="flu-1", round=1, coordinator="here", plan_hash=bytes(32), model="00")
COST = [GaussianEvent(noise_multiplier=30.0)]


def opened(path: Path, key: SigningKey = KEY) -> BudgetLedger:
    return BudgetLedger(path, key, site="ward-a")


def written(path: Path, tasks: int, first: int = 0) -> None:
    ledger = opened(path)
    ledger.open_dataset("scans", records=1_000, unit=Unit.RECORD, epsilon=2.0, delta=1e-5)
    for number in range(first, first + tasks):
        ledger.reserve(f"t{number}", "scans", JOB, COST)
    ledger.close()


def remove(path: Path) -> None:
    for file in path.parent.glob(path.name + "*"):
        if file != Witness(path).path:
            file.unlink()


def refusal(path: Path) -> LedgerError:
    with pytest.raises(LedgerError) as caught:
        opened(path)
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def test_the_note_follows_the_ledger(path: Path) -> None:
    assert Witness(path).known() is None
    ledger = opened(path)
    assert Witness(path).known() is None  # nothing was written yet
    ledger.open_dataset("scans", records=1_000, unit=Unit.RECORD, epsilon=2.0, delta=1e-5)
    ledger.reserve("t1", "scans", JOB, COST)
    book = ledger.book()
    assert Witness(path).known() == (2, book.head)
    ledger.reserve("t1", "scans", JOB, COST)  # changes nothing, and notes nothing
    assert Witness(path).known() == (2, book.head)
    ledger.close()
    assert not list(path.parent.glob("*.head.*"))
    opened(path).close()


def test_an_older_copy_is_refused_and_says_what_is_missing(path: Path) -> None:
    written(path, 2)
    shutil.copy(path, path.with_suffix(".backup"))
    written(path, 3, first=2)
    remove(path)
    shutil.copy(path.with_suffix(".backup"), path)
    error = refusal(path)
    assert (error.code, error.line) == ("ledger-older", 3)
    assert "has 3 lines and had 6: lines 3 to 5 are missing" in error.message
    assert "receipts" in error.hint and Witness(path).path.name in error.hint


def test_a_deleted_ledger_is_missed(path: Path) -> None:
    written(path, 2)
    remove(path)
    assert refusal(path).code == "ledger-older"
    assert refusal(path).code == "ledger-older"  # and stays so: an empty one was not begun in its place
    Witness(path).path.unlink()
    opened(path).close()


def test_a_copy_without_its_write_ahead_log_is_missed(path: Path) -> None:
    written(path, 1)
    ledger = opened(path)
    ledger.reserve("t1", "scans", JOB, COST)  # stands in the log until the file is closed
    copy = path.with_name("copy") / path.name
    copy.parent.mkdir()
    for file in (path, Witness(path).path):
        shutil.copy(file, copy.parent)
    ledger.close()
    assert refusal(copy).code == "ledger-older"
    opened(path).close()


def test_another_history_of_the_same_length_is_refused(path: Path) -> None:
    written(path, 3)
    note = Witness(path).path.read_bytes()
    remove(path)
    Witness(path).path.unlink()
    written(path, 3, first=7)
    Witness(path).path.write_bytes(note)
    error = refusal(path)
    assert (error.code, error.line) == ("ledger-broken", 3)


def test_a_note_that_lags_is_no_fault(path: Path) -> None:
    """A crash between the line and its note, or two processes that note in another order than they wrote."""
    written(path, 1)
    note = Witness(path).path.read_bytes()
    written(path, 2, first=1)
    Witness(path).path.write_bytes(note)
    opened(path).close()
    Witness(path).path.unlink()
    opened(path).close()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        json.dumps({"lines": 0, "head": "00" * 32}).encode(),
        json.dumps({"lines": True, "head": "00" * 32}).encode(),
        json.dumps({"lines": 1, "head": "00"}).encode(),
        json.dumps({"lines": 1, "head": "zz"}).encode(),
        json.dumps({"lines": 1, "head": None}).encode(),
    ],
)
def test_a_note_that_is_none_is_named(path: Path, text: bytes) -> None:
    written(path, 1)
    Witness(path).path.write_bytes(text)
    error = refusal(path)
    assert error.code == "ledger-note"
    assert str(Witness(path).path) in error.message and error.hint


def test_a_note_that_cannot_be_written_keeps_nothing_from_being_spent(path: Path, monkeypatch: Any) -> None:
    written(path, 1)
    known = Witness(path).known()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wire.files.os.fsync", full)
    ledger = opened(path)
    ledger.reserve("t9", "scans", JOB, COST)
    assert "t9" in ledger.book().tasks
    ledger.close()
    assert Witness(path).known() == known
    assert not list(path.parent.glob("*.head.*"))
    opened(path).close()
