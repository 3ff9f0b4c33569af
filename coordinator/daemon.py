"""The coordinator's daemon: carries out the hub's actions on a real network, a real disk and a real clock."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar

from coordinator.actions import Action, Check, Close, Find, Merge, Send, Unmask, Wake
from coordinator.aggregation import Intake, MergeResult, reveal
from coordinator.hub import Hub
from coordinator.rounds import BeginMerge
from coordinator.store import Store
from privacy.secure_aggregation.errors import SecureAggregationError
from protos import session_pb2 as pb
from wire import BlobStore, FedloomError, RefusedError, ResourceError

_log = logging.getLogger("fedloom.coordinator")

# How long to wait before trying again what failed for want of a resource (a full disk).
_RETRY_S: Final = 15.0

# Messages that may wait on one participant's stream. A peer that reads slower than it is written to is dropped, not
# buffered: it reconnects and is told what it missed.
_OUTBOX: Final = 256

# Between two sweeps for what nothing needs any more: where versions are made in quick succession, not after each.
_SWEEP_S: Final = 1.0


# As long as more than so many wait, nothing is read from the peer: its own messages can't fill its outbox.
_ROOM: Final = 64

# A stream that is to end is cut off so much later, if its peer still hasn't read what was put before.
_LINGER_S: Final = 10.0

_T = TypeVar("_T")


class Outbox:
    """The messages waiting for one participant's stream: at most ``_OUTBOX``, and at most so many bytes.

    Made by the task that writes the stream.

    Args:
        most_bytes: Of what may wait. A single message may be larger.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._waiting: collections.deque[pb.FromCoordinator] = collections.deque()
        self._bytes = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._ended = False
        self._writer = asyncio.current_task()
        self._cut: asyncio.TimerHandle | None = None

    def put(self, message: pb.FromCoordinator) -> bool:
        """Append a message, unless the stream is to end; False if the peer doesn't keep up."""
        if self._ended:
            return True
        size = message.ByteSize()
        if self._waiting and (len(self._waiting) >= _OUTBOX or self._bytes + size > self._most_bytes):
            return False
        self._waiting.append(message)
        self._bytes += size
        self._changed()
        return True

    def end(self) -> None:
        """End the stream behind what was put; not much later even if the peer reads none of it."""
        if not self._ended:
            self._ended = True
            self._changed()
            if self._writer is not None:
                self._cut = asyncio.get_running_loop().call_later(_LINGER_S, self._writer.cancel)

    def closed(self) -> None:
        """The stream has ended."""
        if self._cut is not None:
            self._cut.cancel()
        self._waiting.clear()

    async def get(self) -> pb.FromCoordinator | None:
        """The next message, or None for the end."""
        while not self._waiting:
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()
        message = self._waiting.popleft()
        self._bytes -= message.ByteSize()
        self._changed()
        return message

    async def room(self) -> None:
        """Return when the peer has read most of what waits, or the stream is to end."""
        await self._room.wait()

    def _changed(self) -> None:
        self._news.set()
        if self._ended or (len(self._waiting) <= _ROOM and 2 * self._bytes <= self._most_bytes):
            self._room.set()
        else:
            self._room.clear()


class Daemon:
    """A running coordinator. All methods belong to one event loop.

    Args:
        store: The coordinator's memory; closed by the caller.
        blobs: Models and updates on disk.
        lease_s: See ``coordinator.hub.Hub``.
        outbox_bytes: Of messages that may wait for one participant to read them.
    """

    def __init__(self, store: Store, blobs: BlobStore, *, lease_s: float, outbox_bytes: int) -> None:
        self.store = store
        self.blobs = blobs
        self.lease_s = lease_s
        self.hub: Hub | None = None
        self._intake: Intake | None = None
        self._complaint = ""
        self._changed = asyncio.Event()
        self._inputs: list[tuple[Callable[[], list[Action]], asyncio.Future[None]]] = []
        self._swept_s = -_SWEEP_S
        self._ready = asyncio.Event()
        self._outboxes: dict[str, Outbox] = {}
        self._outbox_bytes = outbox_bytes
        self._checks: dict[str, tuple[Check, asyncio.Task[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._work: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def message(self) -> str:
        """One sentence for a person: what is wrong with this machine, or what the run waits for."""
        if self.hub is None:
            return self._complaint or "The coordinator is preparing the run."
        return self._complaint or self.hub.machine.waiting_for()

    def open(self, hub: Hub) -> None:
        """Start serving this run; participants that came early have been waiting for it."""
        self.hub = hub
        self._intake = Intake(self.blobs, hub.plan)
        self._collect_garbage()
        self._ready.set()
        self.perform(hub.start(time.time()))

    async def opened(self) -> Hub:
        """The hub, as soon as there is one."""
        await self._ready.wait()
        assert self.hub is not None
        return self.hub

    async def failed(self) -> None:
        """Return never, or raise what makes it impossible to go on."""
        await asyncio.shield(self._failure)

    async def close(self) -> None:
        """Stop working; streams are ended."""
        if self._timer is not None:
            self._timer.cancel()
        for outbox in list(self._outboxes.values()):
            outbox.end()
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    # ---- streams ----------------------------------------------------------------------------------------------------

    def attach(self, peer: str) -> Outbox:
        """A participant's stream is open. An older stream of the same participant ends."""
        older = self._outboxes.pop(peer, None)
        if older is not None:
            text = f"{peer} opened another stream; this one ends"
            hint = "Is the same participant running twice?"
            older.put(pb.FromCoordinator(rejection=pb.Rejection(code="replaced", message=text, hint=hint)))
            older.end()
        outbox = self._outboxes[peer] = Outbox(self._outbox_bytes)
        return outbox

    def detach(self, peer: str, outbox: Outbox) -> None:
        """A stream is closed."""
        outbox.closed()
        if self._outboxes.get(peer) is outbox:
            del self._outboxes[peer]
            if self.hub is not None:
                self.hub.disconnected(peer, time.time())
                self._notify()

    def connected(self, peer: str) -> bool:
        """Whether this participant has a stream."""
        return peer in self._outboxes

    async def receive(self, peer: str, message: pb.FromParticipant) -> None:
        """A message arrived on a participant's stream. What is read next waits until this returns."""
        hub = await self.opened()
        if message.WhichOneof("body") == "update_ready" and peer in self._checks:
            # Checking takes long, so heartbeats pass it. What is said again meanwhile has its answer coming; another
            # update waits, since it would be a second check.
            check, checking = self._checks[peer]
            said = message.update_ready
            if (said.task_id, said.update.digest.hex()) == (check.task_id, check.contribution.digest):
                hub.heard(peer, time.time())
                return
            await asyncio.wait({checking})
        await self._decide(lambda: hub.receive(peer, message, time.time()))

    # ---- actions ----------------------------------------------------------------------------------------------------

    def perform(self, actions: Iterable[Action]) -> None:
        """Carry out what the hub decided."""
        for action in actions:
            if isinstance(action, Send):
                self._send(action.peer, action.message)
            elif isinstance(action, Close):
                self._end(action.peer)
            elif isinstance(action, Wake):
                self._wake_at(action.at_s)
            elif isinstance(action, Check):
                self._checks[action.peer] = (action, self._spawn(self._check(action)))
            elif isinstance(action, Find):
                self._find(action)
            elif isinstance(action, Unmask):
                self._spawn(self._unmask(action))
            else:
                self._spawn(self._merge(action))
        self._notify()

    def _send(self, peer: str, message: pb.FromCoordinator) -> None:
        outbox = self._outboxes.get(peer)
        if outbox is not None and not outbox.put(message):
            _log.warning("%s doesn't read its messages; its stream is ended", peer, extra={"participant": peer})
            self._end(peer)

    def _end(self, peer: str) -> None:
        outbox = self._outboxes.get(peer)
        if outbox is not None:
            outbox.end()

    def _wake_at(self, at_s: float) -> None:
        if at_s >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at_s
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at_s - time.time()), self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        if self.hub is None:
            return
        try:
            self.perform(self.hub.tick(time.time()))
            self._complaint = ""
        except FedloomError as error:
            self._say(error)
            self._wake_at(time.time() + _RETRY_S)

    async def _check(self, check: Check) -> None:
        try:
            await self._checked(check)
        finally:
            if (latest := self._checks.get(check.peer)) is not None and latest[0] is check:
                del self._checks[check.peer]

    async def _checked(self, check: Check) -> None:
        assert self.hub is not None and self._intake is not None
        hub, digest = self.hub, bytes.fromhex(check.contribution.digest)
        refusal: RefusedError | None = None
        try:
            if not self.blobs.has(digest):
                raise RefusedError("update-missing", f"{check.peer} announced an update that it hasn't uploaded")
            await asyncio.to_thread(self._intake.take, check.round, check.contribution)
        except RefusedError as error:
            refusal = error
        await self._insist(lambda: self._decide(lambda: hub.checked(check, refusal, time.time())))

    def _find(self, find: Find) -> None:
        """A masked update looks like noise: whether all of it is here is all that can be checked."""
        assert self.hub is not None
        refusal: RefusedError | None = None
        if not self.blobs.has(find.digest):
            refusal = RefusedError("update-missing", f"{find.peer} announced a masked update that it hasn't uploaded")
        elif (size := self.blobs.size(find.digest)) != find.size:
            refusal = RefusedError(
                "update-shape", f"the masked update of {find.peer} has {size} bytes; this round's have {find.size}"
            )
        self.perform(self.hub.found(find, refusal, time.time()))

    async def _unmask(self, action: Unmask) -> None:
        assert self.hub is not None
        hub, order = self.hub, action.order
        started = time.perf_counter()
        try:
            revealed = await self._insist(lambda: asyncio.to_thread(reveal, self.blobs, order))
        except SecureAggregationError as error:
            implausible = error
            _log.error("round %d: %s: %s", order.round, error.code, error.message)
            await self._insist(lambda: self._decide(lambda: hub.implausible(order, implausible, time.time())))
            return
        await self._insist(lambda: self._decide(lambda: hub.unmasked(order, revealed, time.time())))
        _log.info(
            "round %d: unmasked the sum of %d updates in %.3f s",
            order.round,
            sum(len(group.members) for group in order.order.groups),
            time.perf_counter() - started,
            extra={"run": hub.plan.run_id, "round": order.round},
        )

    async def _merge(self, action: Merge) -> None:
        assert self.hub is not None and self._intake is not None
        hub, intake = self.hub, self._intake
        order = action.order
        merging = hub.machine.state.merging()
        updates = len(merging.done()) if merging is not None else 0
        started = time.perf_counter()
        try:
            merged = await self._insist(lambda: asyncio.to_thread(intake.merge, order, action.base))
        except RefusedError as error:
            refusal = error
            await self._insist(lambda: self._decide(lambda: hub.unmergeable(order, refusal, time.time())))
            return
        await self._insist(lambda: self._commit(order, merged))
        _log.info(
            "round %d: merged %d updates into version %d in %.3f s",
            order.round,
            updates,
            hub.machine.state.version,
            time.perf_counter() - started,
            extra={"run": hub.plan.run_id, "round": order.round},
        )
        # Only here: while a merge is at work, its new files are in nobody's list yet.
        if time.monotonic() - self._swept_s >= _SWEEP_S:
            self._collect_garbage()

    async def _insist(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do it, and again after a while as long as this machine lacks something (a full disk): nothing is given up."""
        while True:
            try:
                done = await work()
                self._complaint = ""
                return done
            except ResourceError as error:
                self._say(error)
                await asyncio.sleep(_RETRY_S)

    async def _commit(self, order: BeginMerge, merged: MergeResult) -> None:
        assert self.hub is not None
        self.perform(self.hub.merged(order, merged, time.time()))

    async def _decide(self, decision: Callable[[], list[Action]]) -> None:
        """Have the hub decide, in one transaction with all that comes at this moment; then carry it out."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inputs.append((decision, done))
        if len(self._inputs) == 1:
            asyncio.get_running_loop().call_soon(self._turn)
        await done

    def _turn(self) -> None:
        assert self.hub is not None
        # A stream that has ended meanwhile has said nothing more.
        inputs = [(decision, done) for decision, done in self._inputs if not done.cancelled()]
        self._inputs.clear()
        outcomes = self.hub.together([decision for decision, _ in inputs])
        for (_, done), outcome in zip(inputs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                done.set_exception(outcome)
            else:
                self.perform(outcome)
                done.set_result(None)

    def _say(self, error: FedloomError) -> None:
        """Something is wrong with this machine: say it, keep going."""
        self._complaint = f"{error.message} {error.hint}".strip()
        _log.error("%s: %s", error.code, self._complaint)
        self._notify()

    def _collect_garbage(self) -> None:
        assert self.hub is not None
        self.blobs.keep_only(self.hub.blobs_in_use(), self.hub.machine.uploads_wanted)
        self._swept_s = time.monotonic()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._failure.done():
            self._failure.set_exception(error)

    def _notify(self) -> None:
        """Wake who waits for a change; who begins to wait after this waits for the next one."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_changed(self, timeout_s: float) -> None:
        """Return when something changed, or after the time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)
