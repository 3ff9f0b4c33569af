"""The ledger's rules: what may be reserved, charged, settled and given back, and what that adds up to.

A pure state machine over lines. Spent is every charge, and every reservation that wasn't given back: whatever a crash
leaves open counts as spent until it is settled, so that epsilon is never below the truth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from privacy.accounting.accountant import COARSE, FINE, epsilon
from privacy.accounting.events import Event, Unit, merged, parse_event
from privacy.ledger.balance import Balance, Data, JobInfo, Spending, Tally
from privacy.ledger.balance import Phase as Phase
from privacy.ledger.chain import FIRST, consent, entry_hash, read, write
from privacy.ledger.entries import LedgerError, SignedEntry
from privacy.secure_aggregation.keys import SigningKey, verify

BUDGET_EXHAUSTED: Final = "budget-exhausted"
"""The code of a task that would cost more than is left."""

# Two roundings of the same number, no more.
_EQUAL: Final = 1e-9

_NEXT: Final[dict[str, tuple[Phase, Phase]]] = {
    "charge": (Phase.RESERVED, Phase.CHARGED),
    "settle": (Phase.CHARGED, Phase.SETTLED),
    "give-back": (Phase.RESERVED, Phase.RETURNED),
}

Line = tuple[str, dict[str, Any]]
"""A line that may come next: its kind and its kind's fields."""


class BudgetError(LedgerError):
    """A task that would cost more than is left, or a budget that is none; nothing was written.

    Attributes:
        figures: Of a task that would cost too much: "needed", "budget", "spent", "reserved" and "left", as epsilon at
            the data set's delta. Empty otherwise.
    """

    exit_code = 4

    def __init__(self, code: str, message: str, hint: str = "", *, figures: dict[str, float] | None = None) -> None:
        super().__init__(code, message, hint)
        self.figures = figures or {}


class Book:
    """The state of one site's ledger, and the lines that may come next.

    Args:
        site: The site's name.
        public: The public half of the key with which it was begun, 32 bytes.

    Attributes:
        public: Of the key that signs the next line.
        count: Lines so far.
        head: Hash of the last one.
        data: The data sets' budgets, by name.
        tasks: All that was ever reserved, by task.
        backwards: Numbers of the lines before which the site's clock went back. That is allowed: nothing is decided by
            it.
    """

    def __init__(self, site: str, public: bytes) -> None:
        self.site = site
        self.public = public
        self.count = 0
        self.head = FIRST
        self.data: dict[str, Data] = {}
        self.tasks: dict[str, Spending] = {}
        self.backwards: list[int] = []
        self._at_s = -math.inf
        self._spent: dict[str, Tally] = {}
        self._reserved: dict[str, Tally] = {}

    def copy(self) -> Book:
        """The book as it is now, whatever is written afterwards."""
        other = Book(self.site, self.public)
        other.count, other.head, other._at_s = self.count, self.head, self._at_s
        other.data, other.tasks, other.backwards = dict(self.data), dict(self.tasks), list(self.backwards)
        other._spent = {name: tally.copy() for name, tally in self._spent.items()}
        other._reserved = {name: tally.copy() for name, tally in self._reserved.items()}
        return other

    # ---- reading ----------------------------------------------------------------------------------------------------

    def follow(self, lines: Iterable[SignedEntry]) -> None:
        """Take in lines in their order, checking chain, signatures and rules.

        Raises:
            LedgerError: "ledger-broken" or "ledger-foreign", naming the line; those before it are taken in.
        """
        for signed in lines:
            line = read(signed, public=self.public, site=self.site, number=self.count, previous=self.head)
            try:
                at_s = float.fromhex(line["at"])
                self._apply(line)
            except (LedgerError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise LedgerError(
                    "ledger-broken",
                    f"line {self.count} of the privacy ledger contradicts those before it: {error}",
                    "Was it written by a newer release of fedloom? If not, restore the file from a backup.",
                    line=self.count,
                ) from error
            if at_s < self._at_s:
                self.backwards.append(self.count)
            self._at_s = at_s
            self.count += 1
            self.head = entry_hash(signed.body)

    def _apply(self, line: dict[str, Any]) -> None:
        """Change the state as a line says, or raise and leave it as it is."""
        kind = line["kind"]
        if kind in ("open", "budget"):
            self._set(line)
        elif kind == "reserve":
            self._reserve(line)
        elif kind == "key":
            if line["from"] != self.public or not verify(line["key"], line["consent"], consent(self.head, self.public)):
                raise LedgerError("key-unproven", "it hands over to a key that hasn't agreed to take over here")
            self.public = line["key"]
        else:
            task = self._task(line["task"])
            wanted, phase = _NEXT[kind]
            if task.phase is not wanted:
                raise LedgerError("task-order", f"task {task.task_id} is {task.phase}; {kind} can't follow")
            events = task.events if kind != "settle" else tuple(parse_event(item) for item in line["events"])
            if kind == "settle" and not _at_most(events, task.reserved):
                raise LedgerError("settle-more", f"task {task.task_id} is settled for more than was charged")
            self._put(dataclasses.replace(task, phase=phase, events=events))

    def _set(self, line: dict[str, Any]) -> None:
        name = line["dataset"]
        if line["kind"] == "open":
            if name in self.data:
                raise LedgerError("dataset-open", f"the data set {name!r} is opened twice")
            unit = Unit(line["unit"])
        else:
            unit = self.dataset(name).unit
        self.data[name] = Data(
            name=name,
            records=line["records"],
            unit=unit,
            epsilon=float.fromhex(line["epsilon"]),
            delta=float.fromhex(line["delta"]),
        )

    def _reserve(self, line: dict[str, Any]) -> None:
        task = self.tasks.get(line["task"])
        if task is not None and task.phase is not Phase.RETURNED:
            raise LedgerError("task-reserved", f"task {line['task']} is reserved twice")
        job = JobInfo(
            run_id=line["run"],
            round=line["round"],
            coordinator=line["coordinator"],
            plan_hash=line["plan"],
            model=line["model"],
        )
        events = tuple(parse_event(item) for item in line["events"])
        self._put(
            Spending(
                task_id=line["task"],
                dataset=self.dataset(line["dataset"]).name,
                job=job,
                reserved=events,
                events=events,
                phase=Phase.RESERVED,
                at_s=float.fromhex(line["at"]),
            )
        )

    def _put(self, task: Spending) -> None:
        """Keep a task's new state, and count its events where they belong now."""
        for known, sign in ((self.tasks.get(task.task_id), -1), (task, 1)):
            if known is None or known.phase is Phase.RETURNED:
                continue
            tallies = self._reserved if known.phase is Phase.RESERVED else self._spent
            tallies.setdefault(known.dataset, Tally()).move(known.events, sign)
        self.tasks[task.task_id] = task

    def dataset(self, name: str) -> Data:
        """A data set's budget.

        Raises:
            LedgerError: "dataset-unknown".
        """
        if name not in self.data:
            known = ", ".join(sorted(self.data)) or "none yet"
            raise LedgerError(
                "dataset-unknown",
                f"the privacy ledger of {self.site} knows no data set {name!r}",
                f"It knows: {known}. A data set is opened by the first private run that uses it.",
            )
        return self.data[name]

    def _task(self, task_id: str) -> Spending:
        if task_id not in self.tasks:
            raise LedgerError(
                "task-unknown", f"nothing was reserved for task {task_id}", "What was never reserved can't be paid."
            )
        return self.tasks[task_id]

    # ---- figures ----------------------------------------------------------------------------------------------------

    def events(self, dataset: str, *, spent_only: bool = False) -> list[Event]:
        """What a data set's records have paid, or may have to."""
        spent = self._spent.get(dataset, Tally()).events
        return spent if spent_only else merged([*spent, *self._reserved.get(dataset, Tally()).events])

    def balance(self, dataset: str, *, interval: float = FINE) -> Balance:
        """The state of a data set's budget.

        Formal Guarantees:
            ``spent`` is never below the epsilon of what has left the site, provided that each task was charged before
            its result left: charges are only ever replaced by settlements that cost at most as much, event by event.

        Raises:
            LedgerError: "dataset-unknown".
        """
        data = self.dataset(dataset)
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

    def open_dataset(self, dataset: str, *, records: int, unit: Unit, epsilon: float, delta: float) -> Line | None:
        """The line that opens a data set with a budget, or changes it; None where it is so already.

        Raises:
            BudgetError: "epsilon-invalid", "delta-too-large".
            LedgerError: "unit-changed" where spending in one unit would be counted as another.
        """
        if not 0 < epsilon < math.inf:
            raise BudgetError(
                "epsilon-invalid", f"a budget of epsilon {epsilon} isn't one", "Give a positive number, such as 3."
            )
        if not 0 < delta < 1 / max(records, 1):
            raise BudgetError(
                "delta-too-large",
                f"delta {delta:g} is no promise for the {records} records of {dataset}: it must be above 0 and under "
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

    def reserve(self, task_id: str, dataset: str, job: JobInfo, events: Sequence[Event]) -> Line | None:
        """The line that reserves what a task will cost; None where that is done already.

        Raises:
            BudgetError: "budget-exhausted", naming what it needs and what is left.
            LedgerError: "dataset-unknown"; "task-changed" where the task is known with other events, data or job: then
                it is another release, and what was written down for the first doesn't pay for it.
        """
        data = self.dataset(dataset)
        wanted = tuple(merged(events))
        if not wanted:
            raise LedgerError("reserve-nothing", f"task {task_id} names no release that it would pay for")
        known = self.tasks.get(task_id)
        if known is not None and known.phase is not Phase.RETURNED:
            if (known.dataset, known.job, tuple(merged(known.reserved))) != (dataset, job, wanted):
                raise LedgerError(
                    "task-changed",
                    f"task {task_id} was reserved before, for something else",
                    "A task pays once, for one release. What differs needs a task of its own.",
                )
            return None
        self._afford(data, job, wanted)
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

    def _afford(self, data: Data, job: JobInfo, events: Sequence[Event]) -> None:
        before = self.events(data.name)
        most = data.epsilon * (1 + _EQUAL)
        # The coarse figure is an upper bound, and quick; a refusal deserves the fine one.
        if epsilon([*before, *events], data.delta, interval=COARSE) <= most:
            return
        after = epsilon([*before, *events], data.delta, interval=FINE)
        if after <= most:
            return
        now = self.balance(data.name)
        needed = after - now.committed
        raise BudgetError(
            BUDGET_EXHAUSTED,
            f"round {job.round} of run {job.run_id} needs epsilon {needed:.4g} more of {data.name} at delta "
            f"{data.delta:g}, and {now.left:.4g} is left: the budget is {data.epsilon:g}, {now.spent:.4g} is spent and "
            f"{now.reserved:.4g} reserved",
            "Nothing was trained. The site's administrator can raise the budget: fedloom participant budget set.",
            figures={
                "needed": needed,
                "budget": data.epsilon,
                "spent": now.spent,
                "reserved": now.reserved,
                "left": now.left,
            },
        )

    def charge(self, task_id: str) -> Line | None:
        """The line that must be on the disk before a task's result leaves; None where it is.

        Raises:
            LedgerError: "task-unknown", "task-order": nothing is reserved for it, or it was given back.
        """
        task = self._task(task_id)
        if task.phase in (Phase.CHARGED, Phase.SETTLED):
            return None
        if task.phase is Phase.RETURNED:
            raise LedgerError(
                "task-order",
                f"what task {task_id} cost was given back; its result can't leave",
                "Reserve it anew, and train it anew.",
            )
        return "charge", {"task": task_id}

    def settle(self, task_id: str, events: Sequence[Event] | None = None) -> Line | None:
        """The line with what a task has cost in the end; None where it is settled.

        Args:
            task_id: Of a charged task.
            events: What it has cost, if that is less than what was charged.

        Raises:
            LedgerError: "settle-more" if ``events`` cost more; "task-unknown", "task-order".
        """
        task = self._task(task_id)
        if task.phase is Phase.SETTLED:
            return None
        final = task.reserved if events is None else tuple(merged(events))
        if not _at_most(final, task.reserved):
            raise LedgerError(
                "settle-more",
                f"task {task_id} can't cost more than was charged for it",
                "Each release must be as noisy as the one that was charged for it, or noisier.",
            )
        if task.phase is not Phase.CHARGED:
            raise LedgerError("task-order", f"task {task_id} is {task.phase}; only what was charged is settled")
        return "settle", {"task": task_id, "events": [event.plain() for event in final]}

    def give_back(self, task_id: str) -> Line | None:
        """The line that frees a reservation whose result never left; None where that is done, or there is nothing.

        Raises:
            LedgerError: "task-order" if the result may have left.
        """
        task = self.tasks.get(task_id)
        if task is None or task.phase is Phase.RETURNED:
            return None
        if task.phase is not Phase.RESERVED:
            raise LedgerError(
                "task-order",
                f"task {task_id} is {task.phase}: its result may have left this site",
                "What may have left stays spent.",
            )
        return "give-back", {"task": task_id}

    def drop(self, task_id: str) -> Line | None:
        """The line that frees a reservation, where that is allowed; else None."""
        task = self.tasks.get(task_id)
        return self.give_back(task_id) if task is not None and task.phase is Phase.RESERVED else None

    def hand_over(self, key: SigningKey) -> Line | None:
        """The line after which the site signs with another key; None where it does so already."""
        if key.public == self.public:
            return None
        agreed = key.sign(consent(self.head, self.public))
        return "key", {"from": self.public, "key": key.public, "consent": agreed}

    def line(self, key: SigningKey, at_s: float, kind: str, fields: dict[str, Any]) -> SignedEntry:
        """Write the next line, and take it in."""
        if key.public != self.public:
            raise LedgerError(
                "ledger-foreign",
                f"the privacy ledger of {self.site} was begun with another key",
                "A ledger belongs to one site and one key.",
            )
        signed = write(key, site=self.site, number=self.count, at_s=at_s, previous=self.head, kind=kind, fields=fields)
        self.follow([signed])
        return signed


def _at_most(final: Sequence[Event], charged: Sequence[Event]) -> bool:
    """Whether the final releases reveal no more than the charged ones, and there are any.

    Gaussian releases without sampling are together one release, with their inverse variances added up. Others are
    compared one by one: each final one stands for a charged one that was at least as revealing.
    """
    if final and all(event.sampling_rate == 1.0 for event in (*final, *charged)):
        # Sums that are equal but for rounding are.
        return _inverse_variance(final) <= _inverse_variance(charged) * (1 + _EQUAL)

    def dearest_first(event: Event) -> tuple[float, float]:
        return -event.sampling_rate, event.noise_multiplier

    paid = sorted(charged, key=dearest_first)
    free = [event.count for event in paid]
    place = 0
    for event in sorted(final, key=dearest_first):
        count = event.count
        while count:
            if place == len(paid):
                return False
            other = paid[place]
            if event.sampling_rate > other.sampling_rate or event.noise_multiplier < other.noise_multiplier:
                return False
            taken = min(count, free[place])
            count -= taken
            free[place] -= taken
            place += free[place] == 0
    return bool(final)


def _inverse_variance(events: Sequence[Event]) -> float:
    return math.fsum(event.count / event.noise_multiplier**2 for event in events)
