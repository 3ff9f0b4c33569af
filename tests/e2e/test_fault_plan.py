"""A private federation killed at every row: right before and right after each durable write of a process.

The plan isn't a list of kinds: a run in which nobody dies says what a process writes (``tests.e2e.writes``), and the
plan has a death on either side of each write. After each run everything is recomputed from the disks
(``tests.e2e.replay``).
"""

from __future__ import annotations

import asyncio
import datetime
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.store import schema as coordinator_schema
from participant.ledger import schema as ledger_schema
from participant.site import JOURNAL
from participant.store import ParticipantStore, TaskState
from participant.store import schema as site_schema
from protos import control_pb2
from tests.e2e.deployment import configuration
from tests.e2e.killing import SITES, Fragile, Nursery
from tests.e2e.replay import check_charged, check_run
from tests.e2e.replay_asynchronous import check_asynchronous, check_buffers, check_masked_charged, check_update_charged
from tests.e2e.writes import bypassed, numbered, written
from wire import UnreachableError

pytestmark = pytest.mark.timeout(1000)

VICTIM = SITES[1]
COORDINATOR = "coordinator"
WATCHED = (COORDINATOR, VICTIM)
ROUNDS = 3
VERSIONS = 4
"""Of the asynchronous federation."""

RUNS = 14
"""Over so many runs the whole plan is dealt out: each process dies about twenty times in each."""

SAMPLED = 4
"""Deaths of each process in the default test."""

MOMENTS = ("before", "after")

Plan = Mapping[str, Sequence[str]]
"""Of each process its deaths, as ``tests.e2e.writes`` names them."""

COMMON: dict[str, Any] = {"rounds": ROUNDS, "steps": 2, "lease_s": 60.0, "deadline_s": 600.0}

LIMITS = {
    'time_zone = ""': 'time_zone = "UTC"',
    "max_rounds_a_day = 0": "max_rounds_a_day = 1000",
    "max_bytes_a_day = 0": "max_bytes_a_day = 1_000_000_000",
}
"""A site that dies counts its days, so that each of its tables is written to."""

SOME_ASYNCHRONOUS: Plan = {
    COORDINATOR: [
        f"{COORDINATOR}:+transitions(UpdateBuffered)-2-after",
        f"{COORDINATOR}:+transitions(VersionCommitted)-1-before",
    ],
    VICTIM: [f"{VICTIM}:+lines(charge)-1-after", f"{VICTIM}:~tasks(receipted)-1-after"],
}
"""Deaths at which a site could pay twice or lose what it paid for, and the coordinator merge twice or forget."""

PRIVACY = """
[privacy]
placement = "local"
epsilon = 8.0
delta = 1e-5
noise_multiplier = 1.0
sampling_rate = 0.05
"""


class Planned(Fragile):
    """A private federation of which some processes die around writes of the plan, by number."""

    def __init__(self, folder: Path, nursery: Nursery, initial: Path | None) -> None:
        config = configuration(folder, **{**COMMON, **self.settings()})
        text = config.read_text() + PRIVACY
        if initial is not None:
            text = text.replace("\nlease_s", f'\ninitial_model = "{initial}"\nlease_s')
        config.write_text(text)
        super().__init__(folder, config, nursery)
        self.numbered = set(WATCHED)

    def settings(self) -> dict[str, Any]:
        """Of the federation."""
        return {"min_updates": 3}

    def check(self) -> None:
        """What has to be true at the end."""
        check_run(self.folder, SITES, ROUNDS)
        self.check_days()

    def check_days(self) -> None:
        """No death has begun a site's day anew: it has counted every training, and every byte of its updates."""
        journal = ParticipantStore(self.home(VICTIM) / JOURNAL)
        try:
            now = datetime.datetime.now(datetime.UTC)
            days = [journal.day(str((now - datetime.timedelta(days=back)).date())) for back in (0, 1)]
            tasks = [task for task in journal.history(1_000) if task.kind == "train"]
        finally:
            journal.close()
        handed_in = sum(task.update_size for task in tasks if task.state is TaskState.RECEIPTED)
        assert sum(day.rounds for day in days) >= len(tasks)
        assert sum(day.sent for day in days) >= handed_in // 4  # masked values are of fewer bits
        assert sum(day.received for day in days) > 0 or not any(task.update_digest for task in tasks)

    def check_dead(self, name: str) -> None:
        """What has to be true of a site while it is dead."""
        check_charged(self.folder, name)

    def run_through(self, plan: Plan) -> None:
        """Die around these writes, start again each time, and end with nobody running."""
        self.deaths = {name: list(deaths) for name, deaths in plan.items()}
        self.start_coordinator()
        for name in self.names:
            self._enrol(name)
        for name in self.names:
            self.start_participant(name)
        self.until(self._over, "the run ends", 900.0)
        assert self.coordinator is not None
        self.coordinator.kill()
        self.coordinator.wait()
        self.check_logs()

    def _enrol(self, name: str) -> None:
        """Invite a site and have it join; once more, with another token, where the coordinator dies of it."""
        while True:
            try:
                (item,) = self.control().Invite(control_pb2.InviteRequest(names=[name])).invitations
                asyncio.run(self.join_one(name, item.token))
                return
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), error
            except UnreachableError:
                pass
            self.until(lambda: self.revive(COORDINATOR), "the coordinator is dead")

    async def join_one(self, name: str, token: str) -> None:
        """Enrol a site; those that die count their days, so that each table is written to."""
        await super().join_one(name, token)
        config = self.home(name) / "participant.toml"
        if name in self.numbered:
            text = config.read_text()
            for before, after in LIMITS.items():
                assert before in text
                text = text.replace(before, after)
            config.write_text(text)

    def start_participant(self, name: str, *arguments: str) -> object:
        """A site that ends with the run."""
        return super().start_participant(name, "--once", *arguments)

    def _over(self) -> bool:
        if self.revive(COORDINATOR):
            return False
        running = False
        for name in self.names:
            process = self.participants[name]
            if process.poll() == 0:
                continue
            running = True
            if name in self.numbered and process.poll() is not None:
                self.check_dead(name)
            self.revive(name)
        return not running and self.finished()

    def check_plan(self) -> None:
        """Each death has happened, unless this run had fewer writes of its kind than the one without deaths."""
        for name in self.numbered:
            assert bypassed(self.folder, name) == []
            count = numbered(self.folder, name)
            for death in set(self.deaths.get(name, ())) - self.died():
                kind, number, _ = death.removeprefix(f"{name}:").rsplit("-", 2)
                assert int(number) > count[kind], f"{death} hasn't happened"


class PlannedAsynchronous(Planned):
    """The same with asynchronous rounds and plain averaging: two updates make a version, whoever they are from."""

    def settings(self) -> dict[str, Any]:
        pace = 'mode = "asynchronous"\nbuffer_size = 2\ncorrection = "none"\nevaluate_every = 0'
        plain = {"aggregation": "plain", "merging": 'rule = "mean"'}
        return {"rounds": VERSIONS, "min_updates": 2, "pace": pace, **plain}

    def check(self) -> None:
        check_asynchronous(self.folder, SITES, VERSIONS)
        self.check_days()

    def check_dead(self, name: str) -> None:
        check_update_charged(self.folder, name)

    async def join_one(self, name: str, token: str) -> None:
        await super().join_one(name, token)
        path = self.home(name) / "participant.toml"
        path.write_text(path.read_text().replace("allow_plain = false", "allow_plain = true"))


class PlannedBuffers(Planned):
    """The same with asynchronous rounds and secure sums: whoever has trained is in the next sum, of three at least."""

    def settings(self) -> dict[str, Any]:
        pace = 'mode = "asynchronous"\nbuffer_size = 3\nevaluate_every = 0'
        return {"rounds": VERSIONS, "min_updates": 3, "pace": pace}

    def check(self) -> None:
        check_buffers(self.folder, SITES, VERSIONS)
        self.check_days()

    def check_dead(self, name: str) -> None:
        check_masked_charged(self.folder, name)


class Stage:
    """A run in which nobody dies, and others from the same first model."""

    def __init__(self, folder: Path, nursery: Nursery, kind: type[Planned] = Planned) -> None:
        self._nursery = nursery
        self._kind = kind
        self.initial = folder / "initial.safetensors"
        with kind(folder, nursery, None) as made:
            made.run_once("model", "init", "--config", str(made.config), "--out", str(self.initial), "--seed", "11")
        self.unkilled = self.run(folder, {})
        self.every = {name: deaths_of(numbered(folder, name), name) for name in WATCHED}

    def run(self, folder: Path, plan: Plan, *, together: bool = False) -> Planned:
        """A whole run under a plan, and everything checked that has to be true behind it.

        With ``together`` the coordinator and the site die at about the same time, whichever of them the death is of.
        """
        with self._kind(folder, self._nursery, self.initial) as federation:
            if together:
                federation.company = {COORDINATOR: [VICTIM], VICTIM: [COORDINATOR]}
            federation.run_through(plan)
        federation.check_plan()
        federation.check()
        return federation

    def whole_plan(self, runs: int = RUNS) -> list[Plan]:
        """Plans that together kill on either side of every write; neighbours are in different runs."""
        return [{name: deaths[first::runs] for name, deaths in self.every.items()} for first in range(runs)]


def deaths_of(count: Counter[str], name: str) -> list[str]:
    """On either side of every write."""
    return [
        f"{name}:{kind}-{number}-{moment}"
        for kind in sorted(count)
        for number in range(1, count[kind] + 1)
        for moment in MOMENTS
    ]


@pytest.fixture(scope="module")
def stage(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("unkilled"), nursery)


def test_every_durable_write_is_in_the_plan_and_none_gets_past_the_hook(stage: Stage) -> None:
    folder = stage.unkilled.folder
    for name in WATCHED:
        planned = {death for plan in stage.whole_plan() for death in plan[name]}
        for line in written(folder, name):
            assert {f"{name}:{kind}-1-{moment}" for kind in line.split() for moment in MOMENTS} <= planned
        assert len(planned) == 2 * numbered(folder, name).total()
        assert bypassed(folder, name) == []
    # The hook has seen every table of all three databases; nobody was refused anything.
    for name, tables in (
        (COORDINATOR, set(coordinator_schema.metadata.tables) - {"refusals"}),
        (VICTIM, {*site_schema.metadata.tables, ledger_schema.lines.name}),
    ):
        seen = {re.split(r"[(]", part[1:])[0] for part in numbered(folder, name) if part[0] in "+~-"}
        assert tables <= seen, f"nothing was seen being written to {tables - seen}"
    count = numbered(folder, VICTIM)
    assert [count[f"+lines({kind})"] for kind in ("open", "reserve", "charge", "settle")] == [1, *[ROUNDS] * 3]
    assert count["file:ledger.sqlite.head"] == 1 + 3 * ROUNDS


def test_processes_killed_around_some_of_their_writes_lose_nothing_and_pay_once(tmp_path: Path, stage: Stage) -> None:
    chance = random.Random(6)
    federation = stage.run(tmp_path, {name: chance.sample(stage.every[name], SAMPLED) for name in WATCHED})
    assert len(federation.died()) >= SAMPLED


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_site_and_the_coordinator_that_die_together_lose_nothing_and_pay_once(
    tmp_path_factory: pytest.TempPathFactory, stage: Stage
) -> None:
    died: set[str] = set()
    for plan in stage.whole_plan():
        died |= stage.run(tmp_path_factory.mktemp("together"), plan, together=True).died()
    assert len(died) > len(stage.every[COORDINATOR]) // 2


# --- asynchronous rounds ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paced(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("paced"), nursery, PlannedAsynchronous)


@pytest.mark.slow
def test_asynchronous_rounds_make_every_version_once_and_pay_once_whoever_dies_with_whom(
    tmp_path: Path, nursery: Nursery, stage: Stage
) -> None:
    with PlannedAsynchronous(tmp_path, nursery, stage.initial) as federation:
        federation.company = {COORDINATOR: [VICTIM], VICTIM: [COORDINATOR]}
        federation.run_through(SOME_ASYNCHRONOUS)
    died = federation.died()
    assert set(SOME_ASYNCHRONOUS[COORDINATOR]) <= died
    # While it is dead the others go on: its last ones may find the run over.
    assert len(died.intersection(SOME_ASYNCHRONOUS[VICTIM])) >= 1
    federation.check()


@pytest.fixture(scope="module")
def buffers(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("buffers"), nursery, PlannedBuffers)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_asynchronous_sums_killed_around_every_write_hold_no_update_twice_and_pay_once(
    tmp_path_factory: pytest.TempPathFactory, buffers: Stage
) -> None:
    died: set[str] = set()
    for plan in buffers.whole_plan():
        died |= buffers.run(tmp_path_factory.mktemp("buffers"), plan).died()
    every = {death for name in WATCHED for death in buffers.every[name]}
    some = {re.sub(r"-\d+-", "-", death) for death in died}
    missed = {death for death in every - died if re.sub(r"-\d+-", "-", death) not in some}
    assert len(missed) <= len(every) // 20, missed


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("together", [False, True])
def test_asynchronous_rounds_killed_around_every_write_make_every_version_once_and_pay_once(
    tmp_path_factory: pytest.TempPathFactory, paced: Stage, together: bool
) -> None:
    died: set[str] = set()
    for plan in paced.whole_plan(RUNS // 2):  # they have half as many writes
        died |= paced.run(tmp_path_factory.mktemp("paced"), plan, together=together).died()
    # Which rows a run has depends on who comes when; but somebody has died on either side of each kind.
    every = {death for name in WATCHED for death in paced.every[name]}
    some = {re.sub(r"-\d+-", "-", death) for death in died}
    missed = {death for death in every - died if re.sub(r"-\d+-", "-", death) not in some}
    assert len(missed) <= len(every) // 20, missed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_processes_killed_around_every_write_lose_nothing_and_pay_once(
    tmp_path_factory: pytest.TempPathFactory, stage: Stage
) -> None:
    died: set[str] = set()
    for plan in stage.whole_plan():
        died |= stage.run(tmp_path_factory.mktemp("killed"), plan).died()
    missed = {death for name in WATCHED for death in stage.every[name]} - died
    # A run with deaths may have fewer writes of a kind; but somebody has died on either side of each kind.
    some = {re.sub(r"-\d+-", "-", death) for death in died}
    assert {death for death in missed if re.sub(r"-\d+-", "-", death) not in some} == set()
    assert len(missed) <= len(died) // 10, missed
