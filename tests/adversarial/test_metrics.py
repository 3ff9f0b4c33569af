"""The metrics of a live coordinator: scraped over HTTP at each stage of a run, by honest scrapers and by others."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from coordinator.metrics import endpoint as metrics_endpoint
from coordinator.serving import coordinator
from protos import session_pb2 as pb
from tests.adversarial.puppets import Stage, settings, stage, update
from wire import ResourceError

Samples = dict[str, dict[tuple[str, ...], float]]


def fetch(port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15.0)
    with contextlib.closing(connection):
        connection.request(method, path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()


async def scrape(port: int) -> Samples:
    """Samples by name, then by the values of their labels in the order of their names."""
    status, text = await asyncio.to_thread(fetch, port)
    assert status == 200, text
    found: Samples = {}
    for family in parse(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def port_of(live: Stage) -> int:
    assert live.running.metrics is not None
    return live.running.metrics.port


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "fedloom-metrics" in thread.name}


async def test_before_a_run_in_its_rounds_and_after(tmp_path: Path) -> None:
    config = settings(tmp_path, metrics_port=0)
    async with coordinator(config, config.coordinator.state) as running:
        assert running.metrics is not None
        found = await scrape(running.metrics.port)
        assert found["fedloom_run_info"] == {("stage", ""): 1.0}
        assert found["fedloom_run_state"][("preparing",)] == 1.0
        assert "fedloom_round" not in found
    async with stage(tmp_path, metrics_port=0, merging={"rule": "mean"}, count=2) as live:
        port = port_of(live)
        one, two = await live.site("one"), await live.site("two")
        async with live.puppet(one) as first, live.puppet(two) as second:
            found = await scrape(port)
            assert found["fedloom_run_state"][("waiting",)] == 1.0
            assert found["fedloom_participants"][("away",)] == 2.0
            await first.ready()
            await second.ready()
            task = await first.hear("task")
            await first.say(
                progress=pb.Progress(task_id=task.task_id, stage='x"} 1\nfedloom_round 99', done=1, total=4)
            )
            await second.deliver(update(0.25))
            found = await scrape(port)
            assert found["fedloom_run_state"][("training",)] == 1.0
            assert found["fedloom_round"] == {(): 1.0}
            assert found["fedloom_round_open_seconds"][()] > 0.0
            # A site's words aren't the operator's: what it says that it does is one of a few things.
            assert found["fedloom_participants"][("other",)] == 1.0
            assert found["fedloom_participants"][("done",)] == 1.0
            assert set(found["fedloom_participant_silence_seconds"]) == {("one",), ("two",)}
            await first.upload(update(0.75))
            await first.announce(task.task_id, update(0.75))
            await first.hear("receipt")
            await second.hear("task")
        found = await scrape(port)
        assert found["fedloom_model_version"] == {(): 1.0}
        assert found["fedloom_round_duration_seconds_count"] == {(): 1.0}
        assert found["fedloom_update_weight"] == {("one",): 0.5, ("two",): 0.5}


async def test_a_robust_merge_is_told_with_verdicts_norms_and_weights(tmp_path: Path) -> None:
    names = [f"site-{index}" for index in range(5)]
    rounds = {"min_participants": 5, "min_updates": 5}
    async with stage(tmp_path, metrics_port=0, merging={"rule": "robust", "f": 1}, **rounds) as live:
        async with contextlib.AsyncExitStack() as stack:
            puppets = [await stack.enter_async_context(live.puppet(await live.site(name))) for name in names]
            for puppet in puppets:
                await puppet.ready()
            values = (0.1, 0.12, 0.11, 0.09, 1e6)
            tasks = [await puppet.hear("task") for puppet in puppets]
            for puppet, task, value in zip(puppets, tasks, values, strict=True):
                await puppet.upload(update(value))
                await puppet.announce(task.task_id, update(value))
            await puppets[0].hear("run_finished", 60.0)
        found = await scrape(port_of(live))
        shown = await live.status()
    merge = shown.history[0].merge
    assert found["fedloom_run_state"][("finished",)] == 1.0
    assert found["fedloom_merge_info"] == {(merge.rule,): 1.0}
    assert (found["fedloom_merge_tolerated"], found["fedloom_merge_remaining"]) == ({(): 1.0}, {(): 1.0})
    assert found["fedloom_update_norm"] == {(item.participant,): item.norm for item in merge.updates}
    assert found["fedloom_update_weight"] == {(item.participant,): item.weight for item in merge.updates}
    assert found["fedloom_update_verdict"] == {(item.participant, item.verdict): 1.0 for item in merge.updates}
    assert found["fedloom_update_verdict"].get(("site-4", "clipped")) == 1.0
    assert found["fedloom_merge_warnings"] == {(): float(len(merge.warnings))}


GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"GET\r\n\r\n",
    b"GET /metrics HTTP/9.9\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
    b"GET /metrics" + b"a" * 100_000,
    b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * 500 + b"\r\n",
    b"GET /metrics?name[]=%00&name[]=\xff HTTP/1.1\r\n\r\n",
    b"",
]


async def test_garbage_gets_an_error_and_the_next_scrape_its_metrics(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with stage(tmp_path, metrics_port=0) as live:
        port = port_of(live)

        def throw(content: bytes) -> None:
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), 10.0) as peer:
                peer.sendall(content)
                with contextlib.suppress(OSError):  # the server may have ended it already
                    peer.shutdown(socket.SHUT_WR)
                while peer.recv(1 << 16):
                    continue

        for content in GARBAGE:
            await asyncio.to_thread(throw, content)
        assert await asyncio.to_thread(fetch, port, "/") == (404, "404 Not Found. The metrics are at /metrics.\n")
        assert (await asyncio.to_thread(fetch, port, "/metrics/../ca"))[0] == 404
        assert (await asyncio.to_thread(fetch, port, "/metrics", "POST"))[0] == 501
        assert (await scrape(port))["fedloom_run_state"][("waiting",)] == 1.0
    # Nothing of it is echoed to the operator's terminal.
    assert capfd.readouterr().err == ""


async def test_slow_scrapers_cost_the_rounds_nothing_and_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_endpoint, "_LONGEST_S", 1.5)
    async with stage(tmp_path, metrics_port=0) as live:
        port = port_of(live)
        slow = [socket.create_connection(("127.0.0.1", port), 10.0) for _ in range(20)]
        started = time.monotonic()
        for peer in slow:
            with contextlib.suppress(ConnectionError):
                peer.sendall(b"GET /metrics HTTP/1.1\r\nx: ")
        one, two = await live.site("one"), await live.site("two")
        async with live.puppet(one) as first, live.puppet(two) as second:
            await first.ready()
            await second.ready()
            await asyncio.gather(first.deliver(update()), second.deliver(update()))
        assert len(threads()) <= 1
        assert sum("process_request_thread" in thread.name for thread in threading.enumerate()) <= 8
        # A byte now and then would keep each read from timing out; the connection ends all the same.
        ended = set()
        while len(ended) < len(slow) and time.monotonic() < started + 20.0:
            for peer in slow:
                with contextlib.suppress(OSError):
                    peer.setblocking(False)
                    peer.send(b"y")
                try:
                    if peer.recv(1 << 16) == b"":
                        ended.add(peer)
                except BlockingIOError:
                    continue
                except OSError:
                    ended.add(peer)
            await asyncio.sleep(0.1)
        for peer in slow:
            peer.close()
        assert len(ended) == len(slow)
        assert (await scrape(port))["fedloom_run_info"] == {("stage", "stage-1"): 1.0}


async def test_a_scrape_while_the_daemon_is_busy_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_endpoint, "_SNAPSHOT_S", 0.3)
    async with stage(tmp_path, metrics_port=0) as live:
        scraping = asyncio.ensure_future(asyncio.to_thread(fetch, port_of(live)))
        await asyncio.sleep(0)
        time.sleep(1.0)  # the event loop does something else
        status, text = await scraping
        assert status == 503 and "busy" in text
        assert (await scrape(port_of(live)))["fedloom_round"] == {(): 0.0}


async def test_it_ends_with_the_daemon_and_the_port_is_free_again(tmp_path: Path) -> None:
    config = settings(tmp_path, metrics_port=0)
    async with coordinator(config, config.coordinator.state) as running:
        assert running.metrics is not None
        port = running.metrics.port
        assert running.metrics.url == f"http://127.0.0.1:{port}/metrics"
        assert threads() == {"fedloom-metrics"}
        held = socket.create_connection(("127.0.0.1", port), 10.0)
        held.sendall(b"GET ")
        started = time.monotonic()
    assert time.monotonic() - started < 5.0  # whoever holds a connection doesn't hold the daemon
    held.close()
    assert threads() == set()
    assert not [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]
    again = settings(tmp_path, metrics_port=port)
    async with coordinator(again, again.coordinator.state) as running:
        assert running.metrics is not None and running.metrics.port == port
        other = settings(tmp_path / "other", metrics_port=port)
        with pytest.raises(ResourceError, match=f"port {port} on 127.0.0.1 is in use") as failure:
            async with coordinator(other, other.coordinator.state):
                pass
        assert failure.value.code == "port-in-use"


async def test_without_a_port_there_is_no_endpoint(tmp_path: Path) -> None:
    async with stage(tmp_path) as live:
        assert live.running.metrics is None
        assert threads() == set()
