"""The participant's daemon: carries out the agent's actions on a real network, a real disk and the site's data."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, Final, Literal

import grpc

from participant.actions import (
    Abandon,
    Action,
    DropMask,
    ExpandMask,
    Fetch,
    Finished,
    MaskUpdate,
    Pause,
    Prepare,
    Push,
    PushMasked,
    Reconnect,
    Resume,
    Say,
    Work,
)
from participant.agent import Agent
from participant.budget import SiteBudget
from participant.ledger import BudgetLedger
from participant.masking import MASKS, Masking
from participant.membership import PinnedMembers
from participant.site import Site
from participant.store import ParticipantStore
from participant.work import Job, Workbench
from privacy.secure_aggregation.errors import SecureAggregationError
from protos import blobs_pb2_grpc, session_pb2_grpc
from protos import session_pb2 as pb
from wire import (
    BlobStore,
    FedloomError,
    RefusedError,
    ResourceError,
    UnreachableError,
    client_credentials,
    connect,
    download,
    error_from,
    explain_handshake,
    make_csr,
    upload,
)
from wire.transfer import Progress

_log = logging.getLogger("fedloom.participant")

_EOF: Final[Any] = vars(grpc.aio)["EOF"]  # missing from the stubs
_FIRST_RETRY_S: Final = 0.2
_LAST_RETRY_S: Final = 15.0
_FIRST_WAIT_S: Final = 1.0  # for what the coordinator has no room for now
_JOURNAL_TASKS: Final = 10_000  # settled ones that are remembered
_LONGEST_SILENCE_S: Final = 5.0
_CLOCK_CHECK_S: Final = 1.0
_RENEWAL_CHECK_S: Final = 3_600.0
_RENEWAL_TIMEOUT_S: Final = 20.0


@dataclasses.dataclass
class _Progress:
    done: int = 0
    total: int = 0


class Daemon:
    """A running participant.

    Args:
        site: Its folder: identity, addresses, data, policy.
        store: Its journal; closed by the caller.
        blobs: Models and updates on its disk.
        ledger: Its privacy ledger; closed by the caller.
        software: What it calls itself to the operator.
    """

    def __init__(
        self, site: Site, store: ParticipantStore, blobs: BlobStore, ledger: BudgetLedger, *, software: str
    ) -> None:
        store.prune(_JOURNAL_TASKS)
        self._site = site
        self._store = store
        self._blobs = blobs
        members = PinnedMembers.load(store, site.federation, site.root)
        budget = SiteBudget(ledger, site.config.data, site.rules.privacy, site.config.session_address)
        self._agent = Agent(
            site.name, store, members, key=site.signing_key, rules=site.rules, software=software, budget=budget
        )
        self._masking = Masking(site.folder / MASKS, site.name, store, blobs)
        self._bench = Workbench(site.name, site.config.data, frozenset(site.config.allow))
        self._outgoing: asyncio.Queue[pb.FromParticipant] = asyncio.Queue()
        self._blob_stub: blobs_pb2_grpc.BlobsAsyncStub | None = None  # of the present connection
        self._pushing: set[bytes] = set()  # digests of masked updates on their way
        self._tasks: set[asyncio.Task[None]] = set()
        self._transfers: set[asyncio.Task[None]] = set()  # those of them that end with their connection
        self._cancelled: dict[str, threading.Event] = {}
        self._open = threading.Event()  # cleared while a training is paused
        self._open.set()
        self._progress = _Progress()
        self._end: asyncio.Future[Finished | None] = asyncio.get_running_loop().create_future()
        self._once = False
        self._broken = asyncio.Event()
        self.connections = 0

    async def run(self, *, once: bool) -> Finished | None:
        """Take part until the task is cancelled, or until the run ends if ``once``.

        Raises:
            RefusedError: the coordinator turned this site away, or the site's policy refuses its plan.
        """
        self._once = once
        self._spawn(self._watch_clock())
        retry_s = _FIRST_RETRY_S
        while True:
            before = self.connections
            reason: FedloomError | None = None
            try:
                await self._connection()
            except grpc.aio.AioRpcError as error:
                reason = await self._explain(error_from(error))
                if isinstance(reason, RefusedError):
                    raise reason from None
            if self._end.done():
                return self._end.result()
            retry_s = _FIRST_RETRY_S if self.connections > before else min(2 * retry_s, _LAST_RETRY_S)
            # Sites that lost the same coordinator shouldn't all come back in the same moment.
            pause_s = retry_s * random.uniform(0.5, 1.5)
            if reason is not None:
                _log.warning("%s; trying again in %.1f s", reason.message, pause_s)
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Stop working: what is trained is in the journal."""
        for event in self._cancelled.values():
            event.set()
        self._open.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self) -> None:
        """One connection, from its opening to its end."""
        site = self._site
        async with connect(
            site.config.session_address, client_credentials(site.credentials), site.federation
        ) as channel:
            self._blob_stub = blobs_pb2_grpc.BlobsStub(channel)
            self._outgoing = asyncio.Queue()
            self._broken = asyncio.Event()
            self._welcomed = asyncio.Event()
            self._perform(self._agent.connected())
            # The stub's annotation wants an iterator; without one the call is written to, as grpc.aio allows.
            attach: Any = session_pb2_grpc.SessionStub(channel).Attach
            call = attach()
            helpers = [
                asyncio.create_task(self._write(call)),
                asyncio.create_task(self._beat()),
                asyncio.create_task(self._renew(channel)),
            ]
            try:
                await self._read(call)
            finally:
                call.cancel()
                # What was on its way is asked for again over the next connection, and goes on where it was. None of it
                # may live on beside that, and break the new connection for the old one's failures.
                ending = [*helpers, *self._transfers]
                for task in ending:
                    task.cancel()
                self._blob_stub = None
                await asyncio.gather(*ending, return_exceptions=True)

    async def _read(self, call: Any) -> None:
        first = True
        reading = asyncio.create_task(call.read())
        broken = asyncio.create_task(self._broken.wait())
        try:
            while True:
                await asyncio.wait({reading, broken, self._end}, return_when=asyncio.FIRST_COMPLETED)
                # gRPC reports a call that it gave up by itself as cancelled.
                if self._end.done() or broken.done() or reading.cancelled():
                    return
                message = await reading
                if message is _EOF:
                    code = await call.code()
                    if code is not grpc.StatusCode.OK:
                        raise grpc.aio.AioRpcError(
                            code,
                            await call.initial_metadata(),
                            await call.trailing_metadata(),
                            await call.details(),
                            None,
                        )
                    return
                if first:
                    first = False
                    self.connections += 1
                    _log.info("connected to %s as %s", self._site.config.session_address, self._site.name)
                self._perform(self._agent.received(message))
                self._welcomed.set()
                reading = asyncio.create_task(call.read())
        finally:
            reading.cancel()
            broken.cancel()

    async def _write(self, call: Any) -> None:
        while True:
            message = await self._outgoing.get()
            # A broken stream is noticed by the reader; what was lost is said again after the next check-in.
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(message)

    async def _beat(self) -> None:
        # The lease is known only after the welcome, and may be shorter than a first sleep that guesses it.
        await self._welcomed.wait()
        while True:
            await asyncio.sleep(min(_LONGEST_SILENCE_S, self._agent.lease_s / 4))
            # One that would wait behind others, since the coordinator reads slowly, says nothing more than they do.
            if self._outgoing.empty():
                self._perform(self._agent.heartbeat(self._progress.done, self._progress.total))

    async def _watch_clock(self) -> None:
        """Keep the site's hours, also while nobody is connected."""
        while True:
            await asyncio.sleep(_CLOCK_CHECK_S)
            self._perform(self._agent.tick())

    async def _renew(self, channel: grpc.aio.Channel) -> None:
        """Get a new certificate for this site's key in good time; the next connection shows it."""
        while True:
            if self._site.renewal_due(datetime.datetime.now(datetime.UTC)):
                own = self._site.credentials
                request = pb.RenewRequest(csr_pem=make_csr(own.key_pem, self._site.name))
                try:
                    reply = await session_pb2_grpc.SessionStub(channel).Renew(request, timeout=_RENEWAL_TIMEOUT_S)
                    self._site = self._site.renewed(reply.certificate_pem)
                    _log.info("the certificate is renewed until %s", self._site.credentials.identity.expires.date())
                except grpc.aio.UsageError:
                    return
                except grpc.aio.AioRpcError as error:
                    _log.warning("the certificate couldn't be renewed: %s", error_from(error).message)
                except RefusedError as error:
                    _log.error("%s", error.message)
            await asyncio.sleep(_RENEWAL_CHECK_S)

    async def _explain(self, error: FedloomError) -> FedloomError:
        """Why the connection failed: TLS doesn't tell a client whose certificate was turned away."""
        site = self._site
        return await explain_handshake(
            error,
            site.config.enrolment_address,
            site.credentials.ca_pem,
            site.federation,
            site.credentials.certificate_pem,
        )

    # ---- actions ----------------------------------------------------------------------------------------------------

    def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Say):
                if not self._agent.may_say(action.message):
                    continue
                self._outgoing.put_nowait(action.message)
                if action.message.WhichOneof("body") in ("update_ready", "evaluation_ready", "declined"):
                    self._progress = _Progress()
            elif isinstance(action, Prepare):
                self._spawn(self._prepare(action))
            elif isinstance(action, Fetch):
                self._transfer(self._fetch(action))
            elif isinstance(action, Work):
                self._spawn(self._work(action))
            elif isinstance(action, Push):
                self._transfer(self._push(action))
            elif isinstance(action, Abandon):
                if (event := self._cancelled.get(action.task_id)) is not None:
                    event.set()
                self._open.set()
            elif isinstance(action, Pause):
                self._open.clear()
            elif isinstance(action, Resume):
                self._open.set()
            elif isinstance(action, Finished):
                _log.info("run %s is over (%s); version %d is final", action.run_id, action.reason, action.version)
                if self._once and not self._end.done():
                    self._end.set_result(action)
            elif isinstance(action, Reconnect):
                self._reconnect(action.reason)
            elif isinstance(action, PushMasked):
                self._transfer(self._sum(action))
            elif isinstance(action, ExpandMask | MaskUpdate):
                self._spawn(self._sum(action))
            elif isinstance(action, DropMask):
                self._masking.drop(action.context)
            elif not self._end.done():
                self._end.set_exception(action.error)

    async def _prepare(self, action: Prepare) -> None:
        # What goes wrong here (data that can't be read, a plan that the site doesn't allow) ends the daemon: see
        # _finished.
        prepared = await asyncio.to_thread(self._bench.prepare, action.plan.learning, action.plan)
        self._perform(self._agent.prepared(prepared))

    async def _fetch(self, action: Fetch) -> None:
        job = action.job
        stub = self._blob_stub
        if stub is None:
            self._agent.interrupted(job)
            return
        try:
            self._collect_garbage(keep=job.base_digest)
            if not self._blobs.has(job.base_digest):
                await self._patiently(lambda: self._download(stub, job), "quota")
        except asyncio.CancelledError:
            self._agent.interrupted(job)
            raise
        except UnreachableError as error:
            self._agent.interrupted(job)
            self._reconnect(str(error))
        except FedloomError as error:
            self._perform(self._agent.failed(job, error))
        else:
            self._perform(self._agent.fetched(job))

    async def _work(self, action: Work) -> None:
        job = action.job
        event = self._cancelled[job.task_id] = threading.Event()

        def cancelled() -> bool:
            self._open.wait()  # the training's thread stands still while the site is closed
            return event.is_set()

        try:
            outcome = await asyncio.to_thread(
                self._bench.perform, job, self._blobs.path(job.base_digest), self._blobs, self._note, cancelled
            )
        except Exception as error:
            if not event.is_set():
                self._perform(self._agent.failed(job, error))
            return
        finally:
            self._cancelled.pop(job.task_id, None)
        self._perform(self._agent.worked(job, outcome))

    async def _sum(self, action: ExpandMask | MaskUpdate | PushMasked) -> None:
        """A step of a secure sum."""
        try:
            if isinstance(action, ExpandMask):
                await asyncio.to_thread(self._masking.expand, action)
                self._perform(self._agent.expanded(action.context.hash))
            elif isinstance(action, MaskUpdate):
                digest = await asyncio.to_thread(self._masking.mask, action)
                self._perform(self._agent.masked(action.context.hash, digest))
            else:
                await self._push_masked(action)
        except (FedloomError, SecureAggregationError) as error:
            context = action.context if isinstance(action, PushMasked) else action.context.hash
            self._perform(self._agent.unmaskable(context, error))

    async def _push_masked(self, action: PushMasked) -> None:
        """Bring a masked update to the coordinator. After a reconnection several of its statements ask for it."""
        digest = action.digest
        if digest in self._pushing:
            return
        self._pushing.add(digest)
        try:
            if await self._upload(digest):
                self._perform(self._agent.masked_pushed(action.context))
        finally:
            self._pushing.discard(digest)

    async def _push(self, action: Push) -> None:
        try:
            if await self._upload(action.digest):
                self._perform(self._agent.pushed(action.task_id))
        except ResourceError:
            self._perform(self._agent.postponed(action.task_id))
        except RefusedError as error:
            _log.warning("the update of %s can't be handed over: %s", action.task_id, error.message)
            self._perform(self._agent.undeliverable(action.task_id, error))

    async def _upload(self, digest: bytes) -> bool:
        """Bring a blob to the coordinator; False where a new connection has to go on.

        Raises:
            RefusedError: the coordinator won't have it, or its file is gone.
            ResourceError: "day-over": the site doesn't move so much any more today.
        """
        stub = self._blob_stub
        if stub is None:  # what was masked between two connections is asked for again over the next
            return False
        if not self._blobs.has(digest):
            raise RefusedError("update-missing", "the update's file is gone from this site's disk")
        try:
            await self._patiently(lambda: self._send(stub, digest), "quota", "disk-full")
            return True
        except UnreachableError as error:
            self._reconnect(str(error))
        except RefusedError as error:
            if error.code != "replaced":  # by our own later upload
                raise
        return False

    async def _download(self, stub: blobs_pb2_grpc.BlobsAsyncStub, job: Job) -> None:
        with self._metered("received") as (before, moved):
            await download(stub, job.base_digest, job.base_size, self._blobs, before=before, progress=moved)

    async def _send(self, stub: blobs_pb2_grpc.BlobsAsyncStub, digest: bytes) -> None:
        with self._metered("sent") as (before, moved):
            await upload(stub, self._blobs.path(digest), digest, before=before, progress=moved)

    async def _patiently(self, transfer: Callable[[], Awaitable[object]], *codes: str) -> None:
        """Transfer something, waiting out what the coordinator has no room for now."""
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                await transfer()
                return
            except ResourceError as error:
                if error.code not in codes:
                    raise
                _log.warning("the coordinator can't do this now: %s; trying again", error.message)
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))
                wait_s = min(2 * wait_s, _LAST_RETRY_S)

    def _reconnect(self, reason: str) -> None:
        """Begin again with a new connection, where all that is owed is asked for again."""
        _log.warning("%s; connecting again", reason)
        self._broken.set()

    @contextlib.contextmanager
    def _metered(self, direction: Literal["sent", "received"]) -> Iterator[tuple[Callable[[int], None], Progress]]:
        """A transfer that is counted against the site's day: what to call before it, and on the way."""
        meter = self._agent.schedule.meter(direction)

        def moved(done: int, total: int) -> None:
            meter.moved(done, total)
            self._note(done, total)

        try:
            yield meter.before, moved
        finally:
            meter.close()

    def _note(self, done: int, total: int) -> None:
        """Called from worker threads; two numbers need no lock."""
        self._progress = _Progress(done, total)

    def _collect_garbage(self, keep: bytes) -> None:
        """Old models and delivered updates go; what the journal still owes to the coordinator stays."""
        owed = {record.update_digest for record in self._store.undelivered()}
        masked = self._agent.secure.digest
        self._blobs.keep_only({keep, *owed, *([masked] if masked else [])})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _transfer(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin a transfer over the present connection, with which it ends."""
        self._transfers.add(self._spawn(work))

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._transfers.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._end.done():
            self._end.set_exception(error)
