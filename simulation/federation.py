"""A whole federation in one process: the daemons' own state machines over an in-memory transport and a virtual clock.

What is simulated is the network and the clock. The hub, the agents, the stores (SQLite files), the update files and
the merge are the deployed ones, and messages pass as serialised protobuf: that is why the same seed gives the
byte-identical model here and over gRPC.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from coordinator.actions import Action as HubAction
from coordinator.actions import Check, Close, Find, Merge, Send, Unmask, Wake
from coordinator.aggregation import Intake, reveal
from coordinator.hub import Hub
from coordinator.planning import make_plan, next_run_id, run_records
from coordinator.rounds import Round, RunState
from coordinator.store import Invitation, Member, MemberState, Store, open_store
from core_model.config import LearningConfig
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
    Work,
)
from participant.actions import Action as AgentAction
from participant.agent import Agent
from participant.budget import SiteBudget
from participant.ledger import BudgetLedger
from participant.masking import MASKS, Masking
from participant.membership import PinnedMembers
from participant.rules import PrivacyRules, ScheduleRules, SiteRules
from participant.site import LEDGER
from participant.store import ParticipantStore
from participant.work import Job, Outcome, Prepared
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.identities import COORDINATOR_NAME, Role
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import FederationRoot, MemberList
from protos import session_pb2 as pb
from simulation import workers as work
from simulation.adversary import Adversary, RoundAdversary, Surroundings
from simulation.attacks import behaviour
from simulation.clock import VirtualClock
from simulation.speeds import Speeds
from simulation.sybils import BufferAdversary
from wire import (
    BlobStore,
    DataError,
    FederationConfig,
    OpeningHours,
    RefusedError,
    RunPlan,
    SimulatedInstitution,
    software,
)

# A deterministic failure doesn't go away by asking again; so often is often enough to see that.
_ATTEMPTS: Final = 3

# So many deadlines without a new round or attempt, and nothing will ever happen.
_PATIENCE: Final = 20

# So long institutions may be closed, of which some have never been open together.
_LONGEST_CLOSED_S: Final = 15 * 86_400.0


@dataclasses.dataclass(frozen=True)
class Event:
    """Something worth showing while the simulation goes on.

    ``kind`` is "committed" (``round`` says which round), "alone" (``name`` trained another round alone), or the kind
    of a message that ``name`` sent.
    """

    kind: str
    name: str = ""
    round: Round | None = None


@dataclasses.dataclass(frozen=True)
class Identities:
    """The signing keys of a simulated federation. They are new in each simulation and never influence the model.

    Attributes:
        root: Certifies the others; in memory only.
        members: The verified list of the coordinator and all participants.
        signing_key: The coordinator's key.
        participants: The participants' keys, by name.
    """

    root: FederationRoot
    members: MemberList
    signing_key: SigningKey
    participants: dict[str, SigningKey]


class _Participant:
    """A simulated site: the agent, its journal, and its virtual pace."""

    def __init__(self, federation: Federation, institution: SimulatedInstitution, folder: Path) -> None:
        self.name = institution.name
        self.seconds = institution.seconds
        self.trainings = 0  # that were begun
        folder.mkdir()
        self.store = ParticipantStore(folder / "journal.sqlite")
        self.blobs = BlobStore(folder / "blobs")
        self.signing_key = federation.identities.participants[self.name]
        self.ledger = BudgetLedger(
            folder / LEDGER, self.signing_key, site=self.name, clock=lambda: federation.clock.now_s
        )
        # The list doesn't grow while a simulation runs, so nothing has to be kept.
        pinned = PinnedMembers(federation.identities.members, lambda entries: None)
        # On one machine there is nobody to hide from: plain averaging is allowed if the configuration asks for it.
        spec = federation.plan.privacy
        self.hours = OpeningHours.parse(institution.hours or (), institution.time_zone or "UTC")
        rules = SiteRules(
            allow_plain=True,
            privacy=PrivacyRules(epsilon=spec.epsilon, delta=spec.delta),
            schedule=ScheduleRules(hours=self.hours),
        )
        budget = SiteBudget(self.ledger, institution.data, rules.privacy, federation.plan.federation)
        clock = federation.clock
        self.agent = Agent(
            self.name,
            self.store,
            pinned,
            key=self.signing_key,
            rules=rules,
            software=software(),
            clock=lambda: clock.now_s,
            budget=budget,
        )
        self.masking = Masking(folder / MASKS, self.name, self.store, self.blobs)
        self.examples = 0
        self.outcomes: dict[int, Outcome] = {}
        self._federation = federation
        self._abandoned: set[str] = set()

    def perform(self, actions: Iterable[AgentAction]) -> None:
        """Carry out what the agent decided."""
        federation = self._federation
        for action in actions:
            if isinstance(action, Say):
                federation.to_hub(self.name, action.message)
            elif isinstance(action, Prepare):
                future = federation.workers.submit(self.name, work.prepare, action.plan)
                self._later(0.0, functools.partial(self._prepared, future))
            elif isinstance(action, Fetch):
                self._later(0.0, functools.partial(self.agent.fetched, action.job))
            elif isinstance(action, Work):
                self._work(action.job)
            elif isinstance(action, Push):
                self._push(action)
            elif isinstance(action, Abandon):
                self._abandoned.add(action.task_id)
            elif isinstance(action, ExpandMask | MaskUpdate | PushMasked):
                self._later(0.0, functools.partial(self._sum, action))
            elif isinstance(action, DropMask):
                self.masking.drop(action.context)
            elif isinstance(action, Reconnect):
                self.perform(self.agent.connected())
            elif not isinstance(action, Finished | Pause | Resume):  # simulated sites finish what they have begun
                raise action.error

    def beat(self) -> None:
        """Renew the lease, and again later."""
        self.perform(self.agent.heartbeat())
        self._federation.clock.after(self.agent.lease_s / 4, self.beat)

    def turn(self) -> None:
        """Whenever a window begins or ends."""
        now_s = self._federation.clock.now_s
        self.perform(self.agent.tick())
        closes_s = self.hours.open_until(now_s)
        change_s = self.hours.opens_at(now_s) if closes_s is None else closes_s
        if change_s < math.inf:
            self._federation.clock.at(change_s, self.turn)

    def _prepared(self, future: concurrent.futures.Future[Prepared]) -> list[AgentAction]:
        prepared = future.result()
        self.examples = prepared.examples
        if self._federation.adversary is not None:
            prepared = self._federation.adversary.announced(self.name, prepared)
        return self.agent.prepared(prepared)

    def _later(self, delay_s: float, what: Callable[[], list[AgentAction]]) -> None:
        self._federation.clock.after(delay_s, lambda: self.perform(what()))

    def _work(self, job: Job) -> None:
        base = self._federation.blobs.path(job.base_digest)
        future = self._federation.workers.submit(self.name, work.perform, job, base, self.blobs.folder)
        # Scoring is quick beside training; it takes a tenth of the virtual time.
        seconds = self.seconds / 10
        if job.train:
            seconds = self._federation.speeds.seconds(self.name, self.trainings)
            self.trainings += 1
        self._later(seconds, functools.partial(self._worked, job, future))

    def _worked(self, job: Job, future: concurrent.futures.Future[Outcome]) -> list[AgentAction]:
        adversary = self._federation.adversary
        if job.task_id in self._abandoned:
            future.cancel()
            if adversary is not None:
                adversary.failed(self.name, job)
            return []
        try:
            outcome = future.result()
            self.outcomes[job.round] = outcome
            self._federation.watch(Event("trained", self.name))
            if adversary is not None and not adversary.trained(self, job, outcome):
                return []
            return self.agent.worked(job, outcome)
        except Exception as error:
            if not hasattr(error, "code"):
                raise
            if adversary is not None:
                adversary.failed(self.name, job)
            return self.agent.failed(job, error)

    def hand_in(self, job: Job, outcome: Outcome) -> None:
        """Go on with what the attack made; see ``simulation.adversary``."""
        if job.task_id not in self._abandoned:
            self.perform(self.agent.worked(job, outcome))

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

    def _sum(self, action: ExpandMask | MaskUpdate | PushMasked) -> list[AgentAction]:
        """A step of a secure sum, as the daemon does it."""
        federation = self._federation
        try:
            if isinstance(action, ExpandMask):
                self.masking.expand(action)
                return self.agent.expanded(action.context.hash)
            if isinstance(action, MaskUpdate):
                return self.agent.masked(action.context.hash, self.masking.mask(action))
            federation.hub.may_upload(self.name, action.digest, action.size)
            federation.blobs.put_file(self.blobs.path(action.digest))
            self.blobs.remove(action.digest)
            return self.agent.masked_pushed(action.context)
        except Exception as error:
            if not hasattr(error, "code"):
                raise
            context = action.context if isinstance(action, PushMasked) else action.context.hash
            return self.agent.unmaskable(context, error)


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
        self.speeds = Speeds(config.simulation)
        self.workers = workers
        place = folder / "coordinator"
        place.mkdir()
        self.blobs = BlobStore(place / "blobs")
        self.store = open_store(place / "coordinator.sqlite")
        metrics = LearningConfig.model_validate(config.learning()).metrics()
        self.plan: RunPlan = make_plan(config, next_run_id(config.federation.name, None), initial, metrics)
        self.intake = Intake(self.blobs, self.plan)
        self.blobs.put_file(initial)
        self.store.create_run(*run_records(self.plan, self.clock.now_s))
        institutions = config.simulation.institutions
        names = [item.name for item in institutions]
        self.identities = _enrol(self.store, config.federation.name, names, self.clock.now_s)
        lease_s = config.coordinator.lease_s
        self.hub = Hub(self.store, self.plan, self.identities, lease_s=lease_s, now_s=self.clock.now_s)
        self.watch = watch
        self._seen, self._seen_s = (0, 0), self.clock.now_s
        self._wake_s = math.inf
        self._closed_s = self.clock.now_s  # when an institution was away last
        self.participants = {item.name: _Participant(self, item, folder / item.name) for item in institutions}
        self.adversary = self._adversary(config)

    def _adversary(self, config: FederationConfig) -> Adversary | None:
        section = config.simulation
        if section.attack is None:
            return None
        around = Surroundings(
            frozenset(section.hostile),
            self.plan,
            self.clock,
            current=lambda: self.hub.machine.state.open_round(),
            checkpoint=lambda job: self.blobs.path(job.base_digest),
        )
        kind = BufferAdversary if self.plan.rounds.asynchronous else RoundAdversary
        return kind(behaviour(section.attack, section.attack_settings), around)

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
            participant.turn()
        state = self.hub.machine.state
        self.clock.run(lambda: state.finished is not None or self._stuck())
        if state.finished is None:
            raise DataError(
                f"the simulation can't go on: {self.hub.machine.waiting_for()} {self._complaints()}".strip(),
                "Lower [rounds] min_updates, or repair what the participants complain about.",
            )
        self.clock.settle()  # the last receipts, and what the participants answer
        return state

    def _stuck(self) -> bool:
        current = self.hub.machine.state.open_round()
        seen = (len(self.hub.machine.state.rounds), len(current.attempts) if current else 0)
        if seen != self._seen:
            self._seen, self._seen_s = seen, self.clock.now_s
        if self.hub.machine.away:
            self._closed_s = self.clock.now_s
        waits_from_s = min(max(self._seen_s, self._closed_s), self._seen_s + _LONGEST_CLOSED_S)
        if self.clock.now_s > waits_from_s + _PATIENCE * self.plan.rounds.deadline_s:
            return True
        if current is None:
            return False
        failed = sum(1 for attempt in current.attempts if attempt.failed is not None)
        return failed > _ATTEMPTS or any(seat.attempt > _ATTEMPTS for seat in current.seats.values())

    def _complaints(self) -> str:
        current = self.hub.machine.state.open_round()
        return " ".join(current.complaints[-_ATTEMPTS:]) if current else ""

    def close(self) -> None:
        """Close the stores."""
        self.store.close()
        for participant in self.participants.values():
            participant.masking.close()
            participant.store.close()
            participant.ledger.close()

    def to_hub(self, name: str, message: pb.FromParticipant) -> None:
        """The network, one way: a message as bytes, delivered in order."""
        data = message.SerializeToString()
        self.clock.after(
            0.0,
            lambda: self._perform(self.hub.receive(name, pb.FromParticipant.FromString(data), self.clock.now_s)),
        )
        kind = message.WhichOneof("body") or ""
        if kind != "progress":
            self.clock.after(0.0, lambda: self.watch(Event(kind, name)))

    def _perform(self, actions: Iterable[HubAction]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._to_participant(action.peer, action.message)
            elif isinstance(action, Check):
                self.clock.after(0.0, functools.partial(self._check, action))
            elif isinstance(action, Merge):
                self.clock.after(0.0, functools.partial(self._merge, action))
            elif isinstance(action, Find):
                self.clock.after(0.0, functools.partial(self._find, action))
            elif isinstance(action, Unmask):
                self.clock.after(0.0, functools.partial(self._unmask, action))
            elif isinstance(action, Close):
                self.hub.disconnected(action.peer, self.clock.now_s)
            elif isinstance(action, Wake):
                self._wake_at(max(action.at_s, self.clock.now_s))

    def _wake_at(self, at_s: float) -> None:
        """Call the hub at this time: one wake-up stands, the earliest, as in the daemon."""
        if at_s < self._wake_s:
            self._wake_s = at_s
            self.clock.at(at_s, lambda: self._tick(at_s))

    def _tick(self, at_s: float) -> None:
        if at_s == self._wake_s:
            self._wake_s = math.inf
            self._perform(self.hub.tick(self.clock.now_s))

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
            self.intake.take(check.round, check.contribution)
        except RefusedError as refused:
            error = refused
        self._perform(self.hub.checked(check, error, self.clock.now_s))

    def _find(self, find: Find) -> None:
        missing = RefusedError("update-missing", f"{find.peer} announced a masked update that isn't here")
        error = None if self.blobs.has(find.digest) else missing
        self._perform(self.hub.found(find, error, self.clock.now_s))

    def _unmask(self, action: Unmask) -> None:
        try:
            revealed = reveal(self.blobs, action.order)
        except SecureAggregationError as error:
            self._perform(self.hub.implausible(action.order, error, self.clock.now_s))
            return
        self._perform(self.hub.unmasked(action.order, revealed, self.clock.now_s))

    def shown(self, item: Round) -> Round:
        """A round with each institution's own figures in its seats.

        Under secure sums the coordinator doesn't have them; who simulates a federation on one machine sees the
        institutions' side, too.
        """
        if self.plan.secure is None:
            return item
        seats = {}
        for name, seat in item.seats.items():
            own = self.participants[name].outcomes.get(item.number)
            seats[name] = (
                seat
                if own is None
                else dataclasses.replace(seat, examples=own.examples, metrics=own.metrics, evaluation=own.evaluation)
            )
        return dataclasses.replace(item, seats=seats)

    def _merge(self, action: Merge) -> None:
        try:
            merged = self.intake.merge(action.order, action.base)
        except RefusedError as error:
            self._perform(self.hub.unmergeable(action.order, error, self.clock.now_s))
            return
        actions = self.hub.merged(action.order, merged, self.clock.now_s)
        state = self.hub.machine.state
        committed = next(item for item in reversed(state.rounds) if item.version == state.version)
        self.watch(Event("committed", round=self.shown(committed)))
        self._perform(actions)
        self.blobs.keep_only(self.hub.blobs_in_use())


def _enrol(store: Store, federation: str, names: list[str], now_s: float) -> Identities:
    """Put the institutions into the roster and the member list.

    There are no TLS certificates, since there is no network to show them on; signing keys there are.
    """
    root = FederationRoot(federation, SigningKey.generate())
    coordinator = SigningKey.generate()
    keys = {name: SigningKey.generate() for name in names}
    entries = [root.add(root.empty(), Role.COORDINATOR, COORDINATOR_NAME, coordinator.public)]
    members = root.empty().extend(entries)
    for name in names:
        members = members.extend([root.add(members, Role.PARTICIPANT, name, keys[name].public)])
        secret_hash = name.encode().ljust(32, b"\0")[:32]
        store.invite(Invitation(name=name, secret_hash=secret_hash, expires_s=now_s + 60.0))
        member = Member(name=name, state=MemberState.ENROLLED, since_s=now_s, signing_key=keys[name].public)
        store.enrol(member, secret_hash, now_s)
    store.append_member_entries(members.entries)
    return Identities(root, members, coordinator, keys)
