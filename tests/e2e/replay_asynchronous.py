"""A finished private run of asynchronous rounds, recomputed from its disks: what was paid, and what the model must be.

The counterpart of ``tests.e2e.replay`` where updates are merged as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from coordinator.auditing import verify_log
from coordinator.rounds import RunState, from_row
from coordinator.rounds.facts import AttemptOpened, Fact, MergeFailed, TaskIssued, UpdateBuffered
from coordinator.rounds.tasks import seat_task, task_id
from coordinator.serving import BLOBS, DATABASE
from coordinator.store import open_store
from participant.budget_audit import recompute
from participant.ledger.opening import open_ledger
from participant.site import JOURNAL, Site
from participant.store import ParticipantStore, TaskState
from privacy.accounting import epsilon
from privacy.accounting.accountant import FINE
from privacy.ledger import Phase, Receipt, SignedReceipt
from privacy.secure_aggregation.statements import Upload, kind_of
from tests.e2e.replay import PAID, check_sums, keep_blobs, ledger_lines, values
from wire import BlobStore, RunPlan


def check_asynchronous(folder: Path, names: Sequence[str], versions: int) -> None:
    """All of it, once no process of the federation runs any more; arguments as for ``check_run``."""
    state = folder / "state"
    keep_blobs(folder)
    store = open_store(state / DATABASE)
    try:
        (run,) = store.runs()
        facts = [from_row(item.kind, item.body) for item in store.transitions(run.run_id)]
        signed = {name: SignedReceipt(*item) for name, item in store.budgets().items()}
        first, last = store.checkpoint(run.run_id, 0), store.checkpoint(run.run_id)
        plan = RunPlan.parse(run.plan)
    finally:
        store.close()
    assert first is not None and last is not None
    assert not any(isinstance(item, MergeFailed) for item in facts)
    # Every version is made, of enough participants; no update is in two.
    replayed = RunState()
    for fact in facts:
        replayed.apply(fact)
    assert replayed.finished is not None
    assert [item.version for item in replayed.rounds] == list(range(1, versions + 1))
    merged = [seat.digest for item in replayed.rounds for seat in item.seats.values() if seat.outcome == "done"]
    assert set(Counter(merged).values()) == {1}, "an update is in two versions"
    assert all(len(item.done()) >= plan.rounds.min_updates for item in replayed.rounds)
    assert max(item.staleness(name) for item in replayed.rounds for name in item.done()) <= plan.rounds.max_staleness

    # Each version is the one before plus K / C of the mean of its updates by age.
    blobs = BlobStore(state / BLOBS)
    model = values(blobs.path(first.digest)).astype(np.float64)
    for item in replayed.rounds:
        done = item.done()
        ages = np.array([1 / np.sqrt(1 + item.staleness(name)) for name in done])
        shares = np.array([item.seats[name].examples for name in done]) * ages
        said = {entry["participant"]: entry["weight"] for entry in item.report["participants"]}
        assert [said[name] for name in done] == pytest.approx(list(shares / shares.sum()), abs=0.02)
        updates = [np.fromfile(blobs.path(bytes.fromhex(item.seats[name].digest)), "<f4") for name in done]
        mean = sum(said[name] * update.astype(np.float64) for name, update in zip(done, updates, strict=True))
        model = model + len(done) / len(item.present) * mean
        made = values(blobs.path(bytes.fromhex(item.digest)))
        assert np.allclose(model, made, atol=1e-5), f"version {item.version}"
        model = made.astype(np.float64)
    assert last.digest.hex() == replayed.rounds[-1].digest

    accepted = handed_in(facts, run.run_id)
    for name in names:
        mine = accepted.get(name, {})
        _check_site(folder / name, set(mine), plan.privacy.epsilon, signed.get(name))
        assert delivered(folder / name) == mine


def check_buffers(folder: Path, names: Sequence[str], versions: int) -> None:
    """The same of asynchronous rounds with secure sums, each of which is unmasked anew."""
    state = folder / "state"
    store = open_store(state / DATABASE)
    try:
        (run,) = store.runs()
        facts = [from_row(item.kind, item.body) for item in store.transitions(run.run_id)]
        signed = {name: SignedReceipt(*item) for name, item in store.budgets().items()}
        plan = RunPlan.parse(run.plan)
    finally:
        store.close()
    replayed = RunState()
    for fact in facts:
        replayed.apply(fact)
    assert [item.version for item in replayed.rounds] == list(range(1, versions + 1))
    assert not any(attempt.failed and attempt.failed.spent for item in replayed.rounds for attempt in item.attempts)
    uploads = [digest for item in replayed.rounds if item.revealed is not None for digest in item.revealed.uploads]
    assert set(Counter(uploads).values()) == {1}, "an upload is in two revealed sums"
    tasks = [(name, seat_task(run.run_id, item, name)) for item in replayed.rounds for name in item.done()]
    assert len(tasks) == len(set(tasks)), "a training is in two revealed sums"
    assert check_sums(folder) == versions
    verified = verify_log(state)
    assert (verified.lines, verified.not_kept) == (versions, 0)
    for name in names:
        accepted = {task for who, task in tasks if who == name}
        _check_site(folder / name, accepted, plan.privacy.epsilon, signed.get(name))


def check_masked_charged(folder: Path, name: str) -> None:
    """While a site is dead: whatever of its updates the coordinator has, masked as it is, its ledger has charged."""
    store = open_store(folder / "state" / DATABASE)
    try:
        runs = store.runs()
        facts = [from_row(item.kind, item.body) for item in store.transitions(runs[-1].run_id)] if runs else []
        had = set()
        for item in facts:
            if not isinstance(item, AttemptOpened) or name not in item.roster:
                continue
            said = store.statements(runs[-1].run_id, bytes.fromhex(item.context))
            if any(record.sender == name and kind_of(record.body) == Upload.KIND for record in said):
                place = item.roster.index(name)
                had.add(task_id(runs[-1].run_id, item.base_versions[place] + 1, item.base_attempts[place], name))
    finally:
        store.close()
    charged = {line["task"] for line in ledger_lines(folder, name) if line["kind"] == "charge"}
    assert had <= charged, f"{name}: {had - charged} has left and isn't charged"


def handed_in(facts: Sequence[Fact], run_id: str) -> dict[str, dict[str, str]]:
    """By participant, the tasks whose updates have a place in a buffer, with the updates' digests."""
    found: dict[str, dict[str, str]] = {}
    last: dict[str, TaskIssued] = {}
    for fact in facts:
        if isinstance(fact, TaskIssued):
            last[fact.participant] = fact
        elif isinstance(fact, UpdateBuffered):
            task = last[fact.participant]
            name = task_id(run_id, task.base_version + 1, task.attempt, fact.participant)
            found.setdefault(fact.participant, {})[name] = fact.digest
    return found


def check_update_charged(folder: Path, name: str) -> None:
    """While a site is dead: whatever of its updates the coordinator has taken, its ledger has charged."""
    store = open_store(folder / "state" / DATABASE)
    try:
        runs = store.runs()
        facts = [from_row(item.kind, item.body) for item in store.transitions(runs[-1].run_id)] if runs else []
    finally:
        store.close()
    had = set(handed_in(facts, runs[-1].run_id).get(name, {})) if runs else set()
    charged = {line["task"] for line in ledger_lines(folder, name) if line["kind"] == "charge"}
    assert had <= charged, f"{name}: {had - charged} has left and isn't charged"


def delivered(home: Path) -> dict[str, str]:
    """The digests of the updates of which a site knows that they were taken, by task."""
    journal = ParticipantStore(home / JOURNAL)
    try:
        known = [task for task in journal.history(1_000) if task.update_digest and task.state is TaskState.RECEIPTED]
    finally:
        journal.close()
    return {task.task_id: task.update_digest.hex() for task in known}


def _check_site(home: Path, accepted: set[str], limit: float, told: SignedReceipt | None) -> None:
    """A site has paid once for each update that it handed in, whether it was merged or not, and for nothing else."""
    site = Site.load(home)
    ledger = open_ledger(site)
    try:
        book = ledger.book()
        (dataset,) = book.data
        balance = ledger.balance(dataset)
        audit = recompute(book, dataset)
    finally:
        ledger.close()
    journal = ParticipantStore(home / JOURNAL)
    try:
        known = {task.task_id: task for task in journal.history(1_000)}
    finally:
        journal.close()
    trained = {name: task for name, task in known.items() if task.update_digest}
    # Nothing is open: what was merged is known to be merged, all else is known to be over.
    taken = {name: task for name, task in trained.items() if task.state is TaskState.RECEIPTED}
    assert {task.state for task in known.values()} <= {TaskState.RECEIPTED, TaskState.DROPPED}
    assert set(taken) == accepted
    assert len({task.update_digest for task in trained.values()}) == len(trained), "an update stands for two tasks"

    paid = {task.task_id: task for task in book.tasks.values() if task.phase in PAID}
    assert {name for name, task in paid.items() if task.phase is Phase.SETTLED} == accepted
    assert accepted <= set(paid) <= set(trained), "what was paid for was trained"
    assert not [task for task in book.tasks.values() if task.phase is Phase.RESERVED]
    if not paid:
        # The others have made all versions while it was dead.
        assert balance.spent == 0.0
        return
    # One release is the same events each time, whoever came before or after it.
    cost = next(iter(paid.values())).reserved
    assert cost and all(task.reserved == task.events == cost for task in paid.values())
    assert balance.spent == pytest.approx(epsilon(len(paid) * list(cost), balance.delta, interval=FINE))
    assert 0.0 < balance.spent <= limit
    # An accountant that shares nothing with ours but the events comes to the same.
    assert audit["agree"] and audit["reference"] == pytest.approx(balance.spent, rel=0.01)
    assert told is not None, f"the coordinator has no budget receipt of {site.name}"
    receipt = Receipt.opened(told, site.signing_key.public, site.name)
    assert (receipt.lines, receipt.head) == (book.count, book.head)
    assert receipt.spent == pytest.approx(balance.spent, rel=0.02)
