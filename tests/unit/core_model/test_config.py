"""Ranges, combinations, and a dump that reads back."""

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_model import LearningConfig, ModelConfig, TaskConfig, TrainingConfig


def test_defaults_are_the_emoji_demonstration_and_read_back():
    config = LearningConfig()
    assert (config.model.kind, config.task.kind) == ("multimodal", "retrieval")
    assert LearningConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.entry_points() == frozenset()


def test_it_is_frozen():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        LearningConfig().model.width = 3


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"training": {"learning_rate": 0}}, "learning_rate"),
        ({"training": {"learning_rate": float("nan")}}, "learning_rate"),
        ({"training": {"local_steps": 0}}, "local_steps"),
        ({"training": {"local_steps": 3, "local_epochs": 1}}, "local_epochs"),
        ({"training": {"momentum": 1.0}}, "momentum"),
        ({"training": {"optimizer": "lamb"}}, "optimizer"),
        ({"model": {"image_size": 30}}, "image_size"),
        ({"model": {"width": 10, "heads": 4}}, "width"),
        ({"model": {"kind": "custom"}}, "factory"),
        ({"model": {"factory": "a:b"}}, "factory"),
        ({"model": {"options": {"a": 1}}}, "factory"),
        ({"model": {"kind": "custom", "factory": "os.system"}}, "factory"),
        ({"task": {"kind": "custom"}}, "loss"),
        ({"task": {"loss": "a:b"}}, "loss"),
        ({"task": {"kind": "classification"}}, "classes"),
        ({"task": {"temperature": 0}}, "temperature"),
        ({"model": {"kind": "custom", "factory": "a:b"}}, "kind"),
        ({"task": {"kindd": "retrieval"}}, "kindd"),
        ({"model": {"classes": 3}, "task": {"kind": "classification", "negatives": "bank"}}, "negatives"),
        ({"task": {"negatives": "group", "image_image": 0.5}}, "image_image"),
        ({"task": {"negatives": "group", "group_size": 1}}, "group_size"),
        ({"task": {"bank": ["a dog"]}}, "bank"),
        ({"task": {"negatives": "bank", "bank": ["a dog", "a dog"]}}, "bank"),
        ({"task": {"negatives": "bank", "bank_size": 1}}, "bank_size"),
        ({"task": {"views": 2}}, "views"),
        ({"task": {"kind": "custom", "loss": "a:b", "views": 2}}, "views"),
        ({"task": {"negatives": "bank", "views": 2, "augment": 0, "outlines": 0}}, "views"),
        ({"model": {"classes": 3}, "task": {"kind": "classification", "views": 2, "augment": 0}}, "views"),
        (
            {"model": {"kind": "custom", "factory": "a:b"}, "task": {"kind": "classification", "views": 2}},
            "views",
        ),
        ({"training": {"average": 1.0}}, "average"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(table, field):
    with pytest.raises(pydantic.ValidationError) as caught:
        LearningConfig.model_validate(table)
    error = caught.value.errors()[0]
    assert field in [*map(str, error["loc"])] or field in error["msg"]


def test_entry_points_are_all_the_code_a_plan_can_name():
    config = LearningConfig(
        model=ModelConfig(kind="custom", factory="a.b:c", options={"n": 1}), task=TaskConfig(kind="custom", loss="d:e")
    )
    assert config.entry_points() == {"a.b:c", "d:e"}


@pytest.mark.parametrize(("examples", "steps"), [(0, 1), (1, 2), (64, 2), (100, 3), (1000, 31)])
def test_epochs_become_steps(examples, steps):
    config = TrainingConfig(local_epochs=2, batch_size=64)
    assert config.steps(examples) == steps
    assert "local_steps" not in config.model_dump()
    assert TrainingConfig.model_validate(config.model_dump()).steps(examples) == steps


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_steps_are_what_was_asked_for(steps, examples):
    assert TrainingConfig(local_steps=steps).steps(examples) == steps


# --- metrics of secure sums -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "metrics"),
    [
        (
            {"model": {"classes": 10}, "task": {"kind": "classification"}},
            ("accuracy", "evaluation/accuracy", "evaluation/loss", "loss"),
        ),
        (
            {"model": {"kind": "custom", "factory": "a:b"}, "task": {"kind": "custom", "loss": "a:c"}},
            ("accuracy", "evaluation/accuracy", "evaluation/loss", "loss"),
        ),
        ({"task": {"metrics": ["loss", "evaluation/f1", "loss"]}}, ("evaluation/f1", "loss")),
        ({"task": {"metrics": []}}, ()),
    ],
)
def test_the_metrics_that_a_secure_sum_tells_follow_from_the_task_or_are_named(table, metrics):
    assert LearningConfig.model_validate(table).metrics() == metrics


def test_retrieval_tells_its_losses_and_recalls():
    metrics = LearningConfig().metrics()
    assert {"loss", "evaluation/loss", "evaluation/missing_r_at_1", "evaluation/unseen_r_at_10"} <= set(metrics)
    assert list(metrics) == sorted(set(metrics))


@pytest.mark.parametrize("name", ["", "a b", "evaluation/", "other/loss", "x" * 41, "\x1b[31m"])
def test_a_metrics_name_that_could_not_be_shown_is_refused(name):
    with pytest.raises(pydantic.ValidationError, match="metrics"):
        TaskConfig(metrics=(name,))


def test_named_metrics_read_back():
    config = LearningConfig.model_validate({"task": {"metrics": ["loss"]}})
    assert LearningConfig.model_validate(config.model_dump(mode="json")) == config
