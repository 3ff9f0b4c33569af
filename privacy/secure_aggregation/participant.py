"""The participant's side of a secure sum: statements in, notes, answers and work out.

The caller MUST make the notes of a :class:`Step` durable, in one transaction, before it sends an answer or does any
work: a prekey is used up on disk before its keys speak, and what was promised once is never promised differently after
a crash. Replaying the notes gives the machine back. The same statement may come twice (a reconnection); the answer is
then the same bytes. One that comes before its turn waits. One that contradicts an earlier one is refused, and the
refusal is signed; a refusal changes nothing else.

Attacks that the checks here answer stand beside them: A1 to A15 as in ``docs/secure-aggregation.md``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Final

from privacy.secure_aggregation.checks import (
    check_evidence,
    check_group,
    check_published,
    check_quorum,
    coordinator_key,
    enough,
    read_acceptances,
    read_parcels,
    read_survivors,
)
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.errors import Refusal, SecureAggregationError
from privacy.secure_aggregation.graph import group_of, groups
from privacy.secure_aggregation.hand import Hand, Unreadable, differences, planned, recall
from privacy.secure_aggregation.history import History
from privacy.secure_aggregation.keys import Random, Secret, SigningKey
from privacy.secure_aggregation.members import MemberList
from privacy.secure_aggregation.memory import Assignment, Deliver, Discard, Forget, Note, Step
from privacy.secure_aggregation.policy import SitePolicy, check_base, check_context
from privacy.secure_aggregation.prekeys import PrekeySecret, PrekeyStock
from privacy.secure_aggregation.sharing import deal, seed_commitment
from privacy.secure_aggregation.signed import cleaned
from privacy.secure_aggregation.statements import (
    PARCELS,
    Accept,
    Acceptance,
    Delivery,
    Doubt,
    Evidence,
    Freeze,
    Plan,
    Quorum,
    Ready,
    Refused,
    Release,
    Result,
    RoundStatement,
    Signed,
    Survivors,
    UploadReceipt,
    kind_of,
    positions_bytes,
    positions_of,
)
from privacy.transcript import encode

NO_CONTEXT: Final = bytes(32)

_READS: Final[Mapping[str, type[RoundStatement]]] = {
    item.KIND: item for item in (Delivery, Evidence, Freeze, UploadReceipt, Survivors, Quorum, Result, Refused)
}
_IN_ORDER: Final = (Freeze.KIND, Survivors.KIND, Quorum.KIND)
_NEWS: Final = (Result.KIND, Refused.KIND, UploadReceipt.KIND)


class Participant(Secret):
    """One institution's state machine over all secure sums of a federation.

    Formal Guarantees:
        Against a coordinator that deviates in any way and at most c corrupt keepers (``thresholds``), the coordinator
        learns of this participant's update at most its part in sums of at least ``floor`` updates, among them two
        honest ones, or, where sums of groups are asked for, in sums of whole atoms (``atoms`` has the statement); no
        update enters two sums that may both become known (``history.History.reuse``); and no two sums over trainings
        from one model differ by one participant (``history.History.check_sets``, or the atoms). The argument is that of
        Bonawitz et al. 2017, section 6.2, with keys bound to the context hash. For each context: one acceptance, one
        masked update, one signature on survivors, one release, in which a dealer stands with one kind of share.

    Args:
        name: In the member list.
        key: The institution's signing key.
        members: The pinned member list; replace the attribute when it grows.
        policy: The site's rules.
        random: Where keys, seeds and polynomials come from.
    """

    def __init__(
        self, name: str, key: SigningKey, members: MemberList, policy: SitePolicy, random: Random = os.urandom
    ) -> None:
        self.name = name
        self.members = members
        self._key = key
        self._policy = policy
        self._random = random
        self.stock = PrekeyStock(members.federation, name, key, random)
        self._history = History()
        self._trained: Assignment | None = None
        self._hand: Hand | None = None
        # Of the last sum that a quorum has agreed on: its round, how many were asked, and the fewest that are in it.
        self.published = (0, 0, 0)

    @property
    def policy(self) -> SitePolicy:
        """The site's rules; a run may add to them."""
        return self._policy

    @policy.setter
    def policy(self, policy: SitePolicy) -> None:
        self._policy = policy

    # ---- inputs -----------------------------------------------------------------------------------------------------

    def restore(self, notes: Iterable[Note]) -> Step:
        """Take the stored notes in, oldest first; what is owed after the restart.

        Mask files of attempts other than the one whose work is returned here are nobody's: delete them.
        """
        for note in notes:
            if note.kind in ("prekey", "prekey-last"):
                self.stock.restore(note.kind, note.body)
            elif note.kind == "planned":
                self._hand = planned(note, self.name)
            elif not self._history.restore(note):
                assert self._hand is not None and self._hand.context.hash == note.context
                recall(self._hand, note)
        step = Step()
        if self._hand is not None and self._hand.masks:
            step.work.append(self._hand.expand())
        elif self._hand is not None and self._hand.delivery is not None:
            step.work.append(Discard(self._hand.context.hash))
        return step

    def offer(self, now_s: float) -> Step:
        """Offer all unused prekeys, making new ones where few are left; erase an attempt whose time is over."""
        step = Step()
        if self._hand is not None and now_s > self._hand.context.expires_s:
            self._retire(step, self._hand)
            self._hand = None
        step.changes += self.stock.fill(now_s)
        step.answers.append(self.stock.batch().signed(self._key))
        return step

    def plan(self, signed: Signed, task: Assignment, now_s: float) -> Step:
        """The coordinator proposes an attempt at the task in hand."""
        bound = NO_CONTEXT
        try:
            opened = Plan.opened(signed, coordinator_key(self.members, now_s), "the coordinator")
            context = RoundContext.parse(opened.context)
            bound = context.hash
            if self._hand is not None and self._hand.context.hash == bound:
                return Step(answers=[self._hand.accept] if self._hand.delivery is None else [])
            return self._accept(context, task, now_s)
        except SecureAggregationError as error:
            return self._refuse(error, bound)

    def receive(self, signed: Signed, now_s: float) -> Step:
        """Any other statement of the coordinator."""
        bound = NO_CONTEXT
        try:
            kind = kind_of(signed.body)
            if kind not in _READS:
                raise Refusal("statement-unknown", f"a statement of kind {kind[:32]!r} isn't one a participant answers")
            opened = _READS[kind].opened(signed, coordinator_key(self.members, now_s), "the coordinator")
            bound = opened.context
            hand = self._hand
            if hand is None or hand.context.hash != bound:
                if kind in _NEWS:
                    return Step()  # late news of an attempt that is over here
                raise Refusal("context-unknown", f"a {kind!r} came for an attempt that this site isn't in (any more)")
            if now_s > hand.context.expires_s and kind not in _NEWS:
                raise Refusal("expired", f"a {kind!r} came after the attempt's end")
            if kind in _IN_ORDER and not _due(hand, kind):
                hand.early[kind] = signed
                return Step()
            step = self._handle(hand, opened, signed)
        except SecureAggregationError as error:
            return self._refuse(error, bound)
        waiting = next((item for item in _IN_ORDER if item in hand.early and _due(hand, item)), None)
        if waiting is not None and self._hand is hand:
            _append(step, self.receive(hand.early.pop(waiting), now_s))
        return step

    def trained(self, task: Assignment) -> Step:
        """The task's result is on this site's disk."""
        self._trained = task
        step = Step()
        if self._hand is not None and self._hand.delivery is not None:
            self._go_on(step, self._hand)
        return step

    def expanded(self, context: bytes) -> Step:
        """The masks that :class:`Expand` asked for are there."""
        step = Step()
        hand = self._hand
        if hand is None or hand.context.hash != context or not hand.masks:
            step.work.append(Discard(context))  # the attempt ended, or went on without this site, in the meantime
            return step
        hand.expanded = True
        self._mask_when_possible(step, hand)
        return step

    def masked(self, context: bytes, digest: bytes) -> Step:
        """The masked update is on this site's disk under ``digest``: from here on the masks are gone."""
        hand = self._hand
        if hand is None or hand.context.hash != context or hand.frozen is None or hand.position not in hand.frozen:
            return Step()
        if hand.digest is not None and hand.digest != digest:
            error = Refusal("second-upload", "the masked update would differ from the one made before")
            return self._refuse(error, context)
        step = Step()
        if hand.digest is None:
            hand.digest = digest
            step.changes.append(Note("masked", context, digest))
            step.changes += self._history.enter(hand.context, hand.position)
            # What could unmask the update at this site goes before the update leaves it.
            self._drop_secrets(step, hand)
        step.work += [Discard(context), Deliver(hand.context, digest)]
        return step

    def delivered(self, context: bytes) -> Step:
        """The masked update is on the coordinator's disk: announce it."""
        hand = self._hand
        if hand is None or hand.context.hash != context or hand.digest is None:
            return Step()
        return Step(answers=[hand.upload().signed(self._key)])

    def in_hand(self, context: bytes) -> bool:
        """Whether this is the attempt in hand; work for another one may stop where it is."""
        return self._hand is not None and self._hand.context.hash == context

    # ---- plan -------------------------------------------------------------------------------------------------------

    def _accept(self, context: RoundContext, task: Assignment, now_s: float) -> Step:
        """Agree to a plan, or raise before anything has changed."""
        check_context(context, self._policy, self.members, self._history.earlier, now_s)
        position = context.position(self.name)
        if position is None:
            raise Refusal("roster-without-me", "the roster doesn't hold this site")
        for name in differences(context, position, task):  # A3: another model, task or shape for one participant
            what = "model-mismatch" if name in ("base_digest", "dimension") else "task-mismatch"
            raise Refusal(what, f"the plan's {name} isn't that of the task this site was given")
        check_base(context, position, self._policy)
        self._history.check_atom(context, position)
        prekey = self.stock.find(context.roster[position])
        seed = self._random(32)
        parcels = PARCELS.write(deal(context, position, prekey.mask_key, prekey.share_key, seed, self._random))
        # Nothing is refused from here on.
        step = Step()
        if self._hand is not None:
            self._retire(step, self._hand)
        accept = self._acceptance(context, position, prekey, seed, parcels)
        h = context.hash
        step.changes.append(self.stock.burn(prekey))
        step.changes += self._history.attempted(context)
        step.changes += self._history.placed(context, position)
        step.changes += [
            Note("planned", h, encode((context.canonical(), accept.body, accept.signature))),
            Note("secrets", h, encode((prekey.mask_key.secret, seed))),
            Note("share-key", h, prekey.share_key.secret),
        ]
        self._hand = Hand(context, position, accept, prekey.mask_key, prekey.share_key, seed)
        step.answers.append(accept)
        return step

    def _acceptance(
        self, context: RoundContext, position: int, prekey: PrekeySecret, seed: bytes, parcels: bytes
    ) -> Signed:
        acceptance = Acceptance(
            context.hash,
            position,
            prekey.beacon,
            seed_commitment(context.hash, position, seed),
            self._history.retired_in(context),
        )
        return Accept(
            context.hash,
            position,
            acceptance.beacon,
            acceptance.commitment,
            acceptance.retired,
            acceptance.signed(self._key).signature,
            parcels,
        ).signed(self._key)

    # ---- statements of an attempt -----------------------------------------------------------------------------------

    def _handle(self, hand: Hand, opened: RoundStatement, signed: Signed) -> Step:
        match opened:
            case Delivery():
                return self._delivery(hand, opened, signed)
            case Evidence():
                return self._evidence(hand, opened)
            case Freeze():
                return self._freeze(hand, opened)
            case UploadReceipt():
                return self._receipt(hand, opened, signed)
            case Survivors():
                return self._survivors(hand, opened, signed)
            case Quorum():
                return self._quorum(hand, opened)
            case Result():
                return self._result(hand, opened)
            case _:
                return self._aborted(hand)

    def _delivery(self, hand: Hand, opened: Delivery, signed: Signed) -> Step:
        step = Step()
        if hand.delivery is not None:
            if hand.delivery != signed.body:
                raise Refusal("second-delivery", "another delivery came before; the accepted set is fixed")
            self._go_on(step, hand)
            return step
        acceptances = read_acceptances(opened, hand.context, self.members)
        if hand.position not in acceptances:
            raise Refusal("not-accepted", "the accepted set doesn't hold this site")
        parcels = read_parcels(opened, hand, acceptances)
        if isinstance(parcels, Unreadable):
            hand.doubted = parcels
            return Step(answers=[Doubt(hand.context.hash, parcels.dealer).signed(self._key)])
        found = groups(hand.context, {item: acceptance.beacon for item, acceptance in acceptances.items()})
        mine = group_of(found, hand.position)
        check_group(hand, mine, frozenset(acceptances), self._policy, "the accepted set")
        self._history.reuse(hand.context, hand.position, acceptances.values())
        hand.take(signed.body, acceptances, found, parcels)
        step.changes.append(Note("delivered", hand.context.hash, signed.body))
        if not hand.context.freeze:
            hand.frozen = hand.accepted
            step.changes.append(Note("frozen", hand.context.hash, positions_bytes(hand.accepted)))
        if mine is None:
            self._drop_secrets(step, hand)  # a mate of this site's atom is missing: it only keeps shares
        else:
            step.work.append(hand.expand())
            self._go_on(step, hand)
        return step

    def _evidence(self, hand: Hand, opened: Evidence) -> Step:
        """The dealer's own word on a parcel that this keeper couldn't read."""
        if hand.doubted is None:
            return Step()
        complaint = check_evidence(opened, hand, hand.doubted, self.members)
        return Step(answers=[complaint.signed(self._key)])

    def _go_on(self, step: Step, hand: Hand) -> None:
        """Say that the update is trained, or go on from where that has led."""
        if hand.group() is None or not hand.is_for(self._trained):
            return
        if hand.digest is not None:
            step.work.append(Deliver(hand.context, hand.digest))
        elif hand.frozen is None:
            step.answers.append(Ready(hand.context.hash).signed(self._key))
        else:
            self._mask_when_possible(step, hand)

    def _freeze(self, hand: Hand, opened: Freeze) -> Step:
        step = Step()
        members = frozenset(positions_of(opened.members))
        if hand.frozen is not None:
            if hand.frozen != members:
                raise Refusal("second-freeze", "another freeze came before; the frozen set is fixed")
            self._go_on(step, hand)
            return step
        if not members <= hand.accepted:
            raise Refusal("freeze-foreign", "the frozen set holds someone who never accepted")
        if hand.position not in members and hand.is_for(self._trained) and hand.missed_by(members):
            raise Refusal("freeze-without-me", "the frozen set leaves this site out although it was ready")
        enough(len(members), hand.context.floor, "are left")
        check_group(hand, hand.group(), members, self._policy, "the frozen set")
        hand.frozen = members
        step.changes.append(Note("frozen", hand.context.hash, opened.members))
        if hand.position in members:
            self._mask_when_possible(step, hand)
        else:  # too late, or a mate is: this site only keeps shares for the others; its own masks are in no upload
            self._drop_secrets(step, hand)
            step.work.append(Discard(hand.context.hash))
        return step

    def _mask_when_possible(self, step: Step, hand: Hand) -> None:
        if hand.frozen is None or not hand.masks or not hand.expanded or hand.masking:
            return
        if hand.is_for(self._trained):
            hand.masking = True
            step.work.append(hand.mask())

    def _receipt(self, hand: Hand, opened: UploadReceipt, signed: Signed) -> Step:
        """The coordinator has this site's masked update: kept as evidence, in case it denies that later (A11)."""
        if (opened.position, opened.digest) != (hand.position, hand.digest):
            raise Refusal("receipt-foreign", "the receipt is for another upload than this site has made")
        return Step(changes=self._history.receipted(signed))

    # ---- survivors, release, end ------------------------------------------------------------------------------------

    def _survivors(self, hand: Hand, opened: Survivors, signed: Signed) -> Step:
        if hand.survived is not None:
            if hand.survivors_body != signed.body:
                raise Refusal("second-survivors", "another survivor set was signed before; a keeper signs one")
            return Step(answers=[hand.survived])
        context = hand.context
        if not hand.keeps:
            raise Refusal("protocol-order", "a survivor set came to a participant that keeps no shares")
        assert hand.frozen is not None
        uploads = read_survivors(opened, context, self.members, hand.accepted, hand.frozen)
        if uploads.get(hand.position, hand.digest) != hand.digest:
            raise Refusal("upload-foreign", "the upload in this site's name isn't the one that it made")
        members = frozenset(uploads)
        check_published(hand, members, self._policy)
        if not context.group_size:  # sums of groups differ by whole atoms
            least = max(self._policy.min_roster_change, context.roster_change)
            self._history.check_sets(context, hand.sets(members), least, self._policy.setting("min_roster_change"))
        survived = hand.survived_by(members).signed(self._key)
        hand.survivors, hand.survivors_body, hand.survived = members, signed.body, survived
        note = Note("survived", context.hash, encode((signed.body, survived.body, survived.signature)))
        return Step(changes=[note], answers=[survived])

    def _quorum(self, hand: Hand, opened: Quorum) -> Step:
        context = hand.context
        assert hand.survivors is not None
        check_quorum(opened, hand.survived_by(hand.survivors), context, self.members)
        number, _, fewest = self.published
        members = min(fewest, len(hand.survivors)) if number == context.round else len(hand.survivors)
        self.published = (context.round, len(context.roster), members)
        if hand.release is not None:
            return Step(answers=[hand.release])
        release: Release = hand.released()
        hand.release = release.signed(self._key)
        # The other shares are erased with the key that opens them: nothing is left to release a second time.
        hand.parcels, hand.share_key = {}, None
        changes = [
            Note("released", context.hash, encode((hand.release.body, hand.release.signature))),
            Forget(context.hash, "share-key"),
            *self._history.publish(context, hand.sets(hand.survivors)),
            *(self._history.spend(context) if hand.position in hand.survivors else self._history.spare(context)),
        ]
        return Step(changes=changes, answers=[hand.release])

    def _result(self, hand: Hand, opened: Result) -> Step:
        """The sum is known: this attempt is over and its update is spent."""
        if hand.survivors is not None and hand.survivors != frozenset(positions_of(opened.survivors)):
            raise Refusal("result-foreign", "the result names other survivors than this keeper has signed")
        step = Step(changes=[Forget(hand.context.hash)], work=[Discard(hand.context.hash)])
        # In doubt, this site's update is in the sum; whoever left it out had a quorum's word for it before.
        step.changes += self._history.spend(hand.context)
        self._hand = None
        return step

    def _aborted(self, hand: Hand) -> Step:
        """The coordinator gave the attempt up: erase the shares, so that its sum can never be revealed."""
        step = Step()
        self._retire(step, hand)
        self._hand = None
        return step

    def _retire(self, step: Step, hand: Hand) -> None:
        """Erase an attempt. Unless a share of it was released, it can be stated to be retired."""
        step.changes.append(Forget(hand.context.hash))
        step.work.append(Discard(hand.context.hash))
        if hand.release is None:
            step.changes += self._history.retire(hand.context)

    def _drop_secrets(self, step: Step, hand: Hand) -> None:
        hand.mask_key, hand.seed = None, None
        step.changes.append(Forget(hand.context.hash, "secrets"))

    # ---- refusals ---------------------------------------------------------------------------------------------------

    def _refuse(self, error: SecureAggregationError, context: bytes) -> Step:
        setting = error.setting if isinstance(error, Refusal) else ""
        refusal = error if isinstance(error, Refusal) else Refusal(error.code, error.message)
        statement = Refused(context, refusal.code[:64], setting[:64], cleaned(refusal.message, 1000))
        return Step(answers=[statement.signed(self._key)], refusal=refusal)


def _due(hand: Hand, kind: str) -> bool:
    """Whether what must come before a statement of this kind has come."""
    before = {Freeze.KIND: hand.delivery, Survivors.KIND: hand.frozen, Quorum.KIND: hand.survived}
    return before[kind] is not None


def _append(step: Step, more: Step) -> None:
    step.changes += more.changes
    step.answers += more.answers
    step.work += more.work
    step.refusal = more.refusal or step.refusal
