"""The ledger's file: append-only, shared by processes, durable when a call returns."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from participant.ledger import BudgetLedger
from privacy.accounting import GaussianEvent, Unit, epsilon
from privacy.ledger import BudgetError, JobInfo, LedgerError, Receipt
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
