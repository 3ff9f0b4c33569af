"""The ledger's file: append-only, shared by processes, durable when a call returns."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from participant.ledger import BudgetLedger
from participant.ledger import schema as ledger_schema
from privacy.accounting import GaussianEvent, Unit, epsilon
from privacy.ledger import Book, BudgetError, JobInfo, LedgerError, Receipt, SignedEntry
from privacy.secure_aggregation.keys import SigningKey

KEY = SigningKey(bytes(range(32)))
JOB = JobInfo(run_id="flu-1", round=1, coordinator="here", plan_hash=bytes(32), model="00")


def cost(count: int = 1) -> list[GaussianEvent]:
    return [GaussianEvent(noise_multiplier=2.0, sampling_rate=0.1, count=count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[BudgetLedger]:
    opened = BudgetLedger(path, KEY, site="ward-a")
    opened.open_dataset("scans", records=1_000, unit=Unit.RECORD, epsilon=epsilon(cost(10), 1e-5), delta=1e-5)
    yield opened
    opened.close()


def test_what_was_written_is_there_after_a_restart(path: Path, ledger: BudgetLedger) -> None:
    ledger.reserve("t1", "scans", JOB, cost())
    ledger.charge("t1")
    ledger.settle("t1")
    ledger.reserve("t2", "scans", JOB, cost())
    ledger.give_back("t2")
    again = BudgetLedger(path, KEY, site="ward-a")
    assert again.balance("scans") == ledger.balance("scans")
    assert again.balance("scans").spent == pytest.approx(epsilon(cost(), 1e-5))
    assert len(again.entries()) == 6
    signed = again.receipt("scans", "flu-1", 1)
    assert Receipt.opened(signed, KEY.public, "ward-a").lines == 6
    again.close()


def test_two_open_ledgers_see_each_other(path: Path, ledger: BudgetLedger) -> None:
    other = BudgetLedger(path, KEY, site="ward-a")
    ledger.reserve("t1", "scans", JOB, cost(6))
    with pytest.raises(BudgetError):
        other.reserve("t2", "scans", JOB, cost(6))
    other.reserve("t2", "scans", JOB, cost(4))
    assert ledger.balance("scans").tasks == 2
    other.close()


def test_a_refusal_leaves_nothing_behind(ledger: BudgetLedger) -> None:
    with pytest.raises(BudgetError):
        ledger.reserve("t1", "scans", JOB, cost(11))
    assert len(ledger.entries()) == 1
    ledger.reserve("t1", "scans", JOB, cost(10))


def test_the_file_can_only_be_appended_to(path: Path, ledger: BudgetLedger) -> None:
    ledger.reserve("t1", "scans", JOB, cost())
    with sqlite3.connect(path) as raw:
        for statement in ("DELETE FROM lines", "UPDATE lines SET body = x'00'"):
            with pytest.raises(sqlite3.IntegrityError, match="appended"):
                raw.execute(statement)


def test_who_gets_round_the_triggers_is_found_out(path: Path, ledger: BudgetLedger) -> None:
    ledger.reserve("t1", "scans", JOB, cost())
    ledger.charge("t1")
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TRIGGER lines_no_delete")
        raw.execute("DELETE FROM lines WHERE number = 1")
    with pytest.raises(LedgerError) as caught:
        BudgetLedger(path, KEY, site="ward-a")
    assert "line 1 " in caught.value.message


def test_another_key_cannot_go_on(path: Path, ledger: BudgetLedger) -> None:
    with pytest.raises(LedgerError):
        BudgetLedger(path, SigningKey.generate(), site="ward-a")


def test_rows_can_neither_be_replaced_nor_skipped(path: Path, ledger: BudgetLedger) -> None:
    """REPLACE deletes without the trigger on DELETE; a gap would be taken for a line that somebody removed."""
    ledger.reserve("t1", "scans", JOB, cost())
    with sqlite3.connect(path) as raw:
        for number in (-1, 0, 1, 3):
            for verb in ("INSERT OR REPLACE", "INSERT"):
                with pytest.raises(sqlite3.IntegrityError, match="appended"):
                    raw.execute(f"{verb} INTO lines VALUES (?, x'00', x'00')", (number,))
    assert len(ledger.entries()) == 2


def every_kind(ledger: BudgetLedger) -> None:
    """After the data set was opened: one line of each kind, and one behind them."""
    ledger.open_dataset("scans", records=999, unit=Unit.RECORD, epsilon=5.0, delta=1e-5)
    ledger.reserve("t1", "scans", JOB, cost())
    ledger.charge("t1")
    ledger.settle("t1")
    ledger.reserve("t2", "scans", JOB, cost())
    ledger.give_back("t2")
    ledger.reserve("t3", "scans", JOB, cost())


@pytest.mark.parametrize("number", range(8))
def test_tampering_with_any_column_of_any_kind_of_row_is_named(path: Path, ledger: BudgetLedger, number: int) -> None:
    every_kind(ledger)
    good = path.with_name("good.sqlite")
    with sqlite3.connect(path) as raw, sqlite3.connect(good) as copy:
        raw.backup(copy)
    for column, value in (
        ("number", "number + 100"),
        ("number", "'ten'"),
        ("body", "x'00' || body"),
        ("body", "'text'"),
        ("body", "CAST(x'ff00fe' AS TEXT)"),
        ("body", "1"),
        ("signature", "zeroblob(64)"),
        ("signature", "'text'"),
        ("signature", f"(SELECT signature FROM lines WHERE number = {(number + 1) % 8})"),
    ):
        bad = path.with_name("bad.sqlite")
        bad.unlink(missing_ok=True)
        with sqlite3.connect(good) as raw, sqlite3.connect(bad) as copy:
            raw.backup(copy)
        with sqlite3.connect(bad) as raw:
            raw.execute("DROP TRIGGER lines_no_update")
            raw.execute(f"UPDATE lines SET {column} = {value} WHERE number = {number}")
        with pytest.raises(LedgerError) as caught:
            BudgetLedger(bad, KEY, site="ward-a")
        assert caught.value.line == number
        assert f"line {number} " in caught.value.message


def test_a_ledger_of_another_site_is_refused_by_name(path: Path, ledger: BudgetLedger) -> None:
    with pytest.raises(LedgerError) as caught:
        BudgetLedger(path, SigningKey.generate(), site="ward-b")
    assert caught.value.code == "ledger-foreign"
    assert "'ward-a'" in caught.value.message


def test_a_file_that_was_put_back_under_a_running_process(path: Path, ledger: BudgetLedger) -> None:
    """Whoever restores yesterday's copy would get back what was spent today."""
    old = path.with_name("old.sqlite")
    ledger.reserve("t1", "scans", JOB, cost())
    with sqlite3.connect(path) as raw, sqlite3.connect(old) as copy:
        raw.backup(copy)
    ledger.charge("t1")
    with sqlite3.connect(old) as raw, sqlite3.connect(path) as copy:
        raw.backup(copy)
    for use in (lambda: ledger.settle("t1"), lambda: ledger.reserve("t2", "scans", JOB, cost()), ledger.book):
        with pytest.raises(LedgerError, match=r"line 2 .*gone or another one"):
            use()


def test_a_ledger_of_the_first_schema_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tmp_path / "first"
    (first / "versions").mkdir(parents=True)
    source = ledger_schema.MIGRATIONS / "versions" / "0001_first.py"
    (first / "versions" / source.name).write_text(source.read_text())
    path = tmp_path / "ledger.sqlite"
    monkeypatch.setattr("participant.ledger.store.MIGRATIONS", first)
    monkeypatch.setattr("participant.ledger.store.HEAD", "0001")
    old = BudgetLedger(path, KEY, site="ward-a")
    old.open_dataset("scans", records=1_000, unit=Unit.RECORD, epsilon=1.0, delta=1e-5)
    old.close()
    monkeypatch.undo()
    new = BudgetLedger(path, KEY, site="ward-a")
    new.reserve("t1", "scans", JOB, cost())
    assert len(new.entries()) == 2
    with sqlite3.connect(path) as raw:
        names = {row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")}
    assert names == {"lines_no_update", "lines_no_delete", "lines_next"}
    new.close()


def test_each_write_is_synced_and_takes_the_lock_first(path: Path, ledger: BudgetLedger) -> None:
    seen: list[str] = []
    sa.event.listen(ledger._engine, "before_cursor_execute", lambda c, cur, text, *_: seen.append(text))
    ledger.reserve("t1", "scans", JOB, cost())
    assert seen[0] == "BEGIN IMMEDIATE"
    with ledger._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_a_refusal_does_not_read_the_ledger_anew(ledger: BudgetLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.reserve("t1", "scans", JOB, cost())
    read: list[int] = []
    follow = Book.follow

    def watched(book: Book, lines: Iterator[SignedEntry]) -> None:
        before = book.count
        follow(book, lines)
        read.append(book.count - before)

    monkeypatch.setattr(Book, "follow", watched)
    with pytest.raises(BudgetError):
        ledger.reserve("t2", "scans", JOB, cost(99))
    ledger.charge("t1")
    assert sum(read) == 1  # the line of the charge itself


def test_readers_and_writers_in_many_threads(ledger: BudgetLedger) -> None:
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(6):
                ledger.reserve(f"{name}-{number}", "scans", JOB, [GaussianEvent(noise_multiplier=500.0)])
                ledger.balance("scans")
                ledger.give_back(f"{name}-{number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert ledger.balance("scans").committed == 0.0
    assert len(ledger.entries()) == 1 + 4 * 6 * 2


class Power(Exception):
    """It went off."""


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "charge", "settle", "give_back", "drop"]),
        st.integers(0, 3),
        st.sampled_from(["", "", "before commit", "after commit"]),
    ),
    max_size=14,
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_spent_is_never_below_the_truth_wherever_the_file_is_cut_off(steps: list[tuple[str, int, str]]) -> None:
    """A crash on either side of any commit: what may have left is on the disk, what is on the disk was decided."""
    loud, quiet = cost(1), [GaussianEvent(noise_multiplier=3.0, sampling_rate=0.1)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        ledger = BudgetLedger(path, KEY, site="ward-a")
        ledger.open_dataset("scans", records=1_000, unit=Unit.RECORD, epsilon=50.0, delta=1e-5)
        truth: dict[str, list[GaussianEvent]] = {}
        for kind, number, crash in steps:
            task = f"t{number}"

            def fail(_connection: object) -> None:
                raise Power

            if crash == "before commit":
                sa.event.listen(ledger._engine, "commit", fail)
            try:
                if kind == "reserve":
                    ledger.reserve(task, "scans", JOB, loud)
                elif kind == "settle":
                    ledger.settle(task, quiet)
                else:
                    getattr(ledger, kind)(task)
            except (LedgerError, Power):
                pass
            else:
                # The call has returned: a charged result leaves now, a settled one is known to have cost less.
                if kind == "charge":
                    truth.setdefault(task, loud)
                elif kind == "settle" and task in truth:
                    truth[task] = quiet
            if crash:
                ledger.close()
                ledger = BudgetLedger(path, KEY, site="ward-a")
            spent = ledger.book().balance("scans", interval=1e-3)
            out = epsilon([event for events in truth.values() for event in events], 1e-5, interval=1e-3)
            assert spent.committed + 1e-9 >= spent.spent + 0.0 >= out - 1e-9
        ledger.close()


RACE = """
    import sys
    from pathlib import Path
    from participant.ledger import BudgetLedger
    from privacy.accounting import GaussianEvent
    from privacy.ledger import BudgetError, JobInfo
    from privacy.secure_aggregation.keys import SigningKey

    ledger = BudgetLedger(Path(sys.argv[1]), SigningKey(bytes(range(32))), site="ward-a")
    job = JobInfo(run_id="flu-1", round=1, coordinator="here", plan_hash=bytes(32), model="00")
    sys.stdin.readline()
    try:
        ledger.reserve(sys.argv[2], "scans", job, [GaussianEvent(noise_multiplier=2.0, sampling_rate=0.1, count=6)])
    except BudgetError as error:
        print(error.code)
    else:
        print("reserved")
"""


def test_two_processes_race_for_the_last_of_a_budget(path: Path, ledger: BudgetLedger) -> None:
    code = textwrap.dedent(RACE)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[4],
        )
        for name in ("one", "two")
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = sorted(racer.communicate(timeout=60)[0].strip() for racer in racers)
    assert said == ["budget-exhausted", "reserved"]
    assert ledger.balance("scans").tasks == 1
