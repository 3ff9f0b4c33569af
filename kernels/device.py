"""Rows that lie on an accelerator: torch tensors, read where they lie by kernels that Triton compiles.

torch is imported only once a tensor has been passed, so whoever has none pays nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class DeviceRows:
    """n rows of d coordinates on one device.

    Args:
        rows: A tensor [n, d], or n tensors [d]; float32.

    Raises:
        ValueError: No rows, rows that aren't vectors of one length on one device, or a row with gaps.
        TypeError: A row that isn't a tensor of float32.
    """

    def __init__(self, rows: Any) -> None:
        import torch

        self.parts: list[Any] = list(rows)
        if not self.parts:
            raise ValueError("no rows")
        self.dimension = int(self.parts[0].shape[-1]) if self.parts[0].ndim else 0
        self.device = self.parts[0].device
        for index, part in enumerate(self.parts):
            if not is_tensor(part):
                raise TypeError(f"row {index} is a {type(part).__name__}, and row 0 a tensor on {self.device}")
            if part.dtype != torch.float32:
                raise TypeError(f"row {index} is {part.dtype}, not torch.float32")
            if part.shape != (self.dimension,) or part.device != self.device:
                raise ValueError(
                    f"row {index} has shape {tuple(part.shape)} on {part.device}, not ({self.dimension},) on "
                    f"{self.device} like the first: rows are vectors of one length on one device"
                )
            if self.dimension > 1 and part.stride(0) != 1:
                raise ValueError(f"row {index} has gaps between its coordinates: call .contiguous()")
        self.addresses = torch.tensor([part.data_ptr() for part in self.parts], dtype=torch.int64, device=self.device)

    def __len__(self) -> int:
        return len(self.parts)

    def empty(self, *shape: int, dtype: str = "float32") -> Any:
        """A tensor beside the rows that isn't initialised."""
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)

    def copy(self, array: NDArray[np.generic]) -> Any:
        """An array as a tensor beside the rows."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def result(self, out: Any, *dtypes: str) -> Any:
        """``out`` if it fits the rows, or a new tensor [d] of the first type.

        Raises:
            ValueError: Another shape or device, or gaps.
            TypeError: Another type.
        """
        if out is None:
            return self.empty(self.dimension, dtype=dtypes[0])
        if not is_tensor(out) or str(out.dtype) not in {f"torch.{name}" for name in dtypes}:
            raise TypeError(
                f"out is {getattr(out, 'dtype', type(out).__name__)}, not a tensor of {' or '.join(dtypes)}"
            )
        if out.shape != (self.dimension,) or out.device != self.device or not out.is_contiguous():
            raise ValueError(
                f"out has shape {tuple(out.shape)} on {out.device}, but must be ({self.dimension},) on {self.device} "
                "and contiguous"
            )
        return out


def on_device(kernel: Callable[..., None]) -> Any:
    """Compile a kernel with Triton, or interpret it where ``TRITON_INTERPRET=1`` is set: called as ``kernel[grid]``."""
    import triton

    return triton.jit(kernel)


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor; imports nothing."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(value: Any) -> Any:
    """A torch tensor in memory as an array, without a copy; anything else as it is."""
    return value.detach().numpy() if is_tensor(value) and value.device.type == "cpu" else value


def device_rows(rows: Any) -> DeviceRows | None:
    """Rows on an accelerator; None for everything that `kernels.rows.Rows` takes, CPU tensors included."""
    if isinstance(rows, DeviceRows):
        return rows
    first: Any = rows if is_tensor(rows) else rows[0] if isinstance(rows, list | tuple) and rows else None
    return DeviceRows(rows) if is_tensor(first) and first.device.type != "cpu" else None
