"""The ``fedloom`` command in processes that kill themselves at a chosen step.

``python -m tests.e2e.dying`` has torch loaded and starts each process as a fork of itself, which takes a fraction of
the second that a new interpreter needs. It reads one JSON object a line:

    {"arguments": ["participant", "run", ...], "folder": where, "log": file, "deaths": ["masked-2-after", ...],
     "attack": "", "writes": "", "name": "site-1", "company": ["coordinator"]}

and answers ``{"started": pid}``; when a process ends it says ``{"ended": pid, "status": n}``, negative for a signal. At
the end of its input it kills what still runs. Who dies of one of its deaths takes its ``company`` along, if it runs:
a SIGKILL within some milliseconds, whatever that process is at. It writes no core dump and takes no signal itself. With
an attack the site is hostile (``tests.e2e.hostile``).

A death ``step-round-moment`` is a SIGKILL to oneself, once: *before* the step of that round is on the disk, or *after*
it is, and then before anything follows from it: no statement is sent, no work begun. Steps of a participant are the
kinds of its notes (planned, delivered, frozen, masked, survived, released) and its tasks' (task, trained); steps of a
coordinator are the kinds of its own statements (plan, accepted, freeze, survivors, quorum) and of its facts
(AttemptOpened, SumRevealed, RoundSealed, VersionCommitted). With ``"writes": name`` in the order, the process has the
steps of its durable writes instead, each kind numbered by itself (``tests.e2e.writes``).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import json
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

_PR_SET_PDEATHSIG = 1
_NOTES = ("planned", "delivered", "frozen", "masked", "survived", "released")


class Fuse:
    """Kills this process at each of its deaths, once; that it has happened lies in ``folder``, for the next life."""

    def __init__(self, deaths: Iterable[str], folder: Path) -> None:
        self._deaths = set(deaths)
        self._folder = folder

    @contextlib.contextmanager
    def around(self, steps: Iterable[tuple[str, int]]) -> Iterator[None]:
        """These steps (kind, round) get durable inside the block."""
        reached = list(steps)
        self._burn(reached, "before")
        yield
        self._burn(reached, "after")

    def _burn(self, steps: list[tuple[str, int]], moment: str) -> None:
        due = [self._folder / f"died-{kind}-{number}-{moment}" for kind, number in steps]
        due = [mark for mark in due if mark.name.removeprefix("died-") in self._deaths and not mark.exists()]
        for mark in due:
            mark.touch()
        if due:
            (self._folder / f"burnt-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)


def _wrap(cls: type, method: str, fuse: Fuse, steps: Callable[..., list[tuple[str, int]]]) -> None:
    inner = getattr(cls, method)

    @functools.wraps(inner)
    def outer(self: Any, *args: Any, **keywords: Any) -> Any:
        with fuse.around(steps(self, *args, **keywords)):
            return inner(self, *args, **keywords)

    setattr(cls, method, outer)


def watch_participant(fuse: Fuse) -> None:
    """Die at steps of a site's journal."""
    from participant.store import ParticipantStore
    from privacy.secure_aggregation.memory import Note

    rounds: dict[bytes, int] = {}

    def notes(store: Any, changes: Any) -> list[tuple[str, int]]:
        found = [item for item in changes if isinstance(item, Note) and item.kind in _NOTES]
        for item in [*found, *(store.notes() if any(note.context not in rounds for note in found) else ())]:
            if item.kind == "planned":
                rounds[item.context] = _planned_round(item.body)
        return [(item.kind, rounds[item.context]) for item in found]

    _wrap(ParticipantStore, "change_notes", fuse, notes)
    _wrap(ParticipantStore, "accept", fuse, lambda store, job: [("task", job.round)])
    _wrap(ParticipantStore, "trained", fuse, lambda store, task_id, **_: [("trained", _task_round(task_id))])


def _planned_round(body: bytes) -> int:
    from privacy.secure_aggregation.context import RoundContext
    from privacy.transcript import decode

    return RoundContext.parse(cast(Any, decode(body))[0]).round


def _task_round(task_id: str) -> int:
    return int(task_id.split("/")[1].partition(".")[0])


def watch_coordinator(fuse: Fuse) -> None:
    """Die at steps of the coordinator's log."""
    from coordinator.store.sql import SqlStore
    from privacy.secure_aggregation.context import RoundContext
    from privacy.secure_aggregation.statements import Plan, kind_of

    def number(store: Any, run_id: str, item: Any) -> int:
        first = item if kind_of(item.body) == Plan.KIND else store.statements(run_id, item.context)[0]
        return RoundContext.parse(Plan.parse(first.body).context).round

    def steps(
        store: Any, run_id: str, transitions: Any, checkpoint: Any = None, *, statements: Any = (), results: Any = ()
    ) -> list[tuple[str, int]]:
        own = [item for item in statements if not item.sender]
        facts = [(item.kind, json.loads(item.body).get("round", 0)) for item in transitions]
        return [(kind_of(item.body), number(store, run_id, item)) for item in own] + facts

    _wrap(SqlStore, "append", fuse, steps)


# ---- processes ------------------------------------------------------------------------------------------------------


def _child(order: dict[str, Any]) -> int:
    """What a forked process does: the command, with its output in a file."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    os.chdir(order["folder"])
    folder = Path(order["log"]).parent
    fuse = Fuse(order["deaths"], folder)
    if order["writes"]:
        from tests.e2e.writes import watch_writes

        watch_writes(order["writes"], folder, fuse.around)
    elif order["arguments"][:2] == ["participant", "run"]:
        watch_participant(fuse)
    elif order["arguments"][:2] == ["coordinator", "start"]:
        watch_coordinator(fuse)
    if order["attack"]:
        from tests.e2e.hostile import turn

        turn(order["attack"])
    import fedloom

    code = fedloom.main(order["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _start(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = _child(order)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


def _end_company(pid: int, order: dict[str, Any], running: dict[int, dict[str, Any]]) -> None:
    """Kill those that a process takes along when it has died of one of its deaths."""
    mark = Path(order["log"]).parent / f"burnt-{pid}"
    if not mark.exists():
        return
    mark.unlink()
    for other, its in running.items():
        if its["log"] != order["log"] and its["name"] in order["company"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)


def _say(**message: int) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Start processes as told until the input ends."""
    # What takes long to load and starts neither a thread nor a channel. A private site needs torch's compiler, too, for
    # its gradients of single records.
    for name in ("sklearn.datasets", "torch._dynamo", "core_model.tasks", "participant.daemon", "coordinator.daemon"):
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork of a process with threads may hang"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: dict[int, dict[str, Any]] = {}
    pending = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.02)
        if ready:
            data = os.read(0, 1 << 16)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = _start(order)
                running[pid] = order
                _say(started=pid)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _end_company(pid, running.pop(pid), running)
                _say(ended=pid, status=os.waitstatus_to_exitcode(status))
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
