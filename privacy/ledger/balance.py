"""What lines add up to: the budget of a data set, the tasks that it was spent on, and the events that they cost."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable

from privacy.accounting.events import Event, GaussianEvent, Unit


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spending:
    """One task's place in the ledger.

    Attributes:
        task_id: The task.
        dataset: Whose budget pays.
        job: For whom.
        reserved: What the task may cost, as it was reserved.
        events: What it has cost as far as is known: ``reserved`` until it is settled.
        phase: How far it has come.
        at_s: When it was reserved, by the site's clock.
    """

    task_id: str
    dataset: str
    job: JobInfo
    reserved: tuple[Event, ...]
    events: tuple[Event, ...]
    phase: Phase
    at_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
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

    @property
    def reserved(self) -> float:
        """What open reservations add to ``spent``."""
        return self.committed - self.spent


class Tally:
    """Events counted by their kind, so that a balance needn't walk through all tasks.

    Formal Guarantees:
        Counts are whole numbers: adding events and taking them away again leaves exactly what was there.
    """

    def __init__(self, counts: dict[tuple[float, float], int] | None = None) -> None:
        self._counts = {} if counts is None else counts

    def copy(self) -> Tally:
        """One that goes its own way."""
        return Tally(dict(self._counts))

    def move(self, events: Iterable[Event], sign: int) -> None:
        """Count events in (``sign`` 1) or out (-1)."""
        for event in events:
            kind = (event.sampling_rate, event.noise_multiplier)
            count = self._counts.get(kind, 0) + sign * event.count
            if count:
                self._counts[kind] = count
            else:
                del self._counts[kind]

    @property
    def events(self) -> list[Event]:
        """All, equal ones counted together."""
        return [
            GaussianEvent(noise_multiplier=sigma, sampling_rate=rate, count=count)
            for (rate, sigma), count in sorted(self._counts.items())
        ]
