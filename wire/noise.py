"""The noise that the sites of a run share, solved before it starts: for the coordinator, and for whoever checks it."""

from __future__ import annotations

import math

from wire.errors import ConfigError
from wire.federation import FederationConfig
from wire.plan import SharedNoise
from wire.privacy import PrivacySpec


def shared_noise(config: FederationConfig, dimension: int) -> SharedNoise | None:
    """The noise that the sites of a run share, solved for its budget; None where they don't.

    The smallest sum that may be published, less the sites that are taken to be corrupt, still has all of it.

    Args:
        config: With complete learning tables.
        dimension: Parameters of the model.

    Raises:
        ConfigError: The budget can't be kept, or the numbers don't fit the ring.
    """
    spec, rounds, secure = config.privacy, config.rounds, config.secure_aggregation
    if not spec.distributed:
        return None
    participants = max(rounds.min_participants, secure.min_cohort)
    honest = spec.honest(participants, secure.corrupt_percent, secure.min_cohort)
    multiplier = spec.noise_multiplier
    if not multiplier:
        from privacy.mechanisms.calibration import noise_multiplier_for
        from privacy.mechanisms.errors import PrivacyError

        try:
            multiplier = noise_multiplier_for(spec.epsilon, spec.delta, spec.sampling_rate or 1.0, rounds.count)
        except PrivacyError as error:
            raise ConfigError(f"[privacy] {error.message}", error.hint) from None
    records = spec.placement == "shared"
    return shares(
        spec,
        dimension,
        batch=float(config.training.get("batch_size", 1)) if records else 1.0,
        # A record that changes its group's gradient moves the sum by two clipping norms.
        factor=2 if records and config.task.get("negatives") == "group" else 1,
        multiplier=multiplier,
        honest=honest,
    )


def shares(
    spec: PrivacySpec, dimension: int, *, batch: float, factor: int, multiplier: float, honest: int
) -> SharedNoise:
    """Shares of which so many honest sites' make all of the noise, on a lattice for so many parameters.

    Args:
        spec: The clipping norm, and the bits of a site's integers.
        dimension: d.
        batch: Records of a step at one site, at most as expected; 1 for whole updates.
        factor: Sensitivity of the sum, in clipping norms.
        multiplier: All of the noise, relative to the sensitivity.
        honest: Sites.

    Raises:
        ConfigError: The numbers don't fit the ring.
    """
    grid, value_bits = spec.lattice(dimension, batch, factor * multiplier / math.sqrt(honest))
    sensitivity = factor * spec.clip_norm + grid * math.sqrt(dimension)
    return SharedNoise(
        multiplier=multiplier,
        share_std=multiplier * sensitivity / math.sqrt(honest) * (1 + 1e-9),
        honest=honest,
        grid=grid,
        quantum=grid / batch,
        value_bits=value_bits,
    )
