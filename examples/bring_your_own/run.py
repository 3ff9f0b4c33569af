"""Train the example without daemons: eight rounds of plain averaging over two sites.

python -m examples.bring_your_own.run
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from core_model import initial_checkpoint, read_learning
from participant.training import LocalTrainer

HERE = Path(__file__).parent
MODULE = "examples.bring_your_own.sensors"
# Each site says which code a federation may make it run; without this nothing is imported.
ALLOW = frozenset(f"{MODULE}:{name}" for name in ("model", "loss", "press", "mill"))


def main(rounds: int = 8) -> dict[str, dict[str, float]]:
    """Train, print each round's score, and return the last scores by site."""
    config = read_learning(HERE / "learning.toml")
    sites = [LocalTrainer(config, f"{MODULE}:{name}", name=name, allow=ALLOW) for name in ("press", "mill")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        initial_checkpoint(config, 0, path, allow=ALLOW)
        version = sites[0].read(path)
    scores: dict[str, dict[str, float]] = {}
    for number in range(1, rounds + 1):
        updates = [
            site.train(
                version,
                seed=0,
                round_number=number,
                rounds=rounds,
                progress=lambda done, total: None,
                cancelled=lambda: False,
            ).update
            for site in sites
        ]
        version = version + np.mean(updates, axis=0, dtype=np.float32)
        scores = {name: site.evaluate(version).metrics for name, site in zip(("press", "mill"), sites, strict=True)}
        print(number, {name: round(score["mean_absolute_error"], 3) for name, score in scores.items()})
    return scores


if __name__ == "__main__":
    main()
