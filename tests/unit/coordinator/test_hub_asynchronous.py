"""The hub with asynchronous rounds: tasks, buffers, blobs and the log, over a real store."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coordinator import display
from coordinator.actions import Check, Merge
from coordinator.merging import MergeReport, ParticipantReport, Verdict
from coordinator.rounds import AsyncRounds, BeginMerge
from coordinator.status import view
from protos import session_pb2 as pb
from tests.support.merges import merge_result
from tests.unit.coordinator.test_hub import DIMENSION, Bench, plan, sent
from wire import RefusedError

SITES = ("a", "b", "c")


def blob(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    spec = {"mode": "asynchronous", "min_participants": 3, "buffer_size": 2, "max_staleness": 1, "correction": "ca2fl"}
    bench = Bench(tmp_path, plan(**{"count": 5, **spec}))
    for name in SITES:
        bench.ready(name)
    return bench


def tasks(actions: list[object]) -> list[tuple[str, int]]:
    return [(name, task.base_version) for name, task in sent(actions, "task")]  # type: ignore[attr-defined]


def upload(bench: Bench, name: str, task: str) -> bytes:
    digest = blob(f"update of {name} for {task}")
    bench.hub.may_upload(name, digest, 4 * DIMENSION)
    return digest


def hand_in(bench: Bench, name: str, task: str) -> list[object]:
    """Upload, announce, and pass the check."""
    digest = upload(bench, name, task)
    (check,) = bench.update(name, task, update=pb.Blob(digest=digest, size=4 * DIMENSION))
    assert isinstance(check, Check)
    return list(bench.hub.checked(check, None, bench.now))


def merge(bench: Bench, actions: list[object]) -> tuple[BeginMerge, list[object]]:
    (order,) = [action.order for action in actions if isinstance(action, Merge)]
    kept = tuple(
        ParticipantReport(participant=item.participant, verdict=Verdict.KEPT, norm=1.0) for item in order.contributions
    )
    report = MergeReport(rule="mean", tolerated=0, remaining=0, kappa=None, participants=kept)
    result = merge_result(blob(f"version {order.round}").hex(), bench.plan.initial.size, report=report)
    return order, list(bench.hub.merged(order, result, bench.now))


def version(bench: Bench, *names: str) -> list[object]:
    """These hand in the update of the task that they have; the merge is made."""
    actions: list[object] = []
    machine = bench.hub.machine
    for name in names:
        task = machine.state.pace.tasks[name]
        actions = hand_in(bench, name, f"bench-1/{task.round}.{task.attempt}/{name}")
    return merge(bench, actions)[1]


def test_a_version_is_made_of_the_buffer_and_only_its_sites_train_anew(bench: Bench) -> None:
    assert isinstance(bench.hub.machine, AsyncRounds)
    hand_in(bench, "c", "bench-1/1.1/c")
    order, actions = merge(bench, hand_in(bench, "a", "bench-1/1.1/a"))
    assert [item.participant for item in order.contributions] == ["a", "c"]
    assert order.step_scale == pytest.approx(2 / 3)
    assert tasks(actions) == [("a", 1), ("c", 1)]
    assert [name for name, _ in sent(actions, "committed")] == ["a", "c"], "b trains from version 0 and isn't disturbed"
    status = view(bench.hub, "", bench.now)
    assert (status.version, status.round, status.state) == (1, 2, "training")
    assert (status.buffer_size, status.buffered) == (2, 0)


def test_staleness_is_shown_and_a_stale_update_is_refused_by_name_and_counted(bench: Bench) -> None:
    version(bench, "a", "b")
    version(bench, "a", "c")
    shown = view(bench.hub, "", bench.now)
    assert {item.name: item.staleness for item in shown.history[1].participants} == {"a": 0, "c": 1}
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(display.render(shown))
    assert "a merged, c merged (1 behind)" in console.export_text()
    version(bench, "a", "c")
    digest = upload(bench, "b", "bench-1/2.1/b")
    actions = bench.update("b", "bench-1/2.1/b", update=pb.Blob(digest=digest, size=4 * DIMENSION))
    ((_, receipt),) = sent(actions, "receipt")
    assert (receipt.accepted, receipt.code) == (False, "update-stale")
    assert "b is 2 versions behind" in receipt.message
    assert tasks(actions) == [("b", 3)]
    assert bench.store.refusals() == {("update-stale", "b"): 1}


def test_an_update_that_grows_stale_while_it_is_checked_is_refused_too(bench: Bench) -> None:
    version(bench, "a", "b")
    digest = upload(bench, "c", "bench-1/1.1/c")
    (check,) = bench.update("c", "bench-1/1.1/c", update=pb.Blob(digest=digest, size=4 * DIMENSION))
    version(bench, "a", "b")
    assert isinstance(check, Check)
    ((_, receipt),) = sent(list(bench.hub.checked(check, None, bench.now)), "receipt")
    assert receipt.code == "update-stale"


def test_blobs_of_open_buffers_of_the_correction_and_on_their_way_are_kept(bench: Bench) -> None:
    first = {name: blob(f"update of {name} for bench-1/1.1/{name}") for name in SITES}
    hand_in(bench, "a", "bench-1/1.1/a")
    sealed = hand_in(bench, "b", "bench-1/1.1/b")
    hand_in(bench, "c", "bench-1/1.1/c")
    assert set(first.values()) <= bench.hub.blobs_in_use(), "one buffer is merged while the next one fills"
    merge(bench, sealed)
    assert {first["a"], first["b"]} <= bench.hub.blobs_in_use(), "later versions are corrected by them"
    arriving = upload(bench, "a", "bench-1/2.1/a")
    assert arriving in bench.hub.blobs_in_use(), "a version may be made between an upload and its announcement"
    version(bench, "b")
    assert first["b"] not in bench.hub.blobs_in_use()
    assert first["a"] in bench.hub.blobs_in_use()
    bench.say("a", leave=pb.Leave(reason="closing"))
    assert arriving not in bench.hub.blobs_in_use()
    bench.restart()
    for name in ("b", "c"):
        bench.ready(name)
    assert first["a"] in bench.hub.blobs_in_use(), "the correction survives a restart"
    version(bench, "b", "c")
    assert first["a"] not in bench.hub.blobs_in_use(), "who is gone is forgotten with the next version"


def test_uploads_are_taken_only_of_those_in_training(bench: Bench) -> None:
    hand_in(bench, "a", "bench-1/1.1/a")
    with pytest.raises(RefusedError, match="no update of a is expected"):
        upload(bench, "a", "bench-1/1.1/a")


def test_a_restart_in_mid_buffer_gives_everyone_a_lease_and_the_same_tasks(bench: Bench) -> None:
    hand_in(bench, "a", "bench-1/1.1/a")
    bench.now = 40.0
    bench.restart()
    assert sorted(bench.hub.presence) == ["b", "c"]
    assert tasks(bench.ready("b")) == [("b", 0)]
    assert sent(bench.ready("a"), "task") == [], "it is in the buffer"
    digest = blob("update of a for bench-1/1.1/a")
    again = bench.update("a", "bench-1/1.1/a", update=pb.Blob(digest=digest, size=4 * DIMENSION))
    assert [item.accepted for _, item in sent(again, "receipt")] == [True]  # type: ignore[attr-defined]
    bench.now = 60.0
    for name in ("a", "b"):
        bench.say(name, progress=pb.Progress(stage="training"))
    bench.now = 71.0
    bench.hub.tick(bench.now)
    assert list(bench.hub.machine.state.pace.tasks) == ["b"], "c never came back"
    order, _ = merge(bench, hand_in(bench, "b", "bench-1/1.1/b"))
    assert [item.participant for item in order.contributions] == ["a", "b"]


def test_who_vanished_with_a_trained_update_brings_it_when_it_comes_back(bench: Bench) -> None:
    bench.now = 31.0
    bench.say("a", progress=pb.Progress(stage="training"))
    bench.say("b", progress=pb.Progress(stage="training"))
    bench.hub.tick(bench.now)
    assert sorted(bench.hub.machine.state.pace.tasks) == ["a", "b"]
    version(bench, "a", "b")
    ((_, task),) = sent(bench.ready("c"), "task")
    assert (task.task_id, task.base_version) == ("bench-1/1.1/c", 0)
    hand_in(bench, "c", "bench-1/1.1/c")
    order, _ = merge(bench, hand_in(bench, "a", "bench-1/2.1/a"))
    assert [(item.participant, item.staleness) for item in order.contributions] == [("a", 0), ("c", 1)]


def test_a_log_of_synchronous_rounds_has_no_tasks_in_flight(tmp_path: Path) -> None:
    """Logs that older releases wrote load as before."""
    bench = Bench(tmp_path, plan())
    bench.ready("a")
    bench.ready("b")
    bench.accept("a", "bench-1/1.1/a")
    bench.restart()
    state: Any = bench.hub.machine.state
    assert state.pace.tasks == {}
    assert bench.hub.machine.pending() == ["b"]


def test_a_long_run_shows_its_newest_rounds_and_counts_all_of_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.status._ROUNDS", 2)
    version(bench, "a", "b")
    view(bench.hub, "", bench.now)
    bench.now += 3.0
    version(bench, "a", "c")
    shown = view(bench.hub, "", bench.now)
    assert [item.round for item in shown.history] == [2, 3]
    assert (shown.closed_rounds, shown.closed_seconds) == (2, 3.0)
    assert dict(shown.staleness) == {0: 3, 1: 1}, "c trained from version 0"
    bench.restart()
    again = view(bench.hub, "", bench.now)
    assert (again.closed_rounds, dict(again.staleness)) == (2, {0: 3, 1: 1})
    monkeypatch.setattr("coordinator.status._SEATS", 0)
    assert [item.round for item in view(bench.hub, "", bench.now).history] == [3], "the round in progress always"
