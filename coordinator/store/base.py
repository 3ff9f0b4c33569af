"""What the coordinator remembers, and what each method of a back end MUST do.

The store is an event log with a roster beside it. The round machine (``coordinator.rounds``) is a deterministic
function of its events; the log of a run is therefore the run. A back end MUST make ``append`` durable before it
returns: what the coordinator shows to anyone has been written first.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Iterator, Sequence

from privacy.secure_aggregation.members import MemberEntry


class MemberState(enum.StrEnum):
    """Where an institution stands in the roster."""

    INVITED = "invited"
    ENROLLED = "enrolled"
    REVOKED = "revoked"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: an immutable plan. ``plan`` is canonical JSON, ``plan_hash`` 32 bytes."""

    run_id: str
    plan: bytes
    plan_hash: bytes
    created_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transition:
    """One event the round machine has accepted.

    ``sequence`` counts from 1 within a run without gaps; ``kind`` and ``body`` are the event's codec name and JSON.
    """

    sequence: int
    kind: str
    body: str
    at_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A committed version of the global model. ``state`` are the digests of the server optimizer's vectors."""

    run_id: str
    version: int
    digest: bytes
    size: int
    state: tuple[bytes, ...]
    created_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """A line of the roster. ``certificate_pem`` is empty until enrolment; ``serial`` is the certificate's, in hex.

    ``signing_key`` is the member's Ed25519 key (32 bytes) and ``signing_proof`` what shows that it asked for it to be
    certified: SHA-256 of its TLS signing request, then the key's signature (96 bytes). Both are empty until enrolment.
    """

    name: str
    state: MemberState
    certificate_pem: bytes = b""
    serial: str = ""
    since_s: float = 0.0
    reason: str = ""
    signing_key: bytes = b""
    signing_proof: bytes = b""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredStatement:
    """A statement of a secure sum. ``sender`` is empty for the coordinator's own; ``context`` names the attempt."""

    context: bytes
    sender: str
    body: bytes
    signature: bytes
    at_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredResult:
    """A line of the log of results, a hash chain over all runs. ``index`` counts from 0."""

    index: int
    run_id: str
    round: int
    body: bytes
    signature: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Invitation:
    """A one-time token's record. Only ``secret_hash`` (SHA-256 of the secret) is kept."""

    name: str
    secret_hash: bytes
    expires_s: float
    used_s: float | None = None


class Store(abc.ABC):
    """The coordinator's memory. All methods are safe to call from any thread; times are seconds since the epoch, UTC.

    Every writing method is one transaction: after a crash it has happened whole or not at all.
    """

    @abc.abstractmethod
    def create_run(self, run: Run, initial: Checkpoint) -> None:
        """Record a run and its version 0 in one transaction. MUST raise ``ValueError`` if ``run_id`` exists."""

    @abc.abstractmethod
    def run(self, run_id: str) -> Run | None:
        """The run of that id, or None."""

    @abc.abstractmethod
    def runs(self) -> list[Run]:
        """All runs in the order of their creation, whatever their clocks said."""

    @abc.abstractmethod
    def append(
        self,
        run_id: str,
        transitions: Sequence[Transition],
        checkpoint: Checkpoint | None = None,
        *,
        statements: Sequence[StoredStatement] = (),
        results: Sequence[StoredResult] = (),
    ) -> None:
        """Append to the run's log, durably and atomically.

        With the transitions come the checkpoint that the last of them commits, the statements of secure sums that led
        to them, and lines of the log of results.

        MUST raise ``ValueError`` when the first sequence isn't one more than the last one stored, when the run is
        unknown, when the checkpoint's version isn't one more than the last or comes without a transition, when a
        result's index isn't one more than the last, or when there is nothing to append; nothing is written then. MUST
        raise ``ResourceError`` with code "disk-full" when the disk is full.
        """

    @abc.abstractmethod
    def statements(self, run_id: str, context: bytes) -> list[StoredStatement]:
        """The statements of one attempt in the order in which they were stored."""

    @abc.abstractmethod
    def forget_statements(self, run_id: str, keep: bytes) -> None:
        """Erase the run's statements of all attempts but the one named."""

    @abc.abstractmethod
    def put_prekeys(self, name: str, body: bytes, signature: bytes) -> None:
        """Keep a participant's signed prekeys in place of its earlier ones."""

    @abc.abstractmethod
    def prekeys(self) -> dict[str, tuple[bytes, bytes]]:
        """Body and signature of everyone's prekeys, by name."""

    @abc.abstractmethod
    def put_budget(self, name: str, body: bytes, signature: bytes) -> None:
        """Keep a participant's signed budget receipt in place of its earlier one."""

    @abc.abstractmethod
    def budgets(self) -> dict[str, tuple[bytes, bytes]]:
        """Body and signature of everyone's last budget receipt, by name."""

    @abc.abstractmethod
    def results(self, after: int = 0) -> list[StoredResult]:
        """The log of results of all runs in order, from index ``after`` on."""

    @abc.abstractmethod
    def transitions(self, run_id: str, after: int = 0) -> Iterator[Transition]:
        """The run's log in order, from sequence ``after`` + 1."""

    @abc.abstractmethod
    def checkpoint(self, run_id: str, version: int | None = None) -> Checkpoint | None:
        """That version, or the last one where ``version`` is None."""

    @abc.abstractmethod
    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        """All versions in order."""

    @abc.abstractmethod
    def invite(self, invitation: Invitation) -> None:
        """Record a token and the name in the roster (state INVITED unless it is already there).

        A second invitation for a name replaces the first as long as it is unused; an enrolled member may be invited
        again (it lost its key): enrolment then replaces its certificate. Inviting a revoked name makes it INVITED.
        """

    @abc.abstractmethod
    def invitation(self, name: str, secret_hash: bytes) -> Invitation | None:
        """The record for this token, used or not, or None if the name or the hash is unknown."""

    @abc.abstractmethod
    def enrol(self, member: Member, secret_hash: bytes, at_s: float) -> bool:
        """Mark the token used and set the member's certificate and signing key, in one transaction.

        MUST return False and change nothing when the token is unknown, expired at ``at_s`` or already used; two
        racing calls MUST NOT both return True.
        """

    @abc.abstractmethod
    def renew(self, name: str, certificate_pem: bytes, serial: str) -> bool:
        """Replace an enrolled member's certificate; its signing key MUST stay. False unless the member is ENROLLED."""

    @abc.abstractmethod
    def revoke(self, name: str, reason: str, at_s: float) -> bool:
        """Set a member to REVOKED and void its unused tokens. False if the name is unknown."""

    @abc.abstractmethod
    def member(self, name: str) -> Member | None:
        """The roster's line of that name, or None."""

    @abc.abstractmethod
    def members(self) -> list[Member]:
        """The roster, by name."""

    @abc.abstractmethod
    def append_member_entries(self, entries: Sequence[MemberEntry]) -> None:
        """Append to the member list, durably and atomically. Whether the root signed them, the caller has checked.

        MUST raise ``ValueError`` and write nothing when an index isn't one more than the one before it; the list starts
        at 0.
        """

    @abc.abstractmethod
    def member_entries(self, after: int = 0) -> list[MemberEntry]:
        """The member list in order, from index ``after`` on."""

    @abc.abstractmethod
    def count_refusal(self, code: str, peer: str) -> None:
        """Add one to the count of refusals of that code and peer."""

    @abc.abstractmethod
    def refusals(self) -> dict[tuple[str, str], int]:
        """All counts, by (code, peer)."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the back end. Calling it twice is allowed."""
