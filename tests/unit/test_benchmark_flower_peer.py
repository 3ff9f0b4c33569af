"""Flower beside us: what is measured, and that nothing of it is left behind."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import flower_peer

# A process that starts another one in a session of its own, as Flower starts its executors, and ends.
_DETACHES = "import subprocess; subprocess.Popen(['sleep', '300'], start_new_session=True)"

needs_flower = pytest.mark.skipif(flower_peer.version() is None, reason="flwr isn't installed")


def started(home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _DETACHES], env={**os.environ, "FLWR_HOME": str(home)})


def test_without_flower_there_are_no_rounds_and_the_reason_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flower_peer, "version", lambda: None)
    assert flower_peer.rounds(1000, 1) == []
    assert "flwr isn't installed" in capsys.readouterr().out


def test_what_detached_itself_is_ended_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    other = started(tmp_path / "other")
    try:
        with pytest.raises(ZeroDivisionError), flower_peer._ended(str(tmp_path / "ours")) as processes:
            processes["ours"] = started(tmp_path / "ours")
            processes["ours"].wait()
            assert flower_peer._with_home(str(tmp_path / "ours"))
            raise ZeroDivisionError
        assert not flower_peer._with_home(str(tmp_path / "ours"))
        other.wait()
        assert flower_peer._with_home(str(tmp_path / "other"))
    finally:
        for process_id in flower_peer._with_home(str(tmp_path / "other")):
            os.kill(process_id, signal.SIGKILL)


def test_sigterm_ends_what_was_started_and_the_handler_is_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, flower_peer._ended(str(tmp_path)) as processes:
        processes["ours"] = started(tmp_path)
        processes["ours"].wait()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert ended.value.code == 128 + signal.SIGTERM
    assert not flower_peer._with_home(str(tmp_path))
    assert signal.getsignal(signal.SIGTERM) == before


def test_settings_of_the_user_are_not_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_DATABASE", "/elsewhere")
    environment = flower_peer._environment(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert "FLWR_DATABASE" not in environment


def test_ports_are_distinct() -> None:
    ports = flower_peer._free_ports(5)
    assert len(set(ports)) == 5


def test_a_line_half_written_is_not_read(tmp_path: Path) -> None:
    times = tmp_path / "times.txt"
    assert flower_peer._lines(times) == []
    times.write_text("1.0\n2.")
    assert flower_peer._lines(times) == ["1.0"]


@needs_flower
def test_no_piece_of_any_array_is_equal_to_another() -> None:
    from benchmarks.flower_app import trivial_app

    model = np.linspace(-1.0, 1.0, 1000, dtype=np.float32)
    sent = [trivial_app.moved(model, node, number) for node, number in itertools.product([3, 2**63 + 5], [1, 2])]
    pieces = [row[start : start + 250].tobytes() for row in [model, *sent] for start in range(0, 1000, 250)]
    assert len(set(pieces)) == len(pieces) == 20
    assert all(row.dtype == np.float32 for row in sent)


@pytest.mark.peers
@needs_flower
def test_flower_runs_its_rounds() -> None:
    seconds = flower_peer.rounds(1000, 1, limit_s=100.0)
    assert len(seconds) == 1
    assert 0.0 < seconds[0] < 100.0


@pytest.mark.peers
@needs_flower
def test_a_client_that_fails_is_no_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = tmp_path / "app"
    app.mkdir()
    for path in flower_peer._APP.glob("*.*"):
        (app / path.name).write_text(path.read_text().replace("    [array] =", "    raise ValueError\n    [array] ="))
    monkeypatch.setattr(flower_peer, "_APP", app)
    assert flower_peer.rounds(1000, 1, limit_s=100.0) == []
    assert "round 1 lacked a client" in capsys.readouterr().out


@pytest.mark.peers
@needs_flower
def test_flower_is_ended_when_its_time_is_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert flower_peer.rounds(1000, 1, limit_s=0.5) == []
    assert "time is up, waiting for the SuperLink" in capsys.readouterr().out
