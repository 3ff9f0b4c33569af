"""A site of a private run with plain averaging: a real agent, journal and ledger on disk, which can be killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from federated import Federation

from participant.actions import Action, Fetch, Prepare, Push, Say, Work
from participant.agent import Agent
from participant.budget import SiteBudget
from participant.ledger import BudgetLedger
from participant.membership import PinnedMembers
from participant.privacy import site_plan
from participant.rules import PrivacyRules, ScheduleRules, SiteRules
from participant.store import ParticipantStore, TaskState
from participant.work import Outcome, Prepared
from privacy.accounting import Unit
from privacy.ledger import Phase
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import FederationRoot
from protos import session_pb2 as pb
from wire import AggregationSpec, InitialModel, PrivacySpec, RoundsSpec, RunPlan

NAME, DATA, RECORDS = "a", "ward", 1_000
MANIFEST = b"m" * 32
ROOT = FederationRoot("bench", SigningKey(b"r" * 32))
KEY = Federation("bench").key(NAME)
MODEL_BYTES, DIMENSION = 100, 5


def private_plan(placement: str = "local", **rounds: object) -> RunPlan:
    """Asynchronous and plain, with noise at each site."""
    table = {"mode": "asynchronous", "count": 6, "min_participants": 2, "min_updates": 1, "buffer_size": 2, **rounds}
    privacy = {"placement": placement, "epsilon": 6.0, "delta": 1e-5, "sampling_rate": 0.1, "noise_multiplier": 2.0}
    return RunPlan(
        federation="bench",
        run_id="bench-1",
        learning={"model": {}},
        rounds=RoundsSpec.model_validate({**table, "correction": "none", "evaluate_every": 0}),
        aggregation=AggregationSpec(mode="plain"),
        secure=None,
        privacy=PrivacySpec.model_validate(privacy if placement != "off" else {}),
        initial=InitialModel(digest="ab" * 32, size=MODEL_BYTES, dimension=DIMENSION, manifest_hash=MANIFEST.hex()),
    )


class PayingSite:
    """The site. What it does is returned by each call; what it has paid is in ``phases``."""

    def __init__(self, folder: Path, schedule: ScheduleRules | None = None, placement: str = "local") -> None:
        self.folder = folder
        self.plan = private_plan(placement)
        self.rules = SiteRules(allow_plain=True, schedule=schedule or ScheduleRules())
        self.now = 1_764_000_000.0
        self.known: pb.BudgetKnown | None = pb.BudgetKnown()
        private = placement != "off"
        # The same in each life: solving it takes a while.
        self.privacy = (
            site_plan(
                self.plan,
                unit=Unit.RECORD,
                units=RECORDS,
                records=RECORDS,
                batch_size=100,
                steps_per_round=4,
                dimension=DIMENSION,
                layers=1,
                group_factor=1,
            )
            if private
            else None
        )
        self._open()

    def _open(self) -> None:
        self.store = ParticipantStore(self.folder / "journal.sqlite", lambda: self.now)
        self.ledger = BudgetLedger(self.folder / "ledger.sqlite", KEY, site=NAME, clock=lambda: self.now)
        self.agent = Agent(
            NAME,
            self.store,
            PinnedMembers.load(self.store, "bench", ROOT.public),
            key=KEY,
            rules=self.rules,
            software="test",
            clock=lambda: self.now,
            budget=SiteBudget(self.ledger, DATA, PrivacyRules(epsilon=6.0, delta=1e-5), "here"),
        )

    def close(self) -> None:
        self.store.close()
        self.ledger.close()

    def restart(self) -> None:
        """kill -9, and a new start; nobody is connected yet."""
        self.close()
        self._open()

    # ---- what the coordinator does ----------------------------------------------------------------------------------

    def ready(self) -> list[Action]:
        """A new connection, until the site has said that it is ready, and been told which receipt is known."""
        self.agent.connected()
        plan = self.plan
        hello = pb.Welcome(run_id=plan.run_id, plan=plan.canonical(), plan_hash=plan.hash, lease_s=12.0)
        said = self.agent.received(pb.FromCoordinator(welcome=hello))
        if isinstance(said[0], Prepare):
            prepared = Prepared(manifest_hash=MANIFEST, examples=RECORDS, privacy=self.privacy)
            said = self.agent.prepared(prepared)
        if self.known is not None and self.privacy is not None:
            said = said + self.agent.received(pb.FromCoordinator(budget_known=self.known))
        return said

    def asked(self, base: int = 0, attempt: int = 1, **changes: Any) -> list[Action]:
        """A task from a version."""
        task = pb.Task(
            task_id=task_id(base, attempt),
            kind=changes.pop("kind", pb.TASK_KIND_TRAIN),
            round=base + 1,
            attempt=attempt,
            base_version=base,
            base=pb.Blob(digest=bytes([base]) * 32, size=MODEL_BYTES),
            seed=7,
            **changes,
        )
        return self.agent.received(pb.FromCoordinator(task=task))

    def trains(self, base: int = 0, attempt: int = 1) -> list[Action]:
        """A task is asked for and trained; what the site does with the result."""
        (fetch,) = [action for action in self.asked(base, attempt) if isinstance(action, Fetch)]
        (work, *_) = self.agent.fetched(fetch.job)
        assert isinstance(work, Work)
        return self.agent.worked(work.job, outcome(base, attempt))

    def hands_in(self, base: int = 0, attempt: int = 1) -> None:
        """It is trained, uploaded and announced."""
        assert any(isinstance(action, Push) for action in self.trains(base, attempt))
        self.agent.pushed(task_id(base, attempt))

    def receipt(self, base: int = 0, attempt: int = 1, code: str = "") -> list[Action]:
        """The coordinator has taken the update, or refuses it."""
        text = pb.Receipt(task_id=task_id(base, attempt), accepted=not code, code=code)
        return self.agent.received(pb.FromCoordinator(receipt=text))

    def finishes(self, reason: str = "completed") -> list[Action]:
        """The run is over."""
        over = pb.RunFinished(run_id=self.plan.run_id, version=6, reason=reason)
        return self.agent.received(pb.FromCoordinator(run_finished=over))

    def keeps(self, message: pb.BudgetReceipt) -> list[Action]:
        """A receipt is on the coordinator's disk."""
        self.known = pb.BudgetKnown(lines=self.ledger.book().count, head=self.ledger.book().head)
        assert message.body
        return self.agent.received(pb.FromCoordinator(budget_known=self.known))

    # ---- what came of it --------------------------------------------------------------------------------------------

    def phase(self, base: int = 0, attempt: int = 1) -> Phase | None:
        task = self.ledger.book().tasks.get(task_id(base, attempt))
        return None if task is None else task.phase

    def state(self, base: int = 0, attempt: int = 1) -> TaskState:
        record = self.store.get(task_id(base, attempt))
        assert record is not None
        return record.state


def task_id(base: int, attempt: int = 1) -> str:
    return f"bench-1/{base + 1}.{attempt}/{NAME}"


def outcome(base: int, attempt: int = 1) -> Outcome:
    """What training gives: another update for each task."""
    digest = bytes([attempt, base]) * 16
    return Outcome(digest=digest, size=4 * DIMENSION, examples=10, metrics={"loss": 0.5}, evaluation={})


def said(actions: list[Action], kind: str) -> list[Any]:
    """Messages of a kind among what a site does."""
    return [
        getattr(action.message, kind)
        for action in actions
        if isinstance(action, Say) and action.message.WhichOneof("body") == kind
    ]
