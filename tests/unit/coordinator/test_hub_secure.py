"""The hub of a run with secure sums: what it stores, counts, lets in and hands out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sites_world import LEASE_S, SitesWorld

from coordinator import status
from coordinator.hub import Find, Hub
from coordinator.planning import run_records
from coordinator.rounds import SecureRounds
from coordinator.store import Store
from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.statements import Ready, Refused, Result, Upload, kind_of
from privacy.secure_aggregation.summing import line_hash
from protos import session_pb2 as pb
from wire import PROTOCOL_VERSION, RefusedError, ResourceError


@pytest.fixture(autouse=True)
def few_prekeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prekeys, "STOCK", 4)
    monkeypatch.setattr(prekeys, "LOW", 2)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SitesWorld]:
    """Three sites, two rounds and scoring."""
    made = SitesWorld(tmp_path, 3, rounds={"count": 2, "evaluate_every": 1})
    yield made
    made.close()


def say(world: SitesWorld, peer: str, **body: Any) -> list[Any]:
    return list(world.hub.receive(peer, pb.FromParticipant(**body), world.now))


def statement(world: SitesWorld, peer: str, said: Any) -> list[Any]:
    signed = said.signed(world.federation.key(peer))
    return say(world, peer, statement=pb.Statement(body=signed.body, signature=signed.signature))


def machine(world: SitesWorld) -> SecureRounds:
    assert isinstance(world.hub.machine, SecureRounds)
    return world.hub.machine


def context(world: SitesWorld) -> bytes:
    attempt = machine(world).attempt
    assert attempt is not None
    return attempt.context.hash


# ---- presence -------------------------------------------------------------------------------------------------------


def test_a_site_is_available_once_its_prekeys_are_here_and_its_examples_are_not_asked_for(world: SitesWorld) -> None:
    for name in world.names:
        say(world, name, check_in=pb.CheckIn(protocol_version=PROTOCOL_VERSION))
        manifest = bytes.fromhex(world.plan.initial.manifest_hash)
        ready = pb.Ready(plan_hash=world.plan.hash, manifest_hash=manifest, examples=123)
        assert say(world, name, ready=ready) == []
        assert world.hub.presence[name].examples == 0
    assert machine(world).present() == frozenset()
    assert world.hub.machine.state.rounds == []


def test_prekeys_are_stored_and_known_after_a_restart(world: SitesWorld) -> None:
    world.slow = set(world.names)
    world.connect()
    assert set(world.store.prekeys()) == set(world.names)
    world.restart_hub()
    world.slow = set()
    world.settle()
    used = [attempt.opened.prekeys for item in world.hub.machine.state.rounds for attempt in item.attempts]
    assert used == [(1, 1, 1)]


def test_prekeys_of_a_member_that_was_removed_are_left_alone_at_the_next_start(world: SitesWorld) -> None:
    world.slow = set(world.names)
    world.connect()
    world.federation.remove("site-2")
    world.restart_hub()
    assert "site-2" in world.store.prekeys()


@pytest.mark.parametrize("body", [b"", b"garbage", b"\x00" * 40])
def test_statements_that_cannot_be_read_are_counted_and_the_stream_goes_on(world: SitesWorld, body: bytes) -> None:
    world.slow = set(world.names)
    world.connect()
    assert say(world, "site-0", statement=pb.Statement(body=body, signature=b"s" * 64)) == []
    ((code, peer),) = world.store.refusals()
    assert (code, peer) == ("statement-malformed", "site-0")
    assert world.hub.presence["site-0"].connected


def test_a_statement_of_another_participant_is_counted_and_changes_nothing(world: SitesWorld) -> None:
    world.slow = set(world.names)
    world.connect()
    signed = Ready(context(world)).signed(world.federation.key("site-1"))
    assert say(world, "site-0", statement=pb.Statement(body=signed.body, signature=signed.signature)) == []
    assert world.store.refusals() == {("signature-invalid", "site-0"): 1}


@pytest.mark.parametrize("body", ["update_ready", "evaluation_ready"])
def test_messages_of_plain_averaging_are_refused_and_counted(world: SitesWorld, body: str) -> None:
    world.slow = set(world.names)
    world.connect()
    assert say(world, "site-0", **{body: {"task_id": "run-1/1.1/site-0", "examples": 5}}) == []
    assert world.store.refusals() == {("protocol-order", "site-0"): 1}
    seat = world.hub.machine.state.rounds[0].seats["site-0"]
    assert (seat.outcome, seat.examples) == ("pending", 0)


def test_what_a_site_refuses_is_counted_with_its_code_and_forged_refusals_are_not(world: SitesWorld) -> None:
    world.slow = set(world.names)
    world.connect()
    refused = Refused(context(world), "cohort-floor", "[secure_aggregation] min_cohort", "too few")
    forged = refused.signed(world.federation.key("site-1"))
    say(world, "site-0", statement=pb.Statement(body=forged.body, signature=forged.signature))
    assert world.store.refusals() == {("signature-invalid", "site-0"): 1}
    statement(world, "site-0", refused)
    assert world.store.refusals()["site-cohort-floor", "site-0"] == 1


def test_a_site_cannot_fill_the_table_of_counts_with_codes_of_its_own(world: SitesWorld) -> None:
    world.slow = set(world.names)
    world.connect()
    for number in range(80):
        statement(world, "site-0", Refused(bytes(32), f"code-{number}", "", ""))
    assert len(world.store.refusals()) == 65
    assert world.store.refusals()["site-other", "site-0"] == 16


# ---- uploads and downloads ------------------------------------------------------------------------------------------


def test_a_masked_update_is_looked_for_before_it_counts(world: SitesWorld) -> None:
    world.lost = {"upload"}
    world.connect()
    attempt = machine(world).attempt
    assert attempt is not None
    accepted = attempt.context.set_hash((0, 1, 2))
    upload = Upload(attempt.context.hash, 0, accepted, accepted, b"d" * 32)
    (find,) = statement(world, "site-0", upload)
    assert isinstance(find, Find)
    assert (find.peer, find.digest, find.size) == ("site-0", b"d" * 32, world.hub.update_size())
    missing = RefusedError("update-missing", "it isn't here")
    assert world.hub.found(find, missing, world.now) == []
    assert world.store.refusals() == {("update-missing", "site-0"): 1}
    assert attempt.digests() == {}
    world.hub.found(find, None, world.now)
    assert attempt.digests() == {0: b"d" * 32}
    # What is said again of an attempt that is over isn't looked for.
    assert statement(world, "site-0", Upload(b"o" * 32, 0, accepted, accepted, b"d" * 32)) == []


def test_uploads_are_taken_only_in_their_time_and_size_and_only_from_those_who_owe_one(world: SitesWorld) -> None:
    world.slow = set(world.names)
    world.connect()
    size = world.hub.update_size()
    assert size == 4 * 33 + 32
    with pytest.raises(RefusedError) as refusal:
        world.hub.may_upload("site-0", b"d" * 32, size)
    assert refusal.value.code == "blob-not-expected"
    world.lost = {"upload"}
    for site in world.sites.values():
        assert site.agent._active is not None
        site.work(site.agent._active)
    world.settle()
    world.hub.may_upload("site-0", b"d" * 32, size)
    with pytest.raises(RefusedError) as refusal:
        world.hub.may_upload("site-0", b"d" * 32, size + 1)
    assert refusal.value.code == "blob-size"
    with pytest.raises(RefusedError) as refusal:
        world.hub.may_upload("stranger", b"d" * 32, size)
    assert refusal.value.code == "blob-not-expected"


def test_what_a_sum_can_be_recomputed_from_is_handed_out_and_kept_and_nothing_of_an_open_attempt(
    world: SitesWorld,
) -> None:
    world.connect()
    one, two, scoring = (item.revealed for item in world.hub.machine.state.rounds)
    assert one and two and scoring
    kept = world.hub.blobs_in_use()
    for revealed in (two, scoring):
        for digest in (*revealed.uploads, revealed.record):
            world.hub.may_download("site-0", bytes.fromhex(digest))
            assert bytes.fromhex(digest) in kept
    with pytest.raises(RefusedError) as refusal:
        world.hub.may_download("site-0", bytes.fromhex(one.uploads[0]))
    assert refusal.value.code == "blob-unknown"
    assert bytes.fromhex(one.uploads[0]) not in kept


def test_uploads_of_an_open_attempt_are_kept_and_not_shown(tmp_path: Path) -> None:
    world = SitesWorld(tmp_path, 4)
    world.lost = {"survived"}
    world.connect()
    held = machine(world).uploads_held()
    assert len(held) == 4
    assert held <= world.hub.blobs_in_use()
    for digest in held:
        with pytest.raises(RefusedError):
            world.hub.may_download("site-0", digest)
    world.close()


# ---- the log --------------------------------------------------------------------------------------------------------


def test_statements_are_forgotten_with_their_round_and_results_are_kept(world: SitesWorld) -> None:
    world.connect()
    for item in world.hub.machine.state.rounds:
        for attempt in item.attempts:
            assert world.store.statements("run-1", bytes.fromhex(attempt.opened.context)) == []
    results = [Result.parse(item.body) for item in world.store.results()]
    assert [(item.index, item.previous) for item in results] == [
        (0, bytes(32)),
        (1, line_hash(results[0].body())),
        (2, line_hash(results[1].body())),
    ]
    told = [Result.parse(item.body).index for peer, item in world.sent("statement") if _is_result(item, peer)]
    assert sorted(set(told)) == [0, 1, 2]


def _is_result(item: pb.Statement, peer: str) -> bool:
    return peer == "site-0" and kind_of(item.body) == "result"


def test_a_second_run_goes_on_with_the_log_of_results(tmp_path: Path) -> None:
    world = SitesWorld(tmp_path, 3)
    world.connect()
    plan = world.plan.model_copy(update={"run_id": "run-2"})
    world.store.create_run(*run_records(plan, world.now))
    hub = Hub(world.store, plan, world.federation, lease_s=LEASE_S, now_s=world.now)
    assert isinstance(hub.machine, SecureRounds)
    assert (hub.machine.results.count, hub.machine.state.rounds) == (1, [])
    world.close()


def test_a_hub_killed_between_two_messages_ends_the_round_with_the_same_mean(tmp_path: Path) -> None:
    def run(name: str, kill_after: int | None) -> tuple[SitesWorld, int]:
        folder = tmp_path / name
        folder.mkdir()
        world = SitesWorld(folder, 3)
        seen = 0
        receive = world.perform

        def performing(actions: Any) -> None:
            nonlocal seen
            actions = list(actions)
            seen += 1
            if seen - 1 == kill_after:
                world.restart_hub()
                return
            receive(actions)

        world.perform = performing  # type: ignore[method-assign]
        world.connect()
        for _ in range(4):
            if world.hub.machine.state.finished is None:
                world.pass_time(LEASE_S)
        return world, seen

    whole, points = run("whole", None)
    mean = whole.mean(1).tobytes()
    whole.close()
    assert points > 20
    for kill_after in range(0, points - 1, 3):
        world, _ = run(str(kill_after), kill_after)
        assert world.hub.machine.state.finished is not None, (kill_after, world.hub.machine.waiting_for())
        assert world.hub.machine.state.rounds[0].done() == world.names
        assert world.mean(1).tobytes() == mean, kill_after
        assert len(world.store.results()) == 1
        world.close()


class _FullDisk:
    """Passes everything through to a real store; each ``full`` append fails."""

    def __init__(self, store: Store, full: int) -> None:
        self._store = store
        self._left = full

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def append(self, *arguments: Any, **more: Any) -> None:
        self._left -= 1
        if self._left == 0:
            raise ResourceError("the disk is full", code="disk-full")
        self._store.append(*arguments, **more)


@pytest.mark.parametrize("number", [1, 3, 6, 9, 12, 15])
def test_a_log_that_could_not_be_written_once_costs_at_most_a_deadline(tmp_path: Path, number: int) -> None:
    world = SitesWorld(tmp_path, 3, rounds={"deadline_s": 60.0})
    disk: Any = _FullDisk(world.store, number)
    world.hub = Hub(disk, world.plan, world.federation, lease_s=LEASE_S, now_s=world.now)
    failed: list[str] = []
    receive = world.to_hub

    def to_hub(name: str, message: pb.FromParticipant) -> None:
        receive(name, message)
        site, life, wire, what = world.queue.pop()

        def guarded() -> None:
            try:
                what()
            except ResourceError:
                # The service ends the stream of the peer whose message couldn't be stored; it connects again.
                failed.append(name)
                world.hub.disconnected(name, world.now)
                site = world.sites[name]
                site.perform(site.agent.connected())

        world.queue.append((site, life, wire, guarded))

    world.to_hub = to_hub  # type: ignore[method-assign]
    world.connect()
    for _ in range(8):
        if world.hub.machine.state.finished is None:
            world.pass_time(LEASE_S)
    assert len(failed) == 1
    assert world.hub.machine.state.finished is not None, world.hub.machine.waiting_for()
    assert world.hub.machine.state.rounds[0].done() == world.names
    world.close()


# ---- what the operator sees -----------------------------------------------------------------------------------------


def test_the_status_shows_sums_and_nobodys_own_figures(world: SitesWorld) -> None:
    world.connect()
    shown = status.view(world.hub, world.hub.machine.waiting_for(), world.now)
    assert [item.round for item in shown.history] == [1, 2, 3]
    for item in shown.history:
        for seat in item.participants:
            assert (seat.examples, dict(seat.metrics), dict(seat.evaluation)) == (0, {}, {})
    assert shown.history[0].weighted_loss == 1.0
    assert dict(shown.history[0].metrics) == {"loss": 1.0}
    assert [seat.outcome for seat in shown.history[2].participants] == ["scored"] * 3


def test_the_status_shows_why_attempts_failed(tmp_path: Path) -> None:
    world = SitesWorld(tmp_path, 3)
    world.lost = {"accept"}
    world.connect()
    world.pass_time(LEASE_S)
    shown = status.view(world.hub, world.hub.machine.waiting_for(), world.now)
    assert list(shown.history[0].failures) == ["attempt 1: too-few-accepts: nobody accepted; 3 are needed"]
    world.close()
