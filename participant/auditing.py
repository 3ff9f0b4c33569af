"""``fedloom participant audit``: recompute a round's sum from what the coordinator has published."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from participant.membership import PinnedMembers
from participant.site import Site
from participant.store import ParticipantStore
from privacy.secure_aggregation.audit import Claim, Line, check_record, check_sum, verify_chain
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.signed import Signed
from privacy.secure_aggregation.summing import Upload
from protos import blobs_pb2_grpc, session_pb2, session_pb2_grpc
from wire import BlobStore, RefusedError, client_credentials, connect, download, error_from

_TIMEOUT_S = 60.0
_TASKS = 10_000  # of the journal that the log is compared with


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditedGroup:
    """The sum of one group, recomputed.

    Attributes:
        participants: Whose updates are in it.
        weight: Sum of their (capped) example counts; 0 for a group that was left out.
        mean: SHA-256 of the mean update that entered the merge, in hex; empty where there is none.
        left_out: Why the group isn't in the merge; empty if it is.
    """

    participants: tuple[str, ...]
    weight: int
    mean: str
    left_out: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audited:
    """A round whose sum was recomputed.

    Attributes:
        run_id: The run.
        round: From 1.
        line: The log's line, from 0; all lines before it were verified, too.
        participants: Whose updates are in the sum.
        mine: Whether this site's is among them.
        sum_hash: Of the sum, in hex.
        model: Digest of the version that came of it, in hex; zeros where the round only scored.
        groups: What each group came to, where there are sums of groups.
    """

    run_id: str
    round: int
    line: int
    participants: tuple[str, ...]
    mine: bool
    sum_hash: str
    model: str
    groups: tuple[AuditedGroup, ...] = ()


async def audit(site: Site, store: ParticipantStore, round_number: int, run_id: str = "") -> Audited:
    """Verify the coordinator's log, compare it with what this site was given, and recompute one round of it.

    Args:
        site: This site.
        store: Its journal, with the pinned member list.
        round_number: From 1.
        run_id: The run; the latest that has such a round if empty.

    Raises:
        RefusedError: with the code of what is wrong; "round-unknown" or "round-not-kept" where there is nothing to
            recompute.
        UnreachableError: nobody answers.
    """
    members = PinnedMembers.load(store, site.federation, site.root).list
    credentials = client_credentials(site.credentials)
    async with connect(site.config.session_address, credentials, site.federation) as channel:
        try:
            stub: Any = session_pb2_grpc.SessionStub(channel)
            lines = [line async for line in stub.Log(session_pb2.LogRequest(), timeout=_TIMEOUT_S)]
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from None
        index = _find(lines, round_number, run_id)
        try:
            chain = verify_chain([Signed(item.statement.body, item.statement.signature) for item in lines], members)
            _check_models(lines, chain, store)
            with tempfile.TemporaryDirectory(prefix="fedloom-audit-") as temporary:
                blobs = BlobStore(Path(temporary))
                fetch = blobs_pb2_grpc.BlobsStub(channel)
                for blob in (lines[index].record, *lines[index].uploads):
                    await download(fetch, blob.digest, blob.size, blobs)
                claim = _recompute(chain[index], members, blobs)
        except SecureAggregationError as error:
            raise RefusedError(error.code, error.message, error.hint) from None
    context, sums = claim.order.context, claim.order.groups
    positions = sorted(position for group in sums for position in group.members)
    names = tuple(context.names[position] for position in positions)
    result = chain[index].result
    return Audited(
        run_id=lines[index].run_id,
        round=round_number,
        line=index,
        participants=names,
        mine=site.name in names,
        sum_hash=result.sum_hash.hex(),
        model=result.model.hex(),
        groups=tuple(
            AuditedGroup(
                participants=tuple(context.names[item] for item in group.members),
                weight=mean.weight,
                mean=mean.digest.hex(),
                left_out=mean.code,
            )
            for group, mean in zip(sums, claim.means, strict=bool(claim.means))
        ),
    )


def _check_models(lines: list[session_pb2.LogLine], chain: list[Line], store: ParticipantStore) -> None:
    """Compare the log with the models that this site has trained from: one rewritten as a whole would name others."""
    versions: dict[str, int] = {}
    made: dict[tuple[str, int], Line] = {}
    for line, item in zip(lines, chain, strict=True):
        if any(item.result.model):  # zeros where a round only scored
            versions[line.run_id] = versions.get(line.run_id, 0) + 1
            made[line.run_id, versions[line.run_id]] = item
    for task in store.history(_TASKS):
        known = made.get((task.run_id, task.base_version))
        if known is not None and known.result.model != task.base_digest:
            raise SecureAggregationError(
                "log-fork",
                f"line {known.result.index} of the log names another version {task.base_version} of {task.run_id} than "
                f"this site was given in round {task.round}",
                "The coordinator rewrote its log, or gave this site a model of its own. Keep this site's journal.",
            )


def _find(lines: list[session_pb2.LogLine], round_number: int, run_id: str) -> int:
    wanted = run_id or (lines[-1].run_id if lines else "")
    for index, line in enumerate(lines):
        if (line.run_id, line.round) == (wanted, round_number):
            if not line.record.digest:
                raise RefusedError(
                    "round-not-kept",
                    f"the coordinator no longer keeps the uploads of round {round_number} of {wanted}",
                    "Audit sooner, or ask for a larger [secure_aggregation] audited_rounds.",
                )
            return index
    known = ", ".join(str(line.round) for line in lines if line.run_id == wanted and line.record.digest) or "none"
    raise RefusedError(
        "round-unknown",
        f"the log has no round {round_number} of run {wanted or '(none)'}",
        f"Rounds that can be recomputed now: {known}.",
    )


def _recompute(line: Line, members: Any, blobs: BlobStore) -> Claim:
    record = blobs.path(line.result.record)
    if not blobs.has(line.result.record):
        raise SecureAggregationError("record-foreign", "the coordinator shows another record than its log names")
    claim = check_record(line.result, record.read_bytes(), members)

    def read(digest: bytes) -> Upload:
        if not blobs.has(digest):
            raise SecureAggregationError("record-foreign", "the coordinator doesn't show an upload of the sum")
        return np.memmap(blobs.path(digest), np.uint8, "r")

    check_sum(line.result, claim, read)
    return claim
