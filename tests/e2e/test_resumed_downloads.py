"""A site whose connection, or whose process, ends in the middle of a version's download goes on at its byte."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

from relays import DOWN, Relay

from participant.site import BLOBS, Site
from tests.adversarial.liars import LiveSite
from tests.adversarial.puppets import DIMENSION, Stage, stage, update
from tests.e2e.test_asynchronous import PacedWork
from wire import BlobStore

SIZE = 4 * DIMENSION
CUT = 3 * SIZE // 4
"""Bytes to the site before the end: more than the first chunk of 64 KiB, less than the whole."""

SPARE = 40_000
"""Handshakes, and messages of the run."""


@contextlib.asynccontextmanager
async def living(live: Stage, site: Site, relay: Relay) -> AsyncIterator[LiveSite]:
    """The site's daemon, behind a relay."""
    config = site.config.model_copy(update={"session_address": relay.address})
    running = LiveSite(dataclasses.replace(site, config=config), live.plan)
    running.daemon._bench = PacedWork(site.name, live.plan, 0.0)  # type: ignore[assignment]
    try:
        yield running
    finally:
        await running.close()


async def test_after_a_cut(tmp_path: Path) -> None:
    async with stage(tmp_path) as live:
        site = await live.site("site-0")
        relay = Relay(live.running.session.port)
        try:
            relay.cut_after(CUT, DOWN)
            async with live.puppet(await live.site("a")) as other, living(live, site, relay):
                await other.ready()
                assert (await other.deliver(update())).accepted
                assert (await other.hear("run_finished", timeout_s=30.0)).version == 1
            assert relay.cuts == 1
            assert relay.down < CUT + SIZE - (64 << 10) + SPARE < CUT + SIZE
        finally:
            relay.close()


async def test_after_the_end_of_the_process(tmp_path: Path) -> None:
    async with stage(tmp_path) as live:
        site = await live.site("site-0")
        # What a killed process has left: the first half of version 0.
        hub = live.running.daemon.hub
        assert hub is not None
        content = live.running.daemon.blobs.path(bytes.fromhex(hub.machine.state.digest)).read_bytes()
        left = BlobStore(site.folder / BLOBS).open_writer(bytes.fromhex(hub.machine.state.digest), len(content))
        left.write([content[: len(content) // 2]])
        left.close()
        relay = Relay(live.running.session.port)
        try:
            async with live.puppet(await live.site("a")) as other, living(live, site, relay):
                await other.ready()
                assert (await other.deliver(update())).accepted
                assert (await other.hear("run_finished", timeout_s=30.0)).version == 1
                # Version 1 isn't asked for: it is nobody's base any more.
                assert relay.down < len(content) // 2 + SPARE < len(content)
        finally:
            relay.close()
