"""Sums of clipped per-record gradients, in one backward pass and without the gradients themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal

import torch
from torch import nn

from core_model.modalities import PerRecord
from participant.training.private.attention import attention
from participant.training.private.layers import Book, rule_for
from participant.training.private.norms import Part, Units
from participant.training.private.refusals import check_batch_norm, check_losses, check_rows, unknown_layers, unused
from privacy.mechanisms.clipping import STABILISER, ClippingRule
from privacy.mechanisms.errors import PrivacyError

Losses = Callable[[], torch.Tensor]

MARGIN: Final = 1e-5
"""By how much, relative to it, gradients are clipped below the norm that is asked for: what rounding can't reach."""


@dataclasses.dataclass(frozen=True)
class ClippedSum:
    """What one chunk of records gives.

    Attributes:
        total: The clipped gradients added up, float32, one tensor like each trained parameter, in manifest order.
        norms: Of the units' gradients before clipping, [U]. Private: it never leaves the site.
        below: Units whose gradient was no longer than the clipping norm. Private.
        loss: The records' losses added up. Private.
    """

    total: list[torch.Tensor]
    norms: torch.Tensor
    below: int
    loss: float


class RecordGradients:
    """Clipped sums of a module's per-record gradients by book-keeping: one backward pass, then one product a layer.

    While the pass runs the parameters require no gradient, so that autograd computes the inputs' gradients alone; hooks
    keep each layer's input and its output's gradient. The module is as before afterwards.

    Formal Guarantees:
        Adding or removing one record (with owners: all records of one) changes ``total`` by at most ``clip_norm`` in L2
        norm, if no record's loss depends on another record; see :func:`check_records` for a test of that. Norms have a
        relative error below 1e-5, which the factor 1 - 1e-5 makes up for.

    Args:
        model: Its parameters that don't require a gradient are left out.
        rule: How gradients are clipped.
        engine: "book-keeping"; "opacus" for Opacus's hooks, which know more layers but hold every record's gradient in
            memory; "auto" takes the first where all layers have a rule.

    Raises:
        PrivacyError: "layer-batch-norm", "layer-unknown", "nothing-to-train", "clipping-invalid", "opacus-missing".
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rule: ClippingRule | None = None,
        engine: Literal["auto", "book-keeping", "opacus"] = "auto",
    ) -> None:
        self.rule = rule or ClippingRule()
        self._model = model
        self._named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not self._named:
            raise PrivacyError("nothing-to-train", "no parameter of the model requires a gradient")
        self._layer_of, self.layers = _layers(self._named)
        if self.rule.kind == "layers" and len(self.rule.shares) != len(self.layers):
            raise PrivacyError(
                "clipping-invalid",
                f"there are {len(self.rule.shares)} shares of the clipping norm for {len(self.layers)} layers",
                f"The layers are {', '.join(self.layers)}.",
            )
        unknown = unknown_layers(model)
        if engine == "book-keeping" and unknown:
            raise PrivacyError(
                "layer-unknown", f"there is no rule for {unknown[0]}", 'Set engine = "opacus", or freeze the layer.'
            )
        self.engine: Literal["book-keeping", "opacus"] = (
            "book-keeping" if engine == "auto" and not unknown else "opacus" if engine == "auto" else engine
        )
        if self.engine == "opacus":
            _opacus()

    @property
    def names(self) -> list[str]:
        """The trained parameters in the order of ``total``."""
        return [name for name, _ in self._named]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters in the order of ``total``."""
        return [parameter for _, parameter in self._named]

    @property
    def dimension(self) -> int:
        """Numbers that are trained, d."""
        return sum(parameter.numel() for parameter in self.parameters)

    def flat(self, total: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tensors of a sum as one vector float32 [d], in manifest order of the trained parameters."""
        return torch.cat([part.reshape(-1).float() for part in total])

    def zeros(self) -> list[torch.Tensor]:
        """The sum of an empty batch."""
        return [torch.zeros(p.shape, dtype=torch.float32, device=p.device) for p in self.parameters]

    def clipped_sum(
        self, losses: Losses, clip_norm: float | torch.Tensor, *, owners: torch.Tensor | None = None
    ) -> ClippedSum:
        """Run one chunk forward and backward.

        Args:
            losses: Runs the forward pass and returns one loss for each record, [B]. Layers may be given several rows
                for each record, one record's after the other's: words, or views that are averaged in the loss.
            clip_norm: C.
            owners: For each record the number of its owner, [B]: their records are clipped as one, so they have to be
                in the same chunk.

        Raises:
            PrivacyError: "layer-batch-norm", "layer-inplace", "layer-late", "layer-shape", "layer-shared",
                "loss-shape", "parameter-unused".
        """
        clip = float(clip_norm)
        if not (math.isfinite(clip) and clip > 0):
            raise PrivacyError("clip-norm-invalid", f"the clipping norm is {clip:g}", "Give a positive number.")
        check_batch_norm(self._model)  # Now, for model.train() may have been called since.
        run = _OpacusPass if self.engine == "opacus" else _Pass
        this = run(self, self._model, clip)
        try:
            return this.run(losses, owners)
        finally:
            this.release()

    def factors(self, norms: torch.Tensor, clip_norm: float) -> torch.Tensor:
        """What gradients of these norms [U] are multiplied by to be at most ``clip_norm`` long; 0 where not finite."""
        allowed = clip_norm * (1 - MARGIN)
        automatic = self.rule.kind == "automatic"
        found = allowed / (norms + STABILISER) if automatic else (allowed / norms).clamp(max=1.0)
        return torch.where(torch.isfinite(norms), found, 0.0)


class _Pass:
    """One chunk by book-keeping."""

    def __init__(self, owner: RecordGradients, model: nn.Module, clip: float) -> None:
        self._owner = owner
        self._model = model
        self._clip = clip
        self._trained = {id(p): p for p in owner.parameters}
        device = owner.parameters[0].device
        self._book = Book(self._trained, self._finished, torch.zeros((), device=device, requires_grad=True))
        self._squared: dict[str, torch.Tensor] = {}
        self._done: set[int] = set()
        self._used: set[int] = set()
        self._totals: dict[int, torch.Tensor] = {}
        self._open = {layer: set(keys) for layer, keys in owner._layer_of.items()}
        self._layer = {key: layer for layer, keys in owner._layer_of.items() for key in keys}
        self._units = Units(0)

    def run(self, losses: Losses, owners: torch.Tensor | None) -> ClippedSum:
        with _mathematics_only(), self._watching():
            found = losses()
            records = check_losses(found, owners)
            if records == 0:
                return ClippedSum(self._owner.zeros(), found.detach().float(), 0, 0.0)
            self._units = Units(records, owners)
            self._book.records = records
            squared = torch.zeros((len(self._open), self._units.count), dtype=torch.float64, device=found.device)
            self._squared = dict(zip(self._open, squared, strict=True))
            if found.requires_grad:
                found.sum().backward()  # type: ignore[no-untyped-call]
            values = found.detach()
            del found  # And with it the graph, which holds on to activations.
        with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
            self._book.close()
            self._check_used()
            return self._finish(values)

    def release(self) -> None:
        """Free the pass's memory."""
        self._book.release()
        self._squared.clear()
        self._totals.clear()

    def _finish(self, losses: torch.Tensor) -> ClippedSum:
        squared = torch.stack(list(self._squared.values())).sum(0)
        norms = squared.sqrt()
        if self._owner.rule.kind == "layers":
            clip = dict(zip(self._owner.layers, self._owner.rule.shares, strict=True))
            fits = [part.sqrt() <= clip[layer] * self._clip for layer, part in self._squared.items()]
            below = torch.stack(fits).all(0)
            for layer, waiting in self._open.items():
                if waiting:
                    self._sum_layer(layer)
        else:
            below = norms <= self._clip
            self._sum(list(self._trained), self._owner.factors(norms, self._clip))
        return ClippedSum(
            [self._totals[id(p)].float() for p in self._owner.parameters],
            torch.where(torch.isfinite(norms), norms, torch.inf).float(),
            int(below.sum()),
            float(losses.float().sum()),
        )

    def _finished(self, key: int) -> None:
        """All uses of a parameter have their gradients."""
        if key in self._done:
            return
        self._done.add(key)
        layer = self._layer[key]
        for part in self._book.parts[key].values():
            if part.used:
                self._used.add(key)
                found = part.squared_norms(self._units).double()
                self._squared[layer] += found
        self._open[layer].discard(key)
        if self._owner.rule.kind == "layers" and not self._open[layer]:
            self._sum_layer(layer)

    def _sum_layer(self, layer: str) -> None:
        share = dict(zip(self._owner.layers, self._owner.rule.shares, strict=True))[layer]
        factors = self._owner.factors(self._squared[layer].sqrt(), share * self._clip)
        self._sum(self._owner._layer_of[layer], factors)

    def _sum(self, keys: Sequence[int], factors: torch.Tensor) -> None:
        """Add up parameters' gradients with the units' factors [U]; gradients that aren't finite don't count."""
        weights = self._units.spread(factors)
        lost = weights == 0
        for key in keys:
            parameter = self._trained[key]
            parts = self._book.parts.get(key, {})
            for part in parts.values():
                if bool(lost.any()):
                    part.drop(lost)
            if list(parts) == [None]:
                self._totals[key] = parts[None].weighted_sum(weights)
                continue
            total = torch.zeros_like(parameter)
            for rows, part in parts.items():
                assert rows is not None
                total[rows[0] : rows[1]] = part.weighted_sum(weights)
            self._totals[key] = total

    def _check_used(self) -> None:
        names = [name for name, p in self._owner._named if id(p) not in self._used]
        if names:
            raise unused(names)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """The model with hooks and without trained parameters; as before afterwards."""
        handles, replaced = [], []
        try:
            for module in self._model.modules():
                if type(module) is nn.MultiheadAttention and self._book.wants(*module.parameters(recurse=False)):
                    module.forward = attention(self._book, module)  # type: ignore[method-assign]
                    replaced.append(module)
                    continue
                rule = rule_for(module)
                own = list(module.parameters(recurse=False))
                if rule is not None and (self._book.wants(*own) or isinstance(module, PerRecord)):
                    handles.append(module.register_forward_hook(_hook(self._book, rule), with_kwargs=True))
            for parameter in self._trained.values():
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in self._trained.values():
                parameter.requires_grad_(True)
            for handle in handles:
                handle.remove()
            for module in replaced:
                del module.forward


def _hook(book: Book, rule: Any) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> Any:
        return rule(book, module, (*args, *kwargs.values()), output)

    return hook


class _OpacusPass:
    """One chunk by Opacus's hooks: every record's gradient is in memory."""

    def __init__(self, owner: RecordGradients, model: nn.Module, clip: float) -> None:
        self._owner = owner
        self._model = model
        self._clip = clip

    def run(self, losses: Losses, owners: torch.Tensor | None) -> ClippedSum:
        with self._hooked() as seen:
            found = losses()
            records = check_losses(found, owners)
            if records == 0:
                return ClippedSum(self._owner.zeros(), found.detach().float(), 0, 0.0)
            check_rows(seen, records)
            with warnings.catch_warnings():
                # Inputs without gradients are no accident: Opacus's hooks want the outputs' alone.
                warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
                found.sum().backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                return self._finish(found.detach(), Units(records, owners))

    @contextlib.contextmanager
    def _hooked(self) -> Iterator[list[tuple[str, torch.Size]]]:
        """The model with Opacus's hooks and without gradients; as before afterwards.

        Yields:
            What the trained layers are given and return, as it happens: the layer's class and the tensor's shape.
        """
        seen: list[tuple[str, torch.Size]] = []
        layers = [m for m in self._model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
        modes: list[bool] = []

        def awake(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # Opacus's hook looks away from layers in eval mode; this one has computed its output already.
            modes.append(module.training)
            module.training = True
            if torch.is_grad_enabled():
                found = (*args[:1], *(output[:1] if isinstance(output, tuple) else (output,)))
                seen.extend((type(module).__name__, x.shape) for x in found if isinstance(x, torch.Tensor))

        def asleep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            module.training = modes.pop()

        parameters = self._owner.parameters
        before = [p.grad for p in parameters]
        handles = [layer.register_forward_hook(awake) for layer in layers]
        hooks = _opacus()(self._model, loss_reduction="sum", strict=False)
        handles += [layer.register_forward_hook(asleep) for layer in layers]
        try:
            for p in parameters:
                p.grad = None
            yield seen
        finally:
            for handle in handles:
                handle.remove()
            hooks.cleanup()
            for layer in layers:  # What a pass that was broken off has left would be taken for the next one's.
                for name in ("activations", "max_batch_len"):
                    vars(layer).pop(name, None)
            for p, gradient in zip(parameters, before, strict=True):
                p.grad = gradient
                for name in ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample"):
                    if hasattr(p, name):
                        delattr(p, name)

    def release(self) -> None:
        """Nothing is left: Opacus's tensors hang on the parameters and have gone with the hooks."""

    def _finish(self, losses: torch.Tensor, units: Units) -> ClippedSum:
        parts = {}
        for name, p in self._owner._named:
            sample = getattr(p, "grad_sample", None)
            if sample is None:
                raise unused([name])
            parts[id(p)] = Part(tuple(p.shape))
            parts[id(p)].add_direct(sample)
        squared = {
            layer: torch.stack([parts[key].squared_norms(units).double() for key in keys]).sum(0)
            for layer, keys in self._owner._layer_of.items()
        }
        norms = torch.stack(list(squared.values())).sum(0).sqrt()
        if self._owner.rule.kind == "layers":
            clips = [share * self._clip for share in self._owner.rule.shares]
        else:
            clips = [self._clip] * len(squared)
        each = [part.sqrt() if self._owner.rule.kind == "layers" else norms for part in squared.values()]
        below = torch.stack([own <= clip for own, clip in zip(each, clips, strict=True)]).all(0)
        totals: dict[int, torch.Tensor] = {}
        for (_, keys), own, clip in zip(self._owner._layer_of.items(), each, clips, strict=True):
            weights = units.spread(self._owner.factors(own, clip))
            for key in keys:
                parts[key].drop(weights == 0)
                totals[key] = parts[key].weighted_sum(weights)
        return ClippedSum(
            [totals[id(p)].float() for p in self._owner.parameters],
            torch.where(torch.isfinite(norms), norms, torch.inf).float(),
            int(below.sum()),
            float(losses.float().sum()),
        )


def check_records(
    gradients: RecordGradients, losses_of: Callable[[torch.Tensor], torch.Tensor], records: int, tolerance: float = 1e-4
) -> None:
    """Compare the norms of a chunk's per-record gradients with those of each record's ordinary gradient, taken alone.

    This finds what no rule can see: losses that compare records, layers that mix them, parameters that are also used
    past their layer, and a first dimension that isn't the records'. Dropout must be off.

    Args:
        gradients: The engine.
        losses_of: The losses [n] of the records with these numbers, int64 [n], in a chunk of their own.
        records: How many to compare, from number 0; 3 or 4 are enough, one finds nothing.
        tolerance: Largest relative difference; cuDNN and half precision need a larger one.

    Raises:
        PrivacyError: "loss-coupled".
    """
    together = gradients.clipped_sum(lambda: losses_of(torch.arange(records)), 1.0).norms.double()
    for record in range(records):
        loss = losses_of(torch.tensor([record])).sum()
        found = torch.autograd.grad(loss, gradients.parameters, materialize_grads=True)
        alone = math.sqrt(sum(float(part.double().square().sum()) for part in found))
        if not abs(float(together[record]) - alone) <= tolerance * alone + 1e-9:
            raise PrivacyError(
                "loss-coupled",
                f"record {record} has a gradient of norm {alone:.6g} alone, {float(together[record]):.6g} with others",
                "Use a loss of each record alone, layers that don't mix records, and records as the first dimension.",
            )


def trained_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that have trained parameters of their own: what clipping by layers clips by itself."""
    return _layers([(name, p) for name, p in model.named_parameters() if p.requires_grad])[1]


def _layers(named: Sequence[tuple[str, nn.Parameter]]) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """The trained parameters by the module that owns them."""
    layer_of: dict[str, list[int]] = {}
    for name, parameter in named:
        layer_of.setdefault(name.rpartition(".")[0] or name, []).append(id(parameter))
    return layer_of, tuple(layer_of)


@contextlib.contextmanager
def _mathematics_only() -> Iterator[None]:
    """Without torch's fused transformer layers, which pass over the layers that they are made of."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _opacus() -> Any:
    try:
        return importlib.import_module("opacus.grad_sample.grad_sample_module").GradSampleHooks
    except ImportError as error:
        raise PrivacyError(
            "opacus-missing",
            "the model has a layer without a rule, and Opacus, which could do it, isn't installed",
            "Install opacus, or freeze the layer.",
        ) from error
