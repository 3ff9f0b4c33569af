"""Where prepared data sets lie, and how a set gets there when two processes prepare it at once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core_model.errors import DataError

_RECORD = "record.json"


def cache_folder() -> Path:
    """``$FEDLOOM_CACHE``, or ``fedloom`` in the user's cache folder (``$XDG_CACHE_HOME``, else ``~/.cache``)."""
    named = os.environ.get("FEDLOOM_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fedloom"


def prepared(name: str, key: dict[str, str], make: Callable[[Path], None]) -> Path:
    """The folder of a prepared data set; it is made when it isn't there.

    The folder's name carries a hash of ``key`` (format and versions of the sources), so that new sources never meet old
    files. It is made under another name and renamed when it is complete: of two processes one wins, and the other takes
    the winner's. A record of each file's SHA-256 is kept; :func:`verify` checks it.

    Args:
        name: Of the data set.
        key: What the content depends on.
        make: Writes the files into an empty folder.

    Raises:
        DataError: If the cache can't be written.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / f"{name}-{digest[:16]}"
    if (folder / _RECORD).exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise DataError(f"Can't write to the cache {folder.parent}: {error}.", "Set FEDLOOM_CACHE.") from None
    try:
        make(scratch)
        files = {path.name: _sha256(path) for path in sorted(scratch.iterdir())}
        record = {"key": key, "files": files}
        (scratch / _RECORD).write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
        scratch.chmod(0o755)
        scratch.rename(folder)
    except OSError as error:
        if not (folder / _RECORD).exists():  # Else another process was faster; its content is the same.
            raise DataError(f"Can't write to the cache {folder.parent}: {error}.", "Free some disk space.") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def verify(folder: Path, file: str) -> Path:
    """The path of a file of a prepared data set, after comparing its SHA-256 with the record.

    Raises:
        DataError: If it is missing or its content has changed.
    """
    path = folder / file
    try:
        record: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        intact = record["files"].get(file) == _sha256(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise DataError(f"{path} is damaged.", f"Remove the folder {folder}; it is made again when it is needed.")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
