"""Small models for the private engine: one for each layer type and way of using it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from core_model.modalities import PerRecord

RECORDS = 7


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and the inputs of ``RECORDS`` records."""

    model: nn.Module
    inputs: torch.Tensor


def losses(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """A loss [n] of any output [n, ...], in which each entry has a weight of its own."""
    output = model(inputs).flatten(1)
    weights = torch.linspace(-1.0, 1.5, output.shape[1], dtype=output.dtype)
    return (torch.tanh(output) * weights).sum(1) + output.square().mean(1)


class FakeQuantLinear(nn.Module):
    """A linear layer whose weight is rounded to a grid with a learned step (LSQ, Esser et al. 2020)."""

    def __init__(self, inputs: int, outputs: int, bits: int, per_row: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs))
        self.scale = nn.Parameter(torch.full((outputs, 1) if per_row else (), 0.4))
        self.limit = 2 ** (bits - 1) - 1

    def quantize(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        inside = (weight / scale).clamp(-self.limit, self.limit)
        return ((inside.round() - inside).detach() + inside) * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.quantize(self.weight, self.scale), self.bias)


class Tied(nn.Module):
    """A table of embeddings that is the head's weight, too."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width, padding_idx=0)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mix(self.table(ids))))


class Shared(nn.Module):
    """One block used for tokens of two lengths, and once more for their mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.block(x[:, :3]), self.block(x[:, 3:])
        return self.block(first.mean(1) + second.mean(1))


class Positions(nn.Module):
    """A class token, positions and a scale that belong to no layer."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.direct = PerRecord()
        self.token = nn.Parameter(torch.randn(1, width))
        self.positions = nn.Parameter(torch.randn(tokens + 1, width))
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.linear = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = len(x)
        token = self.direct(self.token, n).expand(n, -1, -1)
        x = torch.cat((token, x), 1) + self.direct(self.positions, n)
        return self.linear(x) * self.direct(self.scale, n).exp().view(-1, 1, 1)


class Attention(nn.Module):
    """torch's attention in one of its forms."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        other = {"kdim": 6, "vdim": 5} if form == "cross" else {}
        self.attention = nn.MultiheadAttention(8, 2, batch_first=form != "sequence-first", **other)
        self.k, self.v = nn.Linear(8, 6), nn.Linear(8, 5)
        if form != "cross":
            del self.k, self.v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.form == "sequence-first":
            y = x.transpose(0, 1)
            return self.attention(y, y, y, need_weights=False)[0].transpose(0, 1)
        if self.form == "cross":
            return self.attention(x[:, :2], self.k(x), self.v(x))[0]
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[:, -1] = True
        mask = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
        return self.attention(x, x, x, key_padding_mask=padding, attn_mask=mask)[0]


class InPlace(nn.Module):
    """Activations that overwrite a layer's output, which is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3 * 9, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Bag(nn.Module):
    """Bags of hashed pieces, several for a record."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 6, mode=mode, padding_idx=0)
        self.linear = nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        n, t, pieces = ids.shape
        return self.linear(torch.tanh(self.bag(ids.reshape(-1, pieces)).reshape(n, t, -1)))


class Views(nn.Module):
    """Several views of each record, averaged before anything is clipped."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.GroupNorm(2, 4),
            nn.Tanh(),
            nn.Conv2d(4, 4, 2, groups=2),
            nn.Flatten(),
            nn.Linear(16, 5),
        )
        self.big = nn.Conv2d(2, 40, 3, stride=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        views = torch.stack((x, x.flip(2), x.flip(3)), 1).flatten(0, 1)
        found = self.net(views).reshape(len(x), 3, -1).mean(1)
        return found + self.big(views).flatten(1).reshape(len(x), 3, -1).mean((1, 2)).unsqueeze(1)


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def _floats(*shape: int) -> torch.Tensor:
    return torch.randn(RECORDS, *shape)


def _ids(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, (RECORDS, *shape))


CASES: dict[str, Callable[[], Case]] = {
    "linear": lambda: Case(sequence(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)), _floats(5)),
    "linear-3d": lambda: Case(sequence(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 20)), _floats(6, 40)),
    "linear-4d": lambda: Case(sequence(nn.Linear(24, 30), nn.Tanh(), nn.Linear(30, 20)), _floats(2, 3, 24)),
    "linear-instantiated": lambda: Case(sequence(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), _floats(50, 3)),
    "embedding": lambda: Case(sequence(nn.Embedding(9, 5, padding_idx=0), nn.Linear(5, 3)), _ids(9, 6)),
    "embedding-all": lambda: Case(sequence(nn.Embedding(9, 5), nn.Linear(5, 3)), _ids(9, 6)),
    "tied": lambda: Case(Tied(30, 20), _ids(30, 5)),
    "bag-mean": lambda: Case(Bag("mean"), _ids(9, 4, 3)),
    "bag-sum": lambda: Case(Bag("sum"), _ids(9, 4, 3)),
    "layer-norm": lambda: Case(sequence(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2)), _floats(4, 6)),
    "layer-norm-2d": lambda: Case(sequence(nn.Linear(6, 8), nn.LayerNorm([4, 8], bias=False)), _floats(4, 6)),
    "rms-norm": lambda: Case(sequence(nn.Linear(6, 8), nn.RMSNorm(8), nn.Tanh(), nn.Linear(8, 2)), _floats(4, 6)),
    "group-norm": lambda: Case(sequence(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Tanh()), _floats(3, 6, 6)),
    "conv": lambda: Case(
        sequence(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 2)), _floats(3, 9, 9)
    ),
    "conv-gram": lambda: Case(sequence(nn.Conv2d(20, 30, 3, stride=2, padding=1, dilation=2)), _floats(20, 6, 6)),
    "conv-patches": lambda: Case(sequence(nn.Conv2d(3, 40, 4, stride=4), nn.Tanh()), _floats(3, 8, 8)),
    "conv-groups": lambda: Case(sequence(nn.Conv2d(4, 6, 3, groups=2, padding="same"), nn.Tanh()), _floats(4, 5, 5)),
    "conv-reflected": lambda: Case(sequence(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")), _floats(2, 5, 5)),
    "conv-uneven": lambda: Case(sequence(nn.Conv2d(2, 3, 2, padding="same")), _floats(2, 5, 5)),
    "conv1d": lambda: Case(sequence(nn.Conv1d(3, 4, 3, stride=2, padding=1, bias=False), nn.Tanh()), _floats(3, 9)),
    "conv1d-gram": lambda: Case(sequence(nn.Conv1d(20, 30, 5, padding=2)), _floats(20, 8)),
    "direct": lambda: Case(Positions(3, 6), _floats(3, 6)),
    "attention": lambda: Case(Attention("self"), _floats(5, 8)),
    "attention-sequence-first": lambda: Case(Attention("sequence-first"), _floats(5, 8)),
    "attention-cross": lambda: Case(Attention("cross"), _floats(5, 8)),
    "transformer-layer": lambda: Case(
        sequence(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)).eval(),
        _floats(4, 6),
    ),
    "shared": lambda: Case(Shared(16), _floats(8, 16)),
    "views": lambda: Case(Views(), _floats(2, 5, 5)),
    "in-place": lambda: Case(InPlace(), _floats(2, 5, 5)),
    "quantized": lambda: Case(sequence(FakeQuantLinear(12, 10, 8, False), nn.Tanh(), nn.Linear(10, 2)), _floats(3, 12)),
    "quantized-clipped": lambda: Case(sequence(nn.Linear(5, 12), FakeQuantLinear(12, 10, 3, False)), _floats(3, 5)),
    "quantized-rows": lambda: Case(
        sequence(FakeQuantLinear(12, 10, 3, True), nn.Tanh(), nn.Linear(10, 2)), _floats(3, 12)
    ),
}


def make(name: str) -> Case:
    """A case with seeded weights and inputs; norms' weights aren't all one."""
    torch.manual_seed(3)
    case = CASES[name]()
    for parameter in case.model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return case
