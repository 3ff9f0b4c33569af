"""A ledger outlives its site's key: what was paid under one is paid under the next, wherever a crash happens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from participant.ledger import BudgetLedger, keep_key, ledger_lines, open_ledger
from participant.site import LEDGER, Site, SiteConfig
from privacy.accounting import GaussianEvent, Unit
from privacy.ledger import JobInfo, LedgerError, Receipt
from privacy.secure_aggregation.keys import SigningKey
from wire import FederationCA, Role

OLD, NEW = SigningKey(b"k" * 32), SigningKey(b"n" * 32)
JOB = JobInfo(run_id="flu-1", round=1, coordinator="here", plan_hash=bytes(32), model="00")
COST = [GaussianEvent(noise_multiplier=2.0, sampling_rate=0.1)]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    config = SiteConfig(
        session_address="localhost:1", enrolment_address="localhost:2", root="ab" * 32, data="folder:/data"
    )
    own = FederationCA.create("demo").issue_client("ward-a", Role.PARTICIPANT, 90.0)
    made = Site(tmp_path / "home", config, own, OLD)
    made.save()
    with_budget = open_ledger(made)
    with_budget.open_dataset("scans", records=1_000, unit=Unit.RECORD, epsilon=4.0, delta=1e-5)
    with_budget.reserve("t1", "scans", JOB, COST)
    with_budget.charge("t1")
    with_budget.close()
    return made


def spent(site: Site) -> float:
    ledger = open_ledger(site)
    try:
        ledger.open_dataset("scans", records=1_000, unit=Unit.RECORD, epsilon=4.0, delta=1e-5)
        return ledger.balance("scans").spent
    finally:
        ledger.close()


def test_what_was_paid_stays_paid(site: Site) -> None:
    before, lines = spent(site), ledger_lines(site)
    keep_key(site)
    anew = dataclasses.replace(site, signing_key=NEW)
    anew.save()
    assert spent(anew) == before
    assert ledger_lines(anew) == lines + 1
    ledger = open_ledger(anew)
    ledger.reserve("t2", "scans", JOB, COST)
    receipt = Receipt.opened(ledger.receipt("scans", "flu-1", 1), NEW.public, "ward-a")
    assert receipt.lines == lines + 2
    ledger.close()
    assert not (site.folder / "identity" / "previous.key").exists()
    with pytest.raises(LedgerError, match="another key"):
        BudgetLedger(site.folder / LEDGER, OLD, site="ward-a")


def test_a_crash_before_the_new_identity_is_written_changes_nothing(site: Site) -> None:
    before, lines = spent(site), ledger_lines(site)
    keep_key(site)
    assert (spent(site), ledger_lines(site)) == (before, lines)
    assert not (site.folder / "identity" / "previous.key").exists()


def test_a_crash_after_the_ledger_was_handed_over_changes_nothing(site: Site) -> None:
    keep_key(site)
    anew = dataclasses.replace(site, signing_key=NEW)
    anew.save()
    before, lines = spent(anew), ledger_lines(anew)
    keep_key(site)  # as if the note had not been removed yet
    assert (spent(anew), ledger_lines(anew)) == (before, lines)


def test_without_the_earlier_key_the_ledger_is_not_continued(site: Site) -> None:
    anew = dataclasses.replace(site, signing_key=NEW)
    anew.save()
    with pytest.raises(LedgerError, match="isn't signed with this site's key") as caught:
        open_ledger(anew)
    assert "earlier identity" in caught.value.hint


def test_a_site_without_a_ledger_has_nothing_to_hand_over(site: Site) -> None:
    for file in site.folder.glob("ledger.sqlite*"):
        file.unlink()
    assert ledger_lines(site) == 0
