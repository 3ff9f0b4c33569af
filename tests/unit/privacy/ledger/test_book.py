"""The ledger's rules: nothing is spent unseen, nothing is overspent, and a changed line is named."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import GaussianEvent, Unit, epsilon
from privacy.ledger import Book, BudgetError, JobInfo, LedgerError, SignedEntry
from privacy.secure_aggregation.keys import SigningKey
from privacy.transcript import decode, encode

KEY = SigningKey(bytes(range(32)))
JOB = JobInfo(run_id="flu-1", round=3, coordinator="flu.example:7600", plan_hash=bytes(32), model="ab" * 32)
DELTA = 1e-5


def cost(sigma: float = 2.0, count: int = 1) -> list[GaussianEvent]:
    return [GaussianEvent(noise_multiplier=sigma, sampling_rate=0.1, count=count)]


class Ledger:
    """A book and the lines it was written with."""

    def __init__(self, budget: float = 1.0) -> None:
        self.book = Book("ward-a", KEY.public)
        self.lines: list[SignedEntry] = []
        self.do(self.book.open_dataset("scans", records=1_000, unit=Unit.RECORD, epsilon=budget, delta=DELTA))

    def do(self, line: tuple[str, dict[str, Any]] | None) -> None:
        if line is not None:
            self.lines.append(self.book.line(KEY, 1_000.0 - len(self.lines), *line))  # a clock that goes back

    def again(self) -> Book:
        book = Book("ward-a", KEY.public)
        book.follow(self.lines)
        return book


def spent() -> Ledger:
    ledger = Ledger()
    for task in ("t1", "t2", "t3"):
        ledger.do(ledger.book.reserve(task, "scans", JOB, cost()))
    ledger.do(ledger.book.charge("t1"))
    ledger.do(ledger.book.settle("t1", cost(3.0)))
    ledger.do(ledger.book.charge("t2"))
    ledger.do(ledger.book.give_back("t3"))
    ledger.do(ledger.book.open_dataset("scans", records=1_100, unit=Unit.RECORD, epsilon=2.0, delta=1e-6))
    return ledger


def test_what_is_committed_counts_and_what_was_given_back_does_not() -> None:
    ledger = Ledger()
    book = ledger.book
    ledger.do(book.reserve("t1", "scans", JOB, cost(count=4)))
    reserved = book.balance("scans")
    assert reserved.spent == 0.0
    assert reserved.committed == pytest.approx(epsilon(cost(count=4), DELTA))
    ledger.do(book.charge("t1"))
    assert book.balance("scans").spent == reserved.committed
    ledger.do(book.settle("t1", cost(4.0, 4)))
    assert book.balance("scans").spent == pytest.approx(epsilon(cost(4.0, 4), DELTA))
    ledger.do(book.reserve("t2", "scans", JOB, cost()))
    ledger.do(book.give_back("t2"))
    assert book.balance("scans").tasks == 1
    assert ledger.again().balance("scans") == book.balance("scans")


def test_a_task_that_would_overspend_is_refused_with_its_numbers() -> None:
    ledger = Ledger(budget=1.0)
    ledger.do(ledger.book.reserve("t1", "scans", JOB, cost(count=10)))
    with pytest.raises(BudgetError) as caught:
        ledger.book.reserve("t2", "scans", JOB, cost(1.0, 100))
    error = caught.value
    assert error.code == "budget-exhausted"
    figures = error.figures
    before, after = epsilon(cost(count=10), DELTA), epsilon([*cost(count=10), *cost(1.0, 100)], DELTA)
    assert figures == pytest.approx(
        {"needed": after - before, "budget": 1.0, "spent": 0.0, "reserved": before, "left": 1.0 - before}
    )
    for part in ("scans", "round 3 of run flu-1", "the budget is 1", *(f"{figures[name]:.4g}" for name in figures)):
        assert part in error.message
    assert "budget set" in error.hint
    assert "t2" not in ledger.book.tasks


def test_the_last_of_a_budget_can_be_spent() -> None:
    whole = epsilon(cost(count=7), DELTA)
    ledger = Ledger(budget=whole)
    for task in range(7):
        ledger.do(ledger.book.reserve(f"t{task}", "scans", JOB, cost()))
    with pytest.raises(BudgetError):
        ledger.book.reserve("t7", "scans", JOB, cost())


def test_repeating_changes_nothing() -> None:
    ledger = Ledger()
    book = ledger.book
    assert book.open_dataset("scans", records=1_000, unit=Unit.RECORD, epsilon=1.0, delta=DELTA) is None
    ledger.do(book.reserve("t1", "scans", JOB, cost()))
    assert book.reserve("t1", "scans", JOB, cost()) is None
    ledger.do(book.charge("t1"))
    assert book.charge("t1") is None
    ledger.do(book.settle("t1"))
    assert book.settle("t1") is None
    assert book.charge("t1") is None
    assert book.reserve("t1", "scans", JOB, cost()) is None
    assert book.give_back("unknown") is None


@pytest.mark.parametrize(
    ("what", "code"),
    [
        (lambda book: book.charge("t9"), "task-unknown"),
        (lambda book: book.charge("t3"), "task-order"),
        (lambda book: book.settle("t2", cost(1.9)), "settle-more"),
        (lambda book: book.settle("t2", cost(2.0, 2)), "settle-more"),
        (lambda book: book.settle("t2", []), "settle-more"),
        (lambda book: book.settle("t2", [*cost(2.0), *cost(9.0)]), "settle-more"),
        (lambda book: book.reserve("t1", "scans", JOB, cost(3.0)), "task-changed"),
        (lambda book: book.reserve("t1", "scans", JOB, cost(0.1)), "task-changed"),
        (lambda book: book.reserve("t2", "scans", dataclasses.replace(JOB, model="cd" * 32), cost()), "task-changed"),
        (lambda book: book.reserve("t2", "scans", dataclasses.replace(JOB, coordinator="x"), cost()), "task-changed"),
        (lambda book: book.reserve("t9", "scans", JOB, []), "reserve-nothing"),
        (lambda book: book.settle("t3"), "task-order"),
        (lambda book: book.give_back("t2"), "task-order"),
        (lambda book: book.give_back("t1"), "task-order"),
        (lambda book: book.reserve("t2", "scans", JOB, cost(5.0)), "task-changed"),
        (lambda book: book.reserve("t9", "letters", JOB, cost()), "dataset-unknown"),
        (lambda book: book.balance("letters"), "dataset-unknown"),
        (
            lambda book: book.open_dataset("scans", records=9, unit=Unit.PARTICIPANT, epsilon=1.0, delta=DELTA),
            "unit-changed",
        ),
        (
            lambda book: book.open_dataset("scans", records=10**6, unit=Unit.RECORD, epsilon=1.0, delta=DELTA),
            "delta-too-large",
        ),
        (lambda book: book.open_dataset("x", records=9, unit=Unit.RECORD, epsilon=0.0, delta=DELTA), "epsilon-invalid"),
        (lambda book: book.line(SigningKey.generate(), 0.0, "charge", {"task": "t2"}), "ledger-foreign"),
    ],
)
def test_what_contradicts_the_ledger_is_refused(what: Any, code: str) -> None:
    with pytest.raises(LedgerError) as caught:
        what(spent().book)
    assert caught.value.code == code


def test_another_key_or_another_site_cannot_read_it() -> None:
    lines = spent().lines
    for book in (Book("ward-a", SigningKey.generate().public), Book("ward-b", KEY.public)):
        with pytest.raises(LedgerError) as caught:
            book.follow(lines)
        assert "line 0" in caught.value.message


def test_a_settled_task_pays_for_no_other_release() -> None:
    """What was settled stays bound to what was reserved: less noise under the same name is another release."""
    ledger = Ledger()
    ledger.do(ledger.book.reserve("t1", "scans", JOB, cost(2.0)))
    ledger.do(ledger.book.charge("t1"))
    ledger.do(ledger.book.settle("t1", cost(5.0)))
    assert ledger.book.reserve("t1", "scans", JOB, cost(2.0)) is None
    with pytest.raises(LedgerError, match="something else"):
        ledger.book.reserve("t1", "scans", JOB, cost(0.2))


def test_what_was_given_back_may_be_reserved_anew_at_another_cost() -> None:
    ledger = Ledger()
    for sigma in (2.0, 3.0):
        ledger.do(ledger.book.reserve("t1", "scans", JOB, cost(sigma)))
        if sigma == 2.0:
            ledger.do(ledger.book.give_back("t1"))
    assert ledger.book.events("scans") == cost(3.0)


@pytest.mark.parametrize(
    ("final", "fits"),
    [
        ([(2.0, 2), (4.0, 1)], True),
        ([(4.0, 3)], True),
        ([(4.0, 1)], True),
        ([(3.0, 2), (3.9, 1)], False),
        ([(2.0, 3)], False),
        ([(1.9, 1)], False),
        ([(4.0, 4)], False),
    ],
)
def test_a_settlement_is_matched_release_by_release(final: list[tuple[float, int]], fits: bool) -> None:
    ledger = Ledger(budget=50.0)
    ledger.do(ledger.book.reserve("t1", "scans", JOB, [*cost(4.0), *cost(2.0, 2)]))
    ledger.do(ledger.book.charge("t1"))
    events = [event for sigma, count in final for event in cost(sigma, count)]
    if fits:
        before = ledger.book.balance("scans").spent
        ledger.do(ledger.book.settle("t1", events))
        assert ledger.book.balance("scans").spent <= before + 1e-9
        return
    with pytest.raises(LedgerError) as caught:
        ledger.book.settle("t1", events)
    assert caught.value.code == "settle-more"


@pytest.mark.parametrize(
    ("final", "fits"),
    [
        ([(2.0, 4)], True),  # four releases that together reveal what the reserved one does
        ([(1.0, 1)], True),
        ([(2.0, 3), (8.0, 16)], True),
        ([(2.0, 4), (100.0, 1)], False),
        ([(0.99, 1)], False),
    ],
)
def test_releases_without_sampling_are_compared_by_what_they_reveal_together(
    final: list[tuple[float, int]], fits: bool
) -> None:
    ledger = Ledger(budget=50.0)
    ledger.do(ledger.book.reserve("t1", "scans", JOB, [GaussianEvent(noise_multiplier=1.0)]))
    ledger.do(ledger.book.charge("t1"))
    before = ledger.book.balance("scans").spent
    events = [GaussianEvent(noise_multiplier=sigma, count=count) for sigma, count in final]
    if fits:
        ledger.do(ledger.book.settle("t1", events))
        assert ledger.book.balance("scans").spent <= before + 1e-9
        return
    with pytest.raises(LedgerError) as caught:
        ledger.book.settle("t1", events)
    assert caught.value.code == "settle-more"


def test_lines_that_only_the_site_itself_could_have_written_are_held_to_the_rules_too() -> None:
    plain = [event.plain() for event in cost(1.0)]
    opened = dict(decode(spent().lines[0].body))  # type: ignore[call-overload]
    for kind, fields in (
        ("settle", {"task": "t2", "events": plain}),
        ("charge", {"task": "t9"}),
        ("give-back", {"task": "t2"}),
        ("open", {name: opened[name] for name in ("dataset", "records", "unit", "epsilon", "delta")}),
        ("budget", {"dataset": "letters", "records": 1, "epsilon": "0x1p0", "delta": "0x1p-20"}),
        ("budget", {"dataset": "scans", "records": 1, "epsilon": 7, "delta": "0x1p-20"}),
    ):
        ledger = spent()
        number, before = ledger.book.count, ledger.book.balance("scans")
        with pytest.raises(LedgerError) as caught:
            ledger.book.line(KEY, 0.0, kind, fields)
        assert (caught.value.code, caught.value.line) == ("ledger-broken", number)
        assert (ledger.book.count, ledger.book.balance("scans")) == (number, before)


def test_a_clock_that_goes_back_is_written_down_and_decides_nothing() -> None:
    ledger = spent()  # each line is a second before the one before it
    assert ledger.book.backwards == list(range(1, len(ledger.lines)))
    steady = Book("ward-a", KEY.public)
    line = steady.open_dataset("scans", records=9, unit=Unit.RECORD, epsilon=1.0, delta=DELTA)
    assert line is not None
    steady.line(KEY, 5.0, *line)
    line = steady.reserve("t1", "scans", JOB, cost())
    assert line is not None
    steady.line(KEY, 5.0, *line)
    assert steady.backwards == []
    assert steady.tasks["t1"].at_s == 5.0


def test_a_copy_stays_as_it_is() -> None:
    ledger = spent()
    copy = ledger.book.copy()
    before = copy.balance("scans")
    ledger.do(ledger.book.reserve("t8", "scans", JOB, cost()))
    ledger.do(ledger.book.settle("t2"))
    assert copy.balance("scans") == before
    assert "t8" not in copy.tasks
    assert (copy.count, copy.head) != (ledger.book.count, ledger.book.head)
    copy.follow(ledger.lines[copy.count :])
    assert copy.balance("scans") == ledger.book.balance("scans")


def test_an_unknown_data_set_is_told_from_the_known_ones() -> None:
    for book, hint in ((spent().book, "scans"), (Book("ward-a", KEY.public), "none yet")):
        with pytest.raises(LedgerError) as caught:
            book.reserve("t9", "letters", JOB, cost())
        assert "letters" in caught.value.message
        assert hint in caught.value.hint


def test_errors_survive_the_way_out_of_a_worker() -> None:
    ledger = Ledger(budget=0.1)
    with pytest.raises(BudgetError) as caught:
        ledger.book.reserve("t1", "scans", JOB, cost(count=50))
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is BudgetError
    assert (again.code, again.message, again.hint, again.figures, again.exit_code) == (
        "budget-exhausted",
        caught.value.message,
        caught.value.hint,
        caught.value.figures,
        4,
    )


def test_every_byte_of_every_line_is_held() -> None:
    lines = spent().lines
    for number, line in enumerate(lines):
        for place in range(0, len(line.body), 7):
            body = bytearray(line.body)
            body[place] ^= 1
            changed = [*lines[:number], SignedEntry(bytes(body), line.signature), *lines[number + 1 :]]
            with pytest.raises(LedgerError) as caught:
                Book("ward-a", KEY.public).follow(changed)
            assert f"line {number} " in caught.value.message


def test_fields_that_the_key_itself_changed_are_named_too() -> None:
    """Even who holds the site's key can't change a line in the middle: the next one names its hash."""
    lines = spent().lines
    for number, line in enumerate(lines[:-1]):
        table = dict(decode(line.body))  # type: ignore[call-overload]
        table["at"] = (5.0).hex()
        body = encode(table)
        changed = [*lines[:number], SignedEntry(body, KEY.sign(body)), *lines[number + 1 :]]
        with pytest.raises(LedgerError) as caught:
            Book("ward-a", KEY.public).follow(changed)
        assert f"line {number + 1} " in caught.value.message


def test_lines_that_are_missing_swapped_or_there_twice() -> None:
    lines = spent().lines
    for changed in (lines[1:], [lines[0], *lines[2:]], [*lines[:2], lines[3], lines[2]], [*lines, lines[-1]]):
        with pytest.raises(LedgerError):
            Book("ward-a", KEY.public).follow(changed)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["reserve", "charge", "settle", "give_back"]), st.integers(0, 4), st.booleans()),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS)
def test_spent_is_never_below_the_truth(operations: list[tuple[str, int, bool]]) -> None:
    """Whatever is done and wherever a crash cuts it off: the ledger counts all that may have left."""
    ledger = Ledger(budget=100.0)
    left: dict[str, list[GaussianEvent]] = {}
    for kind, number, crash in operations:
        task = f"t{number}"
        try:
            if kind == "reserve":
                ledger.do(ledger.book.reserve(task, "scans", JOB, cost(2.0)))
            elif kind == "charge":
                ledger.do(ledger.book.charge(task))
                left.setdefault(task, cost(2.0))  # from here on the result may be out
            elif kind == "settle":
                ledger.do(ledger.book.settle(task, cost(3.0)))
                if task in left:
                    left[task] = cost(3.0)
            else:
                ledger.do(ledger.book.give_back(task))
        except LedgerError:
            pass
        if crash:
            ledger.book = ledger.again()
        truth = epsilon([event for events in left.values() for event in events], DELTA, interval=1e-3)
        balance = ledger.book.balance("scans", interval=1e-3)
        assert balance.spent >= truth - 1e-9
        assert balance.committed >= balance.spent
