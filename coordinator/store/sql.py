"""The coordinator's store on a SQL database: SQLite in WAL mode by default, another by URL later."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa

from coordinator.store import schema
from coordinator.store.base import (
    Checkpoint,
    Invitation,
    Member,
    MemberState,
    Run,
    Store,
    StoredResult,
    StoredStatement,
    Transition,
)
from privacy.secure_aggregation.members import MemberEntry
from wire.database import READ_ONLY

# The log is read in pages, each a transaction of its own, so that a slow reader never holds up the writer's checkpoint.
_PAGE: Final = 1_000

# Anyone who reaches a port can be refused under ever new addresses. Past this many rows a new peer is counted as
# OTHER_PEERS.
MAX_REFUSAL_ROWS: Final = 10_000
OTHER_PEERS: Final = "(others)"


class SqlStore(Store):
    """A :class:`Store` on a SQLAlchemy engine whose database is at the newest migration.

    Args:
        engine: Its write transactions must be durable when ``COMMIT`` returns (SQLite: ``synchronous=FULL``).
        clock: Seconds since the epoch, for the one time that no caller gives (since when a member is invited).
    """

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock

    def _rows(self, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with self._engine.connect().execution_options(**{READ_ONLY: True}) as connection:
            return connection.execute(statement).all()

    def create_run(self, run: Run, initial: Checkpoint) -> None:
        """See :meth:`Store.create_run`."""
        if initial.run_id != run.run_id or initial.version != 0:
            raise ValueError(f"run {run.run_id} starts with its version 0, not {initial.version} of {initial.run_id}")
        try:
            with self._engine.begin() as connection:
                connection.execute(
                    sa.insert(schema.runs).values(
                        run_id=run.run_id, plan=run.plan, plan_hash=run.plan_hash, created_s=run.created_s
                    )
                )
                connection.execute(sa.insert(schema.checkpoints).values(_checkpoint_row(initial)))
        except sa.exc.IntegrityError as error:
            raise ValueError(f"run {run.run_id} exists already") from error

    def run(self, run_id: str) -> Run | None:
        """See :meth:`Store.run`."""
        found = self._runs(sa.select(schema.runs).where(schema.runs.c.run_id == run_id))
        return found[0] if found else None

    def runs(self) -> list[Run]:
        """See :meth:`Store.runs`."""
        return self._runs(sa.select(schema.runs).order_by(schema.runs.c.number))

    def _runs(self, statement: sa.Select[Any]) -> list[Run]:
        return [
            Run(run_id=row.run_id, plan=row.plan, plan_hash=row.plan_hash, created_s=row.created_s)
            for row in self._rows(statement)
        ]

    def append(
        self,
        run_id: str,
        transitions: Sequence[Transition],
        checkpoint: Checkpoint | None = None,
        *,
        statements: Sequence[StoredStatement] = (),
        results: Sequence[StoredResult] = (),
    ) -> None:
        """See :meth:`Store.append`."""
        if not transitions and (checkpoint is not None or not (statements or results)):
            raise ValueError("nothing to append: a checkpoint is committed by a transition")
        if checkpoint is not None and checkpoint.run_id != run_id:
            raise ValueError(f"a checkpoint of run {checkpoint.run_id} doesn't belong in the log of {run_id}")
        try:
            with self._engine.begin() as connection:
                _append(connection, run_id, transitions, checkpoint)
                if statements:
                    rows = [{"run_id": run_id, **dataclasses.asdict(item)} for item in statements]
                    connection.execute(sa.insert(schema.statements), rows)
                _append_results(connection, results)
        except sa.exc.IntegrityError as error:
            raise ValueError(f"another process has written to the log of {run_id} at the same time") from error

    def statements(self, run_id: str, context: bytes) -> list[StoredStatement]:
        """See :meth:`Store.statements`."""
        table = schema.statements
        query = sa.select(table).where(table.c.run_id == run_id, table.c.context == context).order_by(table.c.number)
        return [
            StoredStatement(
                context=row.context, sender=row.sender, body=row.body, signature=row.signature, at_s=row.at_s
            )
            for row in self._rows(query)
        ]

    def forget_statements(self, run_id: str, keep: bytes) -> None:
        """See :meth:`Store.forget_statements`."""
        table = schema.statements
        with self._engine.begin() as connection:
            connection.execute(sa.delete(table).where(table.c.run_id == run_id, table.c.context != keep))

    def put_prekeys(self, name: str, body: bytes, signature: bytes) -> None:
        """See :meth:`Store.put_prekeys`."""
        self._keep(schema.prekeys, name, body, signature)

    def prekeys(self) -> dict[str, tuple[bytes, bytes]]:
        """See :meth:`Store.prekeys`."""
        return {row.name: (row.body, row.signature) for row in self._rows(sa.select(schema.prekeys))}

    def put_budget(self, name: str, body: bytes, signature: bytes) -> None:
        """See :meth:`Store.put_budget`."""
        self._keep(schema.budgets, name, body, signature)

    def _keep(self, table: sa.Table, name: str, body: bytes, signature: bytes) -> None:
        """One row for each participant: the last. Sites say theirs again at every connection; that writes nothing."""
        with self._engine.begin() as connection:
            kept = connection.execute(sa.select(table.c.body, table.c.signature).where(table.c.name == name)).first()
            if kept is not None and tuple(kept) == (body, signature):
                return
            connection.execute(sa.delete(table).where(table.c.name == name))
            connection.execute(sa.insert(table).values(name=name, body=body, signature=signature))

    def budgets(self) -> dict[str, tuple[bytes, bytes]]:
        """See :meth:`Store.budgets`."""
        return {row.name: (row.body, row.signature) for row in self._rows(sa.select(schema.budgets))}

    def results(self, after: int = 0) -> list[StoredResult]:
        """See :meth:`Store.results`."""
        table = schema.results
        query = sa.select(table).where(table.c.index >= after).order_by(table.c.index)
        return [
            StoredResult(index=row[0], run_id=row.run_id, round=row.round, body=row.body, signature=row.signature)
            for row in self._rows(query)
        ]

    def transitions(self, run_id: str, after: int = 0) -> Iterator[Transition]:
        """See :meth:`Store.transitions`."""
        table = schema.transitions
        while True:
            page = self._rows(
                sa.select(table)
                .where(table.c.run_id == run_id, table.c.sequence > after)
                .order_by(table.c.sequence)
                .limit(_PAGE)
            )
            for row in page:
                yield Transition(sequence=row.sequence, kind=row.kind, body=row.body, at_s=row.at_s)
                after = row.sequence
            if len(page) < _PAGE:
                return

    def checkpoint(self, run_id: str, version: int | None = None) -> Checkpoint | None:
        """See :meth:`Store.checkpoint`."""
        query = sa.select(schema.checkpoints).where(schema.checkpoints.c.run_id == run_id)
        if version is None:
            query = query.order_by(schema.checkpoints.c.version.desc()).limit(1)
        else:
            query = query.where(schema.checkpoints.c.version == version)
        for row in self._rows(query):
            return _checkpoint(row)
        return None

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        """See :meth:`Store.checkpoints`."""
        query = (
            sa.select(schema.checkpoints)
            .where(schema.checkpoints.c.run_id == run_id)
            .order_by(schema.checkpoints.c.version)
        )
        return [_checkpoint(row) for row in self._rows(query)]

    def invite(self, invitation: Invitation) -> None:
        """See :meth:`Store.invite`."""
        name = invitation.name
        with self._engine.begin() as connection:
            # The first statement writes: it takes the lock under which the member is then looked up.
            connection.execute(
                sa.delete(schema.invitations).where(
                    schema.invitations.c.name == name, schema.invitations.c.used_s.is_(None)
                )
            )
            state = connection.execute(sa.select(schema.members.c.state).where(schema.members.c.name == name)).scalar()
            fresh = {
                "state": MemberState.INVITED,
                "certificate_pem": b"",
                "serial": "",
                "since_s": self._clock(),
                "reason": "",
                "signing_key": None,
                "signing_proof": None,
            }
            if state is None:
                connection.execute(sa.insert(schema.members).values(name=name, **fresh))
            elif state == MemberState.REVOKED:
                # Its old certificate must not come back to life with the name.
                connection.execute(sa.update(schema.members).where(schema.members.c.name == name).values(fresh))
            try:
                connection.execute(
                    sa.insert(schema.invitations).values(
                        name=name,
                        secret_hash=invitation.secret_hash,
                        expires_s=invitation.expires_s,
                        used_s=invitation.used_s,
                    )
                )
            except sa.exc.IntegrityError as error:
                raise ValueError(f"this token for {name} has been used already") from error

    def invitation(self, name: str, secret_hash: bytes) -> Invitation | None:
        """See :meth:`Store.invitation`."""
        query = sa.select(schema.invitations).where(
            schema.invitations.c.name == name, schema.invitations.c.secret_hash == secret_hash
        )
        for row in self._rows(query):
            return Invitation(name=row.name, secret_hash=row.secret_hash, expires_s=row.expires_s, used_s=row.used_s)
        return None

    def enrol(self, member: Member, secret_hash: bytes, at_s: float) -> bool:
        """See :meth:`Store.enrol`."""
        with self._engine.begin() as connection:
            # One conditional update decides a race: the loser finds the token used.
            used = connection.execute(
                sa.update(schema.invitations)
                .where(
                    schema.invitations.c.name == member.name,
                    schema.invitations.c.secret_hash == secret_hash,
                    schema.invitations.c.used_s.is_(None),
                    schema.invitations.c.expires_s > at_s,
                )
                .values(used_s=at_s)
            )
            if used.rowcount != 1:
                return False
            connection.execute(
                sa.update(schema.members)
                .where(schema.members.c.name == member.name)
                .values(
                    state=MemberState.ENROLLED,
                    certificate_pem=member.certificate_pem,
                    serial=member.serial,
                    since_s=at_s,
                    reason="",
                    signing_key=member.signing_key or None,
                    signing_proof=member.signing_proof or None,
                )
            )
            return True

    def renew(self, name: str, certificate_pem: bytes, serial: str) -> bool:
        """See :meth:`Store.renew`."""
        with self._engine.begin() as connection:
            done = connection.execute(
                sa.update(schema.members)
                .where(schema.members.c.name == name, schema.members.c.state == MemberState.ENROLLED)
                .values(certificate_pem=certificate_pem, serial=serial)
            )
            return done.rowcount == 1

    def revoke(self, name: str, reason: str, at_s: float) -> bool:
        """See :meth:`Store.revoke`."""
        with self._engine.begin() as connection:
            done = connection.execute(
                sa.update(schema.members)
                .where(schema.members.c.name == name)
                .values(state=MemberState.REVOKED, reason=reason, since_s=at_s)
            )
            connection.execute(
                sa.delete(schema.invitations).where(
                    schema.invitations.c.name == name, schema.invitations.c.used_s.is_(None)
                )
            )
            return done.rowcount == 1

    def member(self, name: str) -> Member | None:
        """See :meth:`Store.member`."""
        for row in self._rows(sa.select(schema.members).where(schema.members.c.name == name)):
            return _member(row)
        return None

    def members(self) -> list[Member]:
        """See :meth:`Store.members`."""
        # Sorted here and not by the database, whose collation is the operator's.
        return sorted((_member(row) for row in self._rows(sa.select(schema.members))), key=lambda member: member.name)

    def append_member_entries(self, entries: Sequence[MemberEntry]) -> None:
        """See :meth:`Store.append_member_entries`."""
        table = schema.member_entries
        try:
            with self._engine.begin() as connection:
                last = connection.execute(sa.select(sa.func.max(table.c.index))).scalar()
                for expected, entry in enumerate(entries, start=0 if last is None else last + 1):
                    if entry.index != expected:
                        raise ValueError(f"the member list continues at {expected}, not at {entry.index}")
                if entries:
                    connection.execute(
                        sa.insert(table),
                        [{"index": item.index, "body": item.body, "signature": item.signature} for item in entries],
                    )
        except sa.exc.IntegrityError as error:
            raise ValueError("another process has written to the member list at the same time") from error

    def member_entries(self, after: int = 0) -> list[MemberEntry]:
        """See :meth:`Store.member_entries`."""
        table = schema.member_entries
        query = sa.select(table).where(table.c.index >= after).order_by(table.c.index)
        return [MemberEntry.decode(row.body, row.signature) for row in self._rows(query)]

    def count_refusal(self, code: str, peer: str) -> None:
        """See :meth:`Store.count_refusal`. Names are cut to the columns' widths."""
        code, peer = code[:64], peer[:255]
        with self._engine.begin() as connection:
            if _count(connection, code, peer):
                return
            rows = connection.execute(sa.select(sa.func.count()).select_from(schema.refusals)).scalar_one()
            if rows >= MAX_REFUSAL_ROWS:
                peer = OTHER_PEERS
                if _count(connection, code, peer):
                    return
            connection.execute(sa.insert(schema.refusals).values(code=code, peer=peer, total=1))

    def refusals(self) -> dict[tuple[str, str], int]:
        """See :meth:`Store.refusals`."""
        return {(row.code, row.peer): row.total for row in self._rows(sa.select(schema.refusals))}

    def close(self) -> None:
        """See :meth:`Store.close`."""
        self._engine.dispose()


def _append(connection: sa.Connection, run_id: str, new: Sequence[Transition], checkpoint: Checkpoint | None) -> None:
    """Check that log and checkpoint continue what is stored, and insert them."""
    last = connection.execute(
        sa.select(sa.func.max(schema.transitions.c.sequence)).where(schema.transitions.c.run_id == run_id)
    ).scalar()
    if last is None:
        last = 0
        if connection.execute(sa.select(schema.runs.c.number).where(schema.runs.c.run_id == run_id)).scalar() is None:
            raise ValueError(f"there is no run {run_id}")
    for expected, transition in enumerate(new, start=last + 1):
        if transition.sequence != expected:
            raise ValueError(f"the log of {run_id} continues at {expected}, not at {transition.sequence}")
    if checkpoint is not None:
        version = connection.execute(
            sa.select(sa.func.max(schema.checkpoints.c.version)).where(schema.checkpoints.c.run_id == run_id)
        ).scalar_one()
        if checkpoint.version != version + 1:
            raise ValueError(f"run {run_id} continues with version {version + 1}, not {checkpoint.version}")
        connection.execute(sa.insert(schema.checkpoints).values(_checkpoint_row(checkpoint)))
    if new:
        connection.execute(
            sa.insert(schema.transitions),
            [
                {"run_id": run_id, "sequence": item.sequence, "kind": item.kind, "body": item.body, "at_s": item.at_s}
                for item in new
            ],
        )


def _append_results(connection: sa.Connection, new: Sequence[StoredResult]) -> None:
    if not new:
        return
    last = connection.execute(sa.select(sa.func.max(schema.results.c.index))).scalar()
    for expected, result in enumerate(new, start=0 if last is None else last + 1):
        if result.index != expected:
            raise ValueError(f"the log of results continues at {expected}, not at {result.index}")
    connection.execute(sa.insert(schema.results), [dataclasses.asdict(item) for item in new])


def _count(connection: sa.Connection, code: str, peer: str) -> bool:
    done = connection.execute(
        sa.update(schema.refusals)
        .where(schema.refusals.c.code == code, schema.refusals.c.peer == peer)
        .values(total=schema.refusals.c.total + 1)
    )
    return done.rowcount == 1


def _checkpoint_row(checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "run_id": checkpoint.run_id,
        "version": checkpoint.version,
        "digest": checkpoint.digest,
        "size": checkpoint.size,
        "state": json.dumps([digest.hex() for digest in checkpoint.state]),
        "created_s": checkpoint.created_s,
    }


def _checkpoint(row: sa.Row[Any]) -> Checkpoint:
    return Checkpoint(
        run_id=row.run_id,
        version=row.version,
        digest=row.digest,
        size=row.size,
        state=tuple(bytes.fromhex(digest) for digest in json.loads(row.state)),
        created_s=row.created_s,
    )


def _member(row: sa.Row[Any]) -> Member:
    return Member(
        name=row.name,
        state=MemberState(row.state),
        certificate_pem=row.certificate_pem,
        serial=row.serial,
        since_s=row.since_s,
        reason=row.reason,
        signing_key=row.signing_key or b"",
        signing_proof=row.signing_proof or b"",
    )
