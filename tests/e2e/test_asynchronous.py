"""Asynchronous rounds for real: daemons over TLS at different paces, a coordinator that is restarted in mid-buffer."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from participant.site import Site
from participant.work import Job, Outcome, Prepared
from tests.adversarial.liars import LiveSite
from tests.adversarial.puppets import DIMENSION, Puppet, Stage, stage
from tests.e2e.deployment import Deployment, configuration, data_of
from wire import BlobStore, RunPlan

EXAMPLES = 100
PACES_S = {"site-0": 0.02, "site-1": 0.05, "site-2": 0.4}
ROUNDS = {"min_participants": 3, "min_updates": 2, "deadline_s": 60.0}


def trained(name: str, version: int) -> NDArray[np.float32]:
    """What a site's training from a version gives."""
    seed = hashlib.sha256(f"{name}/{version}".encode()).digest()
    return np.random.default_rng(list(seed)).normal(0.0, 0.1, DIMENSION).astype("<f4")


class PacedWork:
    """Stands for ``participant.work.Workbench``: deterministic updates, each site at its own pace."""

    def __init__(self, name: str, plan: RunPlan, pace_s: float) -> None:
        self._name = name
        self._manifest_hash = bytes.fromhex(plan.initial.manifest_hash)
        self._pace_s = pace_s
        self.trained: list[int] = []

    def prepare(self, learning: dict[str, Any], run: RunPlan | None = None) -> Prepared:
        return Prepared(manifest_hash=self._manifest_hash, examples=EXAMPLES)

    def perform(
        self,
        job: Job,
        base: Path,
        blobs: BlobStore,
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
    ) -> Outcome:
        end = time.monotonic() + self._pace_s
        while time.monotonic() < end:
            if cancelled():
                raise RuntimeError("called off")
            time.sleep(0.01)
        self.trained.append(job.base_version)
        content = trained(self._name, job.base_version).tobytes()
        with blobs.writer(len(content)) as writer:
            writer.write(content)
            digest = writer.commit(sync=False)
        return Outcome(digest=digest, size=len(content), examples=EXAMPLES, metrics={"loss": 1.0}, evaluation={})


@contextlib.asynccontextmanager
async def finished(folder: Path, paces: dict[str, float], **changes: Any) -> AsyncIterator[tuple[Stage, Any]]:
    """A run when it is over, with its status."""
    async with contextlib.AsyncExitStack() as stack:
        live = await stack.enter_async_context(stage(folder, merging={"rule": "mean"}, **{**ROUNDS, **changes}))
        for site in [await live.site(name) for name in paces]:
            running = LiveSite(site, live.plan)
            running.daemon._bench = PacedWork(site.name, live.plan, paces[site.name])  # type: ignore[assignment]
            stack.push_async_callback(running.close)
        async with asyncio.timeout(60):
            while (status := await live.status()).state != "finished":
                await asyncio.sleep(0.05)
        yield live, status


def model(live: Stage) -> NDArray[np.float64]:
    hub = live.running.daemon.hub
    assert hub is not None
    content = live.running.daemon.blobs.path(bytes.fromhex(hub.machine.state.digest)).read_bytes()
    return np.frombuffer(content[-4 * DIMENSION :], "<f4").astype(np.float64)


def expected(history: list[dict[str, int]], present: int) -> NDArray[np.float64]:
    """The model by the formulas of the papers, from who was merged into which version how stale."""
    found, earlier = np.zeros(DIMENSION), dict[str, NDArray[np.float64]]()
    for number, merged in enumerate(history, 1):
        new = {name: trained(name, number - 1 - age).astype(np.float64) for name, age in merged.items()}
        weights = {name: 1 / math.sqrt(1 + age) for name, age in merged.items()}
        total, everyone = sum(weights.values()), earlier.keys() | new.keys()
        moved = sum(weights[name] / total * (update - earlier.get(name, 0.0)) for name, update in new.items())
        # A site without an earlier update has h = 0, and counts in the mean of all h all the same.
        moved = moved + sum(update / len(everyone) for update in earlier.values())
        found += len(merged) / present * moved
        earlier |= new
    return found


async def test_three_sites_at_their_own_pace_make_the_model_of_the_papers_formulas(tmp_path: Path) -> None:
    async with finished(tmp_path, PACES_S, asynchronous=True, count=8, buffer_size=2) as (live, status):
        history = [
            {seat.name: seat.staleness for seat in item.participants if seat.outcome == "merged"}
            for item in status.history
        ]
        assert status.version == len(history) == 8
        assert all(len(merged) >= 2 for merged in history)
        assert max(age for merged in history for age in merged.values()) >= 1, "the slow one lags behind"
        assert np.allclose(model(live), expected(history, len(PACES_S)), atol=1e-5)


async def test_a_buffer_of_everyone_is_the_synchronous_run_byte_for_byte(tmp_path: Path) -> None:
    digests = []
    for place, asynchronous in (("one", False), ("other", True)):
        size = {"buffer_size": 3} if asynchronous else {}
        (tmp_path / place).mkdir()
        async with finished(tmp_path / place, PACES_S, asynchronous=asynchronous, count=3, **size) as (live, _):
            hub = live.running.daemon.hub
            assert hub is not None
            digests.append(hub.machine.state.digest)
    assert digests[0] == digests[1]


@contextlib.asynccontextmanager
async def puppets(live: Stage, sites: list[Site]) -> AsyncIterator[dict[str, Puppet]]:
    """These sites, connected and ready."""
    async with contextlib.AsyncExitStack() as stack:
        found = {}
        for site in sites:
            found[site.name] = await stack.enter_async_context(live.puppet(site))
            await found[site.name].ready()
        yield found


def content(name: str, version: int) -> bytes:
    return trained(name, version).tobytes()


async def test_a_restart_of_the_coordinator_in_mid_buffer_loses_nothing(tmp_path: Path) -> None:
    changes = {"asynchronous": True, "count": 2, "buffer_size": 2, **ROUNDS}
    async with stage(tmp_path, **changes) as live:
        sites = [await live.site(f"site-{index}") for index in range(3)]
        port = int(sites[0].config.session_address.rpartition(":")[2])
        async with puppets(live, sites) as hands:
            tasks = {name: await hand.hear("task") for name, hand in hands.items()}
            await hands["site-0"].upload(content("site-0", 0))
            await hands["site-0"].announce(tasks["site-0"].task_id, content("site-0", 0))
            assert (await hands["site-0"].hear("receipt")).accepted
            # One place in a buffer: whoever has it can't fill the rest of it.
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await hands["site-0"].upload(content("site-0", 9))
            assert refused.value.details() == "blob-not-expected"
            # Uploaded and not announced yet when the coordinator dies.
            await hands["site-1"].upload(content("site-1", 0))
    async with stage(tmp_path, port=port, **changes) as live, puppets(live, sites) as hands:
        await hands["site-0"].announce(tasks["site-0"].task_id, content("site-0", 0))
        assert (await hands["site-0"].hear("receipt")).accepted, "it is in the buffer"
        for name in ("site-1", "site-2"):
            assert (await hands[name].hear("task")).task_id == tasks[name].task_id
        await hands["site-1"].upload(content("site-1", 0))
        await hands["site-1"].announce(tasks["site-1"].task_id, content("site-1", 0))
        assert (await hands["site-1"].hear("receipt")).accepted
        assert (await hands["site-0"].hear("committed")).version == 1
        assert (await hands["site-0"].hear("task")).base_version == 1
        status = await live.status()
    merged = {seat.name: seat.staleness for seat in status.history[0].participants}
    assert merged == {"site-0": 0, "site-1": 0}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("aggregation", "size", "versions"), [("plain", 2, 120), ("secure", 3, 24)])
def test_processes_that_are_killed_in_an_asynchronous_run_are_waited_for_by_nobody(
    tmp_path: Path, aggregation: str, size: int, versions: int
) -> None:
    pace = f'mode = "asynchronous"\nbuffer_size = {size}'
    config = configuration(
        tmp_path,
        participants=5,
        rounds=versions,
        steps=60,
        min_updates=size,
        lease_s=3.0,
        aggregation=aggregation,
        pace=pace,
    )
    names = [f"site-{index}" for index in range(5)]
    with Deployment(tmp_path, config) as federation:
        federation.start_coordinator()
        federation.join(
            *names,
            data={name: data_of(index, 5) for index, name in enumerate(names)},
            allow_plain=aggregation == "plain",
        )
        for name in names:
            federation.start_participant(name)
        federation.fix_ports()
        federation.wait("training")
        federation.kill(federation.participants[names[0]])
        assert federation.coordinator is not None
        federation.kill(federation.coordinator)
        federation.start_coordinator()
        federation.start_participant(names[0])
        status = federation.wait("finished", 180)
        if aggregation == "secure":
            place = ("--config", str(federation.config))
            assert "right, bit for bit" in federation.fedloom("coordinator", "verify-log", *place).stdout
    assert status["version"] == versions
    merged = [
        {seat["name"] for seat in item["participants"] if seat["outcome"] == "merged"}
        for item in status["history"]
        if int(item["version"])
    ]
    assert all(len(seats) >= size for seats in merged)
    assert set().union(*merged) == set(names)
