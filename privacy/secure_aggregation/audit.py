"""Recompute a round from what the coordinator has published: anyone can, and learns nothing that it hasn't seen.

Public are the log of results, for each round a record (plan, acceptances, freeze, survivors, quorum, released secrets)
and the masked uploads. From these every signature, every set, every commitment and the sum itself can be checked. What
comes out wrong is evidence: it is signed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from privacy.secure_aggregation.checks import check_quorum, read_acceptances, read_survivors
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.decisions import Unmask
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.graph import groups, publishable
from privacy.secure_aggregation.keys import AgreementKey
from privacy.secure_aggregation.masking import sum_hash
from privacy.secure_aggregation.members import MemberList
from privacy.secure_aggregation.sharing import seed_commitment
from privacy.secure_aggregation.signed import Signed
from privacy.secure_aggregation.statements import (
    Delivery,
    Freeze,
    Plan,
    Quorum,
    Result,
    Survived,
    Survivors,
    positions_bytes,
    positions_of,
)
from privacy.secure_aggregation.summing import (
    GroupMean,
    Upload,
    group_mean,
    joined_hashes,
    line_hash,
    unmask_group,
    uploads_hash,
)
from privacy.secure_aggregation.unmasking import group_sums
from privacy.transcript import TranscriptError, decode

MAX_RECORD_BYTES: Final = 4 << 20
"""No round's public record is longer."""

_KEEP: Final = "The signed line and the uploads are the evidence; keep both."
_SHAPE = "statements, acceptances, retirements, seeds, mask keys, and for sums of groups what each came to"


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the log of results, as read from it."""

    result: Result
    hash: bytes


@dataclasses.dataclass(frozen=True)
class Claim:
    """What the coordinator's record of a round says.

    Attributes:
        order: What to add up to get the sums.
        means: What it says each group's sum came to, in the order of the groups; empty for one sum.
    """

    order: Unmask
    means: tuple[GroupMean, ...]


def verify_chain(lines: Iterable[Signed], members: MemberList) -> list[Line]:
    """Check the log of results from its beginning: signatures, places, and that each line names the one before.

    Raises:
        SecureAggregationError: "log-signature", "log-gap" or "log-fork", naming the line.
    """
    coordinator = members.coordinator
    if coordinator is None:
        raise SecureAggregationError("coordinator-uncertified", "the federation's root has certified no coordinator")
    found: list[Line] = []
    for index, signed in enumerate(lines):
        try:
            result = Result.opened(signed, coordinator.public_key, "the coordinator")
        except SecureAggregationError as error:
            raise SecureAggregationError("log-signature", f"line {index} of the log: {error.message}") from None
        if result.index != index:
            raise SecureAggregationError("log-gap", f"line {index} of the log says that it is line {result.index}")
        if result.previous != (found[-1].hash if found else bytes(32)):
            raise SecureAggregationError("log-fork", f"line {index} of the log doesn't follow the line before it")
        found.append(Line(result, line_hash(signed.body)))
    return found


def check_record(result: Result, record: bytes, members: MemberList) -> Claim:
    """Check everything of a round but the sum: what to add up to get it.

    Formal Guarantees:
        If this returns, the coordinator proposed this context and the participants of the roster that are in the sum
        agreed to it, made their uploads for the same sets, and a quorum of keepers signed the survivors; and the
        released secrets are those that the participants had committed to. So whoever recomputes the sum with them gets
        the one sum that this attempt can have.

    Args:
        result: The log's line, its signature checked.
        record: The round's public record.
        members: A member list that goes at least as far as the round's.

    Raises:
        SecureAggregationError: "record-malformed", "record-foreign" or the code of the check that failed, with the
            round's number in the message.
    """
    statements, acceptances, retired, seeds, mask_keys, means = _parts(record)
    try:
        context, at_the_time = _context(result, statements, members)
        delivery = Delivery.parse(Delivery(context.hash, acceptances, retired, b"").body())
        accepted = read_acceptances(delivery, context, at_the_time)
        frozen = _frozen(statements, context, at_the_time, frozenset(accepted))
        uploads = read_survivors(
            _said(statements, Survivors, at_the_time), context, at_the_time, frozenset(accepted), frozen
        )
        survived = Survived(context.hash, context.set_hash(frozen), context.set_hash(frozenset(uploads)))
        check_quorum(_said(statements, Quorum, at_the_time), survived, context, at_the_time)
        _check_line(result, uploads)
        _check_secrets(context, accepted, uploads, seeds, mask_keys)
        groups_of = groups(context, {item: acceptance.beacon for item, acceptance in accepted.items()})
        if publishable(groups_of, frozenset(uploads)) != frozenset(uploads):
            raise SecureAggregationError(
                "group-floor", "the sum of a group with too few survivors, or of a part of an atom, was published"
            )
    except SecureAggregationError as error:
        raise SecureAggregationError(error.code, f"line {result.index} of the log: {error.message}") from None
    found = group_sums(context, groups_of, uploads, seeds, mask_keys)
    if len(means) != (len(found) if context.group_size else 0):
        raise SecureAggregationError(
            "record-foreign",
            f"line {result.index} of the log: the record states what {len(means)} groups came to, which isn't one for "
            "each sum",
        )
    return Claim(Unmask(context, found), means)


def check_sum(result: Result, claim: Claim, read: Callable[[bytes], Upload]) -> None:
    """Recompute the sum bit by bit and compare it with the log's line.

    Args:
        result: The log's line.
        claim: From :func:`check_record`.
        read: Gives the upload of a digest; must have checked that the digest is its own.

    Raises:
        SecureAggregationError: "sum-wrong": the coordinator published another sum than that of the uploads.
            "mean-wrong": it made another mean of a group's sum, or left a group out that it shouldn't, or took one in.
    """
    context, hashes, wrong = claim.order.context, [], []
    for number, group in enumerate(claim.order.groups):
        main, tail = unmask_group(context, group, [read(digest) for digest in group.digests])
        hashes.append(sum_hash(main, tail, context.encoding.wire_bits))
        if claim.means and group_mean(context, group, main, tail) != claim.means[number]:
            wrong.append("+".join(context.names[item] for item in group.members))
    if joined_hashes(hashes) != result.sum_hash:
        raise SecureAggregationError(
            "sum-wrong",
            f"line {result.index} of the log (round {context.round}): the uploads add up to another sum than the "
            "coordinator has signed",
            _KEEP,
        )
    if wrong:
        raise SecureAggregationError(
            "mean-wrong",
            f"line {result.index} of the log (round {context.round}): the coordinator has signed another mean update, "
            f"or another verdict, than the sum of {wrong[0]} comes to",
            _KEEP,
        )


# ---- parts ----------------------------------------------------------------------------------------------------------

_Statements = dict[str, Signed]
_Parts = tuple[_Statements, bytes, Any, dict[int, bytes], dict[int, bytes], tuple[GroupMean, ...]]


def _parts(record: bytes) -> _Parts:
    try:
        if len(record) > MAX_RECORD_BYTES:
            raise ValueError(f"it has {len(record)} bytes")
        statements, acceptances, retired, seeds, mask_keys, *rest = cast(Any, decode(record))
        signed = {_kind(body): Signed(body, signature) for body, signature in statements}
        if len(rest) > 1:
            raise ValueError(f"it has {5 + len(rest)} parts")
        return signed, acceptances, retired, _secrets(seeds), _secrets(mask_keys), _means(*rest)
    except (TranscriptError, TypeError, ValueError) as error:
        raise SecureAggregationError(
            "record-malformed", f"a round's public record can't be read ({_SHAPE}): {error}"
        ) from None


def _kind(body: bytes) -> str:
    return cast(str, cast(Any, decode(body))[0])


def _secrets(rows: Any) -> dict[int, bytes]:
    found = {}
    for position, secret in rows:
        if type(position) is not int or not isinstance(secret, bytes) or len(secret) != 32:
            raise ValueError("a secret has another form")
        found[position] = secret
    return found


def _means(rows: Any = ()) -> tuple[GroupMean, ...]:
    found = []
    for weight, mean, code in rows:
        if type(weight) is not int or not isinstance(mean, bytes) or not isinstance(code, str):
            raise ValueError("what a group came to has another form")
        found.append(GroupMean(weight, mean, code))
    return tuple(found)


def _said(statements: _Statements, kind: Any, members: MemberList) -> Any:
    if kind.KIND not in statements or members.coordinator is None:
        raise SecureAggregationError("record-malformed", f"the record holds no {kind.KIND!r}")
    return kind.opened(statements[kind.KIND], members.coordinator.public_key, "the coordinator")


def _context(result: Result, statements: _Statements, members: MemberList) -> tuple[RoundContext, MemberList]:
    """The round's context, and the member list as it was then."""
    plan = _said(statements, Plan, members)
    context = RoundContext.parse(plan.context)
    if context.hash != result.context:
        raise SecureAggregationError("record-foreign", "the record is about another attempt than the line")
    then = MemberList.verify(members.federation, members.root, members.entries[: context.members_count])
    if then.head != context.members_head:
        raise SecureAggregationError("members-fork", "the round was planned from another member list than ours")
    return context, then


def _frozen(
    statements: _Statements, context: RoundContext, members: MemberList, accepted: frozenset[int]
) -> frozenset[int]:
    if not context.freeze:
        return accepted
    frozen = frozenset(positions_of(_said(statements, Freeze, members).members))
    if not frozen <= accepted:
        raise SecureAggregationError("freeze-foreign", "the frozen set holds someone who never accepted")
    return frozen


def _check_line(result: Result, uploads: dict[int, bytes]) -> None:
    if positions_bytes(uploads) != result.survivors:
        raise SecureAggregationError("record-foreign", "the record has other survivors than the line")
    if uploads_hash([uploads[item] for item in sorted(uploads)]) != result.uploads_hash:
        raise SecureAggregationError("record-foreign", "the record has other uploads than the line")


def _check_secrets(
    context: RoundContext, accepted: Any, uploads: dict[int, bytes], seeds: dict[int, bytes], keys: dict[int, bytes]
) -> None:
    if set(seeds) != set(uploads):
        raise SecureAggregationError("record-foreign", "the record has seeds of others than the survivors")
    for item, seed in seeds.items():
        if seed_commitment(context.hash, item, seed) != accepted[item].commitment:
            raise SecureAggregationError("seed-wrong", f"the seed of {context.names[item]} isn't what it committed to")
    for item, key in keys.items():
        if item in uploads or item not in accepted or AgreementKey(key).public != context.roster[item].mask_key:
            raise SecureAggregationError("mask-key-wrong", f"the mask key at position {item} isn't its owner's")
