"""Merging a buffer: weights of stale updates, the correction by earlier ones, and equality with a synchronous round."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.aggregation import FedAvg, Intake, merge
from coordinator.aggregation.correction import Earlier
from coordinator.merging import Merger
from coordinator.merging.gate import capped_shares, discounted_shares
from coordinator.rounds import BeginMerge, Contribution, Kept
from coordinator.store import Checkpoint
from tests.unit.coordinator.aggregation.test_merge import PLAIN, D, Folder
from wire import AggregationSpec, InitialModel, MergingSpec, RoundsSpec, RunPlan

N = 6


class Bench:
    """A run with asynchronous rounds, its updates on disk; ``earlier`` are other updates of the same sites."""

    def __init__(self, path: Path, aggregation: AggregationSpec | None = None, merging: MergingSpec | None = None):
        self.folder = Folder(path, updates=2 * N)
        base = self.folder.blobs.put_file(self.folder.base_path)
        self.plan = RunPlan(
            federation="test",
            run_id="test-1",
            learning={},
            rounds=RoundsSpec(mode="asynchronous", buffer_size=2, correction="ca2fl"),
            aggregation=aggregation or AggregationSpec(mode="plain"),
            merging=merging or MergingSpec(),
            secure=None,
            initial=InitialModel(digest=base.digest.hex(), size=base.size, dimension=D, manifest_hash=bytes(32).hex()),
        )
        files = [self.folder.blobs.put_file(item.path).digest.hex() for item in self.folder.updates]
        examples = self.folder.examples
        names = [f"site-{index}" for index in range(N)]
        self.contributions = tuple(
            Contribution(participant=name, digest=files[index], examples=examples[index])
            for index, name in enumerate(names)
        )
        self.kept = tuple(
            Kept(participant=name, digest=files[N + index], examples=examples[index], factor=1.0, version=1)
            for index, name in enumerate(names)
        )
        self.version = Checkpoint(
            run_id="test-1", version=1, digest=base.digest, size=base.size, state=(), created_s=0.0
        )

    def order(self, **changes: Any) -> BeginMerge:
        return dataclasses.replace(BeginMerge(round=2, base_version=1, contributions=self.contributions), **changes)

    def merged(self, **changes: Any) -> np.ndarray:
        """By how much the order moves the model [d], in float64."""
        result = Intake(self.folder.blobs, self.plan).merge(self.order(**changes), self.version)
        return self.folder.vector(result).astype(np.float64) - self.folder.base


def stale(bench: Bench, *behind: int) -> tuple[Contribution, ...]:
    """The first updates, so many versions behind."""
    return tuple(
        dataclasses.replace(item, staleness=staleness)
        for item, staleness in zip(bench.contributions, behind, strict=False)
    )


def test_updates_weigh_their_capped_share_over_the_root_of_their_age(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    behind = np.array([0, 1, 0, 3])
    moved = bench.merged(contributions=stale(bench, *behind), step_scale=0.5)
    capped = capped_shares(np.array(bench.folder.examples[:4], dtype=float), 3 / 6)
    shares = capped / np.sqrt(1 + behind)
    shares /= shares.sum()
    assert shares.max() < 0.5
    assert np.allclose(moved, 0.5 * shares @ bench.folder.differences[:4], atol=1e-6)


@pytest.mark.parametrize("rule", ["careful", "mean", "robust"])
@pytest.mark.parametrize("optimizer", ["fedavg", "fedadam"])
def test_a_buffer_of_everyone_without_staleness_is_the_synchronous_round_bit_for_bit(
    tmp_path: Path, rule: Any, optimizer: Any
) -> None:
    spec = AggregationSpec(mode="plain", optimizer=optimizer, learning_rate=0.3)
    bench = Bench(tmp_path, spec, MergingSpec(rule=rule))
    synchronous = bench.plan.model_copy(update={"rounds": RoundsSpec()})
    expected = Intake(bench.folder.blobs, synchronous).merge(bench.order(), bench.version)
    kept = bench.kept if rule != "robust" else ()
    found = Intake(bench.folder.blobs, bench.plan).merge(bench.order(kept=kept), bench.version)
    assert found == expected


def test_the_correction_is_that_of_the_paper(tmp_path: Path) -> None:
    """With equal counts: v = mean of all h + 1/K sum over the buffer of (update - h)."""
    bench = Bench(tmp_path, merging=MergingSpec(rule="mean"))
    equal = tuple(dataclasses.replace(item, examples=7) for item in bench.contributions[:2])
    kept = tuple(dataclasses.replace(item, examples=7) for item in bench.kept)
    moved = bench.merged(contributions=equal, kept=kept, step_scale=1 / 3)
    updates, earlier = bench.folder.differences[:2], bench.folder.differences[N:]
    expected = earlier.mean(axis=0) + (updates - earlier[:2]).mean(axis=0)
    assert np.allclose(moved, expected / 3, atol=1e-6)


def test_who_is_in_a_buffer_for_the_first_time_has_nothing_to_be_corrected_by(tmp_path: Path) -> None:
    bench = Bench(tmp_path, merging=MergingSpec(rule="mean"))
    equal = tuple(dataclasses.replace(item, examples=7) for item in bench.contributions[:2])
    kept = tuple(dataclasses.replace(item, examples=7) for item in bench.kept[2:4])
    moved = bench.merged(contributions=equal, kept=kept)
    expected = bench.folder.differences[:2].mean(axis=0) + bench.folder.differences[N + 2 : N + 4].sum(axis=0) / 4
    assert np.allclose(moved, expected, atol=1e-6)


def test_an_earlier_update_counts_as_it_was_clipped(tmp_path: Path) -> None:
    bench = Bench(tmp_path, merging=MergingSpec(rule="mean"))
    equal = tuple(dataclasses.replace(item, examples=7) for item in bench.contributions[:1])
    kept = dataclasses.replace(bench.kept[3], examples=7, factor=0.25)
    moved = bench.merged(contributions=equal, kept=(kept,))
    expected = bench.folder.differences[0] + 0.25 * bench.folder.differences[N + 3] / 2
    assert np.allclose(moved, expected, atol=1e-6)


def test_what_arrives_for_the_next_buffer_disturbs_no_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, merging=MergingSpec(rule="median", f=1))
    now, later = stale(bench, 0, 2, 1), bench.contributions[3:]
    orders = [bench.order(contributions=now), bench.order(round=3, contributions=later)]
    expected = [Intake(bench.folder.blobs, bench.plan).merge(order, bench.version) for order in orders]
    intake = Intake(bench.folder.blobs, bench.plan)
    for item in bench.contributions[:3]:
        intake.take(2, item)
    for item in later:
        intake.take(3, item)
    # Neither merge has to look at the updates once more.
    monkeypatch.setattr(Merger, "add_all", lambda *_: pytest.fail("the updates have been looked at already"))
    assert [intake.merge(order, bench.version) for order in orders] == expected


def test_the_correction_is_streamed(tmp_path: Path) -> None:
    dimension = 1_500_000
    folder = Folder(tmp_path, dimension=dimension, updates=12)
    earlier = tuple(
        Earlier(participant=item.participant, path=item.path, examples=item.examples, factor=1.0)
        for item in folder.updates[2:]
    )
    job = dataclasses.replace(folder.job(FedAvg()), updates=folder.updates[:2], recipe=PLAIN, earlier=earlier)
    merge(job, folder.blobs)  # compiles what is compiled once
    tracemalloc.start()
    try:
        merge(job, folder.blobs)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * dimension * 4, "less than four of the twelve vectors"


shapes = st.integers(2, 12).flatmap(
    lambda size: st.tuples(
        st.lists(st.integers(1, 10**9), min_size=size, max_size=size),
        st.lists(st.integers(0, 1_000), min_size=size, max_size=size),
        st.floats(1.0, 3.0),
    )
)


@given(shapes)
def test_the_age_of_the_others_lets_nobody_exceed_the_cap(shape: tuple[list[int], list[int], float]) -> None:
    counts, behind, times = shape
    examples = np.array(counts, dtype=float)
    cap = times / (len(counts) - 1 + times)
    shares = discounted_shares(examples, 1 / np.sqrt(1 + np.array(behind)), cap)
    assert shares.sum() == pytest.approx(1.0)
    assert shares.max() <= cap * (1 + 1e-9)
    assert np.array_equal(discounted_shares(examples, np.ones(len(counts)), cap), capped_shares(examples, cap))


def test_a_robust_rule_stands_all_hostile_participants_of_the_run_in_one_buffer(tmp_path: Path) -> None:
    """Two of ten are hostile and fast: a fifth of the run, but two fifths of the buffer."""
    bench = Bench(tmp_path, merging=MergingSpec(rule="robust", f=0.2))
    rounds = RoundsSpec(mode="asynchronous", min_participants=10, min_updates=5, buffer_size=5, correction="none")
    bench.plan = bench.plan.model_copy(update={"rounds": rounds})
    honest = bench.folder.differences[:3].astype(np.float64)
    hostile = []
    for index, item in enumerate(bench.contributions[3:5]):
        path = tmp_path / f"hostile-{index}"
        (-50 * honest.mean(axis=0)).astype("<f4").tofile(path)
        hostile.append(dataclasses.replace(item, digest=bench.folder.blobs.put_file(path).digest.hex()))
    moved = bench.merged(contributions=(*bench.contributions[:3], *hostile))
    spread = np.sqrt(np.mean(np.sum((honest - honest.mean(axis=0)) ** 2, axis=1)))
    assert np.linalg.norm(moved - honest.mean(axis=0)) < 2 * spread
    synchronous = bench.plan.model_copy(update={"rounds": RoundsSpec()})
    result = Intake(bench.folder.blobs, synchronous).merge(
        bench.order(contributions=(*bench.contributions[:3], *hostile)), bench.version
    )
    fooled = bench.folder.vector(result).astype(np.float64) - bench.folder.base
    assert np.linalg.norm(fooled - honest.mean(axis=0)) > np.linalg.norm(moved - honest.mean(axis=0)), "f of the buffer"
