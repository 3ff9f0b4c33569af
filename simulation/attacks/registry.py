"""Attacks by name."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from simulation.attacks.base import Attack
from simulation.attacks.directions import Alie, InnerProduct, OptimisedAlie, OptimisedInnerProduct, SignFlip
from simulation.attacks.distances import Mimic, MinMax, MinSum
from simulation.attacks.history import RelocatedOrthogonal
from simulation.attacks.protocol import ForgedCount, Forgery, Replay, WrongSize, WrongType
from simulation.attacks.values import (
    Backdoor,
    Constant,
    Disjoint,
    FreeRider,
    Gaussian,
    ModelReplacement,
    OneCoordinate,
    Sybil,
    TrainedOnFlippedLabels,
)
from wire.errors import ConfigError
from wire.merging import Setting

_MAKERS: Final[dict[str, Callable[..., Attack]]] = {
    "sign-flip": SignFlip,
    "ipm": InnerProduct,
    "ipm-optimised": OptimisedInnerProduct,
    "alie": Alie,
    "alie-optimised": OptimisedAlie,
    "min-max": MinMax,
    "min-sum": MinSum,
    "mimic": Mimic,
    "rop": RelocatedOrthogonal,
    "gaussian": Gaussian,
    "label-flip": TrainedOnFlippedLabels,
    "backdoor": Backdoor,
    "model-replacement": ModelReplacement,
    "nan": OneCoordinate,
    "inf": functools.partial(Constant, value=float("inf")),
    "huge": functools.partial(Constant, value=1e30),
    "norm-overflow": functools.partial(Constant, value=1e20),
    "denormal": functools.partial(Constant, value=1e-40),
    "free-rider": FreeRider,
    "free-rider-last": functools.partial(FreeRider, gives="last"),
    "free-rider-noise": functools.partial(FreeRider, gives="noise"),
    "sybil": Sybil,
    "disjoint": Disjoint,
}

_FORGERS: Final[dict[str, Callable[..., Forgery]]] = {
    "forged-count": ForgedCount,
    "replay": Replay,
    "wrong-size": WrongSize,
    "wrong-type": WrongType,
    "byte-order": functools.partial(WrongType, dtype=">f4"),
}

ATTACKS: Final = tuple(_MAKERS)
"""Names of the attacks by what is in an update, in the order of the documentation."""

FORGERIES: Final = tuple(_FORGERS)
"""Names of the attacks on the protocol."""


def attack(name: str, **parameters: object) -> Attack:
    """The attack of this name, with its default parameters unless others are given.

    >>> attack("ipm", scale=0.5)
    InnerProduct(scale=0.5)

    Raises:
        ConfigError: There is no such attack; the message names all.
        ValueError: A parameter is out of range.
        TypeError: The attack has no such parameter.
    """
    maker = _MAKERS.get(name)
    if maker is None:
        raise _unknown(name, ATTACKS)
    return maker(**parameters)


def forgery(name: str, **parameters: object) -> Forgery:
    """The attack on the protocol of this name.

    Raises:
        ConfigError, ValueError, TypeError: As :func:`attack`.
    """
    maker = _FORGERS.get(name)
    if maker is None:
        raise _unknown(name, FORGERIES)
    return maker(**parameters)


def behaviour(name: str, settings: Mapping[str, Setting] | None = None) -> Attack | Forgery:
    """What hostile institutions of a simulation do: an attack of either kind.

    >>> behaviour("ipm", {"scale": 3})
    InnerProduct(scale=3.0)

    Args:
        name: Of the attack.
        settings: Of its parameters those that aren't as by default, by name (:func:`settings_of`).

    Raises:
        ConfigError: There is no such attack, and the message names all; or it has no such setting, or not such a value,
            and the message names its settings.
    """
    known = settings_of(name)
    given: dict[str, Setting] = {}
    for key, value in (settings or {}).items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise _wrong(name, f"has no setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        given[key] = _fitting(name, key, value)
    try:
        return attack(name, **given) if name in ATTACKS else forgery(name, **given)
    except ValueError as error:
        raise _wrong(name, f"can't be made so: {error}") from None


def settings_of(name: str) -> dict[str, Setting]:
    """The settings of an attack of either kind, with their defaults; none that its name fixes.

    >>> settings_of("min-max")
    {'direction': 'deviation'}

    Raises:
        ConfigError: There is no such attack; the message names all.
    """
    kind, fixed = _made_of(name)
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(kind)}
    return {key: value for key, value in defaults.items() if key not in fixed}


def _made_of(name: str) -> tuple[Any, Mapping[str, object]]:
    """An attack's class, and the parameters that its name fixes."""
    maker = _MAKERS.get(name) or _FORGERS.get(name)
    if maker is None:
        raise _unknown(name, ATTACKS + FORGERIES)
    return (maker.func, maker.keywords) if isinstance(maker, functools.partial) else (maker, {})


def _fitting(name: str, key: str, value: Setting) -> Setting:
    """The value as the parameter's type has it."""
    wanted = typing.get_type_hints(_made_of(name)[0])[key]
    if typing.get_origin(wanted) is Literal:
        allowed = typing.get_args(wanted)
        if value in allowed:
            return value
        raise _wrong(name, f"can't have {key} = {json.dumps(value)}: it is one of {', '.join(allowed)}")
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
        raise _wrong(name, f"can't have {key} = {json.dumps(value)}: it is {words[wanted]}")
    return value


def _wrong(name: str, what: str) -> ConfigError:
    known = ", ".join(f"{key} = {json.dumps(value)}" for key, value in settings_of(name).items())
    return ConfigError(
        f"the attack {name!r} {what}", f"Its settings and their defaults: {known}." if known else "It has no settings."
    )


def _unknown(name: str, names: tuple[str, ...]) -> ConfigError:
    near = difflib.get_close_matches(name, names, 1)
    return ConfigError(
        f"there is no attack {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        f"The attacks: {', '.join(names)}.",
    )


def description(chosen: Attack | Forgery) -> str:
    """The first line of an attack's documentation."""
    return (type(chosen).__doc__ or "").strip().partition("\n")[0].replace("``", "")
