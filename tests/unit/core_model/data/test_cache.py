"""The cache: made once, also by two at a time; damage is noticed."""

import json
import subprocess
import sys

import pytest

from core_model import DataError
from core_model.data.cache import cache_folder, prepared, verify


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_where_it_is(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("FEDLOOM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(cache_folder()) == "/xdg/fedloom"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().parts[-2:] == (".cache", "fedloom")


def test_a_set_is_made_once_for_each_key(cache):
    calls = []

    def make(folder):
        calls.append(folder)
        (folder / "data").write_text("x")

    first = prepared("set", {"version": "1"}, make)
    assert prepared("set", {"version": "1"}, make) == first and len(calls) == 1
    assert prepared("set", {"version": "2"}, make) != first and len(calls) == 2
    assert verify(first, "data").read_text() == "x"
    assert json.loads((first / "record.json").read_text())["key"] == {"version": "1"}
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_a_failure_leaves_nothing(cache):
    def make(folder):
        (folder / "half").write_text("x")
        raise DataError("no source")

    with pytest.raises(DataError, match="no source"):
        prepared("set", {}, make)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "data").write_text("y"),
        lambda f: (f / "data").unlink(),
        lambda f: (f / "record.json").write_text("[]"),
    ],
)
def test_damage_is_noticed(damage):
    folder = prepared("set", {}, lambda where: (where / "data").write_text("x") and None)
    damage(folder)
    with pytest.raises(DataError, match="is damaged") as caught:
        verify(folder, "data")
    assert str(folder) in caught.value.hint


def test_the_slower_of_two_takes_the_winners(cache):
    def slow(folder):
        (folder / "data").write_text("loser")
        winner = prepared("set", {}, lambda where: (where / "data").write_text("winner") and None)
        assert verify(winner, "data").read_text() == "winner"

    assert verify(prepared("set", {}, slow), "data").read_text() == "winner"
    assert len(list(cache.iterdir())) == 1


def test_several_processes_at_once(cache):
    code = (
        "from core_model.data.cache import prepared, verify\n"
        "def make(folder):\n"
        "    (folder / 'data').write_bytes(b'x' * 100_000)\n"
        "print(verify(prepared('set', {}, make), 'data').stat().st_size)\n"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [job.communicate()[0].strip() for job in jobs] == ["100000"] * 4
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="Can't write") as caught:
        prepared("set", {}, lambda where: None)
    assert "FEDLOOM_CACHE" in caught.value.hint
