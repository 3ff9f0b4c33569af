"""Rounds whose updates are summed securely: the same rounds, another way for the updates to come in.

An attempt at a secure sum (``privacy.secure_aggregation``) runs beside the training. It may fail with a named reason;
the round then makes another attempt, with fresh masks, over the updates that the participants have kept, or over new
ones where the old ones may be known in a sum already. Only when a sum is revealed is the round sealed and merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from coordinator.rounds.effects import (
    BeginMerge,
    BeginUnmask,
    CancelTask,
    Decision,
    Line,
    Revealed,
    SendReceipt,
    SendStatement,
    WakeAt,
    merge_order,
)
from coordinator.rounds.facts import (
    ATOM_INCOMPLETE,
    AttemptFailed,
    EvaluationClosed,
    Excuse,
    FinishReason,
    RoundSealed,
    SeatOpened,
    SumRevealed,
)
from coordinator.rounds.machine import SynchronousRounds
from coordinator.rounds.proposals import Proposals, left_out
from coordinator.rounds.state import Round, RunState
from coordinator.rounds.sums import ResultLog, attempt_opened, opened_by, respenders, sum_revealed
from coordinator.rounds.tasks import away_text, seat_task
from coordinator.rounds.waiting import merging, needs, pausing, sentences, under_way
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.coordinator import Attempt, Failed, Record, Tell, Unmask
from privacy.secure_aggregation.coordinator import Decision as AttemptDecision
from privacy.secure_aggregation.coordinator import WakeAt as AttemptWake
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import MemberList
from privacy.secure_aggregation.statements import (
    Plan,
    Signed,
)
from wire import RefusedError, RunPlan

_CLOCKS_S: Final = 60.0  # by which a participant's clock may be ahead of ours
_LONGEST_PAUSE_S: Final = 600.0


class SecureRounds(SynchronousRounds):
    """The rounds of one run whose plan asks for secure aggregation.

    Args:
        plan: The run's plan.
        state: What the log says so far.
        members: The federation's member list; set the attribute when it grows.
        key: The coordinator's signing key.
        step_s: Seconds that a quick answer of a participant is waited for.
        fewest_groups: With sums of groups: how many the merging rule needs.

    Attributes:
        results: The log of results.
    """

    def __init__(
        self,
        plan: RunPlan,
        state: RunState,
        *,
        members: MemberList,
        key: SigningKey,
        step_s: float,
        fewest_groups: int = 1,
    ) -> None:
        super().__init__(plan.run_id, plan.rounds, state)
        self.attempt: Attempt | None = None
        self.proposals = Proposals(plan, members, step_s=step_s)
        self._key = key
        self._step_s = step_s
        self._fewest_groups = fewest_groups
        self._respenders: set[str] = set()
        self.results = ResultLog(key)

    # ---- memory -----------------------------------------------------------------------------------------------------

    def restore(self, records: Iterable[Record], lines: Iterable[Line]) -> None:
        """Take back what the store holds: the open attempt's records and the log of results."""
        for line in lines:
            self.results.follow(line)
        stored = list(records)
        current = self.state.open_round()
        if current is None or current.revealed is not None or not self._open_attempt(current) or not stored:
            return
        context = RoundContext.parse(Plan.parse(stored[0].statement.body).context)
        self.attempt = self._make(context)
        self.attempt.replay(stored)
        self._respenders = respenders(stored)

    def offer(self, name: str, signed: Signed) -> None:
        """A participant's unused prekeys.

        Raises:
            RefusedError: the sender isn't a certified member, or a signature doesn't hold.
        """
        self.proposals.offer(name, signed)

    @property
    def members(self) -> MemberList:
        """The federation's member list."""
        return self.proposals.members

    @members.setter
    def members(self, members: MemberList) -> None:
        self.proposals.members = members

    # ---- commands ---------------------------------------------------------------------------------------------------

    def resume(self, now_s: float) -> Decision:
        """What is owed after a restart."""
        current = self.state.open_round()
        if current is None or current.sealed or self.state.finished is not None:
            return super().resume(now_s)
        decision = Decision()
        if current.revealed is not None:
            self._settle(decision, current, now_s)
        elif self.attempt is not None:
            self._take(decision, self.attempt.resume(now_s), now_s)
        else:
            self._try_again(decision, current, now_s)
        return decision

    def available(self, name: str, now_s: float) -> Decision:
        """A participant is connected and ready, and its prekeys are here."""
        self._available.add(name)
        self.away.pop(name, None)
        return self._come(name, now_s)

    def _come(self, name: str, now_s: float) -> Decision:
        """A participant that takes part is there (again)."""
        decision = Decision()
        current = self.state.open_round()
        self._remind(decision, name)
        if current is None or current.sealed or self.state.finished is not None:
            self._advance(decision, now_s)
            return decision
        attempt = self.attempt
        if attempt is None:
            self._try_again(decision, current, now_s)
        elif name in attempt.context.names and name not in left_out(current):
            self._seat(decision, current, name, attempt)
            self._take(decision, attempt.back(name, now_s), now_s)
        return decision

    def absent(self, name: str, until_s: float, reason: str, now_s: float, *, working: bool) -> Decision:
        """A connected participant takes no tasks until a time, by its own word: the sum is made without it.

        Unless it goes on ``working``: then it is in the sum, and in further attempts at it with the same updates.
        """
        decision = Decision()
        self._available.add(name)
        self.away[name] = until_s
        current = self.state.open_round()
        if current is None or current.sealed or working or not self._is_pending(current, name):
            return decision
        text = away_text(name, reason)
        self._excuse(decision, current, name, "away", reason, text)
        if self.attempt is not None:
            self._take(decision, self.attempt.excuse(name, text, now_s), now_s)
        return decision

    def recall(self, name: str, now_s: float) -> Decision:
        """A participant that takes no further tasks is connected again: it is told what it missed and owes."""
        current = self.state.open_round()
        if current is not None and not current.sealed and self._is_pending(current, name):
            return self._come(name, now_s)
        decision = Decision()
        self._remind(decision, name)
        return decision

    def gone(self, name: str, outcome: Excuse, message: str, now_s: float) -> Decision:
        """A participant went away. It may come back: the attempt goes on without it as far as it can."""
        decision = Decision()
        self._forget(name)
        current = self.state.open_round()
        if current is None or current.sealed:
            return decision
        if outcome in ("left", "revoked") and self._is_pending(current, name):
            self._excuse(decision, current, name, outcome, outcome, message)
        if self.attempt is not None:
            self._take(decision, self.attempt.gone(name, now_s), now_s)
        return decision

    def rejected(self, name: str, task_id: str, outcome: Excuse, error: RefusedError, now_s: float) -> Decision:
        """A participant would not, or could not, do the task: the sum is made without it."""
        decision = Decision()
        current = self.state.open_round()
        if current is not None and not current.sealed and self._holds(current, name, task_id):
            self._excuse(decision, current, name, outcome, error.code, error.message)
            if self._out_of_budget(current):
                self._finish(decision, "out of budget", now_s)
            elif self.attempt is not None:
                reason = f"{name} {outcome} the task: {error.code}: {error.message}"
                self._take(decision, self.attempt.excuse(name, reason, now_s), now_s)
        return decision

    def said(self, name: str, signed: Signed, now_s: float) -> Decision:
        """A participant's statement in the open attempt.

        Raises:
            RefusedError: it breaks a rule of the protocol; nothing has changed.
        """
        decision = Decision()
        if self.attempt is None:
            return decision
        try:
            part = self.attempt.receive(name, signed, now_s)
        except SecureAggregationError as error:
            raise RefusedError(error.code, error.message, error.hint) from None
        self._respenders |= respenders(part.records)
        self._take(decision, part, now_s)
        return decision

    def tick(self, now_s: float) -> Decision:
        """Time has passed."""
        decision = Decision()
        current = self.state.open_round()
        if current is None:
            self._advance(decision, now_s)
        elif not current.sealed and self.state.finished is None:
            if self.attempt is not None:
                self._take(decision, self.attempt.tick(now_s), now_s)
            elif current.revealed is None:
                self._try_again(decision, current, now_s)
        return decision

    def unmasked(self, order: BeginUnmask, found: Revealed, now_s: float) -> Decision:
        """The sum that :class:`BeginUnmask` asked for is on disk."""
        decision = Decision()
        current = self.state.open_round()
        if current is None or self.attempt is None or current.number != order.round or current.revealed is not None:
            return decision
        groups = [group for group in found.groups if not group.reason]
        if found.groups and current.purpose == "train" and len(groups) < self._fewest_groups:
            few = f"{len(groups)} groups are left, and the merging rule needs {self._fewest_groups} to keep its promise"
            return self.implausible(order, SecureAggregationError("merge-tolerance", few), now_s)
        self._record(decision, sum_revealed(order, found, self.attempt))
        in_vain = self.attempt.in_vain()
        self.attempt.end()
        self.attempt = None
        self._settle(decision, current, now_s, in_vain)
        return decision

    def implausible(self, order: BeginUnmask, error: SecureAggregationError, now_s: float) -> Decision:
        """The sum can't be that of well-formed updates: someone uploaded garbage, and the sum is known all the same."""
        decision = Decision()
        current = self.state.open_round()
        if current is not None and self.attempt is not None and current.number == order.round:
            failed = Failed(error.code, error.message, frozenset(), spent=True)
            self._take(decision, self.attempt.abort(error.code, error.message, now_s), now_s, failed)
        return decision

    def _finish(self, decision: Decision, reason: FinishReason, now_s: float) -> None:
        """The run ends: an open attempt is given up, so that nothing of it is ever revealed."""
        if self.attempt is not None:
            why = "the operator stopped the run" if reason == "stopped" else f"the run is {reason}"
            effects = self.attempt.abort(reason.replace(" ", "-"), why, now_s)
            context = self.attempt.context.hash
            self.attempt = None
            decision.records += [(context, record) for record in effects.records]
            decision.effects += [
                SendStatement(participant=item.name, statement=item.statement)
                for item in effects.effects
                if isinstance(item, Tell)
            ]
        super()._finish(decision, reason, now_s)

    # ---- what the machine says of itself --------------------------------------------------------------------------

    def waiting_for(self) -> str:
        """What has to happen next, for a person; and who is there in vain."""
        current = self.state.open_round()
        if self.state.finished is not None:
            return super().waiting_for()
        # Before the first round everyone is a newcomer.
        idle = self.proposals.sitting_out(self.state, frozenset(self._there())) if self.state.rounds else ""
        if current is None:
            return sentences(super().waiting_for(), self._blocked(), idle)
        if current.sealed:
            return sentences(merging(current), idle)
        if self.attempt is None:
            return sentences(pausing(current), self._blocked(), idle)
        return sentences(under_way(current, self.attempt), idle)

    def uploads_wanted(self, name: str) -> bool:
        """Whether a masked update of this participant may come now."""
        return self.attempt is not None and self.attempt.awaits_upload(name)

    def has_upload(self, digest: bytes) -> bool:
        """Whether this is a masked update of the open attempt, or of the last sum: it may be brought again."""
        return digest in self.uploads_held() or any(digest.hex() in item.uploads for item in self.revealed(1))

    def in_hand(self, context: bytes) -> bool:
        """Whether this is the open attempt."""
        return self.attempt is not None and self.attempt.context.hash == context

    def upload_bytes(self) -> int:
        """Bytes of a masked update of the open attempt; 0 without one."""
        if self.attempt is None:
            return 0
        context = self.attempt.context
        return context.encoding.upload_bytes(context.dimension, context.layout)

    def public_blobs(self, rounds: int) -> set[bytes]:
        """Uploads and records of the last rounds with a revealed sum, for whoever wants to recompute it."""
        found: set[bytes] = set()
        for item in self.revealed(rounds):
            found.update((*item.blobs(), *item.means()))
        return found

    def revealed(self, rounds: int) -> list[SumRevealed]:
        """The last rounds' revealed sums, oldest first."""
        return [item.revealed for item in self.state.rounds if item.revealed is not None][-rounds:]

    def uploads_held(self) -> set[bytes]:
        """Digests of the open attempt's uploads."""
        return set(self.attempt.digests().values()) if self.attempt is not None else set()

    # ---- inside: attempts -------------------------------------------------------------------------------------------

    def _open_attempt(self, current: Round) -> bool:
        return bool(current.attempts) and current.attempts[-1].failed is None

    def _make(self, context: RoundContext) -> Attempt:
        return Attempt(context, self.members, self._key, step_s=self._step_s, deadline_s=self.spec.deadline_s)

    def _roster(self, cohort: Iterable[str], now_s: float, current: Round | None = None) -> tuple[str, ...]:
        return self.proposals.roster(self.state, current, frozenset(cohort), frozenset(self._there()), now_s)

    def _there(self) -> set[str]:
        """Who can be in an attempt now: who takes tasks, and who is at the open round's."""
        current = self.state.open_round()
        working = {name for name in self.away if current is not None and self._is_pending(current, name)}
        return self._ready() | working

    def _blocked(self) -> str:
        """Why no attempt can begin although participants are there."""
        if len(self._there()) < self.spec.min_participants or self._roster(self._there(), 0.0):
            return ""
        return needs(self.proposals.settings)

    def _begin(self, decision: Decision, current: Round, roster: tuple[str, ...], now_s: float) -> None:
        """Propose an attempt of the open round."""
        context = self.proposals.context(self.state, current, roster, now_s)
        self._record(decision, attempt_opened(context, now_s))
        self.attempt = self._make(context)
        self._respenders = set()
        present = self._there().intersection(roster) - left_out(current)
        for name in sorted(present):
            self._seat(decision, current, name, self.attempt)
        declined = {name for name, seat in current.seats.items() if seat.outcome not in ("pending", "done", "vanished")}
        self._take(decision, self.attempt.begin(present, now_s), now_s)
        for name in sorted(declined.intersection(roster)):
            if self.attempt is not None:
                seat = current.seats[name]
                self._take(decision, self.attempt.excuse(name, f"{name}: {seat.code}: {seat.message}", now_s), now_s)

    def _seat(self, decision: Decision, current: Round, name: str, attempt: Attempt) -> None:
        """Give a participant its task, with a seat if it has none yet."""
        seat = current.seats.get(name)
        number = attempt.context.task_attempt
        if seat is not None and seat.outcome in ("declined", "refused", "revoked") and seat.attempt >= number:
            return
        if seat is None or seat.attempt < number or seat.outcome in ("left", "away"):
            self._record(decision, SeatOpened(round=current.number, participant=name, attempt=number))
        decision.effects.append(self._task(current, name))

    def _take(self, decision: Decision, part: AttemptDecision, now_s: float, failed: Failed | None = None) -> None:
        """Take over what the attempt decided."""
        assert self.attempt is not None
        context = self.attempt.context.hash
        decision.records += [(context, record) for record in part.records]
        for effect in part.effects:
            if isinstance(effect, Tell):
                decision.effects.append(SendStatement(participant=effect.name, statement=effect.statement))
            elif isinstance(effect, AttemptWake):
                decision.effects.append(WakeAt(at_s=effect.at_s))
            elif isinstance(effect, Unmask):
                assert self.attempt is not None
                decision.effects.append(
                    BeginUnmask(
                        round=effect.context.round,
                        attempt=effect.context.attempt,
                        order=effect,
                        record=self.attempt.public_record(),
                    )
                )
            else:
                self._lose(decision, failed or effect, now_s)

    def _lose(self, decision: Decision, failed: Failed, now_s: float) -> None:
        """The attempt failed: note why, and try again at once the first time, then after growing pauses."""
        current = self.state.open_round()
        assert current is not None and self.attempt is not None
        # Those who can't go on are asked again with the training, and another seed; all updates of a sum then are new.
        unable = {name for name, seat in current.seats.items() if seat.outcome in ("declined", "refused")}
        context, out = self.attempt.context, unable | failed.excluded | left_out(current)
        willing = frozenset(position for position, name in enumerate(context.names) if name not in out)
        spent = failed.spent or bool(self._respenders) or not context.agrees(willing)
        self._record(
            decision,
            AttemptFailed(
                round=current.number,
                attempt=self.attempt.context.attempt,
                code=failed.code,
                message=failed.message,
                excluded=tuple(sorted(failed.excluded)),
                spent=spent,
                failed_s=now_s,
            ),
        )
        self.attempt = None
        self._try_again(decision, current, now_s)

    def _try_again(self, decision: Decision, current: Round, now_s: float) -> None:
        """Begin the next attempt of the open round, as soon as its pause is over and a roster is possible."""
        if (pause_s := self._pause_until(current)) > now_s:
            decision.effects.append(WakeAt(at_s=pause_s))
            return
        cohort = set(current.attempts[-1].opened.roster if current.attempts else current.seats)
        roster = self._roster(cohort.union(self._there()), now_s, current)
        if roster:
            self._begin(decision, current, roster, now_s)

    def _pause_until(self, current: Round) -> float:
        """When the next attempt of the open round may begin: at once the first time, then after growing pauses."""
        last = current.attempts[-1].failed if current.attempts else None
        if last is None:
            return 0.0
        pause_s = 0.0 if last.attempt == 1 else min(self._step_s * 2 ** (last.attempt - 2), _LONGEST_PAUSE_S)
        return last.failed_s + pause_s

    # ---- inside: rounds ---------------------------------------------------------------------------------------------

    def _cohort_for(self, cohort: list[str], now_s: float) -> list[str]:
        """The participants of the cohort that can be in a secure sum now, or nobody."""
        roster = self._roster(cohort, now_s)
        return sorted(self._ready().intersection(roster))

    def _opened(self, decision: Decision, current: Round, now_s: float) -> None:
        """A round is open: propose its first attempt instead of only handing out tasks."""
        self._try_again(decision, current, now_s)

    def _settle(self, decision: Decision, current: Round, now_s: float, in_vain: frozenset[str] = frozenset()) -> None:
        """The sum is known: receipts for all, and on to the merge, or to the end of a round of scoring."""
        assert current.revealed is not None
        for name in sorted(current.seats):
            seat = current.seats[name]
            task = self._task(current, name).task_id
            if seat.outcome == "done":
                decision.effects.append(SendReceipt(participant=name, task_id=task, accepted=True))
            elif seat.outcome == "pending":
                code, message = "late", "the sum was made without it"
                if name in in_vain:
                    code, message = ATOM_INCOMPLETE, "it was ready, but another one of its atom wasn't"
                self._excuse(decision, current, name, "late", code, message)
                decision.effects.append(CancelTask(participant=name, task_id=task, reason="late"))
        self._call_off(decision, current)
        if current.purpose == "train":
            self._record(decision, RoundSealed(round=current.number))
            decision.effects.append(self._merge_order(current))
            return
        self._log(decision, current, bytes(32))
        self._record(decision, EvaluationClosed(round=current.number, closed_s=now_s))
        self._advance(decision, now_s)

    def _merge_order(self, current: Round) -> BeginMerge:
        assert current.revealed is not None
        return merge_order(current.base_version, current.revealed)

    def committed(
        self, order: BeginMerge, digest: str, size: int, now_s: float, report: Mapping[str, Any] | None = None
    ) -> Decision:
        """The merge is on disk: the log of results gets its line in the same transaction."""
        current = self.state.open_round()
        log = Decision()
        if current is not None and current.sealed and current.number == order.round:
            self._log(log, current, bytes.fromhex(digest))
        decision = super().committed(order, digest, size, now_s, report)
        decision.lines = log.lines + decision.lines
        decision.effects = log.effects + decision.effects
        return decision

    def _log(self, decision: Decision, current: Round, model: bytes) -> None:
        line = self.results.append(current, model)
        decision.lines.append(line)
        for name in opened_by(current).roster:
            if name in self._available:
                decision.effects.append(SendStatement(participant=name, statement=line.statement))

    def _remind(self, decision: Decision, name: str) -> None:
        """Whoever was away when a sum was published is told that its update is in it, and of the round's end.

        Also before that end: a coordinator that was killed in between has told nobody, and when the next round opens,
        sites would give their tasks up as superseded.
        """
        last = self._remembered(name)
        if last is None:
            return
        decision.effects.append(
            SendReceipt(participant=name, task_id=seat_task(self.run_id, last, name), accepted=True)
        )
        if last.closed_s is not None and self.results.last is not None:
            decision.effects.append(SendStatement(participant=name, statement=self.results.last))

    def _remembered(self, name: str) -> Round | None:
        """The round of the last sum, where it holds an update of this participant."""
        last = next((item for item in reversed(self.state.rounds) if item.revealed is not None), None)
        return last if last is not None and name in last.done() else None
