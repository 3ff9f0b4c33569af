"""Forgeries: what each makes of a submission."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simulation.attacks import ATTACKS, FORGERIES, ForgedCount, Submission, behaviour, description, forgery
from wire import ConfigError

UPDATE = np.linspace(-1.0, 2.0, 12, dtype="<f4")
TRUE = Submission(content=UPDATE.tobytes(), examples=40, announced=50)
BEFORE = Submission(content=(UPDATE / 2).tobytes(), examples=30, announced=50)


def test_a_forged_count_claims_and_announces_what_was_never_there() -> None:
    forged = ForgedCount()(TRUE)
    assert (forged.examples, forged.announced, ForgedCount().announced(50)) == (10**9, 10**9, 10**9)
    np.testing.assert_array_equal(np.frombuffer(forged.content, "<f4"), -UPDATE)
    bare = ForgedCount(consistent=False, scale=1.0)
    assert bare(TRUE) == dataclasses.replace(TRUE, examples=10**9)
    assert bare.announced(50) == 50


def test_a_negative_count_is_what_the_wire_makes_of_it() -> None:
    assert ForgedCount(examples=-1)(TRUE).examples == 2**64 - 1


def test_a_replay_is_the_content_of_the_round_before() -> None:
    assert forgery("replay")(TRUE) == TRUE
    assert forgery("replay")(TRUE, BEFORE) == dataclasses.replace(TRUE, content=BEFORE.content)


@pytest.mark.parametrize(("parameters", "size"), [(1, 52), (-1, 44), (5, 68), (-99, 4)])
def test_a_wrong_size_has_some_parameters_too_many_or_too_few(parameters: int, size: int) -> None:
    content = forgery("wrong-size", parameters=parameters)(TRUE).content
    assert len(content) == size
    assert content[: min(size, 48)] == TRUE.content[:size]


@pytest.mark.parametrize(("dtype", "size"), [("<f8", 96), ("<f2", 24), (">f4", 48), ("<i4", 48)])
def test_a_wrong_type_holds_the_same_numbers(dtype: str, size: int) -> None:
    content = forgery("wrong-type", dtype=dtype)(TRUE).content
    assert len(content) == size
    values = np.frombuffer(content, dtype).astype(np.float64) / (1e6 if dtype == "<i4" else 1.0)
    np.testing.assert_allclose(values, UPDATE, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("wrong-size", {"parameters": 0}),
        ("wrong-type", {"dtype": "<f4"}),
        ("forged-count", {"examples": 2**64}),
        ("forged-count", {"scale": float("nan")}),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(name: str, parameters: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(parameters))):
        forgery(name, **parameters)


@pytest.mark.parametrize("name", FORGERIES)
def test_every_forgery_is_pure_documented_and_found_by_name(name: str) -> None:
    chosen = behaviour(name)
    assert dataclasses.is_dataclass(chosen) and chosen == forgery(name)
    assert description(chosen).endswith(".")
    assert "Knows its own data only" in (type(chosen).__doc__ or "")
    assert forgery(name)(TRUE, BEFORE) == forgery(name)(TRUE, BEFORE)


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(ConfigError, match="did you mean 'replay'") as failure:
        behaviour("replai")
    assert all(name in failure.value.hint for name in ATTACKS + FORGERIES)
    with pytest.raises(ConfigError, match="no attack 'alie'"):
        forgery("alie")
