"""What a participant remembers beyond an attempt: kept small, never forgotten too early, back after a restart."""

from __future__ import annotations

import dataclasses
import functools

import pytest
from secure_world import Store, World

from privacy.secure_aggregation.context import Base, RoundContext
from privacy.secure_aggregation.errors import Refusal
from privacy.secure_aggregation.history import History
from privacy.secure_aggregation.memory import Note
from privacy.secure_aggregation.policy import MAX_REMEMBERED
from privacy.secure_aggregation.statements import Acceptance, Signed

SETTING = "[secure_aggregation] min_roster_change"


@functools.cache
def plan() -> RoundContext:
    return World(5).context()


def at(round_number: int, attempt: int = 1, **changes: object) -> RoundContext:
    return dataclasses.replace(plan(), round=round_number, attempt=attempt, **changes)  # type: ignore[arg-type]


def again(store: Store) -> History:
    found = History()
    for note in store.notes:
        assert found.restore(note)
    return found


def said(context: RoundContext, positions: range, *retired: RoundContext) -> list[Acceptance]:
    hashes = tuple(item.hash for item in retired)
    return [Acceptance(context.hash, item, bytes(32), bytes(32), hashes) for item in positions]


def reusable(history: History, context: RoundContext, acceptances: list[Acceptance]) -> bool:
    try:
        history.reuse(context, 0, acceptances)
    except Refusal as refusal:
        assert (refusal.code, refusal.setting) == ("update-may-be-revealed", "")
        return False
    return True


def test_notes_of_other_kinds_are_not_taken() -> None:
    assert not History().restore(Note("planned", bytes(32), b""))


def test_old_rosters_go_but_never_a_runs_last_place_in_time() -> None:
    history, store = History(), Store()
    store.change(history.attempted(at(7, run_id="run-0")))
    for number in range(1, 60):
        store.change(history.attempted(at(number)))
    for found in (history, again(store)):
        assert len(found.earlier) == MAX_REMEMBERED + 1
        assert (found.earlier[0].run_id, found.earlier[0].round) == ("run-0", 7)
        assert [item.round for item in found.earlier[1:]] == list(range(60 - MAX_REMEMBERED, 60))


def test_an_update_may_be_used_again_once_enough_keepers_have_erased_its_shares() -> None:
    history, store = History(), Store()
    first, second = at(1, 1), at(1, 2)
    store.change(history.enter(first, 0))
    numbers = first.numbers
    needed = numbers.keepers - numbers.threshold + numbers.corrupt + 1
    for found in (history, again(store)):
        assert not reusable(found, second, said(second, range(5)))
        assert not reusable(found, second, said(second, range(needed - 1), first))
        assert reusable(found, second, said(second, range(needed), first))
        assert not reusable(found, second, said(second, range(5), at(1, 9)))
        # Another training, another round, another run, or scoring: another update.
        for other in (
            at(1, 2, task_attempt=2),
            at(2),
            at(1, 2, run_id="run-2"),
            at(1, 2, purpose="evaluate"),
        ):
            assert reusable(found, other, said(other, range(5)))


def test_only_keepers_of_the_earlier_attempt_count() -> None:
    history = History()
    first = dataclasses.replace(at(1, 1), roster=plan().roster[:3])
    history.enter(first, 0)
    assert first.numbers.keepers - first.numbers.threshold + first.numbers.corrupt + 1 == 1
    second = at(1, 2)
    assert not reusable(history, second, said(second, range(3, 5), first))
    assert reusable(history, second, said(second, range(2, 5), first))


def test_a_spent_update_is_never_used_again() -> None:
    history, store = History(), Store()
    first, second = at(1, 1), at(1, 2)
    assert history.spend(first) == []  # it was never in it
    store.change(history.enter(first, 0))
    store.change(history.spend(first))
    assert history.spend(first) == []
    for found in (history, again(store)):
        assert not reusable(found, second, said(second, range(5), first))
    assert [note.kind for note in store.notes] == ["entered"]


def test_entries_go_with_their_round_and_not_with_another_run_or_training() -> None:
    history, store = History(), Store()
    for context in (at(1, 1), at(1, 2, task_attempt=2), at(1, 1, run_id="run-2"), at(2, run_id="run-3")):
        store.change(history.enter(context, 0))
    assert len(store.notes) == 4
    for found in (history, again(store)):
        back = at(1, 3)
        assert not reusable(found, back, said(back, range(5)))
    store.change(history.enter(at(2), 0))
    assert len(store.notes) == 3
    back = at(1, 1, run_id="run-2", task_attempt=1)
    assert not reusable(history, dataclasses.replace(back, attempt=2), said(back, range(5)))


def test_retired_attempts_are_said_in_their_round_only_and_pruned_after_it() -> None:
    history, store = History(), Store()
    for attempt in range(1, 80):
        store.change(history.retire(at(1, attempt)))
    for found in (history, again(store)):
        told = found.retired_in(at(1, 99))
        assert told == tuple(at(1, attempt).hash for attempt in range(16, 80))  # the latest 64
        assert found.retired_in(at(2)) == found.retired_in(at(1, run_id="run-2")) == ()
    store.change(history.retire(at(2)))
    assert len(store.notes) == 1
    for attempt in range(1, 300):
        store.change(history.retire(at(3, attempt)))
    assert len(store.notes) == 256
    assert again(store).retired_in(at(3)) == history.retired_in(at(3))


@pytest.mark.parametrize(
    ("before", "after", "least", "fine"),
    [
        (["01234"], ["01234"], 2, True),
        (["01234"], ["0123"], 2, False),
        (["0123"], ["01234"], 2, False),
        (["0123"], ["0124"], 2, True),
        (["01234"], ["012"], 2, True),
        (["01234"], ["012"], 3, False),
        (["01234"], ["0123"], 1, True),
        (["012", "345"], ["012", "34"], 2, False),
        (["012", "345"], ["345", "012"], 2, True),
        (["012", "345"], ["01", "2345"], 2, False),
        (["012345"], ["012", "345"], 2, True),
    ],
)
def test_sums_over_one_model_are_the_same_or_differ_by_enough(
    before: list[str], after: list[str], least: int, fine: bool
) -> None:
    history, store = History(), Store()
    store.change(history.publish(at(1), [frozenset(names) for names in before]))
    sets = [frozenset(names) for names in after]
    for found in (history, again(store)):
        for elsewhere in (at(2, base_digest=b"x" * 32), at(1, 2, run_id="run-2"), at(1, 2, purpose="evaluate")):
            found.check_sets(elsewhere, sets, least, SETTING)
        if fine:
            found.check_sets(at(1, 2), sets, least, SETTING)
            continue
        with pytest.raises(Refusal) as caught:
            found.check_sets(at(1, 2), sets, least, SETTING)
        assert (caught.value.code, caught.value.setting) == ("survivors-change", SETTING)


def test_published_sets_and_receipts_are_kept_in_bounded_number() -> None:
    history, store = History(), Store()
    for number in range(50):
        store.change(history.publish(at(number), [frozenset("012")]))
        receipt = Signed(bytes([number]), bytes(64))
        store.change(history.receipted(receipt))
        assert history.receipted(receipt) == []
    kinds = [note.kind for note in store.notes]
    assert (kinds.count("published"), kinds.count("receipt")) == (32, 32)
    assert again(store).receipted(Signed(bytes([49]), bytes(64))) == []


def paced(round_number: int, attempt: int = 1, *, base: int, training: int = 1, run: str = "run-1") -> RoundContext:
    """An attempt of an asynchronous run: this site's update is of the ``training`` of version ``base``."""
    mine = Base(base, training, bytes([base]) * 32)
    others = [Base(round_number - 1, 1, bytes([round_number - 1]) * 32)] * (len(plan().roster) - 1)
    return at(round_number, attempt, run_id=run, base_version=round_number - 1, bases=(mine, *others))


def test_an_update_may_be_summed_in_a_later_round_once_a_quorum_left_it_out() -> None:
    history, store = History(), Store()
    first, later = paced(3, base=1), paced(4, base=1)
    store.change(history.enter(first, 0))
    for found in (history, again(store)):
        assert not reusable(found, later, said(later, range(5)))
    assert history.spare(paced(3, 2, base=1)) == []
    store.change(history.spare(first))
    assert store.notes == []
    for found in (history, again(store)):
        assert reusable(found, later, said(later, range(5)))


def test_keepers_say_in_a_later_round_what_they_have_erased() -> None:
    history, store = History(), Store()
    first, later = paced(3, base=1), paced(5, base=1)
    store.change(history.retire(first))
    for number in range(3, 9):
        store.change(history.retire(paced(number, 2, base=1)))
    for found in (history, again(store)):
        assert first.hash in found.retired_in(later)
        assert first.hash not in found.retired_in(paced(5, base=1, run="run-2"))
        assert found.retired_in(at(5)) == (paced(5, 2, base=1).hash,), "synchronous rounds go by themselves"
    store.change(history.enter(first, 0))
    assert not reusable(history, later, said(later, range(5)))
    numbers = first.numbers
    needed = numbers.keepers - numbers.threshold + numbers.corrupt + 1
    assert reusable(history, later, said(later, range(needed), first))


def test_training_again_from_a_version_that_is_summed_gives_no_second_update() -> None:
    history, store = History(), Store()
    first = paced(6, base=4)
    store.change(history.enter(first, 0))
    store.change(history.spend(first))
    for found in (history, again(store)):
        for task in (paced(7, base=4), paced(7, base=4, training=2), paced(7, base=3), paced(9, base=2, training=5)):
            assert not reusable(found, task, said(task, range(5), first))
        # From a newer version, in another run; and once more in the same round, where the sums are compared.
        for task in (paced(7, base=5), paced(7, base=4, run="run-2"), paced(6, 2, base=4, training=2)):
            assert reusable(found, task, said(task, range(5)))
    # The next update of this site takes the place of the old one.
    store.change(history.enter(paced(8, base=7), 0))
    assert [note.kind for note in store.notes] == ["entered"]
    assert not reusable(again(store), paced(9, base=6), said(paced(9, base=6), range(5)))
