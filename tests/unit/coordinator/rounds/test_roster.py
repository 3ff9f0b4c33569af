"""Whom a secure sum is proposed to, and whom a round goes on without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.rounds.facts import AttemptFailed, AttemptOpened
from coordinator.rounds.proposals import left_out, task_attempt
from coordinator.rounds.roster import choose_roster
from coordinator.rounds.state import Round, SecureAttempt
from wire import SecureSpec


def choose(wanted: str, earlier: Sequence[str] = (), **changes: str | int) -> str:
    """Names are letters. Whoever isn't said to be anywhere else is everywhere."""
    everyone = "".join(sorted(set(wanted).union(*earlier)))
    sets = {name: frozenset(str(changes.get(name, everyone))) for name in ("possible", "certified", "there")}
    settings = SecureSpec.model_validate({"wire_bits": 32, "min_roster_change": changes.get("least", 2)})
    found = choose_roster(
        wanted=frozenset(wanted),
        earlier=[frozenset(names) for names in earlier],
        settings=settings,
        encoding=settings.encoding,
        **sets,
    )
    return "".join(found)


@pytest.mark.parametrize(
    ("wanted", "earlier", "found"),
    [
        ("cab", [], "abc"),
        ("abc", ["abc"], "abc"),
        ("abcd", ["abc"], "abc"),  # one more would tell about that one
        ("abcde", ["abc"], "abcde"),
        ("abc", ["abcd"], "abcd"),  # one less, too: it stays in, absent
        ("abd", ["abc"], "abd"),  # one went, another one came: two differ
        ("abcd", ["abcde", "abc"], "abc"),
        ("ab", [], ""),
        ("", [], ""),
    ],
)
def test_a_roster_is_the_wanted_one_or_the_latest_that_is_still_allowed(
    wanted: str, earlier: list[str], found: str
) -> None:
    assert choose(wanted, earlier) == found


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"possible": "abcd"}, ""),  # e has no prekey left, and without it the roster would differ by one
        ({"there": "abcd"}, "abcde"),  # four of five can make a sum
        ({"there": "abc"}, ""),
        ({"certified": "abcd", "possible": "abcd"}, "abcd"),  # the root removed e: that isn't a change
        ({"certified": "abcd", "possible": "abcd", "there": "ab"}, ""),
        ({"least": 6}, "abcde"),
    ],
)
def test_absent_uncertified_and_spent_members(changes: dict[str, str | int], found: str) -> None:
    assert choose("abcde", ["abcde"], **changes) == found


def test_a_larger_change_may_be_asked_for() -> None:
    assert choose("abcde", ["abc"], least=2) == "abcde"
    assert choose("abcde", ["abc"], least=3) == "abc"


def test_so_many_that_their_values_do_not_fit_are_no_roster() -> None:
    settings = SecureSpec(wire_bits=16, value_bits=14)
    names = frozenset("abcdefgh")
    several: dict[str, Any] = {"possible": names, "certified": names, "there": names, "earlier": []}
    several |= {"settings": settings, "encoding": settings.encoding}
    assert choose_roster(wanted=frozenset("abcd"), **several) == tuple("abcd")
    assert choose_roster(wanted=frozenset("abcde"), **several) == ()


_SETS = st.frozensets(st.sampled_from("abcdefgh"))


@given(wanted=_SETS, possible=_SETS, certified=_SETS, there=_SETS, earlier=st.lists(_SETS, max_size=7))
def test_no_site_ever_refuses_what_is_chosen(
    wanted: frozenset[str],
    possible: frozenset[str],
    certified: frozenset[str],
    there: frozenset[str],
    earlier: list[frozenset[str]],
) -> None:
    possible &= certified
    found = frozenset(
        choose_roster(
            wanted=wanted,
            possible=possible,
            certified=certified,
            there=there,
            earlier=earlier,
            settings=SecureSpec(wire_bits=32),
            encoding=SecureSpec(wire_bits=32).encoding,
        )
    )
    if found:
        assert found <= possible
        assert len(found & there) >= 3
        for other in earlier[-5:]:
            assert len(found ^ (other & certified)) != 1


# ---- whom a round goes on without -----------------------------------------------------------------------------------


def a_round(*failures: tuple[str, str, bool]) -> Round:
    """A round with attempts that failed: code, excluded (letters), spent."""
    attempts = []
    for number, (code, excluded, spent) in enumerate(failures, start=1):
        opened = AttemptOpened(
            round=1, attempt=number, task_attempt=1, context="00", roster=(), prekeys=(), opened_s=0.0
        )
        failed = AttemptFailed(
            round=1, attempt=number, code=code, message="", excluded=tuple(excluded), spent=spent, failed_s=0.0
        )
        attempts.append(SecureAttempt(opened=opened, failed=failed))
    return Round(
        number=1,
        purpose="train",
        base_version=0,
        evaluate=False,
        opened_s=0.0,
        closes_s=1.0,
        seats={},
        attempts=attempts,
    )


@pytest.mark.parametrize(
    ("failures", "out", "number"),
    [
        ([], "", 1),
        ([("too-few-ready", "a", False)], "a", 1),
        ([("too-few-ready", "a", False), ("quorum-short", "b", False)], "ab", 1),
        ([("too-few-ready", "a", False), ("too-few-ready", "b", True)], "", 2),
        ([("too-few-ready", "a", True), ("too-few-ready", "b", False)], "b", 2),
        ([("parcel-unreadable", "ab", False), ("release-short", "c", True)], "ab", 2),
        ([("dealer-inconsistent", "a", True), ("sum-implausible", "", True)], "a", 3),
    ],
)
def test_who_cheated_stays_out_and_who_could_not_is_asked_again_with_the_next_training(
    failures: list[tuple[str, str, bool]], out: str, number: int
) -> None:
    current = a_round(*failures)
    assert left_out(current) == set(out)
    assert task_attempt(current) == number


def test_an_open_attempt_excludes_nobody() -> None:
    current = a_round(("too-few-ready", "a", False), ("too-few-ready", "b", False))
    current.attempts[-1].failed = None
    assert left_out(current) == {"a"}
