"""What a site demands of a secure sum before it takes part, whatever the coordinator proposes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Final

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.errors import Refusal, SecureAggregationError
from privacy.secure_aggregation.keys import KEY_BYTES
from privacy.secure_aggregation.members import MemberList
from privacy.secure_aggregation.signed import signature_holds
from privacy.secure_aggregation.thresholds import MIN_COHORT

SECTION: Final = "[secure_aggregation]"
"""Where a site writes these settings."""

MAX_REMEMBERED: Final = 32
"""The most earlier rosters that a site compares a new one with."""

# The u-coordinates of the points of order 1, 2, 4 and 8 on Curve25519 and its twist (Bernstein 2006, "validate"): with
# one of them the shared secret is zero whatever the private key is.
_FIELD: Final = 2**255 - 19
_LOW_ORDER: Final = frozenset(
    (
        0,
        1,
        _FIELD - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SitePolicy:
    """A site's rules for secure sums. Each is a setting of the site's own configuration.

    Attributes:
        min_cohort: The fewest participants whose sum may be published; at least 3.
        min_corrupt_percent: The coordinator must assume at least so many corrupt participants in large cohorts.
        min_roster_change: A roster must equal each of the last ``remembered_rosters`` ones or differ from it by at
            least so many members: the difference of two sums is then never one institution's update. For one sum;
            sums of groups differ by whole atoms.
        remembered_rosters: How many earlier rosters are compared.
        min_group: Where a plan asks for sums of groups: the smallest atom, hence the fewest among whom this site's
            update is hidden over a whole run, whatever groups the atoms are put into (``atoms``).
        min_same_base: Where participants train at their own pace: from the version that this site's update was trained
            from, at least so many updates of a sum must be. See :func:`check_base`.
        max_value_bits: The most bits that one value may take.
        max_clip_norm: The largest L2 norm that an update may keep.
        max_clip_value: The largest single value that an update may keep.
        min_honest: The fewest honest participants that a published sum must hold: where they share a privacy noise, it
            is sized for so many. Set by the run's plan, not by a person.

    Raises:
        SecureAggregationError: "policy-invalid", naming the setting, for a value that would switch a rule off unseen.
    """

    min_cohort: int = MIN_COHORT
    min_corrupt_percent: int = 10
    min_roster_change: int = 2
    remembered_rosters: int = 5
    min_group: int = MIN_COHORT
    min_same_base: int = 1
    max_value_bits: int = 30
    max_clip_norm: float = 1e4
    max_clip_value: float = 1e3
    min_honest: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, low, high in (
            ("min_cohort", MIN_COHORT, math.inf),
            ("min_corrupt_percent", 1, 33),
            ("min_roster_change", 1, math.inf),
            ("remembered_rosters", 0, MAX_REMEMBERED),
            ("min_group", MIN_COHORT, math.inf),
            ("min_same_base", 1, math.inf),
            ("max_value_bits", 2, 30),
        ):
            if not low <= getattr(self, name) <= high:
                raise SecureAggregationError(
                    "policy-invalid",
                    f"{self.setting(name)} is {getattr(self, name)}; it must lie between {low} and {high}",
                )
        for name in ("max_clip_norm", "max_clip_value"):
            if not getattr(self, name) > 0:
                raise SecureAggregationError("policy-invalid", f"{self.setting(name)} must be positive")

    def setting(self, name: str) -> str:
        """How a refusal names a setting."""
        return f"{SECTION} {name}"


@dataclasses.dataclass(frozen=True)
class Earlier:
    """An attempt that this site accepted before: its place in time and its roster."""

    run_id: str
    round: int
    attempt: int
    roster: frozenset[str]


def check_context(
    context: RoundContext, policy: SitePolicy, members: MemberList, earlier: Sequence[Earlier], now_s: float
) -> None:
    """Refuse a plan that breaks a rule of the protocol or of this site.

    Args:
        context: As parsed.
        policy: The site's.
        members: The list that this site has pinned.
        earlier: Attempts accepted before, oldest first.
        now_s: Seconds since the epoch, by the site's clock.

    Raises:
        Refusal: With the rule's code and the setting that decides.
    """
    # Cheap rules come first: signatures are only looked at in plans that could be accepted.
    _check_time(context, earlier, now_s)
    _check_numbers(context, policy)
    _check_atoms(context, policy)
    _check_encoding(context, policy)
    _check_roster(context, members, now_s)
    if not context.group_size:
        _check_change(context, policy, members, earlier, now_s)


def check_base(context: RoundContext, position: int, policy: SitePolicy) -> None:
    """Refuse an asynchronous sum in which too few others started from this site's own base version.

    In a synchronous round all train from one model. Here a coordinator that makes versions up could give each site a
    model of its own: those from which the others learn nothing, so that the sum is one site's update (model
    inconsistency; Pasquini et al., CCS 2022). With m updates of a sum from one version, and the same digest of it for
    all of them, the sum hides each of these as a synchronous one of m would, whatever the others' models were. Whom the
    coordinator may drop from the sum is each keeper's to judge (``graph.Group``), by the number in the context.

    Raises:
        Refusal: "base-alone".
    """
    if not context.bases or policy.min_same_base <= 1:
        return
    own = context.bases[position]
    same = sum(1 for base in context.bases if (base.version, base.digest) == (own.version, own.digest))
    if min(same, context.same_base) < policy.min_same_base:
        raise Refusal(
            "base-alone",
            f"{same} of the {len(context.bases)} updates of the sum were trained from version {own.version}, as this "
            f"site's, and the plan asks for {context.same_base}; this site asks for {policy.min_same_base} at least",
            policy.setting("min_same_base"),
        )


def _check_time(context: RoundContext, earlier: Iterable[Earlier], now_s: float) -> None:
    if context.expires_s <= now_s:
        raise Refusal("expired", f"round {context.round} could be answered until {context.expires_s}, which is over")
    for item in earlier:
        if item.run_id == context.run_id and (context.round, context.attempt) <= (item.round, item.attempt):
            raise Refusal(
                "round-replayed",
                f"attempt {context.attempt} of round {context.round} comes after attempt {item.attempt} of round "
                f"{item.round}, which this site has taken part in",
            )


def _check_roster(context: RoundContext, members: MemberList, now_s: float) -> None:
    if context.federation != members.federation:
        raise Refusal("federation-foreign", f"the plan is for federation {context.federation!r}")
    if (context.members_count, context.members_head) != (members.count, members.head):
        raise Refusal(
            "members-differ",
            f"the plan is made for another member list (of {context.members_count} entries) than this site has pinned "
            f"({members.count} entries)",
        )
    names = context.names
    if list(names) != sorted(set(names)):
        raise Refusal("roster-duplicate", "the roster names a participant twice, or isn't sorted")
    keys = [key for seat in context.roster for key in (seat.mask_key, seat.share_key)]
    if len(set(keys)) != len(keys):
        raise Refusal("prekey-duplicate", "two prekeys of the roster hold the same key")
    for seat in context.roster:
        member = members.participant(seat.name)
        if member is None:
            raise Refusal(
                "member-unknown", f"{seat.name} is in the roster but the federation's root never certified it"
            )
        if not member.valid_at(now_s):
            raise Refusal("member-expired", f"the certificate of {seat.name} has expired")
        if not signature_holds(seat.prekey(context.federation), member.public_key):
            raise Refusal("prekey-signature", f"the prekey of {seat.name} isn't signed by {seat.name}")
        if seat.expires_s <= now_s:
            raise Refusal("prekey-expired", f"the prekey {seat.index} of {seat.name} has expired")
        if not (agrees(seat.mask_key) and agrees(seat.share_key)):
            raise Refusal("key-invalid", f"the prekey of {seat.name} holds a point of low order: it would mask nothing")


def agrees(public: bytes) -> bool:
    """Whether an X25519 public key leads to shared secrets at all: it isn't one of the points of low order (A2)."""
    # RFC 7748 ignores the highest bit and takes numbers above the field's size mod p.
    return len(public) == KEY_BYTES and int.from_bytes(public, "little") % (1 << 255) % _FIELD not in _LOW_ORDER


def _check_numbers(context: RoundContext, policy: SitePolicy) -> None:
    try:
        numbers = context.numbers
    except SecureAggregationError as error:
        raise Refusal(error.code, error.message) from None
    if context.min_cohort < policy.min_cohort:
        raise Refusal(
            "cohort-floor",
            f"the plan publishes sums of {context.min_cohort}; this site asks for {policy.min_cohort} at least",
            policy.setting("min_cohort"),
        )
    if len(context.roster) < numbers.floor:
        raise Refusal(
            "cohort-floor",
            f"the roster has {len(context.roster)} participants; a sum needs {numbers.floor}",
            policy.setting("min_cohort"),
        )
    least = numbers.floor - numbers.corrupt if not context.group_size else 0
    if least < policy.min_honest:
        raise Refusal(
            "noise-floor",
            f"a sum over this roster of {len(context.roster)} may hold as few as {least} honest participants; the "
            f"noise that they share is sized for {policy.min_honest}",
            "[rounds] min_participants",
        )
    if context.corrupt_percent < policy.min_corrupt_percent:
        raise Refusal(
            "corrupt-bound",
            f"the plan assumes {context.corrupt_percent} % corrupt participants; "
            f"this site asks for {policy.min_corrupt_percent} % at least",
            policy.setting("min_corrupt_percent"),
        )


def _check_atoms(context: RoundContext, policy: SitePolicy) -> None:
    if not context.group_size:
        return
    smallest = min(context.group_size, *map(len, context.atom_members))
    if smallest < policy.min_group:
        raise Refusal(
            "group-floor",
            f"the plan publishes sums of groups that are made of {smallest} participants; this site asks for "
            f"{policy.min_group} at least",
            policy.setting("min_group"),
        )


def _check_encoding(context: RoundContext, policy: SitePolicy) -> None:
    encoding = context.encoding
    try:
        encoding.check(len(context.roster))
    except SecureAggregationError as error:
        raise Refusal(error.code, error.message) from None
    for name, value, most in (
        ("max_value_bits", encoding.value_bits, policy.max_value_bits),
        ("max_clip_norm", encoding.clip_norm, policy.max_clip_norm),
        ("max_clip_value", encoding.clip_value, policy.max_clip_value),
    ):
        if value > most:
            raise Refusal(
                "encoding-range",
                f"the plan's {name.removeprefix('max_')} is {value}; this site allows {most}",
                policy.setting(name),
            )


def _check_change(
    context: RoundContext, policy: SitePolicy, members: MemberList, earlier: Sequence[Earlier], now_s: float
) -> None:
    least = max(policy.min_roster_change, context.roster_change)
    roster = frozenset(context.names)
    active = {name for name, member in members.members().items() if member.valid_at(now_s)}
    for item in earlier[-policy.remembered_rosters :] if policy.remembered_rosters else ():
        # Whom the root has removed is gone for good: that isn't the coordinator's choice, and no site could go on.
        changed = roster ^ (item.roster & active)
        if 0 < len(changed) < least:
            raise Refusal(
                "roster-change",
                f"the roster differs from that of round {item.round} by {', '.join(sorted(changed))} only; the "
                f"difference of the two sums would tell about so few. This site asks for {least} at least, or none",
                policy.setting("min_roster_change"),
            )
