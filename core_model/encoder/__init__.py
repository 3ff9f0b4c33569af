"""The shared transformer encoder and the model built around it; and the linear model that needs none."""

from core_model.config import ModelConfig, TaskConfig
from core_model.encoder.blocks import Block
from core_model.encoder.linear import LinearClassifier
from core_model.encoder.multimodal import MultimodalEncoder

__all__ = ["Block", "LinearClassifier", "MultimodalEncoder", "new_model"]


def new_model(
    model: ModelConfig, temperature: float = TaskConfig().temperature
) -> MultimodalEncoder | LinearClassifier:
    """A new linear model, or a new encoder with parameters from torch's generator."""
    if model.kind == "linear":
        return LinearClassifier(model.inputs, model.classes)
    return MultimodalEncoder(model, temperature)
