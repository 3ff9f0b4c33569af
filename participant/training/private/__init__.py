"""Private training: sums of clipped per-record gradients, and optimizers that know of the noise."""

from participant.training.private.engine import ClippedSum, RecordGradients

__all__ = ["ClippedSum", "RecordGradients"]
