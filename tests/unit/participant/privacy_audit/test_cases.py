"""The audit of the installed software: right code passes in all of its forms, and every planted bug is found."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch
from privacy_mutants import MUTANTS, Mutant, fixed_keys

from participant.privacy_audit.cases import Case, all_cases, check_seeds, run_case, short_cases
from privacy.accounting.events import Placement, Unit
from privacy.mechanisms.noise import NoiseKey


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", list(short_cases()), ids=str)
def test_right_code_passes(case: Case) -> None:
    """And shows that the audit has eyes: the separation reaches four fifths of what is allowed."""
    findings = run_case(case, fixed_keys())
    assert [item for item in findings if not item.good] == []
    assert {"separation", "power", "noise", "sum", "fresh", "lattice"} <= {item.name for item in findings}


@pytest.mark.slow
@pytest.mark.parametrize("case", list(all_cases()), ids=str)
def test_right_code_passes_in_every_combination(case: Case) -> None:
    assert [item for item in run_case(case, fixed_keys(1)) if not item.good] == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_planted_bug_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.plant(monkeypatch)
    findings = run_case(mutant.case, mutant.keys())
    bad = {item.name for item in findings if not item.good}
    assert mutant.found_by in bad, findings


def test_mutants_are_distinct_bugs() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20
    assert all(mutant.case.possible for mutant in MUTANTS)


def test_the_cases_meet_every_setting() -> None:
    short, whole = list(short_cases()), list(all_cases())
    for name, values in {
        "placement": set(Placement),
        "rule": {"flat", "automatic", "layers"},
        "loss": {"classification", "regression", "contrastive"},
        "schedule": {"constant", "linear", "step"},
        "adaptive": {False, True},
        "following": {False, True},
        "virtual": {False, True},
        "unit": {Unit.RECORD, Unit.PERSON},
        "optimizer": {"sgd", "adamw"},
    }.items():
        assert {getattr(case, name) for case in short} == values
    assert len(whole) == len(set(whole)) >= 90
    assert all(case.possible for case in whole)
    pairs = {(case.rule, case.loss, case.schedule, case.adaptive, case.virtual) for case in whole}
    assert len(pairs) >= 3 * 3 * 3 * 2 * 2 - 3 * 3 * 2  # automatic clipping has no norm that could follow


def test_seeds_of_common_generators_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_seeds().good
    monkeypatch.setattr(os, "urandom", np.random.bytes)
    found = check_seeds()
    assert not found.good
    assert "seed" in found.words


def test_a_noise_key_from_a_common_generator_is_found() -> None:
    found = check_seeds(lambda: NoiseKey(torch.randint(256, (32,), dtype=torch.uint8).numpy().tobytes()))
    assert not found.good
    assert found.measured > 0.9


@pytest.mark.slow
def test_the_audit_does_not_cry_wolf() -> None:
    """Right trainings with other keys: no finding is bad in any, but that chance may show the canaries less."""
    cases = itertools.cycle([Case(), Case(rate=0.2), Case(adaptive=True)])
    for seed, case in zip(range(2, 8), cases, strict=False):
        assert [item for item in run_case(case, fixed_keys(seed)) if not item.good and item.name != "power"] == []
