"""Whole federations in one process with secure sums, the default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core_model.config import LearningConfig
from participant.work import Job, Workbench
from simulation.federation import Event
from simulation.run import MODEL, RECORD, REPORT, Result
from tests.unit.simulation.test_simulate import config as plain_config
from tests.unit.simulation.test_simulate import run
from wire import BlobStore, ConfigError, DataError, FederationConfig


def config(**changes: Any) -> FederationConfig:
    return plain_config(**{"aggregation": {"mode": "secure"}, **changes})


def model(folder: Path) -> np.ndarray:
    """The float32 vector of a run's final model."""
    content = (folder / MODEL).read_bytes()
    header = int.from_bytes(content[:8], "little")
    return np.frombuffer(content[8 + header :], "<f4")


def test_sums_are_secure_unless_the_configuration_says_otherwise() -> None:
    assert FederationConfig().aggregation.mode == "secure"


def test_a_run_reports_and_its_model_depends_neither_on_speeds_nor_on_keys(tmp_path: Path) -> None:
    seen: list[Event] = []
    one = run(config(), tmp_path / "one", seen.append)
    # Keys, masks and shares are new in each simulation; the order in which participants finish differs, too.
    other = run(config(seconds=[9.0, 1.0, 4.0]), tmp_path / "other")
    assert one.digest == other.digest
    assert one.plan.hash == other.plan.hash
    assert one.plan.secure is not None
    assert [event.round.number for event in seen if event.round is not None] == [1, 2]
    assert sum(event.kind == "trained" for event in seen) == 9
    record = json.loads((tmp_path / "one" / RECORD).read_text())
    assert record["config"]["aggregation"]["mode"] == "secure"
    outcomes = [{seat["name"]: seat["outcome"] for seat in item["participants"]} for item in record["rounds"]]
    assert outcomes == [dict.fromkeys(("site-0", "site-1", "site-2"), "merged")] * 2
    # Who simulates sees each institution's own scores, though the coordinator doesn't.
    assert set(record["final"]) == {"site-0", "site-1", "site-2"}
    assert (tmp_path / "one" / REPORT).exists()


def test_it_differs_from_plain_averaging_by_no_more_than_the_encoding_predicts(tmp_path: Path) -> None:
    once = {"rounds": {"count": 1, "evaluate_every": 0}}
    secure, plain = run(config(**once), tmp_path / "secure"), run(plain_config(**once), tmp_path / "plain")
    base, updates, examples = exact_updates(config(**once), secure, tmp_path)
    mean = np.average(np.array(updates, np.float64), axis=0, weights=examples)
    assert secure.plan.secure is not None
    spec = secure.plan.secure
    # Nothing was clipped, neither the weights nor the updates: what is left is the rounding.
    assert max(examples) <= spec.weight_cap
    assert max(float(np.linalg.norm(update)) for update in updates) < spec.clip_norm
    assert max(float(np.abs(update).max()) for update in updates) < spec.clip_value
    bound = spec.encoding(3).error_bound(3, sum(examples))
    # Three roundings to float32: of the mean, of the new model and of the comparison.
    ulp = 3 * np.spacing(np.abs(base) + np.abs(mean) + 1e-3, dtype=np.float32).astype(np.float64)
    errors = np.abs(model(tmp_path / "secure").astype(np.float64) - (base + mean))
    assert (errors <= bound + ulp).all()
    assert (np.abs(model(tmp_path / "plain").astype(np.float64) - (base + mean)) <= ulp).all()
    # It is rounding that is measured: the two aren't equal, and the bound isn't far from what happens.
    assert secure.digest != plain.digest
    assert errors.max() > bound / 2
    assert bound < np.abs(mean).max() / 40


def exact_updates(
    settings: FederationConfig, result: Result, folder: Path
) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """The first version and each institution's update of round 1, made without any federation."""
    from core_model import initial_checkpoint

    learning = LearningConfig.model_validate(settings.learning())
    initial = folder / "initial.safetensors"
    updates, examples = [], []
    for institution in settings.simulation.institutions:
        bench = Workbench(institution.name, institution.data, frozenset())
        bench.prepare(learning.model_dump(mode="json"))
        if not initial.exists():
            initial_checkpoint(learning, settings.rounds.seed, initial, data=institution.data, allow=frozenset())
        blobs = BlobStore(folder / institution.name)
        job = Job(
            task_id="",
            run_id="",
            train=True,
            round=1,
            rounds=1,
            attempt=1,
            base_version=0,
            base_digest=b"",
            base_size=0,
            seed=settings.rounds.seed,
            evaluate=False,
        )
        outcome = bench.perform(job, initial, blobs, lambda done, total: None, lambda: False)
        updates.append(np.fromfile(blobs.path(outcome.digest), "<f4"))
        examples.append(outcome.examples)
    content = initial.read_bytes()
    assert result.plan.initial.size == len(content)
    vector = np.frombuffer(content[8 + int.from_bytes(content[:8], "little") :], "<f4")
    return vector.astype(np.float64), updates, examples


def test_the_mean_of_groups_means_is_that_of_one_sum_but_for_rounding(tmp_path: Path) -> None:
    once = {"rounds": {"count": 1, "evaluate_every": 0}, "seconds": [1.0] * 9, "training": {"local_steps": 2}}
    one = run(config(**once), tmp_path / "one")
    groups = run(config(**once, secure_aggregation={"group_size": 3}), tmp_path / "groups")
    assert "groups of at least 3" in groups.plan.visibility and "groups" not in one.plan.visibility
    # The same integers are summed; float32 rounds the groups' means once more.
    apart = np.abs(model(tmp_path / "groups").astype(np.float64) - model(tmp_path / "one").astype(np.float64))
    assert apart.max() <= 4 * np.spacing(np.float32(np.abs(model(tmp_path / "one")).max()))


def test_a_straggler_takes_its_atom_out_of_the_round_and_the_others_are_merged(tmp_path: Path) -> None:
    settings = config(
        seconds=[1.0] * 8 + [5_000.0],
        rounds={"count": 2, "min_participants": 9, "deadline_s": 60.0, "evaluate_every": 0},
        training={"local_steps": 2},
        secure_aggregation={"group_size": 3},
    )
    result = run(settings, tmp_path)
    for item in result.record.rounds:
        outcomes = {seat.name: seat.outcome for seat in item.participants}
        late = {name for name, outcome in outcomes.items() if outcome != "merged"}
        assert outcomes["site-8"] == "late" and len(late) == 3
        assert {outcomes[name] for name in late - {"site-8"}} == {"sat out"}
    assert len({frozenset(seat.name for seat in item.participants) for item in result.record.rounds}) == 1


def test_a_straggler_past_the_deadline_is_left_out_of_the_sum(tmp_path: Path) -> None:
    rounds = {"count": 1, "deadline_s": 60.0, "evaluate_every": 0}
    result = run(config(seconds=[1.0, 1.0, 1.0, 5_000.0], rounds=rounds), tmp_path)
    (only,) = result.record.rounds
    outcomes = {seat.name: seat.outcome for seat in only.participants}
    assert outcomes == {"site-0": "merged", "site-1": "merged", "site-2": "merged", "site-3": "late"}
    assert only.seconds == pytest.approx(60.0)


def test_updates_that_are_never_usable_end_with_a_reason_and_not_never(tmp_path: Path) -> None:
    # Each step multiplies every matrix by 1 - 90 * 10: float32 overflows within 20 steps on any processor.
    training = {"optimizer": "sgd", "learning_rate": 90.0, "weight_decay": 10.0, "clip_norm": 0.0, "local_steps": 40}
    with pytest.raises(DataError, match="not finite") as failure:
        run(config(training=training), tmp_path)
    assert "site-" in str(failure.value)
    assert not (tmp_path / REPORT).exists()


def test_two_institutions_are_too_few_and_the_error_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="a secure sum needs at least 3 participants") as failure:
        config(seconds=[1.0, 1.0])
    assert 'mode = "plain"' in str(failure.value)
    assert config(seconds=[1.0, 1.0], aggregation={"mode": "plain"})


def test_fewer_institutions_than_a_round_needs_are_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"names 3 institutions, but \[rounds\] min_participants is 4"):
        run(config(rounds={"count": 1, "min_participants": 4}), tmp_path)
