"""Private rounds: what is sampled, clipped and noised, and what is refused before any training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from core_model import LearningConfig, TrainingConfig
from core_model.errors import CoupledLossError
from core_model.tasks import RetrievalTask
from core_model.tasks.base import Evaluation, LearningTask
from core_model.tasks.make import make_task
from participant.training.private.loop import ClipState, PrivateTraining, freeze_unused, participant_share
from privacy.accounting.events import Placement, Unit
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.noise import NoiseKey
from privacy.mechanisms.plan import PrivacyPlan, Share, solve
from privacy.mechanisms.quantile import QuantileClipping

RECORDS = 60


class Toy(LearningTask):
    """Linear regression; ``couple`` makes each record's loss depend on the batch."""

    def __init__(self, records: int = RECORDS, couple: bool = False, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = scale * torch.randn(records, 3, generator=generator)
        self.couple = couple
        self.seen: list[int] = []

    @property
    def examples(self) -> int:
        return len(self.inputs)

    def build_model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Linear(3, 1)

    def batches(self, seed: int, steps: int) -> Iterator[Any]:
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        raise NotImplementedError

    def sampled(self, index: Any, seed: int) -> torch.Tensor:
        self.seen.append(len(index))
        return self.inputs[torch.from_numpy(index)]

    def record_losses(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        found = (model(batch).squeeze(1) - batch.sum(1)) ** 2
        return found + found.mean() if self.couple else found

    def evaluate(self, model: nn.Module) -> Evaluation:
        raise NotImplementedError


def plan(**changes: Any) -> PrivacyPlan:
    fields: dict[str, Any] = {
        "unit": Unit.RECORD,
        "placement": Placement.LOCAL,
        "target_epsilon": 1e3,
        "delta": 1e-4,
        "records": RECORDS,
        "sampling_rate": 0.25,
        "clip_norm": 0.5,
        "rounds": 3,
        "steps_per_round": 4,
        "dimension": 4,
        "multiplier": 1.0,
    }
    return solve(**{**fields, **changes})


def keys() -> Any:
    counter = itertools.count()
    return lambda: NoiseKey(next(counter).to_bytes(32, "big"))


def training(task: Toy, of: PrivacyPlan, **options: Any) -> PrivateTraining:
    return PrivateTraining(task.build_model(0), task, of, max_chunk=options.pop("max_chunk", 7), **options)


SGD = TrainingConfig(
    optimizer="sgd", learning_rate=1.0, momentum=0.0, schedule="constant", warmup_steps=0, weight_decay=0
)


def steps(private: PrivateTraining, clip: ClipState | None = None, settings: TrainingConfig = SGD) -> list[int]:
    done: list[int] = []
    private.steps(
        settings,
        round_number=1,
        rounds=3,
        clip=clip or ClipState(0.5),
        progress=lambda step, total: done.append(step),
        cancelled=lambda: False,
    )
    return done


def test_a_round_takes_its_noisy_steps_in_chunks() -> None:
    task = Toy()
    private = training(task, plan(), keys=keys())
    before = [parameter.clone() for parameter in private._model.parameters()]
    assert steps(private) == [1, 2, 3, 4]
    assert max(task.seen) <= 7
    assert sum(task.seen) == pytest.approx(4 * RECORDS * 0.25, abs=20)
    assert all((a != b).any() for a, b in zip(before, private._model.parameters(), strict=True))


def test_the_same_keys_give_the_same_model_and_fresh_ones_another() -> None:
    def trained(**options: Any) -> torch.Tensor:
        private = training(Toy(), plan(), **options)
        steps(private)
        return torch.cat([parameter.detach().reshape(-1) for parameter in private._model.parameters()])

    assert torch.equal(trained(keys=keys()), trained(keys=keys()))
    one, other = trained(), trained()
    assert not bool((one == other).any())


def test_the_noise_is_what_the_plan_accounts() -> None:
    """One step of rate 1 on the same model many times: the update is the clipped mean, with the plan's noise."""
    of = plan(sampling_rate=1.0, rounds=1, steps_per_round=1, multiplier=2.0)
    task = Toy()
    updates = []
    for number in range(400):
        private = training(task, of, keys=lambda number=number: NoiseKey(number.to_bytes(32, "big")), max_chunk=100)
        base = torch.cat([parameter.detach().clone().reshape(-1) for parameter in private._model.parameters()])
        steps(private)
        after = torch.cat([parameter.detach().reshape(-1) for parameter in private._model.parameters()])
        updates.append((base - after) * RECORDS)
    found = torch.stack(updates)
    exact, _, _ = training(task, of)._clipped(np.arange(RECORDS), 0.5)
    std = 2.0 * of.sensitivity(0.5)
    assert found.std(0).numpy() == pytest.approx(std, rel=0.15)
    assert found.mean(0).numpy() == pytest.approx(exact, abs=5 * std / math.sqrt(400))


@pytest.mark.parametrize("removed", range(0, RECORDS, 7))
def test_a_record_moves_the_clipped_sum_by_the_norm_at_most(removed: int) -> None:
    private = training(Toy(scale=10.0), plan(), max_chunk=11)
    everyone = np.arange(RECORDS)
    whole, below, size = private._clipped(everyone, 0.5)
    without, _, _ = private._clipped(np.delete(everyone, removed), 0.5)
    assert np.linalg.norm(whole - without) <= 0.5
    assert (below, size) == (0, RECORDS)


def test_an_empty_sample_is_a_step_of_pure_noise() -> None:
    task = Toy()
    private = training(task, plan(sampling_rate=1e-6), keys=keys())
    steps(private)
    assert task.seen == []
    assert all(torch.isfinite(parameter).all() for parameter in private._model.parameters())


def test_the_norm_follows_its_quantile_once_a_step() -> None:
    of = plan(adaptive=QuantileClipping(target=0.5), multiplier=0.5, sampling_rate=1.0)
    clip = ClipState(1e-3)
    steps(training(Toy(), of, keys=keys(), max_chunk=10), clip)
    # No gradient is within it: it grows by e^(0.2 * 0.5) a step, give or take the count's noise; four steps a round.
    assert clip.norm == pytest.approx(1e-3 * math.exp(4 * 0.1), rel=0.25)


def test_cancelled_between_two_steps() -> None:
    private = training(Toy(), plan())
    left = iter([False, True])
    done = private.steps(
        SGD,
        round_number=1,
        rounds=1,
        clip=ClipState(0.5),
        progress=lambda step, total: None,
        cancelled=lambda: next(left),
    )
    assert done is False


def shared(**changes: Any) -> PrivacyPlan:
    of = Share(std=0.6, honest=4, grid=1e-4)
    return plan(placement=Placement.SHARED, steps_per_round=1, share=of, **changes)


def test_shares_of_several_sites_carry_the_noise_of_their_sum() -> None:
    task, of = Toy(), shared(sampling_rate=1.0)
    sums = []
    for number in range(300):
        parts = [
            training(
                task, of, keys=lambda key=4 * number + site: NoiseKey(key.to_bytes(32, "big")), max_chunk=100
            ).shared_step(1 << 24)
            for site in range(4)
        ]
        assert parts[0].dtype == np.int32
        sums.append(np.sum(parts, axis=0) * 1e-4)
    exact, _, _ = training(task, of)._clipped(np.arange(RECORDS), 0.5)
    assert np.std(sums, axis=0) == pytest.approx(0.6 * 2, rel=0.15)
    assert np.mean(sums, axis=0) == pytest.approx(-4 * exact, abs=5 * 1.2 / math.sqrt(300))


def test_a_whole_update_is_clipped_before_it_is_shared() -> None:
    of = plan(
        unit=Unit.PARTICIPANT,
        placement=Placement.PARTICIPANT,
        sampling_rate=1.0,
        steps_per_round=1,
        records=1,
        share=Share(std=0.6, honest=4, grid=1e-4),
    )
    update = np.full(4, 100.0, np.float32)
    drawn = [
        participant_share(update, of, 1 << 24, keys=lambda n=n: NoiseKey(n.to_bytes(32, "big"))) for n in range(300)
    ]
    assert np.mean(drawn, axis=0) * 1e-4 == pytest.approx(0.25, abs=0.15)
    with pytest.raises(PrivacyError):
        participant_share(update, plan(), 1 << 24)
    with pytest.raises(PrivacyError):
        training(Toy(), plan()).shared_step(1 << 24)


def test_a_loss_that_looks_at_other_records_is_found_out() -> None:
    training(Toy(), plan()).check()
    with pytest.raises(PrivacyError) as caught:
        training(Toy(couple=True), plan()).check()
    assert caught.value.code == "loss-coupled"


def test_a_loss_that_is_one_number() -> None:
    task = Toy()
    task.record_losses = lambda model, batch: (model(batch) ** 2).mean()  # type: ignore[method-assign]
    with pytest.raises(PrivacyError) as caught:
        training(task, plan()).check()
    assert caught.value.code == "loss-shape"


def test_a_plan_for_another_model_or_loss() -> None:
    for of in (plan(dimension=5), plan(group_factor=2)):
        with pytest.raises(PrivacyError):
            training(Toy(), of)


def retrieval(negatives: str) -> tuple[LearningTask, nn.Module]:
    table = {
        "model": {"image_size": 16, "width": 16, "depth": 1, "heads": 2, "embedding": 16, "text_buckets": 64},
        "task": {"negatives": negatives, "augment": 0.0, "outlines": 0.0},
        "training": {"batch_size": 64},
    }
    task = make_task(LearningConfig.model_validate(table), "emoji:twemoji")
    return task, task.build_model(0)


@pytest.mark.parametrize("negatives", ["bank", "group"])
def test_private_retrieval_decomposes_by_record_or_by_group(negatives: str) -> None:
    task, model = retrieval(negatives)
    assert isinstance(task, RetrievalTask)
    # One caption each: which of several is drawn would move the sum, too, and independently of who else is there.
    task._hashed = [captions[:1] for captions in task._hashed]
    factor = 2 if negatives == "group" else 1
    of = plan(records=task.examples, dimension=freeze_unused(model, task), group_factor=factor)
    private = PrivateTraining(model, task, of, max_chunk=16)
    private.check()
    index = np.arange(40)
    whole, _, _ = private._clipped(index, 0.1)
    moved = []
    for removed in range(0, 40, 5):
        without, _, _ = private._clipped(np.delete(index, removed), 0.1)
        moved.append(float(np.linalg.norm(whole - without)))
    assert max(moved) <= factor * 0.1
    if negatives == "group":
        assert max(moved) > 0.1  # the factor is needed: leaving a group changes the others' gradient, too


def test_batch_negatives_are_refused() -> None:
    task, model = retrieval("batch")
    with pytest.raises(CoupledLossError):
        freeze_unused(model, task)


def test_a_tower_that_nothing_reaches_is_frozen() -> None:
    table = {
        "model": {"image_size": 8, "width": 16, "depth": 1, "heads": 2, "classes": 10},
        "task": {"kind": "classification", "augment": 0.0},
    }
    task = make_task(LearningConfig.model_validate(table), "digits:1/4")
    model = task.build_model(0)
    trained = freeze_unused(model, task)
    assert not any(parameter.requires_grad for parameter in model.text.parameters())  # type: ignore[union-attr]
    private = PrivateTraining(model, task, plan(records=task.examples, dimension=trained), max_chunk=64)
    private.check()
    assert steps(private) == [1, 2, 3, 4]
