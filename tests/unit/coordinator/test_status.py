"""The operator's view: message, table, lines and JSON."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from rich.console import Console

from coordinator import display, status
from coordinator.membership import ROOT_HERE
from coordinator.merging import MergeReport, ParticipantReport, Verdict
from coordinator.rounds import BeginMerge
from coordinator.store import Invitation, Member, MemberState
from protos import control_pb2 as pb
from protos import session_pb2 as pb_session
from tests.support.merges import merge_result
from tests.unit.coordinator.test_hub import Bench
from wire import FederationCA, Role


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    ca = FederationCA.create("bench")
    for name in ("a", "b"):
        secret_hash = name.encode() * 32
        certificate = ca.issue_client(name, Role.PARTICIPANT, 1.0).certificate_pem
        made.store.invite(Invitation(name=name, secret_hash=secret_hash, expires_s=9e9))
        member = Member(name=name, state=MemberState.ENROLLED, certificate_pem=certificate)
        assert made.store.enrol(member, secret_hash, 1.0)
    made.store.invite(Invitation(name="c", secret_hash=b"c" * 32, expires_s=9e9))
    return made


def view(bench: Bench) -> pb.Status:
    return status.view(bench.hub, bench.hub.machine.waiting_for(), bench.now)


def states(shown: pb.Status) -> dict[str, str]:
    return {item.name: item.state for item in shown.participants}


def test_it_says_until_when_a_site_is_away_by_its_own_rules(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    bench.say("a", availability=pb_session.Availability(away_s=3_600.0, reason="hours"))
    bench.say("b", availability=pb_session.Availability(away_s=3_600.0, reason="rounds", working=True))
    bench.say("b", progress=pb_session.Progress(stage="training"))
    shown = {item.name: item for item in view(bench).participants}
    assert (shown["a"].state, shown["a"].away_until, shown["a"].away_reason) == (
        "away",
        "1970-01-01T01:00:00+00:00",
        "hours",
    )
    assert (shown["b"].state, shown["b"].away_reason) == ("training", "rounds")
    text = text_of(view(bench))
    assert "away until " in text
    assert "training, then away until " in text
    bench.say("a", availability=pb_session.Availability())
    assert {item.name: item.away_until for item in view(bench).participants}["a"] == ""


def test_it_follows_participants_from_invited_to_done(bench: Bench) -> None:
    assert states(view(bench)) == {"a": "away", "b": "away", "c": "invited"}
    bench.check_in("a")
    assert states(view(bench))["a"] == "preparing"
    bench.ready("a")
    bench.ready("b")
    assert view(bench).state == "training"
    bench.accept("a", "bench-1/1.1/a")
    shown = view(bench)
    assert states(shown)["a"] == "done"
    assert shown.message == "Round 1 waits for b."
    bench.hub.disconnected("b", 1.0)
    assert states(view(bench))["b"] == "away"


def test_it_shows_what_a_merge_made_of_each_update(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    bench.accept("a", "bench-1/1.1/a")
    order: BeginMerge = bench.accept("b", "bench-1/1.1/b")[-1].order  # type: ignore[attr-defined]
    report = MergeReport(
        rule="caf",
        tolerated=1,
        remaining=0,
        kappa=math.inf,
        participants=(
            ParticipantReport(participant="a", verdict=Verdict.KEPT, norm=1.0, share=0.5, weight=1.0, score=0.25),
            ParticipantReport(participant="b", verdict=Verdict.REJECTED, reason="holds NaN", norm=math.nan),
        ),
        warnings=("no rejected update stands out",),
    )
    bench.hub.merged(order, merge_result("ef" * 32, 84, report=report), 5.0)
    shown = view(bench)
    assert "stands mishaps" in shown.guarantee
    merge = shown.history[0].merge
    assert [(item.participant, item.verdict, item.weight) for item in merge.updates] == [
        ("a", "kept", 1.0),
        ("b", "rejected", 0.0),
    ]
    assert merge.updates[0].score == 0.25
    assert not merge.updates[1].HasField("score")
    assert math.isnan(merge.updates[1].norm)
    assert math.isinf(merge.kappa)
    # It is on disk with the version.
    bench.restart()
    assert bench.hub.machine.state.rounds[0].report == report.as_json()
    console = Console(record=True, width=100)
    console.print(display.render(shown))
    text = console.export_text()
    assert "Round 1 merged by caf: 1 of 2 updates kept as they were, 1 hostile one tolerated." in text
    assert "b       rejected             0  holds NaN" in text
    assert "Round 1: no rejected update stands out" in text
    body = json.loads(json.dumps(display.as_dict(shown), allow_nan=False))
    assert body["history"][0]["merge"]["updates"][1]["norm"] is None


def test_a_round_shows_outcomes_and_the_weighted_loss(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    bench.accept("a", "bench-1/1.1/a")
    merge = bench.accept("b", "bench-1/1.1/b")[-1]
    assert view(bench).state == "merging"
    order: BeginMerge = merge.order  # type: ignore[attr-defined]
    bench.hub.merged(order, merge_result("ef" * 32, 84), 5.0)
    shown = view(bench)
    assert (shown.version, shown.round, shown.rounds) == (1, 2, 2)
    first = shown.history[0]
    assert (first.version, first.weighted_loss, first.seconds) == (1, 0.5, 5.0)
    assert {seat.name: seat.outcome for seat in first.participants} == {"a": "merged", "b": "merged"}
    assert math.isnan(shown.history[1].weighted_loss)


def test_refusals_are_added_up_by_code(bench: Bench) -> None:
    bench.store.count_refusal("quota", "a")
    bench.store.count_refusal("quota", "b")
    assert dict(view(bench).refusals) == {"quota": 2}


def test_json_has_hex_digests_and_no_nan(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    body = json.loads(json.dumps(display.as_dict(view(bench)), allow_nan=False))
    assert body["model"]["digest"] == "ab" * 32
    assert body["history"][0]["weighted_loss"] is None
    assert body["round"] == 1


def test_the_table_names_everyone(bench: Bench) -> None:
    bench.ready("a")
    bench.ready("b")
    bench.store.count_refusal("quota", "a")
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - closed with the test
    shown = view(bench)
    shown.root = ROOT_HERE
    console.print(display.render(shown))
    console.file.close()
    text = console.export_text()
    assert "The federation root is on this machine" in text
    assert "bench-1" in text
    assert "Round 1 waits for a, b." in text
    assert "quota 2" not in text
    assert "quota 1" in text
    assert "invited" in text


def test_outside_a_terminal_a_line_is_printed_for_each_change(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with display.Follower(as_json=False) as follower:
        follower.update(view(bench))
        follower.update(view(bench))
        bench.ready("a")
        follower.update(view(bench))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "waiting: version 0 of 2. Waiting for participants: 0 of at least 2 are ready.",
        "waiting: version 0 of 2. Waiting for participants: 1 of at least 2 are ready.",
    ]


def test_what_a_site_said_of_a_round_that_is_over_isnt_shown(bench: Bench) -> None:
    bench.ready("a")
    bench.say("a", progress=pb_session.Progress(stage="training", done=3, total=3))
    assert states(view(bench))["a"] == "idle"
    bench.ready("b")
    bench.say("a", progress=pb_session.Progress(stage="training", done=1, total=3))
    assert states(view(bench))["a"] == "training"
    assert "33 %" in text_of(view(bench))
    bench.accept("a", "bench-1/1.1/a")
    shown = text_of(view(bench))
    assert states(view(bench))["a"] == "done"
    assert "progress" not in shown and " %" not in shown


def text_of(shown: pb.Status) -> str:
    with open(os.devnull, "w") as nowhere:
        console = Console(width=110, record=True, file=nowhere)
        console.print(display.render(shown))
        return console.export_text()


def test_a_large_federations_rounds_are_counted_and_its_groups_are_called_so() -> None:
    outcomes = {f"site-{index:02}": "merged" for index in range(18)}
    outcomes |= {"site-04": "vanished", "site-09": "sat out", "site-15": "sat out"}
    seats = [pb.ParticipantRound(name=name, outcome=outcome) for name, outcome in outcomes.items()]
    merge = pb.MergeReport(
        rule="trimmed-mean",
        tolerated=1,
        updates=[
            pb.MergedUpdate(participant="site-11+site-13+site-17", verdict="rejected", reason="far", norm=33.0),
            pb.MergedUpdate(participant="site-00+site-06+site-10", verdict="kept", norm=1.0, weight=0.25),
        ],
    )
    people = [pb.ParticipantStatus(name=name, state="idle", silent_s=1.0) for name in outcomes]
    history = [pb.RoundStatus(round=2, version=2, seconds=3.0, weighted_loss=1.0, participants=seats, merge=merge)]
    lines = text_of(pb.Status(federation="clinics", state="waiting", participants=people, history=history)).splitlines()
    assert any(line.endswith("15 merged; site-09, site-15 sat out; site-04 vanished") for line in lines)
    assert "Round 2 merged by trimmed-mean: 1 of 2 groups kept as they were, 1 hostile one tolerated." in lines
    assert any(line.split() == ["group", "verdict", "norm", "weight", "why"] for line in lines)
    # Nobody told how many examples it has: no column for them.
    assert any(line.split() == ["participant", "state", "last", "heard"] for line in lines)


def test_before_there_is_a_run_the_roster_is_shown() -> None:
    members = [Member(name="a", state=MemberState.ENROLLED), Member(name="b", state=MemberState.INVITED)]
    shown = status.preparing("bench", "preparing", members)
    assert states(shown) == {"a": "away", "b": "invited"}
    assert shown.state == "preparing"
