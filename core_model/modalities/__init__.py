"""From raw inputs to tokens of the shared encoder: one module for each modality."""

from core_model.modalities.direct import PerRecord
from core_model.modalities.image import ImageTokens, augment, outline, shrink, to_float
from core_model.modalities.text import TextTokens, hash_captions

__all__ = ["ImageTokens", "PerRecord", "TextTokens", "augment", "hash_captions", "outline", "shrink", "to_float"]
