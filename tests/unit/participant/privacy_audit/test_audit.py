"""The audit of a run's own training: its lower bound beside the accountant's, with and without a planted bug."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from privacy_mutants import fixed_keys, noise_at_half_scale, one_key

from core_model import LearningConfig, Manifest, make_task
from core_model.tasks.base import LearningTask
from participant.privacy_audit.audit import TrainingAudit, audit_training, guesses, with_dimension
from participant.privacy_audit.plans import run_plan
from participant.privacy_audit.reference import ReferenceTask
from participant.training.private.engine import RecordGradients
from privacy.accounting.events import Placement, Unit
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.plan import solve
from wire import ConfigError, FederationConfig, RunPlan, shared_noise, validate

LEARNING = {
    "model": {"image_size": 8, "width": 16, "heads": 2, "depth": 1, "text_buckets": 16, "classes": 10},
    "task": {"kind": "classification"},
    "training": {"learning_rate": 0.005, "local_steps": 6, "batch_size": 64},
}
LOCAL = {"placement": "local", "epsilon": 6.0, "delta": 1e-4, "clip_norm": 0.5}
SHARED = {**LOCAL, "placement": "shared", "sampling_rate": 0.2}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prepared(
    privacy: dict[str, Any], learning: dict[str, Any] = LEARNING, data: str = "digits:1/6", rounds: int = 3
) -> tuple[RunPlan, LearningConfig, LearningTask]:
    config = validate(LearningConfig, learning, "test")
    settings = validate(
        FederationConfig,
        {"rounds": {"count": rounds}, "privacy": privacy, **config.model_dump(mode="json")},
        "test",
    )
    task = make_task(config, data)
    return run_plan(settings, Manifest.of(task.build_model(0)).dimension), config, task


def audit(privacy: dict[str, Any], canaries: int = 200, steps: int = 12, **options: Any) -> TrainingAudit:
    coins = np.random.default_rng(5).random(canaries) < 0.5
    run, config, task = prepared(privacy, **options.pop("of", {}))
    keys = options.pop("keys", fixed_keys())
    return audit_training(run, config, task, canaries=canaries, steps=steps, keys=keys, coins=coins, **options)


def bad(found: TrainingAudit) -> set[str]:
    return {item.name for item in found.findings if not item.good and item.name != "power"}


def test_a_right_training_stays_under_its_epsilon() -> None:
    told: list[tuple[int, int]] = []
    found = audit(LOCAL, progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 12) for number in range(1, 13)]
    assert found.good and bad(found) == set()
    assert found.steps == 12
    assert 0 <= found.lower.epsilon <= found.upper <= 6.0
    assert found.lower.canaries == 200
    assert "one record" in found.statement
    assert {item.name for item in found.findings} >= {"noise", "sum", "fresh", "lattice", "sampling"}


def test_canaries_show_a_good_part_of_epsilon_where_every_step_uses_all() -> None:
    privacy = {**LOCAL, "sampling_rate": 1.0, "noise_multiplier": 0.0, "epsilon": 8.0}
    found = audit(privacy, canaries=1_000, steps=18)
    assert found.good
    assert 0.35 * found.upper < found.lower.epsilon < found.upper
    assert found.upper == pytest.approx(8.0, rel=0.01)


def test_half_the_noise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    noise_at_half_scale(monkeypatch)
    found = audit(LOCAL)
    assert not found.good
    assert "noise" in bad(found)


@pytest.mark.slow
def test_half_the_noise_exceeds_epsilon_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many canaries the lower bound alone says so, without a look at single steps."""
    noise_at_half_scale(monkeypatch)
    run, config, task = prepared({**LOCAL, "sampling_rate": 1.0, "epsilon": 2.0})
    coins = np.random.default_rng(6).random(4_000) < 0.5
    found = audit_training(run, config, task, canaries=4_000, steps=18, keys=fixed_keys(), coins=coins)
    assert found.lower.epsilon > found.upper


def test_clipping_that_is_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecordGradients, "factors", lambda self, norms, clip: torch.ones_like(norms))
    found = audit(LOCAL, canaries=64, steps=6)
    assert not found.good
    assert {"separation", "sum"} <= bad(found)
    # 64 coins prove no more, and all of them were told.
    assert found.lower.right == found.lower.guesses


def test_a_noise_seed_that_is_used_again_is_found() -> None:
    assert "fresh" in bad(audit(LOCAL, canaries=64, steps=4, keys=one_key))


def test_shared_noise() -> None:
    found = audit(SHARED, of={"rounds": 12})
    assert found.good and bad(found) == set()
    assert found.steps == 12
    assert "shared" in found.statement
    assert found.upper <= 6.0 * 1.001


def test_a_schedule_and_a_norm_that_follows() -> None:
    privacy = {**LOCAL, "schedule": "linear", "schedule_end": 0.6, "quantile": 0.6}
    found = audit(privacy, steps=18)
    assert found.good and bad(found) == set()


def test_a_contrastive_loss_in_groups() -> None:
    learning = {
        "model": {"image_size": 8, "width": 16, "heads": 2, "depth": 1, "text_buckets": 64},
        "task": {"kind": "retrieval", "negatives": "group", "group_size": 4},
        "training": {"local_steps": 3, "batch_size": 64},
    }
    found = audit(LOCAL, canaries=64, steps=6, of={"learning": learning, "data": "emoji:twemoji"})
    assert found.good and bad(found) == set()


def test_no_more_steps_than_the_run_has() -> None:
    assert audit(LOCAL, canaries=32, steps=1_000, of={"rounds": 1}).steps == 6


def test_noise_that_hides_sites_is_not_audited_at_one() -> None:
    run, config, task = prepared({**LOCAL, "placement": "participant"})
    with pytest.raises(PrivacyError) as caught:
        audit_training(run, config, task, canaries=32, steps=2)
    assert caught.value.code == "audit-participant"
    assert "--config" in caught.value.hint


def test_a_loss_that_couples_records_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    run, config, task = prepared(LOCAL)
    right = type(task).record_losses
    monkeypatch.setattr(
        type(task), "record_losses", lambda self, model, batch: (lambda x: x + x.mean())(right(self, model, batch))
    )
    with pytest.raises(PrivacyError) as caught:
        audit_training(run, config, task, canaries=32, steps=2)
    assert caught.value.code == "loss-coupled"


# --- parts ------------------------------------------------------------------------------------------------------------


def plan(**changes: Any) -> Any:
    fields: dict[str, Any] = {
        "unit": Unit.RECORD,
        "placement": Placement.LOCAL,
        "target_epsilon": 1e3,
        "delta": 1e-5,
        "records": 1_000,
        "sampling_rate": 1.0,
        "clip_norm": 1.0,
        "rounds": 10,
        "steps_per_round": 10,
        "dimension": 100,
        "multiplier": 10.0,
    }
    return solve(**{**fields, **changes})


def test_how_many_coins_are_guessed_follows_from_public_numbers() -> None:
    """All of them where they are easy to tell, few where they are hard; always an even number that there are."""
    found = [guesses(plan(multiplier=sigma), 100, 1_000) for sigma in (2.0, 5.0, 10.0, 30.0)]
    assert found[0] > 2 * found[1] and found[1] > found[2]
    assert all(number % 2 == 0 and 2 <= number <= 1_000 for number in found)
    assert guesses(plan(), 100, 1_000) == guesses(plan(), 100, 1_000)
    assert 2 <= guesses(plan(sampling_rate=0.01, multiplier=1.0), 100, 17) <= 17


def test_a_shared_noise_fits_the_larger_model() -> None:
    run, _, _ = prepared(SHARED)
    noise = run.shared_noise
    assert noise is not None
    changed = with_dimension(run, 4 * run.initial.dimension, 2).shared_noise
    assert changed is not None
    assert (changed.multiplier, changed.honest) == (noise.multiplier, noise.honest)
    sensitivity = 2 * 0.5 + changed.grid * math.sqrt(4 * run.initial.dimension)
    assert changed.share_std * math.sqrt(changed.honest) == pytest.approx(changed.multiplier * sensitivity)
    assert with_dimension(prepared(LOCAL)[0], 7, 1).shared_noise is None


@pytest.mark.parametrize("placement", ["local", "shared", "participant"])
def test_a_plan_from_a_configuration_is_that_of_a_run(placement: str) -> None:
    config = validate(LearningConfig, LEARNING, "test")
    tables = {"privacy": {**(SHARED if placement == "shared" else LOCAL), "placement": placement}}
    settings = validate(FederationConfig, {**tables, **config.model_dump(mode="json")}, "test")
    mine = run_plan(settings, 5_000)
    assert mine.shared_noise == shared_noise(settings, 5_000)
    assert mine.privacy == settings.privacy
    assert mine.initial.dimension == 5_000


def test_numbers_that_do_not_fit_a_sum_are_told() -> None:
    with pytest.raises(ConfigError, match="value_bits"):
        prepared({**SHARED, "value_bits": 16})


def test_the_reference_task_can_be_trained_without_privacy() -> None:
    task = ReferenceTask(30)
    model = task.build_model(0)
    batches = list(task.batches(0, 3))
    assert len(batches) == 3
    losses = [task.loss(model, batch)[0] for batch in batches]
    assert all(torch.isfinite(loss) for loss in losses)
