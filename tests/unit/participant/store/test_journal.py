"""The site's journal: its states, its durability, its schema."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule

from participant.store import ParticipantStore, TaskRecord, TaskState, schema
from participant.store.journal import MIGRATIONS
from privacy.secure_aggregation.identities import Role
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import FederationRoot, MemberEntry
from privacy.secure_aggregation.memory import Forget, Note
from wire import ConfigError
from wire.database import open_sqlite

ROOT = Path(__file__).parents[4]
DIGEST = bytes(range(32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    task_id: str = "run-1/1.1/north"
    run_id: str = "run-1"
    train: bool = True
    round: int = 1
    attempt: int = 1
    base_version: int = 0
    base_digest: bytes = DIGEST
    seed: int = (1 << 64) - 1
    evaluate: bool = True


RESULT: dict[str, Any] = {
    "update_digest": DIGEST[::-1],
    "update_size": 40,
    "examples": 7,
    "metrics": {"loss": 0.1},
    "evaluation": {"r@1": 1 / 3, "é": -0.0},
}


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    store = ParticipantStore(tmp_path / "journal.sqlite", clock=lambda: 12.5)
    yield store
    store.close()


def test_a_task_goes_from_received_to_receipted(journal: ParticipantStore) -> None:
    task = Task()
    record = journal.accept(task)
    assert record == TaskRecord(
        task_id=task.task_id,
        run_id="run-1",
        kind="train",
        round=1,
        attempt=1,
        base_version=0,
        base_digest=DIGEST,
        seed=(1 << 64) - 1,
        evaluate=True,
        state=TaskState.RECEIVED,
        at_s=12.5,
    )
    trained = journal.trained(task.task_id, **RESULT)
    assert trained == dataclasses.replace(record, state=TaskState.TRAINED, **RESULT)
    assert journal.undelivered() == [trained]
    announced = journal.announced(task.task_id)
    assert announced.state is TaskState.ANNOUNCED
    assert journal.open_tasks("run-1") == journal.undelivered() == [announced]
    receipted = journal.settled(task.task_id, True)
    assert receipted == journal.get(task.task_id) == dataclasses.replace(trained, state=TaskState.RECEIPTED)
    assert journal.open_tasks("run-1") == journal.undelivered() == []


def test_an_evaluation_has_a_result_without_an_update(journal: ParticipantStore) -> None:
    task = Task(train=False)
    assert journal.accept(task).kind == "evaluate"
    done = journal.trained(
        task.task_id, update_digest=b"", update_size=0, examples=0, metrics={}, evaluation={"accuracy": 0.5}
    )
    assert (done.state, done.update_digest, done.evaluation) == (TaskState.TRAINED, b"", {"accuracy": 0.5})
    journal.announced(task.task_id)
    assert journal.settled(task.task_id, True).state is TaskState.RECEIPTED


def test_a_task_asked_for_again_is_known(journal: ParticipantStore) -> None:
    task = Task()
    first = journal.accept(task)
    assert journal.accept(task) == first
    trained = journal.trained(task.task_id, **RESULT)
    assert journal.accept(task) == trained
    journal.announced(task.task_id)
    settled = journal.settled(task.task_id, True)
    assert journal.accept(task) == settled


def test_a_dropped_task_comes_back_with_its_result_if_it_had_one(journal: ParticipantStore) -> None:
    task = Task()
    journal.accept(task)
    dropped = journal.settled(task.task_id, False, "superseded")
    assert (dropped.state, dropped.code) == (TaskState.DROPPED, "superseded")
    again = journal.accept(task)
    assert (again.state, again.code) == (TaskState.RECEIVED, "")
    trained = journal.trained(task.task_id, **RESULT)
    journal.settled(task.task_id, False, "late")
    assert journal.undelivered() == []
    assert journal.accept(task) == trained


@pytest.mark.parametrize(
    ("field", "value"),
    [("base_digest", bytes(32)), ("seed", 3), ("train", False), ("evaluate", False), ("run_id", "run-2"), ("round", 2)],
)
def test_an_id_never_gets_another_content(journal: ParticipantStore, field: str, value: object) -> None:
    journal.accept(Task())
    with pytest.raises(ValueError, match="kind" if field == "train" else field):
        journal.accept(dataclasses.replace(Task(), **{field: value}))


def test_a_result_is_recorded_once(journal: ParticipantStore) -> None:
    task = Task()
    journal.accept(task)
    trained = journal.trained(task.task_id, **RESULT)
    assert journal.trained(task.task_id, **RESULT) == trained
    with pytest.raises(ValueError, match="is trained and can't get another result"):
        journal.trained(task.task_id, **{**RESULT, "update_digest": bytes(32)})
    assert journal.get(task.task_id) == trained


def test_illegal_changes_are_refused(journal: ParticipantStore) -> None:
    task = Task()
    for change in (
        lambda: journal.trained(task.task_id, **RESULT),
        lambda: journal.announced(task.task_id),
        lambda: journal.settled(task.task_id, False, "late"),
    ):
        with pytest.raises(ValueError, match="there is no task"):
            change()
    received = journal.accept(task)
    with pytest.raises(ValueError, match="no result to announce"):
        journal.announced(task.task_id)
    with pytest.raises(ValueError, match="no result that could have been accepted"):
        journal.settled(task.task_id, True)
    with pytest.raises(ValueError, match="-1 records"):
        journal.trained(task.task_id, **{**RESULT, "examples": -1})
    assert journal.get(task.task_id) == received
    journal.settled(task.task_id, False, "late")
    with pytest.raises(ValueError, match="is dropped"):
        journal.trained(task.task_id, **RESULT)


def test_what_is_settled_stays_settled_except_that_acceptance_wins(journal: ParticipantStore) -> None:
    task = Task()
    journal.accept(task)
    journal.trained(task.task_id, **RESULT)
    journal.settled(task.task_id, False, "cancelled")
    assert journal.announced(task.task_id).state is TaskState.DROPPED
    assert journal.settled(task.task_id, False, "other").code == "cancelled"
    accepted = journal.settled(task.task_id, True)
    assert (accepted.state, accepted.code) == (TaskState.RECEIPTED, "")
    assert journal.settled(task.task_id, False, "late") == accepted
    assert journal.announced(task.task_id) == accepted


def test_history_is_newest_first_and_pruning_spares_open_tasks(journal: ParticipantStore) -> None:
    for number in range(6):
        journal.accept(Task(task_id=f"t{number}", round=number + 1))
        if number != 1:
            journal.settled(f"t{number}", False, "late")
    assert [record.task_id for record in journal.history(3)] == ["t5", "t4", "t3"]
    assert journal.prune(2) == 3
    assert [record.task_id for record in journal.history(10)] == ["t5", "t4", "t1"]
    assert journal.prune(0) == 2
    assert [record.task_id for record in journal.history(10)] == ["t1"]
    with pytest.raises(ValueError, match="keep"):
        journal.prune(-1)


def test_a_run_is_pinned_to_its_first_plan(journal: ParticipantStore) -> None:
    assert journal.pin_plan("run-1", DIGEST)
    assert journal.pin_plan("run-1", DIGEST)
    assert not journal.pin_plan("run-1", bytes(32))
    assert journal.pin_plan("run-2", bytes(32))


class JournalMachine(RuleBasedStateMachine):
    """Any calls in any order: whatever happens, no task ever has two results and open tasks are what the model says."""

    tasks: Bundle[str] = Bundle("tasks")

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal.sqlite"
        self.store = ParticipantStore(self.path)
        self.model: dict[str, tuple[TaskState, bytes]] = {}

    @rule(target=tasks, number=st.integers(0, 4))
    def accept(self, number: int) -> str:
        name = f"t{number}"
        state, digest = self.model.get(name, (TaskState.RECEIVED, b""))
        if state is TaskState.DROPPED:
            state = TaskState.TRAINED if digest else TaskState.RECEIVED
        self.model[name] = state, digest
        record = self.store.accept(Task(task_id=name))
        assert (record.state, record.update_digest) == (state, digest)
        return name

    @rule(name=tasks, byte=st.integers(1, 3))
    def trained(self, name: str, byte: int) -> None:
        state, digest = self.model[name]
        new = bytes([byte]) * 32
        result = {**RESULT, "update_digest": new}
        if state is TaskState.RECEIVED:
            self.model[name] = TaskState.TRAINED, new
            assert self.store.trained(name, **result).state is TaskState.TRAINED
        elif digest == new:
            assert self.store.trained(name, **result).state is state
        else:
            with pytest.raises(ValueError, match="another result"):
                self.store.trained(name, **result)

    @rule(name=tasks)
    def announced(self, name: str) -> None:
        state, digest = self.model[name]
        if state is TaskState.RECEIVED:
            with pytest.raises(ValueError, match="no result"):
                self.store.announced(name)
            return
        if state is TaskState.TRAINED:
            self.model[name] = TaskState.ANNOUNCED, digest
        assert self.store.announced(name).state is self.model[name][0]

    @rule(name=tasks, accepted=st.booleans())
    def settled(self, name: str, accepted: bool) -> None:
        state, digest = self.model[name]
        if accepted and not digest:
            with pytest.raises(ValueError, match="no result"):
                self.store.settled(name, True)
            return
        if accepted:
            self.model[name] = TaskState.RECEIPTED, digest
        elif state is not TaskState.RECEIPTED:
            self.model[name] = TaskState.DROPPED, digest
        assert self.store.settled(name, accepted, "code").state is self.model[name][0]

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = ParticipantStore(self.path)

    def teardown(self) -> None:
        settled = (TaskState.DROPPED, TaskState.RECEIPTED)
        owed = {name for name, (state, digest) in self.model.items() if digest and state not in settled}
        assert {record.task_id for record in self.store.undelivered()} == owed
        still_open = {name for name, (state, _) in self.model.items() if state not in settled}
        assert {record.task_id for record in self.store.open_tasks("run-1")} == still_open
        self.store.close()
        self.folder.cleanup()


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)


# ---- crash ----------------------------------------------------------------------------------------------------------

WORKER = """
import dataclasses, sys
from pathlib import Path
from types import SimpleNamespace
from participant.store import ParticipantStore

store = ParticipantStore(Path(sys.argv[1]))
number = len(store.history(1_000_000))
while True:
    number += 1
    name = f"t{number}"
    store.accept(SimpleNamespace(task_id=name, run_id="r", train=True, round=number, attempt=1, base_version=0,
                                 base_digest=bytes(32), seed=1, evaluate=False))
    print(name, "received", flush=True)
    store.trained(name, update_digest=number.to_bytes(32, "big"), update_size=4, examples=1, metrics={}, evaluation={})
    print(name, "trained", flush=True)
    store.announced(name)
    print(name, "announced", flush=True)
"""


def test_no_acknowledged_step_is_lost_by_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    order = [TaskState.RECEIVED, TaskState.TRAINED, TaskState.ANNOUNCED]
    for lines in (4, 11, 24):
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += process.stdout.read().splitlines()
        process.wait()
        process.stdout.close()

        store = ParticipantStore(path)
        acknowledged = {name: TaskState(state) for name, state in (line.split() for line in said)}
        for name, state in acknowledged.items():
            record = store.get(name)
            assert record is not None
            # One step may be written and not yet said; none may be said and not written.
            assert order.index(record.state) - order.index(state) in (0, 1)
            if record.state is not TaskState.RECEIVED:
                assert record.update_digest == int(name[1:]).to_bytes(32, "big")
        store.close()


# ---- the member list ------------------------------------------------------------------------------------------------


def a_member_list(*names: str) -> list[MemberEntry]:
    root = FederationRoot("demo", SigningKey(DIGEST))
    chain = root.empty()
    for name in names:
        chain = chain.extend([root.add(chain, Role.PARTICIPANT, name, SigningKey(name.encode() * 32).public)])
    return list(chain.entries)


def test_the_pinned_list_only_grows_and_survives(tmp_path: Path) -> None:
    entries = a_member_list("a", "b", "c")
    store = ParticipantStore(tmp_path / "journal.sqlite")
    assert store.pinned_members() == []
    store.extend_members(entries[:2])
    for wrong in (entries[:1], entries[1:], [entries[2], entries[2]]):
        with pytest.raises(ValueError, match="continues at"):
            store.extend_members(wrong)
    store.extend_members([])
    store.close()
    store = ParticipantStore(tmp_path / "journal.sqlite")
    assert store.pinned_members() == entries[:2]
    store.extend_members(entries[2:])
    assert store.pinned_members() == entries
    store.forget_members()
    store.extend_members(entries[:1])
    assert store.pinned_members() == entries[:1]
    store.close()


# --- notes of secure sums ---------------------------------------------------------------------------------------------


def a_note(kind: str, context: int = 1, body: bytes = b"body") -> Note:
    return Note(kind, bytes([context]) * 32 if context else b"", body)


def test_notes_come_back_in_order_and_are_erased_by_context_kind_and_body(journal: ParticipantStore) -> None:
    first = [
        a_note("prekey", 0, b"1"),
        a_note("planned"),
        a_note("secrets"),
        a_note("prekey", 0, b"2"),
        a_note("planned", 2),
    ]
    journal.change_notes(first)
    assert journal.notes() == first
    journal.change_notes([Forget(b"", "prekey", b"1"), a_note("masked")])
    assert journal.notes() == [*first[1:], a_note("masked")]
    journal.change_notes([Forget(first[1].context, "secrets")])
    assert [note.kind for note in journal.notes()] == ["planned", "prekey", "planned", "masked"]
    journal.change_notes([Forget(first[1].context)])
    assert journal.notes() == [a_note("prekey", 0, b"2"), a_note("planned", 2)]
    journal.change_notes([])
    journal.change_notes([Forget(b"c" * 32), Forget(b"", "prekey-last")])
    assert len(journal.notes()) == 2


def test_changes_happen_together_and_in_their_order(journal: ParticipantStore) -> None:
    journal.change_notes([a_note("prekey-last", 0, b"5")])
    journal.change_notes([Forget(b"", "prekey-last"), a_note("prekey-last", 0, b"9")])
    assert journal.notes() == [a_note("prekey-last", 0, b"9")]
    broken = Note("planned", b"c" * 32, None)  # type: ignore[arg-type]
    with pytest.raises(sa.exc.IntegrityError):
        journal.change_notes([Forget(b"", "prekey-last"), a_note("secrets"), broken])
    assert journal.notes() == [a_note("prekey-last", 0, b"9")]


def test_notes_survive_and_what_was_erased_is_in_no_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = ParticipantStore(path)
    secret = b"a secret that must not stay"
    journal.change_notes([a_note("secrets", 1, secret), a_note("planned", 2, b"kept")])
    journal.close()
    again = ParticipantStore(path)
    assert again.notes() == [a_note("secrets", 1, secret), a_note("planned", 2, b"kept")]
    again.change_notes([a_note("secrets", 3, secret), a_note("planned", 3)])
    again.change_notes([Forget(bytes([1]) * 32), Forget(bytes([3]) * 32, "secrets")])
    # Not even while the journal is open, in the database's write-ahead log.
    for file in tmp_path.iterdir():
        assert secret not in file.read_bytes(), file.name
    again.close()


def test_what_a_killed_process_had_erased_is_in_no_file_once_the_journal_is_open_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, image = tmp_path / "disk", tmp_path / "image"
    disk.mkdir()
    journal = ParticipantStore(disk / "journal.sqlite")
    secret = b"a secret that must not stay"
    journal.change_notes([a_note("secrets", 1, secret)])
    # What a kill leaves: the erasure is committed, the write-ahead log not yet emptied.
    with monkeypatch.context() as patch:
        patch.setattr(ParticipantStore, "_empty_log", lambda _: shutil.copytree(disk, image))
        journal.change_notes([Forget(bytes([1]) * 32)])
    journal.close()
    assert secret in (image / "journal.sqlite-wal").read_bytes()
    again = ParticipantStore(image / "journal.sqlite")
    assert again.notes() == []
    for file in image.iterdir():
        assert secret not in file.read_bytes(), file.name
    again.close()


def test_what_a_note_holds_stands_in_no_repr() -> None:
    assert "body" not in repr(a_note("secrets"))
    assert "body" not in repr(Forget(b"c" * 32, "secrets", b"body"))


# ---- schema ---------------------------------------------------------------------------------------------------------


def columns(engine: sa.Engine) -> dict[str, list[tuple[str, str, bool, bool]]]:
    inspector = sa.inspect(engine)
    return {
        table: [
            (column["name"], str(column["type"]), bool(column["nullable"]), bool(column["primary_key"]))
            for column in inspector.get_columns(table)
        ]
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def test_migrations_build_what_the_code_expects_and_run_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    ParticipantStore(path).close()
    before = path.read_bytes()
    ParticipantStore(path).close()
    assert path.read_bytes() == before
    migrated, declared = open_sqlite(path), sa.create_engine("sqlite://")
    schema.metadata.create_all(declared)
    assert columns(migrated) == columns(declared)
    migrated.dispose()
    declared.dispose()


def test_the_declared_head_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    ParticipantStore(path).close()
    engine = open_sqlite(path)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(ConfigError, match="newer version of fedloom"):
        ParticipantStore(path)
