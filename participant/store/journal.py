"""The site's journal on SQLite: durable before a call returns, so a killed participant knows what it has done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from participant.store import schema
from participant.store.records import Day, TaskRecord, TaskState
from participant.store.schema import days, member_entries, plans, secure_notes, tasks
from privacy.secure_aggregation.members import MemberEntry
from privacy.secure_aggregation.memory import Forget, Note
from wire.database import READ_ONLY, open_at

MIGRATIONS: Final = Path(__file__).parent / "migrations"

_OPEN: Final = (TaskState.RECEIVED, TaskState.TRAINED, TaskState.ANNOUNCED)
_SETTLED: Final = (TaskState.RECEIPTED, TaskState.DROPPED)
_DAYS_KEPT: Final = 62
_FIELDS: Final = [column for column in tasks.c if column.name != "number"]


class Assignment(Protocol):
    """What the journal keeps of a task that the coordinator asks for; attributes as in :class:`TaskRecord`."""

    @property
    def task_id(self) -> str:
        """Unique in the federation."""

    @property
    def run_id(self) -> str:
        """The run it belongs to."""

    @property
    def train(self) -> bool:
        """Whether to train, or only to score the base."""

    @property
    def round(self) -> int:
        """From 1."""

    @property
    def attempt(self) -> int:
        """From 1."""

    @property
    def base_version(self) -> int:
        """Of the model to start from."""

    @property
    def base_digest(self) -> bytes:
        """SHA-256 of that version's checkpoint."""

    @property
    def seed(self) -> int:
        """Unsigned, 64 bits."""

    @property
    def evaluate(self) -> bool:
        """Whether to score the base on local data."""


class ParticipantStore:
    """The journal of one site's tasks.

    A task goes from RECEIVED over TRAINED and ANNOUNCED to RECEIPTED, or to DROPPED from anywhere before. A call that
    repeats what has happened already changes nothing: after a reconnection both sides repeat themselves. A result, once
    recorded, is never replaced, whatever the coordinator asks: that keeps a task from being trained and paid twice.

    Every writing method is durable when it returns. All methods are safe to call from any thread.

    Args:
        path: The SQLite file, made if it isn't there; its folder must exist.
        clock: Seconds since the epoch.

    Raises:
        ConfigError: The file can't be opened, or was written by a newer version of the software.
        DataError: The file isn't a database or is damaged.
        ResourceError: The disk is full, or another process holds the database.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._engine = open_at(path, schema.HEAD, MIGRATIONS)
        # Who was killed right behind an erasure has left what it erased in the log.
        self._empty_log()

    def pin_plan(self, run_id: str, plan_hash: bytes) -> bool:
        """Bind a run to the plan first seen for it; False if it is bound to another."""
        with self._engine.begin() as connection:
            known = connection.execute(sa.select(plans.c.plan_hash).where(plans.c.run_id == run_id)).scalar()
            if known is None:
                connection.execute(sa.insert(plans).values(run_id=run_id, plan_hash=plan_hash, at_s=self._clock()))
                return True
            return bool(known == plan_hash)

    def accept(self, task: Assignment) -> TaskRecord:
        """Record that a task was asked for, and say what is known of it.

        A task that was dropped and is asked for again comes back: as TRAINED where its result is recorded, else as
        RECEIVED. Any other known task is returned unchanged.

        Raises:
            ValueError: The id is known with another content.
        """
        fields: dict[str, Any] = {
            "run_id": task.run_id,
            "kind": "train" if task.train else "evaluate",
            "round": task.round,
            "attempt": task.attempt,
            "base_version": task.base_version,
            "base_digest": task.base_digest,
            "seed": str(task.seed),
            "evaluate": task.evaluate,
        }
        with self._engine.begin() as connection:
            row = connection.execute(sa.select(*_FIELDS).where(tasks.c.task_id == task.task_id)).first()
            if row is None:
                connection.execute(
                    sa.insert(tasks).values(
                        task_id=task.task_id,
                        state=TaskState.RECEIVED,
                        code="",
                        update_digest=b"",
                        update_size=0,
                        examples=None,
                        metrics="{}",
                        evaluation="{}",
                        at_s=self._clock(),
                        **fields,
                    )
                )
            else:
                changed = [name for name, value in fields.items() if getattr(row, name) != value]
                if changed:
                    raise ValueError(f"task {task.task_id} came again with another {', '.join(changed)}")
                if row.state == TaskState.DROPPED:
                    has_result = row.examples is not None
                    self._change(
                        connection,
                        task.task_id,
                        state=TaskState.TRAINED if has_result else TaskState.RECEIVED,
                        code="",
                    )
            return _one(connection, task.task_id)

    def trained(
        self,
        task_id: str,
        *,
        update_digest: bytes,
        update_size: int,
        examples: int,
        metrics: Mapping[str, float],
        evaluation: Mapping[str, float],
    ) -> TaskRecord:
        """Record a task's result. Write the update's file, durably, before.

        Args:
            task_id: A task in state RECEIVED.
            update_digest: SHA-256 of the update's file; empty for an evaluation.
            update_size: Its bytes.
            examples: At least 0.
            metrics: Of training.
            evaluation: Of the base.

        Raises:
            ValueError: No such task, it isn't RECEIVED (unless with this very result), or a negative count.
        """
        if examples < 0:
            raise ValueError(f"task {task_id} can't have a result on {examples} records")
        result: dict[str, Any] = {
            "update_digest": update_digest,
            "update_size": update_size,
            "examples": examples,
            "metrics": json.dumps(dict(metrics), sort_keys=True),
            "evaluation": json.dumps(dict(evaluation), sort_keys=True),
        }
        with self._engine.begin() as connection:
            row = _row(connection, task_id)
            if row.state == TaskState.RECEIVED:
                self._change(connection, task_id, state=TaskState.TRAINED, **result)
            elif any(getattr(row, name) != value for name, value in result.items()):
                raise ValueError(f"task {task_id} is {row.state} and can't get another result")
            return _one(connection, task_id)

    def announced(self, task_id: str) -> TaskRecord:
        """Record that the coordinator is being told of the result. Nothing changes for a settled task.

        Raises:
            ValueError: No such task, or it has no result yet.
        """
        with self._engine.begin() as connection:
            state = _row(connection, task_id).state
            if state == TaskState.RECEIVED:
                raise ValueError(f"task {task_id} has no result to announce")
            if state == TaskState.TRAINED:
                self._change(connection, task_id, state=TaskState.ANNOUNCED)
            return _one(connection, task_id)

    def settled(self, task_id: str, accepted: bool, code: str = "") -> TaskRecord:
        """Record how a task ended.

        A task that was dropped and turns out to be accepted becomes RECEIPTED; otherwise the first end stands.

        Args:
            task_id: The task.
            accepted: Whether the coordinator has taken the result.
            code: Why not; cut to 64 characters.

        Raises:
            ValueError: No such task, or accepted without a result.
        """
        with self._engine.begin() as connection:
            row = _row(connection, task_id)
            if accepted and row.examples is None:
                raise ValueError(f"task {task_id} is {row.state}: it has no result that could have been accepted")
            if accepted and row.state != TaskState.RECEIPTED:
                self._change(connection, task_id, state=TaskState.RECEIPTED, code="")
            elif not accepted and row.state in _OPEN:
                self._change(connection, task_id, state=TaskState.DROPPED, code=code[:64])
            return _one(connection, task_id)

    def get(self, task_id: str) -> TaskRecord | None:
        """The task of that id, or None."""
        return next(iter(self._records(sa.select(*_FIELDS).where(tasks.c.task_id == task_id))), None)

    def open_tasks(self, run_id: str) -> list[TaskRecord]:
        """The run's tasks that aren't settled, oldest first."""
        return self._records(
            sa.select(*_FIELDS).where(tasks.c.run_id == run_id, tasks.c.state.in_(_OPEN)).order_by(tasks.c.number)
        )

    def undelivered(self) -> list[TaskRecord]:
        """Tasks of all runs with a result that the coordinator hasn't settled, oldest first."""
        waiting = (TaskState.TRAINED, TaskState.ANNOUNCED)
        return self._records(sa.select(*_FIELDS).where(tasks.c.state.in_(waiting)).order_by(tasks.c.number))

    def history(self, limit: int) -> list[TaskRecord]:
        """The last ``limit`` tasks, newest first."""
        return self._records(sa.select(*_FIELDS).order_by(tasks.c.number.desc()).limit(limit))

    def prune(self, keep: int) -> int:
        """Forget all settled tasks but the last ``keep``; open ones stay. Returns how many were forgotten."""
        if keep < 0:
            raise ValueError(f"keep is {keep}, but must be at least 0")
        kept = sa.select(tasks.c.number).where(tasks.c.state.in_(_SETTLED)).order_by(tasks.c.number.desc()).limit(keep)
        with self._engine.begin() as connection:
            numbers = connection.execute(kept).scalars().all()
            oldest = tasks.c.number < min(numbers) if numbers else sa.true()
            done = connection.execute(sa.delete(tasks).where(tasks.c.state.in_(_SETTLED), oldest))
            return int(done.rowcount)

    def day(self, date: str) -> Day:
        """What was done on a day, by its date."""
        query = sa.select(days.c.rounds, days.c.sent, days.c.received).where(days.c.day == date)
        with self._engine.connect().execution_options(**{READ_ONLY: True}) as connection:
            row = connection.execute(query).first()
        return Day() if row is None else Day(**row._mapping)

    def count(self, date: str, *, rounds: int = 0, sent: int = 0, received: int = 0) -> None:
        """Add to what was done on a day, before it is done; what didn't come of it is taken off again.

        The days of the last two months are remembered.

        Args:
            date: Of the day, as ``2026-11-25``.
            rounds: Trainings.
            sent: Bytes.
            received: Bytes.
        """
        added = {"rounds": rounds, "sent": sent, "received": received}
        insert = sqlite.insert(days).values(day=date, **added)
        on_top = {name: days.c[name] + insert.excluded[name] for name in added}
        kept = sa.select(days.c.day).order_by(days.c.day.desc()).limit(_DAYS_KEPT)
        with self._engine.begin() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=[days.c.day], set_=on_top))
            connection.execute(sa.delete(days).where(days.c.day.not_in(kept)))

    def pinned_members(self) -> list[MemberEntry]:
        """The member list that this site has seen, in order."""
        query = sa.select(member_entries).order_by(member_entries.c.index)
        with self._engine.connect().execution_options(**{READ_ONLY: True}) as connection:
            return [MemberEntry.decode(row.body, row.signature) for row in connection.execute(query)]

    def extend_members(self, entries: Sequence[MemberEntry]) -> None:
        """Pin further entries, in one transaction. Whether they continue the list rightly, the caller has checked.

        Raises:
            ValueError: An index isn't one more than the one before it.
        """
        with self._engine.begin() as connection:
            last = connection.execute(sa.select(sa.func.max(member_entries.c.index))).scalar()
            for expected, entry in enumerate(entries, start=0 if last is None else last + 1):
                if entry.index != expected:
                    raise ValueError(f"the member list continues at {expected}, not at {entry.index}")
            if entries:
                rows = [{"index": item.index, "body": item.body, "signature": item.signature} for item in entries]
                connection.execute(sa.insert(member_entries), rows)

    def forget_members(self) -> None:
        """Unpin the member list: the site joins under another root."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(member_entries))

    def change_notes(self, changes: Sequence[Note | Forget]) -> None:
        """Add and erase notes of secure sums, all of it or nothing, durably."""
        if not changes:
            return
        table = secure_notes
        with self._engine.begin() as connection:
            for change in changes:
                if isinstance(change, Note):
                    values = {"kind": change.kind, "context": change.context, "body": change.body}
                    connection.execute(sa.insert(table).values(**values))
                    continue
                erased = sa.delete(table).where(table.c.context == change.context)
                if change.kind:
                    erased = erased.where(table.c.kind == change.kind)
                if change.body:
                    erased = erased.where(table.c.body == change.body)
                connection.execute(erased)
        if any(isinstance(change, Forget) for change in changes):
            self._empty_log()

    def _empty_log(self) -> None:
        """Bring the write-ahead log into the database and empty it: what was erased still stood in it."""
        connection = self._engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()

    def notes(self) -> list[Note]:
        """The notes of secure sums, oldest first."""
        query = sa.select(secure_notes).order_by(secure_notes.c.number)
        with self._engine.connect().execution_options(**{READ_ONLY: True}) as connection:
            return [Note(row.kind, row.context, row.body) for row in connection.execute(query)]

    def close(self) -> None:
        """Release the file. Calling it twice is allowed."""
        self._engine.dispose()

    def _change(self, connection: sa.Connection, task_id: str, **values: Any) -> None:
        connection.execute(sa.update(tasks).where(tasks.c.task_id == task_id).values(at_s=self._clock(), **values))

    def _records(self, statement: sa.Select[Any]) -> list[TaskRecord]:
        with self._engine.connect().execution_options(**{READ_ONLY: True}) as connection:
            return [_record(row) for row in connection.execute(statement)]


def _row(connection: sa.Connection, task_id: str) -> sa.Row[Any]:
    row = connection.execute(sa.select(*_FIELDS).where(tasks.c.task_id == task_id)).first()
    if row is None:
        raise ValueError(f"there is no task {task_id}")
    return row


def _one(connection: sa.Connection, task_id: str) -> TaskRecord:
    return _record(_row(connection, task_id))


def _record(row: sa.Row[Any]) -> TaskRecord:
    fields = dict(row._mapping)
    fields.update(
        seed=int(row.seed),
        examples=row.examples or 0,
        state=TaskState(row.state),
        metrics=json.loads(row.metrics),
        evaluation=json.loads(row.evaluation),
    )
    return TaskRecord(**fields)
