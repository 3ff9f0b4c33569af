"""Attacks on a federation, from the literature and from practice, for simulations and for tests of real daemons.

An :class:`Attack` is a frozen dataclass of parameters; called with a :class:`Situation` (what the attackers know in a
round) it gives what they hand in. ``attack("alie")`` finds one by name. A :class:`Forgery` breaks the protocol instead:
a forged example count, a replayed update, a wrong size or type; ``forgery("replay")``.

    >>> import numpy as np
    >>> honest = np.float32([[1.0, 2.0], [3.0, 2.0]])
    >>> attack("ipm", scale=1.0)(Situation(honest=honest, attackers=1)).tolist()
    [[-2.0, -2.0]]
"""

from simulation.attacks.base import Attack, Poison, Rule, Situation, plain_mean
from simulation.attacks.directions import (
    Alie,
    InnerProduct,
    OptimisedAlie,
    OptimisedInnerProduct,
    SignFlip,
    alie_z,
)
from simulation.attacks.distances import Mimic, MinMax, MinSum, mimicked
from simulation.attacks.history import RelocatedOrthogonal
from simulation.attacks.protocol import ForgedCount, Forgery, Replay, Submission, WrongSize, WrongType
from simulation.attacks.registry import ATTACKS, FORGERIES, attack, behaviour, description, forgery, settings_of
from simulation.attacks.search import harm, most_harmful
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

__all__ = [
    "ATTACKS",
    "FORGERIES",
    "Alie",
    "Attack",
    "Backdoor",
    "Constant",
    "Disjoint",
    "ForgedCount",
    "Forgery",
    "FreeRider",
    "Gaussian",
    "InnerProduct",
    "Mimic",
    "MinMax",
    "MinSum",
    "ModelReplacement",
    "OneCoordinate",
    "OptimisedAlie",
    "OptimisedInnerProduct",
    "Poison",
    "RelocatedOrthogonal",
    "Replay",
    "Rule",
    "SignFlip",
    "Situation",
    "Submission",
    "Sybil",
    "TrainedOnFlippedLabels",
    "WrongSize",
    "WrongType",
    "alie_z",
    "attack",
    "behaviour",
    "description",
    "forgery",
    "harm",
    "mimicked",
    "most_harmful",
    "plain_mean",
    "settings_of",
]
