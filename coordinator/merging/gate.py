"""What every update must pass before a rule sees it, and what its example count is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.merging.plane import Floats

LARGEST: Final = float(np.finfo(np.float32).max)


def form_fault(row: Any, dimension: int) -> str:
    """Why a row isn't a vector of ``dimension`` float32; empty if it is. Readers are taken at their word."""
    if not isinstance(row, np.ndarray):
        return "" if callable(getattr(row, "read", None)) else f"is a {type(row).__name__}, not a vector"
    if row.dtype != np.float32:
        return f"dtype {row.dtype}, not float32"
    if row.shape != (dimension,):
        return f"shape {row.shape}, not ({dimension},)"
    return ""


def norm_fault(norm: float, limit: float) -> str:
    """Why an update of this norm can't be merged; empty if it can. A norm is finite exactly if all coordinates are."""
    if not math.isfinite(norm):
        return "holds NaN or infinity"
    if norm > limit:
        return f"norm {norm:.3g} above {limit:.3g}"
    return ""


def count_fault(examples: float) -> str:
    """Why an example count can't be; empty if it can."""
    return "" if 0 <= examples < math.inf else f"claims {examples} examples"


def common_dimension(rows: Sequence[Any]) -> int:
    """The length that most rows have; of two as common, the first seen."""
    lengths = [int(row.shape[0]) for row in rows if isinstance(row, np.ndarray) and row.ndim == 1]
    if not lengths:
        raise ValueError("no row tells its length: pass `dimension`")
    return max(dict.fromkeys(lengths), key=lengths.count)


def largest_share(participants: int, bad: int) -> float:
    """The most that one participant may count for.

    Formal Guarantees:
        At most 1 / (n - 2 f), and little enough that f participants together stay under one half.
    """
    if bad == 0:
        return 1.0
    return min(1 / (participants - 2 * bad), (1 / participants + 1 / (2 * bad)) / 2)


def capped_shares(examples: NDArray[np.float64], cap: float) -> Floats:
    """Shares in proportion to example counts, none above ``cap``; what is cut off goes to the others, in proportion.

    A claim of any size buys at most ``cap``. Where so few claim anything that the caps don't add up to 1, those who
    claim nothing share the rest.

    Args:
        examples: [n] Finite and not negative.
        cap: At least 1 / n.

    Returns:
        [n] Shares that add up to 1.

    Example:
        >>> capped_shares(np.array([1e9, 10.0, 30.0]), 0.5).tolist()
        [0.5, 0.125, 0.375]
    """
    size = len(examples)
    highest = float(examples.max())
    if highest <= 0:
        return np.full(size, 1 / size)
    # Scaled first: the sum of huge claims may leave float64's range. Beside a huge claim others underflow to nothing,
    # so the capped are set aside before the rest is divided.
    capped = np.zeros(size, dtype=bool)
    shares = np.zeros(size)
    for _ in range(size):
        rest = np.where(capped, 0.0, examples)
        left = 1.0 - cap * capped.sum()
        if rest.max() <= 0:
            break
        scaled = rest / rest.max()
        shares = np.where(capped, cap, left * scaled / scaled.sum())
        over = (shares > cap * (1 + 1e-12)) & ~capped
        if not over.any():
            return shares
        capped |= over
    shares = np.where(capped, cap, 0.0)
    others = int((~capped).sum())
    if others:
        shares[~capped] = max(1.0 - shares.sum(), 0.0) / others
    found: Floats = shares / shares.sum()
    return found


def discounted_shares(examples: NDArray[np.float64], discounts: NDArray[np.float64], cap: float) -> Floats:
    """Capped shares times discounts, as shares again: none above ``cap``, whatever the others' discounts.

    Args:
        examples: [n] As for `capped_shares`.
        discounts: [n] In (0, 1]. Where all are 1 the shares are those of `capped_shares`, bit for bit.
        cap: At least 1 / n.

    Returns:
        [n] Shares that add up to 1.

    Example:
        >>> discounted_shares(np.array([10.0, 10.0]), np.array([1.0, 0.5]), 1.0).tolist()
        [0.6666666666666666, 0.3333333333333333]
    """
    shares = capped_shares(examples, cap)
    return shares if np.all(discounts == 1.0) else capped_shares(shares * discounts, cap)
