"""What training minimises."""

from core_model.objectives.contrastive import bank_losses, contrastive_loss, group_losses, ranks, spread

__all__ = ["bank_losses", "contrastive_loss", "group_losses", "ranks", "spread"]
