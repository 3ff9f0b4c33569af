"""The coordinator's side of one attempt at a secure sum: statements in, records and effects out.

The caller MUST make the records of a :class:`Decision` durable before it carries out the effects. The state is a fold
over the records (``book``); :meth:`Attempt.replay` gives it back after a crash, and :meth:`Attempt.owed` what a
participant that comes (back) must be sent. Every message may be sent twice.

Phases: *accepting* (plan out, shares come in) - *training* (delivery out) - *uploading* (freeze out) - *signing*
(survivors out) - *releasing* (quorum out) - *unmasking* - *ended*. A participant may drop in any of them; the sum is
then that of the others, or the attempt ends with a named reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from privacy.secure_aggregation.book import SPOKEN, Book
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.decisions import (
    Decision,
    Effect,
    Failed,
    GroupSum,
    Phase,
    Record,
    Tell,
    Unmask,
    WakeAt,
)
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.graph import publishable
from privacy.secure_aggregation.intake import NO_CONTEXT, is_news, may_doubt
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import MemberList
from privacy.secure_aggregation.signed import cleaned
from privacy.secure_aggregation.statements import (
    QUORUM,
    UPLOADS,
    Accepted,
    Delivery,
    Doubt,
    Excused,
    Freeze,
    Plan,
    Quorum,
    Refused,
    RoundStatement,
    Signed,
    Statement,
    Survivors,
    Upload,
    UploadReceipt,
    kind_of,
    positions_bytes,
)
from privacy.secure_aggregation.unmasking import group_sums, inconsistent, rebuild, unmask

__all__ = [
    "Attempt",
    "Decision",
    "Effect",
    "Failed",
    "GroupSum",
    "Phase",
    "Record",
    "Tell",
    "Unmask",
    "WakeAt",
    "group_sums",
]

_HEARD: Final[Mapping[str, type[RoundStatement]]] = {**SPOKEN, Doubt.KIND: Doubt}
_OVER: Final = ("unmasking", "ended")

# The answer to a doubt is a hundred times longer than the doubt; an honest keeper has one for each time it connects.
_MAX_DOUBTS: Final = 16


class Attempt:
    """One attempt.

    Args:
        context: What is proposed.
        members: The member list that it was made from.
        key: The coordinator's signing key.
        step_s: Seconds that a quick answer (accept, sign, release) is waited for, and a participant's return after our
            own restart.
        deadline_s: Seconds that training, and then the uploads, are waited for.
    """

    def __init__(
        self, context: RoundContext, members: MemberList, key: SigningKey, *, step_s: float, deadline_s: float
    ) -> None:
        self.context = context
        self._book = Book(context, step_s=step_s, deadline_s=deadline_s)
        self._members = members
        self._key = key
        self._step_s = step_s
        self._present: set[str] = set()
        self._missed: set[str] = set()
        self._missed_until_s = 0.0
        self._doubts: dict[str, int] = {}

    @property
    def phase(self) -> Phase:
        """Where the attempt is."""
        return self._book.phase

    @property
    def failed(self) -> Failed | None:
        """Why the attempt ended without a sum, if it did."""
        return self._book.failed

    # ---- commands ---------------------------------------------------------------------------------------------------

    def begin(self, present: Iterable[str], now_s: float) -> Decision:
        """Propose the plan to all of the roster that are there."""
        decision = Decision()
        self._present = set(present).intersection(self.context.names)
        plan = self._say(decision, Plan(self.context.canonical()), now_s)
        decision.effects += [Tell(name, plan) for name in sorted(self._present)]
        self._wake(decision)
        return decision

    def replay(self, records: Iterable[Record]) -> None:
        """Take stored records in, in order. Who is present isn't among them: call :meth:`back` for each."""
        for record in records:
            self._book.apply(record)

    def resume(self, now_s: float) -> Decision:
        """What is owed after a restart. Whoever isn't back yet is waited for, for a step at least."""
        decision = Decision()
        book = self._book
        if book.failed is not None:
            decision.effects.append(book.failed)
        elif book.phase == "unmasking":
            decision.effects.append(unmask(book, rebuild(book)))
        elif book.phase != "ended":
            self._missed = set(self.context.names) - self._present
            self._missed_until_s = now_s + self._step_s
            book.ends_s = max(book.ends_s, self._missed_until_s)
            self._advance(decision, now_s)
            self._wake(decision)
        return decision

    def back(self, name: str, now_s: float) -> Decision:
        """A participant of the roster is there (again): tell it what it may have missed."""
        decision = Decision()
        position = self.context.position(name)
        if position is None or self.phase == "ended":
            return decision
        self._present.add(name)
        self._missed.discard(name)
        decision.effects += [Tell(name, statement) for statement in self.owed(position)]
        return decision

    def gone(self, name: str, now_s: float) -> Decision:
        """A participant isn't there any more."""
        decision = Decision()
        if name in self._present:
            self._present.discard(name)
            self._advance(decision, now_s)
        return decision

    def excuse(self, name: str, reason: str, now_s: float) -> Decision:
        """A participant can't or won't do the task: do without its update, but keep it as a keeper of shares."""
        decision = Decision()
        position = self.context.position(name)
        if position is not None and self.phase in ("accepting", "training", "uploading"):
            self._say(decision, Excused(self.context.hash, position, cleaned(reason, 1000)), now_s)
            self._advance(decision, now_s)
        return decision

    def receive(self, name: str, signed: Signed, now_s: float) -> Decision:
        """A participant's statement.

        Raises:
            SecureAggregationError: The statement is refused; nothing has changed.
        """
        decision = Decision()
        position, opened = self._opened(name, signed)
        unread = isinstance(opened, Refused) and opened.context == NO_CONTEXT
        if opened.context != self.context.hash and not unread:
            return decision  # of an attempt that is over; its sender is told the present one when it comes back
        if self.phase in _OVER:
            return decision
        if isinstance(opened, Doubt):
            self._prove(decision, name, position, opened)
        news = is_news(self._book, self._members, position, opened)
        if news:
            self._record(decision, Record(name, signed, now_s))
        if isinstance(opened, Upload) and self.digests().get(position) == opened.digest:
            receipt = UploadReceipt(self.context.hash, position, opened.digest).signed(self._key)
            decision.effects.append(Tell(name, receipt))
        if news:
            self._advance(decision, now_s)
        return decision

    def tick(self, now_s: float) -> Decision:
        """Time has passed."""
        decision = Decision()
        if now_s >= self._missed_until_s:
            self._missed.clear()
        if self.phase not in _OVER:
            self._advance(decision, now_s)
            self._wake(decision)
        return decision

    def abort(self, code: str, message: str, now_s: float) -> Decision:
        """Give the attempt up."""
        decision = Decision()
        if self.phase != "ended":
            self._fail(decision, code, message, now_s)
        return decision

    def end(self) -> None:
        """The sum is committed."""
        self._book.phase = "ended"

    # ---- what others ask --------------------------------------------------------------------------------------------

    def awaits_upload(self, name: str) -> bool:
        """Whether a masked update of this participant may come now."""
        position, book = self.context.position(name), self._book
        return self.phase == "uploading" and position in book.frozen and position not in book.uploads

    def stranded(self) -> bool:
        """Whether those who are there, and what they have uploaded, can't make a sum: it waits for who went away."""
        book = self._book
        if self.phase not in ("accepting", "training", "uploading"):
            return False
        there = frozenset(item for item, name in enumerate(self.context.names) if name in self._present | self._missed)
        able = book.summable() & (there | frozenset(book.uploads))
        kept = self.context.together(able) if self.phase == "accepting" else publishable(book.groups, able)
        return len(kept) < self.context.floor

    def survivors(self) -> frozenset[int]:
        """U3; empty before it is fixed."""
        return self._book.survivors

    def digests(self) -> dict[int, bytes]:
        """The masked updates that are here, by position."""
        return {position: digest for position, (digest, _) in self._book.uploads.items()}

    def in_vain(self) -> frozenset[str]:
        """Names of who did all that was asked of them and isn't in the sum: another one of their atom didn't."""
        book = self._book
        answered = (book.ready - book.frozen) | frozenset(book.uploads)
        return frozenset(self.context.names[item] for item in answered - book.survivors)

    def waiting_for(self) -> list[str]:
        """Names whose answer the present phase waits for, sorted."""
        return [self.context.names[item] for item in sorted(self._expected())]

    def owed(self, position: int) -> list[Signed]:
        """The statements that a participant needs to be where the attempt is."""
        owed = self._book.owed(position)
        return [item.signed(self._key) if isinstance(item, Delivery) else item for item in owed]

    def public_record(self) -> tuple[Any, ...]:
        """The material from which anyone can recompute the sum, as a plain value (see ``audit``).

        It holds nothing that the coordinator hasn't seen, and no secret of a participant whose update isn't in the sum
        besides the mask key of one that dropped after the freeze.
        """
        secrets, said = rebuild(self._book), self._book.said
        kinds = (Plan.KIND, Freeze.KIND, Survivors.KIND, Quorum.KIND)
        statements = tuple((said[kind].body, said[kind].signature) for kind in kinds if kind in said)
        return (
            statements,
            self._book.acceptances(),
            self._book.retirements(),
            tuple(sorted(secrets.seeds.items())),
            tuple(sorted(secrets.mask_keys.items())),
        )

    # ---- what comes in ----------------------------------------------------------------------------------------------

    def _opened(self, name: str, signed: Signed) -> tuple[int, RoundStatement]:
        position, member = self.context.position(name), self._members.participant(name)
        if position is None or member is None:
            raise SecureAggregationError("roster-foreign", f"{name} isn't in the roster of this round")
        kind = kind_of(signed.body)
        if kind not in _HEARD:
            raise SecureAggregationError("statement-unknown", f"{name} sent a statement of kind {kind[:32]!r}")
        return position, _HEARD[kind].opened(signed, member.public_key, name)

    def _prove(self, decision: Decision, name: str, position: int, opened: Doubt) -> None:
        """Show a keeper the dealer's own word on a parcel."""
        if not may_doubt(self._book, position, opened):
            return
        self._doubts[name] = self._doubts.get(name, 0) + 1
        if self._doubts[name] > _MAX_DOUBTS:
            raise SecureAggregationError("doubt-repeated", f"{name} asks for evidence again and again")
        decision.effects.append(Tell(name, self._book.evidence(opened.dealer).signed(self._key)))

    def _record(self, decision: Decision, record: Record) -> None:
        self._book.apply(record)
        decision.records.append(record)

    def _say(self, decision: Decision, statement: Statement, now_s: float) -> Signed:
        signed = statement.signed(self._key)
        self._record(decision, Record("", signed, now_s))
        return signed

    def _tell(self, decision: Decision, positions: Iterable[int], statement: Signed) -> None:
        names = (self.context.names[item] for item in sorted(positions))
        decision.effects += [Tell(name, statement) for name in names if name in self._present]

    def _wake(self, decision: Decision) -> None:
        if self.phase not in _OVER:
            at_s = min(self._book.ends_s, self._missed_until_s) if self._missed else self._book.ends_s
            decision.effects.append(WakeAt(at_s))

    # ---- progress ---------------------------------------------------------------------------------------------------

    def _expected(self) -> frozenset[int]:
        """Who is there and hasn't answered yet."""
        book, names = self._book, self.context.names
        there = frozenset(item for item, name in enumerate(names) if name in self._present or name in self._missed)
        keepers = there & book.keepers - frozenset(book.refusers)
        return {
            "accepting": there - frozenset(book.excluded) - frozenset(book.accepts),
            "training": there & book.summable() - book.ready,
            "uploading": there & book.summable() - frozenset(book.uploads),
            "signing": keepers - frozenset(book.survived),
            "releasing": keepers - frozenset(book.releases),
        }.get(self.phase, frozenset())

    def _hopeless(self, need: int) -> bool:
        """Even if everyone who could still answer did, they would be too few."""
        book = self._book
        if self.phase in ("accepting", "training", "uploading"):
            return len(book.summable()) < need
        answered = frozenset(book.survived if self.phase == "signing" else book.releases)
        return len((book.keepers - frozenset(book.refusers)) | answered) < need

    def _advance(self, decision: Decision, now_s: float) -> None:
        """Go as far as what has arrived allows."""
        while self.phase not in _OVER:
            before = self.phase
            _PHASES[before](self, decision, now_s)
            if self.phase == before:
                return

    def _due(self, now_s: float, have: int, need: int) -> bool | None:
        """True to close the phase, False to give up, None to wait."""
        if have >= need and not self._expected():
            return True
        if self._hopeless(need):
            return False
        return None if now_s < self._book.ends_s else have >= need

    def _close_accepting(self, decision: Decision, now_s: float) -> None:
        accepted = frozenset(self._book.accepts) - frozenset(self._book.excluded)
        floor = self.context.numbers.floor
        due = self._due(now_s, len(accepted) if self.context.agrees(accepted) else 0, floor)
        if due:
            self._say(decision, Accepted(self.context.hash, positions_bytes(accepted)), now_s)
            for item in sorted(accepted):
                self._tell(decision, [item], self._book.delivery(item).signed(self._key))
            self._wake(decision)
        elif due is False:
            what = self._count("accepted", accepted, floor)
            if len(accepted) >= floor:
                together = self.context.together(accepted)
                what = self._count("accepted with their whole atom", together, self.context.floor)
            self._fail(decision, "too-few-accepts", what, now_s)

    def _close_training(self, decision: Decision, now_s: float) -> None:
        if self._quarrel(decision, now_s):
            return
        ready = frozenset(self._book.ready) - frozenset(self._book.excluded)
        kept = publishable(self._book.groups, ready)
        floor = self.context.floor
        due = self._due(now_s, len(kept), floor)
        if due:
            freeze = self._say(decision, Freeze(self.context.hash, positions_bytes(kept)), now_s)
            self._tell(decision, self._book.accepted, freeze)
            self._wake(decision)
        elif due is False:
            self._fail(decision, "too-few-ready", self._count("finished training", ready, floor), now_s)

    def _close_uploading(self, decision: Decision, now_s: float) -> None:
        if self._quarrel(decision, now_s):
            return
        uploads = self._book.uploads
        kept = publishable(self._book.groups, frozenset(uploads))
        floor = self.context.floor
        due = self._due(now_s, len(kept), floor)
        if due:
            rows = [(item.to_bytes(2, "big"), *uploads[item]) for item in sorted(kept)]
            survivors = self._say(decision, Survivors(self.context.hash, UPLOADS.write(rows)), now_s)
            self._tell(decision, self._book.keepers, survivors)
            self._wake(decision)
        elif due is False:
            self._fail(decision, "too-few-uploads", self._count("uploaded", uploads, floor), now_s)

    def _quarrel(self, decision: Decision, now_s: float) -> bool:
        """A complaint ends the attempt: the next one does without those who are to blame."""
        if self._book.blamed:
            text = "; ".join(sorted(set(self._book.excluded.values())))
            self._fail(decision, "parcel-unreadable", text, now_s)
        return self._book.blamed

    def _close_signing(self, decision: Decision, now_s: float) -> None:
        need, survived = self.context.numbers.quorum, self._book.survived
        if len(survived) >= need:
            rows = [(item.to_bytes(2, "big"), survived[item]) for item in sorted(survived)]
            quorum = self._say(decision, Quorum(self.context.hash, QUORUM.write(rows[:need])), now_s)
            self._tell(decision, self._book.keepers, quorum)
            self._wake(decision)
        elif now_s >= self._book.ends_s or self._hopeless(need):
            self._fail(decision, "quorum-short", self._count("signed the survivor set", survived, need), now_s)

    def _close_releasing(self, decision: Decision, now_s: float) -> None:
        need, releases = self.context.numbers.threshold, self._book.releases
        if len(releases) >= need:
            self._rebuild(decision, now_s)
        elif now_s >= self._book.ends_s or self._hopeless(need):
            self._fail(decision, "release-short", self._count("released their shares", releases, need), now_s)

    def _rebuild(self, decision: Decision, now_s: float) -> None:
        """Rebuild the secrets, and order the sum."""
        secrets = rebuild(self._book)
        liars = inconsistent(self._book, secrets)
        if not liars:
            self._book.phase = "unmasking"
            decision.effects.append(unmask(self._book, secrets))
            return
        for item in liars:
            why = f"{self.context.names[item]} dealt shares that don't rebuild its secret"
            self._say(decision, Excused(self.context.hash, item, why), now_s)
        names = ", ".join(self.context.names[item] for item in liars)
        self._fail(decision, "dealer-inconsistent", f"the shares of {names} don't rebuild a secret", now_s)

    def _fail(self, decision: Decision, code: str, message: str, now_s: float) -> None:
        refused = self._say(decision, Refused(self.context.hash, cleaned(code, 64), "", cleaned(message, 1000)), now_s)
        decision.effects += [Tell(name, refused) for name in sorted(self._present)]
        if self.failed is not None:
            decision.effects.append(self.failed)

    def _count(self, what: str, have: Iterable[int], need: int) -> str:
        names = ", ".join(self.context.names[item] for item in sorted(have)) or "nobody"
        reasons = "; ".join(sorted(set(self._book.excluded.values())))
        return f"{names} {what}; {need} are needed" + (f" ({reasons})" if reasons else "")


_PHASES: Final[Mapping[str, Callable[[Attempt, Decision, float], None]]] = {
    "accepting": Attempt._close_accepting,
    "training": Attempt._close_training,
    "uploading": Attempt._close_uploading,
    "signing": Attempt._close_signing,
    "releasing": Attempt._close_releasing,
}
