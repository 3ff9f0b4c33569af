"""``kill -9`` of a process that spends privacy: recovered epsilon is never below what may have left."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from participant.ledger import BudgetLedger
from privacy.accounting import GaussianEvent, epsilon
from privacy.ledger.book import Phase
from privacy.secure_aggregation.keys import SigningKey

COST = [GaussianEvent(noise_multiplier=2.0, sampling_rate=0.1)]

SPEND = """
    import os, signal, sys
    from pathlib import Path
    from participant.ledger import BudgetLedger
    from privacy.accounting import GaussianEvent, Unit
    from privacy.ledger import JobInfo
    from privacy.secure_aggregation.keys import SigningKey

    folder, moment = Path(sys.argv[1]), sys.argv[2]

    def die(now):
        if now == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    ledger = BudgetLedger(folder / "ledger.sqlite", SigningKey(bytes(range(32))), site="ward-a")
    job = JobInfo(run_id="flu-1", round=1, coordinator="here", plan_hash=bytes(32), model="00")
    ledger.open_dataset("scans", records=1_000, unit=Unit.RECORD, epsilon=2.0, delta=1e-5)
    die("before reserve")
    ledger.reserve("t1", "scans", job, [GaussianEvent(noise_multiplier=2.0, sampling_rate=0.1)])
    die("after reserve")
    (folder / "trained").touch()
    die("before charge")
    ledger.charge("t1")
    die("after charge")
    (folder / "left").touch()  # what the coordinator has got
    die("after release")
    ledger.settle("t1")
    die("after settle")
"""

PHASES = {
    "before reserve": None,
    "after reserve": Phase.RESERVED,
    "before charge": Phase.RESERVED,
    "after charge": Phase.CHARGED,
    "after release": Phase.CHARGED,
    "after settle": Phase.SETTLED,
    "never": Phase.SETTLED,
}


@pytest.mark.parametrize("moment", PHASES)
def test_killed(tmp_path: Path, moment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SPEND), str(tmp_path), moment],
        cwd=Path(__file__).parents[2],
        timeout=60,
        check=False,
    )
    assert done.returncode == (0 if moment == "never" else -signal.SIGKILL)
    ledger = BudgetLedger(tmp_path / "ledger.sqlite", SigningKey(bytes(range(32))), site="ward-a")
    balance = ledger.balance("scans")
    found = ledger.book().tasks.get("t1")
    assert (found.phase if found is not None else None) == PHASES[moment]
    if (tmp_path / "left").exists():
        assert balance.spent >= epsilon(COST, 1e-5)
    if found is not None:
        assert balance.committed >= epsilon(COST, 1e-5)
        # The restarted process goes on where it was: reserving the same task again costs nothing more.
        ledger.reserve("t1", "scans", found.job, COST)
        ledger.charge("t1")
        ledger.settle("t1")
    assert ledger.balance("scans").committed <= epsilon(COST, 1e-5) + 1e-9
    ledger.close()
