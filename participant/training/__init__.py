"""Local training: from a version of the model to an update, on this institution's data."""

from participant.training.trainer import LocalTrainer, TrainingCancelled, TrainingResult

__all__ = ["LocalTrainer", "TrainingCancelled", "TrainingResult"]
