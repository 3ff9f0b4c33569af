"""The accounting rows of ``benchmarks.private_training``: is epsilon tight, do accountants agree, what does it cost.

The cases are committed schedules: constant noise, noise in stages, and a sampling rate that changes. dp-accounting's
privacy loss distribution at an interval of 1e-4 is the measure.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Report, Row
from participant.ledger import BudgetLedger
from privacy.accounting import COARSE, FINE, Composed, Event, GaussianEvent, Unit, epsilon
from privacy.ledger import JobInfo
from privacy.secure_aggregation.keys import SigningKey

TIGHT_TARGET: Final = 1.0
AGREEMENT_TARGET: Final = 0.01
STEP_TARGET_US: Final = 50.0
ROUND_TARGET_S: Final = 1.0
MANY_TARGET_S: Final = 5.0

PRV_ERROR: Final = 0.005
"""By how much Opacus's PRV accountant may be off; it reports the upper end, so it is as far from ours at least."""

MANY: Final = 10_000
ROUND_STEPS: Final = 20
DATASET: Final = "records"


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A training whose noise was fixed before it began."""

    name: str
    events: tuple[Event, ...]
    delta: float = 1e-5


def _event(sigma: float, rate: float, count: int) -> Event:
    return GaussianEvent(noise_multiplier=sigma, sampling_rate=rate, count=count)


QUICK: Final = (
    Schedule("constant", (_event(1.0, 0.01, 1_000),)),
    Schedule("rare records", (_event(0.8, 0.001, 20_000),), 1e-6),
    Schedule("two stages", (_event(1.5, 0.01, 500), _event(1.0, 0.01, 500))),
)
FULL: Final = (
    *QUICK,
    Schedule("long", (_event(1.1, 256 / 60_000, 14_040),)),
    Schedule("federated rounds", (_event(3.0, 0.25, 100),)),
    Schedule("four rates", tuple(_event(1.2, rate, 250) for rate in (0.01, 0.02, 0.03, 0.04))),
    Schedule("ten stages", tuple(_event(2.0 * 0.4 ** (step / 9), 0.02, 100) for step in range(10))),
)


def falling(steps: int) -> list[Event]:
    """Noise that falls from 1.5 to 0.9, another at each step: the worst for accountants; a plan has fewer levels."""
    return [_event(1.5 * 0.6 ** (step / max(1, steps - 1)), 0.01, 1) for step in range(steps)]


def prv_epsilon(schedule: Schedule) -> float:
    """Epsilon by Opacus's PRV accountant (Gopi et al. 2021)."""
    from opacus.accountants import PRVAccountant

    second: Any = PRVAccountant()
    second.history = [(event.noise_multiplier, event.sampling_rate, event.count) for event in schedule.events]
    return float(second.get_epsilon(delta=schedule.delta, eps_error=PRV_ERROR))


def opacus_rdp_epsilon(schedule: Schedule) -> float:
    """Epsilon by Opacus's RDP accountant."""
    from opacus.accountants import RDPAccountant

    peer: Any = RDPAccountant()
    peer.history = [(event.noise_multiplier, event.sampling_rate, event.count) for event in schedule.events]
    with warnings.catch_warnings():
        # The best order may lie at the end of its range, and dividing by it may overflow; the figure is a bound anyway.
        warnings.simplefilter("ignore")
        return float(peer.get_epsilon(delta=schedule.delta))


def epsilon_rows(report: Report, schedules: Sequence[Schedule], peer: str | None) -> None:
    """How far the reported epsilon is above the measure, and how far accountants in other hands are from it.

    Args:
        report: Gets the rows; each has the worst of the schedules.
        schedules: The cases.
        peer: Opacus with its version; None where it isn't installed.
    """
    case = f"{len(schedules)} committed schedules"
    measures = [epsilon(one.events, one.delta, "reference", interval=FINE) for one in schedules]
    reported = [epsilon(one.events, one.delta, interval=FINE) for one in schedules]
    online = [epsilon(one.events, one.delta, interval=COARSE) for one in schedules]
    by_rdp = None if peer is None else [opacus_rdp_epsilon(one) for one in schedules]
    for name, found in (("reported", reported), ("decided with during a run", online)):
        report.add(
            Row(
                case=case,
                metric=f"epsilon {name}, above PLD at 1e-4",
                value=100 * (_most(found, measures) - 1),
                unit="%",
                better="lower",
                target=TIGHT_TARGET,
                peer=None if peer is None else f"epsilon by RDP, {peer}",
                ratio=None if by_rdp is None else _most(by_rdp, found),
            )
        )
    apart = [("dp-accounting's PLD", measures)]
    if peer is not None:
        apart.append(("Opacus's PRV", [prv_epsilon(one) for one in schedules]))
    for name, others in apart:
        report.add(
            Row(
                case=case,
                metric=f"epsilon apart from {name}",
                value=max(abs(mine - other) for mine, other in zip(reported, others, strict=True)),
                unit="",
                better="lower",
                target=AGREEMENT_TARGET,
            )
        )


def _most(values: Sequence[float], bases: Sequence[float]) -> float:
    return max(value / base for value, base in zip(values, bases, strict=True))


def cost_rows(report: Report, rounds: int) -> None:
    """What accounting costs: a step, epsilon of many different steps, and a round at the ledger.

    Args:
        report: Gets the rows.
        rounds: At the ledger.
    """
    spent = Composed()
    events = falling(MANY)
    started = time.perf_counter()
    for event in events:
        spent.add(event)
    adding_s = time.perf_counter() - started
    each, balance_s = ledger_rounds(rounds, ROUND_STEPS)
    many = f"{MANY:,} steps, each with noise of its own"
    ledger = f"ledger on disk, {rounds} rounds of {ROUND_STEPS} such steps"
    figures: list[tuple[str, str, float, str, float | None]] = [
        (many, "accounting of a step", 1e6 * adding_s / MANY, "us", STEP_TARGET_US),
        (many, "epsilon of all", _seconds(lambda: spent.epsilon(1e-5)), "s", MANY_TARGET_S),
        (ledger, "a round, median", statistics.median(each), "s", ROUND_TARGET_S),
        (ledger, "a round, slowest", max(each), "s", ROUND_TARGET_S),
        (ledger, "balance for the record", balance_s, "s", None),
    ]
    for case, metric, value, unit, target in figures:
        report.add(Row(case=case, metric=metric, value=value, unit=unit, better="lower", target=target))


def ledger_rounds(rounds: int, steps: int) -> tuple[list[float], float]:
    """Seconds of each round at a ledger (reserve, charge, settle, receipt), and of the balance at the end."""
    events = falling(rounds * steps)
    with tempfile.TemporaryDirectory() as folder:
        ledger = BudgetLedger(Path(folder) / "ledger.db", SigningKey.generate(), site="ward-a")

        def at_the_ledger(number: int) -> None:
            task = f"run/{number}"
            job = JobInfo(
                run_id="run",
                round=number,
                coordinator="coordinator",
                plan_hash=hashlib.sha256(b"plan").digest(),
                model=hashlib.sha256(b"model").hexdigest(),
            )
            ledger.reserve(task, DATASET, job, events[(number - 1) * steps : number * steps])
            ledger.charge(task)
            ledger.settle(task)
            ledger.receipt(DATASET, "run", number)

        try:
            ledger.open_dataset(DATASET, records=10_000, unit=Unit.RECORD, epsilon=1e3, delta=1e-5)
            times = [_seconds(functools.partial(at_the_ledger, number)) for number in range(1, rounds + 1)]
            return times, _seconds(lambda: ledger.balance(DATASET))
        finally:
            ledger.close()


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
