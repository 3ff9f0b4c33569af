"""What a participant remembers beyond one attempt, so that no update is ever in two sums that tell about it alone.

Four rules read it. A roster equals the last ones or differs from them by several members (``policy``). An update that
was masked for one attempt enters another only if the first one's sum can never be revealed (:meth:`History.reuse`). Two
sums over trainings from one model differ by no participant, or by several (:meth:`History.check_sets`): training is
repeatable, so an update that is made anew from the same model may be the same update. And where sums of groups are
published, this site's atom is the same in every attempt of a run (:meth:`History.check_atom`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.errors import Refusal
from privacy.secure_aggregation.memory import Forget, Note
from privacy.secure_aggregation.policy import MAX_REMEMBERED, Earlier
from privacy.secure_aggregation.signed import MAX_RETIRED
from privacy.secure_aggregation.statements import Acceptance, Signed
from privacy.transcript import decode, encode

ATOM: Final = "atom"
"""Kind of the note of a run and this site's atom in it."""

_MAX_PUBLISHED: Final = 32
_MAX_RETIRED: Final = 256
_MAX_RECEIPTS: Final = 32


@dataclasses.dataclass(frozen=True)
class Entry:
    """An update that was masked for an attempt.

    Attributes:
        context: H_R of the attempt.
        run_id: The run.
        purpose: Train or evaluate.
        round: Of the training: the one that follows its base version.
        task_attempt: Which training of the round.
        summed: The round of the attempt. It is another one than that of the training in asynchronous rounds only.
        keepers: Names of those that were dealt its shares.
        needed: So many of them must have erased their shares before the update may be used again; more than there are
            where it can't be any more.
    """

    context: bytes
    run_id: str
    purpose: str
    round: int
    task_attempt: int
    summed: int
    keepers: frozenset[str]
    needed: int

    @property
    def task(self) -> tuple[str, str, int, int]:
        """Whose result the update is."""
        return self.run_id, self.purpose, self.round, self.task_attempt

    def repeated_by(self, task: tuple[str, str, int, int]) -> bool:
        """Whether another training may give the same update again: one from the same version, or an earlier one."""
        return self.task[:2] == task[:2] and task[2] <= self.round

    def note(self) -> bytes:
        """As it is stored."""
        return encode((self.context, *self.task, self.summed, tuple(sorted(self.keepers)), self.needed))


@dataclasses.dataclass(frozen=True)
class Retired:
    """An attempt whose shares this site has erased without releasing one."""

    context: bytes
    run_id: str
    round: int

    def note(self) -> bytes:
        """As it is stored."""
        return encode(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Published:
    """The sets of participants whose sums this site has helped to reveal in one attempt.

    Attributes:
        run_id: The run.
        purpose: Train or evaluate.
        base_digest: Of the model that was trained from or scored.
        round: Of the run.
        sets: Names, one set for each group.
    """

    run_id: str
    purpose: str
    base_digest: bytes
    round: int
    sets: tuple[frozenset[str], ...]

    def note(self) -> bytes:
        """As it is stored."""
        sets = tuple(tuple(sorted(names)) for names in self.sets)
        return encode((self.run_id, self.purpose, self.base_digest, self.round, sets))


class History:
    """The memory. Every method that changes it returns the notes to store in the same transaction."""

    def __init__(self) -> None:
        self.earlier: list[Earlier] = []
        self._entered: dict[bytes, Entry] = {}
        self._retired: dict[bytes, Retired] = {}
        self._published: list[Published] = []
        self._receipts: list[bytes] = []
        self._atoms: dict[str, frozenset[str]] = {}

    def restore(self, note: Note) -> bool:
        """Take a stored note in; False if it isn't of a kind that belongs here."""
        read = _READERS.get(note.kind)
        if read is None:
            return False
        read(self, cast(Any, decode(note.body)))
        return True

    def _read_attempted(self, value: Any) -> None:
        run_id, round_number, attempt, names = value
        self.earlier.append(Earlier(run_id, round_number, attempt, frozenset(names)))

    def _read_entered(self, value: Any) -> None:
        context, run_id, purpose, round_number, task_attempt, summed, keepers, needed = value
        entry = Entry(context, run_id, purpose, round_number, task_attempt, summed, frozenset(keepers), needed)
        self._entered[context] = entry

    def _read_retired(self, value: Any) -> None:
        self._retired[value[0]] = Retired(*value)

    def _read_published(self, value: Any) -> None:
        run_id, purpose, base_digest, round_number, sets = value
        found = tuple(frozenset(names) for names in sets)
        self._published.append(Published(run_id, purpose, base_digest, round_number, found))

    def _read_receipt(self, value: Any) -> None:
        self._receipts.append(encode(value))

    def _read_atom(self, value: Any) -> None:
        run_id, names = value
        self._atoms[run_id] = frozenset(names)

    # ---- atoms ------------------------------------------------------------------------------------------------------

    def check_atom(self, context: RoundContext, position: int) -> None:
        """Refuse a plan in which this site's atom is another one than in the run's earlier attempts.

        Raises:
            Refusal: "atom-changed".
        """
        known, now = self._atoms.get(context.run_id), _atom(context, position)
        if known is None or known == now:
            return
        gone, new = sorted(known - now), sorted(now - known)
        changed = [f"without {', '.join(gone)}"] * bool(gone) + [f"with {', '.join(new)}"] * bool(new)
        raise Refusal(
            "atom-changed",
            f"the plan of round {context.round} puts this site's update into sums {' and '.join(changed)}, other than "
            f"before in run {context.run_id}; the difference of two rounds' sums would tell about so few",
        )

    def placed(self, context: RoundContext, position: int) -> list[Note | Forget]:
        """This site takes part in a run with this atom: for good."""
        now = _atom(context, position)
        if not now or context.run_id in self._atoms:
            return []
        self._atoms[context.run_id] = now
        return [Note(ATOM, b"", encode((context.run_id, tuple(sorted(now)))))]

    # ---- rosters ----------------------------------------------------------------------------------------------------

    def attempted(self, context: RoundContext) -> list[Note | Forget]:
        """This site takes part in an attempt. Old rosters go, but never a run's last place in time."""
        self.earlier.append(Earlier(context.run_id, context.round, context.attempt, frozenset(context.names)))
        changes: list[Note | Forget] = [Note("attempted", b"", _attempted(self.earlier[-1]))]
        last = {item.run_id: item for item in self.earlier}
        for item in self.earlier[:-MAX_REMEMBERED]:
            if last[item.run_id] is not item:
                self.earlier.remove(item)
                changes.append(Forget(b"", "attempted", _attempted(item)))
        return changes

    # ---- one update, one sum ----------------------------------------------------------------------------------------

    def enter(self, context: RoundContext, position: int) -> list[Note | Forget]:
        """The update of the seat at ``position`` is masked for this attempt."""
        numbers = context.numbers
        number, task_attempt, _ = context.task_of(position)
        changes: list[Note | Forget] = []
        for old in list(self._entered.values()):
            # No later training of the run goes back to an earlier version.
            if old.run_id == context.run_id and old.round < number:
                del self._entered[old.context]
                changes.append(Forget(b"", "entered", old.note()))
        entry = Entry(
            context.hash,
            context.run_id,
            context.purpose,
            number,
            task_attempt,
            context.round,
            frozenset(context.names[item] for item in context.keepers),
            numbers.keepers - numbers.threshold + numbers.corrupt + 1,
        )
        self._entered[context.hash] = entry
        return [*changes, Note("entered", b"", entry.note())]

    def spend(self, context: RoundContext) -> list[Note | Forget]:
        """A share of this attempt was released, or its sum is known: an update in it is never used again."""
        old = self._entered.get(context.hash)
        if old is None or old.needed > len(old.keepers):
            return []
        new = dataclasses.replace(old, needed=len(old.keepers) + 1)
        self._entered[context.hash] = new
        return [Forget(b"", "entered", old.note()), Note("entered", b"", new.note())]

    def spare(self, context: RoundContext) -> list[Note | Forget]:
        """A quorum has signed survivors without this site: its update wasn't used up, and may be in another sum.

        Formal Guarantees:
            Q keepers signed, at least Q - c of them honest. An honest keeper signs one survivor set and releases shares
            for it alone, so at most m - Q + c keepers can give a share of this site's self mask, which are fewer than
            t = Q since 2 Q > m + c (``thresholds``). What was uploaded stays masked for good.
        """
        old = self._entered.pop(context.hash, None)
        return [Forget(b"", "entered", old.note())] if old is not None else []

    def retire(self, context: RoundContext) -> list[Note | Forget]:
        """The shares of this attempt are being erased in this transaction, and none was released."""
        new = Retired(context.hash, context.run_id, context.round)
        self._retired[context.hash] = new
        changes: list[Note | Forget] = [Note("retired", b"", new.note())]
        old = [
            item
            for item in self._retired.values()
            if item.run_id == context.run_id and item.round < context.round and not context.bases
        ]
        old += list(self._retired.values())[:-_MAX_RETIRED]
        for item in old:
            if self._retired.pop(item.context, None) is not None:
                changes.append(Forget(b"", "retired", item.note()))
        return changes

    def retired_in(self, context: RoundContext) -> tuple[bytes, ...]:
        """The attempts that this site can say to have retired, the latest ones if they are many.

        They are those of the same round; in asynchronous rounds, where an update may be summed in a later round than
        the one that it was masked for, those of the run.
        """
        mine = [item for item in self._retired.values() if item.run_id == context.run_id]
        found = [item.context for item in mine if context.bases or item.round == context.round]
        return tuple(found[-MAX_RETIRED:])

    def reuse(self, context: RoundContext, position: int, acceptances: Iterable[Acceptance]) -> None:
        """Refuse where the update of the seat at ``position`` could end up in two published sums (A6).

        In asynchronous rounds two trainings from one version count as one update, since training is repeatable: between
        rounds, where no other rule compares the sums (within one, :meth:`check_sets` does).

        Formal Guarantees:
            Let an update have been masked for attempt a with m keepers, of which at most c are corrupt, and threshold
            t. It passes only if m - t + c + 1 of these keepers have signed that they erased their shares of a and
            released none. At most c of them lie, so at least m - t + 1 honest keepers hold nothing of a, and at most
            t - 1 shares of any secret of a can ever come together: the self mask of the update in a stays unknown.

        Raises:
            Refusal: "update-may-be-revealed".
        """
        number, task_attempt, _ = context.task_of(position)
        task = (context.run_id, context.purpose, number, task_attempt)
        said = [(context.names[item.position], frozenset(item.retired)) for item in acceptances]
        for entry in self._entered.values():
            again = bool(context.bases) and entry.summed != context.round and entry.repeated_by(task)
            if (entry.task != task and not again) or entry.context == context.hash:
                continue
            erased = {name for name, retired in said if entry.context in retired and name in entry.keepers}
            if len(erased) < entry.needed:
                known = entry.needed > len(entry.keepers)
                why = (
                    "whose sum may be known"
                    if known
                    else f"of which {len(erased)} keepers say that they erased their shares; {entry.needed} must say so"
                )
                raise Refusal(
                    "update-may-be-revealed",
                    f"this update was uploaded in an earlier attempt of round {entry.summed}, {why}",
                )

    # ---- two sums, one model ----------------------------------------------------------------------------------------

    def check_sets(self, context: RoundContext, sets: Iterable[frozenset[str]], least: int, setting: str) -> None:
        """Refuse to help reveal a sum that differs by fewer than ``least`` participants from one already revealed (A6).

        Formal Guarantees:
            For two attempts with the same keepers, of which at most c are corrupt: if the first one's sum was revealed,
            at least t - c honest keepers released and remember its sets; the second one needs Q signatures, at least
            Q - c of them honest; since 2 Q > m + c, an honest keeper is in both, and refuses.

        Raises:
            Refusal: "survivors-change".
        """
        place = (context.run_id, context.purpose, context.base_digest)
        for item in self._published:
            if (item.run_id, item.purpose, item.base_digest) != place:
                continue
            for names in sets:
                for other in item.sets:
                    changed = names ^ other
                    if 0 < len(changed) < least:
                        raise Refusal(
                            "survivors-change",
                            f"a sum over updates of the same model was revealed in round {item.round}; this one "
                            f"differs from it by {', '.join(sorted(changed))} only. This site asks for {least} at "
                            "least, or none",
                            setting,
                        )

    def publish(self, context: RoundContext, sets: Iterable[frozenset[str]]) -> list[Note | Forget]:
        """This site releases its shares for these sets."""
        item = Published(context.run_id, context.purpose, context.base_digest, context.round, tuple(sets))
        self._published.append(item)
        changes: list[Note | Forget] = [Note("published", b"", item.note())]
        while len(self._published) > _MAX_PUBLISHED:
            changes.append(Forget(b"", "published", self._published.pop(0).note()))
        return changes

    # ---- evidence ---------------------------------------------------------------------------------------------------

    def receipted(self, signed: Signed) -> list[Note | Forget]:
        """The coordinator's receipt of a masked update; the last ones are kept beyond their attempts."""
        body = encode((signed.body, signed.signature))
        if body in self._receipts:
            return []
        self._receipts.append(body)
        changes: list[Note | Forget] = [Note("receipt", b"", body)]
        if len(self._receipts) > _MAX_RECEIPTS:
            changes.append(Forget(b"", "receipt", self._receipts.pop(0)))
        return changes


def atom_of(note: Note) -> tuple[str, frozenset[str]]:
    """The run, and the names of this site's atom in it, of a note of kind :data:`ATOM`."""
    run_id, names = cast(Any, decode(note.body))
    return run_id, frozenset(names)


def _atom(context: RoundContext, position: int) -> frozenset[str]:
    """Names of the atom's members; empty where the run has one sum."""
    found = (atom for atom in context.atom_members if position in atom)
    return frozenset(context.names[item] for item in next(found, frozenset()))


def _attempted(item: Earlier) -> bytes:
    return encode((item.run_id, item.round, item.attempt, tuple(sorted(item.roster))))


_READERS: Final[Mapping[str, Callable[[History, Any], None]]] = {
    "attempted": History._read_attempted,
    "entered": History._read_entered,
    "retired": History._read_retired,
    "published": History._read_published,
    "receipt": History._read_receipt,
    ATOM: History._read_atom,
}
