"""What each kind of layer remembers of a forward pass so that per-record gradients follow in the backward pass.

A rule is called after a layer's forward, with its arguments and its output, and says to the :class:`Book` which output
to watch and what its gradient means for the layer's parameters. A layer may be used any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv2d_weight

from core_model.modalities import PerRecord
from participant.training.private.norms import Lookup, Part, Product, Units, wide
from privacy.mechanisms.errors import PrivacyError

Rows = tuple[int, int] | None
Take = Callable[[torch.Tensor], None]
Rule = Callable[["Book", Any, tuple[Any, ...], Any], Any]


class Book:
    """One forward and backward pass: what was used, and what has come back.

    Args:
        trained: The parameters whose gradients are wanted, by identity.
        finished: Called with a parameter's identity once all its uses have their gradients.
        anchor: A scalar that requires a gradient; the backward pass reaches every watched output through it.
    """

    def __init__(
        self, trained: Mapping[int, torch.Tensor], finished: Callable[[int], None], anchor: torch.Tensor
    ) -> None:
        self.trained = trained
        self.parts: dict[int, dict[Rows, Part]] = {}
        self.records = 0
        self._finished = finished
        self._anchor = anchor
        self._waiting: dict[int, int] = {}
        self._complete: set[int] = set()
        self._block: torch.Tensor | None = None

    def wants(self, *parameters: torch.Tensor | None) -> bool:
        """Whether any of these is trained."""
        return any(id(parameter) in self.trained for parameter in parameters if parameter is not None)

    def part(self, parameter: torch.Tensor, rows: Rows = None) -> Part:
        """Where gradients of a parameter, or of some of its rows, are collected."""
        parts = self.parts.setdefault(id(parameter), {})
        if parts and (rows is None) != (None in parts):
            raise PrivacyError(
                "layer-shared", "a weight is used in parts by one layer and as a whole by another", OPACUS_HINT
            )
        if rows not in parts:
            count = len(parameter) if parameter.dim() and rows is None else rows[1] - rows[0] if rows else 1
            part = parts[rows] = Part((count, *parameter.shape[1:]) if parameter.dim() else ())
            if parameter.dim() < 2:
                part.room = self._room(count)
        return parts[rows]

    def _room(self, count: int) -> torch.Tensor:
        """Memory [B, count] for the gradients of a vector.

        It comes from one block for all vectors: small blocks that outlive the pass would lie scattered in the holes
        that the activations leave behind, and the next large tensor wouldn't fit in.
        """
        if self._block is None:
            size = sum(p.numel() for p in self.trained.values() if p.dim() < 2)
            some = next(iter(self.trained.values()))
            self._block = torch.empty(
                self.records * size, dtype=wide(some.detach().new_empty(0)).dtype, device=some.device
            )
        room, self._block = self._block[: self.records * count], self._block[self.records * count :]
        return room.view(self.records, count)

    def watch(self, output: torch.Tensor, take: Take, *parameters: torch.Tensor | None) -> torch.Tensor:
        """Have ``take`` called with the gradient of an output on which these parameters bear; use what is returned."""
        if not torch.is_grad_enabled():
            return output
        mine = [id(parameter) for parameter in parameters if parameter is not None and id(parameter) in self.trained]
        if not output.requires_grad:
            output = _Root.apply(self._anchor, output)  # type: ignore[no-untyped-call]
        for key in mine:
            self._waiting[key] = self._waiting.get(key, 0) + 1

        waiting: list[Take] = [take]
        del take

        def arrived(gradient: torch.Tensor) -> None:
            if not self._complete.isdisjoint(mine):
                raise PrivacyError(
                    "layer-late",
                    "a layer was used again during the backward pass, when its gradients' norms had been taken",
                    "Give torch.utils.checkpoint use_reentrant=False.",
                )
            with torch.autocast(gradient.device.type, enabled=False):
                waiting.pop()(gradient)  # Once; with it goes its hold on the layer's input.
                for key in mine:
                    self._waiting[key] -= 1
                    if not self._waiting[key]:
                        self._complete.add(key)
                        self._finished(key)

        output.register_hook(arrived)  # type: ignore[no-untyped-call]
        return output

    def close(self) -> None:
        """Finish the parameters of which some output turned out not to matter to the loss."""
        for key, waiting in self._waiting.items():
            if waiting and key in self.parts:
                self._finished(key)

    def release(self) -> None:
        """Let go of everything at once: what waits for the garbage collector lies in the next pass's way."""
        self.parts.clear()
        self._block = None
        self._finished = _nothing

    def by_record(self, tensor: torch.Tensor, tail: int, layer: str) -> torch.Tensor:
        """View a tensor as [B, T, *its last ``tail`` sizes]; its first size is B, or a multiple with records in order.

        Raises:
            PrivacyError: "layer-shape".
        """
        leading = tensor.shape[: tensor.dim() - tail]
        if not leading or leading[0] % self.records:
            raise PrivacyError(
                "layer-shape",
                f"a {layer} got {list(tensor.shape)} where the loss has {self.records} records",
                "Give it a first dimension of records; ids that are the same for all, such as positions, are expanded.",
            )
        return tensor.reshape(self.records, -1, *tensor.shape[tensor.dim() - tail :])

    def linear(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        inputs: torch.Tensor,
        output: torch.Tensor,
        rows: Rows = None,
        bias_rows: Rows = None,
    ) -> torch.Tensor:
        """Watch ``output = inputs W^T + b`` with these rows of a weight and of a bias; None for all."""
        version = inputs._version

        def take(gradient: torch.Tensor) -> None:
            left = self.by_record(gradient, 1, "linear layer")
            if id(weight) in self.trained:
                _unchanged(inputs, version)
                self.part(weight, rows).add_product(Product(left, self.by_record(inputs, 1, "linear layer")))
            if bias is not None and id(bias) in self.trained:
                self.part(bias, bias_rows).add_direct(wide(left).sum(1))

        return self.watch(output, take, weight, bias)


def _nothing(key: int) -> None:
    """What is done for a pass that has ended."""


class _Root(torch.autograd.Function):
    """An output of the first layers, which no earlier gradient needs, becomes part of the graph."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if output._is_view():
            return output.clone()
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None]:
        return None, None


def _unchanged(tensor: torch.Tensor, version: int) -> None:
    if tensor._version != version:
        raise PrivacyError(
            "layer-inplace",
            "the input of a layer was changed in place after the layer had used it",
            "Use inplace=False, or write x = x + y instead of x += y.",
        )


# --- rules ------------------------------------------------------------------------------------------------------------


def _linear(book: Book, module: nn.Linear, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return book.linear(module.weight, module.bias, args[0], output)


def _fake_quantized(book: Book, module: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    """A linear layer with ``quantize(weight, scale)``, element by element; ``scale`` is one number or one for each row.

    The gradient of the quantized weight is a product; that of the weight is the same times dq/dw, that of the scale is
    its inner product with dq/ds.
    """
    weight, scale, inputs, version = module.weight, module.scale, args[0], args[0]._version
    bias: torch.Tensor | None = getattr(module, "bias", None)
    if output.shape != (*inputs.shape[:-1], len(weight)):
        raise PrivacyError(
            "layer-shape",
            f"a quantized linear layer made {list(output.shape)} of {list(inputs.shape)}",
            "A layer with weight, scale and quantize() has to compute F.linear(x, quantize(weight, scale), bias).",
        )
    slope, change = _derivatives(module.quantize, weight, scale)

    def take(gradient: torch.Tensor) -> None:
        left, right = book.by_record(gradient, 1, "linear layer"), book.by_record(inputs, 1, "linear layer")
        _unchanged(inputs, version)
        if book.wants(weight):
            book.part(weight).add_product(Product(left, right), slope)
        if book.wants(scale):
            moved = (wide(left) * F.linear(wide(right), change)).sum(1)
            per_scale = moved.reshape(len(moved), *scale.shape) if scale.numel() == len(weight) else None
            if per_scale is None:
                per_scale = moved.sum(1).reshape(len(moved), *scale.shape)
            book.part(scale).add_direct(per_scale)
        if bias is not None and book.wants(bias):
            book.part(bias).add_direct(wide(left).sum(1))

    return book.watch(output, take, weight, scale, bias)


def _derivatives(
    quantize: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], weight: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """dq/dw, or None where it is 1 everywhere, and dq/ds, both like the weight."""
    if scale.numel() != 1 and scale.shape != (len(weight), 1):
        raise PrivacyError(
            "layer-shape", f"a scale has {list(scale.shape)}, the weight {list(weight.shape)}", OPACUS_HINT
        )
    with torch.enable_grad():
        # Element by element: each has a scale of its own here, so a sum's gradient is the derivative.
        w = weight.detach().clone().requires_grad_(True)
        s = scale.detach().expand(weight.shape).clone().requires_grad_(True)
        slope, change = torch.autograd.grad(quantize(w, s).sum(), (w, s))
    return None if bool(((slope - 1).abs() < 1e-6).all()) else slope, change


def _embedding(book: Book, module: nn.Embedding, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    ids, padding, version = args[0], module.padding_idx, args[0]._version

    def take(gradient: torch.Tensor) -> None:
        _unchanged(ids, version)
        rows = book.by_record(gradient, 1, "embedding").flatten(0, 1)
        keys = ids.reshape(-1)
        if padding is not None:
            keys = torch.where(keys == padding, -1, keys)
        lookup = Lookup(keys, torch.arange(len(keys), device=keys.device), rows)
        book.part(module.weight).lookups.append(lookup)

    return book.watch(output, take, module.weight)


def _embedding_bag(book: Book, module: nn.EmbeddingBag, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    ids = args[0]
    if ids.dim() != 2 or len(args) > 1 or module.mode == "max":
        raise PrivacyError(
            "layer-shape",
            "an EmbeddingBag is trained privately with ids [n, pieces], mode sum or mean and no weights",
            OPACUS_HINT,
        )

    version = ids._version

    def take(gradient: torch.Tensor) -> None:
        _unchanged(ids, version)
        rows = book.by_record(gradient, 1, "embedding").flatten(0, 1)
        real = torch.ones_like(ids, dtype=torch.bool) if module.padding_idx is None else ids != module.padding_idx
        bags = torch.arange(len(ids), device=ids.device).unsqueeze(1).expand_as(ids)
        shares = None
        if module.mode == "mean":
            shares = (1.0 / real.sum(1, keepdim=True).clamp(min=1)).expand_as(ids).reshape(-1)
        keys = torch.where(real, ids, -1).reshape(-1)
        book.part(module.weight).lookups.append(Lookup(keys, bags.reshape(-1), rows, shares))

    return book.watch(output, take, module.weight)


def _normalised(
    book: Book, module: Any, inputs: torch.Tensor, output: torch.Tensor, again: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """A layer ``weight * again(inputs) + bias`` whose parameters lie along the last dimensions."""
    weight, bias = module.weight, getattr(module, "bias", None)
    tail, version = weight.dim(), inputs._version

    def take(gradient: torch.Tensor) -> None:
        rows = book.by_record(gradient, tail, "normalization")
        if book.wants(weight):
            _unchanged(inputs, version)
            values = book.by_record(inputs, tail, "normalization")
            found = torch.empty((book.records, *weight.shape), dtype=wide(rows[:0]).dtype, device=rows.device)
            for chunk, records in Units(book.records).chunks(rows[0].numel()):
                found[chunk] = (wide(rows[records]) * again(wide(values[records]))).sum(1)
            book.part(weight).add_direct(found)
        if bias is not None and book.wants(bias):
            book.part(bias).add_direct(wide(rows).sum(1))

    return book.watch(output, take, weight, bias)


def _layer_norm(book: Book, module: nn.LayerNorm, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    shape = list(module.normalized_shape)
    return _normalised(book, module, args[0], output, lambda x: F.layer_norm(x, shape, None, None, module.eps))


def _rms_norm(book: Book, module: nn.RMSNorm, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    shape = list(module.normalized_shape)
    return _normalised(book, module, args[0], output, lambda x: F.rms_norm(x, shape, None, module.eps))


def _group_norm(book: Book, module: nn.GroupNorm, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    inputs, weight, bias, version = args[0], module.weight, module.bias, args[0]._version

    def take(gradient: torch.Tensor) -> None:
        rows = wide(gradient).flatten(2)
        if len(rows) % book.records:
            book.by_record(gradient, 0, "normalization")
        if book.wants(weight):
            _unchanged(inputs, version)
            scaled = rows * F.group_norm(wide(inputs), module.num_groups, None, None, module.eps).flatten(2)
            book.part(weight).add_direct(scaled.sum(2).reshape(book.records, -1, len(weight)).sum(1))
        if book.wants(bias):
            book.part(bias).add_direct(rows.sum(2).reshape(book.records, -1, len(weight)).sum(1))

    return book.watch(output, take, weight, bias)


class _ConvolutionProduct(Product):
    """A convolution: the input is unfolded where it is looked at, and kept as it is.

    Args:
        gradient: Of the output, [B, K, p, h, w], with K pictures for each record.
        inputs: [B, K, c, h', w'].
        shape: Of the convolution.
    """

    def __init__(self, gradient: torch.Tensor, inputs: torch.Tensor, shape: _Geometry) -> None:
        super().__init__(gradient.flatten(3).transpose(2, 3).flatten(1, 2), inputs)
        self._gradient = gradient
        self._shape = shape

    def rights(self, records: torch.Tensor | slice) -> torch.Tensor:
        inputs = wide(self.right[records])
        patches = _patches(inputs.flatten(0, -4), self._shape).transpose(1, 2)
        return patches.reshape(len(inputs), -1, patches.shape[2])

    def drop(self, lost: torch.Tensor) -> None:
        super().drop(lost)
        self._gradient = self._gradient.clone()
        self._gradient[lost] = 0

    def add_weighted(self, weights: torch.Tensor, out: torch.Tensor) -> None:
        shape, gradient = self._shape, wide(self._gradient)
        scaled = gradient * weights.to(gradient.dtype).view(-1, 1, 1, 1, 1)
        inputs = wide(self.right).flatten(0, 1)
        found = conv2d_weight(  # type: ignore[no-untyped-call]
            inputs,
            [len(out), inputs.shape[1], *shape.kernel_size],
            scaled.flatten(0, 1),
            shape.stride,
            shape.padding,
            shape.dilation,
        )
        out += found.flatten(1)


class _Geometry:
    """Kernel, stride, padding and dilation of a convolution, in two dimensions and in numbers."""

    def __init__(self, module: nn.Conv1d | nn.Conv2d) -> None:
        one = isinstance(module, nn.Conv1d)

        def pair(values: Sequence[int], first: int) -> tuple[int, int]:
            return (first, int(values[0])) if one else (int(values[0]), int(values[1]))

        self.kernel_size = pair(module.kernel_size, 1)
        self.stride = pair(module.stride, 1)
        self.dilation = pair(module.dilation, 1)
        self.groups = module.groups
        around = list(module._reversed_padding_repeated_twice)
        around = around if not one else [*around, 0, 0]
        even = module.padding_mode == "zeros" and around[0] == around[1] and around[2] == around[3]
        self.padding = (around[2], around[0]) if even else (0, 0)
        self.mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        self.around: list[int] = [] if even else around

    def padded(self, inputs: torch.Tensor) -> torch.Tensor:
        """The input [n, c, h, w] with the padding that ``padding`` doesn't do."""
        if not self.around:
            return inputs
        return F.pad(inputs, self.around, mode=self.mode)


def _grouped(channels: torch.Tensor, groups: int) -> torch.Tensor:
    """View channels [n, c, l] as [n, groups, c / groups, l]."""
    return channels.reshape(len(channels), groups, -1, channels.shape[2])


def _patches(inputs: torch.Tensor, module: Any) -> torch.Tensor:
    return F.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)


def _convolution(book: Book, module: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    inputs, weight, bias, shape = args[0], module.weight, module.bias, _Geometry(module)
    one, version = isinstance(module, nn.Conv1d), inputs._version

    def take(gradient: torch.Tensor) -> None:
        rows = book.by_record(gradient.unsqueeze(2) if one else gradient, 3, "convolution")
        if book.wants(weight):
            _unchanged(inputs, version)
            values = shape.padded(wide(inputs.unsqueeze(2) if one else inputs).detach())
            part = book.part(weight)
            if shape.groups == 1:
                part.add_product(_ConvolutionProduct(rows, book.by_record(values, 3, "convolution"), shape))
            else:
                left = _grouped(wide(rows).flatten(0, 1).flatten(2), shape.groups)
                found = torch.einsum("bgpl,bgdl->bgpd", left, _grouped(_patches(values, shape), shape.groups))
                part.add_direct(found.reshape(book.records, -1, *weight.shape).sum(1))
        if book.wants(bias):
            book.part(bias).add_direct(wide(rows).sum((1, 3, 4)))

    return book.watch(output, take, weight, bias)


def _per_record(book: Book, module: PerRecord, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    parameter, records = args
    if not book.wants(parameter):
        return output

    def take(gradient: torch.Tensor) -> None:
        rows = book.by_record(wide(gradient), parameter.dim(), "PerRecord")
        book.part(parameter).add_direct(rows.sum(1))

    return book.watch(output.expand(records, *parameter.shape), take, parameter)


OPACUS_HINT: Final = 'Set engine = "opacus", which is slower, or freeze the layer.'

RULES: Final[dict[type[nn.Module], Rule]] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding_bag,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    PerRecord: _per_record,
}
"""Layers whose class is exactly one of these; a subclass may compute something else."""


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of a layer; None where there is none."""
    weight, scale = (getattr(module, name, None) for name in ("weight", "scale"))
    if isinstance(weight, nn.Parameter) and isinstance(scale, nn.Parameter):
        return _fake_quantized if callable(getattr(module, "quantize", None)) and weight.dim() == 2 else None
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and (module.max_norm or module.scale_grad_by_freq):
        return None
    if type(module).__name__ == "NonDynamicallyQuantizableLinear":
        return _linear  # torch's name for the last projection of its attention
    return RULES.get(type(module))
