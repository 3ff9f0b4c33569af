"""Small files that exist whole or not at all, whatever kills the process that writes them."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def write_whole(path: Path, data: bytes, mode: int) -> None:
    """Write a file atomically and synced: a crash leaves the earlier content or this one, never half of one.

    Where the file says this already, nothing is written.

    The temporary file beside it carries this process's number, so that two processes don't meet in one. What a process
    that lives no more has left of the same file is removed: it may hold a private key.

    Args:
        path: The file; its folder must exist.
        data: All of its content.
        mode: Its permissions.

    Raises:
        OSError: It can't be written; the earlier content stays.
    """
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        if not process_lives(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)
    if _says(path, data, mode):
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _says(path: Path, data: bytes, mode: int) -> bool:
    """Whether the file has this content, and no wider permissions. It got its name when it was synced."""
    try:
        return not stat.S_IMODE(path.stat().st_mode) & ~mode and path.read_bytes() == data
    except OSError:
        return False


def process_lives(number: str) -> bool:
    """Whether a process of that number may run; True where that can't be told."""
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        return True  # not ours to judge, or another user's
    return True
