"""From accepted updates to the next version of the model."""

from coordinator.aggregation.check import UpdateRefused
from coordinator.aggregation.intake import Intake
from coordinator.aggregation.merge import MergeJob, MergeResult, OptimizerOverflow, Update, merge
from coordinator.aggregation.optimizer import FedAdam, FedAvg, ServerOptimizer, server_optimizer
from coordinator.aggregation.reveal import map_upload, reveal, unmask

__all__ = [
    "FedAdam",
    "FedAvg",
    "Intake",
    "MergeJob",
    "MergeResult",
    "OptimizerOverflow",
    "ServerOptimizer",
    "Update",
    "UpdateRefused",
    "map_upload",
    "merge",
    "reveal",
    "server_optimizer",
    "unmask",
]
