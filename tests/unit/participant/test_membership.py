"""The pinned list: nothing is shown before it is kept."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from participant.membership import PinnedMembers
from privacy.secure_aggregation.identities import Role
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import FederationRoot, MemberEntry
from wire import RefusedError, ResourceError

ROOT = FederationRoot("demo", SigningKey(b"r" * 32))
NORTH = ROOT.add(ROOT.empty(), Role.PARTICIPANT, "north", SigningKey(b"n" * 32).public)


def test_an_entry_that_cannot_be_kept_is_not_shown() -> None:
    kept: list[MemberEntry] = []

    def full(entries: Sequence[MemberEntry]) -> None:
        raise ResourceError("the disk is full", code="disk-full")

    pinned = PinnedMembers(ROOT.empty(), full)
    longer = ROOT.empty().extend([NORTH])
    with pytest.raises(ResourceError):
        pinned.shown([NORTH], longer.end)
    assert pinned.list == ROOT.empty()
    again = PinnedMembers(ROOT.empty(), kept.extend)
    again.shown([NORTH], None)
    assert (again.list, kept) == (longer, [NORTH])
    again.shown([NORTH], longer.end)
    assert kept == [NORTH]


def test_what_the_list_refuses_is_a_refusal_and_is_not_kept() -> None:
    kept: list[MemberEntry] = []
    pinned = PinnedMembers(ROOT.empty(), kept.extend)
    forged = FederationRoot("demo", SigningKey(b"o" * 32))
    entry = forged.add(forged.empty(), Role.PARTICIPANT, "sybil", SigningKey(b"s" * 32).public)
    with pytest.raises(RefusedError) as refusal:
        pinned.shown([entry], None)
    assert refusal.value.code == "members-signature"
    assert kept == []
