"""Attacks by name."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from typing import Final

from simulation.attacks.base import Attack
from simulation.attacks.directions import Alie, InnerProduct, OptimisedAlie, OptimisedInnerProduct, SignFlip
from simulation.attacks.distances import Mimic, MinMax, MinSum
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

_MAKERS: Final[dict[str, Callable[..., Attack]]] = {
    "sign-flip": SignFlip,
    "ipm": InnerProduct,
    "ipm-optimised": OptimisedInnerProduct,
    "alie": Alie,
    "alie-optimised": OptimisedAlie,
    "min-max": MinMax,
    "min-sum": MinSum,
    "mimic": Mimic,
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


def behaviour(name: str) -> Attack | Forgery:
    """What hostile institutions of a simulation do: an attack of either kind, with its default parameters.

    Raises:
        ConfigError: There is no such attack; the message names all.
    """
    if name not in ATTACKS + FORGERIES:
        raise _unknown(name, ATTACKS + FORGERIES)
    return attack(name) if name in ATTACKS else forgery(name)


def _unknown(name: str, names: tuple[str, ...]) -> ConfigError:
    near = difflib.get_close_matches(name, names, 1)
    return ConfigError(
        f"there is no attack {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        f"The attacks: {', '.join(names)}.",
    )


def description(chosen: Attack | Forgery) -> str:
    """The first line of an attack's documentation."""
    return (type(chosen).__doc__ or "").strip().partition("\n")[0].replace("``", "")
