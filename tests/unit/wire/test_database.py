"""SQLite: durability settings, races, errors in words, migrations."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import sqlalchemy

from wire import ConfigError, DataError, ResourceError
from wire.database import READ_ONLY, migrate, open_sqlite

FIRST = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0001", None, None, None

def upgrade() -> None:
    op.create_table("note", sa.Column("id", sa.Integer, primary_key=True), sa.Column("text", sa.Text, nullable=False))
    op.create_table("child", sa.Column("note", sa.Integer, sa.ForeignKey("note.id")))
"""
SECOND = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0002", "0001", None, None

def upgrade() -> None:
    op.add_column("note", sa.Column("weight", sa.Float, nullable=True))
    op.execute("UPDATE note SET weight = 1.5")
"""
BROKEN = SECOND.replace("UPDATE note SET", "UPDATE nothing SET")


def scripts(tmp_path: Path, *bodies: str) -> Path:
    folder = tmp_path / f"migrations-{len(list(tmp_path.iterdir()))}"
    (folder / "versions").mkdir(parents=True)
    for number, body in enumerate(bodies, 1):
        (folder / "versions" / f"{number:04}.py").write_text(body)
    return folder


@pytest.fixture
def engine(tmp_path: Path) -> sqlalchemy.Engine:
    engine = open_sqlite(tmp_path / "state.sqlite")
    migrate(engine, scripts(tmp_path, FIRST))
    return engine


def run(engine: sqlalchemy.Engine, sql: str) -> list[tuple[object, ...]]:
    with engine.begin() as connection:
        result = connection.exec_driver_sql(sql)
        return [tuple(row) for row in result] if result.returns_rows else []


def test_settings(engine: sqlalchemy.Engine) -> None:
    found = {name: run(engine, f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous", "foreign_keys")}
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_foreign_keys_are_checked(engine: sqlalchemy.Engine) -> None:
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        run(engine, "INSERT INTO child VALUES (7)")


def test_a_transaction_happens_whole_or_not_at_all(engine: sqlalchemy.Engine) -> None:
    with pytest.raises(RuntimeError), engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO note VALUES (1, 'a')")
        raise RuntimeError
    assert run(engine, "SELECT * FROM note") == []


def test_read_then_write_cannot_lose_a_race(engine: sqlalchemy.Engine) -> None:
    """Each thread adds one to a number that it has read before, in one transaction."""
    run(engine, "INSERT INTO note VALUES (1, '0')")
    errors: list[BaseException] = []

    def add() -> None:
        try:
            for _ in range(10):
                with engine.begin() as connection:
                    value = int(connection.exec_driver_sql("SELECT text FROM note").scalar_one())
                    connection.exec_driver_sql("UPDATE note SET text = ?", (str(value + 1),))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert run(engine, "SELECT text FROM note") == [("40",)]


def test_reading_does_not_wait_for_a_writer(engine: sqlalchemy.Engine) -> None:
    with engine.begin() as writer:
        writer.exec_driver_sql("INSERT INTO note VALUES (1, 'a')")
        with engine.connect().execution_options(**{READ_ONLY: True}) as reader:
            assert reader.exec_driver_sql("SELECT count(*) FROM note").scalar_one() == 0


def test_a_full_disk_is_said_plainly(engine: sqlalchemy.Engine, tmp_path: Path) -> None:
    """SQLite's page limit gives the same error as a full disk."""
    with pytest.raises(ResourceError, match="disk is full") as caught, engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        for number in range(100):
            connection.exec_driver_sql("INSERT INTO note VALUES (?, ?)", (number, "x" * 10_000))
    assert caught.value.code == "disk-full"
    assert str(tmp_path) in caught.value.message
    assert run(engine, "SELECT * FROM note") == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be opened") as caught:
        open_sqlite(tmp_path / "missing" / "state.sqlite")
    assert "missing" in caught.value.message


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite").write_bytes(os.urandom(10_000))
    with pytest.raises(DataError, match="not a database"):
        open_sqlite(tmp_path / "state.sqlite")


def test_a_database_that_someone_else_holds(engine: sqlalchemy.Engine, tmp_path: Path) -> None:
    with engine.begin() as writer:
        writer.exec_driver_sql("INSERT INTO note VALUES (1, 'a')")
        other = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'state.sqlite'}", connect_args={"timeout": 0.05})
        from sqlalchemy import event

        from wire.database import _begin, _ErrorHandler

        event.listen(other, "begin", _begin)
        event.listen(other, "handle_error", _ErrorHandler(tmp_path / "state.sqlite"))
        with pytest.raises(ResourceError, match="another process") as caught:
            run(other, "SELECT 1")
        other.dispose()
    assert caught.value.code == "locked"


def test_migrations_keep_what_is_there(engine: sqlalchemy.Engine, tmp_path: Path) -> None:
    run(engine, "INSERT INTO note VALUES (1, 'a')")
    newer = scripts(tmp_path, FIRST, SECOND)
    migrate(engine, newer)
    assert run(engine, "SELECT id, text, weight FROM note") == [(1, "a", 1.5)]
    migrate(engine, newer)  # nothing to do
    assert run(engine, "SELECT version_num FROM alembic_version") == [("0002",)]


def test_a_migration_that_fails_changes_nothing(engine: sqlalchemy.Engine, tmp_path: Path) -> None:
    with pytest.raises(sqlalchemy.exc.OperationalError, match="nothing"):
        migrate(engine, scripts(tmp_path, FIRST, BROKEN))
    assert run(engine, "SELECT version_num FROM alembic_version") == [("0001",)]
    assert len(run(engine, "PRAGMA table_info(note)")) == 2


def test_a_database_of_a_newer_version(engine: sqlalchemy.Engine, tmp_path: Path) -> None:
    migrate(engine, scripts(tmp_path, FIRST, SECOND))
    with pytest.raises(ConfigError, match=r"newer version.*0002") as caught:
        migrate(engine, scripts(tmp_path, FIRST))
    assert "Install" in caught.value.hint
