"""``fedloom participant budget``: what people, programs and regulators read, and refusals without a traceback."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import fedloom
from participant.ledger import BudgetLedger
from participant.site import CONFIG, LEDGER, Site, SiteConfig
from privacy.accounting import GaussianEvent, Unit, epsilon
from privacy.ledger import Book, JobInfo, SignedEntry
from privacy.secure_aggregation.keys import SigningKey, verify
from wire import FederationCA, Role

DELTA = 1e-5
COST = [GaussianEvent(noise_multiplier=2.0, sampling_rate=0.1, count=5)]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    config = SiteConfig(
        session_address="localhost:1", enrolment_address="localhost:2", root="ab" * 32, data="folder:/data"
    )
    own = FederationCA.create("demo").issue_client("ward-a", Role.PARTICIPANT, 90.0)
    made = Site(tmp_path / "home", config, own, SigningKey(b"k" * 32))
    made.save()
    return made


@pytest.fixture
def spent(site: Site) -> Site:
    """Two runs: one round settled and one charged, and one that is reserved only."""
    times = iter([10.0, 11.0, 12.0, 13.0, 5.0, 14.0, 15.0])  # the clock goes back once
    ledger = BudgetLedger(site.folder / LEDGER, site.signing_key, site=site.name, clock=lambda: next(times))
    ledger.open_dataset("scans", records=1_000, unit=Unit.RECORD, epsilon=4.0, delta=DELTA)
    for number, run in enumerate(("flu-1", "flu-1", "flu-2")):
        job = JobInfo(run_id=run, round=number + 1, coordinator="flu.example", plan_hash=bytes(32), model="00")
        ledger.reserve(f"t{number}", "scans", job, COST)
    ledger.charge("t0")
    ledger.settle("t0")
    ledger.charge("t1")
    ledger.close()
    return site


class Shell:
    """The command line, in this process."""

    def __init__(self, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
        self._home = ("--home", str(site.folder))
        self._capsys = capsys

    def run(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        home = () if arguments[:1] == ("check",) else self._home  # which needs no site
        assert fedloom.main(["participant", "budget", *arguments, *home]) == status
        read = self._capsys.readouterr()
        assert "Traceback" not in read.err
        return read.out, read.err

    def json(self, *arguments: str, status: int = 0) -> Any:
        out, err = self.run(*arguments, "--json", status=status)
        return json.loads(out or err)


@pytest.fixture
def shell(spent: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("COLUMNS", "200")
    return Shell(spent, capsys)


def test_spent_and_left_by_data_set_and_by_run(shell: Shell) -> None:
    (row,) = shell.json()["datasets"]
    one, two, three = (epsilon(COST * count, DELTA) for count in (1, 2, 3))
    assert row["dataset"] == "scans"
    assert row["spent"] == pytest.approx(two)
    assert row["reserved"] == pytest.approx(three - two)
    assert row["left"] == pytest.approx(4.0 - three)
    assert row["rounds_by_run"] == {"flu-1": 2, "flu-2": 1}
    runs = {run["run"]: run for run in row["runs"]}
    assert runs["flu-1"]["epsilon_alone"] == pytest.approx(two, rel=0.01)
    assert runs["flu-2"]["epsilon_alone"] == pytest.approx(one, rel=0.01)
    assert (runs["flu-1"]["open"], runs["flu-2"]["open"]) == (0, 1)
    assert runs["flu-1"]["coordinators"] == ["flu.example"]
    for part in ("ward-a", "one record of 'scans'", f"e^{three:.4g}", "1e-05", "e^4"):
        assert part in row["statement"]


def test_the_table_for_people(shell: Shell) -> None:
    out, _ = shell.run()
    for part in ("scans", "record", f"{epsilon(COST * 2, DELTA):.3g}", "flu-1: 2 rounds", "flu-2: 1 rounds", "left"):
        assert part in out


def test_a_site_without_private_runs(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(site, capsys)
    assert "No private run" in shell.run()[0]
    assert shell.json() == {"datasets": []}
    assert shell.json("audit")["lines"] == 0


def test_nobody_has_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedloom.main(["participant", "budget", "--home", str(tmp_path)]) == 3
    assert "Join one first" in capsys.readouterr().err


def test_the_folder_may_be_named_before_the_subcommand(spent: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedloom.main(["participant", "budget", "--home", str(spent.folder), "--json", "audit"]) == 0
    assert json.loads(capsys.readouterr().out)["site"] == "ward-a"


def test_audit_recomputes_by_several_accountants(shell: Shell) -> None:
    body = shell.json("audit")
    assert (body["site"], body["lines"]) == ("ward-a", 7)
    assert body["clock_went_back_before_lines"] == [4]
    (row,) = body["datasets"]
    assert row["agree"] is True
    assert row["pld"] == pytest.approx(row["reference"], rel=0.01)
    assert row["rdp"] >= row["pld"]
    out, _ = shell.run("audit")
    for part in ("7 lines", "signed by ward-a", "went back before line 4", "PLD", "RDP", "they agree"):
        assert part in out


def test_audit_names_the_line_that_was_changed(shell: Shell, spent: Site) -> None:
    with sqlite3.connect(spent.folder / LEDGER) as raw:
        raw.execute("DROP TRIGGER lines_no_update")
        raw.execute("UPDATE lines SET signature = zeroblob(64) WHERE number = 3")
    for arguments in (("audit",), (), ("set", "--epsilon", "9")):
        out, err = shell.run(*arguments, status=6)
        assert "line 3 " in err
        assert out == ""
    assert "line 3 " in json.dumps(shell.json("audit", status=6))


def test_audit_says_when_accountants_disagree(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("participant.budget_audit._prv", lambda events, delta: 9.0)
    out, _ = shell.run("audit", status=6)
    assert "THEY DISAGREE" in out


def test_export_can_be_checked_without_our_code(shell: Shell, spent: Site, tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    assert shell.json("export", str(file)) == {"file": str(file), "lines": 7}
    body = json.loads(file.read_text())
    signature = bytes.fromhex(body.pop("signature"))
    key = bytes.fromhex(body["signing_key"])
    assert key == spent.signing_key.public
    assert verify(key, signature, json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
    body["datasets"][0]["spent"] = 0.1
    assert not verify(key, signature, json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
    book = Book("ward-a", key)
    book.follow(SignedEntry(bytes.fromhex(row["body"]), bytes.fromhex(row["signature"])) for row in body["lines"])
    assert book.head.hex() == body["head"]
    assert body["clock_went_back_before_lines"] == [4]
    assert "Gaussian mechanism" in body["statement"]
    assert "scans" in body["datasets"][0]["statement"]
    assert [event["kind"] for event in body["datasets"][0]["events"]] == ["gaussian/1"]


def test_an_export_is_checked_by_anyone(shell: Shell, spent: Site, tmp_path: Path) -> None:
    path = tmp_path / "export.json"
    shell.run("export", str(path))
    found = shell.json("check", str(path), "--key", spent.signing_key.public.hex())
    assert found["lines"] == 7 and found["datasets"] == shell.json("audit")["datasets"]
    assert "compare it with" in shell.run("check", str(path))[0]
    body = json.loads(path.read_text())

    def refused(changed: object, *more: str, status: int = 6) -> str:
        other = tmp_path / "other.json"
        other.write_text(changed if isinstance(changed, str) else json.dumps(changed))
        return shell.run("check", str(other), *more, status=status)[1]

    assert "site's is" in refused(body, "--key", "00" * 32)
    assert "isn't that of its site" in refused({**body, "statement": "All is well."})
    assert "isn't that of its site" in refused({**body, "lines": body["lines"][:-1]})
    assert "format" in refused({**body, "format": "another/1"})
    assert "can't be read" in refused({**body, "lines": [{"body": "zz"}]})
    assert "isn't an export" in refused("{", status=3)
    assert "can't be read" in shell.run("check", str(tmp_path / "nowhere"), status=3)[1]
    # A site that signs figures which don't follow from its lines is found out, too.
    for lie, words in (
        ({"datasets": []}, "figures"),
        ({"lines": body["lines"][:-1]}, "missing at its end"),
        ({"lines": body["lines"][1:]}, "line 0"),
    ):
        rest = {name: value for name, value in {**body, **lie}.items() if name != "signature"}
        signed = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
        assert words in refused({**rest, "signature": spent.signing_key.sign(signed).hex()})


def test_export_to_a_place_that_cannot_be_written(shell: Shell, tmp_path: Path) -> None:
    _, err = shell.run("export", str(tmp_path / "nowhere" / "x.json"), status=3)
    assert "can't be written" in err


def test_the_administrator_changes_the_budget(shell: Shell, spent: Site) -> None:
    body = shell.json("set", "--epsilon", "7", "--delta", "1e-6")
    (row,) = body["datasets"]
    assert (row["epsilon"], row["delta"]) == (7.0, 1e-6)
    assert shell.json("audit")["lines"] == 8
    assert Site.load(spent.folder).config.privacy.epsilon == 7.0
    out, _ = shell.run("set", "--epsilon", "7", "--delta", "1e-6")
    assert "epsilon 7" in out
    assert shell.json("audit")["lines"] == 8  # nothing changed, nothing is written


def test_one_data_set_gets_a_budget_of_its_own(shell: Shell, spent: Site) -> None:
    before = Site.load(spent.folder).config.privacy.epsilon
    (name,) = [row["dataset"] for row in shell.json()["datasets"]]
    (row,) = shell.json("set", "--epsilon", "7", "--data", name)["datasets"]
    assert row["epsilon"] == 7.0
    assert Site.load(spent.folder).config.privacy.epsilon == before
    assert "knows no data set" in shell.run("set", "--epsilon", "7", "--data", "nowhere", status=6)[1]


def test_a_budget_under_what_was_spent_leaves_nothing(shell: Shell) -> None:
    (row,) = shell.json("set", "--epsilon", "0.01", "--delta", str(DELTA))["datasets"]
    assert row["left"] == 0.0
    assert row["spent"] > 0.01


@pytest.mark.parametrize(
    ("arguments", "status", "what"),
    [
        (("--epsilon", "-1"), 3, "epsilon"),
        (("--epsilon", "0"), 3, "epsilon"),
        (("--epsilon", "nan"), 3, "epsilon"),
        (("--epsilon", "3", "--delta", "0.5"), 3, "delta"),
        (("--epsilon", "3", "--delta", "0.001"), 4, "1000 records of scans"),
        (("--epsilon", "three"), 2, "three"),
        ((), 2, "--epsilon"),
    ],
)
def test_a_budget_that_is_none_changes_nothing(
    shell: Shell, spent: Site, arguments: tuple[str, ...], status: int, what: str
) -> None:
    before = (spent.folder / CONFIG).read_bytes()
    _, err = shell.run("set", *arguments, status=status)
    assert what in err
    assert (spent.folder / CONFIG).read_bytes() == before
    assert shell.json("audit")["lines"] == 7


def test_a_refusal_for_one_data_set_leaves_the_others(shell: Shell, spent: Site) -> None:
    ledger = BudgetLedger(spent.folder / LEDGER, spent.signing_key, site=spent.name)
    ledger.open_dataset("zoo", records=10**6, unit=Unit.RECORD, epsilon=4.0, delta=1e-7)
    ledger.close()
    _, err = shell.run("set", "--epsilon", "5", "--delta", "1e-5", status=4)
    assert "zoo" in err
    assert {row["dataset"]: row["epsilon"] for row in shell.json()["datasets"]} == {"scans": 4.0, "zoo": 4.0}
