"""What the private engine refuses: models that mix records, and losses and layers without a row for each record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from core_model.modalities import PerRecord
from participant.training.private.layers import rule_for
from privacy.mechanisms.errors import PrivacyError


def check_losses(losses: Any, owners: torch.Tensor | None) -> int:
    """How many records there are.

    Raises:
        PrivacyError: "loss-shape", "owners-shape".
    """
    if not isinstance(losses, torch.Tensor) or losses.dim() != 1:
        shape = list(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise PrivacyError(
            "loss-shape",
            f"the loss has shape {shape}, not one number for each record",
            'Return shape [records]: reduction="none", and the mean over all dimensions but the first.',
        )
    if owners is not None and owners.shape != losses.shape:
        raise PrivacyError("owners-shape", f"there are {list(owners.shape)} owners for {len(losses)} records")
    return len(losses)


def check_rows(seen: Sequence[tuple[str, torch.Size]], records: int) -> None:
    """Refuse layers whose rows aren't the records: Opacus's hooks would clip each row as if it were one.

    Args:
        seen: Trained layers by their class, and shapes of what they are given and return.
        records: Losses of the chunk.

    Raises:
        PrivacyError: "layer-shape".
    """
    for layer, shape in seen:
        if not shape or shape[0] != records:
            raise PrivacyError(
                "layer-shape",
                f"a {layer} works on {list(shape)} where the loss has {records} records: Opacus's hooks take rows of "
                "the first dimension for records",
                "Give it one row for each record; further rows of a record in a second dimension, or as losses of "
                "their own with the same owner.",
            )


def unused(names: Sequence[str]) -> PrivacyError:
    """The error of parameters for which the pass gave nothing."""
    return PrivacyError(
        "parameter-unused",
        f"the loss gave no per-record gradient for {', '.join(names[:3])}" + (" and others" if names[3:] else ""),
        "Freeze parameters that the loss doesn't use (requires_grad = False); use a parameter that belongs to no layer "
        "through core_model.modalities.PerRecord, and layers by calling them.",
    )


def unknown_layers(model: nn.Module) -> list[str]:
    """Layers with trained parameters and without a rule.

    Raises:
        PrivacyError: "layer-batch-norm", for which no engine can help.
    """
    check_batch_norm(model)
    unknown = []
    for name, module in model.named_modules():
        if not any(p.requires_grad for p in module.parameters(recurse=False)):
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise _batch_norm(name)
        direct = any(isinstance(child, PerRecord) for child in module.children())
        if rule_for(module) is None and not direct and type(module) is not nn.MultiheadAttention:
            unknown.append(f"{name or 'the model'} ({type(module).__name__})")
    return unknown


def check_batch_norm(model: nn.Module) -> None:
    """Refuse layers that would normalize over the batch as the model is set now; frozen ones in eval mode don't.

    Raises:
        PrivacyError: "layer-batch-norm".
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise _batch_norm(name)


def _batch_norm(name: str) -> PrivacyError:
    return PrivacyError(
        "layer-batch-norm",
        f"{name} normalizes over the batch, so that each record's gradient depends on all records",
        "Replace it by GroupNorm or LayerNorm; a frozen one has to stay in eval mode, with its running statistics.",
    )
