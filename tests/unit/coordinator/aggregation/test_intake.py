"""Updates on their way from arrival to merge: what is turned away, and that the way changes no result."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.aggregation import Intake
from coordinator.merging import Merger, MergeRefused
from coordinator.rounds import BeginMerge, Contribution
from coordinator.store import Checkpoint
from tests.unit.coordinator.aggregation.test_merge import D, Folder
from wire import AggregationSpec, InitialModel, MergingSpec, RefusedError, RoundsSpec, RunPlan

N = 9
SPECS = {
    "careful": MergingSpec(),
    "robust": MergingSpec(rule="robust", f=2),
    "krum": MergingSpec(rule="multi-krum", f=2, settings={"m": 1}),
    "bucketing": MergingSpec(rule="median", f=1, before=({"name": "bucketing", "settings": {"per_bucket": 3}},)),
}


class Bench:
    """A run's intake over real files."""

    def __init__(self, path: Path, spec: MergingSpec) -> None:
        self.folder = Folder(path, updates=N)
        self.base = self.folder.blobs.put_file(self.folder.base_path)
        self.plan = RunPlan(
            federation="test",
            run_id="test-1",
            learning={},
            rounds=RoundsSpec(),
            aggregation=AggregationSpec(mode="plain"),
            merging=spec,
            secure=None,
            initial=InitialModel(
                digest=self.base.digest.hex(), size=self.base.size, dimension=D, manifest_hash=bytes(32).hex()
            ),
        )
        self.contributions = tuple(self.put(item.participant, item.path) for item in self.folder.updates)
        self.version = Checkpoint(
            run_id="test-1", version=0, digest=self.base.digest, size=self.base.size, state=(), created_s=0.0
        )

    def put(self, name: str, path: Path, examples: int = 10) -> Contribution:
        digest = self.folder.blobs.put_file(path).digest.hex()
        return Contribution(participant=name, digest=digest, examples=examples)

    def made(self, name: str, row: np.ndarray, examples: int = 10) -> Contribution:
        path = self.folder.path / f"{name}-new"
        row.astype("<f4").tofile(path)
        return self.put(name, path, examples)

    def intake(self) -> Intake:
        return Intake(self.folder.blobs, self.plan)

    def order(self, number: int = 1, **changes: Any) -> BeginMerge:
        order = BeginMerge(round=number, base_version=0, contributions=self.contributions)
        return dataclasses.replace(order, **changes)


@pytest.fixture(params=SPECS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return Bench(tmp_path, SPECS[request.param])


def test_arrival_in_any_order_and_a_restart_before_the_merge_come_to_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarted = bench.intake().merge(bench.order(), bench.version)
    intake = bench.intake()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda item: intake.take(1, item), reversed(bench.contributions)))
    # What is left for the merge: no look at an update's norm or dot products.
    monkeypatch.setattr(Merger, "add_all", lambda *_: pytest.fail("the updates have been looked at already"))
    assert intake.merge(bench.order(), bench.version) == restarted


def test_what_was_taken_for_another_round_or_replaced_isnt_merged(bench: Bench) -> None:
    expected = bench.intake().merge(bench.order(2), bench.version)
    intake = bench.intake()
    for item in bench.contributions:
        intake.take(1, item)
    for item in bench.contributions:
        intake.take(2, item)
    assert intake.merge(bench.order(2), bench.version) == expected
    # A participant whose first answer didn't count (the round machine says so): the merge takes the one that did.
    other = bench.made("site-004", bench.folder.differences[4] * 0.5)
    intake = bench.intake()
    for item in (*bench.contributions, other):
        intake.take(1, item)
    changed = tuple(other if item.participant == "site-004" else item for item in bench.contributions)
    order = bench.order(contributions=changed)
    assert intake.merge(order, bench.version) == bench.intake().merge(order, bench.version)


def test_a_rejected_update_leaves_no_trace(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MergingSpec(rule="robust", f=2, max_norm=1.0))
    assert np.linalg.norm(bench.folder.differences, axis=1).max() < 1.0
    intake = bench.intake()
    for item in bench.contributions[:4]:
        intake.take(1, item)
    bad = bench.made("hostile", np.ones(D))
    with pytest.raises(RefusedError, match=r"The update of hostile is turned away: norm 31\.6 above 1") as caught:
        intake.take(1, bad)
    assert (caught.value.code, "max_norm" in caught.value.hint) == ("update-norm", True)
    for item in bench.contributions[4:]:
        intake.take(1, item)
    rejected = (("hostile", "update-norm: too long"),)
    result = intake.merge(bench.order(rejected=rejected), bench.version)
    again = bench.intake().merge(bench.order(rejected=rejected), bench.version)
    assert (result.digest, result.report.as_json()) == (again.digest, again.report.as_json())
    assert (result.report.tolerated, result.report.remaining) == (2, 1)
    assert result.report.rejected[0] == "hostile"


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (np.full(D, np.nan), "update-not-finite"),
        (np.full(D, np.inf), "update-not-finite"),
        (np.full(D, 3e38), "update-norm"),
        (np.ones(D + 1), "update-shape"),
        (np.ones(0), "update-shape"),
    ],
)
def test_bad_updates_are_turned_away_on_arrival(tmp_path: Path, row: np.ndarray, code: str) -> None:
    bench = Bench(tmp_path, MergingSpec())
    with pytest.raises(RefusedError) as caught:
        bench.intake().take(1, bench.made("site-000", row))
    assert caught.value.code == code


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MergingSpec())
    missing = Contribution(participant="site-000", digest="ab" * 32, examples=1)
    with pytest.raises(RefusedError, match="update of site-000") as caught:
        bench.intake().take(1, missing)
    assert caught.value.code == "update-missing"


def test_a_merge_that_is_refused_can_be_asked_for_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MergingSpec(rule="trimmed-mean", f=2))
    intake = bench.intake()
    few = bench.order(contributions=bench.contributions[:4])
    for item in few.contributions:
        intake.take(1, item)
    with pytest.raises(MergeRefused, match="needs at least 5"):
        intake.merge(few, bench.version)
    assert intake.merge(bench.order(), bench.version) == bench.intake().merge(bench.order(), bench.version)
