"""Pictures and text through the same transformer blocks into one space."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from core_model.config import ModelConfig, TaskConfig
from core_model.encoder.blocks import Block
from core_model.modalities import ImageTokens, PerRecord, TextTokens, to_float


class MultimodalEncoder(nn.Module):
    """Own tokens and an own head for each modality, shared blocks between them.

    With ``classes`` the model also has a classification head over the representation; where an example has both a
    picture and a text, the two are added with learnt modality weights (softmax, one for each modality).
    """

    def __init__(self, config: ModelConfig, temperature: float = TaskConfig().temperature) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTokens(config.width, config.image_size)
        self.text = TextTokens(config.width, config.text_buckets, config.text_tokens)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.image_head = nn.Linear(config.width, config.embedding)
        self.text_head = nn.Linear(config.width, config.embedding)
        self.log_scale: nn.Parameter | None = None
        self.modality_weights: nn.Parameter | None = None
        self.classifier: nn.Linear | None = None
        self.direct = PerRecord()
        if config.classes:
            self.modality_weights = nn.Parameter(torch.zeros(2))
            self.classifier = nn.Linear(config.embedding, config.classes)
        else:
            self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("positions") or name == "text.pieces.weight":
                nn.init.normal_(parameter, std=0.02 if name.endswith("positions") else 0.05)
            elif parameter.dim() == 2 and "norm" not in name:
                nn.init.xavier_uniform_(parameter)
        for block in self.blocks:
            assert isinstance(block, Block)
            for layer in (block.out, block.down):  # Each block starts near the identity, whatever the depth.
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * len(self.blocks)))

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Map images, uint8 [n, 1 or 3, h, w] or float [n, 3, size, size], to unit vectors [n, embedding]."""
        if images.dtype == torch.uint8:
            images = to_float(images, self.config.image_size)
        return F.normalize(self.image_head(self._encode(self.image(images), None)), dim=-1)

    def embed_texts(self, hashed: torch.Tensor) -> torch.Tensor:
        """Map hashed captions int64 [n, t, pieces] to unit vectors [n, embedding]."""
        longest = int((hashed[:, :, 0] != 0).sum(1).max())  # Padding columns are work for nothing.
        tokens, mask = self.text(hashed[:, :longest])
        return F.normalize(self.text_head(self._encode(tokens, mask)), dim=-1)

    def classify(self, images: torch.Tensor | None, hashed: torch.Tensor | None) -> torch.Tensor:
        """Logits [n, classes] from a picture, a text, or both added with the learnt modality weights."""
        if self.classifier is None or self.modality_weights is None:
            raise ValueError("the model was built with classes = 0")
        embedded = {0: None if images is None else self.embed_images(images)}
        embedded[1] = None if hashed is None else self.embed_texts(hashed)
        parts = {place: part for place, part in embedded.items() if part is not None}
        records = len(next(iter(parts.values())))
        weights = torch.softmax(self.direct(self.modality_weights, records)[:, list(parts)], 1)
        pairs = zip(torch.split(weights, 1, 1), parts.values(), strict=True)
        mixed = torch.stack([weight * part for weight, part in pairs]).sum(0)
        # Unit vectors times the root of their dimension have entries near one, as the head's start expects.
        logits: torch.Tensor = self.classifier(mixed * math.sqrt(self.config.embedding))
        return logits

    def scale(self, records: int = 1) -> torch.Tensor:
        """The inverse temperature of the contrastive loss, at most 100.

        Args:
            records: Losses that it enters, where each has a gradient of its own (private training).

        Returns:
            [1], or [records] in private training.
        """
        if self.log_scale is None:
            raise ValueError("a classification model has no temperature")
        scale: torch.Tensor = self.direct(self.log_scale, records)
        return scale.exp().clamp(max=100.0)

    def _encode(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        for block in self.blocks:
            tokens = block(tokens, mask)
        if mask is None:
            pooled: torch.Tensor = self.norm(tokens.mean(1))
            return pooled
        weight = mask.unsqueeze(-1).to(tokens.dtype)
        pooled = self.norm((tokens * weight).sum(1) / weight.sum(1))
        return pooled
