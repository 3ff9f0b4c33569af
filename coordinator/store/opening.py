"""Opening the coordinator's database at the newest schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import sqlalchemy as sa

    from coordinator.store.base import Store

MIGRATIONS: Final = Path(__file__).parent / "migrations"


def open_store(path: Path) -> Store:
    """Open the coordinator's database, make it if it isn't there, bring it to the newest schema.

    Args:
        path: The SQLite file; its folder must exist.

    Raises:
        ConfigError: The file can't be opened, or was written by a newer version of the software.
        DataError: The file isn't a database or is damaged.
        ResourceError: The disk is full, or another process holds the database.
    """
    # Here and not above: the command line shows its help without loading a database library.
    from coordinator.store.schema import HEAD
    from coordinator.store.sql import SqlStore
    from wire.database import migrate, open_sqlite

    engine = open_sqlite(path)
    try:
        if _revision(engine) != HEAD:
            migrate(engine, MIGRATIONS)
    except BaseException:
        engine.dispose()
        raise
    return SqlStore(engine)


def _revision(engine: sa.Engine) -> str | None:
    """The schema's revision by one query, without the migration library; None for an empty database."""
    import sqlalchemy as sa

    from wire.database import READ_ONLY

    with engine.connect().execution_options(**{READ_ONLY: True}) as connection:
        try:
            return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        except sa.exc.OperationalError:
            return None
