"""How many may be corrupt, must agree, must remain: the specification's table, and the arguments behind it."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.thresholds import (
    MAX_COHORT,
    Thresholds,
    clique_floor,
    corrupt_members,
    draw_bound,
    thresholds,
)


@pytest.mark.parametrize(
    ("participants", "corrupt", "quorum", "drops"),
    [(3, 0, 3, 0), (4, 1, 3, 1), (5, 1, 4, 1), (10, 3, 7, 3), (25, 8, 17, 8), (50, 16, 34, 16), (100, 33, 67, 33)],
)
def test_the_table_of_small_cohorts(participants: int, corrupt: int, quorum: int, drops: int) -> None:
    for percent in (1, 10, 33):  # which small cohorts don't use
        assert thresholds(participants, percent, 3) == Thresholds(
            keepers=participants, corrupt=corrupt, quorum=quorum, threshold=quorum, floor=max(quorum, corrupt + 2)
        )
    assert participants - quorum == drops


@pytest.mark.parametrize(("percent", "corrupt", "quorum"), [(10, 35, 68), (20, 51, 76)])
def test_a_hundred_keepers_of_a_thousand(percent: int, corrupt: int, quorum: int) -> None:
    numbers = thresholds(1000, percent, 3)
    assert (numbers.keepers, numbers.corrupt, numbers.quorum) == (100, corrupt, quorum)


@pytest.mark.parametrize(("size", "floor"), [(100, 37), (64, 30)])
def test_floors_of_cliques_of_a_thousand(size: int, floor: int) -> None:
    assert clique_floor(size, 1000, corrupt_members(1000, 10)) == floor


@given(participants=st.integers(3, MAX_COHORT), percent=st.integers(1, 33), floor=st.integers(3, 2000))
def test_two_quorums_share_an_honest_keeper_and_the_corrupt_alone_rebuild_nothing(
    participants: int, percent: int, floor: int
) -> None:
    numbers = thresholds(participants, percent, floor)
    assert 2 * numbers.quorum - numbers.keepers > numbers.corrupt
    assert numbers.corrupt < numbers.threshold == numbers.quorum <= numbers.keepers
    assert numbers.floor >= max(numbers.quorum, numbers.corrupt + 2, floor, 3)
    # A draw of 100 from a large cohort, a third of which is corrupt, may be this unlucky.
    assert 3 * numbers.corrupt <= 2 * numbers.keepers + 1


def test_up_to_128_participants_the_bound_counts_every_corrupt_one() -> None:
    for participants, percent in itertools.product(range(3, 129), range(1, 34)):
        assert thresholds(participants, percent, 3).corrupt == corrupt_members(participants, percent)


@given(population=st.integers(1, 300), data=st.data())
def test_a_draw_exceeds_its_bound_as_rarely_as_is_said_and_no_smaller_bound_would_do(
    population: int, data: st.DataObject
) -> None:
    corrupt, drawn = data.draw(st.integers(0, population)), data.draw(st.integers(0, population))
    bound = draw_bound(population, corrupt, drawn)

    def above(limit: int) -> Fraction:
        ways = sum(
            math.comb(corrupt, item) * math.comb(population - corrupt, drawn - item)
            for item in range(limit + 1, min(corrupt, drawn) + 1)
        )
        return Fraction(ways, math.comb(population, drawn))

    assert above(bound) <= Fraction(1, 2**44)
    assert bound == 0 or above(bound - 1) > Fraction(1, 2**44)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((2, 20, 3), "cohort-too-small"),
        ((0, 20, 3), "cohort-too-small"),
        ((1025, 20, 3), "cohort-too-large"),
        ((10, 0, 3), "corrupt-range"),
        ((10, 34, 3), "corrupt-range"),
    ],
)
def test_what_no_round_can_have(arguments: tuple[int, int, int], code: str) -> None:
    with pytest.raises(SecureAggregationError) as caught:
        thresholds(*arguments)
    assert caught.value.code == code
