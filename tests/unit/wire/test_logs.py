"""Logs: structured, about something, without secrets."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest

from wire import Token, about, set_up_logging
from wire.logs import HIDDEN

log = logging.getLogger("fedloom.test")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    level = root.level
    handler = set_up_logging(json_lines=True, stream=stream)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_says_when_what_and_about_whom(stream: io.StringIO) -> None:
    with about(run="demo-1", round=3):
        with about(participant="hospital-a"):
            log.info("update of %d bytes", 12, extra={"digest": b"\x01\x02", "examples": 5})
        log.warning("round closed")
    log.info("idle")
    first, second, third = lines(stream)
    assert str(first.pop("time")).endswith("Z")
    assert first == {
        "level": "info",
        "logger": "fedloom.test",
        "message": "update of 12 bytes",
        "run": "demo-1",
        "round": 3,
        "participant": "hospital-a",
        "digest": "0102",
        "examples": 5,
    }
    assert (second["round"], "participant" in second) == (3, False)
    assert "run" not in third


async def test_tasks_do_not_mix(stream: io.StringIO) -> None:
    async def work(name: str) -> None:
        with about(participant=name):
            await asyncio.sleep(0)
            log.info("at work", extra={"expected": name})

    await asyncio.gather(*(work(f"p{number}") for number in range(5)))
    assert len(lines(stream)) == 5
    assert all(line["participant"] == line["expected"] for line in lines(stream))


def test_secrets_stay_out(stream: io.StringIO) -> None:
    token = Token(name="a", address="h:1", fingerprint=bytes(32), root=bytes(32), secret=b"s" * 32)
    pem = "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----"
    log.info("joined with %s", token.encode(), extra={"secret": "abc", "key_pem": pem, "note": pem})
    try:
        raise ValueError(token.encode())
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    assert token.encode() not in text
    assert "MIGH" not in text and "abc" not in text
    first = lines(stream)[0]
    assert first["message"] == f"joined with {HIDDEN}"
    assert (first["secret"], first["note"]) == (HIDDEN, HIDDEN)
    assert "ValueError" in str(lines(stream)[1]["exception"])


def test_text_for_people_is_one_line_a_record() -> None:
    stream = io.StringIO()
    handler = set_up_logging(level="warning", stream=stream)
    try:
        with about(round=2):
            log.warning("a peer says: %s", "x\n2026-01-01 forged line")
            log.info("not shown")
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel("WARNING")
    (line,) = stream.getvalue().splitlines()
    assert "warning" in line
    assert line.endswith("round=2")


def test_setting_up_again_replaces(stream: io.StringIO) -> None:
    second = io.StringIO()
    handler = set_up_logging(stream=second)
    log.info("once")
    logging.getLogger().removeHandler(handler)
    assert stream.getvalue() == ""
    assert second.getvalue().count("once") == 1
