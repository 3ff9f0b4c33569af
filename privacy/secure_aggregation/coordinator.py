"""The coordinator's side of one attempt at a secure sum: statements in, records and effects out.

The caller MUST make the records of a :class:`Decision` durable before it carries out the effects. The state is a fold
over the records; :meth:`Attempt.replay` gives it back after a crash, and :meth:`Attempt.owed` what a participant that
comes (back) must be sent. Every message may be sent twice.

Phases: *accepting* (plan out, shares come in) - *training* (delivery out) - *uploading* (freeze out) - *signing*
(survivors out) - *releasing* (quorum out) - *unmasking* - *ended*. A participant may drop in any of them; the sum is
then that of the others, or the attempt ends with a named reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.field import combine
from privacy.secure_aggregation.graph import Group, groups, publishable
from privacy.secure_aggregation.keys import AgreementKey, SigningKey
from privacy.secure_aggregation.members import MemberList
from privacy.secure_aggregation.sharing import (
    MASK_KEY,
    SEED,
    MaskTerm,
    beacon_hash,
    commitment_of,
    open_parcel,
    pair_seed,
    parcel_commitment,
    seed_commitment,
    share_hash,
)
from privacy.secure_aggregation.statements import (
    ACCEPTANCES,
    PARCELS,
    QUORUM,
    RELEASES,
    UPLOADS,
    Accept,
    Accepted,
    Complaint,
    Delivery,
    Excused,
    Freeze,
    Plan,
    Quorum,
    Ready,
    Refused,
    Release,
    Signed,
    Statement,
    Survived,
    Survivors,
    Upload,
    kind_of,
    positions_bytes,
    positions_of,
    signature_holds,
)

Phase = Literal["accepting", "training", "uploading", "signing", "releasing", "unmasking", "ended"]


@dataclasses.dataclass(frozen=True)
class Record:
    """A line of the attempt's log: who said what when. ``sender`` is empty for the coordinator's own statements."""

    sender: str
    statement: Signed
    at_s: float


@dataclasses.dataclass(frozen=True)
class Tell:
    """Send this statement to a participant."""

    name: str
    statement: Signed


@dataclasses.dataclass(frozen=True)
class GroupSum:
    """One group's uploads, and the masks to add so that their sum is left.

    Attributes:
        members: Positions of the survivors, ascending.
        digests: Of their masked updates, in the same order.
        terms: Streams to add to the sum of the uploads.
    """

    members: tuple[int, ...]
    digests: tuple[bytes, ...]
    terms: tuple[MaskTerm, ...]


@dataclasses.dataclass(frozen=True)
class Unmask:
    """Add up and unmask these groups; then the attempt is over."""

    context: RoundContext
    groups: tuple[GroupSum, ...]


@dataclasses.dataclass(frozen=True)
class Failed:
    """The attempt is over without a sum.

    Attributes:
        code: Why, kebab-case.
        message: Why, in words that name the participants.
        excluded: Participants that the next attempt should do without.
        spent: True where shares may have been released: the updates may be known in a sum, so that no other attempt
            may take them; they have to be trained anew.
    """

    code: str
    message: str
    excluded: frozenset[str]
    spent: bool


@dataclasses.dataclass(frozen=True)
class WakeAt:
    """Call :meth:`Attempt.tick` at this time at the latest."""

    at_s: float


Effect = Tell | Unmask | Failed | WakeAt


@dataclasses.dataclass
class Decision:
    """Records to store first, effects to carry out afterwards."""

    records: list[Record] = dataclasses.field(default_factory=list)
    effects: list[Effect] = dataclasses.field(default_factory=list)


class Attempt:
    """One attempt.

    Args:
        context: What is proposed.
        members: The member list that it was made from.
        key: The coordinator's signing key.
        step_s: Seconds that a quick answer (accept, sign, release) is waited for.
        deadline_s: Seconds that training, and then the uploads, are waited for.
    """

    def __init__(
        self, context: RoundContext, members: MemberList, key: SigningKey, *, step_s: float, deadline_s: float
    ) -> None:
        self.context = context
        self.phase: Phase = "accepting"
        self.failed: Failed | None = None
        self._members = members
        self._key = key
        self._step_s = step_s
        self._deadline_s = deadline_s
        self._ends_s = 0.0
        self._present: set[str] = set()
        self._accepts: dict[int, Accept] = {}
        self._excluded: dict[int, str] = {}
        self._ready: set[int] = set()
        self._uploads: dict[int, tuple[bytes, bytes]] = {}
        self._survived: dict[int, bytes] = {}
        self._releases: dict[int, Release] = {}
        self._accepted: frozenset[int] = frozenset()
        self._groups: tuple[Group, ...] = ()
        self._frozen: frozenset[int] = frozenset()
        self._survivors: frozenset[int] = frozenset()
        self._said: dict[str, Signed] = {}
        self._blamed = False

    # ---- commands ---------------------------------------------------------------------------------------------------

    def begin(self, present: Iterable[str], now_s: float) -> Decision:
        """Propose the plan to all of the roster that are there."""
        decision = Decision()
        self._present = set(present).intersection(self.context.names)
        plan = Plan(self.context.canonical()).signed(self._key)
        self._record(decision, "", plan, now_s)
        decision.effects += [Tell(name, plan) for name in sorted(self._present)]
        decision.effects.append(WakeAt(self._ends_s))
        return decision

    def replay(self, records: Iterable[Record]) -> None:
        """Take stored records in, in order. Who is present isn't among them: call :meth:`back` for each."""
        for record in records:
            self._apply(record)

    def resume(self, now_s: float) -> Decision:
        """What is owed after a restart."""
        decision = Decision()
        self._advance(decision, now_s)
        if self.phase == "unmasking":
            decision.effects.append(self._unmask())
        elif self.phase != "ended":
            decision.effects.append(WakeAt(max(now_s, self._ends_s)))
        return decision

    def back(self, name: str, now_s: float) -> Decision:
        """A participant of the roster is there (again): tell it what it may have missed."""
        decision = Decision()
        position = self.context.position(name)
        if position is None or self.phase == "ended":
            return decision
        self._present.add(name)
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
            excused = Excused(self.context.hash, position, reason[:1000]).signed(self._key)
            self._record(decision, "", excused, now_s)
            self._advance(decision, now_s)
        return decision

    def receive(self, name: str, signed: Signed, now_s: float) -> Decision:
        """A participant's statement.

        Raises:
            SecureAggregationError: The statement is refused; nothing has changed.
        """
        decision = Decision()
        position = self.context.position(name)
        member = self._members.participant(name)
        if position is None or member is None:
            raise SecureAggregationError("roster-foreign", f"{name} isn't in the roster of this round")
        kind = kind_of(signed.body)
        if kind not in _STATEMENTS:
            raise SecureAggregationError("statement-unknown", f"{name} sent a statement of kind {kind[:32]!r}")
        opened = _STATEMENTS[kind].opened(signed, member.public_key, name)
        if opened.context != self.context.hash and kind != "refused":
            return decision  # of an attempt that is over; its sender is told the present one when it comes back
        if self.phase in ("unmasking", "ended"):
            return decision
        if _CHECKS[kind](self, position, opened):
            self._record(decision, name, signed, now_s)
            self._advance(decision, now_s)
        return decision

    def tick(self, now_s: float) -> Decision:
        """Time has passed."""
        decision = Decision()
        if self.phase not in ("unmasking", "ended"):
            self._advance(decision, now_s)
            if self.phase not in ("unmasking", "ended"):
                decision.effects.append(WakeAt(self._ends_s))
        return decision

    def abort(self, code: str, message: str, now_s: float) -> Decision:
        """Give the attempt up."""
        decision = Decision()
        if self.phase != "ended":
            self._fail(decision, code, message, now_s)
        return decision

    def end(self) -> None:
        """The sum is committed."""
        self.phase = "ended"

    # ---- what others ask --------------------------------------------------------------------------------------------

    def awaits_upload(self, name: str) -> bool:
        """Whether a masked update of this participant may come now."""
        position = self.context.position(name)
        return self.phase == "uploading" and position in self._frozen and position not in self._uploads

    def survivors(self) -> frozenset[int]:
        """U3; empty before it is fixed."""
        return self._survivors

    def digests(self) -> dict[int, bytes]:
        """The masked updates that are here, by position."""
        return {position: digest for position, (digest, _) in self._uploads.items()}

    def waiting_for(self) -> list[str]:
        """Names whose answer the present phase waits for, sorted."""
        return [self.context.names[item] for item in sorted(self._expected())]

    def owed(self, position: int) -> list[Signed]:
        """The statements that a participant needs to be where the attempt is."""
        if self.phase == "accepting":
            return [] if position in self._accepts else [self._said["plan"]]
        if position not in self._accepted:
            return []
        statements = [self._delivery(position)]
        if "freeze" in self._said:
            statements.append(self._said["freeze"])
        if position in self.context.keepers and self.phase in ("signing", "releasing"):
            statements += [self._said[kind] for kind in ("survivors", "quorum") if kind in self._said]
        return statements

    def public_record(self) -> tuple[Any, ...]:
        """The material from which anyone can recompute the sum, as a plain value (see ``audit``).

        It holds nothing that the coordinator hasn't seen, and no secret of a participant whose update isn't in the sum
        besides the mask key of one that dropped after the freeze.
        """
        seeds, mask_keys = self._secrets()
        names = ("plan", "freeze", "survivors", "quorum")
        statements = tuple((self._said[name].body, self._said[name].signature) for name in names if name in self._said)
        return (
            statements,
            self._acceptances(),
            self._retirements(),
            tuple(sorted(seeds.items())),
            tuple(sorted(mask_keys.items())),
        )

    # ---- log --------------------------------------------------------------------------------------------------------

    def _record(self, decision: Decision, sender: str, signed: Signed, now_s: float) -> None:
        record = Record(sender, signed, now_s)
        self._apply(record)
        decision.records.append(record)

    def _apply(self, record: Record) -> None:
        kind = kind_of(record.statement.body)
        if kind == "excused":
            excused = Excused.parse(record.statement.body)
            self._excluded.setdefault(excused.position, excused.reason)
            return
        if not record.sender:
            self._said[kind] = record.statement
            self._turn(kind, record.statement, record.at_s)
            return
        position = self.context.position(record.sender)
        assert position is not None
        opened: Any = _STATEMENTS[kind].parse(record.statement.body)
        if kind == "accept":
            self._accepts[position] = opened
        elif kind == "ready":
            self._ready.add(position)
        elif kind == "upload":
            self._uploads[position] = (opened.digest, record.statement.signature)
        elif kind == "survived":
            self._survived[position] = record.statement.signature
        elif kind == "release":
            self._releases[position] = opened
        elif kind == "complaint":
            self._blame(position, opened)
        else:
            self._excluded.setdefault(position, f"{record.sender} refuses: {opened.code}: {opened.message}")

    def _turn(self, kind: str, statement: Signed, at_s: float) -> None:
        """One of our own statements opens the next phase."""
        self._ends_s = at_s + (self._deadline_s if kind in ("accepted", "freeze") else self._step_s)
        if kind == "accepted":
            self._accepted = frozenset(positions_of(Accepted.parse(statement.body).members))
            self._groups = groups(self.context, {item: self._accepts[item].beacon for item in self._accepted})
            self.phase = "training"
            if not self.context.freeze:
                self._frozen, self.phase = self._accepted, "uploading"
        elif kind == "freeze":
            self._frozen = frozenset(positions_of(Freeze.parse(statement.body).members))
            self.phase = "uploading"
        elif kind == "survivors":
            rows = UPLOADS.read(Survivors.parse(statement.body).uploads)
            self._survivors = frozenset(int.from_bytes(row[0], "big") for row in rows)
            self.phase = "signing"
        elif kind == "quorum":
            self.phase = "releasing"
        elif kind == "refused":
            self.phase = "ended"

    # ---- checks of what comes in: True where it is news ---------------------------------------------------------------

    def _new_accept(self, position: int, opened: Accept) -> bool:
        if position in self._accepts or self.phase != "accepting" or position in self._excluded:
            return False
        name, seat = self.context.names[position], self.context.roster[position]
        member = self._members.participant(name)
        acceptance = Signed(opened.acceptance().body(), opened.acceptance_signature)
        if opened.position != position or member is None or not signature_holds(acceptance, member.public_key):
            raise SecureAggregationError("acceptance-signature", f"the acceptance of {name} isn't signed by it")
        if beacon_hash(opened.beacon) != seat.beacon_hash:
            raise SecureAggregationError("beacon-mismatch", f"{name} reveals another beacon than it committed to")
        if len(PARCELS.read(opened.parcels)) != len(self.context.keepers):
            raise SecureAggregationError("parcels-missing", f"{name} hasn't sent a parcel to each keeper")
        return True

    def _new_ready(self, position: int, opened: Ready) -> bool:
        return self.phase == "training" and position in self._accepted and position not in self._ready

    def _new_upload(self, position: int, opened: Upload) -> bool:
        if self.phase != "uploading" or position not in self._frozen or position in self._uploads:
            return False
        context = self.context
        expected = (position, context.set_hash(self._accepted), context.set_hash(self._frozen))
        if (opened.position, opened.accepted_hash, opened.frozen_hash) != expected:
            raise SecureAggregationError(
                "upload-foreign", f"{context.names[position]} made its upload for other sets than were announced"
            )
        return True

    def _new_survived(self, position: int, opened: Survived) -> bool:
        if self.phase not in ("signing", "releasing") or position not in self.context.keepers:
            return False
        if position in self._survived:
            return False
        if (opened.frozen_hash, opened.survivors_hash) != (
            self.context.set_hash(self._frozen),
            self.context.set_hash(self._survivors),
        ):
            raise SecureAggregationError(
                "survivors-foreign", f"{self.context.names[position]} signed another survivor set than was announced"
            )
        return True

    def _new_release(self, position: int, opened: Release) -> bool:
        """Every share is the one that its dealer committed to: otherwise the keeper is at fault, alone."""
        if self.phase != "releasing" or position in self._releases or position not in self.context.keepers:
            return False
        expected = (self._survivors, self._dropped())
        for rows, dealers, kind in zip((opened.seeds, opened.mask_keys), expected, (SEED, MASK_KEY), strict=True):
            table = RELEASES.read(rows)
            if [int.from_bytes(row[0], "big") for row in table] != sorted(dealers):
                raise SecureAggregationError(
                    "release-foreign", f"{self.context.names[position]} released other shares than were asked for"
                )
            for cells in table:
                self._check_share(position, int.from_bytes(cells[0], "big"), kind, cells[1], cells[2])
        return True

    def _check_share(self, keeper: int, dealer: int, kind: str, share: bytes, other: bytes) -> None:
        index = self.context.keepers.index(keeper)
        commitment = PARCELS.read(self._accepts[dealer].parcels)[index][1]
        own = share_hash(self.context.hash, dealer, keeper, kind, share)
        pair = (own, other) if kind == MASK_KEY else (other, own)
        if parcel_commitment(*pair) != commitment:
            names = self.context.names
            raise SecureAggregationError(
                "share-wrong", f"{names[keeper]} released a share of {names[dealer]} that isn't the one it was dealt"
            )

    def _new_complaint(self, position: int, opened: Complaint) -> bool:
        return self.phase == "training" and position in self.context.keepers and opened.offender in self._accepted

    def _new_refused(self, position: int, opened: Refused) -> bool:
        return position not in self._excluded

    def _blame(self, keeper: int, opened: Complaint) -> None:
        """Whose fault an unreadable parcel is: the dealer's, unless the key opens it to what was committed to."""
        self._blamed = True
        names, dealer = self.context.names, opened.offender
        index = self.context.keepers.index(keeper)
        sealed, commitment = PARCELS.read(self._accepts[dealer].parcels)[index]
        parcel = open_parcel(opened.key, sealed, self.context.hash, dealer, keeper)
        if parcel is not None and commitment_of(self.context.hash, dealer, keeper, parcel) == commitment:
            self._excluded[keeper] = f"{names[keeper]} complains of a parcel of {names[dealer]} that is in order"
        else:
            self._excluded[dealer] = f"{names[dealer]} sent {names[keeper]} a parcel that it can't read"

    # ---- progress ---------------------------------------------------------------------------------------------------

    def _expected(self) -> frozenset[int]:
        """Who is there and hasn't answered yet."""
        names = self.context.names
        there = frozenset(item for item, name in enumerate(names) if name in self._present)
        willing = there - frozenset(self._excluded)
        keepers = there.intersection(self.context.keepers)
        return {
            "accepting": willing - frozenset(self._accepts),
            "training": willing.intersection(self._accepted) - self._ready,
            "uploading": willing.intersection(self._frozen) - frozenset(self._uploads),
            "signing": keepers.intersection(self._accepted) - frozenset(self._survived),
            "releasing": keepers.intersection(self._survived) - frozenset(self._releases),
        }.get(self.phase, frozenset())

    def _advance(self, decision: Decision, now_s: float) -> None:
        """Go as far as what has arrived allows."""
        while self.phase not in ("unmasking", "ended"):
            before = self.phase
            _PHASES[self.phase](self, decision, now_s)
            if self.phase == before:
                return

    def _due(self, now_s: float, enough: bool) -> bool | None:
        """True to close the phase, False to give up, None to wait."""
        if enough and not self._expected():
            return True
        if now_s < self._ends_s:
            return None
        return enough

    def _close_accepting(self, decision: Decision, now_s: float) -> None:
        accepted = frozenset(self._accepts) - frozenset(self._excluded)
        floor = self.context.numbers.floor
        due = self._due(now_s, len(accepted) >= floor)
        if due is False or self._hopeless(floor):
            self._fail(decision, "too-few-accepts", self._count("accepted", accepted, floor), now_s)
        elif due:
            self._say(decision, Accepted(self.context.hash, positions_bytes(accepted)), now_s)
            for item in sorted(accepted):
                self._tell(decision, item, self._delivery(item))
            decision.effects.append(WakeAt(self._ends_s))

    def _close_training(self, decision: Decision, now_s: float) -> None:
        if self._blamed:
            self._fail(decision, "parcel-unreadable", "; ".join(sorted(self._excluded.values())), now_s)
            return
        ready = self._ready - frozenset(self._excluded)
        kept = publishable(self._groups, frozenset(ready))
        floor = self.context.numbers.floor
        due = self._due(now_s, len(kept) >= floor)
        if due is False or self._hopeless(floor):
            self._fail(decision, "too-few-ready", self._count("finished training", ready, floor), now_s)
        elif due:
            freeze = self._say(decision, Freeze(self.context.hash, positions_bytes(kept)), now_s)
            for item in sorted(self._accepted):
                self._tell(decision, item, freeze)
            decision.effects.append(WakeAt(self._ends_s))

    def _close_uploading(self, decision: Decision, now_s: float) -> None:
        kept = publishable(self._groups, frozenset(self._uploads))
        floor = self.context.numbers.floor
        due = self._due(now_s, len(kept) >= floor)
        if due is False or self._hopeless(floor):
            self._fail(decision, "too-few-uploads", self._count("uploaded", self._uploads, floor), now_s)
        elif due:
            rows = [(item.to_bytes(2, "big"), *self._uploads[item]) for item in sorted(kept)]
            survivors = self._say(decision, Survivors(self.context.hash, UPLOADS.write(rows)), now_s)
            for item in self._keepers():
                self._tell(decision, item, survivors)
            decision.effects.append(WakeAt(self._ends_s))

    def _close_signing(self, decision: Decision, now_s: float) -> None:
        numbers = self.context.numbers
        if len(self._survived) >= numbers.quorum:
            rows = [(item.to_bytes(2, "big"), self._survived[item]) for item in sorted(self._survived)]
            quorum = self._say(decision, Quorum(self.context.hash, QUORUM.write(rows[: numbers.quorum])), now_s)
            for item in self._keepers():
                self._tell(decision, item, quorum)
            decision.effects.append(WakeAt(self._ends_s))
        elif now_s >= self._ends_s:
            text = self._count("signed the survivor set", self._survived, numbers.quorum)
            self._fail(decision, "quorum-short", text, now_s)

    def _close_releasing(self, decision: Decision, now_s: float) -> None:
        numbers = self.context.numbers
        if len(self._releases) >= numbers.threshold:
            self._check_secrets(decision, now_s)
        elif now_s >= self._ends_s:
            text = self._count("released their shares", self._releases, numbers.threshold)
            self._fail(decision, "release-short", text, now_s)

    def _check_secrets(self, decision: Decision, now_s: float) -> None:
        """Rebuild the secrets. Every share was checked, so one that doesn't fit is its dealer's fault."""
        seeds, mask_keys = self._secrets()
        liars = [
            item
            for item, seed in seeds.items()
            if seed_commitment(self.context.hash, item, seed) != self._accepts[item].commitment
        ]
        liars += [
            item for item, key in mask_keys.items() if AgreementKey(key).public != self.context.roster[item].mask_key
        ]
        if liars:
            names = ", ".join(self.context.names[item] for item in sorted(liars))
            for item in liars:
                self._excluded[item] = f"{self.context.names[item]} dealt shares that don't rebuild its secret"
            self._fail(decision, "dealer-inconsistent", f"the shares of {names} don't rebuild a secret", now_s)
            return
        self.phase = "unmasking"
        decision.effects.append(self._unmask())

    def _hopeless(self, floor: int) -> bool:
        """Even if everyone who could still come did, they would be too few."""
        return len(self.context.roster) - len(self._excluded) < floor

    def _fail(self, decision: Decision, code: str, message: str, now_s: float) -> None:
        spent = self.phase == "releasing"
        refused = self._say(decision, Refused(self.context.hash, code, "", message[:1000]), now_s)
        for name in sorted(self._present):
            decision.effects.append(Tell(name, refused))
        excluded = frozenset(self.context.names[item] for item in self._excluded)
        self.failed = Failed(code, message, excluded, spent)
        decision.effects.append(self.failed)

    def _count(self, what: str, have: Iterable[int], need: int) -> str:
        names = ", ".join(self.context.names[item] for item in sorted(have)) or "nobody"
        reasons = "; ".join(self._excluded[item] for item in sorted(self._excluded))
        return f"{names} {what}; {need} are needed" + (f" ({reasons})" if reasons else "")

    # ---- messages ---------------------------------------------------------------------------------------------------

    def _say(self, decision: Decision, statement: Statement, now_s: float) -> Signed:
        signed = statement.signed(self._key)
        self._record(decision, "", signed, now_s)
        return signed

    def _tell(self, decision: Decision, position: int, statement: Signed) -> None:
        name = self.context.names[position]
        if name in self._present:
            decision.effects.append(Tell(name, statement))

    def _keepers(self) -> list[int]:
        return [item for item in self.context.keepers if item in self._accepted]

    def _acceptances(self) -> bytes:
        rows = []
        for item in sorted(self._accepted):
            accept = self._accepts[item]
            rows.append((item.to_bytes(2, "big"), accept.beacon, accept.commitment, accept.acceptance_signature))
        return ACCEPTANCES.write(rows)

    def _retirements(self) -> tuple[tuple[int, tuple[bytes, ...]], ...]:
        accepts = ((item, self._accepts[item].retired) for item in sorted(self._accepted))
        return tuple((item, retired) for item, retired in accepts if retired)

    def _delivery(self, position: int) -> Signed:
        parcels = b""
        if position in self.context.keepers:
            index = self.context.keepers.index(position)
            width = sum(PARCELS.widths)
            tables = (self._accepts[item].parcels for item in sorted(self._accepted))
            parcels = b"".join(table[index * width : (index + 1) * width] for table in tables)
        delivery = Delivery(self.context.hash, self._acceptances(), self._retirements(), parcels)
        return delivery.signed(self._key)

    # ---- secrets ----------------------------------------------------------------------------------------------------

    def _live(self) -> frozenset[int]:
        """Everyone in a group that has survivors."""
        return frozenset(
            item for group in self._groups if self._survivors.intersection(group.members) for item in group.members
        )

    def _dropped(self) -> frozenset[int]:
        """Those whose masks are in uploads of the sum although theirs isn't."""
        return (self._frozen - self._survivors) & self._live()

    def _secrets(self) -> tuple[Mapping[int, bytes], Mapping[int, bytes]]:
        """The self-mask seeds of the survivors and the mask keys of those that dropped, by position.

        A secret whose shares rebuild nothing stands there as zeros, which no commitment fits.
        """
        threshold = self.context.numbers.threshold
        keepers = sorted(self._releases)[:threshold]
        found: list[dict[int, bytes]] = []
        for read in (lambda release: release.seeds, lambda release: release.mask_keys):
            shares: dict[int, list[tuple[int, bytes]]] = {}
            for keeper in keepers:
                for cells in RELEASES.read(read(self._releases[keeper])):
                    shares.setdefault(int.from_bytes(cells[0], "big"), []).append((keeper + 1, cells[1]))
            found.append({dealer: _rebuilt(pairs, threshold) for dealer, pairs in shares.items()})
        return found[0], found[1]

    def _unmask(self) -> Unmask:
        seeds, mask_keys = self._secrets()
        return Unmask(self.context, group_sums(self.context, self._groups, self._uploads_by(), seeds, mask_keys))

    def _uploads_by(self) -> Mapping[int, bytes]:
        return {item: self._uploads[item][0] for item in self._survivors}


def _rebuilt(pairs: list[tuple[int, bytes]], threshold: int) -> bytes:
    try:
        return combine(pairs, threshold=threshold)
    except SecureAggregationError:
        return bytes(32)


def group_sums(
    context: RoundContext,
    groups_of: tuple[Group, ...],
    uploads: Mapping[int, bytes],
    seeds: Mapping[int, bytes],
    mask_keys: Mapping[int, bytes],
) -> tuple[GroupSum, ...]:
    """Work out which masks are left in each group's sum of uploads.

    Args:
        context: Of the attempt.
        groups_of: The mask groups.
        uploads: Digest of each survivor's upload, by position.
        seeds: b_i of each survivor.
        mask_keys: c_sk of each that dropped between freeze and upload.

    Returns:
        For each group with survivors: what to add up, and what to add so that all masks cancel.
    """
    found = []
    for group in groups_of:
        members = tuple(item for item in group.members if item in uploads)
        if not members:
            continue
        terms = [MaskTerm(seeds[item], -1) for item in members]
        for gone in sorted(set(group.members).intersection(mask_keys)):
            key = AgreementKey(mask_keys[gone])
            for item in members:
                seed = pair_seed(key, context.roster[item].mask_key, context.hash, gone, item)
                terms.append(MaskTerm(seed, -1 if item < gone else 1))
        found.append(GroupSum(members, tuple(uploads[item] for item in members), tuple(terms)))
    return tuple(found)


_STATEMENTS: Final[Mapping[str, type[Statement]]] = {
    item.KIND: item for item in (Accept, Ready, Upload, Survived, Release, Complaint, Refused)
}

_CHECKS: Final[Mapping[str, Callable[[Attempt, int, Any], bool]]] = {
    "accept": Attempt._new_accept,
    "ready": Attempt._new_ready,
    "upload": Attempt._new_upload,
    "survived": Attempt._new_survived,
    "release": Attempt._new_release,
    "complaint": Attempt._new_complaint,
    "refused": Attempt._new_refused,
}

_PHASES: Final[Mapping[str, Callable[[Attempt, Decision, float], None]]] = {
    "accepting": Attempt._close_accepting,
    "training": Attempt._close_training,
    "uploading": Attempt._close_uploading,
    "signing": Attempt._close_signing,
    "releasing": Attempt._close_releasing,
}
