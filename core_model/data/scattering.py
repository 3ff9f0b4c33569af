"""What a small grey picture looks like, in numbers that nobody learnt: log-scattering, whitened by drawn pictures.

Private training of a linear model on good fixed features beats private training of a deep one by far (Tramer and Boneh
2020, arXiv 2011.11660), since noise then falls on few parameters and the problem is convex. Three steps, none of which
has seen any data:

1. *Scattering* of order 2 (Bruna and Mallat 2013): moduli of Morlet wavelets, and of wavelets of those moduli, averaged
   over 8 x 8 pixels. Stable under small deformations.
2. *Logarithm*: coefficients are products of many factors (light, contrast, edges), and few large ones would decide
   about the length of every gradient.
3. *Whitening* with mean and covariance of pictures that a fixed program draws (discs, bars and triangles over each
   other). The covariance is taken to be a Kronecker product, channels x places. Gradient descent on whitened features
   takes a few dozen steps, where noise allows no more.

The features of a picture have the length sqrt(d), so that a clipping norm means the same for all.
"""

from __future__ import annotations

import functools
import hashlib
import math
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from core_model.data.cache import prepared, verify
from core_model.data.examples import Examples
from core_model.errors import DataError

SCALES: Final = 2
ORIENTATIONS: Final = 8
CHANNELS: Final = 1 + SCALES * ORIENTATIONS + ORIENTATIONS**2
"""Coefficients at a place: the mean, 16 of order 1, 64 of order 2."""

_STRIDE: Final = 2**SCALES
_MARGIN: Final = 4
_WIDTH: Final = 0.8  # of the finest wavelet's envelope, in pixels
_FREQUENCY: Final = 0.75 * math.pi
_FLOOR: Final = 1e-3  # of coefficients, before the logarithm
_DRAWN: Final = 2_000
_SHAPES: Final = 8
_RIDGE: Final = 0.2  # added to the spectrum, relative to its mean
_CHUNK: Final = 64
_VERSION: Final = "1"

Float64 = npt.NDArray[np.float64]


class Scattering:
    """Order-2 scattering of square pictures with 2 scales and 8 orientations.

    Filters live in the frequency domain; a channel is computed at half the resolution once its band allows that.

    Args:
        size: Height and width in pixels, a multiple of 4, at least 8.

    Raises:
        ValueError: For another size.
    """

    def __init__(self, size: int) -> None:
        if size < 2 * _STRIDE or size % _STRIDE:
            raise ValueError(f"pictures of {size} x {size} pixels; a multiple of {_STRIDE}, at least {2 * _STRIDE}")
        self.places = (size // _STRIDE) ** 2
        length = size + 2 * _MARGIN
        angles = [math.pi * k / ORIENTATIONS for k in range(ORIENTATIONS)]
        fine, coarse = (
            torch.from_numpy(np.stack([_morlet(length, scale, angle) for angle in angles])).to(torch.float32)
            for scale in range(SCALES)
        )
        self._fine, self._coarse = fine, coarse
        self._full = _average(size, length, 1)
        self._half = _average(size, length, 2)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Coefficients [n, 81, places], at least 0 but for rounding, of pictures float32 [n, size, size]."""
        margins = (_MARGIN,) * 4
        framed = F.pad(pixels.unsqueeze(1), margins, mode="reflect")
        spectrum = torch.fft.fft2(framed)
        first = torch.fft.ifft2(spectrum * self._fine).abs()
        second = torch.fft.ifft2(_halved(spectrum * self._coarse)).abs()
        found = [_smooth(framed, self._full), _smooth(first, self._full), _smooth(second, self._half)]
        inner = torch.fft.fft2(first)
        for orientation in range(ORIENTATIONS):
            waves = _halved(inner[:, orientation : orientation + 1] * self._coarse)
            found.append(_smooth(torch.fft.ifft2(waves).abs(), self._half))
        return torch.cat(found, 1)


class Descriptor:
    """Features of square grey pictures: scattering, logarithm, whitening, one length for all.

    Formal Guarantees:
        A picture's features follow from that picture alone, and from constants that no data entered. So adding or
        removing a record leaves the features of all others as they are, and computing them costs no privacy. They have
        the L2 norm sqrt(``dimension``).

    Args:
        size: Height and width in pixels, a multiple of 4, at least 8.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._scattering = Scattering(size)
        self.dimension = CHANNELS * self._scattering.places
        logs = torch.cat([self._logs(part) for part in torch.split(torch.from_numpy(drawn(_DRAWN, size)), _CHUNK)])
        self._mean = logs.mean(0)
        centred = logs - self._mean
        channels, self._by_channel = _spectrum(torch.einsum("nap,nbp->ab", centred, centred))
        places, self._by_place = _spectrum(torch.einsum("nap,naq->pq", centred, centred))
        self._scale = (channels.unsqueeze(1) * places + _RIDGE).rsqrt().to(torch.float32)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features float32 [n, dimension] of pictures uint8 [n, 1 or 3, size, size]."""
        with torch.inference_mode():
            parts = [self._features(part) for part in torch.split(images, _CHUNK)]
            return torch.cat(parts) if parts else torch.empty(0, self.dimension)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        centred = self._logs(images.to(torch.float32).mean(1) / 255.0) - self._mean
        turned = self._by_channel.T @ centred @ self._by_place
        # Back to channels and places: how a computer numbers eigenvectors, and their signs, leave no trace.
        white = self._by_channel @ (turned * self._scale) @ self._by_place.T
        return F.normalize(white.flatten(1), dim=1) * math.sqrt(self.dimension)

    def _logs(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.log(self._scattering(pixels).clamp_(min=0.0) + _FLOOR)


@functools.lru_cache(maxsize=4)
def descriptor(size: int) -> Descriptor:
    """The descriptor of pictures of this size; it takes a second to make and is kept."""
    return Descriptor(size)


def described(examples: Examples) -> Examples:
    """The examples with ``features`` float16 [n, d], from the cache or into it.

    The file is mapped, not read: institutions on one machine that share a test set share its memory, too.

    Raises:
        DataError: If there are no pictures of a size that can be described, or the cache can't be written.
    """
    images = examples.images
    if images is None or images.shape[2] != images.shape[3] or images.shape[2] % _STRIDE or images.shape[2] < 8:
        raise DataError(
            "Scattering features need square pictures whose size is a multiple of 4, at least 8.",
            "Leave features=scattering out of the data source.",
        )
    size = images.shape[2]
    dimension = CHANNELS * (size // _STRIDE) ** 2
    digest = hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()
    key = {"features": "scattering", "version": _VERSION, "pictures": digest, "count": str(len(images))}

    def make(folder: Path) -> None:
        whole = np.memmap(folder / "features.f16", np.float16, "w+", shape=(len(images), dimension))
        for start in range(0, len(images), 1_024):
            part = descriptor(size)(images[start : start + 1_024])
            whole[start : start + len(part)] = part.to(torch.float16).numpy()
        whole.flush()

    path = verify(prepared("scattering", key, make), "features.f16")
    flat = torch.from_file(str(path), shared=False, size=len(images) * dimension, dtype=torch.float16)
    return Examples(
        images=images,
        captions=examples.captions,
        labels=examples.labels,
        persons=examples.persons,
        features=flat.view(len(images), dimension),
    )


# ---- filters ---------------------------------------------------------------------------------------------------------


def _morlet(length: int, scale: int, angle: float) -> Float64:
    """A Morlet wavelet's spectrum [length, length], real; 0 at frequency 0, so that flat pictures give nothing."""
    width, frequency = _WIDTH * 2**scale, _FREQUENCY / 2**scale
    centre = (frequency * math.cos(angle), frequency * math.sin(angle))
    wave = _bump(length, width, angle, centre)
    flat = _bump(length, width, angle, (0.0, 0.0))
    found: Float64 = wave - wave[0, 0] / flat[0, 0] * flat
    return found


def _bump(length: int, width: float, angle: float, centre: tuple[float, float]) -> Float64:
    """The spectrum of a Gaussian envelope, moved to ``centre``; what lies beyond the band is folded back into it."""
    across = width * ORIENTATIONS / 4  # Longer along its crests: eight orientations tell them apart.
    cos, sin = math.cos(angle), math.sin(angle)
    frequency = 2.0 * math.pi * np.fft.fftfreq(length)
    total = np.zeros((length, length))
    for down in range(-2, 3):
        for right in range(-2, 3):
            y = frequency[:, None] - centre[0] + 2.0 * math.pi * down
            x = frequency[None, :] - centre[1] + 2.0 * math.pi * right
            total += np.exp(-0.5 * ((width * (cos * y + sin * x)) ** 2 + (across * (cos * x - sin * y)) ** 2))
    return total


def _average(size: int, length: int, step: int) -> torch.Tensor:
    """Weights [size / 4, length / step] of a Gaussian mean around each fourth pixel, for every ``step``-th row."""
    places = (np.arange(size // _STRIDE) + 0.5) * _STRIDE - 0.5 + _MARGIN
    away = np.arange(0, length, step)[None, :] - places[:, None]
    away = (away + length / 2) % length - length / 2
    weights = np.exp(-0.5 * (away / (_WIDTH * 2 ** (SCALES - 1))) ** 2)
    return torch.from_numpy(weights / weights.sum(1, keepdims=True)).to(torch.float32)


def _smooth(maps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Means [n, c, places] of maps [n, c, h, h] over rows and columns."""
    return (weights @ maps @ weights.T).flatten(2)


def _halved(spectrum: torch.Tensor) -> torch.Tensor:
    """The spectrum [..., h / 2, h / 2] of every second row and column."""
    half = spectrum.shape[-1] // 2
    rows = spectrum[..., :half, :] + spectrum[..., half:, :]
    return (rows[..., :half] + rows[..., half:]) * 0.25


# ---- whitening -------------------------------------------------------------------------------------------------------


def drawn(count: int, size: int) -> npt.NDArray[np.float32]:
    """Pictures [count, size, size] in [0, 1] of a fixed program: discs, bars and triangles over each other.

    Two in three have a dark ground, and each shape one shade. Nothing about them is taken from any data.
    """
    # The stream of this generator is frozen by numpy's policy: every site draws the same.
    random = np.random.RandomState(0)

    def draw(low: float, high: float) -> npt.NDArray[np.float32]:
        return random.uniform(low, high, (count, 1, 1)).astype(np.float32)

    y, x = np.mgrid[0:size, 0:size].astype(np.float32)[:, None]
    pictures = np.where(draw(0, 3) < 2, 0, draw(0, 1)) + np.zeros((1, size, size), np.float32)
    for index in range(_SHAPES):
        angle, radius = draw(0, math.pi), size * np.exp(draw(math.log(0.05), math.log(0.5)))
        down, right = y - size * draw(0, 1), x - size * draw(0, 1)
        along = np.cos(angle) * right + np.sin(angle) * down
        across = (np.cos(angle) * down - np.sin(angle) * right) * np.exp(draw(0, -math.log(0.15)))
        kinds = (
            np.hypot(along, across),
            np.maximum(abs(along), abs(across)),
            np.maximum(abs(along) + across / 2, -across) * 1.3,
        )
        kind = draw(0, 3)
        reach = np.where(kind < 1, kinds[0], np.where(kind < 2, kinds[1], kinds[2]))
        cover = np.clip(radius - reach + 0.5, 0, 1)
        cover *= draw(0, 1) < (1.0 if index < 2 else 0.6)
        pictures = pictures * (1 - cover) + draw(0, 1) * cover
    return pictures.astype(np.float32)


def _spectrum(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues float64 over their mean, and eigenvectors float32 in columns."""
    values, vectors = torch.linalg.eigh(covariance.to(torch.float64))
    return values.clamp(min=0.0) / values.mean(), vectors.to(torch.float32)
