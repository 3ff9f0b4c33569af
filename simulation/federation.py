"""A whole federation in one process: the daemons' own state machines over an in-memory transport and a virtual clock.

What is simulated is the network and the clock. The hub, the agents, the stores (SQLite files), the update files and
the merge are the deployed ones, and messages pass as serialised protobuf: that is why the same seed gives the
byte-identical model here and over gRPC.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from coordinator.aggregation import merge_blobs
from coordinator.hub import Action as HubAction
from coordinator.hub import Check, Close, Hub, Merge, Send
from coordinator.planning import make_plan, next_run_id, run_records
from coordinator.rounds import Round, RunState
from coordinator.store import Invitation, Member, MemberState, Store, open_store
from participant.agent import Abandon, Agent, Fetch, Finished, Prepare, Push, Reconnect, Say, Work
from participant.agent import Action as AgentAction
from participant.store import ParticipantStore
from participant.work import Job, Outcome, Prepared
from protos import session_pb2 as pb
from simulation import workers as work
from simulation.clock import VirtualClock
from wire import (
    BlobStore,
    DataError,
    FederationConfig,
    RefusedError,
    RunPlan,
    SimulatedInstitution,
    check_update,
    software,
)

# A deterministic failure doesn't go away by asking again; so often is often enough to see that.
_ATTEMPTS: Final = 3


@dataclasses.dataclass(frozen=True)
class Event:
    """Something worth showing while the simulation goes on.

    ``kind`` is "committed" (``round`` says which round), "alone" (``name`` trained another round alone), or the kind
    of a message that ``name`` sent.
    """

    kind: str
    name: str = ""
    round: Round | None = None


class _Participant:
    """A simulated site: the agent, its journal, and its virtual pace."""

    def __init__(self, federation: Federation, institution: SimulatedInstitution, folder: Path) -> None:
        self.name = institution.name
        self.seconds = institution.seconds
        folder.mkdir()
        self.store = ParticipantStore(folder / "journal.sqlite")
        self.blobs = BlobStore(folder / "blobs")
        self.agent = Agent(self.name, self.store, software=software())
        self._federation = federation
        self._abandoned: set[str] = set()

    def perform(self, actions: Iterable[AgentAction]) -> None:
        """Carry out what the agent decided."""
        federation = self._federation
        for action in actions:
            if isinstance(action, Say):
                federation.to_hub(self.name, action.message)
            elif isinstance(action, Prepare):
                future = federation.workers.submit(self.name, work.prepare, action.plan.learning)
                self._later(0.0, functools.partial(self._prepared, future))
            elif isinstance(action, Fetch):
                self._later(0.0, functools.partial(self.agent.fetched, action.job))
            elif isinstance(action, Work):
                self._work(action.job)
            elif isinstance(action, Push):
                self._push(action)
            elif isinstance(action, Abandon):
                self._abandoned.add(action.task_id)
            elif isinstance(action, Reconnect):
                self.perform(self.agent.connected())
            elif not isinstance(action, Finished):
                raise action.error

    def beat(self) -> None:
        """Renew the lease, and again later."""
        self.perform(self.agent.heartbeat())
        self._federation.clock.after(self.agent.lease_s / 4, self.beat)

    def _prepared(self, future: concurrent.futures.Future[Prepared]) -> list[AgentAction]:
        return self.agent.prepared(future.result())

    def _later(self, delay_s: float, what: Callable[[], list[AgentAction]]) -> None:
        self._federation.clock.after(delay_s, lambda: self.perform(what()))

    def _work(self, job: Job) -> None:
        base = self._federation.blobs.path(job.base_digest)
        future = self._federation.workers.submit(self.name, work.perform, job, base, self.blobs.folder)
        # Scoring is quick beside training; it takes a tenth of the virtual time.
        seconds = self.seconds if job.train else self.seconds / 10
        self._later(seconds, functools.partial(self._worked, job, future))

    def _worked(self, job: Job, future: concurrent.futures.Future[Outcome]) -> list[AgentAction]:
        if job.task_id in self._abandoned:
            future.cancel()
            return []
        try:
            return self.agent.worked(job, future.result())
        except Exception as error:
            if not hasattr(error, "code"):
                raise
            return self.agent.failed(job, error)

    def _push(self, action: Push) -> None:
        """The upload: under the same rules as over gRPC, from this site's disk to the coordinator's."""
        try:
            self._federation.hub.may_upload(self.name, action.digest, action.size)
        except RefusedError as error:
            self._federation.hub.count(error, self.name)
            self.perform(self.agent.undeliverable(action.task_id, error))
            return
        self._federation.blobs.put_file(self.blobs.path(action.digest))
        self.blobs.remove(action.digest)
        self._later(0.0, functools.partial(self.agent.pushed, action.task_id))


class Federation:
    """A federation about to run.

    Args:
        config: The configuration, its learning tables complete.
        initial: The checkpoint file of version 0.
        folder: Where stores and blobs go; must be empty.
        workers: Where participants train.
        watch: Told of everything worth showing.
    """

    def __init__(
        self,
        config: FederationConfig,
        initial: Path,
        folder: Path,
        workers: work.Workers,
        watch: Callable[[Event], None],
    ) -> None:
        self.clock = VirtualClock()
        self.workers = workers
        place = folder / "coordinator"
        place.mkdir()
        self.blobs = BlobStore(place / "blobs")
        self.store = open_store(place / "coordinator.sqlite")
        self.plan: RunPlan = make_plan(config, next_run_id(config.federation.name, None), initial)
        self.blobs.put_file(initial)
        self.store.create_run(*run_records(self.plan, self.clock.now_s))
        institutions = config.simulation.institutions
        _enrol(self.store, [item.name for item in institutions], self.clock.now_s)
        self.hub = Hub(self.store, self.plan, lease_s=config.coordinator.lease_s, now_s=self.clock.now_s)
        self._watch = watch
        self.participants = {item.name: _Participant(self, item, folder / item.name) for item in institutions}

    def run(self) -> RunState:
        """Run all rounds.

        Raises:
            RefusedError: a participant was turned away, or turned the plan away.
            DataError: a round was repeated again and again without the updates it needs.
        """
        self._perform(self.hub.start(self.clock.now_s))
        for participant in self.participants.values():
            participant.perform(participant.agent.connected())
            self.clock.after(self.hub.lease_s / 4, participant.beat)
        state = self.hub.machine.state
        self.clock.run(lambda: state.finished is not None or self._stuck())
        if state.finished is None:
            raise DataError(
                f"the simulation can't go on: {self.hub.machine.waiting_for()} {self._complaints()}".strip(),
                "Lower [rounds] min_updates, or repair what the participants complain about.",
            )
        return state

    def _stuck(self) -> bool:
        current = self.hub.machine.state.open_round()
        return current is not None and any(seat.attempt > _ATTEMPTS for seat in current.seats.values())

    def _complaints(self) -> str:
        current = self.hub.machine.state.open_round()
        return " ".join(current.complaints[-_ATTEMPTS:]) if current else ""

    def close(self) -> None:
        """Close the stores."""
        self.store.close()
        for participant in self.participants.values():
            participant.store.close()

    def to_hub(self, name: str, message: pb.FromParticipant) -> None:
        """The network, one way: a message as bytes, delivered in order."""
        data = message.SerializeToString()
        self.clock.after(
            0.0,
            lambda: self._perform(self.hub.receive(name, pb.FromParticipant.FromString(data), self.clock.now_s)),
        )
        kind = message.WhichOneof("body") or ""
        if kind != "progress":
            self.clock.after(0.0, lambda: self._watch(Event(kind, name)))

    def _perform(self, actions: Iterable[HubAction]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._to_participant(action.peer, action.message)
            elif isinstance(action, Check):
                self.clock.after(0.0, functools.partial(self._check, action))
            elif isinstance(action, Merge):
                self.clock.after(0.0, functools.partial(self._merge, action))
            elif isinstance(action, Close):
                self.hub.disconnected(action.peer, self.clock.now_s)
            else:
                self.clock.at(action.at_s, lambda: self._perform(self.hub.tick(self.clock.now_s)))

    def _to_participant(self, name: str, message: pb.FromCoordinator) -> None:
        """The network, the other way."""
        participant = self.participants[name]
        data = message.SerializeToString()
        self.clock.after(
            0.0, lambda: participant.perform(participant.agent.received(pb.FromCoordinator.FromString(data)))
        )

    def _check(self, check: Check) -> None:
        error: RefusedError | None = None
        try:
            check_update(self.blobs.path(bytes.fromhex(check.contribution.digest)), self.plan.initial.dimension)
        except RefusedError as refused:
            error = refused
        self._perform(self.hub.checked(check, error, self.clock.now_s))

    def _merge(self, action: Merge) -> None:
        merged = merge_blobs(self.blobs, self.plan, action.order, action.base)
        actions = self.hub.merged(action.order, merged.digest.hex(), merged.size, merged.state, self.clock.now_s)
        state = self.hub.machine.state
        committed = next(item for item in reversed(state.rounds) if item.version == state.version)
        self._watch(Event("committed", round=committed))
        self._perform(actions)
        self.blobs.keep_only(self.hub.blobs_in_use())


def _enrol(store: Store, names: list[str], now_s: float) -> None:
    """Put the institutions into the roster. Nothing is certified: there is no network to certify anyone for."""
    for name in names:
        secret_hash = name.encode().ljust(32, b"\0")[:32]
        store.invite(Invitation(name=name, secret_hash=secret_hash, expires_s=now_s + 60.0))
        store.enrol(Member(name=name, state=MemberState.ENROLLED, since_s=now_s), secret_hash, now_s)
