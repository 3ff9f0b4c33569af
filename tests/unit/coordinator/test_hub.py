"""The hub: protobuf messages in, actions out, everything stored before it is said."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from federated import Federation

from coordinator.actions import Check, Close, Merge, Send, Wake
from coordinator.hub import Hub
from coordinator.planning import run_records
from coordinator.presence import STAGES
from coordinator.store import Checkpoint, Store, Transition, open_store
from privacy.secure_aggregation.identities import ORIGIN
from protos import session_pb2 as pb
from tests.support.merges import merge_result
from wire import (
    PROTOCOL_VERSION,
    AggregationSpec,
    InitialModel,
    RefusedError,
    ResourceError,
    RoundsSpec,
    RunPlan,
)

LEASE_S = 30.0
DIMENSION = 5
DIGEST = bytes(range(32))


def plan(**rounds: object) -> RunPlan:
    """Of a run with plain averaging."""
    spec = {"count": 2, "min_participants": 2, "min_updates": 2, "deadline_s": 100.0, "evaluate_every": 0, **rounds}
    initial = InitialModel(digest="ab" * 32, size=4 * DIMENSION + 64, dimension=DIMENSION, manifest_hash="cd" * 32)
    return RunPlan(
        federation="bench",
        run_id="bench-1",
        learning={},
        rounds=RoundsSpec.model_validate(spec),
        aggregation=AggregationSpec(mode="plain"),
        secure=None,
        initial=initial,
    )


class Bench:
    """A hub on a real database, with a clock in hand."""

    def __init__(self, folder: Path, run: RunPlan | None = None) -> None:
        self.path = folder / "coordinator.sqlite"
        self.plan = run or plan()
        self.store: Store = open_store(self.path)
        self.store.create_run(*run_records(self.plan, 0.0))
        self.now = 0.0
        self.federation = Federation()
        self.hub = Hub(self.store, self.plan, self.federation, lease_s=LEASE_S, now_s=0.0)

    def say(self, peer: str, **body: object) -> list[object]:
        return list(self.hub.receive(peer, pb.FromParticipant(**body), self.now))

    def check_in(self, peer: str, version: int = PROTOCOL_VERSION) -> list[object]:
        return self.say(peer, check_in=pb.CheckIn(protocol_version=version, software="test"))

    def ready(self, peer: str, **changes: object) -> list[object]:
        self.check_in(peer)
        fields = {"plan_hash": self.plan.hash, "manifest_hash": bytes.fromhex("cd" * 32), "examples": 100, **changes}
        return self.say(peer, ready=pb.Ready(**fields))

    def update(self, peer: str, task_id: str, **changes: object) -> list[object]:
        fields = {
            "task_id": task_id,
            "update": pb.Blob(digest=DIGEST, size=4 * DIMENSION),
            "examples": 10,
            "metrics": {"loss": 0.5},
            **changes,
        }
        return self.say(peer, update_ready=pb.UpdateReady(**fields))

    def accept(self, peer: str, task_id: str) -> list[object]:
        (check,) = self.update(peer, task_id)
        assert isinstance(check, Check)
        return list(self.hub.checked(check, None, self.now))

    def restart(self) -> None:
        self.store.close()
        self.store = open_store(self.path)
        self.hub = Hub(self.store, self.plan, self.federation, lease_s=LEASE_S, now_s=self.now)


def sent(actions: list[object], kind: str) -> list[tuple[str, object]]:
    return [
        (action.peer, getattr(action.message, kind))
        for action in actions
        if isinstance(action, Send) and action.message.WhichOneof("body") == kind
    ]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_check_in_is_answered_with_the_plan_and_its_hash(bench: Bench) -> None:
    ((peer, welcome),) = sent(bench.check_in("a"), "welcome")
    assert peer == "a"
    assert RunPlan.parse(welcome.plan) == bench.plan
    assert welcome.plan_hash == bench.plan.hash
    assert welcome.lease_s == LEASE_S


def test_another_protocol_version_is_refused_by_name_counted_and_the_stream_closed(bench: Bench) -> None:
    actions = bench.check_in("a", version=PROTOCOL_VERSION + 1)
    ((_, rejection),) = sent(actions, "rejection")
    assert rejection.code == "protocol-version"
    assert "a (test) speaks protocol" in rejection.message
    assert Close("a") in actions
    assert bench.store.refusals() == {("protocol-version", "a"): 1}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"plan_hash": b"x" * 32}, "plan-mismatch"),
        ({"manifest_hash": b"x" * 32}, "manifest-mismatch"),
        ({"examples": 0}, "examples-invalid"),
    ],
)
def test_a_site_that_prepared_something_else_is_refused(bench: Bench, changes: dict[str, object], code: str) -> None:
    ((_, rejection),) = sent(bench.ready("a", **changes), "rejection")
    assert rejection.code == code


def test_nobody_speaks_before_checking_in_or_before_being_ready(bench: Bench) -> None:
    ((_, rejection),) = sent(bench.say("a", progress=pb.Progress(stage="idle")), "rejection")
    assert rejection.code == "protocol-order"
    bench.check_in("b")
    ((_, rejection),) = sent(bench.update("b", "bench-1/1.1/b"), "rejection")
    assert rejection.code == "protocol-order"
    ((_, rejection),) = sent(bench.say("b"), "rejection")
    assert rejection.code == "protocol-order"


def test_a_round_is_stored_before_its_tasks_are_sent(bench: Bench) -> None:
    bench.ready("a")
    actions = bench.ready("b")
    tasks = dict(sent(actions, "task"))
    assert sorted(tasks) == ["a", "b"]
    assert tasks["a"].task_id == "bench-1/1.1/a"
    assert tasks["a"].base.digest.hex() == bench.plan.initial.digest
    assert tasks["a"].deadline_s == 100.0
    assert [row.kind for row in bench.store.transitions("bench-1")] == ["RoundOpened"]


def test_a_full_round_ends_in_a_merge_and_the_commit_in_new_tasks(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    ((_, receipt),) = sent(bench.accept("a", "bench-1/1.1/a"), "receipt")
    assert receipt.accepted
    merge = next(action for action in bench.accept("b", "bench-1/1.1/b") if isinstance(action, Merge))
    assert [item.participant for item in merge.order.contributions] == ["a", "b"]
    assert merge.base.version == 0
    actions = list(bench.hub.merged(merge.order, merge_result("ef" * 32, 84, (b"s" * 32,)), 5.0))
    assert [committed.version for _, committed in sent(actions, "committed")] == [1, 1]
    assert {task.base.digest.hex() for _, task in sent(actions, "task")} == {"ef" * 32}
    checkpoint = bench.store.checkpoint("bench-1")
    assert checkpoint is not None
    assert (checkpoint.version, checkpoint.state) == (1, (b"s" * 32,))
    assert bench.hub.blobs_in_use() == {bytes.fromhex("ab" * 32), bytes.fromhex("ef" * 32), b"s" * 32}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"update": pb.Blob(digest=DIGEST, size=4 * DIMENSION + 1)}, "update-shape"),
        ({"update": pb.Blob(digest=b"short", size=4 * DIMENSION)}, "update-shape"),
        ({"examples": 0}, "examples-invalid"),
        ({"examples": 101}, "examples-invalid"),
        ({"metrics": {"loss": math.nan}}, "metrics-invalid"),
        ({"evaluation": {"accuracy": math.inf}}, "metrics-invalid"),
        ({"metrics": {f"m{index}": 1.0 for index in range(65)}}, "metrics-invalid"),
        ({"metrics": {"\x1b[31m": 1.0}}, "metrics-invalid"),
    ],
)
def test_a_bad_update_is_refused_by_name_and_the_round_goes_on(
    bench: Bench, changes: dict[str, object], code: str
) -> None:
    bench.ready("a")
    bench.ready("b")
    ((_, receipt),) = sent(bench.update("a", "bench-1/1.1/a", **changes), "receipt")
    assert (receipt.accepted, receipt.code) == (False, code)
    assert bench.store.refusals() == {(code, "a"): 1}
    assert bench.hub.machine.state.rounds[0].seats["a"].outcome == "refused"
    assert sent(bench.accept("b", "bench-1/1.1/b"), "receipt")[0][1].accepted


def test_a_file_that_fails_the_check_is_refused(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    (check,) = bench.update("a", "bench-1/1.1/a")
    assert isinstance(check, Check)
    actions = list(bench.hub.checked(check, RefusedError("update-not-finite", "NaN at 3"), 1.0))
    ((_, receipt),) = sent(actions, "receipt")
    assert (receipt.accepted, receipt.code) == (False, "update-not-finite")


def test_leases_lapse_and_are_renewed_by_any_message(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    bench.now = 20.0
    bench.say("a", progress=pb.Progress(stage="training", done=1, total=2))
    bench.hub.tick(35.0)
    seats = bench.hub.machine.state.rounds[0].seats
    assert (seats["a"].outcome, seats["b"].outcome) == ("pending", "vanished")
    assert bench.hub.presence["a"].stage == "training"
    assert any(isinstance(action, Wake) and action.at_s == 50.0 for action in bench.hub.tick(36.0))


def test_a_site_says_what_it_does_in_one_of_a_few_words(bench: Bench, repository: Path) -> None:
    bench.ready("a")
    for said, known in [("summing", "summing"), ("revoked", "other"), ("x" * 500, "other"), ("", "other")]:
        bench.say("a", progress=pb.Progress(stage=said))
        assert bench.hub.presence["a"].stage == known
    source = (repository / "participant" / "agent.py").read_text()
    spoken = {word for line in source.splitlines() if "_stage = " in line for word in re.findall(r'"(\w+)"', line)}
    assert {"idle", "training", "evaluating", "summing", "uploading"} <= spoken <= set(STAGES)


def test_a_broken_stream_keeps_its_lease_until_it_lapses(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    bench.hub.disconnected("a", 5.0)
    bench.hub.tick(10.0)
    assert bench.hub.machine.state.rounds[0].seats["a"].outcome == "pending"
    ((_, task),) = sent(bench.ready("a"), "task")
    assert task.task_id == "bench-1/1.1/a"


def test_leaving_ends_the_lease_at_once(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    bench.say("b", leave=pb.Leave(reason="closing for the night"))
    assert bench.hub.machine.state.rounds[0].seats["b"].outcome == "left"
    assert "b" not in bench.hub.presence


def test_revoking_ends_the_stream_and_the_seat(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    actions = list(bench.hub.revoked("b", "left the study", 5.0))
    assert sent(actions, "rejection")[0][1].code == "participant-revoked"
    assert Close("b") in actions
    assert bench.hub.machine.state.rounds[0].seats["b"].outcome == "revoked"


def test_a_declined_task_is_shown_with_its_reason(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    bench.say("a", declined=pb.Declined(task_id="bench-1/1.1/a", code="loss-not-finite", message="NaN in step 3"))
    seat = bench.hub.machine.state.rounds[0].seats["a"]
    assert (seat.outcome, seat.code, seat.message) == ("declined", "loss-not-finite", "NaN in step 3")


def test_a_restarted_hub_knows_the_round_and_gives_absent_members_a_lease(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    bench.accept("a", "bench-1/1.1/a")
    bench.now = 40.0
    bench.restart()
    assert bench.hub.machine.state.rounds[0].done() == ["a"]
    bench.hub.tick(69.0)
    assert bench.hub.machine.state.rounds[0].pending() == ["b"]
    bench.hub.tick(71.0)
    assert bench.hub.machine.state.rounds[0].seats["b"].outcome == "vanished"


def test_a_finished_run_tells_whoever_comes_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.ready("a")
    bench.hub.stop(1.0)
    bench.restart()
    ((_, finished),) = sent(bench.ready("a"), "run_finished")
    assert finished.reason == "stopped"


def test_uploads_are_taken_only_from_those_who_owe_one_and_only_in_the_right_size(bench: Bench) -> None:
    with pytest.raises(RefusedError, match="no update of a") as refusal:
        bench.hub.may_upload("a", DIGEST, 4 * DIMENSION)
    assert refusal.value.code == "blob-not-expected"
    bench.ready("a")
    bench.ready("b")
    bench.hub.may_upload("a", DIGEST, 4 * DIMENSION)
    with pytest.raises(RefusedError, match="21 bytes") as refusal:
        bench.hub.may_upload("a", DIGEST, 21)
    assert refusal.value.code == "blob-size"


def test_only_versions_of_the_model_are_handed_out(bench: Bench) -> None:
    bench.hub.may_download("a", bytes.fromhex(bench.plan.initial.digest))
    with pytest.raises(RefusedError) as refusal:
        bench.hub.may_download("a", DIGEST)
    assert refusal.value.code == "blob-unknown"


class _FullDisk:
    """Passes everything through to a real store until the disk is full."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.full = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def append(self, run_id: str, rows: list[Transition], checkpoint: Checkpoint | None = None, **more: Any) -> None:
        if self.full:
            raise ResourceError("the disk is full", code="disk-full")
        self._store.append(run_id, rows, checkpoint, **more)


def test_when_the_log_cannot_be_written_the_hub_falls_back_to_what_is_written(bench: Bench) -> None:
    disk = _FullDisk(bench.store)
    bench.hub = Hub(disk, bench.plan, bench.federation, lease_s=LEASE_S, now_s=0.0)  # type: ignore[arg-type]
    bench.ready("a")
    disk.full = True
    with pytest.raises(ResourceError):
        bench.ready("b")
    assert bench.hub.machine.state.rounds == []
    disk.full = False
    assert sorted(dict(sent(bench.ready("b"), "task"))) == ["a", "b"]


class _Counting(_FullDisk):
    """Counts the transactions that reach the log."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.appended: list[int] = []

    def append(self, run_id: str, rows: list[Transition], checkpoint: Checkpoint | None = None, **more: Any) -> None:
        super().append(run_id, rows, checkpoint, **more)
        self.appended.append(len(rows))


def _counted(bench: Bench) -> _Counting:
    disk = _Counting(bench.store)
    bench.hub = Hub(disk, bench.plan, bench.federation, lease_s=LEASE_S, now_s=0.0)  # type: ignore[arg-type]
    bench.ready("a")
    bench.ready("b")
    disk.appended.clear()
    return disk


def test_what_comes_together_is_one_transaction_and_each_gets_its_own_answer(bench: Bench) -> None:
    disk = _counted(bench)
    checks = [bench.update(name, f"bench-1/1.1/{name}")[0] for name in ("a", "b")]

    def fails() -> list[object]:
        raise KeyError("one input is broken")

    first, broken, second, idle = bench.hub.together(
        [
            lambda: bench.hub.checked(checks[0], None, 1.0),  # type: ignore[arg-type]
            fails,  # type: ignore[list-item]
            lambda: bench.hub.checked(checks[1], None, 1.0),  # type: ignore[arg-type]
            lambda: bench.hub.receive("a", pb.FromParticipant(progress=pb.Progress(stage="idle")), 1.0),
        ]
    )
    assert disk.appended == [3], "two updates and the seal of the round"
    assert isinstance(broken, KeyError)
    assert isinstance(first, list) and [peer for peer, _ in sent(first, "receipt")] == ["a"]  # type: ignore[arg-type]
    assert isinstance(second, list) and isinstance(second[-1], Merge)
    assert idle == []
    digest = bench.hub.machine.state.open_round()
    bench.restart()
    assert bench.hub.machine.state.open_round() == digest, "what was answered is what a restart finds"


def test_what_cannot_be_written_together_takes_no_effect_and_nobody_is_answered(bench: Bench) -> None:
    disk = _counted(bench)
    checks = [bench.update(name, f"bench-1/1.1/{name}")[0] for name in ("a", "b")]
    disk.full = True
    inputs = [
        lambda: bench.hub.checked(checks[0], None, 1.0),  # type: ignore[arg-type]
        lambda: bench.hub.checked(checks[1], None, 1.0),  # type: ignore[arg-type]
        lambda: bench.hub.receive("a", pb.FromParticipant(progress=pb.Progress(stage="idle")), 1.0),
    ]
    *lost, idle = bench.hub.together(inputs)
    assert all(isinstance(item, ResourceError) for item in lost)
    assert idle == [], "a sign of life needs no disk"
    current = bench.hub.machine.state.open_round()
    assert current is not None and current.pending() == ["a", "b"]
    disk.full = False
    again = bench.hub.together(inputs)
    assert isinstance(again[1], list) and isinstance(again[1][-1], Merge)
    assert disk.appended == [3]


# --- the member list --------------------------------------------------------------------------------------------------


def test_after_the_welcome_comes_what_the_participant_lacks_of_the_member_list(bench: Bench) -> None:
    ((_, empty),) = sent(bench.check_in("a"), "members")
    assert (list(empty.entries), empty.total, empty.head) == ([], 0, ORIGIN)
    bench.federation.certify("a", "b", "c")
    entries = list(bench.federation.members.entries)
    for known, rest in ((0, entries), (2, entries[2:]), (3, []), (9, []), (4_000_000_000, [])):
        check_in = pb.CheckIn(protocol_version=PROTOCOL_VERSION, members=known)
        actions = bench.say("a", check_in=check_in)
        kinds = [action.message.WhichOneof("body") for action in actions if isinstance(action, Send)]
        assert kinds == ["welcome", "members"]
        ((_, shown),) = sent(actions, "members")
        assert [(item.body, item.signature) for item in shown.entries] == [(e.body, e.signature) for e in rest]
        assert (shown.total, shown.head) == (3, entries[-1].hash)


def test_a_list_that_grows_is_shown_to_whoever_is_connected(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        bench.check_in(name)
    bench.hub.disconnected("c", 1.0)
    bench.federation.certify("a", "b")
    assert [(peer, len(shown.entries)) for peer, shown in sent(bench.hub.members_grew(), "members")] == [
        ("a", 2),
        ("b", 2),
    ]
    bench.federation.certify("c")
    shown = sent(bench.hub.members_grew(), "members")
    assert [(peer, len(part.entries), part.total) for peer, part in shown] == [("a", 1, 3), ("b", 1, 3)]


def test_a_long_list_is_shown_in_parts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.messages.MAX_ENTRIES", 2)
    bench.federation.certify("a", "b", "c", "d", "e")
    assert [len(shown.entries) for _, shown in sent(bench.check_in("a"), "members")] == [2, 2, 1]


def test_chunks_of_a_transfer_renew_a_lease_as_messages_do(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.ready("a")
    for _ in range(3):
        bench.now += 0.9 * LEASE_S
        assert bench.hub.heard("a", bench.now) is not None
        bench.hub.tick(bench.now)
    assert "a" in bench.hub.presence
    bench.now += 1.1 * LEASE_S
    bench.hub.tick(bench.now)
    assert bench.hub.heard("a", bench.now) is None, "who is gone begins anew"
