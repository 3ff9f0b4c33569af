"""``fedloom coordinator members`` against a listening coordinator whose root is apart, as a person types it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import fedloom
from coordinator.serving import Coordinator, coordinator
from privacy.secure_aggregation.identities import Role, key_fingerprint
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import FederationRoot
from wire import FederationConfig, read_members, read_requests, write_members

ROOT = FederationRoot("stage", SigningKey(b"r" * 32))


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Coordinator]:
    config = FederationConfig.model_validate(
        {
            "federation": {"name": "stage", "root": ROOT.public.hex()},
            "coordinator": {"port": 0, "enrolment_port": 0, "state": tmp_path / "state", "reserve_mb": 0},
        }
    )
    async with coordinator(config, tmp_path / "state") as made:
        yield made


class Typed:
    """Types commands at the coordinator in ``folder`` while the test's loop serves them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._state = ["--state", str(folder / "state")]
        self._capsys = capsys

    async def __call__(self, *arguments: str, status: int = 0) -> str:
        self._capsys.readouterr()
        command = ["coordinator", "members", *arguments, *self._state]
        assert await asyncio.to_thread(fedloom.main, command) == status
        said = self._capsys.readouterr()
        return said.out + said.err


@pytest.fixture
def typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    return Typed(tmp_path, capsys)


async def test_requests_go_out_and_the_signed_list_comes_in(running: Coordinator, typed: Typed, tmp_path: Path) -> None:
    fingerprint = key_fingerprint(running.membership.signing_key.public)
    said = await typed("--pending", "--out", str(tmp_path / "requests.json"))
    assert f"{fingerprint}  pending" in said
    assert "fedloom federation certify" in said
    (request,) = read_requests(tmp_path / "requests.json").requests
    chain = ROOT.empty().extend([ROOT.add(ROOT.empty(), request.role, request.name, request.public_key, 2_000_000_000)])
    write_members(tmp_path / "members.json", chain)
    assert "New entries: 1; in the member list: 1" in await typed("--import", str(tmp_path / "members.json"))
    assert "New entries: 0" in await typed("--import", str(tmp_path / "members.json"))
    said = await typed("--out", str(tmp_path / "copy.json"))
    assert f"{fingerprint}  until 2033-05-18" in said
    assert "pending" not in said
    assert read_members(tmp_path / "copy.json") == chain
    assert "Nobody waits" in await typed("--pending", "--out", str(tmp_path / "none.json"))
    assert not (tmp_path / "none.json").exists()
    assert json.loads(await typed("--pending", "--json", "--out", str(tmp_path / "none.json")))["file"] is None


async def test_a_long_list_goes_both_ways_in_parts(
    running: Coordinator, typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("coordinator.member_exchange", "coordinator.services.control"):
        monkeypatch.setattr(f"{module}.MAX_ENTRIES", 2)
    chain = ROOT.empty()
    for name in "abcde":
        key = SigningKey(name.encode() * 32).public
        chain = chain.extend([ROOT.add(chain, role=Role.PARTICIPANT, name=name, public_key=key)])
    write_members(tmp_path / "members.json", chain)
    said = json.loads(await typed("--import", str(tmp_path / "members.json"), "--json"))
    assert (said["added"], said["total"], said["pending"]) == (5, 5, ["coordinator"])
    await typed("--out", str(tmp_path / "copy.json"))
    assert read_members(tmp_path / "copy.json") == chain


async def test_mistakes_are_answered_in_words(running: Coordinator, typed: Typed, tmp_path: Path) -> None:
    assert "goes with neither" in await typed("--import", "x", "--pending", status=3)
    assert "no such file" in await typed("--import", str(tmp_path / "none.json"), status=6)
    chain = FederationRoot("stage", SigningKey(b"o" * 32))
    forged = chain.empty().extend([chain.add(chain.empty(), role=Role.PARTICIPANT, name="s", public_key=ROOT.public)])
    write_members(tmp_path / "forged.json", forged)
    assert "members-signature" in await typed("--import", str(tmp_path / "forged.json"), status=4)
