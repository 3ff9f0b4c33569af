"""A participant's actual work: from a task and the site's data to a file with an update.

The workbench is the only place of this package that loads torch, and it does so when the first plan is prepared. It
runs in a thread of the daemon or in a worker process of the simulator; both get the same bytes for the same job.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from participant.privacy import History
from privacy.accounting.events import Event
from privacy.mechanisms.plan import PrivacyPlan
from wire import BlobStore, RunPlan

if TYPE_CHECKING:
    from core_model import GalleryRow
    from core_model.data.examples import Alteration
    from core_model.tasks.base import Evaluation
    from participant.training import LocalTrainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A task as the site keeps it. ``base_digest`` names the checkpoint to start from.

    ``history`` is what the ledger knows of a run whose noise or clipping norm follows what it releases.
    """

    task_id: str
    run_id: str
    train: bool
    round: int
    rounds: int
    attempt: int
    base_version: int
    base_digest: bytes
    base_size: int
    seed: int
    evaluate: bool
    history: History | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a site tells the coordinator about itself: the hash of its model's manifest and its number of records.

    ``privacy`` stays at the site: what its part in the run costs its records.
    """

    manifest_hash: bytes
    examples: int
    privacy: PrivacyPlan | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A job's result. ``digest`` and ``size`` name the update's blob; empty and 0 where nothing was trained.

    ``released`` is what training has cost, where noise is added at the record.
    """

    digest: bytes = b""
    size: int = 0
    examples: int
    metrics: dict[str, float]
    evaluation: dict[str, float]
    released: tuple[Event, ...] = ()


class Workbench:
    """The site's model and data for one plan.

    Args:
        name: The participant's name; it enters the training seed.
        data: The site's data source, as given to ``fedloom participant join --data``.
        allow: Entry points (``module:function``) that the site's policy lets a plan name.
        alteration: Done to the data first; for simulated sites that are hostile.
    """

    def __init__(self, name: str, data: str, allow: frozenset[str], *, alteration: Alteration | None = None) -> None:
        self.name = name
        self.data = data
        self.allow = allow
        self._alteration = alteration
        self._trainer: LocalTrainer | None = None
        self._lock = threading.Lock()

    def prepare(self, learning: dict[str, Any], run: RunPlan | None = None) -> Prepared:
        """Build the plan's model and open the data.

        Args:
            learning: The plan's tables on model, task and training.
            run: The plan itself, where training is private.

        Raises:
            Exception: an error with ``code`` and ``hint`` where the plan's learning tables, the policy or the data
            don't fit.
        """
        from core_model.config import LearningConfig
        from participant.training import LocalTrainer
        from wire import validate

        config = validate(LearningConfig, learning, "the run's plan")
        with self._lock:
            self._trainer = LocalTrainer(
                config, self.data, name=self.name, allow=self.allow, run=run, alteration=self._alteration
            )
            return Prepared(
                manifest_hash=self._trainer.manifest_hash,
                examples=self._trainer.examples,
                privacy=self._trainer.privacy,
            )

    def perform(
        self,
        job: Job,
        base: Path,
        blobs: BlobStore,
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
    ) -> Outcome:
        """Do the job on the checkpoint file ``base`` and leave the update in ``blobs``."""
        if self._trainer is None:
            raise RuntimeError("prepare() comes before perform()")
        with self._lock:
            vector = self._trainer.read(base)
            evaluation = self._trainer.evaluate(vector) if job.evaluate else None
            scores = evaluation.metrics if evaluation else {}
            if not job.train:
                return Outcome(examples=evaluation.examples if evaluation else 0, metrics={}, evaluation=scores)
            result = self._trainer.train(
                vector,
                seed=job.seed,
                round_number=job.round,
                rounds=job.rounds,
                progress=progress,
                cancelled=cancelled,
                history=job.history,
            )
        content = result.content
        with blobs.writer(content.nbytes) as writer:
            writer.write(content)
            digest = writer.commit(sync=False)  # a lost update is trained again; only the journal must be on the disk
        return Outcome(
            digest=digest,
            size=content.nbytes,
            examples=result.examples,
            metrics=result.metrics,
            evaluation=scores,
            released=result.released,
        )

    def score(self, checkpoint: Path) -> Evaluation:
        """What a checkpoint reaches on this site's held-out records."""
        if self._trainer is None:
            raise RuntimeError("prepare() comes before score()")
        return self._trainer.evaluate(self._trainer.read(checkpoint))

    def train_alone(
        self, folder: Path, initial: Path, *, seed: int, round_number: int, rounds: int
    ) -> dict[str, float]:
        """What this site reaches without the federation: the same rounds of training, on its own data only.

        Args:
            folder: Where the site's own model is kept between rounds.
            initial: The checkpoint to begin with.
            seed: As in a task.
            round_number: From 1.
            rounds: How many there are.

        Returns:
            The scores after the last round; before it, nothing.
        """
        import numpy as np

        if self._trainer is None:
            raise RuntimeError("prepare() comes before train_alone()")
        kept = folder / f"{self.name}.alone.f32"
        vector = self._trainer.read(initial) if round_number == 1 else np.fromfile(kept, dtype="<f4")
        result = self._trainer.train(
            vector,
            seed=seed,
            round_number=round_number,
            rounds=rounds,
            progress=lambda done, total: None,
            cancelled=lambda: False,
        )
        vector = vector + result.update
        if round_number == rounds:
            return self._trainer.evaluate(vector).metrics
        vector.tofile(kept)
        return {}

    def gallery(self, model: Path, count: int) -> list[GalleryRow]:
        """Examples of retrieval on this site's data, for the report; nothing where the task isn't retrieval."""
        if self._trainer is None:
            raise RuntimeError("prepare() comes before gallery()")
        return self._trainer.gallery(model, count)
