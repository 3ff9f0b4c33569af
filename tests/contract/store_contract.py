"""What every back end of the coordinator's store must do. A back end's test module subclasses `StoreContract`.

The subclass gives a fixture ``location`` (where an empty database is) and ``open(location)``; two stores opened at the
same location are two processes' views of one database.
"""

from __future__ import annotations

import abc
import concurrent.futures
import dataclasses
import itertools
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.store import (
    Checkpoint,
    Invitation,
    Member,
    MemberState,
    Run,
    Store,
    StoredResult,
    StoredStatement,
    Transition,
)
from privacy.secure_aggregation.identities import Role
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import FederationRoot, MemberEntry

HASH = bytes(range(32))
OTHER = bytes(reversed(range(32)))


def a_run(run_id: str = "run-1", created_s: float = 1.5) -> Run:
    return Run(run_id=run_id, plan=b'{"rounds":3}', plan_hash=HASH, created_s=created_s)


def a_checkpoint(version: int, run_id: str = "run-1", state: tuple[bytes, ...] = ()) -> Checkpoint:
    return Checkpoint(
        run_id=run_id, version=version, digest=bytes([version]) * 32, size=1 << 40, state=state, created_s=2.25
    )


def a_transition(sequence: int, body: str = "{}") -> Transition:
    return Transition(sequence=sequence, kind="Thing", body=body, at_s=sequence / 8)


def a_member(name: str = "north", pem: bytes = b"PEM", serial: str = "0a") -> Member:
    return Member(name=name, state=MemberState.ENROLLED, certificate_pem=pem, serial=serial)


def a_member_list(*names: str) -> list[MemberEntry]:
    root = FederationRoot("demo", SigningKey(HASH))
    chain = root.empty()
    for name in names:
        chain = chain.extend([root.add(chain, Role.PARTICIPANT, name, SigningKey(name[:1].encode() * 32).public)])
    return list(chain.entries)


def a_statement(number: int, context: bytes = HASH, sender: str = "north") -> StoredStatement:
    body = b"statement %d \0\xff" % number
    return StoredStatement(context=context, sender=sender, body=body, signature=bytes([number]) * 64, at_s=number / 8)


def a_result(index: int, run_id: str = "run-1") -> StoredResult:
    body = b"result %d" % index
    return StoredResult(index=index, run_id=run_id, round=index + 1, body=body, signature=bytes([index]) * 64)


def an_invitation(name: str = "north", secret_hash: bytes = HASH, expires_s: float = 100.0) -> Invitation:
    return Invitation(name=name, secret_hash=secret_hash, expires_s=expires_s)


class StoreContract(abc.ABC):
    """The tests."""

    @abc.abstractmethod
    def open(self, location: Any) -> Store:
        """Open the database at a location."""

    @pytest.fixture
    def store(self, location: Any) -> Any:
        """An open, empty store."""
        store = self.open(location)
        yield store
        store.close()

    # ---- runs and their log -----------------------------------------------------------------------------------------

    def test_an_empty_store_knows_nothing(self, store: Store) -> None:
        assert store.run("run-1") is None
        assert store.runs() == []
        assert store.checkpoint("run-1") is None
        assert store.checkpoint("run-1", 0) is None
        assert store.checkpoints("run-1") == []
        assert list(store.transitions("run-1")) == []
        assert store.member("north") is None
        assert store.members() == []
        assert store.invitation("north", HASH) is None
        assert store.refusals() == {}

    def test_a_run_comes_back_whole_with_its_version_0(self, store: Store) -> None:
        run, initial = a_run(), a_checkpoint(0, state=(HASH, OTHER))
        store.create_run(run, initial)
        assert store.run("run-1") == run
        assert store.checkpoint("run-1") == initial
        assert store.checkpoint("run-1", 0) == initial

    def test_runs_come_in_the_order_of_their_creation_whatever_their_clocks_said(self, store: Store) -> None:
        store.create_run(a_run("b", created_s=9.0), a_checkpoint(0, "b"))
        store.create_run(a_run("a", created_s=3.0), a_checkpoint(0, "a"))
        assert [run.run_id for run in store.runs()] == ["b", "a"]

    def test_a_run_is_created_once(self, store: Store) -> None:
        store.create_run(a_run(), a_checkpoint(0))
        with pytest.raises(ValueError, match="run-1 exists"):
            store.create_run(dataclasses.replace(a_run(), plan=b"other"), a_checkpoint(0))
        run = store.run("run-1")
        assert run is not None
        assert run.plan == b'{"rounds":3}'

    @pytest.mark.parametrize("initial", [a_checkpoint(1), a_checkpoint(0, "other")])
    def test_a_run_starts_with_its_own_version_0(self, store: Store, initial: Checkpoint) -> None:
        with pytest.raises(ValueError, match="starts with its version 0"):
            store.create_run(a_run(), initial)
        assert store.run("run-1") is None

    def test_the_log_comes_back_in_order_and_from_anywhere(self, store: Store) -> None:
        store.create_run(a_run(), a_checkpoint(0))
        log = [a_transition(sequence, body=f'{{"é": {sequence}}}') for sequence in range(1, 6)]
        store.append("run-1", log[:2])
        store.append("run-1", log[2:])
        assert list(store.transitions("run-1")) == log
        assert list(store.transitions("run-1", after=3)) == log[3:]
        assert list(store.transitions("run-1", after=5)) == []

    def test_a_long_log_is_read_in_pages_while_it_grows(self, store: Store) -> None:
        store.create_run(a_run(), a_checkpoint(0))
        store.append("run-1", [a_transition(sequence) for sequence in range(1, 2_500)])
        reader = store.transitions("run-1")
        first = next(reader)
        store.append("run-1", [a_transition(2_500)])
        assert [first.sequence, *(item.sequence for item in reader)] == list(range(1, 2_501))

    def test_runs_have_logs_of_their_own(self, store: Store) -> None:
        for run_id in ("a", "b"):
            store.create_run(a_run(run_id), a_checkpoint(0, run_id))
            store.append(run_id, [a_transition(1, body=f'"{run_id}"')])
        assert [item.body for item in store.transitions("b")] == ['"b"']

    @pytest.mark.parametrize("sequences", [[0], [1], [3], [2, 2], [2, 4], [3, 2], [-1]])
    def test_a_gap_or_a_repetition_is_refused_whole(self, store: Store, sequences: list[int]) -> None:
        store.create_run(a_run(), a_checkpoint(0))
        store.append("run-1", [a_transition(1)])
        with pytest.raises(ValueError, match="continues at"):
            store.append("run-1", [a_transition(sequence) for sequence in sequences], a_checkpoint(1))
        assert [item.sequence for item in store.transitions("run-1")] == [1]
        assert [item.version for item in store.checkpoints("run-1")] == [0]

    @pytest.mark.parametrize("version", [0, 2, -1])
    def test_versions_have_no_gap_and_a_refused_one_takes_its_transition_along(
        self, store: Store, version: int
    ) -> None:
        store.create_run(a_run(), a_checkpoint(0))
        wrong = dataclasses.replace(a_checkpoint(1), version=version)
        with pytest.raises(ValueError, match="continues with version 1"):
            store.append("run-1", [a_transition(1)], wrong)
        assert list(store.transitions("run-1")) == []
        store.append("run-1", [a_transition(1)], a_checkpoint(1))
        assert store.checkpoint("run-1") == a_checkpoint(1)

    def test_append_refuses_what_belongs_nowhere(self, store: Store) -> None:
        store.create_run(a_run(), a_checkpoint(0))
        with pytest.raises(ValueError, match="no run other"):
            store.append("other", [a_transition(1)])
        with pytest.raises(ValueError, match="doesn't belong"):
            store.append("run-1", [a_transition(1)], a_checkpoint(1, "other"))
        with pytest.raises(ValueError, match="nothing to append"):
            store.append("run-1", [], a_checkpoint(1))
        assert list(store.transitions("run-1")) == []

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(steps=st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 3), st.booleans()), max_size=12))
    def test_any_sequence_of_appends_leaves_a_gapless_log(
        self, location: Any, steps: list[tuple[int, int, bool]]
    ) -> None:
        run_id = f"run-{next(self.numbers)}"
        store = self.open(location)
        store.create_run(a_run(run_id), a_checkpoint(0, run_id))
        log: list[Transition] = []
        versions = 0
        for skip, count, commit in steps:
            new = [a_transition(len(log) + 1 + skip + index) for index in range(count)]
            checkpoint = dataclasses.replace(a_checkpoint(0, run_id), version=versions + 1) if commit else None
            if skip == 0:
                store.append(run_id, new, checkpoint)
                log += new
                versions += commit
            else:
                with pytest.raises(ValueError, match="continues at"):
                    store.append(run_id, new, checkpoint)
        assert list(store.transitions(run_id)) == log
        assert [item.version for item in store.checkpoints(run_id)] == list(range(versions + 1))
        store.close()

    numbers = itertools.count(100)

    # ---- roster -----------------------------------------------------------------------------------------------------

    def test_invite_enrol_renew_revoke(self, store: Store) -> None:
        store.invite(an_invitation())
        invited = store.member("north")
        assert invited is not None
        assert (invited.state, invited.certificate_pem, invited.serial) == (MemberState.INVITED, b"", "")
        assert store.enrol(a_member(), HASH, 50.0)
        assert store.member("north") == dataclasses.replace(a_member(), since_s=50.0)
        assert store.renew("north", b"PEM 2", "0b")
        assert store.member("north") == dataclasses.replace(a_member(pem=b"PEM 2", serial="0b"), since_s=50.0)
        assert store.revoke("north", "left", 60.0)
        revoked = store.member("north")
        assert revoked is not None
        assert (revoked.state, revoked.reason, revoked.since_s) == (MemberState.REVOKED, "left", 60.0)
        assert not store.renew("north", b"PEM 3", "0c")

    def test_a_token_opens_once_for_its_name_and_in_its_time(self, store: Store) -> None:
        store.invite(an_invitation())
        assert not store.enrol(a_member("south"), HASH, 50.0)
        assert not store.enrol(a_member(), OTHER, 50.0)
        assert not store.enrol(a_member(), HASH, 100.0)
        member = store.member("north")
        assert member is not None
        assert member.state is MemberState.INVITED
        assert store.enrol(a_member(), HASH, 99.0)
        assert not store.enrol(a_member(pem=b"thief"), HASH, 99.0)
        assert store.member("north") == dataclasses.replace(a_member(), since_s=99.0)
        assert store.member("south") is None

    def test_a_used_token_stays_on_record(self, store: Store) -> None:
        store.invite(an_invitation())
        assert store.invitation("north", HASH) == an_invitation()
        store.enrol(a_member(), HASH, 50.0)
        assert store.invitation("north", HASH) == dataclasses.replace(an_invitation(), used_s=50.0)
        assert store.invitation("south", HASH) is None
        assert store.invitation("north", OTHER) is None

    def test_a_second_invitation_replaces_an_unused_first(self, store: Store) -> None:
        store.invite(an_invitation())
        store.invite(an_invitation(secret_hash=OTHER))
        assert store.invitation("north", HASH) is None
        assert not store.enrol(a_member(), HASH, 1.0)
        assert store.enrol(a_member(), OTHER, 1.0)

    def test_an_enrolled_member_keeps_its_certificate_until_its_new_token_is_used(self, store: Store) -> None:
        store.invite(an_invitation())
        store.enrol(a_member(), HASH, 1.0)
        store.invite(an_invitation(secret_hash=OTHER))
        assert store.member("north") == dataclasses.replace(a_member(), since_s=1.0)
        used = store.invitation("north", HASH)
        assert used is not None
        assert used.used_s == 1.0
        assert store.enrol(a_member(pem=b"new", serial="0b"), OTHER, 2.0)
        assert store.member("north") == dataclasses.replace(a_member(pem=b"new", serial="0b"), since_s=2.0)

    def test_a_used_token_cannot_be_issued_again(self, store: Store) -> None:
        store.invite(an_invitation())
        store.enrol(a_member(), HASH, 1.0)
        with pytest.raises(ValueError, match="used already"):
            store.invite(an_invitation())
        assert not store.enrol(a_member(), HASH, 2.0)

    def test_revoking_voids_tokens_and_inviting_again_brings_no_old_certificate_back(self, store: Store) -> None:
        store.invite(an_invitation())
        store.enrol(a_member(), HASH, 1.0)
        store.invite(an_invitation(secret_hash=OTHER))
        assert store.revoke("north", "lost key", 2.0)
        assert not store.enrol(a_member(), OTHER, 3.0)
        store.invite(an_invitation(secret_hash=bytes(32)))
        again = store.member("north")
        assert again is not None
        assert (again.state, again.certificate_pem, again.serial, again.reason) == (MemberState.INVITED, b"", "", "")
        assert not store.renew("north", b"PEM", "0a")

    def test_unknown_names_are_neither_revoked_nor_renewed(self, store: Store) -> None:
        assert not store.revoke("nobody", "", 1.0)
        assert not store.renew("nobody", b"PEM", "0a")
        assert store.members() == []

    def test_the_roster_is_sorted_by_name(self, store: Store) -> None:
        for index, name in enumerate(["b", "Z", "é", "a"]):
            store.invite(an_invitation(name, secret_hash=bytes([index]) * 32))
        assert [member.name for member in store.members()] == ["Z", "a", "b", "é"]

    def test_a_signing_key_comes_with_enrolment_stays_through_renewal_and_goes_with_revocation_and_a_new_token(
        self, store: Store
    ) -> None:
        store.invite(an_invitation())
        signed = dataclasses.replace(a_member(), signing_key=OTHER, signing_proof=HASH * 3)
        assert store.enrol(signed, HASH, 1.0)
        assert store.renew("north", b"PEM 2", "0b")
        member = store.member("north")
        assert member is not None
        assert (member.signing_key, member.signing_proof) == (OTHER, HASH * 3)
        assert store.members() == [member]
        store.invite(an_invitation(secret_hash=OTHER))
        assert store.enrol(dataclasses.replace(signed, signing_key=HASH), OTHER, 2.0)
        member = store.member("north")
        assert member is not None
        assert member.signing_key == HASH
        store.revoke("north", "left", 3.0)
        store.invite(an_invitation(secret_hash=bytes(32)))
        member = store.member("north")
        assert member is not None
        assert (member.signing_key, member.signing_proof) == (b"", b"")

    def test_the_member_list_comes_back_in_order_and_from_anywhere(self, store: Store) -> None:
        assert store.member_entries() == []
        entries = a_member_list("a", "b", "c", "d")
        store.append_member_entries(entries[:1])
        store.append_member_entries([])
        store.append_member_entries(entries[1:])
        assert store.member_entries() == entries
        assert store.member_entries(after=3) == entries[3:]
        assert store.member_entries(after=4) == []

    def test_the_member_list_has_no_gap_and_nothing_twice(self, store: Store) -> None:
        entries = a_member_list("a", "b", "c", "d")
        with pytest.raises(ValueError, match="continues at 0, not at 1"):
            store.append_member_entries(entries[1:])
        store.append_member_entries(entries[:2])
        for wrong in (entries[:1], entries[1:], entries[3:], [entries[2], entries[2]], [entries[3], entries[2]]):
            with pytest.raises(ValueError, match="continues at"):
                store.append_member_entries(wrong)
        assert store.member_entries() == entries[:2]

    # ---- secure sums ------------------------------------------------------------------------------------------------

    def test_statements_come_back_by_attempt_in_the_order_in_which_they_were_stored(self, store: Store) -> None:
        store.create_run(a_run(), a_checkpoint(0))
        assert store.statements("run-1", HASH) == []
        first = [a_statement(1, sender=""), a_statement(2), a_statement(3, OTHER)]
        store.append("run-1", [a_transition(1)], statements=first)
        store.append("run-1", [], statements=[a_statement(4), a_statement(2)])
        assert store.statements("run-1", HASH) == [*first[:2], a_statement(4), a_statement(2)]
        assert store.statements("run-1", OTHER) == [a_statement(3, OTHER)]
        assert store.statements("other", HASH) == []
        assert [item.sequence for item in store.transitions("run-1")] == [1]

    def test_forgetting_keeps_the_statements_of_one_attempt_and_of_other_runs(self, store: Store) -> None:
        for run_id in ("run-1", "run-2"):
            store.create_run(a_run(run_id), a_checkpoint(0, run_id))
            store.append(run_id, [], statements=[a_statement(1), a_statement(2, OTHER)])
        store.forget_statements("run-1", OTHER)
        assert store.statements("run-1", HASH) == []
        assert store.statements("run-1", OTHER) == [a_statement(2, OTHER)]
        store.forget_statements("run-1", b"")
        assert store.statements("run-1", OTHER) == []
        assert store.statements("run-2", HASH) == [a_statement(1)]

    def test_what_is_appended_together_is_stored_together_or_not_at_all(self, store: Store) -> None:
        store.create_run(a_run(), a_checkpoint(0))
        several = {"statements": [a_statement(1)], "results": [a_result(0)]}
        for transitions, checkpoint, changes in (
            ([a_transition(2)], None, {}),
            ([a_transition(1)], a_checkpoint(2), {}),
            ([a_transition(1)], a_checkpoint(1), {"results": [a_result(1)]}),
            ([a_transition(1)], a_checkpoint(1), {"results": [a_result(0), a_result(0)]}),
        ):
            with pytest.raises(ValueError, match="continues"):
                store.append("run-1", transitions, checkpoint, **{**several, **changes})
            assert list(store.transitions("run-1")) == []
            assert [item.version for item in store.checkpoints("run-1")] == [0]
            assert (store.statements("run-1", HASH), store.results()) == ([], [])
        store.append("run-1", [a_transition(1)], a_checkpoint(1), **several)
        assert (store.statements("run-1", HASH), store.results()) == ([a_statement(1)], [a_result(0)])

    def test_nothing_and_a_checkpoint_without_a_transition_are_refused(self, store: Store) -> None:
        store.create_run(a_run(), a_checkpoint(0))
        with pytest.raises(ValueError, match="nothing to append"):
            store.append("run-1", [])
        with pytest.raises(ValueError, match="nothing to append"):
            store.append("run-1", [], a_checkpoint(1), statements=[a_statement(1)])
        with pytest.raises(ValueError, match="no run other"):
            store.append("other", [], statements=[a_statement(1)])
        assert store.statements("run-1", HASH) == []

    def test_the_log_of_results_goes_on_over_all_runs_without_a_gap(self, store: Store) -> None:
        for run_id in ("run-1", "run-2"):
            store.create_run(a_run(run_id), a_checkpoint(0, run_id))
        assert store.results() == []
        with pytest.raises(ValueError, match="continues at 0, not at 1"):
            store.append("run-1", [], results=[a_result(1)])
        store.append("run-1", [], results=[a_result(0), a_result(1)])
        store.append("run-2", [], results=[a_result(2, "run-2")])
        with pytest.raises(ValueError, match="continues at 3, not at 2"):
            store.append("run-1", [], results=[a_result(2)])
        assert store.results() == [a_result(0), a_result(1), a_result(2, "run-2")]
        assert store.results(after=2) == [a_result(2, "run-2")]
        assert store.results(after=3) == []

    def test_a_participants_prekeys_replace_its_earlier_ones(self, store: Store) -> None:
        assert store.prekeys() == {}
        store.put_prekeys("north", b"first", b"s" * 64)
        store.put_prekeys("south", b"\0\xff", b"t" * 64)
        store.put_prekeys("north", b"second", b"u" * 64)
        assert store.prekeys() == {"north": (b"second", b"u" * 64), "south": (b"\0\xff", b"t" * 64)}

    # ---- refusals ---------------------------------------------------------------------------------------------------

    def test_refusals_are_counted_by_code_and_peer(self, store: Store) -> None:
        for code, peer in [("token-used", "x"), ("token-used", "x"), ("token-used", "y"), ("policy", "x")]:
            store.count_refusal(code, peer)
        assert store.refusals() == {("token-used", "x"): 2, ("token-used", "y"): 1, ("policy", "x"): 1}

    # ---- several at once --------------------------------------------------------------------------------------------

    def test_everything_is_there_for_whoever_opens_it_next(self, location: Any) -> None:
        first = self.open(location)
        first.create_run(a_run(), a_checkpoint(0))
        first.append("run-1", [a_transition(1)], a_checkpoint(1, state=(OTHER,)))
        first.invite(an_invitation())
        first.append_member_entries(a_member_list("a", "b"))
        first.append("run-1", [], statements=[a_statement(1)], results=[a_result(0)])
        first.put_prekeys("north", b"batch", HASH * 2)
        first.close()
        first.close()
        second = self.open(location)
        assert second.runs() == [a_run()]
        assert second.member_entries() == a_member_list("a", "b")
        assert second.statements("run-1", HASH) == [a_statement(1)]
        assert second.results() == [a_result(0)]
        assert second.prekeys() == {"north": (b"batch", HASH * 2)}
        assert list(second.transitions("run-1")) == [a_transition(1)]
        assert second.checkpoints("run-1") == [a_checkpoint(0), a_checkpoint(1, state=(OTHER,))]
        assert second.invitation("north", HASH) == an_invitation()
        second.close()

    @pytest.mark.parametrize("apart", [False, True], ids=["threads", "connections"])
    def test_one_token_raced_for_opens_for_one(self, location: Any, apart: bool) -> None:
        racers = 6
        stores = [self.open(location)]
        stores += [self.open(location) for _ in range(racers - 1)] if apart else stores * (racers - 1)
        for attempt in range(5):
            name, secret = f"site-{attempt}", bytes([attempt]) * 32
            stores[0].invite(an_invitation(name, secret))
            barrier = threading.Barrier(racers)

            def enrol(index: int, name: str = name, secret: bytes = secret, barrier: Any = barrier) -> bool:
                barrier.wait()
                return stores[index].enrol(a_member(name, pem=b"%d" % index), secret, 1.0)

            with concurrent.futures.ThreadPoolExecutor(racers) as pool:
                won = list(pool.map(enrol, range(racers)))
            assert sum(won) == 1
            member = stores[0].member(name)
            assert member is not None
            assert member.certificate_pem == b"%d" % won.index(True)
        for store in stores:
            store.close()

    def test_two_writers_never_tear_a_log(self, location: Any) -> None:
        stores = [self.open(location), self.open(location)]
        stores[0].create_run(a_run(), a_checkpoint(0))

        def write(index: int) -> int:
            wins = 0
            while (count := sum(1 for _ in stores[index].transitions("run-1"))) < 60:
                try:
                    stores[index].append("run-1", [a_transition(count + 1, body=f'"{index}"')])
                    wins += 1
                except ValueError:
                    continue
            return wins

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            wins = list(pool.map(write, range(2)))
        log = list(stores[0].transitions("run-1"))
        assert [item.sequence for item in log] == list(range(1, sum(wins) + 1))
        assert [sum(item.body == f'"{index}"' for item in log) for index in range(2)] == wins
        for store in stores:
            store.close()

    def test_refusals_counted_at_the_same_time_all_count(self, location: Any) -> None:
        stores = [self.open(location), self.open(location)]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda index: stores[index % 2].count_refusal("policy", "x"), range(40)))
        assert stores[0].refusals() == {("policy", "x"): 40}
        for store in stores:
            store.close()
