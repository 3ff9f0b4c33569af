"""What training minimises."""

from core_model.objectives.contrastive import contrastive_loss, ranks

__all__ = ["contrastive_loss", "ranks"]
