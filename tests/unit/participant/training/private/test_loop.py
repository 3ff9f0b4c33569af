"""Private rounds: what is sampled, clipped, noised and shared."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from private_tasks import CLIP, RECORDS, SGD, Regression, counted_keys, make_plan, shared_plan
from torch import nn

from core_model import Manifest, TrainingConfig, flatten, load
from participant.training.private import DPAdamBC
from participant.training.private.loop import ClipState, PrivateTraining, _optimizer, _set, participant_share
from privacy.accounting.events import Placement, Unit
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.plan import PrivacyPlan, Share
from privacy.mechanisms.quantile import QuantileClipping


def training(task: Regression, plan: PrivacyPlan, **options: Any) -> PrivateTraining:
    return PrivateTraining(task.build_model(0), task, plan, max_chunk=options.pop("max_chunk", 7), **options)


def run(private: PrivateTraining, clip: ClipState | None = None, settings: TrainingConfig = SGD) -> list[int]:
    done: list[int] = []
    private.steps(
        settings,
        round_number=1,
        rounds=3,
        clip=clip or ClipState(CLIP),
        progress=lambda step, total: done.append(step),
        cancelled=lambda: False,
    )
    return done


# --- local steps ------------------------------------------------------------------------------------------------------


def test_a_round_takes_its_noisy_steps_in_chunks() -> None:
    task = Regression()
    private = training(task, make_plan(), keys=counted_keys())
    before = flatten(private._model)
    assert run(private) == [1, 2, 3, 4]
    assert max(task.seen) <= 7
    assert sum(task.seen) == pytest.approx(4 * RECORDS * 0.25, abs=20)
    assert (before != flatten(private._model)).all()


def test_the_same_keys_give_the_same_model_and_a_repeated_round_another() -> None:
    def trained(**options: Any) -> Any:
        private = training(Regression(), make_plan(), **options)
        run(private)
        return flatten(private._model)

    assert (trained(keys=counted_keys()) == trained(keys=counted_keys())).all()
    # From the same base, as after a crash: no coordinate has the same noise.
    assert (trained() != trained()).all()


def test_two_rounds_of_one_training_have_different_noise() -> None:
    private = training(Regression(), make_plan(sampling_rate=1e-6, rounds=1, steps_per_round=1))
    base = flatten(private._model)
    updates = []
    for _ in range(2):
        load(private._model, base)
        run(private)
        updates.append(flatten(private._model) - base)
    assert (updates[0] != updates[1]).all() and np.all(updates)


def test_random_changes_to_records_have_secret_seeds() -> None:
    task = Regression()
    for _ in range(2):
        run(training(task, make_plan(), keys=counted_keys()))
    seeds = [seed for seed in task.seeds if seed is not None]
    assert len(set(seeds)) == len(seeds) == len(task.seeds) > 8


@pytest.mark.parametrize("clip", [0.5, 0.05])
def test_the_noise_is_what_the_plan_accounts(clip: float) -> None:
    """One step of rate 1 on the same model many times: the update is the clipped mean, with the plan's noise."""
    plan = make_plan(sampling_rate=1.0, rounds=1, steps_per_round=1, multiplier=2.0)
    private = training(Regression(), plan, keys=counted_keys(), max_chunk=100)
    base = flatten(private._model)
    updates = []
    for _ in range(400):
        load(private._model, base)
        run(private, ClipState(clip))
        updates.append((base - flatten(private._model)) * RECORDS)
    load(private._model, base)
    exact = private._clipped(np.arange(RECORDS), clip).total
    std = plan.step(0).noise_multiplier * plan.sensitivity(clip)
    assert std == pytest.approx(2.0 * clip, rel=0.006)
    assert np.std(updates, axis=0) == pytest.approx(std, rel=0.15)
    assert np.mean(updates, axis=0) == pytest.approx(exact, abs=5 * std / math.sqrt(400))


def test_a_schedule_changes_the_noise_from_step_to_step() -> None:
    from privacy.mechanisms.schedules import NoiseSchedule

    plan = make_plan(
        sampling_rate=1e-6, rounds=1, steps_per_round=2, schedule=NoiseSchedule(kind="linear", end=0.25), multiplier=4.0
    )
    private = training(Regression(), plan, keys=counted_keys())
    noise: list[list[float]] = [[], []]
    for _ in range(200):
        vectors = [flatten(private._model)]
        private.steps(
            SGD,
            round_number=1,
            rounds=1,
            clip=ClipState(CLIP),
            progress=lambda step, total, seen=vectors: seen.append(flatten(private._model)),  # type: ignore[misc]
            cancelled=lambda: False,
        )
        for number in range(2):
            noise[number] += (vectors[number + 1] - vectors[number]).tolist()
    expected = [plan.step(number).noise_multiplier * plan.sensitivity(CLIP) for number in range(2)]
    normaliser = RECORDS * 1e-6
    assert [float(np.std(part)) * normaliser for part in noise] == pytest.approx(expected, rel=0.1)


def test_an_empty_sample_is_a_step_of_pure_noise() -> None:
    task = Regression()
    private = training(task, make_plan(sampling_rate=1e-6), keys=counted_keys())
    assert run(private) == [1, 2, 3, 4]
    assert task.seen == [] and np.isfinite(flatten(private._model)).all()


def test_cancelled_between_two_steps() -> None:
    left = iter([False, True])
    done = training(Regression(), make_plan()).steps(
        SGD,
        round_number=1,
        rounds=1,
        clip=ClipState(CLIP),
        progress=lambda step, total: None,
        cancelled=lambda: next(left),
    )
    assert done is False


def test_the_sum_without_noise_does_not_travel() -> None:
    found = training(Regression(), make_plan())._clipped(np.arange(3), CLIP)
    with pytest.raises(TypeError, match="never leaves"):
        pickle.dumps(found)


def test_a_record_with_numbers_that_are_not_finite_does_not_count() -> None:
    task = Regression()
    private = training(task, make_plan())
    without = private._clipped(np.delete(np.arange(RECORDS), 5), CLIP).total
    task.inputs[5] = torch.nan
    np.testing.assert_allclose(private._clipped(np.arange(RECORDS), CLIP).total, without, atol=1e-6)


@pytest.mark.parametrize("size", [0.01, 100.0])
def test_a_loss_on_public_data_is_lowered_too_and_never_outweighs_a_record(size: float) -> None:
    task = Regression()
    task.public_loss = lambda model, seed: size * model.bias.sum()  # type: ignore[method-assign]
    with_public, without = training(task, make_plan()), training(Regression(), make_plan())
    expected = np.array([0, 0, 0, min(size, CLIP)])
    np.testing.assert_allclose(with_public._public(CLIP), expected, rtol=1e-6)
    assert without._public(CLIP).tolist() == [0, 0, 0, 0]
    moved = []
    for private in (
        training(task, make_plan(), keys=counted_keys()),
        training(Regression(), make_plan(), keys=counted_keys()),
    ):
        run(private, settings=SGD.model_copy(update={"learning_rate": 1e-4}))
        moved.append(flatten(private._model))
    # Four steps: the same noise, and nearly the same gradients.
    assert (moved[1] - moved[0])[3] == pytest.approx(4e-4 * min(size, CLIP), rel=0.2)


def test_a_share_carries_the_public_gradient_once_for_each_record_of_a_batch() -> None:
    task = Regression()
    task.public_loss = lambda model, seed: 0.2 * model.bias.sum()  # type: ignore[method-assign]
    plan = shared_plan(sampling_rate=1e-9)
    with_public, without = (
        training(one, plan, keys=counted_keys()).shared_step(1 << 24, 15) for one in (task, Regression())
    )
    assert (with_public - without).tolist() == [0, 0, 0, round(-15 * 0.2 / 1e-4)]


# --- sensitivity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removed", range(0, RECORDS, 7))
@pytest.mark.parametrize("views", [1, 3])
def test_a_record_moves_the_clipped_sum_by_the_norm_at_most(removed: int, views: int) -> None:
    task = Regression(scale=10.0, views=views)
    task.sampled = lambda index, seed: Regression.sampled(task, index, None)  # type: ignore[method-assign]
    private = training(task, make_plan(), max_chunk=11)
    everyone = np.arange(RECORDS)
    whole = private._clipped(everyone, CLIP)
    without = private._clipped(np.delete(everyone, removed), CLIP)
    assert 0.9 * CLIP <= np.linalg.norm(whole.total - without.total) <= CLIP
    assert (whole.below, whole.owners) == (0, RECORDS)


def test_several_views_are_one_record() -> None:
    """The mean of the views' gradients is clipped, not each view's."""
    task = Regression(views=4)
    private = training(task, make_plan(), max_chunk=8)
    clipped = private._clipped(np.arange(6), 1e6)
    assert clipped.owners == 6 and max(task.seen) == 8
    assert np.linalg.norm(private._clipped(np.arange(1), 0.1).total) <= 0.1


@pytest.mark.parametrize("removed", range(0, 12, 2))
def test_a_person_moves_the_clipped_sum_by_the_norm_at_most(removed: int) -> None:
    persons = np.arange(RECORDS) % 12 * 1_000_003
    plan = make_plan(unit=Unit.PERSON, records=12)
    private = training(Regression(scale=10.0, persons=persons), plan, max_chunk=7)
    whole = private._clipped(np.arange(12), CLIP)
    without = private._clipped(np.delete(np.arange(12), removed), CLIP)
    assert whole.owners == 12
    assert 0.9 * CLIP <= np.linalg.norm(whole.total - without.total) <= CLIP


@pytest.mark.parametrize("removed", range(0, RECORDS, 5))
def test_a_group_moves_the_clipped_sum_by_twice_the_norm_at_most(removed: int) -> None:
    plan = make_plan(group_factor=2)
    private = training(Regression(scale=10.0, group_count=9), plan, max_chunk=8)
    whole = private._clipped(np.arange(RECORDS), CLIP)
    without = private._clipped(np.delete(np.arange(RECORDS), removed), CLIP)
    assert whole.owners == 9
    assert np.linalg.norm(whole.total - without.total) <= 2 * CLIP
    assert plan.sensitivity(CLIP) >= 2 * CLIP


def test_chunks_do_not_change_the_sum() -> None:
    for task, plan in (
        (Regression(), make_plan()),
        (Regression(group_count=9), make_plan(group_factor=2)),
        (Regression(persons=np.arange(RECORDS) // 5), make_plan(unit=Unit.PERSON, records=12)),
    ):
        units = np.arange(12)
        sums = [training(task, plan, max_chunk=size)._clipped(units, CLIP).total for size in (1, 5, 1000)]
        np.testing.assert_allclose(sums[0], sums[2], atol=1e-5)
        np.testing.assert_allclose(sums[1], sums[2], atol=1e-5)


# --- the clipping norm that follows the data --------------------------------------------------------------------------


def test_the_norm_follows_its_quantile_once_a_step() -> None:
    plan = make_plan(adaptive=QuantileClipping(target=0.5), multiplier=0.5, sampling_rate=1.0)
    clip = ClipState(1e-3)
    run(training(Regression(), plan, keys=counted_keys(), max_chunk=10), clip)
    # No gradient is within it: it grows by e^(0.2 * 0.5) a step, give or take the count's noise; four steps a round.
    assert clip.norm == pytest.approx(1e-3 * math.exp(4 * 0.1), rel=0.25)


def test_the_norm_finds_the_median() -> None:
    plan = make_plan(adaptive=QuantileClipping(target=0.5), multiplier=1.0, sampling_rate=1.0, steps_per_round=60)
    private = training(Regression(), plan, keys=counted_keys(), max_chunk=100)
    clip = ClipState(1.0)
    still = TrainingConfig(optimizer="sgd", learning_rate=1e-9, momentum=0.0)
    run(private, clip, still)
    share = private._clipped(np.arange(RECORDS), clip.norm).below / RECORDS
    assert 0.35 < share < 0.65


@pytest.mark.parametrize(("groups", "factor"), [(None, 1), (9, 2)])
def test_a_counts_noise_is_as_much_as_its_sensitivity_needs(groups: int | None, factor: int) -> None:
    """A record takes part with one half of an owner's indicator; a group's turns from one side to the other."""
    adaptive = QuantileClipping(target=0.5, learning_rate=1.0, count_multiplier=3.0)
    plan = make_plan(
        adaptive=adaptive, multiplier=1.5, sampling_rate=1e-3, group_factor=factor, rounds=1, steps_per_round=1
    )
    private = training(Regression(200, group_count=groups), plan, keys=counted_keys())
    private._clipped = lambda units, norm: type(found)(found.total, 0, 0)  # type: ignore[method-assign]
    found = PrivateTraining._clipped(private, np.arange(0), CLIP)
    seen: list[float] = []
    expected = private._population.expected(1e-3)
    object.__setattr__(plan.adaptive, "next_norm", lambda norm, count, batch: seen.append(count) or norm)
    base = flatten(private._model)
    for _ in range(600):
        load(private._model, base)
        run(private)
    assert np.std(seen) == pytest.approx(3.0 * 1.5 * factor, rel=0.1)
    assert expected == pytest.approx(0.2, rel=0.02)


# --- optimizers -------------------------------------------------------------------------------------------------------


def test_adamw_takes_the_noise_out_of_its_second_moment() -> None:
    model = nn.Linear(3, 1)
    optimizer = _optimizer(model, TrainingConfig(weight_decay=0.3))
    assert isinstance(optimizer, DPAdamBC)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert isinstance(_optimizer(model, SGD), torch.optim.SGD)
    _set(optimizer, 0.1, 0.5, 1)
    first = optimizer.param_groups[0]
    assert (first["lr"], first["noise_std"]) == (0.1, 0.5)
    assert first["floor"] == pytest.approx(0.25 * math.sqrt(2))


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_the_floor_is_the_spread_of_a_second_moment_of_noise_alone(steps: int) -> None:
    beta, std = 0.98, 0.7
    weights = (1 - beta) * beta ** np.arange(steps)[::-1] / (1 - beta**steps)
    squares = (std * np.random.default_rng(0).standard_normal((40_000, steps))) ** 2
    optimizer = _optimizer(nn.Linear(3, 1), TrainingConfig())
    _set(optimizer, 0.1, std, steps)
    assert (squares @ weights).std() == pytest.approx(optimizer.param_groups[0]["floor"], rel=0.05)


def test_pure_noise_moves_adamw_by_about_its_step_size() -> None:
    """However small the noise is: where it is all there is, a coordinate doesn't move by more than Adam's would."""
    for multiplier in (0.1, 10.0):
        plan = make_plan(sampling_rate=1e-6, rounds=1, steps_per_round=20, multiplier=multiplier)
        private = training(Regression(), plan, keys=counted_keys())
        base = flatten(private._model)
        settings = TrainingConfig(learning_rate=0.01, schedule="constant", warmup_steps=0, weight_decay=0)
        run(private, settings=settings)
        # A random walk of 20 steps of 0.01 with momentum 0.9.
        assert 0.005 < np.abs(flatten(private._model) - base).max() < 0.5


def test_the_average_of_the_steps_moves_less_than_the_last_one() -> None:
    found = []
    for average in (0.0, 0.9):
        private = training(Regression(), make_plan(multiplier=5.0, sampling_rate=1e-6), keys=counted_keys())
        base = flatten(private._model)
        run(private, settings=SGD.model_copy(update={"average": average}))
        found.append(np.linalg.norm(flatten(private._model) - base))
    assert 0 < found[1] < found[0]


# --- shared noise -----------------------------------------------------------------------------------------------------


def test_shares_of_several_sites_carry_the_noise_of_their_sum() -> None:
    task, plan = Regression(), shared_plan(sampling_rate=1.0)
    sites = [training(task, plan, keys=counted_keys(site << 64), max_chunk=100) for site in range(4)]
    sums = []
    for _ in range(300):
        parts = [site.shared_step(1 << 24, 15) for site in sites]
        assert parts[0].dtype == np.int32
        sums.append(np.sum(parts, axis=0) * 1e-4)
    exact = sites[0]._clipped(np.arange(RECORDS), CLIP).total
    assert np.std(sums, axis=0) == pytest.approx(0.6 * 2, rel=0.15)
    assert np.mean(sums, axis=0) == pytest.approx(-4 * exact, abs=5 * 1.2 / math.sqrt(300))
    # Four honest sites make the noise that is accounted.
    assert 0.6 * 2 / plan.sensitivity(CLIP) >= plan.step(0).noise_multiplier


class TwoTowers(nn.Module):
    """The second tower isn't reached by the loss of :class:`Regression`; the buffer is nobody's."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(5, 2)
        self.register_buffer("fixed", torch.ones(3))
        self.used = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.used(x)
        return found


def test_a_share_covers_what_only_others_train() -> None:
    """Sites may differ in what their data reach; a coordinate without a site's share would have too little noise."""
    model = TwoTowers()
    names = [name for name, _ in model.named_parameters()]
    model.other.requires_grad_(False)
    plan = shared_plan(sampling_rate=1e-9, dimension=16)
    private = PrivateTraining(model, Regression(), plan, max_chunk=9, noised=names, keys=counted_keys())
    drawn = np.array([private.shared_step(1 << 24, 15) for _ in range(300)])
    spread = {e.name: drawn[:, e.offset : e.offset + e.size].std() for e in Manifest.of(model).entries}
    assert spread.pop("fixed") == 0
    assert list(spread) == names
    assert list(spread.values()) == pytest.approx([0.6 / 1e-4] * 4, rel=0.15)
    with pytest.raises(PrivacyError, match="16 parameters"):
        PrivateTraining(model, Regression(), plan, max_chunk=9)


def test_a_whole_update_is_clipped_before_it_is_shared() -> None:
    plan = make_plan(
        unit=Unit.PARTICIPANT,
        placement=Placement.PARTICIPANT,
        sampling_rate=1.0,
        steps_per_round=1,
        records=1,
        share=Share(std=0.6, honest=4, grid=1e-4),
    )
    update = np.full(4, 100.0, np.float32)
    keys = counted_keys()
    drawn = np.array([participant_share(update, plan, 1 << 24, keys) for _ in range(300)]) * 1e-4
    assert drawn.mean(0) == pytest.approx(CLIP / 2, abs=0.15)
    assert drawn.std(0) == pytest.approx(0.6, rel=0.15)
    short = np.array([participant_share(update / 1e4, plan, 1 << 24, keys) for _ in range(300)]) * 1e-4
    assert short.mean(0) == pytest.approx(0.01, abs=0.15)
    with pytest.raises(PrivacyError) as caught:
        participant_share(np.full(4, np.nan, np.float32), plan, 1 << 24)
    assert caught.value.code == "sum-not-finite"


@pytest.mark.parametrize("other", ["participant", "shared"])
def test_a_plan_of_another_placement(other: str) -> None:
    with pytest.raises(PrivacyError) as caught:
        if other == "participant":
            participant_share(np.zeros(4, np.float32), make_plan(), 1 << 24)
        else:
            training(Regression(), make_plan()).shared_step(1 << 24, 15)
    assert caught.value.code == "plan-inconsistent"


@pytest.mark.parametrize(
    ("task", "changes", "code"),
    [
        (Regression(), {"dimension": 5}, "model-untrained"),
        (Regression(), {"group_factor": 2}, "plan-inconsistent"),
        (Regression(group_count=4), {}, "plan-inconsistent"),
        (Regression(), {"unit": Unit.PERSON}, "unit-invalid"),
    ],
)
def test_a_plan_for_another_model_loss_or_unit(task: Regression, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(PrivacyError) as caught:
        training(task, make_plan(**changes))
    assert caught.value.code == code
