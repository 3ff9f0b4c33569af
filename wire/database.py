"""SQLite as both daemons use it: durable before a call returns, errors in words, migrated by alembic."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from wire.errors import ConfigError, DataError, FedloomError, ResourceError

BUSY_TIMEOUT_S: Final = 10.0

READ_ONLY: Final = "fedloom_read_only"
"""Execution option of a connection that only reads: its transaction takes no write lock."""


def open_sqlite(path: Path) -> sqlalchemy.Engine:
    """Open or create a database.

    Write-ahead log, ``synchronous=FULL`` (a commit is on the disk when it returns), foreign keys checked, and
    ``BEGIN IMMEDIATE``: a transaction that reads before it writes can't lose a race. For reading only, use
    ``engine.connect().execution_options(fedloom_read_only=True)``.

    Raises:
        ConfigError: If the file can't be opened or isn't a database.
    """
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "handle_error", _ErrorHandler(path))
    with engine.connect():
        return engine


def _configure(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # The driver must not begin transactions by itself: _begin does.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "secure_delete=ON",  # what is erased is overwritten: a site's journal holds keys
        f"busy_timeout={int(BUSY_TIMEOUT_S * 1000)}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sqlalchemy.Connection) -> None:
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


class _ErrorHandler:
    """Turns the driver's errors that an operator can do something about into ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, context: ExceptionContext) -> None:
        error = translate(self._path, context.original_exception)
        if error is not None:
            raise error from context.original_exception


def translate(path: Path, error: BaseException) -> FedloomError | None:
    """Our error for a driver's error, or None where there is none."""
    text = str(error)
    if not isinstance(error, sqlite3.Error):
        return None
    if "database or disk is full" in text:
        return ResourceError(
            f"{path}: the disk is full", "Make room, then start again: nothing was lost.", code="disk-full"
        )
    if "unable to open database file" in text:
        return ConfigError(f"{path}: this database can't be opened", "Does the folder exist, and may you write in it?")
    if "attempt to write a readonly database" in text:
        return ConfigError(
            f"{path}: this database may not be written", "Check the owner and the mode of file and folder."
        )
    if "file is not a database" in text or "malformed" in text:
        return DataError(f"{path}: this is not a database, or it is damaged", "Restore it from a backup.")
    if "database is locked" in text:
        return ResourceError(
            f"{path}: another process holds this database",
            "Does a second daemon run in the same state folder?",
            code="locked",
        )
    return None


def open_at(path: Path, head: str, migrations: Path) -> sqlalchemy.Engine:
    """Open a database, make it if it isn't there, and bring it to a schema.

    Args:
        path: The SQLite file; its folder must exist.
        head: The newest revision. A database that has it is opened without loading the migration library.
        migrations: As for :func:`migrate`.

    Raises:
        ConfigError: The file can't be opened, or was written by a newer version of the software.
        DataError: The file isn't a database or is damaged.
        ResourceError: The disk is full, or another process holds the database.
    """
    engine = open_sqlite(path)
    try:
        if _revision(engine) != head:
            migrate(engine, migrations)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _revision(engine: sqlalchemy.Engine) -> str | None:
    """The schema's revision by one query; None for an empty database."""
    with engine.connect().execution_options(**{READ_ONLY: True}) as connection:
        try:
            return connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
        except sqlalchemy.exc.OperationalError:
            return None


def migrate(engine: sqlalchemy.Engine, script_location: Path) -> None:
    """Bring a database to the newest schema; one transaction.

    Args:
        engine: From :func:`open_sqlite`.
        script_location: Folder that holds ``versions/`` with alembic's revisions. An ``env.py`` isn't needed.

    Raises:
        ConfigError: If the database was written by a newer version of the software.
    """
    # Here and not above: both stores ask for the schema's revision first, and rarely need the library.
    from alembic.config import Config
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(script_location))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}

    with engine.begin() as connection:
        reader = MigrationContext.configure(connection)
        present = reader.get_current_heads()
        if not set(present) <= known:
            raise ConfigError(
                f"{engine.url.database}: written by a newer version of fedloom (schema {', '.join(present)})",
                "Install that version or a later one.",
            )
        if present == (scripts.get_current_head(),):
            return

        def upgrade(revision: Any, _context: Any) -> Any:
            return scripts._upgrade_revs("head", revision)

        context = MigrationContext.configure(connection, opts={"fn": upgrade, "transaction_per_migration": False})
        with Operations.context(context):
            context.run_migrations()
