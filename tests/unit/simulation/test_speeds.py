"""How long simulated institutions train."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from simulation.speeds import Speeds
from wire import ConfigError, FederationConfig, SimulationSection, load_federation, validate

NAMES = [f"site-{index}" for index in range(10)]


def speeds(**changes: Any) -> Speeds:
    institutions = [{"name": name, "data": "nothing", "seconds": 2.0} for name in NAMES]
    return Speeds(SimulationSection.model_validate({"institutions": institutions, **changes}))


def drawn(pace: Speeds, count: int = 200) -> list[float]:
    return [pace.seconds(name, number) for name in NAMES for number in range(count)]


def test_fixed_speeds_are_the_institutions_seconds() -> None:
    assert set(drawn(speeds())) == {2.0}


@pytest.mark.parametrize("kind", ["half-normal", "lognormal", "stragglers"])
def test_the_seed_decides_and_nothing_else(kind: str) -> None:
    one = drawn(speeds(speeds=kind), 5)
    assert one == drawn(speeds(speeds=kind), 5)
    others = [drawn(speeds(speeds=kind, speed_seed=seed), 5) for seed in (1, 2, 3)]
    assert any(one != other for other in others)


def test_half_normal_has_the_mean_of_its_paper() -> None:
    assert statistics.fmean(drawn(speeds(speeds="half-normal"))) == pytest.approx(2 * 0.798, rel=0.05)


def test_lognormal_has_its_median_and_spread() -> None:
    found = sorted(drawn(speeds(speeds="lognormal", speed_sigma=0.5)))
    assert statistics.median(found) == pytest.approx(2.0, rel=0.05)
    assert found[int(0.841 * len(found))] == pytest.approx(2 * 2.718**0.5, rel=0.1)


def test_stragglers_are_the_same_ones_all_the_time() -> None:
    pace = speeds(speeds="stragglers", straggler_share=0.3, straggler_factor=5.0)
    slow = {name for name in NAMES if pace.seconds(name, 0) == 10.0}
    assert slow == pace.stragglers
    assert len(slow) == 3
    assert all(pace.seconds(name, number) == (10.0 if name in slow else 2.0) for name in NAMES for number in range(9))


def test_a_trace_is_gone_through_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    lines = ["participant,seconds", *(f"{name},{index}" for index, name in enumerate(NAMES)), "site-0,7.5", "other,1"]
    path.write_text("\n".join(lines) + "\n")
    pace = speeds(speed_trace=path)
    assert [pace.seconds("site-0", number) for number in range(4)] == [0.0, 7.5, 0.0, 7.5]
    assert pace.seconds("site-3", 17) == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line"),
        ("site,seconds\n", "first line"),
        ("participant,seconds\nsite-0,fast\n", "line 2: 'fast'"),
        ("participant,seconds\nsite-0,-1\n", "line 2"),
        ("participant,seconds\nsite-0,nan\n", "line 2"),
        ("participant,seconds\nsite-0\n", "line 2"),
        ("participant,seconds\nsite-0,1\n", "says nothing of site-1"),
    ],
)
def test_a_trace_that_makes_no_sense_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        speeds(speed_trace=path)
    assert caught.value.hint


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        speeds(speed_trace=tmp_path / "nowhere.csv")


def test_a_trace_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    path.write_text('[simulation]\nspeed_trace = "trace.csv"\n')
    assert load_federation(path).simulation.speed_trace == tmp_path / "trace.csv"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"speeds": "lognormal", "speed_trace": "x.csv"}, "leave one of them out"),
        ({"speed_sigma": 1.0}, "speed_sigma does nothing"),
        ({"speeds": "half-normal", "straggler_factor": 2.0}, "straggler_factor does nothing"),
        ({"speed_seed": 3}, "speed_seed does nothing"),
        ({"speeds": "random"}, "half-normal"),
    ],
)
def test_what_a_file_may_not_say(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(FederationConfig, {"simulation": table}, "federation.toml")
