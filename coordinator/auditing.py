"""``fedloom coordinator verify-log``: recompute what the coordinator has published, from its own disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from coordinator.aggregation import map_upload
from coordinator.membership import ROOT_PUBLIC
from coordinator.serving import BLOBS, CA, DATABASE
from coordinator.store import Store, open_store
from privacy.secure_aggregation.audit import Line, check_record, check_sum, verify_chain
from privacy.secure_aggregation.decisions import Unmask
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.members import MemberList
from privacy.secure_aggregation.signed import Signed
from privacy.secure_aggregation.summing import Upload
from wire import BlobStore, ConfigError, FederationCA, RefusedError, file_digest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified:
    """What was verified: all lines' chain and signatures, and the sums of those rounds whose uploads are kept.

    Attributes:
        lines: Of the log.
        head: Hash of the last line, in hex; empty for an empty log.
        recomputed: (run, round, groups) of each round that was recomputed bit for bit, groups as names of who is in the
            same sum; one of all where there is one sum.
        not_kept: How many lines' uploads are no longer kept.
    """

    lines: int
    head: str
    recomputed: tuple[tuple[str, int, tuple[tuple[str, ...], ...]], ...]
    not_kept: int


def verify_log(state: Path) -> Verified:
    """Verify the log of results in a state folder.

    Args:
        state: The coordinator's folder.

    Raises:
        ConfigError: no coordinator was ever started from this folder.
        RefusedError: with the code and the line of what is wrong.
    """
    if not (state / DATABASE).exists() or not (state / ROOT_PUBLIC).exists():
        raise ConfigError(
            f"no coordinator was started from {state} yet",
            "Start it (fedloom coordinator start), or name its folder with --state or --config.",
        )
    federation = FederationCA.load(state / CA).federation
    root = bytes.fromhex((state / ROOT_PUBLIC).read_text(encoding="ascii").strip())
    store = open_store(state / DATABASE)
    try:
        return _verify(store, BlobStore(state / BLOBS), federation, root)
    except SecureAggregationError as error:
        raise RefusedError(error.code, error.message, error.hint) from None
    finally:
        store.close()


def _verify(store: Store, blobs: BlobStore, federation: str, root: bytes) -> Verified:
    members = MemberList.verify(federation, root, store.member_entries())
    stored = store.results()
    lines = verify_chain([Signed(item.body, item.signature) for item in stored], members)
    recomputed, not_kept = [], 0
    for item, line in zip(stored, lines, strict=True):
        order = _recompute(line, members, blobs)
        if order is None:
            not_kept += 1
        else:
            recomputed.append((item.run_id, item.round, _groups(order)))
    return Verified(
        lines=len(lines),
        head=lines[-1].hash.hex() if lines else "",
        recomputed=tuple(recomputed),
        not_kept=not_kept,
    )


def _groups(order: Unmask) -> tuple[tuple[str, ...], ...]:
    names = order.context.names
    return tuple(sorted(tuple(names[position] for position in sorted(group.members)) for group in order.groups))


def _recompute(line: Line, members: MemberList, blobs: BlobStore) -> Unmask | None:
    """Recompute a line's sum; None where its uploads are no longer kept."""
    if not blobs.has(line.result.record):
        return None
    record = _own(blobs, line.result.record).read_bytes()
    claim = check_record(line.result, record, members)
    if not all(blobs.has(digest) for group in claim.order.groups for digest in group.digests):
        return None

    def read(digest: bytes) -> Upload:
        return map_upload(_own(blobs, digest))

    check_sum(line.result, claim, read)
    return claim.order


def _own(blobs: BlobStore, digest: bytes) -> Path:
    """A blob's file, after checking that its content has its name."""
    path = blobs.path(digest)
    if file_digest(path) != digest:
        raise SecureAggregationError(
            "blob-digest", f"the content of {path} isn't what its name says", "The file was changed on this disk."
        )
    return path
