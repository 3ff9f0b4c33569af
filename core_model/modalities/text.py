"""Text without a vocabulary: words and their character n-grams hashed into one table of embeddings.

Nothing is downloaded and nothing depends on local data, so all institutions share the table whatever their words are;
n-grams let an unseen word borrow from its relatives (Bojanowski et al. 2017).
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence

import torch
from torch import nn

from core_model.modalities.direct import PerRecord

PIECES = 12
"""Hashed pieces kept of a word: itself, then its n-grams in order."""

_WORD = re.compile(r"\w+", re.UNICODE)
_GRAMS = (3, 4)


def words(caption: str) -> list[str]:
    """The caption's words, case-folded and compatibility-normalised."""
    return _WORD.findall(unicodedata.normalize("NFKC", caption).casefold().replace("_", " "))


def pieces(word: str) -> list[str]:
    """The word itself and its character n-grams, marked at both ends, at most :data:`PIECES`."""
    marked = f"<{word}>"
    grams = [marked[i : i + n] for n in _GRAMS for i in range(len(marked) - n + 1) if n < len(marked)]
    return [f"={word}", *grams][:PIECES]


def hash_captions(captions: Sequence[str], buckets: int, tokens: int) -> torch.Tensor:
    """Hash captions to int64 [n, tokens, PIECES]; 0 is padding, real pieces lie in [1, buckets].

    A caption without a word gets one token of the empty word, so that every row has something to attend to.
    """
    out = torch.zeros((len(captions), tokens, PIECES), dtype=torch.int64)
    for row, caption in enumerate(captions):
        for column, word in enumerate((words(caption) or [""])[:tokens]):
            hashed = [1 + zlib.crc32(piece.encode()) % buckets for piece in pieces(word)]
            out[row, column, : len(hashed)] = torch.tensor(hashed)
    return out


class TextTokens(nn.Module):
    """Embed hashed pieces: a word is the mean of its pieces plus its position."""

    def __init__(self, width: int, buckets: int, tokens: int) -> None:
        super().__init__()
        self.pieces = nn.EmbeddingBag(buckets + 1, width, mode="mean", padding_idx=0)
        self.positions = nn.Parameter(torch.zeros(tokens, width))
        self.norm = nn.LayerNorm(width)
        self.direct = PerRecord()

    def forward(self, hashed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map int64 [n, t, pieces] to tokens [n, t, width] and a mask bool [n, t] that is True at real words."""
        batch, length, count = hashed.shape
        tokens = self.pieces(hashed.reshape(-1, count)).reshape(batch, length, -1)
        positions = self.direct(self.positions, batch)[:, :length]
        return self.norm(tokens + positions), hashed[:, :, 0] != 0
