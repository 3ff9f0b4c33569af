"""What is owed when a task is over: the ledger is settled, and the coordinator has seen what the run has cost.

Both are made good after a crash. The journal says which tasks the coordinator has taken; what of these the ledger has
charged and not settled is settled when a run begins. The coordinator says which receipt it has; a site that is ahead of
it shows another one, and doesn't end with the run before that has been answered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from participant.actions import Action, Finished, Say
from participant.budget import SiteBudget
from participant.store import ParticipantStore, TaskState
from protos import session_pb2 as pb

_log = logging.getLogger("fedloom.participant")


class Accounts:
    """A site's settled tasks and its budget's receipts.

    Args:
        store: The site's journal.
        budget: The site's privacy budget, if it keeps one.
        published: How many were asked for a round's secure sum and how many are in it; 0 where that isn't known.
    """

    def __init__(
        self, store: ParticipantStore, budget: SiteBudget | None, published: Callable[[int], tuple[int, int]]
    ) -> None:
        self._store = store
        self._budget = budget
        self._published = published
        self._known: tuple[int, bytes] | None = None
        self._told: tuple[int, bytes] | None = None
        self._held: Finished | None = None

    def connected(self) -> None:
        """A new connection: what was said on the one before may be lost."""
        self._known = self._told = self._held = None

    def catch_up(self) -> None:
        """Settle what the journal says was taken and the ledger doesn't: a crash came between the two."""
        for task_id in self._budget.charged() if self._budget is not None else ():
            record = self._store.get(task_id)
            if record is not None and record.state is TaskState.RECEIPTED:
                _log.info("task %s was accepted before a restart: its cost is settled now", task_id)
                self._settle(task_id)

    def taken(self, task_id: str) -> list[Action]:
        """The coordinator has a task's result: settle, and show what the run has cost so far."""
        return self._tell() if self._settle(task_id) and self._behind() else []

    def dropped(self, task_id: str) -> None:
        """Nobody wants a task's result."""
        if self._budget is not None:
            self._budget.dropped(task_id)

    def known(self, message: pb.BudgetKnown) -> list[Action]:
        """The coordinator says which receipt it has, by itself or as an answer."""
        answered, self._told = self._told is not None, None
        self._known = (message.lines, message.head)
        if message.code:
            _log.error("the coordinator refuses this site's budget receipt: %s", message.code)
        if self._budget is not None and not answered and self._behind() and self._budget.at_rest():
            return self._tell()
        held, self._held = self._held, None
        return [held] if held is not None else []

    def finished(self, action: Finished) -> list[Action]:
        """The run is over, as soon as the coordinator knows what it has cost."""
        if not self._behind():
            return [action]
        self._held = action
        return self._tell() if self._told is None else []

    def _settle(self, task_id: str) -> bool:
        if self._budget is None:
            return False
        round_number = self._budget.round_of(task_id)
        return self._budget.taken(task_id, *(self._published(round_number) if round_number else (0, 0)))

    def _behind(self) -> bool:
        """Whether the coordinator doesn't have the ledger's present state."""
        return self._budget is not None and self._budget.private and self._known != self._budget.position()

    def _tell(self) -> list[Action]:
        if self._budget is None or not self._budget.private:
            return []
        self._told = self._budget.position()
        receipt = self._budget.receipt()
        return [Say(pb.FromParticipant(budget=pb.BudgetReceipt(body=receipt.body, signature=receipt.signature)))]
