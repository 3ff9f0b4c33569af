"""Local training: the same bytes wherever it runs, and nothing sent that must not be."""

import concurrent.futures
import multiprocessing
import threading

import numpy as np
import pytest
import torch

from core_model import DataError, LearningConfig, ManifestError, TrainingError, initial_checkpoint
from participant.training import LocalTrainer, TrainingCancelled

CONFIG = LearningConfig.model_validate(
    {
        "model": {"image_size": 8, "width": 16, "heads": 2, "depth": 1, "text_buckets": 16, "classes": 10},
        "task": {"kind": "classification", "augment": 0.1},
        "training": {"learning_rate": 0.005, "local_steps": 8, "batch_size": 16},
    }
)
CODE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

class Net(nn.Module):
    def __init__(self, size, fault):
        super().__init__()
        self.layer = nn.Linear(2, size)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(size)
        self.fault = fault

    def forward(self, x):
        return self.norm(self.dropout(self.layer(x)))

def model(size=3, fault=""):
    return Net(size, fault)

def loss(module, batch):
    value = module(batch[0]).square().mean()
    if module.fault == "nan":
        value = value * float("nan")
    if module.fault == "update":
        with torch.no_grad():
            module.layer.bias.fill_(float("inf"))
        value = module.norm.weight.sum()
    if module.fault == "huge":
        with torch.no_grad():
            module.norm.bias.fill_(1e31)
        value = module.norm.weight.sum()
    return value, {"steps_so_far": float(module.norm.num_batches_tracked)}

def data():
    return TensorDataset(torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
"""
ALLOW = frozenset({"trained_code:model", "trained_code:loss", "trained_code:data"})


def trainer(name="a", data="digits:1/4"):
    return LocalTrainer(CONFIG, data, name=name)


@pytest.fixture
def base(tmp_path):
    initial_checkpoint(CONFIG, 0, tmp_path / "model")
    return trainer().read(tmp_path / "model")


@pytest.fixture
def custom(tmp_path, monkeypatch):
    (tmp_path / "trained_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "trained_code", raising=False)

    def make(**options):
        table = {
            "model": {"kind": "custom", "factory": "trained_code:model", "options": options},
            "task": {"kind": "custom", "loss": "trained_code:loss"},
            "training": {"local_steps": 4, "batch_size": 16, "clip_norm": 0},
        }
        return LocalTrainer(LearningConfig.model_validate(table), "trained_code:data", name="c", allow=ALLOW)

    return make


def train(where, base, seed=1, round_number=1, rounds=3):
    return where.train(
        base,
        seed=seed,
        round_number=round_number,
        rounds=rounds,
        progress=lambda done, total: None,
        cancelled=lambda: False,
    )


def bytes_of_a_round(base):
    return train(trainer(), base).update.tobytes()


def test_an_update_is_the_difference_to_the_base(base):
    before = base.copy()
    result = train(trainer(), base)
    assert result.update.dtype == np.float32 and result.update.shape == base.shape
    assert result.examples == trainer().examples == 360
    assert 0 < np.abs(result.update).max() < 1 and np.isfinite(result.update).all()
    assert set(result.metrics) == {"loss", "accuracy"}
    np.testing.assert_array_equal(base, before)


def test_training_lowers_the_loss(base):
    where, vector = trainer(), base
    for number in range(1, 6):
        vector = vector + train(where, vector, round_number=number, rounds=5).update
    assert where.evaluate(vector).metrics["loss"] < where.evaluate(base).metrics["loss"]
    assert where.evaluate(vector).examples == 360


def test_the_same_bytes_after_other_work_in_threads_and_in_processes(base):
    used = trainer()
    train(used, base + 1, seed=9, round_number=2)
    used.evaluate(base)
    torch.manual_seed(123)
    expected = bytes_of_a_round(base)
    assert train(used, base).update.tobytes() == expected
    found = []
    thread = threading.Thread(target=lambda: found.append(bytes_of_a_round(base)))
    thread.start()
    thread.join()
    assert found == [expected]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(bytes_of_a_round, base).result() == expected


def test_seed_round_and_name_each_matter(base):
    where = trainer()
    different = [
        train(where, base),
        train(where, base, seed=2),
        train(where, base, round_number=2, rounds=3),
        train(trainer(name="b"), base),
    ]
    assert len({result.update.tobytes() for result in different}) == 4


def test_process_wide_settings_are_put_back(base):
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    train(trainer(), base)
    assert torch.get_num_threads() == 2 and torch.equal(torch.get_rng_state(), state)
    torch.set_num_threads(1)


def test_progress_and_cancellation(base):
    steps = []
    arguments = {"seed": 1, "round_number": 1, "rounds": 1}
    trainer().train(base, **arguments, progress=lambda d, t: steps.append((d, t)), cancelled=lambda: False)
    assert steps == [(i, 8) for i in range(1, 9)]
    steps.clear()
    with pytest.raises(TrainingCancelled, match="after 3 of 8"):
        trainer().train(base, **arguments, progress=lambda d, t: steps.append(d), cancelled=lambda: len(steps) == 3)


@pytest.mark.parametrize("vector", [np.zeros(4, np.float32), np.zeros(4)])
def test_a_base_of_another_model_is_refused(vector):
    for call in (lambda: train(trainer(), vector), lambda: trainer().evaluate(vector)):
        with pytest.raises(ManifestError):
            call()


def test_checkpoints_are_read_with_the_models_own_manifest(tmp_path, base):
    manifest = initial_checkpoint(CONFIG, 7, tmp_path / "other")
    assert manifest.digest == trainer().manifest_hash and len(manifest.digest) == 32
    assert (trainer().read(tmp_path / "other") != base).any()
    (tmp_path / "other").write_bytes(b"nonsense")
    with pytest.raises(ManifestError):
        trainer().read(tmp_path / "other")


@pytest.mark.parametrize(
    ("fault", "what"), [("nan", "the loss is not finite in round 1, step 1"), ("update", "the update")]
)
def test_what_is_not_finite_is_not_sent(custom, fault, what):
    where = custom(fault=fault)
    base = np.zeros(where.manifest.dimension, np.float32)
    with pytest.raises(TrainingError, match=what) as caught:
        train(where, base)
    assert caught.value.message.startswith("c:") and "learning_rate" in caught.value.hint


def test_dropout_and_integer_buffers_do_not_remember_the_last_round(custom):
    where = custom()
    base = np.full(where.manifest.dimension, 0.5, np.float32)
    first, second = train(where, base), train(where, base)
    assert first.update.tobytes() == second.update.tobytes()
    assert first.metrics["steps_so_far"] == second.metrics["steps_so_far"] == 2.5
    assert train(where, base, seed=5).update.tobytes() != first.update.tobytes()


def test_large_but_finite_updates_pass(custom):
    where = custom(fault="huge")
    base = np.zeros(where.manifest.dimension, np.float32)
    with np.errstate(over="ignore"):
        update = train(where, base).update
        assert not np.isfinite(np.dot(update, update))  # The quick check alone would have refused it.
    assert np.isfinite(update).all() and update.max() > 1e30


def test_scores_that_are_not_finite_are_left_out(base):
    scores = trainer().evaluate(np.full_like(base, np.nan))
    assert "loss" not in scores.metrics and scores.examples == 360


def test_the_gallery_is_empty_where_there_is_nothing_to_search(tmp_path, base):
    initial_checkpoint(CONFIG, 0, tmp_path / "model")
    assert trainer().gallery(tmp_path / "model", 3) == []


def test_data_that_do_not_fit_are_refused_before_training():
    with pytest.raises(DataError):
        LocalTrainer(LearningConfig(), "digits:1/4", name="a")


def test_averaged_weights_are_between_the_first_and_the_last_ones(base):
    def moved(average):
        config = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"average": average})})
        return train(LocalTrainer(config, "digits:1/4", name="a"), base).update

    last, averaged = moved(0.0), moved(0.8)
    np.testing.assert_array_equal(last, train(trainer(), base).update)
    assert 0 < np.linalg.norm(averaged) < np.linalg.norm(last)
    assert float(np.dot(averaged, last)) > 0
