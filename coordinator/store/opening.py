"""Opening the coordinator's database at the newest schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
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
    from wire.database import open_at

    return SqlStore(open_at(path, HEAD, MIGRATIONS))
