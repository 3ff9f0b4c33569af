"""The federations of `benchmarks.robust_accuracy`: who takes part, what they train, how their updates are merged.

Ten honest institutions divide the 60,000 training pictures of Fashion-MNIST by a draw from Dirichlet(alpha) for each
class. They are the same ten, with the same data, whether somebody attacks or not. Attackers come on top; each has a
part of another draw of the same kind, so that what they train (which some attacks build on) looks like anyone's.

The model is a perceptron of one hidden layer on pictures of 16 x 16 pixels, 26,710 parameters: the usual model of
papers on robust merging at a third of its size, so that a run takes seconds and every rule can meet every attack.
Institutions take 20 steps of SGD with momentum between two merges: updates of several steps are less noisy, and
noise is what attackers hide in.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from simulation.run import simulate
from wire import FederationConfig
from wire.errors import DataError

HONEST: Final = 10
ATTACKERS: Final = 3
SIDE: Final = 16
HIDDEN: Final = 100
CLASSES: Final = 10
CHANCE: Final = 100 / CLASSES
FACTORY: Final = "benchmarks.robust_federation:perceptron"

GROUP: Final = 3
GROUPED: Final = 30
"""Institutions where sums are secure in groups, attackers included."""

NONE: Final = "none"
"""Nobody attacks: the honest institutions are among themselves."""

_CLIP: Final = {"name": "norm-clip", "settings": {"adaptive": True}}
_MIX: Final = {"name": "nnm"}

RULES: Final[Mapping[str, Mapping[str, Any]]] = {
    "mean": {"rule": "mean"},
    "careful": {"rule": "careful"},
    "median": {"rule": "median"},
    "trimmed-mean": {"rule": "trimmed-mean"},
    "geometric-median": {"rule": "geometric-median"},
    "multi-krum": {"rule": "multi-krum"},
    "centered-clipping": {"rule": "centered-clipping"},
    "dnc": {"rule": "dnc"},
    "caf": {"rule": "caf"},
    "norm-clip >> nnm >> trimmed-mean": {"rule": "trimmed-mean", "before": [_CLIP, _MIX]},
    "robust": {"rule": "robust"},
}
"""Sections [merging] by what the table calls them, without f. Bulyan isn't here: it needs n >= 4 f + 3."""

UNDECLARED: Final = ("mean", "careful")
"""Rules that aren't told how many may be hostile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One federation.

    Attributes:
        rule: One of `RULES`.
        attack: The simulator's name of what the attackers do, or `NONE`.
        alpha: Of the Dirichlet split; the smaller, the more institutions differ.
        seed: Of split, initial model and batches.
        rounds: Merges.
        steps: Of each institution between two merges.
        groups: Sums are secure, in groups of `GROUP`, among `GROUPED` institutions.
        attackers: How many there are, and how many the rule is told to stand.
    """

    rule: str
    attack: str
    alpha: float
    seed: int
    rounds: int
    steps: int
    groups: bool = False
    attackers: int = ATTACKERS

    @property
    def honest(self) -> int:
        """Institutions that don't attack."""
        return GROUPED - self.attackers if self.groups else HONEST


@dataclasses.dataclass(frozen=True)
class Run:
    """What a simulation came to.

    Attributes:
        accuracy: Of the last model on the 10,000 test pictures, in per cent; that of guessing where no institution
            could go on training.
        success: Of a backdoor, in per cent; NaN where there is none.
        seconds: Wall time.
    """

    accuracy: float
    success: float
    seconds: float


class Perceptron(nn.Module):
    """One hidden layer of ReLUs on the first channel of pictures [n, 3, side, side]; gives logits [n, classes]."""

    def __init__(self, side: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(side * side, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(torch.relu(self.hidden(pictures[:, 0].flatten(1))))
        return logits


def perceptron(side: int, hidden: int, classes: int) -> nn.Module:
    """[model] factory."""
    return Perceptron(side, hidden, classes)


def configuration(case: Case) -> FederationConfig:
    """The ``federation.toml`` of a case."""
    attacked = case.attack != NONE
    names = {f"honest-{k:02}": _data(k, case.honest, case.alpha, case.seed) for k in range(1, case.honest + 1)}
    if attacked:
        strange = 1_000 + case.seed
        names |= {f"hostile-{k}": _data(k, case.honest, case.alpha, strange) for k in range(1, case.attackers + 1)}
    simulation: dict[str, Any] = {
        "compare_local": False,
        "institutions": [{"name": name, "data": data} for name, data in names.items()],
    }
    merging = dict(RULES[case.rule])
    if case.rule not in UNDECLARED:
        merging["f"] = case.attackers
    tables: dict[str, Any] = {
        "federation": {"name": "clothes"},
        "rounds": {
            "count": case.rounds,
            "min_participants": len(names),
            # An attacker may be turned away; an honest institution isn't.
            "min_updates": case.honest,
            # The first version and the last: scores in between would take longer than the training.
            "evaluate_every": case.rounds,
            "seed": case.seed,
        },
        "aggregation": {"mode": "plain"},
        "merging": merging,
        "model": {
            "kind": "custom",
            "factory": FACTORY,
            "options": {"side": SIDE, "hidden": HIDDEN, "classes": CLASSES},
            "image_size": SIDE,
        },
        "task": {"kind": "classification"},
        "training": {
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "momentum": 0.9,
            "warmup_steps": 0,
            "weight_decay": 1e-4,
            "clip_norm": 0.0,
            "local_steps": case.steps,
            "batch_size": 64,
        },
        "simulation": simulation | ({"attack": case.attack, "attackers": case.attackers} if attacked else {}),
    }
    if case.groups:
        tables["aggregation"] = {"mode": "secure"}
        # The weight cap is near the institutions' 2,000 pictures, so that integers aren't coarse.
        tables["secure_aggregation"] = {"group_size": GROUP, "clip_norm": 10.0, "weight_cap": 4_096}
    return FederationConfig.model_validate(tables)


def simulated(config: FederationConfig) -> Run:
    """Run ``fedloom simulate`` on a configuration, in this process.

    What attackers make of a run is its result, so the errors that they cause aren't logged.
    """
    began = time.perf_counter()
    success = math.nan
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            record = simulate(
                config,
                Path(folder),
                lambda event: None,
                command="benchmarks.robust_accuracy",
                allow=frozenset({FACTORY}),
                in_process=True,
            ).record
    except DataError:
        if config.simulation.attack is None:
            raise
        # After a merge of huge values no institution can train, and the run stands still.
        return Run(CHANCE, success, time.perf_counter() - began)
    finally:
        logging.disable(before)
    hostile = config.simulation.hostile
    scores = [scores["accuracy"] for name, scores in record.final.items() if name not in hostile]
    if record.hostility:
        success = 100 * record.hostility[0].success
    return Run(100 * statistics.mean(scores), success, time.perf_counter() - began)


def _data(part: int, parts: int, alpha: float, seed: int) -> str:
    return f"fashion-mnist:{part}/{parts}?split=dirichlet&alpha={alpha:g}&seed={seed}"
