"""What a coordinator may say in an attempt at a secure sum and must not get away with: each lie with its answer.

A lie is made from the true statement that it stands for, and signed with the coordinator's own key unless the lie is
the signature. Sites refuse each of them by name, and a refusal changes nothing: the truth can still follow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from privacy.secure_aggregation.context import RoundContext, Seat
from privacy.secure_aggregation.keys import AgreementKey, SigningKey
from privacy.secure_aggregation.prekeys import LIFE_S
from privacy.secure_aggregation.sharing import beacon_hash
from privacy.secure_aggregation.statements import (
    ACCEPTANCES,
    PARCELS,
    QUORUM,
    UPLOADS,
    Delivery,
    Freeze,
    Plan,
    Prekey,
    Quorum,
    Ready,
    Result,
    Signed,
    Statement,
    Survivors,
    UploadReceipt,
    positions_bytes,
    positions_of,
)
from tests.adversarial.liars import Liar, opened

SECTION = "[secure_aggregation]"
FLOOR = f"{SECTION} min_cohort"


@dataclasses.dataclass(frozen=True)
class Lie:
    """A lie to tell to ``peer``, whose position is given; what it is refused with, and whose setting decides."""

    make: Callable[[Liar, str, Any], Statement | Signed]
    code: str
    setting: str = ""
    late: bool = False  # told after the truth


# ---- plans ----------------------------------------------------------------------------------------------------------


def plan(code: str, setting: str = "", **changes: Any) -> Lie:
    """A plan whose context differs in these fields; a callable gets the true value and the peer's position."""

    def make(liar: Liar, peer: str, true: Plan) -> Plan:
        context = RoundContext.parse(true.context)
        me = context.position(peer)
        values = {
            name: value(getattr(context, name), me) if callable(value) else value for name, value in changes.items()
        }
        return Plan(dataclasses.replace(context, **values).canonical())

    return Lie(make, code, setting)


def seat_changed(at: int, **changes: Any) -> Callable[[tuple[Seat, ...], int], tuple[Seat, ...]]:
    """The roster with another seat at ``at``."""

    def change(roster: tuple[Seat, ...], me: int) -> tuple[Seat, ...]:
        return (*roster[:at], dataclasses.replace(roster[at], **changes), *roster[at + 1 :])

    return change


def key() -> bytes:
    return AgreementKey.generate().public


def sybil(name: str = "sybil") -> Seat:
    """The seat of a member that the coordinator has made up, in order but for the root's word."""
    owner, mine, share = SigningKey.generate(), key(), key()
    expires_s = 2_000_000_000 + LIFE_S
    prekey = Prekey("stage", name, 1, mine, share, beacon_hash(bytes(32)), expires_s)
    return Seat(name, 1, mine, share, prekey.beacon_hash, expires_s, prekey.signed(owner).signature)


def encoding(**changes: Any) -> Callable[[Any, int], Any]:
    return lambda true, me: dataclasses.replace(true, **changes)


PLANS: dict[str, Lie] = {
    "a mask key of the coordinator's in the victim's seat": plan(
        "prekey-signature", roster=seat_changed(0, mask_key=key())
    ),
    "a share key of the coordinator's in the victim's seat": plan(
        "prekey-signature", roster=seat_changed(1, share_key=key())
    ),
    "one site's key in another's seat": plan(
        "prekey-duplicate", roster=lambda true, me: seat_changed(0, mask_key=true[1].mask_key)(true, me)
    ),
    "a member that the root never certified": plan(
        "member-unknown", roster=lambda true, me: (*true, sybil()), encoding=encoding(value_bits=10)
    ),
    "a site twice": plan("roster-duplicate", roster=lambda true, me: (*true[:3], sybil(true[2].name))),
    "a roster without the site itself": plan(
        "roster-without-me", roster=lambda true, me: (*true[:me], *true[me + 1 :])
    ),
    "a roster of two": plan("cohort-too-small", roster=lambda true, me: true[:2]),
    "sums of two": plan("cohort-floor", FLOOR, min_cohort=2),
    "hardly anyone corrupt": plan("corrupt-bound", f"{SECTION} min_corrupt_percent", corrupt_percent=1),
    "sums of groups of two": plan("group-floor", f"{SECTION} min_group", group_size=2, atoms=(1, 1, 2, 2)),
    "sums of groups that the run doesn't have": plan("task-mismatch", group_size=3, atoms=(1, 1, 1, 1)),
    "values so wide that sums overflow": plan("overflow", encoding=encoding(value_bits=15)),
    "a clipping norm that clips nothing": plan(
        "encoding-range", f"{SECTION} max_clip_norm", encoding=encoding(clip_norm=1e6)
    ),
    "a range in which one value stands out": plan(
        "encoding-range", f"{SECTION} max_clip_value", encoding=encoding(clip_value=1e6)
    ),
    "an attempt that is over": plan("expired", expires_s=1_000_000_000),
    "another federation": plan("federation-foreign", federation="elsewhere"),
    "another member list": plan("members-differ", members_head=bytes(32)),
    "a longer member list": plan("members-differ", members_count=lambda true, me: true + 1),
    "another model": plan("model-mismatch", base_digest=b"m" * 32),
    "a shorter update": plan("model-mismatch", dimension=lambda true, me: true - 1),
    "another run's plan": plan("task-mismatch", plan_hash=b"p" * 32),
    "another round": plan("task-mismatch", round=7),
    "another training": plan("task-mismatch", task_attempt=2),
    "no context at all": Lie(lambda liar, peer, true: Plan(b"not a context"), "context-malformed"),
    "a plan that another key signed": Lie(
        lambda liar, peer, true: true.signed(SigningKey(b"x" * 32)), "signature-invalid"
    ),
    "bytes that are no statement": Lie(lambda liar, peer, true: Signed(b"\xff\xfe", bytes(64)), "statement-malformed"),
}


# ---- deliveries -----------------------------------------------------------------------------------------------------

Rows = list[tuple[bytes, ...]]


def delivery(code: str, change: Callable[[Rows, Rows, int], tuple[Rows, Rows]], setting: str = "") -> Lie:
    """A delivery with other acceptances and parcels; ``change`` gets both and the peer's position."""

    def make(liar: Liar, peer: str, true: Delivery) -> Delivery:
        me = liar.attempt().position(peer)
        assert me is not None
        acceptances, parcels = change(ACCEPTANCES.read(true.acceptances), PARCELS.read(true.parcels), me)
        return dataclasses.replace(true, acceptances=ACCEPTANCES.write(acceptances), parcels=PARCELS.write(parcels))

    return Lie(make, code, setting)


def _without(rows: Rows, position: int) -> Rows:
    return [*rows[:position], *rows[position + 1 :]]


def _forged(rows: Rows, at: int) -> Rows:
    return [*rows[:at], (*rows[at][:-1], bytes(64)), *rows[at + 1 :]]


DELIVERIES: dict[str, Lie] = {
    "an acceptance that its giver didn't sign": delivery(
        "acceptance-signature", lambda accepts, parcels, me: (_forged(accepts, 1), parcels)
    ),
    "an acceptance with another's beacon": delivery(
        "acceptance-signature",
        lambda accepts, parcels, me: ([(accepts[0][0], accepts[1][1], *accepts[0][2:]), *accepts[1:]], parcels),
    ),
    "two that accepted": delivery("cohort-floor", lambda accepts, parcels, me: (accepts[:2], parcels[:2]), FLOOR),
    "an accepted set without the site itself": delivery(
        "not-accepted", lambda accepts, parcels, me: (_without(accepts, me), _without(parcels, me))
    ),
    "an acceptance that counts twice": delivery(
        "roster-duplicate", lambda accepts, parcels, me: ([*accepts[:3], accepts[2]], parcels)
    ),
    "parcels left out": delivery("parcels-missing", lambda accepts, parcels, me: (accepts, parcels[:3])),
    "another attempt's delivery": Lie(
        lambda liar, peer, true: dataclasses.replace(true, context=b"c" * 32), "context-unknown"
    ),
    "a smaller accepted set afterwards": dataclasses.replace(
        delivery("second-delivery", lambda accepts, parcels, me: (_without(accepts, 3), _without(parcels, 3))),
        late=True,
    ),
}


# ---- freezes --------------------------------------------------------------------------------------------------------


def freeze(code: str, change: Callable[[tuple[int, ...], int], Sequence[int]], setting: str = "") -> Lie:
    """A freeze of other members."""

    def make(liar: Liar, peer: str, true: Freeze) -> Freeze:
        me = liar.attempt().position(peer)
        assert me is not None
        return Freeze(true.context, positions_bytes(change(positions_of(true.members), me)))

    return Lie(make, code, setting)


FREEZES: dict[str, Lie] = {
    "two that are left": freeze("cohort-floor", lambda true, me: sorted({me, (me + 1) % 4}), FLOOR),
    "a frozen set without the site itself": freeze("freeze-without-me", lambda true, me: [i for i in true if i != me]),
    "someone who never accepted": freeze("freeze-foreign", lambda true, me: [*true, 9]),
    "another frozen set afterwards": dataclasses.replace(
        freeze("second-freeze", lambda true, me: [i for i in true if i != (me + 1) % 4]), late=True
    ),
}

RECEIPTS: dict[str, Lie] = {
    "a receipt for another upload": Lie(
        lambda liar, peer, true: UploadReceipt(true.context, true.position, b"d" * 32), "receipt-foreign"
    )
}


# ---- survivors ------------------------------------------------------------------------------------------------------


def survivors(code: str, change: Callable[[Rows], Rows], setting: str = "", *, late: bool = False) -> Lie:
    """Survivors with other rows (position, digest, signature)."""

    def make(liar: Liar, peer: str, true: Survivors) -> Survivors:
        return Survivors(true.context, UPLOADS.write(change(UPLOADS.read(true.uploads))))

    return Lie(make, code, setting, late)


SURVIVORS: dict[str, Lie] = {
    "another digest than its owner signed": survivors(
        "upload-signature", lambda rows: [(rows[0][0], b"d" * 32, rows[0][2]), *rows[1:]]
    ),
    "another's upload in the victim's name": survivors(
        "upload-signature", lambda rows: [(rows[0][0], *rows[1][1:]), *rows[1:]]
    ),
    "two survivors": survivors("cohort-floor", lambda rows: rows[:2], FLOOR),
    "a survivor that counts twice": survivors("roster-duplicate", lambda rows: [*rows[:2], rows[1]]),
    "a survivor that isn't in the roster": survivors(
        "survivor-foreign", lambda rows: [*rows, ((9).to_bytes(2, "big"), *rows[0][1:])]
    ),
    "another survivor set afterwards": survivors("second-survivors", lambda rows: rows[:3], late=True),
}


# ---- quorum and the end ---------------------------------------------------------------------------------------------


def quorum(code: str, change: Callable[[Rows], Rows]) -> Lie:
    """A quorum with other rows (position, signature)."""

    def make(liar: Liar, peer: str, true: Quorum) -> Quorum:
        return Quorum(true.context, QUORUM.write(change(QUORUM.read(true.signatures))))

    return Lie(make, code)


def _survivors_again(liar: Liar, peer: str, true: Quorum) -> Survivors:
    """After the release: the same site is asked for the shares of another set."""
    rows = [UPLOADS.read(item.uploads) for name, signed in liar.told if (item := opened(Survivors, signed)) is not None]
    return Survivors(true.context, UPLOADS.write(max(rows, key=len)[1:]))


QUORUMS: dict[str, Lie] = {
    "two signatures": quorum("quorum-short", lambda rows: rows[:2]),
    "a signature that counts twice": quorum("quorum-foreign", lambda rows: [rows[0], rows[0], rows[1]]),
    "a signature that its keeper didn't make": quorum(
        "quorum-signature", lambda rows: [*rows[:2], (rows[2][0], bytes(64))]
    ),
    "a signature of nobody in the roster": quorum(
        "quorum-foreign", lambda rows: [*rows[:2], ((9).to_bytes(2, "big"), rows[2][1])]
    ),
    "a statement that only sites make": Lie(lambda liar, peer, true: Ready(true.context), "statement-unknown"),
    "shares of another set after the release": Lie(_survivors_again, "second-survivors", late=True),
}

RESULTS: dict[str, Lie] = {
    "other survivors than were signed": Lie(
        lambda liar, peer, true: dataclasses.replace(true, survivors=positions_bytes([0, 1, 2])), "result-foreign"
    )
}

LIES: dict[type[Statement], dict[str, Lie]] = {
    Plan: PLANS,
    Delivery: DELIVERIES,
    Freeze: FREEZES,
    UploadReceipt: RECEIPTS,
    Survivors: SURVIVORS,
    Quorum: QUORUMS,
    Result: RESULTS,
}
"""By the true statement that each lie stands for."""


def told_with(liar: Liar, signed: Signed, peer: str) -> list[Signed]:
    """The statement with all lies that stand for it: before it, or behind it."""
    for kind, lies in LIES.items():
        if (true := opened(kind, signed)) is not None:
            made = {name: lie.make(liar, peer, true) for name, lie in lies.items()}
            out = {name: item if isinstance(item, Signed) else item.signed(liar.key) for name, item in made.items()}
            early = [out[name] for name, lie in lies.items() if not lie.late]
            return [*early, signed, *(out[name] for name, lie in lies.items() if lie.late)]
    return [signed]
