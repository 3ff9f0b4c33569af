"""[privacy]: what can be asked for, and how a shared noise travels."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from coordinator.planning import planned_rounds, told
from wire import ConfigError, FederationConfig, PrivacySpec, shared_noise


def config(**privacy: Any) -> FederationConfig:
    return FederationConfig.model_validate(
        {"privacy": privacy, "rounds": {"count": 20, "min_participants": 10}, "training": {"batch_size": 64}}
    )


SHARED = {"placement": "shared", "sampling_rate": 0.05, "epsilon": 3.0, "delta": 1e-6}

FULL = {"placement": "local", "sampling_rate": 1.0}


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"placement": "shared"}, "sampling_rate"),
        ({"placement": "participant", "sampling_rate": 0.5}, "sampling_rate"),
        ({**SHARED, "quantile": 0.5}, "quantile"),
        ({"placement": "local", "quantile": 0.5, "clipping": "automatic"}, "quantile"),
        ({**SHARED, "schedule": "linear", "schedule_end": 0.5}, "schedule"),
        ({"placement": "local", "schedule_end": 0.5}, "schedule_end"),
        ({**SHARED, "adaptive_noise": 0.1}, "adaptive_noise"),
        ({"placement": "local", "sampling_rate": 0.5, "adaptive_noise": 0.1}, "adaptive_noise"),
        ({**FULL, "adaptive_noise": 0.1, "schedule": "linear", "schedule_end": 0.5}, "adaptive_noise"),
        ({"placement": "participant", "clipping": "layers"}, "clipping"),
        ({"placement": "local", "schedule": "until-exhausted"}, "noise_multiplier"),
        (
            {"placement": "local", "schedule": "until-exhausted", "noise_multiplier": 1.0, "schedule_end": 0.5},
            "schedule_end",
        ),
        ({"epsilon": 0.0}, "epsilon"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 0.5}, "delta"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"noise": 1.0}, "noise"),
    ],
)
def test_what_makes_no_sense_names_its_key(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PrivacySpec.model_validate(fields)
    assert key in str(caught.value)


def test_shared_noise_needs_secure_sums() -> None:
    with pytest.raises(ValidationError, match="no site adds all of the noise"):
        FederationConfig.model_validate({"aggregation": {"mode": "plain"}, "privacy": SHARED})


def test_no_noise_is_shared_where_each_site_adds_its_own() -> None:
    assert shared_noise(config(placement="local"), 1_000) is None
    assert shared_noise(config(), 1_000) is None


def test_shares_of_the_fewest_honest_sites_make_all_of_the_noise() -> None:
    noise = shared_noise(config(**SHARED), 40_000)
    assert noise is not None
    # Ten sites: three may be corrupt, and seven are the fewest whose sum is published.
    assert noise.honest == 4
    sensitivity = 1.0 + noise.grid * math.sqrt(40_000)
    assert sensitivity == pytest.approx(1.005)
    assert noise.share_std * math.sqrt(4) >= noise.multiplier * sensitivity
    assert noise.quantum == noise.grid / 64
    encoding = PrivacySpec(**SHARED).encoding(10, noise.quantum, noise.value_bits)
    assert encoding.limit * noise.grid >= 64 + 12 * noise.share_std
    assert encoding.weight(6_000) == 1


def test_noise_covers_records_that_are_clipped_in_groups() -> None:
    """A record that changes its group's gradient moves the sum by two clipping norms; a whole site's update doesn't."""
    grouped = {"task": {"negatives": "group"}}
    noise = shared_noise(config(**SHARED).model_copy(update=grouped), 40_000)
    assert noise is not None
    assert noise.share_std * math.sqrt(4) >= noise.multiplier * (2.0 + noise.grid * math.sqrt(40_000))
    whole = config(placement="participant", epsilon=8.0, delta=1e-3)
    assert shared_noise(whole, 1_000) == shared_noise(whole.model_copy(update=grouped), 1_000)


def test_a_noise_that_is_given_is_taken() -> None:
    noise = shared_noise(config(**SHARED, noise_multiplier=5.0), 1_000)
    assert noise is not None
    assert noise.multiplier == 5.0


@pytest.mark.parametrize(
    ("privacy", "dimension"),
    [({**SHARED, "value_bits": 16}, 1_000_000), ({**SHARED, "epsilon": 1e-5, "delta": 1e-9, "sampling_rate": 1.0}, 10)],
)
def test_what_cannot_be_had_is_said_with_its_section(privacy: dict[str, Any], dimension: int) -> None:
    with pytest.raises(ConfigError) as caught:
        shared_noise(config(**privacy), dimension)
    assert "[privacy]" in caught.value.message
    assert caught.value.hint


def test_too_many_sites_for_the_bits() -> None:
    with pytest.raises(ConfigError) as caught:
        PrivacySpec(**SHARED).encoding(64, 1e-6, 27)
    assert "value_bits to 26 or less" in caught.value.hint


def test_private_runs_tell_no_metrics_that_no_noise_protects() -> None:
    names = ("accuracy", "evaluation/accuracy", "evaluation/loss", "loss")
    assert told(config(), names) == names
    assert told(config(placement="local"), names) == ()
    assert told(config(placement="local", scores=True), names) == ("evaluation/accuracy", "evaluation/loss")
    assert planned_rounds(config(placement="local")).evaluate_every == 0
    assert planned_rounds(config(placement="local", scores=True)).evaluate_every == 1
    assert planned_rounds(config()) == config().rounds


@pytest.mark.parametrize("placement", ["local", "shared", "participant"])
def test_the_promise_in_words(placement: Any) -> None:
    rate = {"sampling_rate": 0.1} if placement == "shared" else {}
    text = PrivacySpec(placement=placement, epsilon=2.0, delta=1e-6, **rate).describe()
    assert "epsilon 2 at delta 1e-06" in text
    assert PrivacySpec().describe() == ""
