"""Every rule of a site, with the name of its refusal and the setting that decides."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
from secure_world import ENCODING, NOW, World

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.errors import Refusal, SecureAggregationError
from privacy.secure_aggregation.keys import AgreementKey, SigningKey
from privacy.secure_aggregation.members import MemberList, Role
from privacy.secure_aggregation.policy import Earlier, SitePolicy, agrees, check_context
from privacy.secure_aggregation.statements import Prekey


@functools.cache
def world() -> World:
    return World(6)


@functools.cache
def plan() -> RoundContext:
    return world().context()


def check(
    context: RoundContext,
    policy: SitePolicy | None = None,
    earlier: list[Earlier] | None = None,
    members: MemberList | None = None,
    now_s: float = NOW,
) -> None:
    check_context(context, policy or SitePolicy(), members or world().members, earlier or [], now_s)


def refused(*arguments: Any, **named: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        check(*arguments, **named)
    return caught.value


def changed(**changes: Any) -> RoundContext:
    return dataclasses.replace(plan(), **changes)


def reseated(position: int, signer: SigningKey | None = None, **changes: Any) -> RoundContext:
    """The plan with a changed seat, signed by its owner or someone else."""
    seat = dataclasses.replace(plan().roster[position], **changes)
    prekey = Prekey("clinics", seat.name, seat.index, seat.mask_key, seat.share_key, seat.beacon_hash, seat.expires_s)
    key = signer or world().sites[plan().roster[position].name].key
    seat = dataclasses.replace(seat, signature=prekey.signed(key).signature)
    return changed(roster=(*plan().roster[:position], seat, *plan().roster[position + 1 :]))


def test_a_plan_in_order_passes() -> None:
    check(plan())


def test_a_roster_whose_shares_of_the_noise_would_not_be_enough_is_refused() -> None:
    """Whoever proposes a small roster, or sums of groups, would have less noise in the sum than is accounted."""
    numbers = plan().numbers
    least = numbers.floor - numbers.corrupt
    check(plan(), SitePolicy(min_honest=least))
    for policy, context in (
        (SitePolicy(min_honest=least + 1), plan()),
        (SitePolicy(min_honest=1), changed(group_size=3, atoms=(1, 1, 1, 2, 2, 2))),
    ):
        with pytest.raises(Refusal) as caught:
            check(context, policy)
        assert caught.value.code == "noise-floor"
        assert "min_participants" in caught.value.setting


@pytest.mark.parametrize(
    ("policy", "changes", "code", "setting"),
    [
        ({"min_cohort": 5}, {"min_cohort": 4}, "cohort-floor", "min_cohort"),
        ({}, {"min_cohort": 7}, "cohort-floor", "min_cohort"),
        ({"min_corrupt_percent": 25}, {}, "corrupt-bound", "min_corrupt_percent"),
        ({}, {"corrupt_percent": 9}, "corrupt-bound", "min_corrupt_percent"),
        ({"min_group": 4}, {"group_size": 3, "atoms": (1, 1, 1, 2, 2, 2)}, "group-floor", "min_group"),
        ({"min_group": 4}, {"group_size": 6, "atoms": (1, 2, 1, 2, 1, 2)}, "group-floor", "min_group"),
        ({}, {"group_size": 3, "atoms": (1, 1, 1, 1, 2, 2)}, "group-floor", "min_group"),
        ({}, {"group_size": 2, "atoms": (1, 1, 1, 2, 2, 2)}, "group-floor", "min_group"),
        ({}, {"group_size": 1, "atoms": (1, 1, 1, 2, 2, 2)}, "group-floor", "min_group"),
        ({"max_value_bits": 19}, {}, "encoding-range", "max_value_bits"),
        ({"max_clip_norm": 9.5}, {}, "encoding-range", "max_clip_norm"),
        ({"max_clip_value": 0.5}, {}, "encoding-range", "max_clip_value"),
        ({}, {"corrupt_percent": 0}, "corrupt-range", ""),
        ({}, {"corrupt_percent": 34}, "corrupt-range", ""),
        ({}, {"encoding": dataclasses.replace(ENCODING, value_bits=30)}, "overflow", ""),
        ({}, {"expires_s": int(NOW)}, "expired", ""),
        ({}, {"federation": "other"}, "federation-foreign", ""),
        ({}, {"members_count": 6}, "members-differ", ""),
        ({}, {"members_head": bytes(32)}, "members-differ", ""),
    ],
)
def test_each_rule_names_itself_and_its_setting(
    policy: dict[str, Any], changes: dict[str, Any], code: str, setting: str
) -> None:
    refusal = refused(changed(**changes), SitePolicy(**policy))
    assert (refusal.code, refusal.setting) == (code, f"[secure_aggregation] {setting}" if setting else "")
    assert setting in refusal.hint if setting else refusal.hint == "No setting allows it."


def test_the_strictest_value_that_a_plan_meets_passes() -> None:
    check(
        plan(),
        SitePolicy(min_corrupt_percent=20, max_value_bits=20, max_clip_norm=10.0, max_clip_value=1.0, min_cohort=3),
    )
    check(changed(min_cohort=6, group_size=6, atoms=(1,) * 6), SitePolicy(min_cohort=6, min_group=6))


@pytest.mark.parametrize(
    "values",
    [
        {"min_cohort": 2},
        {"min_corrupt_percent": 0},
        {"min_corrupt_percent": 34},
        {"min_roster_change": 0},
        {"remembered_rosters": -1},
        {"remembered_rosters": 33},
        {"min_group": 2},
        {"max_value_bits": 1},
        {"max_value_bits": 31},
        {"max_clip_norm": 0.0},
        {"max_clip_value": float("nan")},
    ],
)
def test_a_policy_that_would_switch_a_rule_off_unseen_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SecureAggregationError) as caught:
        SitePolicy(**values)
    assert caught.value.code == "policy-invalid"
    assert f"[secure_aggregation] {next(iter(values))}" in caught.value.message


# ---- roster ----------------------------------------------------------------------------------------------------------


def test_a_roster_out_of_order_or_with_one_name_twice_is_refused() -> None:
    roster = plan().roster
    assert refused(changed(roster=tuple(reversed(roster)))).code == "roster-duplicate"
    assert refused(changed(roster=(*roster, roster[-1]))).code == "roster-duplicate"


def test_one_key_in_two_places_is_refused() -> None:
    first = plan().roster[0]
    for changes in (
        {"mask_key": first.mask_key},
        {"share_key": first.mask_key},
        {"mask_key": first.share_key, "share_key": first.mask_key},
    ):
        assert refused(reseated(3, **changes)).code == "prekey-duplicate"
    seat = plan().roster[3]
    assert refused(reseated(3, share_key=seat.mask_key)).code == "prekey-duplicate"


def test_a_prekey_that_its_owner_did_not_sign_is_refused() -> None:
    other = world().sites["site-000"].key
    assert refused(reseated(3, other)).code == "prekey-signature"
    assert refused(changed(roster=(*plan().roster[:5], dataclasses.replace(plan().roster[5], index=77)))).code == (
        "prekey-signature"
    )


def test_an_expired_prekey_is_refused() -> None:
    assert refused(reseated(3, expires_s=int(NOW))).code == "prekey-expired"
    check(reseated(3, expires_s=int(NOW) + 1))


@pytest.mark.parametrize("field", ["mask_key", "share_key"])
def test_a_key_of_low_order_is_refused(field: str) -> None:
    assert refused(reseated(3, **{field: bytes(32)})).code == "key-invalid"


def test_low_order_is_exactly_what_leads_to_no_secret() -> None:
    prime = 2**255 - 19
    low = [0, 1, prime - 1, prime, prime + 1]
    low += [
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    ]
    for number in [*low, *(item + 2**255 for item in low)]:
        public = number.to_bytes(32, "little")
        assert not agrees(public)
        with pytest.raises(SecureAggregationError):
            AgreementKey.generate().agree(public)
    for number in (2, 9, prime - 2, prime + 2, 2**255 - 1, 2**256 - 1):
        public = number.to_bytes(32, "little")
        assert agrees(public)
        AgreementKey.generate().agree(public)
    assert not agrees(bytes(31))


def test_who_is_no_certified_participant_is_refused() -> None:
    members = world().members
    alone = changed(members_count=members.count + 1)
    removed = members.extend([world().root.remove(members, "site-002")])
    context = dataclasses.replace(alone, members_head=removed.head)
    assert refused(context, members=removed).code == "member-unknown"
    # The coordinator is a member, but no participant.
    seat = dataclasses.replace(plan().roster[0], name="coordinator")
    assert refused(changed(roster=(seat, *plan().roster[1:]))).code == "member-unknown"


def test_a_member_whose_certificate_has_expired_is_refused() -> None:
    members = world().members
    members = members.extend([world().root.remove(members, "site-002")])
    key = world().sites["site-002"].key.public
    members = members.extend([world().root.add(members, Role.PARTICIPANT, "site-002", key, valid_until=int(NOW) + 5)])
    context = changed(members_count=members.count, members_head=members.head)
    check(context, members=members)
    assert refused(context, members=members, now_s=NOW + 5).code == "member-expired"


# ---- time and change -------------------------------------------------------------------------------------------------


def earlier(names: str, run_id: str = "run-1", round_number: int = 0, attempt: int = 1) -> Earlier:
    return Earlier(run_id, round_number, attempt, frozenset(f"site-00{item}" for item in names))


@pytest.mark.parametrize(
    ("place", "fine"), [((1, 1), False), ((1, 2), False), ((2, 1), False), ((0, 9), True), ((0, 1), True)]
)
def test_an_attempt_comes_after_all_that_this_site_took_part_in(place: tuple[int, int], fine: bool) -> None:
    before = [earlier("012345", round_number=place[0], attempt=place[1])]
    if fine:
        check(plan(), earlier=before)
    else:
        assert refused(plan(), earlier=before).code == "round-replayed"
    check(plan(), earlier=[earlier("012345", "run-0", 9, 9)])


@pytest.mark.parametrize(
    ("names", "least", "fine"),
    [
        ("012345", 2, True),
        ("01234", 2, False),
        ("0123", 2, True),
        ("01234", 1, True),
        ("0123", 3, False),
        ("012", 3, True),
    ],
)
def test_a_roster_equals_the_earlier_ones_or_differs_by_enough(names: str, least: int, fine: bool) -> None:
    policy = SitePolicy(min_roster_change=least)
    if fine:
        check(changed(roster_change=1), policy, [earlier(names)])
    else:
        refusal = refused(changed(roster_change=1), policy, [earlier(names)])
        assert (refusal.code, refusal.setting) == ("roster-change", "[secure_aggregation] min_roster_change")
        assert "site-005" in refusal.message


def test_the_plans_own_rule_on_changes_counts_where_it_is_stricter() -> None:
    assert refused(changed(roster_change=3), SitePolicy(min_roster_change=1), [earlier("0123")]).code == "roster-change"


def test_only_so_many_earlier_rosters_are_compared() -> None:
    before = [earlier("01234"), *[earlier("012345")] * 5]
    check(plan(), SitePolicy(remembered_rosters=5), before)
    assert refused(plan(), SitePolicy(remembered_rosters=6), before).code == "roster-change"
    check(plan(), SitePolicy(remembered_rosters=0), [earlier("01234")])


def test_whom_the_root_has_removed_does_not_block_the_rest_for_ever() -> None:
    members = world().members
    members = members.extend([world().root.remove(members, "site-005")])
    context = changed(roster=plan().roster[:5], members_count=members.count, members_head=members.head)
    check(context, members=members, earlier=[earlier("012345")])
    assert refused(changed(roster=plan().roster[:5]), earlier=[earlier("012345")]).code == "roster-change"
