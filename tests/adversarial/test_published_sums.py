"""A coordinator that publishes something else than it has added up: whoever recomputes it finds out, with its word."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.actions import Published
from coordinator.auditing import verify_log
from coordinator.serving import BLOBS, DATABASE
from participant.auditing import audit
from privacy.secure_aggregation.statements import Result, Signed, positions_bytes
from privacy.secure_aggregation.summing import GroupMean, line_hash
from tests.adversarial.liars import SITES, Liar, lying, opened
from wire import RefusedError

reveal_module = importlib.import_module("coordinator.aggregation.reveal")


async def test_an_honest_log_verifies_and_every_site_recomputes_its_sums(tmp_path: Path) -> None:
    async with lying(tmp_path, count=2) as liar:
        await liar.until_version(2)
        verified = verify_log(liar.state)
        assert (verified.lines, verified.not_kept) == (2, 0)
        assert [item[1:] for item in verified.recomputed] == [(1, (SITES,)), (2, (SITES,))]
        for site in liar.sites.values():
            audited = await audit(site.site, site.store, 2)
            assert (audited.participants, audited.mine, audited.line) == (SITES, True, 1)
            assert audited.model == liar.hub.machine.state.digest


async def test_a_wrong_sum_is_found_by_a_site_and_by_the_operator(tmp_path: Path) -> None:
    def wrong(liar: Liar) -> None:
        unmasked = liar.hub.unmasked

        def bent(order, revealed, now_s):
            if order.round == 2:
                revealed = dataclasses.replace(revealed, sum_hash="5" * 64)
            return unmasked(order, revealed, now_s)

        liar.hub.unmasked = bent  # type: ignore[method-assign]

    async with lying(tmp_path, bend_first=wrong, count=2) as liar:
        await liar.until_version(2)
        site = liar.sites["site-1"]
        assert (await audit(site.site, site.store, 1)).round == 1
        with pytest.raises(RefusedError, match="round 2") as found:
            await audit(site.site, site.store, 2)
        assert found.value.code == "sum-wrong"
        assert "evidence" in found.value.hint
        with pytest.raises(RefusedError, match="line 1 of the log") as found:
            verify_log(liar.state)
        assert found.value.code == "sum-wrong"


SIX = tuple(f"site-{index}" for index in range(6))


async def test_the_means_of_groups_are_recomputed_and_named_by_every_site(tmp_path: Path) -> None:
    async with lying(tmp_path, names=SIX, secure={"group_size": 3}) as liar:
        await liar.until_version(1)
        verified = verify_log(liar.state)
        revealed = liar.hub.machine.state.rounds[0].revealed
        assert revealed is not None
        groups = tuple(sorted(group.members for group in revealed.groups))
        assert [item[1:] for item in verified.recomputed] == [(1, groups)]
        assert (len(groups), sorted(sum(groups, ()))) == (2, list(SIX))
        for site in liar.sites.values():
            audited = await audit(site.site, site.store, 1)
            assert [(item.participants, item.weight, item.mean, item.left_out) for item in audited.groups] == [
                (group.members, group.weight, group.digest, "") for group in revealed.groups
            ]
        liar.check_sum(SIX)


@pytest.mark.parametrize("lie", ["another mean", "a group left out", "a weight"])
async def test_another_mean_of_a_group_than_its_sums_is_found_although_the_sums_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    honest = reveal_module.GroupMean

    def bent(weight: int, digest: bytes, code: str = "") -> GroupMean:
        if lie == "another mean":
            digest = bytes(32)
        if lie == "a weight":
            weight += 1
        return honest(weight, digest, "sum-implausible" if lie == "a group left out" else code)

    monkeypatch.setattr(reveal_module, "GroupMean", bent)
    async with lying(tmp_path, names=SIX, secure={"group_size": 3}) as liar:
        await liar.until_version(1)
        site = liar.sites["site-4"]
        with pytest.raises(RefusedError, match="than the sum of site-") as found:
            await audit(site.site, site.store, 1)
        assert found.value.code == "mean-wrong"
        assert "evidence" in found.value.hint
        with pytest.raises(RefusedError, match="line 0 of the log") as found:
            verify_log(liar.state)
        assert found.value.code == "mean-wrong"


Log = list[Published]


def resigned(liar: Liar, line: Published, **changes: object) -> Published:
    """A line of the log with something changed, and signed anew by the coordinator."""
    result = opened(Result, Signed(line.stored.body, line.stored.signature))
    assert result is not None
    signed = dataclasses.replace(result, **changes).signed(liar.key)  # type: ignore[arg-type]
    stored = dataclasses.replace(line.stored, body=signed.body, signature=signed.signature)
    return dataclasses.replace(line, stored=stored)


def _renumbered(liar: Liar, lines: Log) -> Log:
    """The first line taken out, and all others moved up and signed anew."""
    kept = lines[1:]
    return [resigned(liar, line, index=index) for index, line in enumerate(kept)]


def _rewritten(liar: Liar, lines: Log) -> Log:
    """Another model in the first line, and the whole chain behind it made anew."""
    found = [resigned(liar, lines[0], model=b"m" * 32)]
    for line in lines[1:]:
        found.append(resigned(liar, line, previous=line_hash(found[-1].stored.body)))
    return found


TAMPERED: dict[str, tuple[Callable[[Liar, Log], Log], str]] = {
    "line removed": (lambda liar, lines: lines[1:], "log-gap"),
    "line removed, the rest renumbered": (_renumbered, "log-fork"),
    "line twice": (lambda liar, lines: [lines[0], lines[0], *lines[1:]], "log-gap"),
    "lines swapped": (lambda liar, lines: [lines[1], lines[0], lines[2]], "log-gap"),
    "line altered": (lambda liar, lines: [_spoilt(lines[0]), *lines[1:]], "log-signature"),
    "line altered and signed anew": (
        lambda liar, lines: [resigned(liar, lines[0], model=b"m" * 32), *lines[1:]],
        "log-fork",
    ),
    "chain begun anew": (
        lambda liar, lines: [lines[0], resigned(liar, lines[1], previous=bytes(32)), lines[2]],
        "log-fork",
    ),
    "log rewritten as a whole": (_rewritten, "log-fork"),
    "another round's material": (
        lambda liar, lines: [*lines[:2], dataclasses.replace(lines[2], blobs=lines[1].blobs)],
        "record-foreign",
    ),
    "an upload withheld": (
        lambda liar, lines: [*lines[:2], dataclasses.replace(lines[2], blobs=lines[2].blobs[:-1])],
        "record-foreign",
    ),
    "another round's record named": (
        lambda liar, lines: [*lines[:2], resigned(liar, lines[2], record=lines[1].blobs[0])],
        "record-foreign",
    ),
    "other survivors named": (
        lambda liar, lines: [*lines[:2], resigned(liar, lines[2], survivors=positions_bytes([0, 1, 2]))],
        "record-foreign",
    ),
}


async def test_a_log_that_was_tampered_with_is_refused_by_whoever_reads_it(tmp_path: Path) -> None:
    async with lying(tmp_path, count=3, secure={"audited_rounds": 3}) as liar:
        await liar.until_version(3)
        site, lines = liar.sites["site-2"], liar.hub.published()
        for name, (change, code) in TAMPERED.items():
            changed = change(liar, lines)
            liar.hub.published = lambda changed=changed: changed  # type: ignore[method-assign]
            with pytest.raises(RefusedError) as found:
                await audit(site.site, site.store, 3)
            assert (name, found.value.code) == (name, code)
        liar.hub.published = lambda: lines  # type: ignore[method-assign]
        assert (await audit(site.site, site.store, 3)).line == 2


def _spoilt(line: Published) -> Published:
    signature = bytes([line.stored.signature[0] ^ 1]) + line.stored.signature[1:]
    return dataclasses.replace(line, stored=dataclasses.replace(line.stored, signature=signature))


async def test_the_operator_finds_what_was_changed_on_the_coordinators_disk(tmp_path: Path) -> None:
    async with lying(tmp_path, count=2) as liar:
        await liar.until_version(2)
        first, second = (Result.parse(line.body) for line in liar.store.results())
        upload = liar.hub.published()[1].blobs[2]
    assert verify_log(tmp_path / "state").lines == 2

    path = next((tmp_path / "state" / BLOBS).rglob(upload.hex()))
    content = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(RefusedError, match="isn't what its name says") as found:
        verify_log(tmp_path / "state")
    assert found.value.code == "blob-digest"
    path.write_bytes(content)

    one, other = first.body().hex(), second.body().hex()
    with changed_rows(tmp_path, f"update results set body = X'{other}' where body = X'{one}'"):
        with pytest.raises(RefusedError, match="line 0") as found:
            verify_log(tmp_path / "state")
        assert found.value.code == "log-signature"
    with changed_rows(tmp_path, f"delete from results where body = X'{one}'"):
        with pytest.raises(RefusedError, match="line 0 of the log says that it is line 1") as found:
            verify_log(tmp_path / "state")
        assert found.value.code == "log-gap"
    assert verify_log(tmp_path / "state").lines == 2


@contextlib.contextmanager
def changed_rows(folder: Path, statement: str):
    """The coordinator's database with one statement carried out on it; put back afterwards."""
    path = folder / "state" / DATABASE
    with sqlite3.connect(path) as database:
        database.execute("pragma wal_checkpoint(truncate)")
    database.close()
    before = path.read_bytes()
    with sqlite3.connect(path) as database:
        assert database.execute(statement).rowcount == 1
    database.close()
    yield
    for extra in folder.glob(f"state/{DATABASE}-*"):
        extra.unlink()
    path.write_bytes(before)
