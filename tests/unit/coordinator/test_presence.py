"""What the hub makes of a site that says when it takes tasks, what it owes, and what its budget is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from paying_site import PayingSite, private_plan, task_id

from coordinator.hub import Hub
from coordinator.presence import Absence, announced
from privacy.ledger import SignedReceipt
from protos import session_pb2 as pb
from tests.unit.coordinator.test_hub import Bench, sent
from wire import RefusedError, ResourceError


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def away(seconds: float = 1e4, reason: str = "hours", working: bool = False) -> dict[str, object]:
    return {"availability": pb.Availability(away_s=seconds, reason=reason, working=working)}


def check_in_away(bench: Bench, peer: str, seconds: float = 1e4) -> list[object]:
    """As a site's agent does: it says that it is away before it says that it is ready."""
    bench.check_in(peer)
    bench.say(peer, **away(seconds))
    manifest = bytes.fromhex("cd" * 32)
    return bench.say(peer, ready=pb.Ready(plan_hash=bench.plan.hash, manifest_hash=manifest, examples=100))


def test_who_is_away_when_it_connects_gets_no_task_and_is_told_of_everything_else(bench: Bench) -> None:
    assert sent(check_in_away(bench, "c"), "task") == []
    actions = [*bench.ready("a"), *bench.ready("b")]
    assert {peer for peer, _ in sent(actions, "task")} == {"a", "b"}
    assert bench.hub.machine.present() == {"a", "b", "c"}
    # It is back: a round is open, and the next one is its.
    assert bench.say("c", availability=pb.Availability()) == []
    assert bench.hub.machine.away == {}


def test_a_pause_frees_the_round_and_the_lease_goes_on(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    bench.say("b", **away())
    bench.ready("c")
    bench.accept("a", "bench-1/1.1/a")
    assert bench.hub.machine.state.rounds[0].seats["b"].outcome == "away"
    bench.accept("c", "bench-1/1.1/c")
    assert bench.hub.machine.state.rounds[0].sealed
    bench.now += 25.0
    bench.say("b", progress=pb.Progress(stage="idle"))
    bench.now += 25.0
    bench.hub.tick(bench.now)
    assert "b" in bench.hub.presence


def test_a_broken_log_forgets_no_absence(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    check_in_away(bench, "c", 1e4)
    bench.ready("a")

    def full(*_: object, **__: object) -> None:
        raise ResourceError("the disk is full", code="disk-full")

    with monkeypatch.context() as patched:
        patched.setattr(bench.store, "append", full)
        with pytest.raises(ResourceError):
            bench.ready("b")
    assert bench.hub.machine.away == {"c": 1e4}


@pytest.mark.parametrize(
    "message",
    [
        pb.Availability(away_s=math.nan, reason="hours"),
        pb.Availability(away_s=math.inf, reason="hours"),
        pb.Availability(away_s=-1.0, reason="hours"),
        pb.Availability(away_s=1.0, reason="a reason of its own"),
    ],
)
def test_an_announcement_that_makes_no_sense_is_refused_and_counted(bench: Bench, message: pb.Availability) -> None:
    bench.ready("a")
    actions = bench.say("a", availability=message)
    assert sent(actions, "rejection")[0][1].code == "availability-invalid"  # type: ignore[attr-defined]
    assert bench.store.refusals() == {("availability-invalid", "a"): 1}


def test_an_absence_is_cut_to_two_weeks_and_its_end_is_by_our_clock() -> None:
    assert announced("a", pb.Availability(away_s=60.0, reason="bytes", working=True), 5.0) == Absence(
        65.0, "bytes", True
    )
    long = announced("a", pb.Availability(away_s=1e12, reason="hours"), 0.0)
    assert long is not None
    assert long.until_s == 15 * 86_400
    assert announced("a", pb.Availability(), 5.0) is None
    with pytest.raises(RefusedError):
        announced("a", pb.Availability(away_s=1.0), 5.0)


# --- what became of a task --------------------------------------------------------------------------------------------


def ask(bench: Bench, peer: str, *tasks: str) -> list[tuple[str, bool, str]]:
    actions = bench.ready(peer, owed=list(tasks))
    return [(item.task_id, item.accepted, item.code) for _, item in sent(actions, "receipt")]  # type: ignore[attr-defined]


def test_a_site_that_missed_the_receipt_asks_what_became_of_its_tasks(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        bench.ready(name)
    first = "bench-1/1.1/a"
    assert ask(bench, "a", first) == [], "its result is awaited: it gets the task again instead"
    bench.accept("a", first)
    bench.restart()
    assert ask(bench, "a", first, "bench-1/1.2/a", "nonsense") == [
        (first, True, ""),
        ("bench-1/1.2/a", False, "task-unknown"),
        ("nonsense", False, "task-unknown"),
    ]


def test_it_learns_it_before_it_is_told_that_the_run_is_over(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    bench.accept("a", "bench-1/1.1/a")
    bench.hub.stop(bench.now)
    kinds = [
        item.message.WhichOneof("body")  # type: ignore[attr-defined]
        for item in bench.ready("a", owed=["bench-1/1.1/a"])
        if hasattr(item, "message")
    ]
    assert kinds == ["receipt", "run_finished"]


def test_only_so_many_questions_are_answered_at_once(bench: Bench) -> None:
    assert len(ask(bench, "a", *[f"bench-1/{number}.1/a" for number in range(2_000)])) == 256


# --- budgets ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> PayingSite:
    made = PayingSite(tmp_path)
    made.known = None
    made.ready()
    made.hands_in()
    made.receipt()
    return made


def private(tmp_path: Path, site: PayingSite) -> Bench:
    made = Bench(tmp_path, private_plan())
    made.federation.certify("a")
    made.hub = Hub(made.store, made.plan, made.federation, lease_s=30.0, now_s=0.0)
    return made


def known(actions: list[object]) -> tuple[int, bytes, str]:
    ((_, message),) = sent(actions, "budget_known")
    return message.lines, message.head, message.code  # type: ignore[attr-defined]


def test_a_site_is_told_which_budget_receipt_is_on_the_disk(tmp_path: Path, site: PayingSite) -> None:
    bench = private(tmp_path, site)
    manifest = bench.plan.initial.manifest_hash
    ready = {"manifest_hash": bytes.fromhex(manifest)}
    assert known(bench.ready("a", **ready)) == (0, b"", "")
    receipt = site.agent._budget.receipt()  # type: ignore[union-attr]
    message = pb.BudgetReceipt(body=receipt.body, signature=receipt.signature)
    book = site.ledger.book()
    assert known(bench.say("a", budget=message)) == (book.count, book.head, "")
    bench.restart()
    assert known(bench.ready("a", **ready)) == (book.count, book.head, "")
    forged = pb.BudgetReceipt(body=receipt.body, signature=bytes(64))
    assert known(bench.say("a", budget=forged)) == (book.count, book.head, "receipt-invalid")
    assert bench.store.refusals() == {("receipt-invalid", "a"): 1}
    assert SignedReceipt(*bench.store.budgets()["a"]) == receipt
    assert task_id(0) in book.tasks
