"""A finished private run, recomputed from its disks: what was paid, what was summed, and what the model must be.

Private noise makes two runs differ, so there is no run to compare with; there is the log. Each check reads the
databases and blobs that the processes have left, and none of what they said.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.aggregation import Intake
from coordinator.aggregation.reveal import map_upload
from coordinator.auditing import verify_log
from coordinator.membership import ROOT_PUBLIC
from coordinator.rounds import AsyncRounds, BeginMerge, RunState, SynchronousRounds
from coordinator.rounds.facts import AttemptFailed, AttemptOpened, SumRevealed, VersionCommitted, from_row
from coordinator.serving import BLOBS, CA, DATABASE
from coordinator.store import Store, open_store
from participant.ledger.opening import open_ledger
from participant.site import JOURNAL, LEDGER, Site
from participant.store import ParticipantStore, TaskState
from privacy.accounting import epsilon
from privacy.accounting.accountant import FINE
from privacy.ledger import Phase, Receipt, SignedReceipt
from privacy.ledger.entries import unpack
from privacy.secure_aggregation.audit import check_record, verify_chain
from privacy.secure_aggregation.members import MemberList
from privacy.secure_aggregation.statements import Signed, Upload, kind_of
from privacy.secure_aggregation.summing import joined, mean_slices, plausible, unmask_group
from privacy.secure_aggregation.tail import decode_tail
from wire import BlobStore, FederationCA, RunPlan, read_header

PAID = (Phase.CHARGED, Phase.SETTLED)


def check_run(folder: Path, names: Sequence[str], rounds: int) -> None:
    """All of it, once no process of the federation runs any more.

    Args:
        folder: The federation's, with every blob the coordinator ever had under ``kept`` (``tests.e2e.writes``).
        names: Of the sites, whose homes are in it.
        rounds: Of the run.
    """
    state = folder / "state"
    keep_blobs(folder)
    store = open_store(state / DATABASE)
    try:
        (run,) = store.runs()
        facts = [from_row(item.kind, item.body) for item in store.transitions(run.run_id)]
        sums = [item for item in facts if isinstance(item, SumRevealed)]
        versions = [item for item in facts if isinstance(item, VersionCommitted)]
        assert [item.round for item in sums] == list(range(1, rounds + 1))
        assert [item.version for item in versions] == list(range(1, rounds + 1))
        _check_model(store, state, run.run_id, sums, versions)
        failed = [item for item in facts if isinstance(item, AttemptFailed)]
        assert not any(item.spent for item in failed), failed
        signed = {name: SignedReceipt(*item) for name, item in store.budgets().items()}
        plan = RunPlan.parse(run.plan)
    finally:
        store.close()
    # Recomputed from every upload: the chain of results, its signatures, and each sum bit by bit.
    verified = verify_log(state)
    assert (verified.lines, verified.not_kept) == (rounds, 0)

    uploads = Counter(digest for item in sums for digest in item.uploads)
    assert set(uploads.values()) == {1}, "an upload is in two revealed sums"
    for name in names:
        mine = [item.round for item in sums if name in item.survivors]
        _check_site(folder / name, mine, plan.privacy.epsilon, signed.get(name))


def keep_blobs(folder: Path) -> None:
    """Put every blob that the coordinator ever had back in its place."""
    for path in (folder / "kept").iterdir():
        place = folder / "state" / BLOBS / path.name
        if not place.exists():
            place.hardlink_to(path)


def check_charged(folder: Path, name: str) -> None:
    """While a site is dead: whatever of its updates the coordinator has, masked as it is, its ledger has charged."""
    store = open_store(folder / "state" / DATABASE)
    try:
        runs = store.runs()
        facts = [from_row(item.kind, item.body) for item in store.transitions(runs[-1].run_id)] if runs else []
        contexts = {item.context: item.round for item in facts if isinstance(item, AttemptOpened)}
        had = {item.round for item in facts if isinstance(item, SumRevealed) and name in item.survivors}
        for context, number in contexts.items():
            said = store.statements(runs[-1].run_id, bytes.fromhex(context))
            if any(item.sender == name and kind_of(item.body) == Upload.KIND for item in said):
                had.add(number)
    finally:
        store.close()
    lines = ledger_lines(folder, name)
    charged = {line["task"] for line in lines if line["kind"] == "charge"}
    paid = {line["round"] for line in lines if line["kind"] == "reserve" and line["task"] in charged}
    assert had <= paid, f"{name}: an update of round {had - paid} has left and isn't charged"


def ledger_lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a dead site's ledger.

    Only files are read, and they are copied first: opening them would bring the write-ahead log in.
    """
    with tempfile.TemporaryDirectory() as image:
        for path in (folder / name).glob(f"{LEDGER}*"):
            shutil.copy(path, image)
        with contextlib.closing(sqlite3.connect(Path(image) / LEDGER)) as ledger:
            present = ledger.execute("SELECT name FROM sqlite_master WHERE name = 'lines'").fetchall()
            return [unpack(row[0]) for row in ledger.execute("SELECT body FROM lines")] if present else []


def _check_site(home: Path, mine: Sequence[int], limit: float, told: SignedReceipt | None) -> None:
    """A site has paid once for each round whose sum holds its update, and its updates are as many."""
    site = Site.load(home)
    ledger = open_ledger(site)
    try:
        book = ledger.book()
        (dataset,) = book.data
        balance = ledger.balance(dataset)
    finally:
        ledger.close()
    paid = [task for task in book.tasks.values() if task.phase in PAID]
    assert sorted(task.job.round for task in paid) == list(mine), f"{site.name} is in {mine} and has paid for {paid}"
    assert not [task for task in book.tasks.values() if task.phase is Phase.RESERVED]
    # One release is the same events in every round, which no second one has been added to.
    cost = paid[0].reserved
    assert cost and all(task.reserved == task.events == cost for task in paid)
    assert balance.spent == balance.committed
    assert balance.spent == pytest.approx(epsilon(len(paid) * list(cost), balance.delta, interval=FINE))
    assert 0.0 < balance.spent <= limit
    assert told is not None, f"the coordinator has no budget receipt of {site.name}"
    receipt = Receipt.opened(told, site.signing_key.public, site.name)
    assert (receipt.round, receipt.lines, receipt.head) == (max(mine), book.count, book.head)

    journal = ParticipantStore(home / JOURNAL)
    try:
        done = [task for task in journal.history(1_000) if task.update_digest]
    finally:
        journal.close()
    assert sorted(task.round for task in done) == list(mine)
    assert len({task.update_digest for task in done}) == len(done), "an update stands for two rounds"
    assert {task.task_id for task in done} == {task.task_id for task in paid}
    # Whatever died in between: each is known to be taken, settled, and the coordinator has seen what it has cost.
    assert {task.state for task in done} == {TaskState.RECEIPTED}
    assert {task.phase for task in paid} == {Phase.SETTLED}


def _check_model(
    store: Store, state: Path, run_id: str, sums: Sequence[SumRevealed], versions: Sequence[VersionCommitted]
) -> None:
    """Each version is the one before plus the mean of the uploads that the log names, to the bit.

    In asynchronous rounds it moves by K / C of the mean, with K in the sum and C taking part.
    """
    blobs = BlobStore(state / BLOBS)
    root = bytes.fromhex((state / ROOT_PUBLIC).read_text(encoding="ascii").strip())
    members = MemberList.verify(FederationCA.load(state / CA).federation, root, store.member_entries())
    first = store.checkpoint(run_id, 0)
    assert first is not None
    model = values(blobs.path(first.digest))
    stored = store.results()
    chain = verify_chain([Signed(item.body, item.signature) for item in stored], members)
    merged = {item.round for item in sums}
    lines = [line for line, item in zip(chain, stored, strict=True) if item.run_id == run_id and item.round in merged]
    assert len(lines) == len(sums)
    run = RunState()
    for item in store.transitions(run_id):
        run.apply(from_row(item.kind, item.body))
    for line, revealed, version in zip(lines, sums, versions, strict=True):
        made = run.rounds[version.round - 1]
        step = len(made.done()) / len(made.present) if made.present else 1.0
        order = check_record(line.result, blobs.path(line.result.record).read_bytes(), members).order
        named = [digest.hex() for group in order.groups for digest in group.digests]
        assert sorted(named) == sorted(revealed.uploads)
        found = []
        for group in order.groups:
            main, tail = unmask_group(order.context, group, [map_upload(blobs.path(item)) for item in group.digests])
            plausible(order.context, group, main, tail)
            found.append((main, tail))
        total, tail = joined(found)
        cap = order.context.encoding.weight_cap
        said = decode_tail(order.context.layout, tail, participants=len(revealed.survivors), weight_cap=cap)
        mean = np.concatenate([part.copy() for part in mean_slices(order.context, total, said.weight)])
        assert np.array_equal(mean, np.fromfile(blobs.path(bytes.fromhex(revealed.digest)), "<f4"))
        model = (model.astype(np.float64) + step * mean.astype(np.float64)).astype(np.float32)
        assert np.array_equal(model, values(blobs.path(bytes.fromhex(version.digest)))), f"version {version.version}"
    last = store.checkpoint(run_id)
    assert last is not None and last.digest.hex() == versions[-1].digest


def values(path: Path) -> NDArray[np.float32]:
    """A checkpoint's parameters as one vector."""
    header = read_header(path)
    return np.fromfile(path, "<f4", count=header.dimension, offset=header.data_offset)


def check_sums(folder: Path) -> int:
    """Unmask anew every sum of the last run, as its log names it, and compare each version to the bit.

    Args:
        folder: As for :func:`check_merges`.

    Returns:
        How many versions were compared.
    """
    keep_blobs(folder)
    store = open_store(folder / "state" / DATABASE)
    try:
        run = store.runs()[-1]
        facts = [from_row(item.kind, item.body) for item in store.transitions(run.run_id)]
        versions = [item for item in facts if isinstance(item, VersionCommitted)]
        merged = {item.round for item in versions}
        sums = [item for item in facts if isinstance(item, SumRevealed) and item.round in merged]
        _check_model(store, folder / "state", run.run_id, sums, versions)
    finally:
        store.close()
    return len(versions)


def check_merges(folder: Path) -> int:
    """Merge anew every buffer of the last run, as its log names it, and compare each version to the bit.

    Args:
        folder: The federation's, with every blob the coordinator ever had under ``kept`` (``tests.e2e.writes``).

    Returns:
        How many versions were compared.
    """
    store = open_store(folder / "state" / DATABASE)
    try:
        run = store.runs()[-1]
        plan = RunPlan.parse(run.plan)
        versions = store.checkpoints(run.run_id)
        facts = [from_row(item.kind, item.body) for item in store.transitions(run.run_id)]
    finally:
        store.close()
    state = RunState()
    state.digest, state.size = versions[0].digest.hex(), versions[0].size
    made = 0
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        blobs = BlobStore(Path(scratch))
        for path in [*(folder / "kept").iterdir(), *(folder / "state" / BLOBS).iterdir()]:
            if not (blobs.folder / path.name).exists():
                (blobs.folder / path.name).hardlink_to(path)
        for fact in facts:
            if isinstance(fact, VersionCommitted):
                rounds = AsyncRounds if plan.rounds.asynchronous else SynchronousRounds
                owed = rounds(run.run_id, plan.rounds, state).resume(0.0).effects
                (order,) = [effect for effect in owed if isinstance(effect, BeginMerge)]
                merged = Intake(blobs, plan).merge(order, versions[fact.version - 1])
                assert merged.digest == versions[fact.version].digest == bytes.fromhex(fact.digest)
                made += 1
            state.apply(fact)
    assert made == len(versions) - 1 == state.version
    return made
