"""The accounting rows: they hold what the benchmark says, and the ledger really is written."""

from __future__ import annotations

import math

import pytest

from benchmarks import private_accounting
from benchmarks.private_accounting import QUICK, Schedule, cost_rows, epsilon_rows, falling, ledger_rounds
from benchmarks.report import Report
from participant.ledger import BudgetLedger
from privacy.accounting import GaussianEvent

GAUSSIAN = Schedule("unsampled", (GaussianEvent(noise_multiplier=30.0, count=100),))


def test_schedules_are_as_they_are_called() -> None:
    names = [one.name for one in private_accounting.FULL]
    assert len(set(names)) == len(names) and private_accounting.FULL[: len(QUICK)] == QUICK
    events = falling(101)
    sigmas = [event.noise_multiplier for event in events]
    assert sigmas[0] == 1.5 and sigmas[-1] == pytest.approx(0.9)
    assert sorted(sigmas, reverse=True) == sigmas and len(set(sigmas)) == 101
    assert len(falling(1)) == 1


def test_rows_of_epsilon_without_a_peer() -> None:
    report = Report("private_training")
    epsilon_rows(report, [GAUSSIAN], None)
    above, online, apart = report.rows
    assert -0.1 < above.value < 0.1 and above.unit == "%" and above.target == private_accounting.TIGHT_TARGET
    assert online.value >= above.value - 1e-9
    assert 0 <= apart.value < 1e-3 and apart.target == private_accounting.AGREEMENT_TARGET
    assert all(row.peer is None and row.ratio is None for row in report.rows)


def test_rows_show_the_worst_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"reference": [1.0, 2.0], 1e-4: [1.005, 2.0], 1e-3: [1.005, 2.1]}

    def epsilon(events: tuple[GaussianEvent, ...], delta: float, by: str = "pld", *, interval: float = 1e-4) -> float:
        return figures["reference" if by == "reference" else interval][0 if events[0].count == 1 else 1]

    monkeypatch.setattr(private_accounting, "epsilon", epsilon)
    monkeypatch.setattr(private_accounting, "prv_epsilon", lambda one: 2.0)
    monkeypatch.setattr(private_accounting, "opacus_rdp_epsilon", lambda one: 3.0)
    both = [Schedule(str(count), (GaussianEvent(noise_multiplier=1.0, count=count),)) for count in (1, 2)]
    report = Report("private_training")
    epsilon_rows(report, both, "Opacus 0.0")
    assert [row.value for row in report.rows] == pytest.approx([0.5, 5.0, 0.005, 0.995])
    assert [row.met for row in report.rows] == [True, False, True, False]
    assert report.rows[0].ratio == pytest.approx(3.0 / 1.005)
    assert report.rows[0].peer == "epsilon by RDP, Opacus 0.0"


def test_the_second_accountant_is_opacus() -> None:
    pytest.importorskip("opacus")
    one = Schedule("short", (GaussianEvent(noise_multiplier=1.0, sampling_rate=0.01, count=100),))
    ours = private_accounting.epsilon(one.events, one.delta)
    assert 0 <= private_accounting.prv_epsilon(one) - ours <= 2 * private_accounting.PRV_ERROR
    assert private_accounting.opacus_rdp_epsilon(one) > ours


def test_rounds_are_at_a_ledger_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for name in ("reserve", "charge", "settle", "receipt"):
        real = getattr(BudgetLedger, name)

        def watched(self: BudgetLedger, *args: object, name: str = name, real: object = real) -> object:
            seen.append(name)
            return real(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(BudgetLedger, name, watched)
    times, balance_s = ledger_rounds(2, 3)
    assert seen == ["reserve", "charge", "settle", "receipt"] * 2
    assert len(times) == 2 and all(seconds > 0 for seconds in (*times, balance_s))


def test_rows_of_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_accounting, "MANY", 40)
    monkeypatch.setattr(private_accounting, "ledger_rounds", lambda rounds, steps: ([0.5, 2.0, 0.25], 0.125))
    report = Report("private_training")
    cost_rows(report, 3)
    step, all_, median, slowest, balance = report.rows
    assert step.unit == "us" and 0 < step.value < 1e3 and step.case.startswith("40 steps")
    assert 0 < all_.value < 60 and math.isfinite(all_.value)
    assert (median.value, slowest.value, balance.value) == (0.5, 2.0, 0.125)
    assert [row.met for row in (median, slowest, balance)] == [True, False, None]
