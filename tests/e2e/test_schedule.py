"""A site's own hours and days, kept by its daemon over TLS while the federation goes on without it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from coordinator import display
from participant.cli import app
from participant.site import Schedule, Site
from participant.store import Day
from participant.work import Job, Outcome, Prepared
from tests.adversarial import liars
from tests.adversarial.liars import LiveSite
from tests.adversarial.puppets import DIMENSION, Stage, stage
from tests.e2e.test_transfers import until
from wire import BlobStore

NOON = 1_795_694_400.0  # 26 November 2026, 12:00 UTC
OFFICE = {"time_zone": "UTC", "hours": ("mon-fri 08:00-18:00",), "at_the_end": "pause"}


class Steps:
    """Stands for ``participant.work.Workbench``: training that is asked before each step whether to go on."""

    def __init__(self, manifest_hash: bytes) -> None:
        self.taken = 0
        self.enough = False
        self.trained: list[int] = []
        self._manifest_hash = manifest_hash
        self._numbers = itertools.count(1)

    def prepare(self, learning: dict[str, Any], run: Any = None) -> Prepared:
        return Prepared(manifest_hash=self._manifest_hash, examples=100)

    def perform(
        self,
        job: Job,
        base: Path,
        blobs: BlobStore,
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
    ) -> Outcome:
        import time

        while not self.enough:
            if cancelled():
                raise RuntimeError("called off")
            self.taken += 1
            time.sleep(0.005)
        self.trained.append(job.base_version)
        content = np.full(DIMENSION, 0.001 * next(self._numbers), "<f4").tobytes()
        with blobs.writer(len(content)) as writer:
            writer.write(content)
            digest = writer.commit(sync=False)
        return Outcome(digest=digest, size=len(content), examples=100, metrics={"loss": 1.0}, evaluation={})


class Scheduled(LiveSite):
    """A daemon with hours, whose clock is in the test's hand."""

    def __init__(self, site: Site, live: Stage) -> None:
        super().__init__(site, live.plan)
        self.now = NOON
        self.steps = Steps(bytes.fromhex(live.plan.initial.manifest_hash))
        self.daemon._bench = self.steps  # type: ignore[assignment]
        agent = self.daemon._agent
        agent._clock = agent.schedule._clock = lambda: self.now


def with_rules(site: Site, **rules: Any) -> Site:
    """The site with this in its participant.toml."""
    schedule = Schedule.model_validate(rules)
    changed = dataclasses.replace(site, config=site.config.model_copy(update={"schedule": schedule}))
    changed.save()
    return Site.load(site.folder)


@contextlib.asynccontextmanager
async def two(live: Stage, **rules: Any) -> AsyncIterator[tuple[Scheduled, LiveSite]]:
    """A site with rules, and one without."""
    ward, other = [await live.site(f"site-{index}") for index in range(2)]
    async with contextlib.AsyncExitStack() as stack:
        scheduled = Scheduled(with_rules(ward, **rules), live)
        stack.push_async_callback(scheduled.close)
        free = LiveSite(other, live.plan)
        stack.push_async_callback(free.close)
        yield scheduled, free


def shown(live: Stage, name: str) -> str:
    """The site's line in ``fedloom coordinator status``."""
    from coordinator.status import view

    hub = live.running.daemon.hub
    assert hub is not None
    (item,) = [item for item in view(hub, "", NOON).participants if item.name == name]
    return display._state(item)


async def test_a_training_stands_still_outside_the_hours_and_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liars, "DIMENSION", DIMENSION)
    rounds = {"min_participants": 2, "min_updates": 1, "buffer_size": 1, "count": 60, "deadline_s": 60.0}
    async with stage(tmp_path, asynchronous=True, **rounds) as live, two(live, **OFFICE) as (ward, other):
        machine = live.running.daemon.hub.machine  # type: ignore[union-attr]
        await until(lambda: ward.steps.taken > 3, "it trains")
        ward.now = NOON + 6 * 3600
        await until(lambda: machine.away, "it says that it is away")
        assert not ward.daemon._open.is_set()
        assert "site-0" not in machine.state.pace.tasks
        assert shown(live, "site-0").startswith("away until ")
        stood = ward.steps.taken
        version = machine.state.version
        other.work.gate.set()
        await until(lambda: machine.state.version >= version + 2, "versions are made without it")
        other.work.gate.clear()
        assert ward.steps.taken <= stood + 1
        ward.now = NOON + 20 * 3600
        await until(lambda: ward.steps.taken > stood + 3, "it goes on with what it has in hand")
        ward.steps.enough = True
        await until(lambda: ward.steps.trained == [0], "it is trained, once")
        await until(lambda: any("site-0" in item.done() for item in machine.state.rounds), "and handed in")
        aged = next(item for item in machine.state.rounds if "site-0" in item.done())
        assert aged.staleness("site-0") >= 2
        assert live.running.daemon.store.refusals() == {}


async def test_a_site_that_has_done_its_rounds_of_the_day_leaves_the_rest_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liars, "DIMENSION", DIMENSION)
    rounds = {"min_participants": 2, "min_updates": 1, "buffer_size": 1, "count": 6, "deadline_s": 60.0}
    limits = {"time_zone": "UTC", "max_rounds_a_day": 2, "max_bytes_a_day": 5_000_000}
    async with stage(tmp_path, asynchronous=True, **rounds) as live, two(live, **limits) as (ward, other):
        machine = live.running.daemon.hub.machine  # type: ignore[union-attr]
        ward.steps.enough = True
        await until(lambda: "site-0" in machine.away and "site-0" not in machine.state.pace.tasks, "its day is over")
        other.work.gate.set()
        await until(lambda: machine.state.finished is not None, "the run ends without it")
        merged = [name for item in machine.state.rounds for name in item.done()]
        assert merged.count("site-0") == len(ward.steps.trained) == 2
        update = 4 * DIMENSION
        day = ward.store.day("2026-11-26")
        # Two updates went up; each version that it began from came down once, but for the first, which may be new, too.
        assert (day.rounds, day.sent) == (2, 2 * update)
        assert day.received in (live.plan.initial.size, 2 * live.plan.initial.size)
        ward.store.count("2026-11-26", received=-day.received)
        assert ward.store.day("2026-11-26") == Day(rounds=2, sent=2 * update)
    assert live.running.daemon.store.refusals() == {}


async def test_the_administrator_sees_what_is_left_of_today(tmp_path: Path) -> None:
    limits = {"time_zone": "UTC", "max_rounds_a_day": 3, "max_bytes_a_day": 5_000_000}
    async with stage(tmp_path) as live:
        site = with_rules(await live.site("site-0"), **limits)
    done = CliRunner().invoke(app, ["status", "--home", str(site.folder)])
    assert done.exit_code == 0, done.output
    assert "today        takes tasks; 3 of 3 rounds left; 5.0 of 5.0 MB left (UTC)" in done.output
    body = json.loads(CliRunner().invoke(app, ["status", "--home", str(site.folder), "--json"]).output)
    assert (body["today"]["rounds_left"], body["today"]["bytes_left"]) == (3, 5_000_000)
