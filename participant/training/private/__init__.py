"""Private training: sums of clipped per-record gradients, and optimizers that know of the noise."""

from participant.training.private.engine import ClippedSum, RecordGradients, check_records
from participant.training.private.optimizers import DPAdamBC, WeightAverage

__all__ = ["ClippedSum", "DPAdamBC", "RecordGradients", "WeightAverage", "check_records"]
