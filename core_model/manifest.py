"""The model as one flat vector: which tensor lies where, and the hash by which two sides know that they agree.

The flat vector is float32, little-endian, tensors one after the other in *manifest order*: the order of the module's
``state_dict``. Trainable parameters and floating-point buffers belong to it. Integer and boolean buffers (step
counters, index tables) are local: they don't travel and keep the value that the module's own constructor gave them. A
tensor that the module registers under two names (tied weights) appears once, under the first name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from core_model.errors import ManifestError

if TYPE_CHECKING:
    import torch
    from torch import nn

Vector = npt.NDArray[np.float32]

MAX_HEADER_BYTES = 16 * 1024 * 1024
_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor. ``offset`` and ``size`` count elements of the flat vector; ``dtype`` is safetensors' name, "F32"."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The tensors of a model in manifest order, contiguous from offset 0."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Manifest:
        """The manifest of a module.

        Raises:
            ManifestError: If it has no floating-point tensor, one that isn't float32, or a header over 16 MiB.
        """
        entries: list[Entry] = []
        offset = 0
        for name, tensor in _tensors(module):
            entries.append(Entry(name, tuple(tensor.shape), "F32", offset))
            offset += tensor.numel()
        if offset == 0:
            raise ManifestError("The model has no floating-point parameters.", "Return a module that can be trained.")
        manifest = cls(tuple(entries))
        if len(manifest.header()) > MAX_HEADER_BYTES:
            raise ManifestError(f"The model has {len(entries)} tensors; their names need more than 16 MiB.")
        return manifest

    @classmethod
    def parse(cls, header: bytes) -> Manifest:
        """Read a manifest back from header bytes as :meth:`header` writes them.

        Raises:
            ManifestError: If these bytes aren't the canonical header of contiguous F32 tensors.
        """
        try:
            table = json.loads(header[8:].decode("utf-8"))
            entries = tuple(
                Entry(name, tuple(int(n) for n in row["shape"]), row["dtype"], int(row["data_offsets"][0]) // _BYTES)
                for name, row in table.items()
            )
            manifest = cls(entries)
            canonical = min((n for entry in entries for n in entry.shape), default=0) >= 0
            canonical = canonical and manifest.header() == header
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            canonical = False
        if not canonical:
            raise ManifestError("Not the header of a Fedloom checkpoint: tensors aren't contiguous F32 in order.")
        return manifest

    @functools.cached_property
    def dimension(self) -> int:
        """Number of elements of the flat vector."""
        return sum(entry.size for entry in self.entries)

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 of the header: two models with the same digest exchange vectors."""
        return hashlib.sha256(self.header()).digest()

    def header(self) -> bytes:
        """The canonical safetensors header: 8 bytes of length, then JSON padded with spaces to a multiple of 8."""
        table: dict[str, Any] = {}
        offset = 0
        for entry in self.entries:
            end = offset + entry.size * _BYTES
            table[entry.name] = {"dtype": "F32", "shape": list(entry.shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def check(self, vector: Vector) -> None:
        """Raise :class:`ManifestError` unless the vector is float32 [dimension]."""
        if vector.dtype != np.float32 or vector.shape != (self.dimension,):
            raise ManifestError(
                f"Expected a float32 vector of {self.dimension} elements, got {vector.dtype} {list(vector.shape)}.",
                "Model and vector come from different configurations.",
            )


def flatten(module: nn.Module) -> Vector:
    """The module's tensors as one new float32 vector [d] in manifest order."""
    views = [_array(tensor) for _, tensor in _tensors(module)]
    return np.concatenate([view.reshape(-1) for view in views]) if views else np.empty(0, np.float32)


def load(module: nn.Module, vector: Vector) -> None:
    """Copy a flat vector [d] into the module's tensors, in place; optimizer references stay valid.

    Raises:
        ManifestError: If the length doesn't fit; nothing has been copied then.
    """
    tensors = list(_tensors(module))
    total = sum(tensor.numel() for _, tensor in tensors)
    if vector.dtype != np.float32 or vector.shape != (total,):
        raise ManifestError(f"Expected a float32 vector of {total} elements, got {vector.dtype} {list(vector.shape)}.")
    offset = 0
    for _, tensor in tensors:
        view = _array(tensor)
        np.copyto(view, vector[offset : offset + view.size].reshape(view.shape))
        offset += view.size


def difference(module: nn.Module, base: Vector) -> Vector:
    """The module's tensors minus ``base`` [d], one pass and one allocation."""
    update = np.empty_like(base)
    offset = 0
    for _, tensor in _tensors(module):
        view = _array(tensor)
        part = slice(offset, offset + view.size)
        np.subtract(view, base[part].reshape(view.shape), out=update[part].reshape(view.shape))
        offset += view.size
    return update


def _array(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    """The tensor's own memory as an array (CPU only: moving a model to a device is the trainer's business)."""
    array: npt.NDArray[np.float32] = tensor.detach().numpy()
    return array


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor) or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if tensor.dtype != torch.float32:
            raise ManifestError(
                f'Tensor "{name}" is {str(tensor.dtype).removeprefix("torch.")}; models travel as float32.',
                "Call .float() on the module in your factory.",
            )
        if tensor.device.type != "cpu":
            raise ManifestError(f'Tensor "{name}" is on {tensor.device}.', "Return the module on the CPU.")
        yield name, tensor
