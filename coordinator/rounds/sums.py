"""Attempts at secure sums as facts of a run, and the log of their results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from coordinator.rounds.effects import BeginUnmask, Line, Revealed
from coordinator.rounds.facts import AttemptOpened, SumRevealed
from coordinator.rounds.state import Round
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.coordinator import Attempt, Record
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.statements import Refused, Result, Signed, kind_of, positions_bytes
from privacy.secure_aggregation.summing import line_hash, uploads_hash

MAY_BE_REVEALED: Final = "update-may-be-revealed"
"""Code of a refusal that says: this update may be known in a sum. To ask again for the same one doesn't help."""


class ResultLog:
    """The log of results: a hash chain of lines that the coordinator signs, one for each revealed sum.

    Args:
        key: The coordinator's signing key.

    Attributes:
        count: Lines so far.
        head: Hash of the last one; zeros before the first.
        last: The last one's statement.
    """

    def __init__(self, key: SigningKey) -> None:
        self.count = 0
        self.head = bytes(32)
        self.last: Signed | None = None
        self._key = key

    def follow(self, line: Line) -> None:
        """Take a line in that is stored."""
        self.count, self.head, self.last = line.index + 1, line_hash(line.statement.body), line.statement

    def append(self, current: Round, model: bytes) -> Line:
        """The next line: of a round's sum, and the model that was made of it (32 zero bytes where none was)."""
        revealed = current.revealed
        assert revealed is not None
        result = Result(
            self.count,
            self.head,
            bytes.fromhex(opened_by(current).context),
            positions_bytes(revealed.positions),
            bytes.fromhex(revealed.uploads_hash),
            bytes.fromhex(revealed.sum_hash),
            bytes.fromhex(revealed.record),
            model,
        )
        line = Line(index=self.count, round=current.number, statement=result.signed(self._key))
        self.follow(line)
        return line


def opened_by(current: Round) -> AttemptOpened:
    """The attempt that gave a round its sum."""
    assert current.revealed is not None
    return next(item.opened for item in current.attempts if item.opened.attempt == current.revealed.attempt)


def attempt_opened(context: RoundContext, now_s: float) -> AttemptOpened:
    """That an attempt was proposed."""
    return AttemptOpened(
        round=context.round,
        attempt=context.attempt,
        task_attempt=context.task_attempt,
        context=context.hash.hex(),
        roster=context.names,
        prekeys=tuple(seat.index for seat in context.roster),
        opened_s=now_s,
        atoms=context.atoms,
        base_versions=tuple(base.version for base in context.bases),
        base_attempts=tuple(base.attempt for base in context.bases),
    )


def sum_revealed(order: BeginUnmask, found: Revealed, attempt: Attempt) -> SumRevealed:
    """That an attempt's sum is on disk."""
    context, digests = attempt.context, attempt.digests()
    positions = tuple(sorted(attempt.survivors()))
    uploads = tuple(digests[item] for item in positions)
    return SumRevealed(
        round=order.round,
        attempt=order.attempt,
        survivors=tuple(context.names[item] for item in positions),
        positions=positions,
        weight=found.weight,
        metrics=dict(found.metrics),
        digest=found.digest,
        sum_hash=found.sum_hash,
        uploads_hash=uploads_hash(uploads).hex(),
        record=found.record,
        uploads=tuple(item.hex() for item in uploads),
        groups=tuple(found.groups),
    )


def respenders(records: Iterable[Record]) -> set[str]:
    """Which participants have said that their update may be known in a sum."""
    said = [(record.sender, record.statement.body) for record in records if record.sender]
    return {
        name for name, body in said if kind_of(body) == Refused.KIND and Refused.parse(body).code == MAY_BE_REVEALED
    }
