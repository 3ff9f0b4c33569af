"""What the operator sees in a terminal: tables for a person, plain lines for a pipe, JSON for a program."""

from __future__ import annotations

import datetime
import json
import math
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from google.protobuf import json_format
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from protos import control_pb2 as pb

_RECENT = 5
_UPDATES = 20
_SEATS = 8
_COLUMNS = ("participant", "state", "progress", "examples", "last heard", "epsilon spent", "left", "at delta")


def as_dict(status: pb.Status) -> dict[str, Any]:
    """The status for ``--json``: every field, digests in hex, NaN as null."""
    body = json_format.MessageToDict(
        status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    body["model"] = {"digest": status.model.digest.hex(), "size": status.model.size}
    for item, source in zip(body["history"], status.history, strict=True):
        item["model"] = source.model.digest.hex()
        if math.isnan(source.weighted_loss):
            item["weighted_loss"] = None
        for update in item.get("merge", {}).get("updates", ()):
            update.update({name: None for name in ("norm", "distance", "score") if update.get(name) == "NaN"})
    return body


def show(status: pb.Status) -> None:
    """Print the status once."""
    Console().print(render(status))


def render(status: pb.Status) -> Group:
    """The status as rich renderables: headline, participants, recent rounds, who sees what, the root, refusals."""
    head = Text(f"{status.federation}  {status.run_id or '-'}  ", style="bold")
    head.append(f"{status.state}  ", style="green" if status.state == "finished" else "cyan")
    head.append(f"version {status.version} of {status.rounds}", style="dim")
    parts: list[Any] = [head, Text(status.message), _participants(status)]
    if status.history:
        parts.append(_rounds(status))
    merged = next((item for item in reversed(status.history) if item.HasField("merge")), None)
    if merged is not None:
        parts += _merge(merged)
    for item in status.history[-_RECENT:]:
        parts += [Text(f"Round {item.round}, {text}", style="yellow") for text in item.failures[-_RECENT:]]
    parts += [Text(text, style="dim") for text in (status.visibility, status.guarantee) if text]
    if status.root:
        parts.append(Text(status.root, style="dim"))
    if status.refusals:
        counts = ", ".join(f"{code} {count}" for code, count in sorted(status.refusals.items()))
        parts.append(Text(f"Refused so far: {counts}", style="yellow"))
    return Group(*parts)


def _participants(status: pb.Status) -> Table:
    """Columns that nobody has an entry in are left out: in secure sums nobody tells its number of examples."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    rows = [_participant_cells(item) for item in status.participants]
    columns = [name for name in _COLUMNS if name in ("participant", "state") or any(row[name] for row in rows)]
    for name in columns:
        table.add_column(name, justify="left" if name in ("participant", "state", "progress") else "right")
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    return table


def _participant_cells(item: pb.ParticipantStatus) -> dict[str, str]:
    working = item.state in ("downloading", "training", "evaluating", "summing", "uploading")
    here = item.state not in ("invited", "away", "revoked")
    budget = item.budget if item.HasField("budget") else None
    return {
        "participant": item.name,
        "state": _state(item),
        "progress": f"{100 * item.done // item.total} %" if working and item.total else "",
        "examples": str(item.examples or ""),
        "last heard": f"{item.silent_s:.0f} s ago" if here else "",
        "epsilon spent": f"{budget.spent:.3g}" if budget else "",
        "left": f"{budget.left:.3g}" if budget else "",
        "at delta": f"{budget.delta:.1g}" if budget else "",
    }


def _state(item: pb.ParticipantStatus) -> str:
    """What a participant does, and until when it takes no tasks, by the clock of whoever looks."""
    if not item.away_until:
        return item.state
    until = datetime.datetime.fromisoformat(item.away_until).astimezone()
    soon = until - datetime.datetime.now(datetime.UTC) < datetime.timedelta(hours=18)
    when = f"{until:%H:%M}" if soon else f"{until:%a %d %b %H:%M}"
    return f"away until {when}" if item.state == "away" else f"{item.state}, then away until {when}"


def _rounds(status: pb.Status) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("round", "version", "seconds", "loss", "participants"):
        table.add_column(name, justify="left" if name == "participants" else "right")
    for item in status.history[-_RECENT:]:
        table.add_row(*_round_cells(item))
    return table


def _round_cells(item: pb.RoundStatus) -> list[str]:
    loss = "" if math.isnan(item.weighted_loss) else f"{item.weighted_loss:.4f}"
    return [str(item.round), str(item.version or ""), f"{item.seconds:.1f}", loss, _outcomes(item.participants)]


def _outcomes(seats: Sequence[pb.ParticipantRound]) -> str:
    """Each by name where they are few; else those by name that didn't fare as most did."""
    if len(seats) <= _SEATS:
        return ", ".join(f"{seat.name} {seat.outcome}{_behind(seat)}" for seat in seats)
    names: dict[str, list[str]] = {}
    for seat in seats:
        names.setdefault(seat.outcome, []).append(seat.name)
    (most, many), *others = sorted(names.items(), key=lambda found: -len(found[1]))
    parts = [f"{len(many)} {most}"]
    for outcome, found in others:
        more = f" and {len(found) - _SEATS} more" if len(found) > _SEATS else ""
        parts.append(f"{', '.join(found[:_SEATS])}{more} {outcome}")
    return "; ".join(parts)


def _behind(seat: pb.ParticipantRound) -> str:
    """How old an update was in asynchronous rounds."""
    return f" ({seat.staleness} behind)" if seat.staleness else ""


def _merge(item: pb.RoundStatus) -> list[Any]:
    """The last merge: a line for each update that wasn't simply kept, the others counted."""
    report = item.merge
    kept = [update for update in report.updates if update.verdict == "kept"]
    what = "groups" if any("+" in update.participant for update in report.updates) else "updates"
    head = f"Round {item.round} merged by {report.rule}: {len(kept)} of {len(report.updates)} {what} kept as they were"
    hostile = f"{report.tolerated} hostile {'one' if report.tolerated == 1 else 'ones'}"
    parts: list[Any] = [Text(f"{head}, {hostile} tolerated.")]
    others = sorted((item for item in report.updates if item.verdict != "kept"), key=lambda item: item.verdict)[::-1]
    if others:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in (what.removesuffix("s"), "verdict", "norm", "weight", "why"):
            table.add_column(name, justify="right" if name in ("norm", "weight") else "left", overflow="fold")
        for update in others[:_UPDATES]:
            style = "red" if update.verdict == "rejected" else "yellow"
            norm = "" if math.isnan(update.norm) else f"{update.norm:.3g}"
            table.add_row(
                update.participant, Text(update.verdict, style=style), norm, f"{update.weight:.3g}", update.reason
            )
        parts.append(table)
        if len(others) > _UPDATES:
            parts.append(Text(f"and {len(others) - _UPDATES} more: --json shows all", style="dim"))
    return [*parts, *(Text(f"Round {item.round}: {text}", style="yellow") for text in report.warnings)]


class Follower:
    """Shows a stream of statuses: a live display on a terminal, a line for each change elsewhere."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._live = Live(console=Console(), refresh_per_second=8) if sys.stdout.isatty() and not as_json else None
        self._last = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, status: pb.Status) -> None:
        """Show the next status."""
        if self._live is not None:
            self._live.update(render(status))
            return
        if self._as_json:
            line = json.dumps(as_dict(status), sort_keys=True)
        else:
            line = f"{status.state}: version {status.version} of {status.rounds}. {status.message}"
        if line != self._last:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            self._last = line
