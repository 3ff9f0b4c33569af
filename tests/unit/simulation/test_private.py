"""Whole private federations in one process: budgets that are kept, shown, and run out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core_model import initial_checkpoint
from core_model.config import LearningConfig
from participant.rules import PrivacyRules
from privacy.accounting import Unit, epsilon
from privacy.ledger.book import Phase
from simulation import workers as work
from simulation.federation import Federation
from simulation.run import RECORD, REPORT, simulate
from wire import FederationConfig, RefusedError

SITES = "abcd"


def config(sites: str = SITES, count: int = 3, **privacy: Any) -> FederationConfig:
    learning = LearningConfig.model_validate(
        {
            "model": {"image_size": 8, "width": 16, "depth": 1, "heads": 2, "classes": 10},
            "task": {"kind": "classification", "augment": 0.0},
            "training": {"local_steps": 2, "batch_size": 32},
        }
    )
    table = {
        "rounds": {"count": count, "min_participants": len(sites), "min_updates": 3},
        "privacy": {"epsilon": 6.0, "delta": 1e-5, **privacy},
        "simulation": {
            "workers": 0,
            "compare_local": False,
            "institutions": [
                {"name": name, "data": f"digits:{number + 1}/{len(sites)}"} for number, name in enumerate(sites)
            ],
        },
    }
    return FederationConfig.model_validate(table).with_learning(learning.model_dump(mode="json"))


class Stage:
    """A federation whose stores can be looked into before and after it ran."""

    def __init__(self, settings: FederationConfig, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        crews = [
            work.Crew(name=item.name, data=item.data, allow=frozenset()) for item in settings.simulation.institutions
        ]
        self.workers = work.Workers(crews, 0)
        initial = folder / "initial.safetensors"
        learning = LearningConfig.model_validate(settings.learning())
        initial_checkpoint(learning, 0, initial, data=crews[0].data)
        self.federation = Federation(settings, initial, folder, self.workers, lambda event: None)

    def __enter__(self) -> Federation:
        return self.federation

    def __exit__(self, *error: object) -> None:
        self.federation.close()
        self.workers.close()


def test_each_site_pays_for_its_own_noise(tmp_path: Path) -> None:
    with Stage(config(placement="local"), tmp_path / "f") as federation:
        state = federation.run()
        assert state.version == 3
        for name, site in federation.participants.items():
            balance = site.ledger.balance(site.agent._budget._dataset)  # type: ignore[union-attr]
            assert 0.9 * 6.0 < balance.spent <= 6.0
            assert balance.spent == pytest.approx(epsilon(balance.events, 1e-5))
            assert {task.phase for task in site.ledger.book().tasks.values()} == {Phase.SETTLED}
            # The coordinator's view is the site's, recomputed from the signed events.
            assert federation.hub.budgets()[name].events == balance.events
        # Nothing that no noise protects was told: neither metrics of training nor scores, nor asked for.
        assert federation.plan.metrics == ()
        assert all(not seat.metrics and not seat.evaluation for item in state.rounds for seat in item.seats.values())


def test_in_asynchronous_rounds_a_site_pays_for_what_it_trains_and_no_more_than_it_allows(tmp_path: Path) -> None:
    settings = config(placement="local", count=3).changed(
        rounds={"mode": "asynchronous", "buffer_size": 3},
        aggregation={"mode": "plain"},
        simulation={"speeds": "stragglers", "straggler_share": 0.25, "straggler_factor": 2.5},
    )
    with Stage(settings, tmp_path / "f") as federation:
        state = federation.run()
        budgets = federation.hub.budgets()
        slow = federation.speeds.stragglers
    assert state.version == 3
    merged = {name: sum(name in item.done() for item in state.rounds if item.version) for name in SITES}
    assert all(merged[name] < 3 for name in slow)
    assert all(0 < budgets[name].spent <= 6.0 for name in SITES if merged[name])
    full = {budgets[name].spent for name in SITES if merged[name] == 3}
    assert all(budgets[name].spent < min(full) for name in slow if merged[name])


def test_shared_noise_is_accounted_for_the_sites_that_were_there(tmp_path: Path) -> None:
    with Stage(config(placement="shared", sampling_rate=0.1, count=4), tmp_path / "f") as federation:
        federation.run()
        noise = federation.plan.shared_noise
        assert noise is not None and noise.honest == 2
        for site in federation.participants.values():
            book = site.ledger.book()
            (event,) = book.events(next(iter(book.data)))
            # Four were in each sum and one of them may be corrupt: three shares count, not the two of the plan.
            assert event.noise_multiplier == pytest.approx(noise.multiplier * (3 / 2) ** 0.5, rel=5e-3)
            assert event.count == 4


def test_a_whole_site_is_hidden(tmp_path: Path) -> None:
    settings = config(placement="participant", epsilon=20.0, delta=1e-3, count=2)
    with Stage(settings, tmp_path / "f") as federation:
        federation.run()
        receipts = federation.hub.budgets()
        assert set(receipts) == set(SITES)
        assert {str(receipt.unit) for receipt in receipts.values()} == {"participant"}
        assert {receipt.records for receipt in receipts.values()} == {1}


def test_a_site_whose_budget_is_spent_leaves_and_the_others_go_on(tmp_path: Path) -> None:
    with Stage(config(placement="local"), tmp_path / "f") as federation:
        poor = federation.participants["a"]
        assert poor.agent._budget is not None
        # Enough for two rounds of three.
        poor.agent._budget._rules = PrivacyRules(epsilon=5.5, delta=1e-5)
        state = federation.run()
        assert state.version == 3
        outcomes = [item.seats["a"].outcome for item in state.rounds]
        assert outcomes[:2] == ["done", "done"]
        assert outcomes[2] == "declined"
        assert state.rounds[2].seats["b"].outcome == "done"
        balance = poor.ledger.balance("digits:1/4")
        assert balance.committed <= 5.5
        assert balance.tasks == 2


@pytest.mark.parametrize(("target", "ends"), [(1e-6, False), (1e6, True)], ids=["more noise", "less noise"])
def test_noise_that_follows_the_releases_keeps_the_budget(target: float, ends: bool, tmp_path: Path) -> None:
    """Every site's noise goes its own way, bound by a filter; what a ledger counts is what was really released."""
    settings = config(placement="local", count=6, adaptive_noise=target, sampling_rate=1.0)
    with Stage(settings, tmp_path / "f") as federation:
        state = federation.run()
        outcomes = [{seat.outcome for seat in item.seats.values()} for item in state.rounds if item.seats]
        # With less noise than planned the budget ends before the run does, and the sites leave in good order.
        assert outcomes[0] == {"done"} and outcomes[-1] == ({"declined"} if ends else {"done"})
        for participant in federation.participants.values():
            [dataset] = participant.ledger.book().data
            tasks = participant.ledger.book().tasks.values()
            events = [event for task in tasks if task.phase is Phase.SETTLED for event in task.events]
            assert len({event.noise_multiplier for event in events}) > 1
            balance = participant.ledger.balance(dataset)
            assert (0.99 if ends else 0.5) * 6.0 < balance.committed <= 6.0 * (1 + 1e-9)
            assert balance.committed < 5.9 or ends
            assert epsilon(balance.events, 1e-5, "reference") == pytest.approx(balance.committed, rel=0.01)


@pytest.mark.parametrize("placement", ["local", "shared"])
def test_a_run_goes_on_until_its_epsilon_is_used_up(placement: str, tmp_path: Path) -> None:
    noise = {"schedule": "until-exhausted", "noise_multiplier": 2.0, "sampling_rate": 1.0}
    with Stage(config(placement=placement, count=100, **noise), tmp_path / "f") as federation:
        state = federation.run()
        assert state.finished is not None and state.finished.reason == "out of budget"
        assert 2 < state.version < 100
        for participant in federation.participants.values():
            [dataset] = participant.ledger.book().data
            plan = participant.agent._prepared.privacy  # type: ignore[union-attr]
            assert plan is not None
            events = [event for task in participant.ledger.book().tasks.values() for event in task.events]
            if placement == "local":  # a shared sum is settled for more noise, and lasts longer
                assert plan.rounds == state.version
                assert epsilon([*events, *plan.round_events(1)], 1e-5) > 6.0 >= epsilon(events, 1e-5)
            assert participant.ledger.balance(dataset).committed <= 6.0


def test_layers_can_be_clipped_by_themselves(tmp_path: Path) -> None:
    with Stage(config(placement="local", count=1, clipping="layers"), tmp_path / "f") as federation:
        assert federation.run().version == 1


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (config(placement="local", delta=0.01), "delta-too-large"),
        (config(placement="local", noise_multiplier=0.2, epsilon=1.0), "budget-too-small"),
    ],
)
def test_promises_that_cannot_be_kept_are_refused_before_any_training(
    tmp_path: Path, settings: FederationConfig, code: str
) -> None:
    with Stage(settings, tmp_path / "f") as federation, pytest.raises(Exception) as caught:
        federation.run()
    assert getattr(caught.value, "code", "") == code


def test_a_site_may_demand_privacy(tmp_path: Path) -> None:
    with Stage(config(placement="off"), tmp_path / "f") as federation:
        federation.participants["b"].agent._rules = type(federation.participants["b"].agent._rules)(
            allow_plain=True, privacy=PrivacyRules(required=True)
        )
        with pytest.raises(RefusedError) as caught:
            federation.run()
    assert caught.value.code == "policy"
    assert "adds no noise" in caught.value.message


def test_the_report_says_what_was_spent_and_left(tmp_path: Path) -> None:
    settings = config(placement="local", count=1, noise_multiplier=1.0)
    result = simulate(settings, tmp_path, lambda event: None, command="fedloom simulate", in_process=True)
    record = json.loads((tmp_path / RECORD).read_text())
    assert [item["name"] for item in record["budgets"]] == list(SITES)
    for item in record["budgets"]:
        assert item["spent"] + item["left"] == pytest.approx(6.0)
    page = (tmp_path / REPORT).read_text()
    assert "Privacy that the run has cost" in page
    assert result.plan.privacy.placement == "local"


def test_a_cap_that_the_administrator_lowered_stays_lowered(tmp_path: Path) -> None:
    with Stage(config(placement="local", noise_multiplier=1.0), tmp_path / "f") as federation:
        site = federation.participants["a"]
        site.ledger.open_dataset("digits:1/4", records=360, unit=Unit.RECORD, epsilon=2.5, delta=1e-5)
        federation.run()
        balance = site.ledger.balance("digits:1/4")
        assert balance.epsilon == 2.5  # and not the six that the process was started with
        assert balance.committed <= 2.5
