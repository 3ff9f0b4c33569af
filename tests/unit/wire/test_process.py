"""One daemon to a folder, stopped by signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wire import ResourceError, hold_folder, software, until_stopped

ROOT = Path(__file__).parents[3]


def test_a_folder_has_one_holder(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "state", "coordinator"):
        second = hold_folder(tmp_path / "state", "coordinator")
        with pytest.raises(ResourceError, match=f"already running .*process {os.getpid()}") as caught, second:
            raise AssertionError("two holders")
        assert caught.value.code == "folder-in-use"
    with hold_folder(tmp_path / "state", "coordinator"):
        assert (tmp_path / "state" / "lock").read_text() == f"{os.getpid()}\n"


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    script = (
        "import sys, os; from pathlib import Path; from wire import hold_folder; "
        "held = hold_folder(Path(sys.argv[1]), 'x'); held.__enter__(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    with hold_folder(tmp_path, "x"):
        assert (tmp_path / "lock").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="can't be used"), hold_folder(tmp_path / "file" / "state", "x"):
        raise AssertionError("held")


async def test_work_ends_or_is_stopped() -> None:
    async def work() -> int:
        return 7

    assert await until_stopped(work()) == 7
    cleaned = []

    async def endless() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(True)

    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
    assert await until_stopped(endless()) is None
    assert cleaned == [True]


async def test_an_error_of_the_work_comes_through() -> None:
    async def broken() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await until_stopped(broken())


def test_software_names_itself() -> None:
    assert software().startswith("fedloom ")
