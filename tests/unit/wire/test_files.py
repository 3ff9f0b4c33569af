"""Files that exist whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wire.files import process_lives, write_whole

ROOT = Path(__file__).parents[3]

DIES = """
import os, signal, sys
from pathlib import Path
from wire.files import write_whole

os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_whole(Path(sys.argv[1]), b"a key that nobody will use", 0o600)
"""


def killed_while_writing(path: Path) -> int:
    """Number of a process that was killed right before its file got its name."""
    process = subprocess.Popen([sys.executable, "-c", DIES, str(path)], cwd=ROOT)
    assert process.wait(timeout=60) == -signal.SIGKILL
    return process.pid


def test_a_file_is_replaced_as_a_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    for content in (b"one", b"another one"):
        write_whole(path, content, 0o600)
        assert path.read_bytes() == content
        assert path.stat().st_mode & 0o777 == 0o600
        assert list(tmp_path.iterdir()) == [path]


def test_what_the_file_says_already_is_not_written_again_and_permissions_only_get_narrower(tmp_path: Path) -> None:
    path = tmp_path / "members.json"
    write_whole(path, b"list", 0o600)
    first = path.stat().st_ino
    write_whole(path, b"list", 0o644)
    assert path.stat().st_ino == first
    path.chmod(0o644)
    write_whole(path, b"list", 0o600)
    assert path.stat().st_ino != first
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_killed_process_has_left_goes_with_the_next_writing(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_whole(path, b"before", 0o600)
    left = tmp_path / f".key.pem.{killed_while_writing(path)}.tmp"
    assert left.read_bytes() == b"a key that nobody will use"
    assert path.read_bytes() == b"before"
    # Another file's, and one that a living process is still at, stay.
    others = [tmp_path / f".other.{left.name.split('.')[-2]}.tmp", tmp_path / f".key.pem.{os.getppid()}.tmp"]
    for other in others:
        other.write_bytes(b"")
    write_whole(path, b"after", 0o600)
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key.pem"
    write_whole(path, b"before", 0o600)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"after", 0o600)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_whether_a_process_lives_is_answered_with_yes_in_doubt(tmp_path: Path) -> None:
    assert process_lives(str(os.getpid()))
    assert process_lives("not a number")
    assert not process_lives(str(killed_while_writing(tmp_path / "file")))
