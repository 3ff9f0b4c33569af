"""What makes a program a daemon: one to a folder, stopped by signals, with a name and a protocol version."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from wire.errors import ResourceError

PROTOCOL_VERSION: Final = 1
"""Of the messages in ``protos``; peers that differ refuse each other."""

_T = TypeVar("_T")


def software() -> str:
    """What a daemon calls itself: name and version."""
    from importlib import metadata

    try:
        return f"fedloom {metadata.version('fedloom')}"
    except metadata.PackageNotFoundError:
        return "fedloom (not installed)"


@contextlib.contextmanager
def hold_folder(folder: Path, what: str) -> Iterator[None]:
    """Keep a second daemon away from a folder while the first one runs; a killed daemon lets go at once.

    Raises:
        ResourceError: another process holds it ("folder-in-use", with its process id), or the folder can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ResourceError(
            f"the folder {folder} can't be used: {error.strerror}", "Choose another one, or repair its permissions."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            raise ResourceError(
                f"a {what} is already running from {folder} (process {holder})",
                "Stop it first, or use another folder.",
                code="folder-in-use",
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


async def until_stopped(work: Coroutine[Any, Any, _T]) -> _T | None:
    """Run ``work`` to its end, or until SIGINT or SIGTERM; then cancel it and return None."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    task = asyncio.create_task(work)
    stopper = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({task, stopper}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return None
    finally:
        stopper.cancel()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
