"""A hub and whole sites in memory: the deployed agents, journals and masks on real files, without network and torch.

Messages pass as serialised protobuf, in order for each site. Training is a vector that follows from the site's name and
the task's seed; merging is a name that follows from the round's number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from federated import Federation
from rounds_world import make_plan

from coordinator.aggregation import reveal
from coordinator.hub import Action as HubAction
from coordinator.hub import Check, Close, Find, Hub, Merge, Send, Unmask, Wake
from coordinator.planning import run_records
from coordinator.store import open_store
from participant.actions import (
    Abandon,
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
    Stop,
    Work,
)
from participant.actions import Action as AgentAction
from participant.agent import Agent
from participant.masking import MASKS, Masking
from participant.membership import PinnedMembers
from participant.rules import SiteRules
from participant.store import ParticipantStore
from participant.work import Job, Outcome, Prepared
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.statements import Upload, kind_of
from protos import session_pb2 as pb
from tests.support.merges import merge_result
from wire import BlobStore, RefusedError, RunPlan

LEASE_S = 30.0
EXAMPLES = 40


def trained_update(name: str, job: Job, dimension: int) -> np.ndarray:
    """What a site's training gives: the same for the same site, round and seed."""
    seed = hashlib.sha256(f"{name}/{job.round}/{job.seed}".encode()).digest()
    return np.random.default_rng(list(seed)).normal(0, 0.05, dimension).astype(np.float32)


class Site:
    """One institution with its folder. At each of its ``points`` it can be killed: ``fuse`` counts down to it."""

    def __init__(self, world: SitesWorld, name: str, rules: SiteRules) -> None:
        self.world = world
        self.name = name
        self.rules = rules
        self.folder = world.folder / name
        self.folder.mkdir()
        self.life = 0
        self.points = 0
        self.fuse: int | None = None
        self.trained: list[str] = []
        self.stopped: RefusedError | None = None
        self.said: list[pb.FromParticipant] = []
        self._open()

    def _open(self) -> None:
        federation = self.world.federation
        self.store = ParticipantStore(self.folder / "journal.sqlite")
        self.blobs = BlobStore(self.folder / "blobs")
        self.masking = Masking(self.folder / MASKS, self.name, self.store, self.blobs)
        members = PinnedMembers.load(self.store, federation.members.federation, federation.root.public)
        self.agent = Agent(
            self.name,
            self.store,
            members,
            key=federation.key(self.name),
            rules=self.rules,
            software="test",
            clock=lambda: self.world.now,
        )

    def restart(self) -> None:
        """kill -9 and a new start."""
        self.life += 1
        self.masking.close()
        self.store.close()
        self.world.hub.disconnected(self.name, self.world.now)
        self._open()
        self.perform(self.agent.connected())

    def _killed(self) -> bool:
        self.points += 1
        if self.fuse is None:
            return False
        self.fuse -= 1
        if self.fuse >= 0:
            return False
        self.fuse = None
        self.restart()
        return True

    def perform(self, actions: Iterable[AgentAction]) -> None:
        for action in actions:
            if self._killed():
                return
            if isinstance(action, Say):
                self.said.append(action.message)
                self.world.to_hub(self.name, action.message)
            elif isinstance(action, Prepare):
                manifest = bytes.fromhex(action.plan.initial.manifest_hash)
                prepared = Prepared(manifest_hash=manifest, examples=EXAMPLES)
                self._later(lambda prepared=prepared: self.agent.prepared(prepared))
            elif isinstance(action, Fetch):
                self._later(lambda job=action.job: self.agent.fetched(job))
            elif isinstance(action, Work):
                if self.name not in self.world.slow:
                    self.work(action.job)
            elif isinstance(action, ExpandMask | MaskUpdate | PushMasked):
                self._later(lambda action=action: self._sum(action))
            elif isinstance(action, DropMask):
                self.masking.drop(action.context)
            elif isinstance(action, Reconnect):
                self.perform(self.agent.connected())
            elif isinstance(action, Stop):
                self.stopped = action.error
            else:
                assert isinstance(action, Abandon | Finished | Pause | Push | Resume)

    def work(self, job: Job) -> None:
        self._later(lambda: self._worked(job))

    def _later(self, what: Callable[[], list[AgentAction]]) -> None:
        self.world.later(lambda: self.perform(what()), self)

    def _worked(self, job: Job) -> list[AgentAction]:
        scores = {"accuracy": 0.5, "loss": 2.0} if job.evaluate else {}
        if not job.train:
            return self.agent.worked(job, Outcome(examples=EXAMPLES, metrics={}, evaluation=scores))
        self.trained.append(job.task_id)
        content = trained_update(self.name, job, self.world.plan.initial.dimension).astype("<f4").tobytes()
        digest = put(self.blobs, content)
        outcome = Outcome(digest=digest, size=len(content), examples=EXAMPLES, metrics={"loss": 1.0}, evaluation=scores)
        return self.agent.worked(job, outcome)

    def _sum(self, action: ExpandMask | MaskUpdate | PushMasked) -> list[AgentAction]:
        context = action.context if isinstance(action, PushMasked) else action.context.hash
        try:
            if isinstance(action, ExpandMask):
                self.masking.expand(action)
                return self.agent.expanded(context)
            if isinstance(action, MaskUpdate):
                return self.agent.masked(context, self.masking.mask(action))
            self.world.hub.may_upload(self.name, action.digest, action.size)
            self.world.blobs.put_file(self.blobs.path(action.digest))
            return self.agent.masked_pushed(context)
        except Exception as error:
            if not hasattr(error, "code"):
                raise
            return self.agent.unmaskable(context, error)

    def uploads(self) -> set[bytes]:
        """Digests of the masked updates that it has announced."""
        bodies = [item.statement.body for item in self.said if item.WhichOneof("body") == "statement"]
        return {Upload.parse(body).digest for body in bodies if kind_of(body) == "upload"}


class SitesWorld:
    """A federation of ``count`` sites with a run open; nobody is connected yet."""

    def __init__(
        self,
        folder: Path,
        count: int = 3,
        *,
        dimension: int = 33,
        plan: RunPlan | None = None,
        rules: SiteRules | None = None,
        rounds: dict[str, Any] | None = None,
        secure: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.names = [f"site-{index}" for index in range(count)]
        self.federation = Federation.of("clinics", *self.names)
        self.plan = plan or make_plan(dimension, {"min_participants": count, **(rounds or {})}, secure or {})
        self.store = open_store(folder / "coordinator.sqlite")
        self.store.create_run(*run_records(self.plan, 0.0))
        self.blobs = BlobStore(folder / "coordinator-blobs")
        self.now = 1_000_000.0
        self.queue: list[tuple[Site | None, int, bool, Callable[[], None]]] = []
        self.slow: set[str] = set()
        self.lost: set[str] = set()  # kinds of statements that never arrive
        self.hub = Hub(self.store, self.plan, self.federation, lease_s=LEASE_S, now_s=self.now)
        self.actions: list[HubAction] = []
        self.wakes: list[float] = []
        self.revealed: list[Unmask] = []
        self.sites = {name: Site(self, name, rules or SiteRules()) for name in self.names}

    # ---- network and time -------------------------------------------------------------------------------------------

    def later(self, what: Callable[[], None], site: Site | None = None, *, wire: bool = False) -> None:
        """Work of this site, or of the coordinator; or a message between the two, which is lost with either."""
        self.queue.append((site, site.life if site is not None else 0, wire or site is None, what))

    def settle(self) -> None:
        while self.queue:
            site, life, _, what = self.queue.pop(0)
            if site is None or site.life == life:
                what()

    def to_hub(self, name: str, message: pb.FromParticipant) -> None:
        if message.WhichOneof("body") == "statement" and kind_of(message.statement.body) in self.lost:
            return
        data = message.SerializeToString()
        self.later(
            lambda: self.perform(self.hub.receive(name, pb.FromParticipant.FromString(data), self.now)),
            self.sites[name],
            wire=True,
        )

    def connect(self, *names: str) -> None:
        for name in names or self.names:
            site = self.sites[name]
            site.perform(site.agent.connected())
        self.settle()

    def restart_hub(self) -> None:
        """kill -9 of the coordinator; everyone connects again."""
        self.store.close()
        self.store = open_store(self.folder / "coordinator.sqlite")
        self.hub = Hub(self.store, self.plan, self.federation, lease_s=LEASE_S, now_s=self.now)
        self.queue = [item for item in self.queue if not item[2]]
        self.perform(self.hub.start(self.now))
        for name in self.names:
            site = self.sites[name]
            site.perform(site.agent.connected())

    def pass_time(self, seconds: float) -> None:
        """Everyone that is connected is heard of meanwhile."""
        self.now += seconds
        for known in self.hub.presence.values():
            if known.connected:
                known.expires_s = self.now + LEASE_S
        self.perform(self.hub.tick(self.now))
        self.settle()

    def close(self) -> None:
        self.store.close()
        for site in self.sites.values():
            site.masking.close()
            site.store.close()

    # ---- the coordinator's daemon -----------------------------------------------------------------------------------

    def perform(self, actions: Iterable[HubAction]) -> None:
        for action in actions:
            self.actions.append(action)
            if isinstance(action, Send):
                self._to_site(action.peer, action.message)
            elif isinstance(action, Close):
                self.hub.disconnected(action.peer, self.now)
            elif isinstance(action, Find):
                self._find(action)
            elif isinstance(action, Unmask):
                self.later(lambda action=action: self._unmask(action))
            elif isinstance(action, Merge):
                self.later(lambda action=action: self._merge(action))
            elif isinstance(action, Wake):
                self.wakes.append(action.at_s)
            else:
                assert isinstance(action, Check)

    def _to_site(self, name: str, message: pb.FromCoordinator) -> None:
        site = self.sites[name]
        data = message.SerializeToString()
        self.later(lambda: site.perform(site.agent.received(pb.FromCoordinator.FromString(data))), site, wire=True)

    def _find(self, find: Find) -> None:
        missing = RefusedError("update-missing", f"{find.peer} announced a masked update that isn't here")
        self.perform(self.hub.found(find, None if self.blobs.has(find.digest) else missing, self.now))

    def _unmask(self, action: Unmask) -> None:
        try:
            revealed = reveal(self.blobs, action.order)
        except SecureAggregationError as error:
            self.perform(self.hub.implausible(action.order, error, self.now))
            return
        self.revealed.append(action)
        self.perform(self.hub.unmasked(action.order, revealed, self.now))

    def _merge(self, action: Merge) -> None:
        digest = hashlib.sha256(f"version {action.order.round}".encode()).hexdigest()
        self.perform(self.hub.merged(action.order, merge_result(digest, self.plan.initial.size), self.now))

    # ---- what came of it --------------------------------------------------------------------------------------------

    def mean(self, number: int) -> np.ndarray:
        """The mean update that a round revealed."""
        revealed = self.hub.machine.state.rounds[number - 1].revealed
        assert revealed is not None
        return np.fromfile(self.blobs.path(bytes.fromhex(revealed.digest)), "<f4")

    def sent(self, kind: str) -> list[tuple[str, Any]]:
        return [
            (action.peer, getattr(action.message, kind))
            for action in self.actions
            if isinstance(action, Send) and action.message.WhichOneof("body") == kind
        ]


def put(blobs: BlobStore, content: bytes) -> bytes:
    with blobs.writer(len(content)) as writer:
        writer.write(content)
        return writer.commit()
