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

    def taken(self, job: Job, participants: int, survivors: int) -> SignedReceipt | None:
        """The coordinator has a task's result, or a published sum holds it: settle, and say what is left.

        Args:
            job: The task.
            participants: Of the secure sum's roster; 0 where it isn't known.
            survivors: Participants whose updates are in it.
        """
        if self._run is None or not job.train:
            return None
        events = self._released.pop(job.task_id, None)
        plan, secure = self._run.plan, self._run.run.secure
        if plan.share is not None and secure is not None and participants:
            honest = survivors - corrupt_members(participants, secure.corrupt_percent)
            if honest > plan.share.honest:
                events = tuple(plan.survivors_events(job.round, honest))
        self._ledger.settle(job.task_id, events)
        return self._ledger.receipt(self._dataset, job.run_id, job.round)

    def dropped(self, job: Job) -> None:
        """Nobody wants a task's result. What was only reserved is free again; what may have left is spent."""
        if self._run is not None and job.train:
            self._ledger.drop(job.task_id)
