"""The merge over real files: its arithmetic, its independence of order and slicing, and every way it can be refused."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from coordinator.aggregation import (
    FedAdam,
    FedAvg,
    Intake,
    MergeJob,
    MergeResult,
    OptimizerOverflow,
    ServerOptimizer,
    Update,
    UpdateRefused,
    merge,
)
from coordinator.merging import Mean, MergeRefused, Recipe, TrimmedMean
from coordinator.store import Checkpoint
from wire import (
    AggregationSpec,
    BlobStore,
    DataError,
    FedloomError,
    InitialModel,
    MergingSpec,
    RefusedError,
    RoundsSpec,
    RunPlan,
)

D = 1_000
PLAIN = Recipe(rule=Mean(f=0))
OPTIMIZERS = [FedAvg(), FedAvg(learning_rate=0.5, momentum=0.9), FedAdam(learning_rate=0.1)]


def checkpoint_bytes(vector: np.ndarray) -> bytes:
    """Two tensors, so that the header has something to get wrong."""
    first = len(vector) // 3
    table = {
        "a": {"dtype": "F32", "shape": [first], "data_offsets": [0, 4 * first]},
        "b": {"dtype": "F32", "shape": [len(vector) - first], "data_offsets": [4 * first, 4 * len(vector)]},
    }
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + vector.astype("<f4").tobytes()


class Folder:
    """A base, some updates and a blob store in one folder."""

    def __init__(self, path: Path, *, dimension: int = D, updates: int = 5, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.path = path
        self.blobs = BlobStore(path / "blobs")
        self.base = generator.standard_normal(dimension).astype(np.float32)
        self.base_path = path / "base.safetensors"
        self.base_path.write_bytes(checkpoint_bytes(self.base))
        self.differences = (0.01 * generator.standard_normal((updates, dimension))).astype(np.float32)
        self.examples = [int(count) for count in generator.integers(1, 1_000, updates)]
        self.updates = tuple(self.add(index, row) for index, row in enumerate(self.differences))

    def add(self, index: int, row: np.ndarray) -> Update:
        path = self.path / f"update-{index}"
        row.astype("<f4").tofile(path)
        examples = self.examples[index] if index < len(self.examples) else 1
        return Update(participant=f"site-{index:03}", path=path, examples=examples)

    def job(self, optimizer: ServerOptimizer, state: tuple[Path, ...] = ()) -> MergeJob:
        return MergeJob(base=self.base_path, updates=self.updates, optimizer=optimizer, state=state, recipe=PLAIN)

    def mean(self) -> np.ndarray:
        return np.average(self.differences.astype(np.float64), axis=0, weights=self.examples)

    def vector(self, result: MergeResult) -> np.ndarray:
        content = self.blobs.path(result.digest).read_bytes()
        return np.frombuffer(content[-4 * len(self.base) :], dtype="<f4")

    def state(self, result: MergeResult) -> list[np.ndarray]:
        return [np.fromfile(self.blobs.path(digest), dtype="<f4") for digest in result.state]

    def state_paths(self, result: MergeResult) -> tuple[Path, ...]:
        return tuple(self.blobs.path(digest) for digest in result.state)

    def left(self) -> list[Path]:
        return sorted(self.blobs.folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# ---- arithmetic -----------------------------------------------------------------------------------------------------


def test_plain_averaging_adds_the_example_weighted_mean(folder: Folder) -> None:
    result = merge(folder.job(FedAvg()), folder.blobs)
    expected = (folder.base + folder.mean()).astype(np.float32)
    np.testing.assert_array_max_ulp(folder.vector(result), expected, maxulp=1)
    assert result.examples == sum(folder.examples)
    assert result.state == ()


def test_one_update_alone_is_added_exactly(tmp_path: Path) -> None:
    folder = Folder(tmp_path, updates=1)
    result = merge(folder.job(FedAvg()), folder.blobs)
    assert np.array_equal(folder.vector(result), folder.base + folder.differences[0])


def test_the_result_is_a_checkpoint_under_its_own_hash_with_the_same_header(folder: Folder) -> None:
    result = merge(folder.job(FedAvg()), folder.blobs)
    path = folder.blobs.path(result.digest)
    content, base = path.read_bytes(), folder.base_path.read_bytes()
    assert hashlib.sha256(content).digest() == result.digest
    assert len(content) == result.size == len(base)
    assert content[: -4 * D] == base[: -4 * D]
    tensors = load_file(path)
    assert np.array_equal(np.concatenate([tensors["a"], tensors["b"]]), folder.vector(result))


def test_the_inputs_are_left_as_they_were(folder: Folder) -> None:
    files = [folder.base_path, *(update.path for update in folder.updates)]
    before = [path.read_bytes() for path in files]
    merge(folder.job(FedAdam(learning_rate=0.1)), folder.blobs)
    assert [path.read_bytes() for path in files] == before


def test_momentum_carries_over_from_merge_to_merge(folder: Folder) -> None:
    optimizer = FedAvg(learning_rate=0.5, momentum=0.9)
    model, velocity = folder.base, np.zeros(D)
    state: tuple[Path, ...] = ()
    for _ in range(3):
        result = merge(folder.job(optimizer, state), folder.blobs)
        velocity = 0.9 * velocity + folder.mean()
        model = (model + 0.5 * velocity).astype(np.float32)
        np.testing.assert_allclose(folder.vector(result), model, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(folder.state(result)[0], velocity, rtol=1e-5, atol=1e-8)
        folder.base_path, state = folder.blobs.path(result.digest), folder.state_paths(result)


def test_adam_follows_the_papers_algorithm(folder: Folder) -> None:
    """Reddi et al. 2021, Algorithm 2, in float64: no bias correction, the second moment starts at tau squared."""
    optimizer = FedAdam(learning_rate=0.1, beta1=0.8, beta2=0.95, tau=0.01)
    model, first, second = folder.base.astype(np.float64), np.zeros(D), np.full(D, 1e-4)
    state: tuple[Path, ...] = ()
    for _ in range(3):
        result = merge(folder.job(optimizer, state), folder.blobs)
        first = 0.8 * first + (1 - 0.8) * folder.mean()
        second = 0.95 * second + (1 - 0.95) * folder.mean() ** 2
        model = model + 0.1 * first / (np.sqrt(second) + 0.01)
        np.testing.assert_allclose(folder.vector(result), model, rtol=1e-5, atol=1e-6)
        for stored, expected in zip(folder.state(result), (first, second), strict=True):
            np.testing.assert_allclose(stored, expected, rtol=1e-5, atol=1e-9)
        folder.base_path, state = folder.blobs.path(result.digest), folder.state_paths(result)


def test_an_update_without_examples_weighs_nothing(folder: Folder) -> None:
    alone = merge(folder.job(FedAvg()), folder.blobs)
    folder.updates += (Update(participant="empty", path=folder.updates[0].path, examples=0),)
    assert merge(folder.job(FedAvg()), folder.blobs).digest == alone.digest


# ---- the same bytes whatever the circumstances ----------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["fedavg", "momentum", "fedadam"])
def test_order_of_arrival_and_slicing_change_nothing(folder: Folder, optimizer: ServerOptimizer) -> None:
    first = merge(folder.job(optimizer), folder.blobs)
    state = folder.state_paths(first)
    expected = merge(folder.job(optimizer, state), folder.blobs)

    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(order=st.permutations(folder.updates), slice_size=st.integers(1, D + 10).filter(lambda n: n < 4 or n > 60))
    def check(order: list[Update], slice_size: int) -> None:
        job = dataclasses.replace(folder.job(optimizer, state), updates=tuple(order))
        assert merge(job, folder.blobs, slice_size=slice_size) == expected

    check()


def test_more_updates_than_a_batch_and_than_open_files(tmp_path: Path) -> None:
    folder = Folder(tmp_path, dimension=50, updates=300)
    result = merge(folder.job(FedAvg()), folder.blobs, slice_size=7)
    weights = np.array(folder.examples) / sum(folder.examples)
    total = weights[0] * folder.differences[0].astype(np.float64)
    for weight, row in zip(weights[1:], folder.differences[1:], strict=True):
        total = total + weight * row.astype(np.float64)
    assert np.array_equal(folder.vector(result), (folder.base + total).astype(np.float32))


def test_worker_threads_get_the_same_result(folder: Folder) -> None:
    expected = merge(folder.job(OPTIMIZERS[2]), folder.blobs)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: merge(folder.job(OPTIMIZERS[2]), folder.blobs), range(8)))
    assert results == [expected] * 8


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    folder = Folder(tmp_path, dimension=4_000_000, updates=3)
    folder.differences = folder.base = np.empty(0)
    tracemalloc.start()
    merge(folder.job(FedAdam(learning_rate=0.1)), folder.blobs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The vectors of this merge are 16 MB each and there are nine of them.
    assert peak < 16 << 20


def test_by_digests_as_the_daemon_asks_for_it(folder: Folder) -> None:
    from coordinator.rounds import BeginMerge, Contribution

    base = folder.blobs.put_file(folder.base_path)
    contributions = tuple(
        Contribution(
            participant=update.participant,
            digest=folder.blobs.put_file(update.path).digest.hex(),
            examples=update.examples,
        )
        for update in folder.updates
    )
    plan = RunPlan(
        federation="test",
        run_id="test-1",
        learning={},
        rounds=RoundsSpec(),
        aggregation=AggregationSpec(mode="plain", optimizer="fedadam", learning_rate=0.1),
        merging=MergingSpec(rule="mean"),
        secure=None,
        initial=InitialModel(digest=base.digest.hex(), size=base.size, dimension=D, manifest_hash=bytes(32).hex()),
    )
    order = BeginMerge(round=1, base_version=0, contributions=contributions)
    version = Checkpoint(run_id="test-1", version=0, digest=base.digest, size=base.size, state=(), created_s=0.0)
    first = Intake(folder.blobs, plan).merge(order, version)
    assert first == merge(folder.job(FedAdam(learning_rate=0.1)), folder.blobs)
    version = Checkpoint(
        run_id="test-1", version=1, digest=base.digest, size=base.size, state=first.state, created_s=0.0
    )
    second = Intake(folder.blobs, plan).merge(order, version)
    assert second == merge(folder.job(FedAdam(learning_rate=0.1), folder.state_paths(first)), folder.blobs)
    assert second.digest != first.digest


# ---- refusals -------------------------------------------------------------------------------------------------------


def refused(folder: Folder, error: type[FedloomError], job: MergeJob | None = None) -> FedloomError:
    """The error of a merge that must leave nothing behind."""
    before = folder.left()
    with pytest.raises(error) as caught:
        merge(job or folder.job(FedAvg()), folder.blobs, slice_size=64)
    assert folder.left() == before
    return caught.value


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["fedavg", "momentum", "fedadam"])
def test_what_isnt_finite_or_too_long_is_left_out_and_named(
    folder: Folder, value: float, optimizer: ServerOptimizer
) -> None:
    row = folder.differences[3].copy()
    row[777:780] = value
    folder.add(3, row)
    result = merge(folder.job(optimizer), folder.blobs)
    others = dataclasses.replace(folder.job(optimizer), updates=(*folder.updates[:3], *folder.updates[4:]))
    without = merge(others, folder.blobs)
    assert (result.digest, result.examples) == (without.digest, without.examples)
    assert result.report.rejected == ("site-003",)
    (said,) = (item for item in result.report.participants if item.participant == "site-003")
    assert ("NaN or infinity" in said.reason) == (value != 3e38)


def test_nothing_is_merged_where_nothing_can_be(folder: Folder) -> None:
    for index, row in enumerate(folder.differences):
        row[index] = np.nan
        folder.add(index, row)
    error = refused(folder, MergeRefused)
    assert error.code == "merge-empty"
    assert "site-004: holds NaN" in error.message


def test_those_turned_away_before_count_against_f(folder: Folder) -> None:
    job = dataclasses.replace(folder.job(FedAvg()), recipe=Recipe(rule=TrimmedMean(f=2)), updates=folder.updates[:4])
    error = refused(folder, MergeRefused, job)
    assert error.code == "merge-tolerance"
    job = dataclasses.replace(job, rejected=(("site-004", "update-norm: too long"),))
    report = merge(job, folder.blobs).report
    assert (report.tolerated, report.remaining, report.rejected) == (2, 1, ("site-004",))


@pytest.mark.parametrize("length", [0, 4 * D - 1, 4 * D - 4, 4 * D + 4])
def test_an_update_of_the_wrong_size_names_its_participant(folder: Folder, length: int) -> None:
    content = folder.updates[2].path.read_bytes() + bytes(8)
    folder.updates[2].path.write_bytes(content[:length])
    error = refused(folder, UpdateRefused)
    assert isinstance(error, UpdateRefused)
    assert (error.code, error.participant) == ("update-shape", "site-002")
    assert f"{length} bytes" in error.message


def test_a_missing_update_names_its_participant(folder: Folder) -> None:
    folder.updates[4].path.unlink()
    error = refused(folder, UpdateRefused)
    assert isinstance(error, UpdateRefused)
    assert (error.code, error.participant) == ("update-missing", "site-004")


def test_example_counts_must_make_a_weight(folder: Folder) -> None:
    path = folder.updates[0].path
    nothing = MergeJob(base=folder.base_path, updates=(), optimizer=FedAvg())
    zero = MergeJob(
        base=folder.base_path,
        updates=tuple(Update(participant=name, path=path, examples=0) for name in "ab"),
        optimizer=FedAvg(),
    )
    for job in (nothing, zero):
        assert refused(folder, RefusedError, job).code == "examples-invalid"
    negative = MergeJob(
        base=folder.base_path,
        updates=(*folder.updates, Update(participant="liar", path=path, examples=-5)),
        optimizer=FedAvg(),
    )
    error = refused(folder, UpdateRefused, negative)
    assert "liar claims -5" in error.message


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [
        (FedAvg(learning_rate=1e30), 1e20),
        (FedAvg(learning_rate=1e-30, momentum=0.9), 3e38),
        (FedAdam(learning_rate=1e-30), 3e38),
        (FedAdam(learning_rate=1e300, tau=1e-30), 1.0),
    ],
    ids=["step", "velocity", "second-moment", "adam-step"],
)
def test_an_overflow_of_the_optimizer_is_named(tmp_path: Path, optimizer: ServerOptimizer, size: float) -> None:
    folder = Folder(tmp_path, updates=1)
    folder.add(0, np.eye(1, D, 77)[0] * size)
    first = merge(folder.job(FedAvg(learning_rate=1e-39, momentum=0.9)), folder.blobs)
    state = folder.state_paths(first) if isinstance(optimizer, FedAvg) and optimizer.momentum else ()
    error = refused(folder, OptimizerOverflow, folder.job(optimizer, state))
    assert error.code == "merge-overflow"
    assert type(optimizer).__name__ in error.message
    assert "learning_rate" in error.hint


def test_a_damaged_base_is_named(folder: Folder) -> None:
    content = folder.base_path.read_bytes()
    for damaged in (content[:-4], content[:20], b"", b"\xff" * 100, content + b"more"):
        folder.base_path.write_bytes(damaged)
        assert "base.safetensors" in refused(folder, DataError).message
    vector = folder.base.copy()
    vector[500] = np.nan
    folder.base_path.write_bytes(checkpoint_bytes(vector))
    assert "base.safetensors: holds NaN" in refused(folder, DataError).message
    folder.base_path.unlink()
    assert "base.safetensors" in refused(folder, DataError).message


def test_damaged_state_is_named(folder: Folder) -> None:
    optimizer = FedAdam(learning_rate=0.1)
    first, second = folder.state_paths(merge(folder.job(optimizer), folder.blobs))
    copy = folder.path / "moment"
    for content in (second.read_bytes()[:-4], b"", second.read_bytes() + b"more", np.full(D, np.nan, "<f4").tobytes()):
        copy.write_bytes(content)
        assert "moment: " in refused(folder, DataError, folder.job(optimizer, (first, copy))).message
    copy.unlink()
    assert "moment: " in refused(folder, DataError, folder.job(optimizer, (first, copy))).message


def test_misuse_is_refused(folder: Folder) -> None:
    with pytest.raises(ValueError, match="two updates of site-001"):
        merge(
            MergeJob(base=folder.base_path, updates=(*folder.updates, folder.updates[1]), optimizer=FedAvg()),
            folder.blobs,
        )
    with pytest.raises(ValueError, match="2 vectors of state, not 1"):
        merge(folder.job(FedAdam(learning_rate=0.1), (folder.base_path,)), folder.blobs)
    assert folder.left() == []
