"""Vectors of eight float64 in compiled code, where the order of sums and what stays in registers must be known.

Importing this loads numba. Most loops are left to the compiler to vectorise. Here the source says which coordinates go
together, so a sum is formed in the same order on every processor: where its registers are narrower, the compiler makes
two or four instructions of one.

Addresses are int64, in bytes, as `kernels.rows` hands them out; nothing checks them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, register_jitable, register_model
from numpy.typing import NDArray

from kernels.native import compiled

LANES: Final = 8
"""Coordinates that go together."""

_kinds: Any = types
_SINGLES: Final = ir.VectorType(ir.FloatType(), LANES)
_DOUBLES: Final = ir.VectorType(ir.DoubleType(), LANES)
_INDEX: Final = ir.IntType(32)
_PREFETCH: Final = "llvm.prefetch.p0"


class _Lanes(types.Type):
    """Numba's type of such a vector."""

    def __init__(self) -> None:
        super().__init__("Lanes")


class _Model(PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _DOUBLES)  # type: ignore[no-untyped-call]  # numba ships no types


_lanes: Final = _Lanes()
register_model(_Lanes)(_Model)

Emit = Callable[..., Any]
"""Writes the instructions of one call: from the builder and the arguments to the value."""


def generator(emit: Emit) -> Callable[..., Any]:
    """As numba asks for it."""
    return lambda context, builder, signature, arguments: emit(builder, *arguments)


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def nothing() -> Any:
    """What a call gives that gives nothing."""
    return ir.Constant(ir.IntType(8).as_pointer(), None)


def address_only(address: Any) -> None:
    """Refuse what isn't an integer: numba makes a float of a variable that is signed here and unsigned there."""
    if not isinstance(address, _kinds.Integer):
        raise TypeError(f"an address must be an integer, not {address}")


def _zero(context: Any) -> Any:
    return _lanes(), generator(lambda builder: ir.Constant(_DOUBLES, [0.0] * LANES))


def _load(context: Any, address: Any) -> Any:
    address_only(address)
    return _lanes(_kinds.int64), generator(lambda builder, at: builder.load(_at(builder, at, _DOUBLES), align=8))


def _widen(context: Any, address: Any) -> Any:
    def emit(builder: Any, at: Any) -> Any:
        return builder.fpext(builder.load(_at(builder, at, _SINGLES), align=4), _DOUBLES)

    address_only(address)
    return _lanes(_kinds.int64), generator(emit)


def _store(context: Any, address: Any, value: Any) -> Any:
    def emit(builder: Any, at: Any, value: Any) -> Any:
        builder.store(value, _at(builder, at, _DOUBLES), align=8)
        return nothing()

    address_only(address)
    return _kinds.none(_kinds.int64, _lanes), generator(emit)


def _narrow(context: Any, address: Any, value: Any) -> Any:
    def emit(builder: Any, at: Any, value: Any) -> Any:
        builder.store(builder.fptrunc(value, _SINGLES), _at(builder, at, _SINGLES), align=4)
        return nothing()

    address_only(address)
    return _kinds.none(_kinds.int64, _lanes), generator(emit)


def _prefetch(context: Any, address: Any) -> Any:
    def emit(builder: Any, at: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _INDEX, _INDEX, _INDEX])
        function = builder.module.globals.get(_PREFETCH) or ir.Function(builder.module, kind, _PREFETCH)
        reading, nearest, data = (ir.Constant(_INDEX, value) for value in (0, 3, 1))
        builder.call(function, [builder.inttoptr(at, byte), reading, nearest, data])
        return nothing()

    address_only(address)
    return _kinds.none(_kinds.int64), generator(emit)


def splat(builder: Any, value: Any, kind: ir.VectorType) -> Any:
    """A vector with one value everywhere."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INDEX, kind.count), [0] * kind.count))


def _spread(context: Any, value: Any) -> Any:
    return _lanes(_kinds.float64), generator(lambda builder, value: splat(builder, value, _DOUBLES))


def _plus(context: Any, left: Any, right: Any) -> Any:
    return _lanes(_lanes, _lanes), generator(lambda builder, left, right: builder.fadd(left, right))


def _times(context: Any, left: Any, right: Any) -> Any:
    return _lanes(_lanes, _lanes), generator(lambda builder, left, right: builder.fmul(left, right))


def _multiply_add(context: Any, total: Any, left: Any, right: Any) -> Any:
    def emit(builder: Any, total: Any, left: Any, right: Any) -> Any:
        fused = ("contract",)
        return builder.fadd(total, builder.fmul(left, right, flags=fused), flags=fused)

    return _lanes(_lanes, _lanes, _lanes), generator(emit)


zero: Any = intrinsic(_zero)
"""Eight times 0."""

load: Any = intrinsic(_load)
"""Eight float64 from an address."""

widen: Any = intrinsic(_widen)
"""Eight float32 from an address, as float64."""

store: Any = intrinsic(_store)
"""Write eight float64 to an address."""

narrow: Any = intrinsic(_narrow)
"""Write eight values to an address, rounded to float32."""

prefetch: Any = intrinsic(_prefetch)
"""Ask for the 64 bytes around an address; nothing happens where there is nothing."""

spread: Any = intrinsic(_spread)
"""Eight times a number."""

plus: Any = intrinsic(_plus)
"""Sum of two vectors, rounded."""

times: Any = intrinsic(_times)
"""Product of two vectors, rounded."""

multiply_add: Any = intrinsic(_multiply_add)
"""``total + left * right``, rounded once where the processor can, else twice."""


def _address(array: Any) -> Any:
    return np.int64(array.ctypes.data)  # it comes unsigned, and rows' addresses are signed


address: Any = register_jitable(_address)
"""Where an array begins."""


@compiled("float64[::1](int64)")
def aligned(size: int) -> NDArray[np.float64]:
    """An array [size] that begins at a multiple of 64 bytes; it isn't initialised."""
    space = np.empty(size + 8, dtype=np.float64)
    first = -address(space) % 64 // 8
    return space[first : first + size]
