"""Attacks' settings: found by name, checked against the attack, told in the documentation."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from simulation.attacks import ATTACKS, FORGERIES, Constant, ForgedCount, MinMax, WrongType, behaviour, settings_of
from simulation.cli import _attack_setting, _attack_settings
from wire import ConfigError, FederationConfig, SimulatedInstitution

ALL = ATTACKS + FORGERIES


@pytest.mark.parametrize("name", ALL)
def test_every_setting_can_be_given_as_it_is(name: str) -> None:
    known = settings_of(name)
    given = {key: value for key, value in known.items() if not (isinstance(value, float) and math.isnan(value))}
    assert repr(behaviour(name, given)) == repr(behaviour(name))
    for key, value in given.items():
        other = f"other-{value}" if isinstance(value, str) else "text"
        with pytest.raises(ConfigError, match=f"the attack '{name}' can't .*{key}") as failure:
            behaviour(name, {key: other})
        assert failure.value.hint.startswith(f"Its settings and their defaults: {next(iter(known))} = ")


def test_values_have_the_parameters_type() -> None:
    assert repr(behaviour("ipm", {"scale": 3})) == "InnerProduct(scale=3.0)"
    assert behaviour("min-max", {"direction": "sign"}) == MinMax(direction="sign")
    assert behaviour("forged-count", {"examples": 7, "consistent": False}) == ForgedCount(examples=7, consistent=False)
    assert behaviour("wrong-type", {"dtype": "<i4"}) == WrongType(dtype="<i4")
    for name, key, value, why in [
        ("ipm", "scale", True, "a number"),
        ("ipm-optimised", "candidates", 3.0, "a whole number"),
        ("forged-count", "consistent", 1, "true or false"),
        ("wrong-type", "dtype", 4, "a text"),
        ("min-max", "direction", "up", "one of mean, deviation, sign"),
        ("ipm", "scale", -1.0, "it goes from 0 to 1e\\+30"),
    ]:
        with pytest.raises(ConfigError, match=f"the attack '{name}' can't .*{key}.*{why}"):
            behaviour(name, {key: value})


@pytest.mark.parametrize(
    ("name", "key", "said", "hint"),
    [
        (
            "ipm",
            "scael",
            "has no setting 'scael'; did you mean 'scale'",
            "Its settings and their defaults: scale = 2.0.",
        ),
        ("label-flip", "scale", "has no setting 'scale'", "It has no settings."),
        ("huge", "value", "has no setting 'value'", "It has no settings."),
        ("free-rider-noise", "gives", "has no setting 'gives'", "std = 0.001"),
        ("byte-order", "dtype", "has no setting 'dtype'", "It has no settings."),
    ],
)
def test_what_an_attack_doesnt_have_or_its_name_fixes_cant_be_set(name: str, key: str, said: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=said) as failure:
        behaviour(name, {key: 1.0})
    assert hint in failure.value.hint
    assert behaviour("huge") == Constant(value=1e30)


def test_the_documentation_lists_all_attacks_and_all_settings(repository: Path) -> None:
    text = (repository / "docs" / "robustness.md").read_text()
    attacks, _, settings = text.partition("### Settings")
    named = [name for line in attacks.splitlines() if line.startswith("| `") for name in _quoted(line.split("|")[1])]
    assert sorted(named) == sorted(ALL)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in settings.splitlines() if line.startswith("| `")
    ]
    found = {_quoted(name)[0]: _quoted(cells) for name, cells in rows}
    shown = {name: [f"{key} = {json.dumps(value)}" for key, value in settings_of(name).items()] for name in ALL}
    assert found == {name: values for name, values in shown.items() if values}


def _quoted(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


def hostile(**simulation: object) -> FederationConfig:
    four = tuple(SimulatedInstitution(name=f"site-{index}", data="digits") for index in range(4))
    return FederationConfig().changed(simulation={"institutions": four, **simulation})


def test_the_command_line_adds_to_the_configuration_unless_the_attack_is_another() -> None:
    config = hostile(attack="sybil", attackers=1, attack_settings={"scale": 2, "noise": 0.5})
    assert config.simulation.attack_settings == {"scale": 2, "noise": 0.5}
    assert _attack_settings(config, None, ["scale = 3"]) == {"scale": 3, "noise": 0.5}
    assert _attack_settings(config, "sybil", []) == {"scale": 2, "noise": 0.5}
    assert _attack_settings(config, "ipm", ["scale=0.5"]) == {"scale": 0.5}
    assert _attack_setting("direction=sign") == ("direction", "sign")
    assert _attack_setting("consistent=false") == ("consistent", False)
    assert _attack_setting("dtype=<f8") == ("dtype", "<f8")
    for text in ("scale", "=3", ""):
        with pytest.raises(ConfigError, match="isn't of the form NAME=VALUE"):
            _attack_setting(text)


def test_settings_without_an_attack_or_without_a_number_are_refused() -> None:
    with pytest.raises(ConfigError, match="attack_settings without an attack"):
        hostile(attack_settings={"scale": 2.0})
    with pytest.raises(ConfigError, match=r"\[simulation.attack_settings"):
        hostile(attack="ipm", attackers=1, attack_settings={"scale": [2.0]})
