"""Units, owners and chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from private_tasks import RECORDS, Regression

from participant.training.private.population import Population
from privacy.accounting.events import Unit
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.noise import NoiseKey
from privacy.mechanisms.sampling import PoissonSampler

PERSONS = (np.arange(RECORDS) * 11 % 13) * 1_000_000_007


def test_records_are_units_of_their_own() -> None:
    people = Population(Regression(persons=PERSONS), Unit.RECORD)
    assert (people.units, people.factor, people.expected(0.25)) == (RECORDS, 1, 15)
    assert people.records(np.array([3, 9])).tolist() == [3, 9]
    assert people.owners(np.array([3, 9])) is None


def test_a_person_comes_with_all_records() -> None:
    people = Population(Regression(persons=PERSONS), Unit.PERSON)
    assert (people.units, people.expected(0.5)) == (13, 6.5)
    everyone = [people.records(np.array([unit])) for unit in range(13)]
    assert sorted(np.concatenate(everyone).tolist()) == list(range(RECORDS))
    for records in everyone:
        assert len(set(PERSONS[records])) == 1
    assert len(people.records(np.empty(0, np.int64))) == 0


def test_persons_have_to_be_known() -> None:
    with pytest.raises(PrivacyError) as caught:
        Population(Regression(), Unit.PERSON)
    assert caught.value.code == "unit-invalid" and '"person"' in caught.value.hint


OPTIONS: list[dict[str, Any]] = [
    {},
    {"views": 3},
    {"persons": PERSONS},
    {"persons": PERSONS, "views": 2},
    {"group_count": 7},
    {"group_count": 7, "persons": PERSONS},
]


@given(st.sampled_from(OPTIONS), st.sets(st.integers(0, 12)), st.integers(1, 30))
def test_chunks_hold_every_record_once_and_divide_no_owner(options: dict[str, Any], units: set[int], rows: int) -> None:
    unit = Unit.PERSON if "persons" in options else Unit.RECORD
    people = Population(Regression(**options), unit)
    records = people.records(np.array(sorted(units), np.int64))
    found, seen = [], set()
    for chunk, keys in people.chunks(records, rows):
        assert len(chunk)
        found += chunk.tolist()
        if keys is None:
            assert len(chunk) <= rows
            continue
        assert keys.tolist() == people.owners(chunk).tolist()  # type: ignore[union-attr]
        assert seen.isdisjoint(keys.tolist())
        seen |= set(keys.tolist())
        assert len(chunk) * options.get("views", 1) <= rows or len(set(keys)) == 1
    assert sorted(found) == sorted(records.tolist())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
def test_the_expected_number_of_owners_is_that_of_many_samples(options: dict[str, Any], rate: float) -> None:
    people = Population(Regression(**options), Unit.PERSON if "persons" in options else Unit.RECORD)
    if people.factor == 2:  # The formula is that of a random hash; these groups are dealt evenly.
        generator = np.random.default_rng(0)
        taken = [np.flatnonzero(generator.random(people.units) < rate) for _ in range(2000)]
        counts = [len(np.unique(generator.integers(0, 7, len(units)))) for units in taken]
    else:
        sampler = PoissonSampler(people.units, rate, NoiseKey(bytes(32)))
        counts = [len(sampler.sample()) for _ in range(2000)]
    assert np.mean(counts) == pytest.approx(people.expected(rate), rel=0.05)


def test_one_group_of_everybody() -> None:
    assert Population(Regression(group_count=1), Unit.RECORD).expected(1.0) == 1.0


def test_a_site_with_one_group_has_no_strangers() -> None:
    assert len(Population(Regression(group_count=1), Unit.RECORD).strangers()) == 1
    many = Population(Regression(group_count=7), Unit.RECORD).strangers(most=4, size=2)
    assert [len(part) for part in many] == [2] * 4
    assert len({int(part[0] * 11 + 3) % 7 for part in many}) == 4
