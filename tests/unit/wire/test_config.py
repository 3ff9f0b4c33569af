"""Configuration: every mistake is named, and the commented file can't drift from the schema."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from wire import (
    ConfigError,
    FederationConfig,
    SimulatedInstitution,
    commented_toml,
    load_federation,
    read_toml,
    validate,
)
from wire.config import MAX_CONFIG_BYTES
from wire.federation import CoordinatorSection


class Inner(BaseModel):
    """Inside."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rate: float = Field(default=0.5, gt=0, lt=1, description="A rate.")


class Outer(BaseModel):
    """A table documented in its docstring.

    Attributes:
        width: Features of a token,
            over two lines.
        kind: Which ``kind``.
        options: More.
        names: Some names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    width: int = Field(64, ge=8, multiple_of=8)
    kind: Literal["one", "two"] = "one"
    maybe: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    names: tuple[str, ...] = ("a", "b")
    inner: Inner = Inner()


def mistakes(table: dict[str, Any], model: type[BaseModel] = FederationConfig, **options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(model, table, "federation.toml", **options)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rounds": {"count": 0}}, "[rounds] count = 0: must be at least 1"),
        ({"rounds": {"count": "many"}}, '[rounds] count = "many": must be a whole number'),
        ({"rounds": {"count": 1.5}}, "[rounds] count = 1.5: must be a whole number"),
        ({"rounds": {"deadline_s": 0}}, "[rounds] deadline_s = 0: must be more than 0"),
        ({"rounds": {"coutn": 3}}, "[rounds] coutn = 3: unknown key; did you mean 'count'?"),
        ({"rounds": 3}, "rounds = 3: must be a table"),
        (
            {"aggregation": {"optimizer": "adam"}},
            "[aggregation] optimizer = \"adam\": must be one of 'fedavg' or 'fedadam'",
        ),
        ({"aggregation": {"momentum": 1}}, "[aggregation] momentum = 1: must be less than 1"),
        ({"coordinator": {"lease_s": 10_000}}, "[coordinator] lease_s = 10000: must be at most 3600"),
        ({"federation": {"name": "Ärzte"}}, '[federation] name = "Ärzte": must match'),
        ({"simulation": {"compare_local": "maybe"}}, '[simulation] compare_local = "maybe": must be true or false'),
        ({"simulation": {"institutions": []}}, "[simulation] institutions = []: must have at least 1"),
        ({"simulation": {"institutions": [{"name": "a"}]}}, "[simulation.institutions #1] data is missing"),
        (
            {"simulation": {"institutions": [{"name": "a", "data": "x"}, {"name": "a", "data": "y"}]}},
            "the name 'a' appears twice",
        ),
        ({"coordinator": {"port": 7, "enrolment_port": 7}}, "port and enrolment_port are both 7"),
        ({"rounds": {"min_updates": 9}}, "min_updates = 9 is more than min_participants = 4"),
        (
            {"secure_aggregation": {"group_size": 3}, "rounds": {"min_participants": 5}},
            "min_participants = 5: two groups of 3 participants ([secure_aggregation] group_size = 3) need at least 6",
        ),
        (
            {"secure_aggregation": {"group_size": 7}, "rounds": {"min_participants": 14}},
            "two groups of 8 participants ([secure_aggregation] group_size = 7) need at least 16",
        ),
        (
            {"secure_aggregation": {"group_size": 3}, "rounds": {"min_participants": 9, "participants_per_round": 6}},
            "participants_per_round = 6: with [secure_aggregation] group_size = 3 whole atoms take part",
        ),
        (
            {
                "secure_aggregation": {"group_size": 3},
                "rounds": {"min_participants": 9},
                "privacy": {"placement": "participant"},
            },
            '[privacy] placement = "participant": sites size their shares of the noise for one sum',
        ),
        ({"secure_aggregation": {"group_size": 2}}, "the sum of a group hides a participant among at least 3"),
        ({"secure_aggregation": {"group_size": 2_000}}, "[secure_aggregation] group_size = 2000: must be at most 1024"),
        ({"round": {"count": 3}}, "[round]: unknown section; did you mean 'rounds'?"),
        ({"zzz": {}}, "[zzz]: unknown section; valid are aggregation, coordinator, federation"),
    ],
)
def test_each_mistake_is_named(table: dict[str, Any], message: str) -> None:
    assert mistakes(table).startswith("federation.toml: ")
    assert message in mistakes(table)


def test_groups_that_are_possible_pass_and_plain_averaging_has_none() -> None:
    groups: dict[str, Any] = {"secure_aggregation": {"group_size": 3}}
    for table in (
        {**groups, "rounds": {"min_participants": 6}},
        {**groups, "rounds": {"min_participants": 9}, "privacy": {"placement": "local"}},
        {**groups, "aggregation": {"mode": "plain"}},
    ):
        assert FederationConfig.model_validate(table).secure_aggregation.group_size == 3


def test_all_mistakes_at_once() -> None:
    text = mistakes({"rounds": {"count": 0, "seeed": 1}, "coordinator": {"port": -1}})
    assert text.splitlines()[0] == "federation.toml: 3 mistakes"
    assert len(text.splitlines()) == 4


def test_an_opaque_table_says_where_it_stands() -> None:
    assert "[model] widht = 8: unknown key; did you mean 'width'?" in mistakes({"widht": 8}, Outer, section="model")
    assert "[model.inner] rate = 2: must be less than 1" in mistakes({"inner": {"rate": 2}}, Outer, section="model")
    assert "[model] width = 9: must be a multiple of 8" in mistakes({"width": 9}, Outer, section="model")


def test_long_values_are_cut() -> None:
    assert len(mistakes({"federation": {"name": "A" * 10_000}})) < 300


def test_toml_mistakes_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    for data, part in [
        (b"[rounds]\ncount = \n", "line 2"),
        (b"[rounds]\n\ncount = 1\ncount = 2\n", "line 4"),
        (b"[a]\n[a]\n", "line 2"),
        (b"# ok\n\xff\xfe\n", "line 2 is not UTF-8"),
        (b"#" * (MAX_CONFIG_BYTES + 1), "larger"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=part) as caught:
            read_toml(path)
        assert str(path) in caught.value.message
    with pytest.raises(ConfigError, match="no such file") as caught:
        read_toml(tmp_path / "missing.toml")
    assert "fedloom init" in caught.value.hint
    with pytest.raises(ConfigError, match="directory"):
        read_toml(tmp_path)


def test_an_empty_file_is_the_demo(tmp_path: Path) -> None:
    (tmp_path / "federation.toml").write_text("")
    config = load_federation(tmp_path / "federation.toml")
    default = FederationConfig()
    assert (config.rounds, config.aggregation, config.federation) == (
        default.rounds,
        default.aggregation,
        default.federation,
    )
    assert len(config.simulation.institutions) == 4
    assert config.learning() == {"model": {}, "task": {}, "training": {}}


def test_the_commented_file_reads_back(tmp_path: Path) -> None:
    text = commented_toml(FederationConfig())
    (tmp_path / "federation.toml").write_text(text)
    assert validate(FederationConfig, read_toml(tmp_path / "federation.toml"), "x") == FederationConfig()


def test_every_key_of_the_commented_file_has_a_comment() -> None:
    lines = commented_toml(FederationConfig(), {"model": Outer()}).splitlines()
    keys = [index for index, line in enumerate(lines) if " = " in line and line[0].isalpha()]
    assert len(keys) > 30
    undocumented = [lines[index] for index in keys if not lines[index - 1].startswith("# ")]
    assert undocumented == []


def test_tables_of_others_are_described_by_their_own_models() -> None:
    text = commented_toml(FederationConfig(), {"model": Outer(), "task": Inner()})
    assert "# Features of a token, over two lines. (at least 8, a multiple of 8)\nwidth = 64" in text
    assert '# Which kind. ("one" | "two")\nkind = "one"' in text
    assert "# maybe = " in text
    table = tomllib.loads(text)
    assert validate(Outer, table["model"], "x", section="model") == Outer()
    assert table["model"]["inner"] == {"rate": 0.5}


names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,10}", fullmatch=True)


@given(
    name=names,
    institutions=st.lists(
        st.tuples(names, st.text(min_size=1, max_size=20), st.floats(0, 1e6)), min_size=1, max_size=4
    ),
    table=st.dictionaries(
        st.text(max_size=6), st.integers(-9, 9) | st.booleans() | st.text(max_size=8) | st.floats(-9, 9)
    ),
)
def test_any_configuration_survives_being_written(name: str, institutions: list[Any], table: dict[str, Any]) -> None:
    config = FederationConfig.model_validate(
        {
            "federation": {"name": name},
            "model": table,
            "simulation": {
                "institutions": [
                    SimulatedInstitution(name=f"{index}-{item[0]}", data=item[1], seconds=item[2])
                    for index, item in enumerate(institutions)
                ]
            },
        }
    )
    try:
        text = commented_toml(config).encode()
    except UnicodeEncodeError:
        return  # a lone surrogate can't stand in a file
    assert validate(FederationConfig, tomllib.loads(text.decode()), "x") == config


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "federation.toml").write_text('[coordinator]\nstate = "keys"\n')
    assert load_federation(tmp_path / "federation.toml").coordinator.state == tmp_path / "keys"


def test_options_of_the_command_line_replace_single_keys() -> None:
    config = FederationConfig().changed(rounds={"count": 3, "seed": None}, coordinator={"port": 1})
    assert (config.rounds.count, config.rounds.seed, config.coordinator.port) == (3, 0, 1)
    with pytest.raises(ConfigError, match=r"command line: \[rounds\] count = 0"):
        FederationConfig().changed(rounds={"count": 0})


def test_any_free_port_twice_is_fine() -> None:
    assert CoordinatorSection(port=0, enrolment_port=0).port == 0
