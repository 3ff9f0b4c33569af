"""The site's budget in a run: reserve before training, charge before anything leaves, settle when it is over."""

from __future__ import annotations

import dataclasses
import logging

from participant.ledger import BudgetLedger
from participant.privacy import History
from participant.rules import PrivacyRules
from participant.work import Job
from privacy.accounting.accountant import epsilon
from privacy.accounting.events import Event, Unit, merged
from privacy.ledger import BUDGET_EXHAUSTED, BudgetError, JobInfo, Phase, SignedReceipt, Spending
from privacy.mechanisms.plan import PrivacyPlan
from privacy.secure_aggregation.thresholds import corrupt_members
from wire import RunPlan

_log = logging.getLogger("fedloom.participant")


@dataclasses.dataclass(frozen=True)
class _Run:
    run: RunPlan
    plan: PrivacyPlan


class SiteBudget:
    """What a site's data have paid, in the terms of the agent.

    Args:
        ledger: The site's.
        dataset: The data set that it trains on, by the site's own name for it.
        rules: The site's budget.
        coordinator: Who asks, for the ledger.
    """

    def __init__(self, ledger: BudgetLedger, dataset: str, rules: PrivacyRules, coordinator: str) -> None:
        self._ledger = ledger
        self._dataset = dataset
        self._rules = rules
        self._coordinator = coordinator
        self._run: _Run | None = None
        self._released: dict[str, tuple[Event, ...]] = {}

    @property
    def private(self) -> bool:
        """Whether the run at hand is private."""
        return self._run is not None

    def begin(self, run: RunPlan, plan: PrivacyPlan | None, records: int) -> None:
        """A run is prepared.

        Raises:
            LedgerError: The data set's budget can't be that of this run.
        """
        self._run = None if plan is None else _Run(run, plan)
        self._released.clear()
        if plan is None:
            return
        # Where a whole site is hidden, it is the one unit that it holds.
        units = 1 if plan.unit is Unit.PARTICIPANT else records
        # Once a data set has a budget, its ledger says which: the administrator may have changed it since this
        # process read its configuration, and no run may undo that.
        known = self._ledger.book().data.get(self._dataset)
        self._ledger.open_dataset(
            self._dataset,
            records=units,
            unit=plan.unit,
            epsilon=known.epsilon if known is not None else self._rules.epsilon,
            delta=known.delta if known is not None else self._rules.delta_for(units),
        )
        _log.info("run %s: %s", run.run_id, plan.statement())

    def pay(self, job: Job, *, release: bool) -> None:
        """Reserve what a task costs; with ``release``, charge it: its result is about to leave.

        Raises:
            BudgetError: It would cost more than is left.
            LedgerError: The ledger contradicts it.
        """
        if self._run is None or not job.train:
            return
        info = JobInfo(
            run_id=job.run_id,
            round=job.round,
            coordinator=self._coordinator,
            plan_hash=self._run.run.hash,
            model=job.base_digest.hex(),
        )
        self._ledger.reserve(job.task_id, self._dataset, info, self._cost(self._run, job))
        if release:
            self._ledger.charge(job.task_id)

    def history(self, job: Job) -> History | None:
        """What the ledger knows of the run when a task begins; None where nothing follows what the run releases."""
        if self._run is None or (self._run.plan.noise is None and self._run.plan.adaptive is None):
            return None
        paid = self._paid(job)
        released = frozenset(task.task_id for task in paid if task.phase in (Phase.CHARGED, Phase.SETTLED))
        spent = tuple(merged([event for task in paid for event in task.events]))
        return History(task_id=job.task_id, spent=spent, released=released)

    def trained(self, job: Job, released: tuple[Event, ...]) -> None:
        """A task is trained: what that has really cost. A restart forgets it; then what was charged stays spent."""
        if self._run is not None and self._run.plan.noise is not None:
            self._released[job.task_id] = released

    def _paid(self, job: Job) -> list[Spending]:
        """What other tasks of the run have cost these data, or still may."""
        return [
            task
            for task in self._ledger.book().tasks.values()
            if task.dataset == self._dataset
            and task.job.run_id == job.run_id
            and task.task_id != job.task_id
            and task.phase is not Phase.RETURNED
        ]

    def _cost(self, run: _Run, job: Job) -> list[Event]:
        """What a task may cost.

        Raises:
            BudgetError: "budget-exhausted" where the run goes on until its epsilon is used up, and it is.
        """
        plan, most = run.plan, run.plan.round_events(job.round)
        exhausting = run.run.privacy.schedule == "until-exhausted"
        if plan.noise is None and not exhausting:
            return most
        known = self._ledger.book().tasks.get(job.task_id)
        if known is not None and known.phase is not Phase.RETURNED:
            return list(known.reserved)
        spent = [event for task in self._paid(job) for event in task.events]
        if plan.noise is not None:
            most = plan.control(spent).most(plan.steps_per_round)
        elif epsilon([*spent, *most], plan.delta) > run.run.privacy.epsilon:
            most = []
        if not most:
            raise BudgetError(
                BUDGET_EXHAUSTED,
                f"run {job.run_id} has used up its epsilon of {run.run.privacy.epsilon:g} at this site",
                "Nothing was trained. Such a run ends here when its epsilon is used up, whatever other rounds it has.",
            )
        return most

    def taken(self, task_id: str, participants: int, survivors: int) -> bool:
        """The coordinator has a task's result, or a published sum holds it: settle. Whether it has cost anything.

        Args:
            task_id: The task.
            participants: Of the secure sum's roster; 0 where it isn't known.
            survivors: Participants whose updates are in it.
        """
        task = self._ledger.book().tasks.get(task_id)
        if task is None or task.phase not in (Phase.CHARGED, Phase.SETTLED):
            return False
        events = self._released.pop(task_id, None)
        run = self._run if self._run is not None and self._run.run.run_id == task.job.run_id else None
        if run is not None and run.plan.share is not None and run.run.secure is not None and participants:
            honest = survivors - corrupt_members(participants, run.run.secure.corrupt_percent)
            if honest > run.plan.share.honest:
                events = tuple(run.plan.survivors_events(task.job.round, honest))
        self._ledger.settle(task_id, events)
        return True

    def dropped(self, task_id: str) -> None:
        """Nobody wants a task's result. What was only reserved is free again; what may have left is spent."""
        self._ledger.drop(task_id)

    def charged(self) -> list[str]:
        """Tasks that are paid for and not settled."""
        return [task.task_id for task in self._ledger.book().tasks.values() if task.phase is Phase.CHARGED]

    def round_of(self, task_id: str) -> int:
        """The round of the run at hand that a task was for; 0 for a task of another run, or one that costs nothing."""
        task = self._ledger.book().tasks.get(task_id)
        mine = task is not None and self._run is not None and task.job.run_id == self._run.run.run_id
        return task.job.round if task is not None and mine else 0

    def position(self) -> tuple[int, bytes]:
        """How many lines the ledger has, and the hash of the last one."""
        book = self._ledger.book()
        return book.count, book.head

    def at_rest(self) -> bool:
        """Whether nothing is reserved: a receipt says what was paid, and no task in hand changes it."""
        tasks = self._ledger.book().tasks.values()
        return not any(task.phase is Phase.RESERVED and task.dataset == self._dataset for task in tasks)

    def receipt(self) -> SignedReceipt:
        """What the run at hand has cost so far, for the coordinator."""
        assert self._run is not None
        run_id = self._run.run.run_id
        paid = [task.job.round for task in self._ledger.book().tasks.values() if _paid(task, run_id)]
        return self._ledger.receipt(self._dataset, run_id, max(paid, default=0))


def _paid(task: Spending, run_id: str) -> bool:
    return task.job.run_id == run_id and task.phase in (Phase.CHARGED, Phase.SETTLED)
