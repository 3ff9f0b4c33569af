"""Vectors of sixteen float32 in compiled code, with the operators of arithmetic; see `kernels.lanes`.

One vector is what memory hands over at a time. So code that goes through many rows at once can ask for what it will
need next, which a loop that the compiler vectorises can't.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba.core import types
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, overload, register_model

from kernels.lanes import Emit, address_only, generator, nothing, splat

COUNT: Final = 16
"""Coordinates that go together."""

_kinds: Any = types
_VECTOR: Final = ir.VectorType(ir.FloatType(), COUNT)
_FABS: Final = "llvm.fabs.v16f32"


class _Singles(types.Type):
    """Numba's type of such a vector."""

    def __init__(self) -> None:
        super().__init__("Singles")


class _Model(PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)  # type: ignore[no-untyped-call]  # numba ships no types


_singles: Final = _Singles()
register_model(_Singles)(_Model)


def _fetch(context: Any, address: Any) -> Any:
    def emit(builder: Any, at: Any) -> Any:
        return builder.load(builder.inttoptr(at, _VECTOR.as_pointer()), align=4)

    address_only(address)
    return _singles(_kinds.int64), generator(emit)


def _put(context: Any, address: Any, value: Any) -> Any:
    def emit(builder: Any, at: Any, value: Any) -> Any:
        builder.store(value, builder.inttoptr(at, _VECTOR.as_pointer()), align=4)
        return nothing()

    address_only(address)
    return _kinds.none(_kinds.int64, _singles), generator(emit)


def _fill(context: Any, value: Any) -> Any:
    return _singles(_kinds.float32), generator(lambda builder, value: splat(builder, value, _VECTOR))


def _choose(context: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    def emit(builder: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", a, b), x, y)

    return _singles(_singles, _singles, _singles, _singles), generator(emit)


def _magnitude(context: Any, x: Any) -> Any:
    def emit(builder: Any, x: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR])
        function = builder.module.globals.get(_FABS) or ir.Function(builder.module, kind, _FABS)
        return builder.call(function, [x])

    return _singles(_singles), generator(emit)


def _two(emit: Emit) -> Callable[..., Any]:
    def typed(context: Any, x: Any, y: Any) -> Any:
        return _singles(_singles, _singles), generator(emit)

    return typed


def _operator(python: Any, emit: Emit) -> None:
    work: Any = intrinsic(_two(emit))

    def called(x: Any, y: Any) -> Any:
        return work(x, y)

    def implementation(x: Any, y: Any) -> Any:
        return called if x == _singles and y == _singles else None

    overload(python)(implementation)


fetch: Any = intrinsic(_fetch)
"""Sixteen float32 from an address."""

put: Any = intrinsic(_put)
"""Write them to an address."""

fill: Any = intrinsic(_fill)
"""Sixteen times a number."""

choose: Any = intrinsic(_choose)
"""Where ``a < b``, ``x``, and ``y`` elsewhere."""

magnitude: Any = intrinsic(_magnitude)
"""Absolute values."""

lower: Any = intrinsic(_two(lambda builder, x, y: builder.select(builder.fcmp_ordered("<", x, y), x, y)))
"""``x`` where it is smaller than ``y``, else ``y``."""

upper: Any = intrinsic(_two(lambda builder, x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y)))
"""``x`` where it is larger than ``y``, else ``y``."""

_operator(operator.add, lambda builder, x, y: builder.fadd(x, y))
_operator(operator.sub, lambda builder, x, y: builder.fsub(x, y))
_operator(operator.mul, lambda builder, x, y: builder.fmul(x, y))
_operator(operator.truediv, lambda builder, x, y: builder.fdiv(x, y))
