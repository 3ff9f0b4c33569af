"""A site's part in secure sums: agent, journal and masks together, killed wherever it hurts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sites_world import EXAMPLES, LEASE_S, Site, SitesWorld, trained_update

from participant.actions import DropMask, ExpandMask, MaskUpdate, PushMasked, Say
from participant.rules import SiteRules
from participant.store import TaskState
from participant.work import Job, Outcome
from privacy.secure_aggregation import prekeys
from privacy.secure_aggregation.policy import SitePolicy
from privacy.secure_aggregation.statements import Freeze, Refused, Signed, kind_of
from protos import session_pb2 as pb


@pytest.fixture(autouse=True)
def few_prekeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prekeys, "STOCK", 4)
    monkeypatch.setattr(prekeys, "LOW", 2)


class Worlds:
    """Makes worlds and closes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[SitesWorld] = []

    def __call__(self, count: int = 3, **options: Any) -> SitesWorld:
        folder = self.folder / str(len(self.made))
        folder.mkdir()
        self.made.append(SitesWorld(folder, count, **options))
        return self.made[-1]


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Worlds]:
    made = Worlds(tmp_path)
    yield made
    for world in made.made:
        world.close()


def statements(site: Site) -> list[str]:
    bodies = [item.statement.body for item in site.said if item.WhichOneof("body") == "statement"]
    return [kind_of(body) for body in bodies]


def refusals(site: Site) -> list[Refused]:
    bodies = [item.statement.body for item in site.said if item.WhichOneof("body") == "statement"]
    return [Refused.parse(body) for body in bodies if kind_of(body) == "refused"]


def masks(site: Site) -> list[str]:
    return [path.name for path in (site.folder / "masks").iterdir() if ".mask" in path.name]


# ---- a run that goes well -------------------------------------------------------------------------------------------


def test_a_run_is_trained_masked_uploaded_receipted_and_leaves_no_secret_behind(worlds: Worlds) -> None:
    world = worlds(rounds={"count": 2, "evaluate_every": 1})
    world.connect()
    assert world.hub.machine.state.finished is not None
    for site in world.sites.values():
        assert site.trained == [f"run-1/{number}.1/{site.name}" for number in (1, 2)]
        assert [item.state for item in site.store.history(9)] == [TaskState.RECEIPTED] * 3
        assert masks(site) == []
        kept = {note.kind for note in site.store.notes()}
        assert kept.isdisjoint({"planned", "secrets", "share-key", "delivered", "frozen", "masked", "released"})
        assert statements(site).count("prekeys") >= 2  # at the start, and again when few were left
        # In no message of its own does a site say how many examples it has, or how well it does.
        assert {item.WhichOneof("body") for item in site.said} == {"check_in", "ready", "statement"}
        assert [item.ready.examples for item in site.said if item.WhichOneof("body") == "ready"] == [0]


def test_the_mean_is_that_of_the_updates_within_the_encodings_bound(worlds: Worlds) -> None:
    world = worlds(4)
    world.connect()
    state = world.hub.machine.state.rounds[0]
    assert state.revealed is not None
    assert state.revealed.weight == 4 * EXAMPLES
    assert state.revealed.metrics == {"loss": 1.0}
    job = job_of(world, 1)
    exact = np.mean([trained_update(name, job, 33).astype(np.float64) for name in world.names], axis=0)
    assert world.plan.secure is not None
    bound = world.plan.secure.encoding(4).error_bound(4, 4 * EXAMPLES)
    assert np.abs(world.mean(1) - exact).max() <= bound + 1e-7
    assert bound < 1e-6


def test_sums_of_groups_over_two_runs_of_the_coordinator_and_of_a_site(
    worlds: Worlds, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world = worlds(9, rounds={"count": 2, "min_participants": 9}, secure={"group_size": 3})
    world.lost = {"release"}
    world.connect()
    # Killed while the shares of round 1 are released: both come back to the same atoms and the same masked updates.
    atoms = dict(world.hub.machine.state.atoms)
    world.lost = set()
    world.sites["site-1"].restart()
    world.restart_hub()
    world.settle()
    assert world.hub.machine.state.finished is not None, world.hub.machine.waiting_for()
    assert world.hub.machine.state.atoms == atoms and len(set(atoms.values())) == 3
    assert world.store.refusals() == {}
    for state in world.hub.machine.state.rounds:
        assert state.revealed is not None and len(state.attempts) == 1
        exact = {name: trained_update(name, job_of(world, state.number), 33).astype(np.float64) for name in world.names}
        for group in state.revealed.groups:
            assert len({atoms[name] for name in group.members}) == 1
            mean = np.fromfile(world.blobs.path(bytes.fromhex(group.digest)), "<f4")
            assert np.abs(mean - np.mean([exact[name] for name in group.members], axis=0)).max() < 1e-5
            assert bytes.fromhex(group.digest) in world.hub.blobs_in_use()
            world.hub.may_download("site-1", bytes.fromhex(group.digest))
    mates = ", ".join(sorted(name for name in atoms if atoms[name] == atoms["site-1"] and name != "site-1"))
    said = [item.getMessage() for item in caplog.records if "together or not at all" in item.getMessage()]
    assert f"run run-1 sums this site's updates with those of {mates}, together or not at all" in said
    assert len(said) == 9


def job_of(world: SitesWorld, number: int) -> Job:
    return Job(
        task_id="", run_id="", train=True, round=number, rounds=1, attempt=1, base_version=0, base_digest=b"",
        base_size=0, seed=world.plan.rounds.seed, evaluate=False,
    )  # fmt: skip


# ---- kill -9 --------------------------------------------------------------------------------------------------------


def test_killed_at_any_point_it_trains_once_uploads_once_and_the_sum_is_the_same(worlds: Worlds) -> None:
    whole = worlds()
    whole.connect()
    points, mean = whole.sites["site-1"].points, whole.mean(1).tobytes()
    assert points > 15
    for fuse in range(points):
        world = worlds()
        site = world.sites["site-1"]
        site.fuse = fuse
        world.connect()
        for _ in range(3):
            if world.hub.machine.state.finished is None:
                world.pass_time(LEASE_S - 1.0)
        assert world.hub.machine.state.finished is not None, (fuse, world.hub.machine.waiting_for())
        assert world.hub.machine.state.rounds[0].done() == world.names
        # The random rounding follows from the plan's seed: whatever was repeated gave the same bytes.
        assert world.mean(1).tobytes() == mean, fuse
        assert set(site.trained) == {"run-1/1.1/site-1"}
        contexts = [item.opened.context for item in world.hub.machine.state.rounds[0].attempts]
        assert len(site.uploads()) == len(contexts) == 1, fuse
        assert masks(site) == []
        assert world.store.refusals() == {}
        world.close()


def test_killed_twice_in_one_round_it_still_says_the_same(worlds: Worlds) -> None:
    whole = worlds()
    whole.connect()
    for first in (6, 9, 12):
        world = worlds()
        site = world.sites["site-0"]
        site.fuse = first
        world.connect()
        restarted = site.life
        site.restart()
        world.settle()
        assert (restarted, site.life) == (1, 2)
        assert world.mean(1).tobytes() == whole.mean(1).tobytes()
        assert len(site.uploads()) <= 1


def test_a_trained_update_survives_an_attempt_that_failed_and_enters_the_next_under_another_mask(
    worlds: Worlds,
) -> None:
    world = worlds()
    world.lost = {"survived"}
    world.connect()
    world.lost = set()
    world.pass_time(LEASE_S)
    round_one = world.hub.machine.state.rounds[0]
    assert [item.failed.code for item in round_one.attempts if item.failed is not None] == ["quorum-short"]
    assert round_one.done() == world.names
    for site in world.sites.values():
        assert site.trained == [f"run-1/1.1/{site.name}"]
        assert len(site.uploads()) == 2
        assert masks(site) == []


def test_an_update_whose_sum_may_be_known_is_trained_anew(worlds: Worlds) -> None:
    world = worlds()
    world.lost = {"release"}
    world.connect()
    world.lost = set()
    world.pass_time(LEASE_S)
    assert world.hub.machine.state.rounds[0].done() == world.names
    for site in world.sites.values():
        assert site.trained == [f"run-1/1.1/{site.name}", f"run-1/1.2/{site.name}"]
        first, second = (site.store.get(task_id) for task_id in site.trained)
        assert first is not None and second is not None
        assert (first.state, second.state) == (TaskState.DROPPED, TaskState.RECEIPTED)
        assert first.update_digest != second.update_digest


def test_an_attempt_that_ends_while_its_mask_is_made_costs_nobody_its_task(worlds: Worlds) -> None:
    world = worlds(4)
    world.slow = {"site-0"}
    world.connect()
    site = world.sites["site-0"]
    held: list[MaskUpdate] = []
    real = site._sum

    def summing(action: Any) -> list[Any]:
        if isinstance(action, MaskUpdate) and not held:
            held.append(action)
            return []
        return real(action)

    site._sum = summing  # type: ignore[method-assign]
    job = site.agent._active
    assert job is not None
    site.work(job)
    world.settle()
    assert held
    # Meanwhile the coordinator gives the attempt up, and its mask is deleted.
    machine: Any = world.hub.machine
    world.perform(world.hub._carry(_aborted(machine, world.now), world.now))
    world.settle()
    assert masks(site) == [] or held[0].context.hash.hex() not in masks(site)[0]
    site.perform(real(held[0]))
    world.settle()
    record = site.store.get("run-1/1.1/site-0")
    assert record is not None
    assert record.state is not TaskState.DROPPED
    assert not [item for item in site.said if item.WhichOneof("body") == "declined"]


def _aborted(machine: Any, now_s: float) -> Any:
    from coordinator.rounds import Decision

    decision = Decision()
    machine._take(decision, machine.attempt.abort("test", "given up", now_s), now_s)
    return decision


# ---- what it can't do -----------------------------------------------------------------------------------------------


def test_an_update_that_is_not_finite_is_declined_and_the_sum_is_made_without_it(worlds: Worlds) -> None:
    world = worlds(4)
    site = world.sites["site-2"]
    worked = site._worked

    def broken(job: Job) -> list[Any]:
        content = np.full(world.plan.initial.dimension, np.nan, "<f4").tobytes()
        from sites_world import put

        outcome = Outcome(digest=put(site.blobs, content), size=len(content), examples=9, metrics={}, evaluation={})
        return site.agent.worked(job, outcome) if job.train else worked(job)

    site._worked = broken  # type: ignore[method-assign]
    world.connect()
    round_one = world.hub.machine.state.rounds[0]
    assert round_one.done() == ["site-0", "site-1", "site-3"]
    assert (round_one.seats["site-2"].outcome, round_one.seats["site-2"].code) == ("declined", "update-not-finite")
    # The message tells no number of the update.
    (declined,) = [item.declined for item in site.said if item.WhichOneof("body") == "declined"]
    assert "nan" not in declined.message.lower()


def test_the_sites_own_rules_are_stronger_than_the_plan_and_name_their_setting(worlds: Worlds) -> None:
    world = worlds(4, rules=SiteRules(secure=SitePolicy(min_cohort=4)))
    world.connect()
    assert world.hub.machine.state.finished is None
    for site in world.sites.values():
        assert {(item.code, item.setting) for item in refusals(site)} == {
            ("cohort-floor", "[secure_aggregation] min_cohort")
        }
        assert site.agent.secure.refusal == "cohort-floor"
        assert "accept" not in statements(site)
    assert {code for code, _ in world.store.refusals()} == {"site-cohort-floor"}


def test_plans_for_a_task_that_was_never_given_are_passed_over(worlds: Worlds) -> None:
    world = worlds()
    site = world.sites["site-0"]
    world.slow = set(world.names)
    world.connect()
    plan = next(item for _, item in world.sent("statement") if kind_of(item.body) == "plan")
    site.restart()
    fresh = site.agent.secure
    assert fresh.heard(plan) == []


def test_nonsense_from_the_coordinator_is_refused_in_a_signed_statement(worlds: Worlds) -> None:
    world = worlds()
    world.connect()
    site = world.sites["site-0"]
    unsigned = Freeze(b"c" * 32, b"").signed(world.federation.key("site-1"))
    for body, signature in ((b"garbage", b"s" * 64), (unsigned.body, unsigned.signature), (b"", b"")):
        (said,) = site.agent.received(pb.FromCoordinator(statement=pb.Statement(body=body, signature=signature)))
        assert isinstance(said, Say)
        answer = Signed(said.message.statement.body, said.message.statement.signature)
        refused = Refused.opened(answer, world.federation.key("site-0").public, "site-0")
        assert refused.code
    assert world.hub.machine.state.finished is not None


def test_prekeys_that_came_before_the_certificate_are_offered_again(worlds: Worlds) -> None:
    world = worlds()
    late = world.federation
    late.members = late.root.empty()
    late.certify_coordinator()
    late.certify("site-0", "site-1")
    world.perform(world.hub.members_grew())
    world.connect()
    assert world.hub.machine.state.rounds == []
    assert world.store.refusals() == {("participant-uncertified", "site-2"): 1}
    late.certify("site-2")
    world.perform(world.hub.members_grew())
    world.settle()
    assert world.hub.machine.state.finished is not None


def test_work_of_another_attempt_is_passed_over(worlds: Worlds) -> None:
    world = worlds()
    world.connect()
    agent = world.sites["site-0"].agent
    # A mask that was finished too late goes at once.
    assert agent.expanded(b"c" * 32) == [DropMask(b"c" * 32)]
    for nothing in (
        agent.masked(b"c" * 32, b"d" * 32),
        agent.masked_pushed(b"c" * 32),
        agent.unmaskable(b"c" * 32, ValueError("gone")),
    ):
        assert nothing == []


def test_actions_hold_no_secret_that_a_log_would_show(worlds: Worlds) -> None:
    world = worlds()
    site = world.sites["site-0"]
    shown: list[str] = []
    real = site._sum

    def summing(action: ExpandMask | MaskUpdate | PushMasked) -> list[Any]:
        if not isinstance(action, PushMasked):
            seeds = [term.seed for term in action.terms]
            shown.append(repr(action))
            assert all(seed.hex() not in shown[-1] and repr(seed)[2:-1] not in shown[-1] for seed in seeds)
        return real(action)

    site._sum = summing  # type: ignore[method-assign]
    world.connect()
    assert len(shown) == 2
    assert dataclasses.is_dataclass(ExpandMask)
