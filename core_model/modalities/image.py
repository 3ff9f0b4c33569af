"""Pictures: a small convolutional stem that turns them into tokens, and the random changes made in training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from core_model.modalities.direct import PerRecord


class ImageTokens(nn.Module):
    """Three strided convolutions with GroupNorm: a picture of s x s pixels becomes (s / 8)^2 tokens.

    No normalisation crosses examples, so that private training can use the module as it is.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 4, 3, stride=2, padding=1),
            nn.GroupNorm(_groups(width // 4), width // 4),
            nn.GELU(),
            nn.Conv2d(width // 4, width // 2, 3, stride=2, padding=1),
            nn.GroupNorm(_groups(width // 2), width // 2),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        )
        self.positions = nn.Parameter(torch.zeros((size // 8) ** 2, width))
        self.norm = nn.LayerNorm(width)
        self.direct = PerRecord()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images [n, 3, size, size] in [-1, 1] to tokens [n, (size / 8)^2, width]."""
        tokens: torch.Tensor = self.stem(images).flatten(2).transpose(1, 2)
        normed: torch.Tensor = self.norm(tokens + self.direct(self.positions, len(tokens)))
        return normed


def to_float(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bring uint8 [n, 1 or 3, h, w] to float [n, 3, size, size] in [-1, 1]."""
    pixels = images.to(torch.float32).mul_(2.0 / 255.0).sub_(1.0)
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


def shrink(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bring uint8 [n, c, h, w] to uint8 [n, c, size, size] once, where that saves work in every epoch."""
    if images.shape[-2:] == (size, size):
        return images
    parts = [
        F.interpolate(part.to(torch.float32), (size, size), mode="bilinear", align_corners=False, antialias=True)
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        for part in torch.split(images, 256)
    ]
    return torch.cat(parts)


def augment(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Change float images [n, 3, s, s] at random: shift, zoom, turn a little, mix colours, drop colour, vary contrast.

    ``strength`` in [0, 1] scales all of them; 0 returns the images unchanged. Each picture gets its own draw.
    """
    if strength == 0.0:
        return images
    count = len(images)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=generator) * 2 - 1

    angle = draw() * (0.35 * strength)
    zoom = 1 + draw() * (0.2 * strength)
    shift = draw(2) * (0.2 * strength)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    affine = torch.stack((cos, -sin, shift[:, 0], sin, cos, shift[:, 1]), 1).reshape(count, 2, 3)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    mixing = torch.eye(3) + draw(3, 3) * (0.3 * strength)
    grey = (torch.rand(count, 1, 1, generator=generator) < 0.4 * strength).to(images.dtype)
    mixing = (1 - grey) * mixing + grey / 3
    images = torch.einsum("ncd,ndhw->nchw", mixing, images)
    gain = (1 + draw(1, 1, 1) * (0.4 * strength)).to(images.dtype)
    return images * gain + draw(1, 1, 1) * (0.2 * strength)


def outline(images: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Replace a random share of float images [n, 3, s, s] by line drawings: dark where colour changes, else white."""
    if share == 0.0:
        return images
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator) < share
    right = F.pad(images, (0, 1, 0, 0), mode="replicate").diff(dim=3)
    below = F.pad(images, (0, 0, 0, 1), mode="replicate").diff(dim=2)
    change = (right.square() + below.square()).sum(1, keepdim=True).sqrt()
    return torch.where(chosen, (1 - 1.5 * change).clamp_(min=-1), images)


def _groups(channels: int) -> int:
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
