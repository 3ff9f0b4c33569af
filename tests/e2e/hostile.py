"""A site's daemon whose operator is hostile: ``python -m tests.e2e.hostile ATTACK participant run ...``.

Everything is the real daemon but for the last step of its training: the update that it hands in is the attack's. An
attack knows what the site knows, its own data and the models it was sent.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fedloom
from participant import work
from participant.work import Job, Outcome
from simulation.attacks import Situation, attack
from wire import BlobStore


class HostileBench(work.Workbench):
    """Trains honestly, then lies."""

    name_of_attack = ""

    def perform(
        self,
        job: Job,
        base: Path,
        blobs: BlobStore,
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
    ) -> Outcome:
        """The attack's update in place of the trained one."""
        outcome = super().perform(job, base, blobs, progress, cancelled)
        if not job.train:
            return outcome
        own = np.fromfile(blobs.path(outcome.digest), "<f4")[None]
        situation = Situation(honest=own, attackers=1, own=own, seed=job.round)
        content = attack(self.name_of_attack)(situation)[0].astype("<f4").tobytes()
        with blobs.writer(len(content)) as writer:
            writer.write(content)
            digest = writer.commit(sync=False)
        return dataclasses.replace(outcome, digest=digest, size=len(content))


def turn(attack: str) -> None:
    """Make the site that this process will run hostile."""
    HostileBench.name_of_attack = attack
    work.Workbench = HostileBench  # type: ignore[misc]


if __name__ == "__main__":
    turn(sys.argv.pop(1))
    fedloom.main()
