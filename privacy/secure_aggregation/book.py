"""What has been said in one attempt, as the coordinator knows it: a fold over the records of its log."""

from __future__ import annotations

from typing import Final

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.decisions import Failed, Phase, Record
from privacy.secure_aggregation.graph import Group, groups, publishable
from privacy.secure_aggregation.sharing import commitment_of, open_parcel
from privacy.secure_aggregation.statements import (
    ACCEPTANCES,
    PARCELS,
    UPLOADS,
    Accept,
    Accepted,
    Complaint,
    Delivery,
    Evidence,
    Excused,
    Freeze,
    Plan,
    Quorum,
    Ready,
    Refused,
    Release,
    Signed,
    Survived,
    Survivors,
    Upload,
    kind_of,
    positions_of,
)

SPOKEN: Final = {item.KIND: item for item in (Accept, Ready, Upload, Survived, Release, Complaint, Refused)}
"""Kinds of the participants' statements that stand in the log."""


class Book:
    """The state of one attempt. :meth:`apply` is all that changes it, so the log gives it back.

    Args:
        context: Of the attempt.
        step_s: Seconds that a quick answer is waited for.
        deadline_s: Seconds that training, and then the uploads, are waited for.
    """

    def __init__(self, context: RoundContext, *, step_s: float, deadline_s: float) -> None:
        self.context = context
        self.phase: Phase = "accepting"
        self.failed: Failed | None = None
        self.ends_s = 0.0
        self.said: dict[str, Signed] = {}
        self.accepts: dict[int, Accept] = {}
        self.signed_accepts: dict[int, Signed] = {}
        self.excluded: dict[int, str] = {}
        self.refusers: set[int] = set()
        self.blamed = False
        self.ready: set[int] = set()
        self.uploads: dict[int, tuple[bytes, bytes]] = {}
        self.survived: dict[int, bytes] = {}
        self.releases: dict[int, Release] = {}
        self.accepted: frozenset[int] = frozenset()
        self.groups: tuple[Group, ...] = ()
        self.frozen: frozenset[int] = frozenset()
        self.survivors: frozenset[int] = frozenset()
        self._step_s = step_s
        self._deadline_s = deadline_s

    # ---- log --------------------------------------------------------------------------------------------------------

    def apply(self, record: Record) -> None:
        """Take in a record. Statements of participants have passed ``intake.is_news``."""
        if record.sender:
            self._heard(record)
        else:
            self._said(kind_of(record.statement.body), record)

    def _heard(self, record: Record) -> None:
        position = self.context.position(record.sender)
        assert position is not None
        match SPOKEN[kind_of(record.statement.body)].parse(record.statement.body):
            case Accept() as opened:
                self.accepts[position] = opened
                self.signed_accepts[position] = record.statement
            case Ready():
                self.ready.add(position)
            case Upload() as opened:
                self.uploads[position] = (opened.digest, record.statement.signature)
            case Survived():
                self.survived[position] = record.statement.signature
            case Release() as opened:
                self.releases[position] = opened
            case Complaint() as opened:
                self._blame(position, opened)
            case Refused() as opened:
                self.refusers.add(position)
                self.excluded.setdefault(position, f"{record.sender} refuses: {opened.code}: {opened.message}")

    def _said(self, kind: str, record: Record) -> None:
        """Our own statements; most of them open the next phase."""
        body = record.statement.body
        if kind == Excused.KIND:
            excused = Excused.parse(body)
            self.excluded.setdefault(excused.position, excused.reason)
            return
        self.said[kind] = record.statement
        wait_s = self._deadline_s if kind in (Accepted.KIND, Freeze.KIND) else self._step_s
        # Nobody answers after the context's own end.
        self.ends_s = min(record.at_s + wait_s, float(self.context.expires_s))
        if kind == Accepted.KIND:
            self.accepted = frozenset(positions_of(Accepted.parse(body).members))
            self.groups = groups(self.context, {item: self.accepts[item].beacon for item in self.accepted})
            self.phase = "training"
            if not self.context.freeze:
                self.frozen, self.phase = self.accepted, "uploading"
        elif kind == Freeze.KIND:
            self.frozen = frozenset(positions_of(Freeze.parse(body).members))
            self.phase = "uploading"
        elif kind == Survivors.KIND:
            rows = UPLOADS.read(Survivors.parse(body).uploads)
            self.survivors = frozenset(int.from_bytes(row[0], "big") for row in rows)
            self.phase = "signing"
        elif kind == Quorum.KIND:
            self.phase = "releasing"
        elif kind == Refused.KIND:
            refused = Refused.parse(body)
            self.phase = "ended"
            excluded = frozenset(self.context.names[item] for item in self.excluded)
            # Once the quorum is out, shares may be, too.
            self.failed = Failed(refused.code, refused.message, excluded, Quorum.KIND in self.said)

    def _blame(self, keeper: int, opened: Complaint) -> None:
        """Whose fault an unreadable parcel is.

        If the key that the keeper shows opens it to what was committed to, the complaint is false. Otherwise the dealer
        sealed rubbish or the keeper shows a wrong key, and nobody else can tell which: both go, at least one of them
        rightly, so that every such quarrel costs the corrupt as many places as the honest.
        """
        self.blamed = True
        dealer, names = opened.offender, self.context.names
        sealed, commitment = PARCELS.read(self.accepts[dealer].parcels)[self.context.keepers.index(keeper)]
        parcel = open_parcel(opened.key, sealed, self.context.hash, dealer, keeper)
        if parcel is not None and commitment_of(self.context.hash, dealer, keeper, parcel) == commitment:
            self.excluded[keeper] = f"{names[keeper]} complains of a parcel of {names[dealer]} that is in order"
            return
        why = f"{names[keeper]} can't read the parcel that {names[dealer]} signed; one of the two is at fault"
        self.excluded[dealer] = self.excluded[keeper] = why

    # ---- sets -------------------------------------------------------------------------------------------------------

    def summable(self) -> frozenset[int]:
        """Whose updates may still be in the sum; nobody's where even all of these would be too few."""
        excluded = frozenset(self.excluded)
        if self.phase == "accepting":
            possible = frozenset(range(len(self.context.roster))) - excluded
            return possible if self.context.agrees(possible) else frozenset()
        possible = (self.frozen if self.phase == "uploading" else self.accepted) - excluded
        return publishable(self.groups, possible | frozenset(self.uploads))

    @property
    def keepers(self) -> frozenset[int]:
        """Keepers that were dealt shares."""
        return self.accepted.intersection(self.context.keepers)

    def dropped(self) -> frozenset[int]:
        """Those whose masks are in uploads of the sum although theirs isn't."""
        live = {item for group in self.groups if self.survivors.intersection(group.members) for item in group.members}
        return (self.frozen - self.survivors) & live

    # ---- statements that follow from the state ----------------------------------------------------------------------

    def acceptances(self) -> bytes:
        """An ``ACCEPTANCES`` table of U1."""
        rows = []
        for item in sorted(self.accepted):
            accept = self.accepts[item]
            rows.append((item.to_bytes(2, "big"), accept.beacon, accept.commitment, accept.acceptance_signature))
        return ACCEPTANCES.write(rows)

    def retirements(self) -> tuple[tuple[int, tuple[bytes, ...]], ...]:
        """(position, retired attempts) of those of U1 that have retired any."""
        accepts = ((item, self.accepts[item].retired) for item in sorted(self.accepted))
        return tuple((item, retired) for item, retired in accepts if retired)

    def delivery(self, position: int) -> Delivery:
        """What a participant of U1 is sent."""
        parcels = b""
        if position in self.context.keepers:
            index = self.context.keepers.index(position)
            width = sum(PARCELS.widths)
            tables = (self.accepts[item].parcels for item in sorted(self.accepted))
            parcels = b"".join(table[index * width : (index + 1) * width] for table in tables)
        return Delivery(self.context.hash, self.acceptances(), self.retirements(), parcels)

    def evidence(self, dealer: int) -> Evidence:
        """A dealer's own word on its parcels."""
        accept = self.signed_accepts[dealer]
        return Evidence(self.context.hash, dealer, accept.body, accept.signature)

    def owed(self, position: int) -> list[Signed | Delivery]:
        """The statements that a participant needs to be where the attempt is; a delivery is still to be signed."""
        if self.phase == "accepting":
            return [] if position in self.accepts else [self.said[Plan.KIND]]
        if position not in self.accepted:
            return []
        statements: list[Signed | Delivery] = [self.delivery(position)]
        if Freeze.KIND in self.said:
            statements.append(self.said[Freeze.KIND])
        if position in self.context.keepers and self.phase in ("signing", "releasing"):
            statements += [self.said[kind] for kind in (Survivors.KIND, Quorum.KIND) if kind in self.said]
        return statements
