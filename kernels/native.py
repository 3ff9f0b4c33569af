"""What the compiled kernels share: how they are compiled, and how they reach rows by address.

Importing this loads numba (half a second); kernels import it inside the function that needs it.

Rows come as addresses: one signature then serves read-only arrays, memory maps and lists alike, so that nothing is
compiled at the first unusual row. Whoever calls keeps the rows alive; `kernels.rows.Rows` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.core import types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])

_numba: Any = numba  # its types aren't exported in the way that a strict checker asks for
carray = _numba.carray
float32 = _numba.float32
float64 = _numba.float64


def compiled(*signatures: str, reassociate: bool = False) -> Callable[[F], F]:
    """Compile for the signatures given, once: the result is cached on disk beside the source or in the user's cache.

    Arithmetic is IEEE 754 as written, unless said otherwise. The interpreter's lock is released.

    Args:
        signatures: In numba's notation.
        reassociate: Sums may be formed in vector lanes. Signed zeros and the order of summation aren't kept.
    """
    flags = {"reassoc", "nsz"} if reassociate else False
    wrap: Any = numba.njit(
        list(signatures), nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath=flags
    )
    return lambda function: wrap(function)


def _pointer(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.float32).as_pointer())

    kinds: Any = types
    return kinds.CPointer(types.float32)(address), generate


pointer: Any = intrinsic(_pointer)
"""In compiled code: an int64 address as a pointer to float32, for `carray`."""
