"""From a federation's configuration to the plan of a run, so that a site can audit it before it takes place."""

from __future__ import annotations

from wire import FederationConfig, InitialModel, RunPlan, shared_noise

_NONE = "0" * 64


def run_plan(config: FederationConfig, dimension: int) -> RunPlan:
    """The plan of a run with this configuration, but for its first model, of which only the size is known here.

    Args:
        config: With complete learning tables.
        dimension: Parameters of the model.

    Raises:
        ConfigError: The budget can't be kept, or the numbers don't fit a secure sum.
    """
    return RunPlan(
        federation=config.federation.name,
        run_id="audit",
        learning=config.learning(),
        rounds=config.rounds,
        aggregation=config.aggregation,
        secure=config.secure_aggregation if config.aggregation.mode == "secure" else None,
        privacy=config.privacy,
        shared_noise=shared_noise(config, dimension),
        initial=InitialModel(digest=_NONE, size=4 * dimension + 9, dimension=dimension, manifest_hash=_NONE),
    )
