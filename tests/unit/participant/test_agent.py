"""The agent: what a participant does, and never does twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from participant.actions import Abandon, Fetch, Finished, Prepare, Push, Say, Stop, Work
from participant.agent import Agent
from participant.membership import PinnedMembers
from participant.rules import SiteRules
from participant.store import ParticipantStore, TaskState
from participant.work import Outcome, Prepared
from privacy.secure_aggregation.identities import Role
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import FederationRoot, MemberList
from protos import session_pb2 as pb
from wire import (
    PROTOCOL_VERSION,
    AggregationSpec,
    DataError,
    InitialModel,
    RefusedError,
    ResourceError,
    RoundsSpec,
    RunPlan,
    SecureSpec,
)

MANIFEST = b"m" * 32
ROOT = FederationRoot("bench", SigningKey(b"r" * 32))
TASK = "bench-1/1.1/a"


def plan(**changes: object) -> RunPlan:
    """Of a run with plain averaging."""
    initial = InitialModel(digest="ab" * 32, size=100, dimension=5, manifest_hash=MANIFEST.hex())
    spec = RoundsSpec.model_validate({"count": 3, **changes})
    return RunPlan(
        federation="bench",
        run_id="bench-1",
        learning={"model": {}},
        rounds=spec,
        aggregation=AggregationSpec(mode="plain"),
        secure=None,
        initial=initial,
    )


def welcome(run: RunPlan, **changes: object) -> pb.FromCoordinator:
    fields = {"run_id": run.run_id, "plan": run.canonical(), "plan_hash": run.hash, "lease_s": 12.0, **changes}
    return pb.FromCoordinator(welcome=pb.Welcome(**fields))


def task(task_id: str = TASK, **changes: object) -> pb.FromCoordinator:
    fields = {
        "task_id": task_id,
        "kind": pb.TASK_KIND_TRAIN,
        "round": 1,
        "attempt": 1,
        "base": pb.Blob(digest=b"b" * 32, size=100),
        "seed": 7,
        **changes,
    }
    return pb.FromCoordinator(task=pb.Task(**fields))


OUTCOME = Outcome(digest=b"u" * 32, size=20, examples=10, metrics={"loss": 0.5}, evaluation={"accuracy": 0.25})


class Site:
    """An agent on a real journal, which can be killed at any moment."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.sqlite"
        self.store = ParticipantStore(self.path)
        self.agent = Agent(
            "a",
            self.store,
            PinnedMembers.load(self.store, "bench", ROOT.public),
            key=SigningKey(b"a" * 32),
            rules=SiteRules(allow_plain=True),
            software="test",
        )

    def restart(self) -> None:
        self.store.close()
        self.__init__(self.path.parent)  # type: ignore[misc]

    def ready(self) -> None:
        self.agent.connected()
        self.agent.received(welcome(plan()))
        self.agent.prepared(Prepared(manifest_hash=MANIFEST, examples=100))

    def worked(self) -> list[object]:
        (fetch,) = self.agent.received(task())
        assert isinstance(fetch, Fetch)
        (work,) = self.agent.fetched(fetch.job)
        assert isinstance(work, Work)
        return list(self.agent.worked(work.job, OUTCOME))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def said(actions: list[object], kind: str) -> list[object]:
    return [
        getattr(action.message, kind)
        for action in actions
        if isinstance(action, Say) and action.message.WhichOneof("body") == kind
    ]


def test_it_checks_in_prepares_the_plan_and_says_ready(site: Site) -> None:
    (check_in,) = said(site.agent.connected(), "check_in")
    assert check_in.protocol_version == PROTOCOL_VERSION
    (prepare,) = site.agent.received(welcome(plan()))
    assert prepare == Prepare(plan())
    assert site.agent.lease_s == 12.0
    (ready,) = said(site.agent.prepared(Prepared(manifest_hash=MANIFEST, examples=100)), "ready")
    assert (ready.plan_hash, ready.manifest_hash, ready.examples) == (plan().hash, MANIFEST, 100)


def test_after_a_reconnection_it_is_ready_without_preparing_again(site: Site) -> None:
    site.ready()
    site.agent.connected()
    assert len(said(site.agent.received(welcome(plan())), "ready")) == 1


@pytest.mark.parametrize("changes", [{"plan_hash": b"x" * 32}, {"run_id": "another-1"}, {"plan": b"{"}])
def test_a_plan_that_is_not_what_it_says_is_refused(site: Site, changes: dict[str, object]) -> None:
    (stop,) = site.agent.received(welcome(plan(), **changes))
    assert isinstance(stop, Stop)
    assert stop.error.code == "plan-mismatch"


def test_a_plan_that_changed_since_this_site_first_saw_it_is_refused_even_after_a_restart(site: Site) -> None:
    site.ready()
    site.restart()
    (stop,) = site.agent.received(welcome(plan(count=4)))
    assert isinstance(stop, Stop)
    assert "changed the plan of run bench-1" in stop.error.message


def test_a_task_goes_through_fetching_training_uploading_and_announcing(site: Site) -> None:
    site.ready()
    actions = site.worked()
    assert actions == [Push(TASK, b"u" * 32, 20)]
    (ready,) = said(site.agent.pushed(TASK), "update_ready")
    assert (ready.update.digest, ready.update.size, ready.examples) == (b"u" * 32, 20, 10)
    assert dict(ready.metrics) == {"loss": 0.5}
    assert dict(ready.evaluation) == {"accuracy": 0.25}
    site.agent.received(pb.FromCoordinator(receipt=pb.Receipt(task_id=TASK, accepted=True)))
    record = site.store.get(TASK)
    assert record is not None
    assert record.state is TaskState.RECEIPTED


def test_scoring_is_answered_without_an_upload(site: Site) -> None:
    site.ready()
    (fetch,) = site.agent.received(task(kind=pb.TASK_KIND_EVALUATE))
    (work,) = site.agent.fetched(fetch.job)
    outcome = Outcome(examples=7, metrics={}, evaluation={"accuracy": 0.75})
    (ready,) = said(site.agent.worked(work.job, outcome), "evaluation_ready")
    assert (ready.examples, dict(ready.evaluation)) == (7, {"accuracy": 0.75})


@pytest.mark.parametrize("announced", [False, True])
def test_killed_after_training_it_sends_the_same_update_and_trains_nothing(site: Site, announced: bool) -> None:
    site.ready()
    site.worked()
    if announced:
        site.agent.pushed(TASK)
    site.restart()
    site.ready()
    assert site.agent.received(task()) == [Push(TASK, b"u" * 32, 20)]


def test_killed_while_training_it_begins_again(site: Site) -> None:
    site.ready()
    site.agent.received(task())
    site.restart()
    site.ready()
    (fetch,) = site.agent.received(task())
    assert isinstance(fetch, Fetch)


def test_asked_again_while_training_it_goes_on(site: Site) -> None:
    site.ready()
    site.agent.received(task())
    assert site.agent.received(task()) == []


def test_a_download_that_broke_is_begun_anew_when_the_task_is_asked_again(site: Site) -> None:
    site.ready()
    (fetch,) = site.agent.received(task())
    site.agent.interrupted(fetch.job)
    (again,) = site.agent.received(task())
    assert again == fetch


def test_a_newer_task_replaces_the_one_in_hand(site: Site) -> None:
    site.ready()
    site.agent.received(task())
    newer = "bench-1/2.1/a"
    abandon, fetch = site.agent.received(task(newer, round=2))
    assert abandon == Abandon(TASK)
    assert isinstance(fetch, Fetch)
    assert fetch.job.task_id == newer


def test_a_result_that_comes_after_a_cancellation_goes_nowhere(site: Site) -> None:
    site.ready()
    (fetch,) = site.agent.received(task())
    cancel = pb.FromCoordinator(cancel=pb.Cancel(task_id=TASK, reason="deadline"))
    assert site.agent.received(cancel) == [Abandon(TASK)]
    assert site.agent.fetched(fetch.job) == []
    assert site.agent.worked(fetch.job, OUTCOME) == []
    record = site.store.get(TASK)
    assert record is not None
    assert (record.state, record.code) == (TaskState.DROPPED, "deadline")


def test_a_failed_task_is_declined_with_the_reason_and_without_the_data(site: Site) -> None:
    site.ready()
    (fetch,) = site.agent.received(task())
    full = ResourceError("no room for 3 bytes", code="disk-full")
    (declined,) = said(site.agent.failed(fetch.job, full), "declined")
    assert (declined.task_id, declined.code, declined.message) == (TASK, "disk-full", "no room for 3 bytes")
    (fetch,) = site.agent.received(task("bench-1/1.2/a", attempt=2))
    (declined,) = said(site.agent.failed(fetch.job, KeyError("patient-17")), "declined")
    assert "patient-17" not in declined.message
    assert "KeyError" in declined.message
    (fetch,) = site.agent.received(task("bench-1/1.3/a", attempt=3))
    (declined,) = said(site.agent.failed(fetch.job, DataError("patient-17.png is gone", "put it back")), "declined")
    assert declined.code == "data"
    assert "patient-17" not in declined.message


def test_a_task_that_contradicts_the_journal_is_declined(site: Site) -> None:
    site.ready()
    site.worked()
    site.restart()
    site.ready()
    (declined,) = said(site.agent.received(task(seed=8)), "declined")
    assert declined.code == "task-closed"


def test_rejection_and_the_end_of_the_run_are_passed_on(site: Site) -> None:
    site.ready()
    said_no = pb.Rejection(code="participant-revoked", message="a was revoked", hint="ask")
    (stop,) = site.agent.received(pb.FromCoordinator(rejection=said_no))
    assert isinstance(stop, Stop)
    assert isinstance(stop.error, RefusedError)
    assert (stop.error.code, stop.error.hint) == ("participant-revoked", "ask")
    over = pb.RunFinished(run_id="bench-1", version=3, reason="completed")
    assert site.agent.received(pb.FromCoordinator(run_finished=over)) == [Finished("bench-1", 3, "completed")]


def test_the_heartbeat_says_what_is_being_done(site: Site) -> None:
    site.ready()
    assert said(site.agent.heartbeat(), "progress")[0].stage == "idle"
    (fetch,) = site.agent.received(task())
    assert said(site.agent.heartbeat(), "progress")[0].stage == "downloading"
    site.agent.fetched(fetch.job)
    (progress,) = said(site.agent.heartbeat(3, 10), "progress")
    assert (progress.stage, progress.task_id, progress.done, progress.total) == ("training", TASK, 3, 10)


def test_a_task_before_the_plan_is_prepared_is_ignored(site: Site) -> None:
    site.agent.connected()
    assert site.agent.received(task()) == []


# --- plain averaging is a site's own choice ---------------------------------------------------------------------------


def test_a_site_that_does_not_allow_plain_averaging_leaves_and_names_the_setting(tmp_path: Path) -> None:
    store = ParticipantStore(tmp_path / "journal.sqlite")
    agent = Agent(
        "a",
        store,
        PinnedMembers.load(store, "bench", ROOT.public),
        key=SigningKey(b"a" * 32),
        rules=SiteRules(),
        software="test",
    )
    agent.connected()
    (stop,) = agent.received(welcome(plan()))
    assert isinstance(stop, Stop)
    assert stop.error.code == "policy"
    assert "plain averaging" in stop.error.message
    assert "allow_plain = true" in stop.error.hint
    assert "participant.toml" in stop.error.hint
    store.close()


# --- the member list --------------------------------------------------------------------------------------------------


def grown(chain: MemberList, *names: str, root: FederationRoot = ROOT) -> MemberList:
    for name in names:
        key = SigningKey(name.encode() * 32).public
        chain = chain.extend([root.add(chain, Role.PARTICIPANT, name, key)])
    return chain


def shown(chain: MemberList, after: int = 0) -> pb.FromCoordinator:
    entries = [pb.MemberEntry(body=item.body, signature=item.signature) for item in chain.entries[after:]]
    return pb.FromCoordinator(members=pb.Members(entries=entries, total=chain.count, head=chain.head))


def stopped(actions: list[object]) -> str:
    (stop,) = actions
    assert isinstance(stop, Stop)
    return stop.error.code


def test_the_member_list_is_pinned_before_it_is_used_and_only_what_follows_is_asked_for(site: Site) -> None:
    chain = grown(ROOT.empty(), "a", "b")
    assert site.agent.received(shown(chain)) == []
    assert site.agent.members.list == chain
    site.restart()
    (check_in,) = said(site.agent.connected(), "check_in")
    assert check_in.members == 2
    longer = grown(chain, "c")
    assert site.agent.received(shown(longer, after=2)) == []
    assert site.agent.received(shown(longer, after=3)) == []
    assert sorted(site.agent.members.list.members()) == ["a", "b", "c"]
    assert site.store.pinned_members() == list(longer.entries)


@pytest.mark.parametrize("after", [0, 2])
def test_a_member_that_the_root_did_not_certify_ends_the_session_and_is_not_kept(site: Site, after: int) -> None:
    chain = grown(ROOT.empty(), "a", "b")
    site.agent.received(shown(chain))
    operator = FederationRoot("bench", SigningKey(b"o" * 32))
    sybil = grown(MemberList(chain.federation, operator.public, chain.entries, chain.members()), "s", root=operator)
    assert stopped(site.agent.received(shown(sybil, after))) == "members-signature"
    assert site.store.pinned_members() == list(chain.entries)


def test_a_forked_or_shortened_list_ends_the_session_even_after_a_restart(site: Site) -> None:
    chain = grown(ROOT.empty(), "a", "b")
    site.agent.received(shown(chain))
    site.restart()
    fork = grown(ROOT.empty(), "a", "c", "b")
    for message in (shown(fork), shown(fork, after=2), shown(grown(ROOT.empty(), "a")), shown(ROOT.empty())):
        assert stopped(site.agent.received(message)) == "members-fork"
    assert site.agent.members.list == chain


def test_entries_that_are_malformed_end_the_session(site: Site) -> None:
    garbage = pb.Members(entries=[pb.MemberEntry(body=b"garbage", signature=b"s" * 64)], total=1, head=b"h" * 32)
    assert stopped(site.agent.received(pb.FromCoordinator(members=garbage))) == "members-malformed"


def test_a_journal_of_another_root_is_refused_at_the_start(site: Site) -> None:
    site.agent.received(shown(grown(ROOT.empty(), "a")))
    with pytest.raises(DataError, match=r"isn't that of the root in participant\.toml"):
        PinnedMembers.load(site.store, "bench", SigningKey(b"x" * 32).public)


def test_in_asynchronous_secure_sums_it_says_only_that_it_has_trained(tmp_path: Path) -> None:
    site = Site(tmp_path)
    rounds = RoundsSpec.model_validate(
        {"mode": "asynchronous", "min_participants": 4, "min_updates": 3, "buffer_size": 3, "correction": "none"}
    )
    summed = plan().model_copy(
        update={"rounds": rounds, "aggregation": AggregationSpec(mode="secure"), "secure": SecureSpec()}
    )

    def ready() -> None:
        site.agent.connected()
        site.agent.received(welcome(summed))
        site.agent.prepared(Prepared(manifest_hash=MANIFEST, examples=100))

    ready()
    said = [item.message for item in site.worked() if isinstance(item, Say)]
    assert [message.WhichOneof("body") for message in said] == ["trained"]
    assert said[0].trained.task_id == task().task.task_id
    # After a restart, and asked again, it says it again: nothing is trained anew, nothing is uploaded.
    site.restart()
    ready()
    again = site.agent.received(task())
    assert [item.message.trained.task_id for item in again if isinstance(item, Say)] == [task().task.task_id]
    assert not any(isinstance(item, Fetch | Work | Push) for item in again)


def test_what_ends_while_a_connection_is_being_made_is_said_when_it_is_asked_again(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.ready()
    (push,) = site.worked()
    assert isinstance(push, Push)
    (check_in,) = site.agent.connected()
    assert isinstance(check_in, Say) and site.agent.may_say(check_in.message)
    (early,) = site.agent.pushed(push.task_id)
    assert isinstance(early, Say) and not site.agent.may_say(early.message)
    assert all(site.agent.may_say(item.message) for item in site.agent.heartbeat() if isinstance(item, Say))
    (ready,) = site.agent.received(welcome(plan()))
    assert isinstance(ready, Say) and site.agent.may_say(ready.message)
    # Asked again, it brings the update once more; from here on it is listened to.
    (again,) = site.agent.received(task())
    assert again == push
    (said,) = site.agent.pushed(push.task_id)
    assert isinstance(said, Say) and site.agent.may_say(said.message)
