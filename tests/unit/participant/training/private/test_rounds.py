"""A site's private rounds, from a run's plan to what leaves the site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core_model import CoupledLossError, LearningConfig, initial_checkpoint
from participant.privacy import History
from participant.training import LocalTrainer, TrainingCancelled, TrainingResult
from participant.training.private import rounds
from participant.training.private.rounds import PrivateRounds
from privacy.accounting.events import Event, GaussianEvent, Placement, Unit
from privacy.mechanisms.adaptive import AdaptiveNoise
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.plan import PrivacyPlan, solve
from wire import AggregationSpec, InitialModel, PrivacySpec, RoundsSpec, RunPlan, SecureSpec, SharedNoise

DIGITS = LearningConfig.model_validate(
    {
        "model": {"image_size": 8, "width": 16, "heads": 2, "depth": 1, "text_buckets": 16, "classes": 10},
        "task": {"kind": "classification", "augment": 0.1},
        "training": {"learning_rate": 0.005, "local_steps": 5, "batch_size": 60},
    }
)
CODE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

SEEDS = []

class Net(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(3) if norm else nn.LayerNorm(3)

    def forward(self, x):
        SEEDS.append(torch.initial_seed())
        return self.norm(self.dropout(self.layer(x)))

def model(norm=False):
    return Net(norm)

def loss(module, batch):
    return module(batch[0]).square().mul(torch.arange(3)).sum(1)

def mean(module, batch):
    return loss(module, batch).mean()

class Data(TensorDataset):
    persons = [i // 4 for i in range(64)]

def data():
    return Data(torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
"""
ALLOW = frozenset({"private_code:model", "private_code:loss", "private_code:mean", "private_code:data"})
START = np.full(15, 0.1, np.float32)


def run_plan(placement: str, *, count: int = 3, **privacy: Any) -> RunPlan:
    shared = None
    if placement in ("shared", "participant"):
        shared = SharedNoise(multiplier=2.0, share_std=2.2, honest=1, grid=1e-4, quantum=1e-6, value_bits=27)
    # The noise is given, since solving it takes seconds.
    usual: dict[str, Any] = {"epsilon": 200.0, "delta": 1e-4, "noise_multiplier": 1.0}
    if placement == "shared":
        usual["sampling_rate"] = 0.1
    return RunPlan(
        federation="x",
        run_id="x-1",
        learning={},
        rounds=RoundsSpec(count=count),
        aggregation=AggregationSpec(),
        secure=SecureSpec(),
        privacy=PrivacySpec.model_validate({"placement": placement, **usual, **privacy}),
        shared_noise=shared,
        initial=InitialModel(digest="0" * 64, size=10_000_000, dimension=1000, manifest_hash="0" * 64),
    )


def site(placement: str, config: LearningConfig = DIGITS, data: str = "digits:1/4", **privacy: Any) -> LocalTrainer:
    return LocalTrainer(config, data, name="a", allow=ALLOW, run=run_plan(placement, **privacy))


def plan_of(where: LocalTrainer) -> PrivacyPlan:
    assert where.privacy is not None
    return where.privacy


@pytest.fixture
def base(tmp_path: Path) -> Any:
    initial_checkpoint(DIGITS, 0, tmp_path / "model")
    return LocalTrainer(DIGITS, "digits:1/4", name="a").read(tmp_path / "model")


def train(where: LocalTrainer, base: Any, **changes: Any) -> TrainingResult:
    fields: dict[str, Any] = {
        "seed": 1,
        "round_number": 1,
        "rounds": 3,
        "progress": lambda done, total: None,
        "cancelled": lambda: False,
    }
    return where.train(base, **{**fields, **changes})


# --- what leaves ------------------------------------------------------------------------------------------------------


def test_local_noise_gives_an_ordinary_update_without_metrics(base: Any) -> None:
    before = base.copy()
    done: list[tuple[int, int]] = []
    result = train(site("local"), base, progress=lambda step, total: done.append((step, total)))
    assert done == [(step, 5) for step in range(1, 6)]
    assert result.update.dtype == np.float32 and result.update.shape == base.shape
    assert (result.metrics, result.share, result.examples) == ({}, None, 360)
    assert np.isfinite(result.update).all() and np.abs(result.update).max() > 0
    np.testing.assert_array_equal(base, before)
    assert len(result.content) == 4 * len(base)


def test_the_same_round_twice_gives_two_updates_wherever_anything_is_trained(base: Any) -> None:
    """A site that was killed and trains again draws new noise: the difference of two releases would tell it."""
    where = site("local")
    one, two = train(where, base).update, train(where, base).update
    assert ((one != two) == (one != 0)).all() and (one != 0).mean() > 0.5


def test_what_the_loss_does_not_reach_stays_as_it_was(base: Any) -> None:
    where = site("local")
    update = train(where, base).update
    text = [entry for entry in where.manifest.entries if entry.name.startswith("text")]
    assert text and not any(update[entry.offset : entry.offset + entry.size].any() for entry in text)
    assert plan_of(where).dimension < where.manifest.dimension


def test_private_training_learns(base: Any) -> None:
    """With much data for so few parameters and a large budget, noise doesn't hide the signal."""
    training = DIGITS.training.model_copy(update={"local_steps": 15, "batch_size": 300})
    config = DIGITS.model_copy(update={"training": training})
    where, vector = site("local", config, "digits:1/1", epsilon=1000.0, noise_multiplier=0.7), base
    before = where.evaluate(vector).metrics["accuracy"]
    for number in range(1, 4):
        vector = vector + train(where, vector, round_number=number).update
    assert where.evaluate(vector).metrics["accuracy"] > max(0.4, before + 0.2)


@pytest.mark.parametrize("placement", ["local", "shared"])
def test_a_round_that_is_cancelled_gives_nothing(placement: str, base: Any) -> None:
    with pytest.raises(TrainingCancelled):
        train(site(placement), base, cancelled=lambda: True)


@pytest.mark.parametrize("placement", ["shared", "participant"])
def test_shared_noise_gives_integers_for_a_secure_sum(placement: str, base: Any) -> None:
    where = site(placement)
    result = train(where, base)
    assert result.share is not None and result.share.dtype == np.int32 and result.share.shape == base.shape
    assert result.metrics == {} and len(result.update) == 0 and len(result.content) == 4 * len(base)
    # 2.2 / 1e-4 lattice units, give or take a clipped gradient or update.
    assert result.share.std() == pytest.approx(22_000, rel=0.05)
    again = train(where, base).share
    assert again is not None and (result.share != again).mean() > 0.999


def test_a_shared_noise_covers_what_this_site_does_not_reach(base: Any) -> None:
    where = site("shared")
    share = train(where, base).share
    assert share is not None and plan_of(where).dimension == where.manifest.dimension
    for entry in where.manifest.entries:
        if entry.size > 100:
            assert share[entry.offset : entry.offset + entry.size].std() == pytest.approx(22_000, rel=0.3)


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_is_solved_for_this_site() -> None:
    plan = plan_of(site("local", epsilon=5.0, noise_multiplier=0.0))
    assert (plan.unit, plan.placement, plan.group_factor) == (Unit.RECORD, Placement.LOCAL, 1)
    assert plan.sampling_rate == pytest.approx(60 / 360) and plan.steps_per_round == 5
    assert 4.5 < plan.epsilon <= 5.0 and plan.multiplier > 0.5
    whole = plan_of(site("participant", delta=1e-3))
    assert whole.unit is Unit.PARTICIPANT and whole.sampling_rate == 1.0
    assert LocalTrainer(DIGITS, "digits:1/4", name="a").privacy is None


def test_what_a_round_has_cost_is_known(base: Any) -> None:
    where = site("local")
    private = where._private
    assert private is not None and private.released == []
    train(where, base, round_number=2)
    assert private.released == [private.plan.step(number).event for number in range(5, 10)]


def test_delta_is_judged_by_the_units_of_the_site() -> None:
    with pytest.raises(PrivacyError) as caught:
        site("local", delta=1 / 300)
    assert caught.value.code == "delta-too-large"


# --- code of one's own ------------------------------------------------------------------------------------------------


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "private_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "private_code", raising=False)

    def make(loss: str = "loss", **options: Any) -> LearningConfig:
        return LearningConfig.model_validate(
            {
                "model": {"kind": "custom", "factory": "private_code:model", "options": options},
                "task": {"kind": "custom", "loss": f"private_code:{loss}"},
                "training": {"local_steps": 4, "batch_size": 16, "learning_rate": 0.01},
            }
        )

    return make


def test_persons_are_protected_where_the_data_know_them(custom: Any) -> None:
    where = site("local", custom(), "private_code:data")
    plan = plan_of(where)
    assert plan.unit is Unit.PERSON and "person" in plan.statement()
    assert plan.sampling_rate == pytest.approx(16 / 64)
    assert np.isfinite(train(where, START).update).all()
    with pytest.raises(PrivacyError):  # There are 16 persons.
        site("local", custom(), "private_code:data", delta=0.07)
    assert plan_of(site("participant", custom(), "private_code:data", delta=0.01)).unit is Unit.PARTICIPANT


def test_dropout_has_a_seed_that_nobody_knows(custom: Any) -> None:
    where = site("local", custom(), "private_code:data")
    seeds = __import__("private_code").SEEDS
    found = []
    for _ in range(2):
        seeds.clear()
        state = torch.get_rng_state()
        train(where, START)
        assert torch.equal(state, torch.get_rng_state())
        found.append(set(seeds))
    assert all(found) and found[0].isdisjoint(found[1])


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"loss": "mean"}, CoupledLossError, "loss-coupled"),
        ({"norm": True}, PrivacyError, "layer-batch-norm"),
    ],
)
def test_what_cannot_be_private_is_refused_before_any_training(
    custom: Any, options: dict[str, Any], error: type[Exception], code: str
) -> None:
    with pytest.raises(error) as caught:
        site("local", custom(**options), "private_code:data")
    assert caught.value.code == code and caught.value.hint  # type: ignore[attr-defined]


def test_a_loss_over_the_batch_is_fine_where_whole_sites_are_hidden(custom: Any) -> None:
    result = train(site("participant", custom("mean"), "private_code:data", delta=0.01), START)
    assert result.share is not None


# --- noise that follows what is released ------------------------------------------------------------------------------


def following(plan: PrivacyPlan) -> PrivacyPlan:
    return solve(
        unit=plan.unit,
        placement=plan.placement,
        target_epsilon=4.0,
        delta=plan.delta,
        records=plan.records,
        sampling_rate=1.0,
        clip_norm=plan.clip_norm,
        rounds=plan.rounds,
        steps_per_round=plan.steps_per_round,
        dimension=plan.dimension,
        noise=AdaptiveNoise(),
    )


def test_noise_that_follows_stays_within_the_budget_over_rounds_and_restarts(
    custom: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = site("local", custom(), "private_code:data")
    first = where._private
    assert first is not None
    monkeypatch.setattr(rounds, "site_plan", lambda *args, **fields: following(first.plan))

    def restarted() -> PrivateRounds:
        return PrivateRounds(first._run, first._config, first._task, where._model)

    def steps(private: PrivateRounds, spent: Sequence[Event] | None = None) -> int:
        done: list[int] = []
        history = None if spent is None else History(task_id="t", spent=tuple(spent))
        private.train(
            where._model,
            START,
            round_number=1,
            rounds=3,
            progress=lambda step, total: done.append(step),
            cancelled=lambda: False,
            history=history,
        )
        return len(done)

    one = restarted()
    assert [steps(one), steps(one)] == [4, 4] and len(one.released) == 4
    assert one._trained is not None and one._trained[1].control is not None
    spent = one._trained[1].control.spent
    assert sum(event.count for event in spent) == 8
    most = sum(steps(one) for _ in range(10))
    assert 0 < most < 40, "the filter ends it"
    assert steps(one) == 0 and one.released == []
    assert 0 < steps(restarted(), spent) <= 4
    assert steps(restarted(), [GaussianEvent(noise_multiplier=0.5)]) == 0


@pytest.mark.parametrize("paid", [True, False])
def test_what_follows_the_releases_never_follows_a_round_that_nobody_paid_for(paid: bool, base: Any) -> None:
    """A round that was called off is given back by the ledger, so nothing may leave that depends on it."""
    where = site("local", quantile=0.5)
    before = run_plan("local").privacy.clip_norm
    train(where, base, history=History(task_id="t1"))
    assert where._private is not None and where._private._trained is not None
    after = where._private._trained[1].clip.norm
    assert after != before
    train(where, base, history=History(task_id="t2", released=frozenset({"t1"} if paid else ())))
    assert where._private._followed.clip.norm == (after if paid else before)


def test_a_step_without_the_control_that_its_plan_needs_is_refused(custom: Any) -> None:
    where = site("local", custom(), "private_code:data")
    private = where._private
    assert private is not None
    private._followed.control = following(private.plan).control()
    with pytest.raises(PrivacyError) as caught:
        train(where, START)
    assert caught.value.code == "plan-inconsistent"
