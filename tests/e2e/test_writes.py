"""The hook that numbers a process's durable writes: what it counts, and what it says it couldn't stop."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.writes import Tally, bypassed, watched_connection, written


class Steps:
    """Stands in for the fuse: notes what it is asked to die around."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[str, int]]] = []

    @contextlib.contextmanager
    def around(self, steps: list[tuple[str, int]]) -> Iterator[None]:
        """Note the steps."""
        self.seen.append(steps)
        yield


@pytest.fixture
def steps() -> Steps:
    return Steps()


def connect(folder: Path, steps: Steps) -> sqlite3.Connection:
    factory = watched_connection(Tally("ward", folder, steps.around))
    connection = sqlite3.connect(folder / "ward.sqlite", isolation_level=None, factory=factory)
    connection.execute("BEGIN")
    connection.execute("CREATE TABLE IF NOT EXISTS notes (kind TEXT)")
    connection.commit()
    return connection


def test_a_commit_that_changes_rows_is_one_write_and_the_next_life_counts_on(tmp_path: Path, steps: Steps) -> None:
    for life in (1, 2):
        connection = connect(tmp_path, steps)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO notes VALUES ('masked')")
        connection.execute("DELETE FROM notes WHERE kind = 'nothing'")
        connection.commit()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO notes VALUES ('lost')")
        connection.rollback()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM notes WHERE kind = 'nothing'")
        connection.commit()
        connection.close()
        assert len(written(tmp_path, "ward")) == 2 * life
    assert steps.seen == [
        [("ward:schema:notes", 1)],
        [("ward:+notes(masked)", 1), ("ward:-notes(nothing)", 1)],
        [("ward:schema:notes", 2)],
        [("ward:+notes(masked)", 2), ("ward:-notes(nothing)", 2)],
    ]
    assert bypassed(tmp_path, "ward") == []


@pytest.mark.parametrize(
    "statements", [["INSERT INTO notes VALUES ('bare')"], ["BEGIN", "INSERT INTO notes VALUES ('own')", "COMMIT"]]
)
def test_a_write_that_no_death_could_come_before_is_named(tmp_path: Path, steps: Steps, statements: list[str]) -> None:
    connection = connect(tmp_path, steps)
    for statement in statements:
        connection.execute(statement)
    connection.close()
    assert bypassed(tmp_path, "ward") == [f"past the hook: {statements[-1]}"]
