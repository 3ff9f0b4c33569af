"""The operator's view: one message from the hub's state, the roster and the counts."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from coordinator.hub import Hub
from coordinator.presence import STAGES, Presence
from coordinator.rounds import ATOM_INCOMPLETE, Round, Seat
from coordinator.store import Member, MemberState
from protos import control_pb2 as pb
from protos import session_pb2
from wire import Identity

if TYPE_CHECKING:
    from coordinator.daemon import Daemon
    from coordinator.membership import Membership

RUN_STATES: Final = ("preparing", "waiting", "training", "evaluating", "merging", "finished")
"""What a run may be doing."""

PARTICIPANT_STATES: Final = ("invited", "revoked", "away", "preparing", *STAGES, "done")
"""What a participant may be doing: its place in the roster, in the run, and what it says itself."""

# A message has 4 MiB, and a status is made many times: it has so many rounds, and parts of participants in rounds.
_ROUNDS: Final = 100
_SEATS: Final = 4_000

_NUMBERS: Final = ("norm", "share", "weight", "kept_fraction", "score", "distance", "factor")


def view(hub: Hub, message: str, now_s: float) -> pb.Status:
    """Everything ``fedloom coordinator status`` shows."""
    state = hub.machine.state
    current = state.open_round()
    hub.past.follow(state)
    refusals: dict[str, int] = {}
    for (code, _), count in hub.store.refusals().items():
        refusals[code] = refusals.get(code, 0) + count
    return pb.Status(
        federation=hub.plan.federation,
        run_id=hub.plan.run_id,
        state=phase(hub),
        round=current.number if current else 0,
        rounds=hub.plan.rounds.count,
        version=state.version,
        model=session_pb2.Blob(digest=bytes.fromhex(state.digest), size=state.size),
        participants=_participants(hub, current, now_s),
        history=[_round(item, now_s) for item in _recent(state.rounds)],
        refusals=refusals,
        message=message,
        visibility=hub.plan.visibility,
        guarantee=hub.guarantee,
        buffer_size=hub.plan.rounds.buffer_size if hub.plan.rounds.asynchronous else 0,
        buffered=_buffered(hub, current),
        closed_rounds=hub.past.rounds,
        closed_seconds=hub.past.seconds,
        staleness=hub.past.staleness if hub.plan.rounds.asynchronous else {},
    )


def present(daemon: Daemon, membership: Membership, now_s: float) -> pb.Status:
    """The view at this moment, of the daemon's run or of what there is before it; with the federation's root."""
    if daemon.hub is None:
        shown = preparing(membership.members.federation, daemon.message, daemon.store.members())
    else:
        shown = view(daemon.hub, daemon.message, now_s)
    shown.root = membership.describe()
    return shown


def preparing(federation: str, message: str, members: list[Member]) -> pb.Status:
    """The view before there is a run."""
    return pb.Status(
        federation=federation,
        state="preparing",
        message=message,
        participants=[pb.ParticipantStatus(name=member.name, state=_roster_state(member)) for member in members],
    )


def phase(hub: Hub) -> str:
    """What the run is doing, in one word."""
    state = hub.machine.state
    current = state.open_round()
    if state.finished is not None:
        return "finished"
    if current is None:
        return "waiting"
    if current.sealed:
        return "merging"
    return "training" if current.purpose == "train" else "evaluating"


def _recent(rounds: Sequence[Round]) -> list[Round]:
    """The newest rounds, in order: at least one, and no more than fit."""
    found: list[Round] = []
    seats = 0
    for item in reversed(rounds):
        seats += len(item.seats)
        if found and (seats > _SEATS or len(found) == _ROUNDS):
            break
        found.append(item)
    return found[::-1]


def _buffered(hub: Hub, current: Round | None) -> int:
    """Updates in the open buffer of asynchronous rounds."""
    filling = current is not None and hub.plan.rounds.asynchronous and current.purpose == "train"
    return len(current.done()) if current is not None and filling else 0


def _participants(hub: Hub, current: Round | None, now_s: float) -> list[pb.ParticipantStatus]:
    budgets = hub.budgets() if hub.plan.privacy.placement != "off" else {}
    found = []
    for member in hub.store.members():
        status = _participant(hub, member, current, now_s)
        receipt = budgets.get(member.name)
        if receipt is not None:
            status.budget.CopyFrom(
                pb.BudgetStatus(
                    spent=receipt.spent,
                    left=receipt.left,
                    budget=receipt.budget,
                    delta=receipt.delta,
                    unit=str(receipt.unit),
                    round=receipt.round,
                )
            )
        found.append(status)
    return found


def _participant(hub: Hub, member: Member, current: Round | None, now_s: float) -> pb.ParticipantStatus:
    known = hub.presence.get(member.name)
    seat = current.seats.get(member.name) if current else None
    status = pb.ParticipantStatus(name=member.name, state=_state(member, known, current, seat))
    if member.certificate_pem:
        status.certificate_expires = Identity.parse(member.certificate_pem).expires.isoformat(timespec="seconds")
    if known is not None:
        status.examples, status.done, status.total = known.examples, known.done, known.total
        status.silent_s = now_s - known.heard_s
        if known.connected and known.absence is not None:
            status.away_until, status.away_reason = rfc3339(known.absence.until_s), known.absence.reason
        task = hub.machine.state.pace.tasks.get(member.name)
        if task is not None:
            status.round = task.round
        elif current is not None and seat is not None and seat.outcome == "pending":
            status.round = current.number
    return status


def _state(member: Member, known: Presence | None, current: Round | None, seat: Seat | None) -> str:
    if member.state is not MemberState.ENROLLED:
        return str(member.state)
    if known is None or not known.connected:
        return "away"
    if known.ready and known.absence is not None and not known.absence.working:
        return "away"
    if not known.ready:
        return "preparing"
    if current is None:  # what it last said, it said of a round that is over
        return "idle"
    if seat is not None and seat.outcome == "done":
        return "done"
    return known.stage


def _roster_state(member: Member) -> str:
    return "away" if member.state is MemberState.ENROLLED else str(member.state)


def _round(item: Round, now_s: float) -> pb.RoundStatus:
    weights = [
        (seat.examples, seat.metrics["loss"])
        for seat in item.seats.values()
        if "loss" in seat.metrics and seat.examples
    ]
    total = sum(weight for weight, _ in weights)
    loss = sum(weight * value for weight, value in weights) / total if total else math.nan
    metrics = item.revealed.metrics if item.revealed is not None else {}
    return pb.RoundStatus(
        round=item.number,
        version=item.version or 0,
        seconds=(item.closed_s if item.closed_s is not None else now_s) - item.opened_s,
        model=session_pb2.Blob(digest=bytes.fromhex(item.digest)) if item.digest else None,
        weighted_loss=metrics.get("loss", loss),
        metrics=metrics,
        merge=_merge(item.report) if item.report else None,
        failures=[
            f"attempt {attempt.failed.attempt}: {attempt.failed.code}: {attempt.failed.message}"
            for attempt in item.attempts
            if attempt.failed is not None
        ]
        + [
            f"left out: {group.label}: {group.reason}"
            for group in (item.revealed.groups if item.revealed is not None else ())
            if group.reason
        ],
        participants=[
            pb.ParticipantRound(
                name=name,
                outcome=outcome(item, seat),
                examples=seat.examples,
                metrics=seat.metrics,
                evaluation=seat.evaluation,
                staleness=item.staleness(name),
            )
            for name, seat in sorted(item.seats.items())
        ],
    )


def _merge(report: Mapping[str, Any]) -> pb.MergeReport:
    """A stored report; numbers that JSON doesn't have are stored as text."""
    return pb.MergeReport(
        rule=report["rule"],
        tolerated=report["tolerated"],
        remaining=report["remaining"],
        kappa=_number(report["kappa"]),
        updates=[_update(item) for item in report["participants"]],
        warnings=report["warnings"],
    )


def _update(item: Mapping[str, Any]) -> pb.MergedUpdate:
    numbers: dict[str, Any] = {name: _number(item[name]) for name in _NUMBERS}
    return pb.MergedUpdate(participant=item["participant"], verdict=item["verdict"], reason=item["reason"], **numbers)


def _number(value: float | str | None) -> float | None:
    return None if value is None else float(value)


def outcome(item: Round, seat: Seat) -> str:
    """A seat's outcome for a person: "merged" once its update is in a version, with the code of a refusal.

    "left out" with a code is for who is in a sum of a group that is no sum of well-formed updates, "sat out" for who
    was ready when another one of its atom wasn't.
    """
    if seat.code == ATOM_INCOMPLETE:
        return "sat out"
    if seat.outcome == "done" and seat.code:
        return f"left out: {seat.code}"
    if seat.outcome == "done":
        if item.purpose == "evaluate":
            return "scored"
        return "merged" if item.version is not None else "done"
    return f"{seat.outcome}: {seat.code}" if seat.outcome in ("refused", "declined") else seat.outcome


def rfc3339(at_s: float) -> str:
    """Seconds since the epoch as RFC 3339, UTC."""
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat(timespec="seconds")
