"""From a federation's configuration to the plan of a run, so that a site can audit it before it takes place."""

from __future__ import annotations

import math

from privacy.mechanisms.calibration import noise_multiplier_for
from wire import FederationConfig, InitialModel, RunPlan, SharedNoise

_NONE = "0" * 64


def run_plan(config: FederationConfig, dimension: int) -> RunPlan:
    """The plan of a run with this configuration, but for its first model, of which only the size is known here.

    Args:
        config: With complete learning tables.
        dimension: Parameters of the model.

    Raises:
        ConfigError: The numbers don't fit a secure sum.
        PrivacyError: The budget can't be kept.
    """
    return RunPlan(
        federation=config.federation.name,
        run_id="audit",
        learning=config.learning(),
        rounds=config.rounds,
        aggregation=config.aggregation,
        secure=config.secure_aggregation if config.aggregation.mode == "secure" else None,
        privacy=config.privacy,
        shared_noise=_shared(config, dimension),
        initial=InitialModel(digest=_NONE, size=4 * dimension + 9, dimension=dimension, manifest_hash=_NONE),
    )


def _shared(config: FederationConfig, dimension: int) -> SharedNoise | None:
    """Noise that the smallest sum holds when its corrupt sites' shares are taken off."""
    spec, rounds, secure = config.privacy, config.rounds, config.secure_aggregation
    if not spec.distributed:
        return None
    honest = spec.honest(max(rounds.min_participants, secure.min_cohort), secure.corrupt_percent, secure.min_cohort)
    multiplier = spec.noise_multiplier or noise_multiplier_for(
        spec.epsilon, spec.delta, spec.sampling_rate or 1.0, rounds.count
    )
    batch = float(config.training.get("batch_size", 1)) if spec.placement == "shared" else 1.0
    grid, bits = spec.lattice(dimension, batch, multiplier / math.sqrt(honest))
    sensitivity = spec.clip_norm + grid * math.sqrt(dimension)
    return SharedNoise(
        multiplier=multiplier,
        share_std=multiplier * sensitivity / math.sqrt(honest) * (1 + 1e-9),
        honest=honest,
        grid=grid,
        quantum=grid / batch,
        value_bits=bits,
    )
