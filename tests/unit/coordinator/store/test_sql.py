"""The SQL store on a SQLite file: the contract, crashes, migrations, and a full disk."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from coordinator.store import Checkpoint, Run, Transition, open_store, schema
from coordinator.store.opening import MIGRATIONS
from coordinator.store.sql import OTHER_PEERS, SqlStore
from tests.contract import store_contract as contract
from wire import ConfigError, DataError, ResourceError
from wire.database import migrate, open_sqlite

ROOT = Path(__file__).parents[4]


class TestSqlStore(contract.StoreContract):
    @pytest.fixture
    def location(self, tmp_path: Path) -> Path:
        return tmp_path / "coordinator.sqlite"

    def open(self, location: Path) -> SqlStore:
        store = open_store(location)
        assert isinstance(store, SqlStore)
        return store


# ---- crash ----------------------------------------------------------------------------------------------------------

APPENDER = """
import sys
from pathlib import Path
from coordinator.store import Checkpoint, Run, Transition, open_store

store = open_store(Path(sys.argv[1]))
make = lambda version: Checkpoint(run_id="r", version=version, digest=bytes(32), size=1, state=(), created_s=0.0)
if store.run("r") is None:
    store.create_run(Run(run_id="r", plan=b"", plan_hash=bytes(32), created_s=0.0), make(0))
last = sum(1 for _ in store.transitions("r"))
while True:
    # Two transitions and a version at a time: after a crash there are all three or none.
    two = [Transition(sequence=last + index, kind="k", body=str(last + index), at_s=0.0) for index in (1, 2)]
    store.append("r", two, make(last // 2 + 1))
    last += 2
    print(last, flush=True)
"""


def test_what_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.sqlite"
    acknowledged = 0
    for lines in (3, 10, 25):
        process = subprocess.Popen(
            [sys.executable, "-c", APPENDER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(lines):
            acknowledged = int(process.stdout.readline())
        process.kill()
        rest = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        acknowledged = int(rest[-1]) if rest else acknowledged

        store = open_store(path)
        log = [item.sequence for item in store.transitions("r")]
        assert log == list(range(1, len(log) + 1))
        # The kill may fall between the commit and the acknowledgement of the last append, never the other way round.
        assert len(log) in (acknowledged, acknowledged + 2)
        assert [item.version for item in store.checkpoints("r")] == list(range(len(log) // 2 + 1))
        store.close()


def test_one_token_raced_for_by_processes_opens_for_one(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.sqlite"
    store = open_store(path)
    store.invite(contract.an_invitation())
    code = (
        "import sys, time; from pathlib import Path; from coordinator.store import *;"
        "store = open_store(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.readline();"
        "print(store.enrol(Member(name='north', state=MemberState.ENROLLED), bytes(range(32)), 1.0))"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    assert sorted(racer.communicate()[0].strip() for racer in racers) == ["False", "False", "True"]
    store.close()


# ---- schema ---------------------------------------------------------------------------------------------------------


def columns(engine: sa.Engine) -> dict[str, list[tuple[str, str, bool, bool]]]:
    inspector = sa.inspect(engine)
    return {
        table: [
            (column["name"], str(column["type"]), bool(column["nullable"]), bool(column["primary_key"]))
            for column in inspector.get_columns(table)
        ]
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def test_migrations_build_what_the_code_expects_and_run_once(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.sqlite"
    open_store(path).close()
    before = path.read_bytes()
    open_store(path).close()
    assert path.read_bytes() == before
    migrated, declared = open_sqlite(path), sa.create_engine("sqlite://")
    schema.metadata.create_all(declared)
    assert columns(migrated) == columns(declared)
    migrated.dispose()
    declared.dispose()


@pytest.mark.parametrize("kept", ["prekeys", "budget"])
def test_what_a_site_says_again_at_every_connection_is_written_once(tmp_path: Path, kept: str) -> None:
    store = open_store(tmp_path / "coordinator.sqlite")
    put = getattr(store, f"put_{kept}")
    put("north", b"first", b"s" * 64)
    with contextlib.closing(sqlite3.connect(tmp_path / "coordinator.sqlite")) as other:

        def seen() -> int:
            """Changes whenever another connection has written to the database."""
            return int(other.execute("PRAGMA data_version").fetchone()[0])

        before = seen()
        put("north", b"first", b"s" * 64)
        assert seen() == before
        put("north", b"first", b"t" * 64)
        assert seen() != before
    store.close()


def test_the_declared_head_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_a_store_of_the_first_release_keeps_its_roster_without_signing_keys(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.sqlite"
    engine = open_sqlite(path)
    folder = tmp_path / "migrations" / "versions"
    folder.mkdir(parents=True)
    shutil.copy(MIGRATIONS / "versions" / "0001_first.py", folder)
    migrate(engine, tmp_path / "migrations")
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO members VALUES ('north', 'enrolled', x'50454d', '0a', 1.0, '')"))
    engine.dispose()
    store = open_store(path)
    assert store.members() == [dataclasses.replace(contract.a_member(), since_s=1.0)]
    assert store.member_entries() == []
    store.close()


def test_opening_an_up_to_date_store_loads_no_migration_library(tmp_path: Path) -> None:
    open_store(tmp_path / "coordinator.sqlite").close()
    code = (
        "import sys; from pathlib import Path; from coordinator.store import open_store;"
        "open_store(Path(sys.argv[1])).close(); print('alembic' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "coordinator.sqlite")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.sqlite"
    open_store(path).close()
    engine = open_sqlite(path)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="newer version of fedloom"):
        open_store(path)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == "9999"
    engine.dispose()


def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.sqlite"
    path.write_bytes(b"not a database " * 1_000)
    with pytest.raises(DataError, match=r"coordinator\.sqlite"):
        open_store(path)


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.sqlite"
    open_store(path).close()
    engine = open_sqlite(path)
    sa.event.listen(engine, "checkout", lambda connection, *_: connection.execute("PRAGMA max_page_count = 40"))
    store = SqlStore(engine)
    store.create_run(
        Run(run_id="r", plan=b"", plan_hash=bytes(32), created_s=0.0),
        Checkpoint(run_id="r", version=0, digest=bytes(32), size=1, state=(), created_s=0.0),
    )
    with pytest.raises(ResourceError) as caught:
        store.append("r", [Transition(sequence=1, kind="k", body="x" * 400_000, at_s=0.0)])
    assert caught.value.code == "disk-full"
    assert list(store.transitions("r")) == []
    store.append("r", [Transition(sequence=1, kind="k", body="x", at_s=0.0)])
    store.close()


def test_refusals_under_ever_new_names_take_bounded_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.store.sql.MAX_REFUSAL_ROWS", 3)
    store = open_store(tmp_path / "coordinator.sqlite")
    for index in range(8):
        store.count_refusal("policy", f"peer-{index}")
    store.count_refusal("policy", "peer-1")
    store.count_refusal("c" * 1_000, "p" * 1_000)
    counts = store.refusals()
    assert counts.pop(("c" * 64, OTHER_PEERS)) == 1
    assert counts == {
        ("policy", "peer-0"): 1,
        ("policy", "peer-1"): 2,
        ("policy", "peer-2"): 1,
        ("policy", OTHER_PEERS): 5,
    }
    store.close()


def test_an_invited_member_carries_the_clock_of_its_invitation(tmp_path: Path) -> None:
    open_store(tmp_path / "coordinator.sqlite").close()
    store = SqlStore(open_sqlite(tmp_path / "coordinator.sqlite"), clock=lambda: 42.0)
    store.invite(contract.an_invitation())
    member = store.member("north")
    assert member is not None
    assert member.since_s == 42.0
    store.close()
