"""What is owed when a task is over: settled once, whatever crash came between, and shown until it is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from paying_site import DATA, KEY, NAME, PayingSite, said, task_id

from participant.actions import Abandon, Action, Finished, Push
from participant.store import TaskState
from privacy.accounting import epsilon
from privacy.accounting.accountant import FINE
from privacy.ledger import Phase, Receipt, SignedReceipt
from protos import session_pb2 as pb
from wire import RefusedError


@pytest.fixture
def site(tmp_path: Path) -> Iterator[PayingSite]:
    made = PayingSite(tmp_path)
    made.ready()
    yield made
    made.close()


class Killed(Exception):
    """The process dies here."""


def shown(actions: list[Action]) -> Receipt:
    """The budget receipt among what a site does, checked."""
    (message,) = said(actions, "budget")
    return Receipt.opened(SignedReceipt(message.body, message.signature), KEY.public, NAME)


# --- the ledger is settled --------------------------------------------------------------------------------------------


def test_killed_between_the_journals_row_and_the_ledgers_it_settles_at_the_next_start(
    site: PayingSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.hands_in()

    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(site.ledger, "settle", dies)
        with pytest.raises(Killed):
            site.receipt()
    site.restart()
    assert (site.state(), site.phase()) == (TaskState.RECEIPTED, Phase.CHARGED)
    actions = site.ready()
    assert site.phase() is Phase.SETTLED
    # What it couldn't say any more it says now: the coordinator has no receipt.
    assert shown(actions).round == 1


def test_a_receipt_that_comes_after_a_restart_settles_though_no_task_is_in_hand(site: PayingSite) -> None:
    site.hands_in()
    site.restart()
    (ready,) = said(site.ready(), "ready")
    assert list(ready.owed) == [task_id(0)], "it asks what became of it"
    assert shown(site.receipt()).round == 1
    assert (site.state(), site.phase()) == (TaskState.RECEIPTED, Phase.SETTLED)
    (ready,) = said(site.ready(), "ready")
    assert list(ready.owed) == []


def test_a_receipt_that_was_lost_with_the_connection_is_asked_for_and_the_task_is_not_given_up(
    site: PayingSite,
) -> None:
    site.hands_in()
    (ready,) = said(site.ready(), "ready")
    assert list(ready.owed) == [task_id(0)]
    site.receipt()
    assert site.agent.task_id == ""
    assert any(isinstance(action, Push) for action in site.trains(base=1))
    assert (site.state(), site.phase()) == (TaskState.RECEIPTED, Phase.SETTLED)


def test_what_was_settled_before_is_settled_once(site: PayingSite) -> None:
    site.hands_in()
    site.receipt()
    lines = site.ledger.book().count
    assert said(site.receipt(), "budget") == [] or site.ledger.book().count == lines
    site.restart()
    site.ready()
    assert site.ledger.book().count == lines


# --- the coordinator knows --------------------------------------------------------------------------------------------


def test_a_receipt_that_the_coordinator_lost_is_shown_again_with_each_connection_until_it_is_known(
    site: PayingSite,
) -> None:
    site.hands_in()
    first = shown(site.receipt())
    for _ in range(2):  # the coordinator died before it stored it, twice
        again = shown(site.ready())
        assert (again.lines, again.head, again.events) == (first.lines, first.head, first.events)
    (message,) = said(site.ready(), "budget")
    site.keeps(message)
    assert said(site.ready(), "budget") == []


def test_while_a_task_is_reserved_no_receipt_is_shown_and_with_the_next_one_it_comes(site: PayingSite) -> None:
    site.hands_in()
    site.receipt()
    site.asked(base=1)
    assert said(site.ready(), "budget") == []
    site.trains(base=1, attempt=2)
    assert shown(site.receipt(base=1, attempt=2)).round == 2


def test_with_the_end_of_the_run_it_waits_until_its_receipt_is_known(site: PayingSite) -> None:
    site.hands_in()
    (message,) = said(site.receipt(), "budget")
    assert site.finishes() == [], "the answer is on its way"
    (done,) = site.keeps(message)
    assert done == Finished("bench-1", 6, "completed")
    # Everything is known now: the next end is the end at once.
    assert site.finishes() == [done]


def test_a_coordinator_that_dies_at_the_end_is_shown_the_receipt_by_the_next_connection(site: PayingSite) -> None:
    site.hands_in()
    site.receipt()
    assert site.finishes() == []
    (message,) = said(site.ready(), "budget")
    assert site.finishes() == []
    assert isinstance(site.keeps(message)[0], Finished)


def test_an_end_that_comes_before_the_run_is_prepared_again_waits_for_that(site: PayingSite) -> None:
    site.hands_in()
    site.restart()
    site.agent.connected()
    assert site.finishes() == []
    (message,) = said(site.ready(), "budget")
    assert site.finishes() == []
    assert isinstance(site.keeps(message)[0], Finished)
    assert site.phase() is Phase.CHARGED


def test_what_nobody_wants_any_more_is_not_trained_to_the_end(site: PayingSite) -> None:
    """As the coordinator answers when a site asks what became of the task in hand."""
    site.asked()
    (ready,) = said(site.ready(), "ready")
    assert list(ready.owed) == [task_id(0)]
    assert site.receipt(code="task-closed") == [Abandon(task_id(0))]
    assert (site.state(), site.phase()) == (TaskState.DROPPED, Phase.RETURNED)


def test_a_receipt_that_is_refused_does_not_hold_up_the_end(site: PayingSite) -> None:
    site.hands_in()
    site.receipt()
    assert site.finishes() == []
    refused = pb.FromCoordinator(budget_known=pb.BudgetKnown(code="receipt-older"))
    assert isinstance(site.agent.received(refused)[0], Finished)


# --- the end of the run -----------------------------------------------------------------------------------------------


def test_when_the_run_is_over_nothing_stays_open_and_what_never_left_is_free(site: PayingSite) -> None:
    site.asked()
    actions = site.finishes("stopped")
    assert actions[0] == Abandon(task_id(0))
    assert (site.state(), site.phase()) == (TaskState.DROPPED, Phase.RETURNED)
    assert site.store.open_tasks("bench-1") == []
    assert site.ledger.balance(DATA).committed == 0.0


def test_what_was_handed_in_when_the_run_ended_stays_paid_for(site: PayingSite) -> None:
    site.hands_in()
    site.finishes("stopped")
    assert (site.state(), site.phase()) == (TaskState.DROPPED, Phase.CHARGED)
    assert site.store.open_tasks("bench-1") == []
    assert site.ledger.balance(DATA).spent > 0.0


# --- asynchronous rounds: what is counted is what was released --------------------------------------------------------


def test_each_update_that_left_is_paid_for_in_full_whatever_became_of_it(site: PayingSite) -> None:
    """Accepted, refused as stale, called off behind its announcement: three releases, and no amplification."""
    site.hands_in(base=0)
    site.receipt(base=0)
    site.hands_in(base=1)
    site.receipt(base=1, code="update-stale")
    site.hands_in(base=2)
    cancel = pb.Cancel(task_id=task_id(2), reason="deadline")
    site.agent.received(pb.FromCoordinator(cancel=cancel))
    assert [site.phase(base) for base in range(3)] == [Phase.SETTLED, Phase.CHARGED, Phase.CHARGED]
    cost = site.ledger.book().tasks[task_id(0)].reserved
    assert [site.ledger.book().tasks[task_id(base)].events for base in range(3)] == [cost] * 3
    balance = site.ledger.balance(DATA)
    # The same events three times over, by an accountant of its own: nothing is taken off for being one of many.
    assert balance.spent == pytest.approx(epsilon(3 * list(cost), balance.delta, interval=FINE))


def test_what_was_called_off_before_it_was_trained_costs_nothing_and_is_paid_by_nobody_later(site: PayingSite) -> None:
    site.asked(base=0)
    assert site.phase() is Phase.RESERVED
    site.agent.received(pb.FromCoordinator(cancel=pb.Cancel(task_id=task_id(0), reason="deadline")))
    assert site.phase() is Phase.RETURNED
    # The coordinator calls it off again, and refuses it: nothing is refunded twice.
    site.receipt(code="task-closed")
    assert site.phase() is Phase.RETURNED
    assert site.ledger.balance(DATA).committed == 0.0


def test_a_charge_is_on_the_disk_before_the_update_is_pushed_and_is_never_refunded(site: PayingSite) -> None:
    (push,) = site.trains()
    assert isinstance(push, Push)
    assert site.phase() is Phase.CHARGED
    # The upload fails for good, and no byte may have arrived; nobody can know that.
    site.agent.undeliverable(task_id(0), RefusedError("blob-not-expected", "too late"))
    for code in ("task-closed", "update-stale", "update-norm"):
        site.receipt(code=code)
    assert site.phase() is Phase.CHARGED


def test_the_same_task_given_again_after_it_lapsed_is_the_same_release(site: PayingSite) -> None:
    site.hands_in()
    for _ in range(2):
        site.restart()
        site.ready()
        (push,) = [action for action in site.asked() if isinstance(action, Push)]
        assert push.digest == bytes([1, 0]) * 16
    site.agent.pushed(task_id(0))
    site.receipt()
    assert [task.phase for task in site.ledger.book().tasks.values()] == [Phase.SETTLED]
    assert sum(event.count for event in site.ledger.balance(DATA).events) == 4, "the steps of one round"
