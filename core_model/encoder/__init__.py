"""The shared transformer encoder and the model built around it."""

from core_model.encoder.blocks import Block
from core_model.encoder.multimodal import MultimodalEncoder

__all__ = ["Block", "MultimodalEncoder"]
