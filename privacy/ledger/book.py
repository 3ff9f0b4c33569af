"""The ledger's rules: what may be reserved, charged, settled and given back, and what that adds up to.

A pure state machine over lines. Spent is every charge, and every reservation that wasn't given back: whatever a crash
leaves open counts as spent until it is settled, so that epsilon is never below the truth.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Sequence
from typing import Any, Final

from privacy.accounting.accountant import COARSE, FINE, epsilon
from privacy.accounting.events import Event, Unit, merged, parse_event
from privacy.ledger.entries import FIRST, LedgerError, SignedEntry, entry_hash, read, write
from privacy.secure_aggregation.keys import SigningKey

# Two roundings of the same number, no more.
_EQUAL: Final = 1e-9


class BudgetError(LedgerError):
    """A task that would cost more than is left; nothing was reserved."""

    exit_code = 4


class Phase(enum.StrEnum):
    """How far a reservation has come."""

    RESERVED = "reserved"
    CHARGED = "charged"
    SETTLED = "settled"
    RETURNED = "given back"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobInfo:
    """For whom privacy is spent.

    Attributes:
        run_id: The run.
        round: From 1.
        coordinator: Who asked: its address or name.
        plan_hash: Of the run's plan, 32 bytes.
        model: SHA-256 of the model that is trained from, in hexadecimal.
    """

    run_id: str
    round: int
    coordinator: str
    plan_hash: bytes
    model: str


@dataclasses.dataclass(kw_only=True)
class Spending:
    """One task's place in the ledger."""

    task_id: str
    dataset: str
    job: JobInfo
    events: list[Event]
    phase: Phase
    at_s: float


@dataclasses.dataclass(kw_only=True)
class Data:
    """One data set's budget."""

    name: str
    records: int
    unit: Unit
    epsilon: float
    delta: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Balance:
    """What a data set's budget looks like.

    Attributes:
        dataset: Its name.
        records: When it was last opened.
        unit: Of privacy.
        epsilon: Budget.
        delta: Of all figures here.
        spent: Charged and settled tasks.
        committed: The same, with open reservations.
        left: Of the budget, after all that is committed; never below 0.
        events: All that is committed.
        tasks: How many.
    """

    dataset: str
    records: int
    unit: Unit
    epsilon: float
    delta: float
    spent: float
    committed: float
    left: float
    events: tuple[Event, ...]
    tasks: int


class Book:
    """The state of one site's ledger, and the lines that may come next.

    Args:
        site: The site's name.
        public: Its signing key's public half, 32 bytes.
    """

    def __init__(self, site: str, public: bytes) -> None:
        self.site = site
        self.public = public
        self.count = 0
        self.head = FIRST
        self.data: dict[str, Data] = {}
        self.tasks: dict[str, Spending] = {}

    # ---- reading ----------------------------------------------------------------------------------------------------

    def follow(self, lines: Iterable[SignedEntry]) -> None:
        """Take in lines in their order, checking chain, signatures and rules.

        Raises:
            LedgerError: "ledger-broken", naming the line.
        """
        for signed in lines:
            line = read(signed, public=self.public, site=self.site, number=self.count, previous=self.head)
            try:
                self._apply(line)
            except (LedgerError, ValueError, KeyError, TypeError) as error:
                raise LedgerError(
                    "ledger-broken", f"line {self.count} of the privacy ledger contradicts those before it: {error}"
                ) from error
            self.count += 1
            self.head = entry_hash(signed.body)

    def _apply(self, line: dict[str, Any]) -> None:
        kind = line["kind"]
        if kind == "open":
            self.data[line["dataset"]] = Data(
                name=line["dataset"],
                records=line["records"],
                unit=Unit(line["unit"]),
                epsilon=float.fromhex(line["epsilon"]),
                delta=float.fromhex(line["delta"]),
            )
        elif kind == "budget":
            data = self._dataset(line["dataset"])
            data.epsilon, data.delta = float.fromhex(line["epsilon"]), float.fromhex(line["delta"])
            data.records = line["records"]
        elif kind == "reserve":
            if line["task"] in self.tasks and self.tasks[line["task"]].phase is not Phase.RETURNED:
                raise LedgerError("task-reserved", f"task {line['task']} is reserved twice")
            self.tasks[line["task"]] = Spending(
                task_id=line["task"],
                dataset=self._dataset(line["dataset"]).name,
                job=JobInfo(
                    run_id=line["run"],
                    round=line["round"],
                    coordinator=line["coordinator"],
                    plan_hash=line["plan"],
                    model=line["model"],
                ),
                events=[parse_event(item) for item in line["events"]],
                phase=Phase.RESERVED,
                at_s=float.fromhex(line["at"]),
            )
        else:
            self._move(self._task(line["task"]), line)

    def _move(self, task: Spending, line: dict[str, Any]) -> None:
        kind = line["kind"]
        allowed = {
            "charge": (Phase.RESERVED,),
            "settle": (Phase.CHARGED,),
            "give-back": (Phase.RESERVED,),
        }[kind]
        if task.phase not in allowed:
            raise LedgerError("task-order", f"task {task.task_id} is {task.phase}; {kind} can't follow")
        if kind == "settle":
            task.events = [parse_event(item) for item in line["events"]]
        task.phase = {"charge": Phase.CHARGED, "settle": Phase.SETTLED, "give-back": Phase.RETURNED}[kind]

    def _dataset(self, name: str) -> Data:
        if name not in self.data:
            raise LedgerError("dataset-unknown", f"the privacy ledger knows no data set {name!r}")
        return self.data[name]

    def _task(self, task_id: str) -> Spending:
        if task_id not in self.tasks:
            raise LedgerError("task-unknown", f"nothing was reserved for task {task_id}")
        return self.tasks[task_id]

    # ---- figures ----------------------------------------------------------------------------------------------------

    def events(self, dataset: str, *, spent_only: bool = False) -> list[Event]:
        """What a data set's records have paid, or may have to."""
        counted = {Phase.CHARGED, Phase.SETTLED} | (set() if spent_only else {Phase.RESERVED})
        tasks = (task for task in self.tasks.values() if task.dataset == dataset and task.phase in counted)
        return merged([event for task in tasks for event in task.events])

    def balance(self, dataset: str, *, interval: float = FINE) -> Balance:
        """The state of a data set's budget.

        Raises:
            LedgerError: "dataset-unknown".
        """
        data = self._dataset(dataset)
        events, spent = self.events(dataset), self.events(dataset, spent_only=True)
        committed = epsilon(events, data.delta, interval=interval)
        return Balance(
            dataset=dataset,
            records=data.records,
            unit=data.unit,
            epsilon=data.epsilon,
            delta=data.delta,
            spent=committed if spent == events else epsilon(spent, data.delta, interval=interval),
            committed=committed,
            left=max(0.0, data.epsilon - committed),
            events=tuple(events),
            tasks=sum(task.dataset == dataset and task.phase is not Phase.RETURNED for task in self.tasks.values()),
        )

    # ---- lines to come ----------------------------------------------------------------------------------------------

    def open_dataset(
        self, dataset: str, *, records: int, unit: Unit, epsilon: float, delta: float
    ) -> tuple[str, dict[str, Any]] | None:
        """The line that opens a data set with a budget, or changes it; None where it is so already.

        Raises:
            BudgetError: "delta-too-large".
            LedgerError: "unit-changed" where spending in one unit would be counted as another.
        """
        if not 0 < epsilon < float("inf"):
            raise BudgetError("epsilon-invalid", f"a budget of epsilon {epsilon} isn't one")
        if not 0 < delta < 1 / max(records, 1):
            raise BudgetError(
                "delta-too-large",
                f"delta {delta:g} is no promise for the {records} records of {dataset}: it must be under "
                f"{1 / max(records, 1):.3g}",
                "Lower [privacy] delta in this site's participant.toml.",
            )
        known = self.data.get(dataset)
        fields: dict[str, Any] = {
            "dataset": dataset,
            "records": records,
            "epsilon": float(epsilon).hex(),
            "delta": float(delta).hex(),
        }
        if known is None:
            return "open", {**fields, "unit": str(unit)}
        if known.unit != unit:
            raise LedgerError(
                "unit-changed",
                f"the budget of {dataset} protects one {known.unit}; a run wants to protect one {unit}",
                "Keep a data set of its own for it: what was spent for one can't be counted for the other.",
            )
        if (known.records, known.epsilon, known.delta) == (records, epsilon, delta):
            return None
        return "budget", fields

    def reserve(
        self, task_id: str, dataset: str, job: JobInfo, events: Sequence[Event]
    ) -> tuple[str, dict[str, Any]] | None:
        """The line that reserves what a task will cost; None where that is done already.

        Raises:
            BudgetError: "budget-exhausted", naming what it needs and what is left.
            LedgerError: The task is known with other events or data.
        """
        known = self.tasks.get(task_id)
        if known is not None and known.phase is not Phase.RETURNED:
            if known.dataset != dataset or (known.phase is not Phase.SETTLED and known.events != list(events)):
                raise LedgerError("task-changed", f"task {task_id} was reserved before, for something else")
            return None
        data = self._dataset(dataset)
        before = self.events(dataset)
        after = epsilon([*before, *events], data.delta, interval=COARSE)
        if after > data.epsilon * (1 + _EQUAL):
            # The coarse figure is an upper bound; a refusal deserves the fine one.
            after = epsilon([*before, *events], data.delta, interval=FINE)
        if after > data.epsilon * (1 + _EQUAL):
            spent = epsilon(before, data.delta, interval=FINE)
            raise BudgetError(
                "budget-exhausted",
                f"round {job.round} of run {job.run_id} would bring {dataset} to epsilon {after:.4g} at delta "
                f"{data.delta:g}; the budget is {data.epsilon:g}, of which {spent:.4g} is spent or reserved and "
                f"{max(0.0, data.epsilon - spent):.4g} left",
                "Nothing was trained. The site's administrator can raise the budget: fedloom participant budget set.",
            )
        fields = {
            "dataset": dataset,
            "task": task_id,
            "run": job.run_id,
            "round": job.round,
            "coordinator": job.coordinator,
            "plan": job.plan_hash,
            "model": job.model,
            "events": [event.plain() for event in events],
        }
        return "reserve", fields

    def charge(self, task_id: str) -> tuple[str, dict[str, Any]] | None:
        """The line that must be on the disk before a task's result leaves; None where it is.

        Raises:
            LedgerError: Nothing is reserved for it, or it was given back.
        """
        task = self._task(task_id)
        if task.phase in (Phase.CHARGED, Phase.SETTLED):
            return None
        if task.phase is Phase.RETURNED:
            raise LedgerError("task-order", f"what task {task_id} cost was given back; its result can't leave")
        return "charge", {"task": task_id}

    def settle(self, task_id: str, events: Sequence[Event] | None = None) -> tuple[str, dict[str, Any]] | None:
        """The line with what a task has cost in the end; None where it is settled.

        Args:
            task_id: Of a charged task.
            events: What it has cost, if that is less than what was charged.

        Raises:
            LedgerError: "settle-more" if ``events`` cost more.
        """
        task = self._task(task_id)
        if task.phase is Phase.SETTLED:
            return None
        final = task.events if events is None else merged(list(events))
        if not _at_most(final, task.events):
            raise LedgerError("settle-more", f"task {task_id} can't cost more than was charged for it")
        if task.phase is not Phase.CHARGED:
            raise LedgerError("task-order", f"task {task_id} is {task.phase}; only what was charged is settled")
        return "settle", {"task": task_id, "events": [event.plain() for event in final]}

    def give_back(self, task_id: str) -> tuple[str, dict[str, Any]] | None:
        """The line that frees a reservation whose result never left; None where that is done, or there is nothing.

        Raises:
            LedgerError: "task-order" if the result may have left.
        """
        task = self.tasks.get(task_id)
        if task is None or task.phase is Phase.RETURNED:
            return None
        if task.phase is not Phase.RESERVED:
            raise LedgerError("task-order", f"task {task_id} is {task.phase}: its result may have left this site")
        return "give-back", {"task": task_id}

    def drop(self, task_id: str) -> tuple[str, dict[str, Any]] | None:
        """The line that frees a reservation, where that is allowed; else None."""
        task = self.tasks.get(task_id)
        return self.give_back(task_id) if task is not None and task.phase is Phase.RESERVED else None

    def line(self, key: SigningKey, at_s: float, kind: str, fields: dict[str, Any]) -> SignedEntry:
        """Write the next line, and take it in."""
        if key.public != self.public:
            raise LedgerError("ledger-foreign", f"the privacy ledger of {self.site} was begun with another key")
        signed = write(key, site=self.site, number=self.count, at_s=at_s, previous=self.head, kind=kind, fields=fields)
        self.follow([signed])
        return signed


def _at_most(final: Sequence[Event], charged: Sequence[Event]) -> bool:
    """Whether each release is as noisy as the one it stands for, or noisier, and there are no more of them."""

    def flat(events: Sequence[Event]) -> list[tuple[float, float, int]]:
        ordered = sorted(events, key=lambda event: (event.sampling_rate, event.noise_multiplier))
        return [(event.sampling_rate, event.noise_multiplier, event.count) for event in ordered]

    one, other = flat(final), flat(charged)
    return len(one) == len(other) and all(
        a[0] <= b[0] and a[1] >= b[1] and a[2] <= b[2] for a, b in zip(one, other, strict=True)
    )
