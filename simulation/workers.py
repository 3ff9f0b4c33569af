"""Where simulated participants really train: worker processes, each with the data of some of the institutions.

An institution always works in the same process, so its data are loaded once. Inputs and results travel as file paths
and small values.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from participant.work import Job, Outcome, Prepared, Workbench
from simulation.attacks import Poison
from wire import BlobStore, RunPlan

if TYPE_CHECKING:
    from core_model.data.examples import Alteration

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crew:
    """What a worker must know of an institution. ``poison`` is what is done to the data of a hostile one."""

    name: str
    data: str
    allow: frozenset[str]
    poison: Poison = ""


class Workers:
    """The processes.

    Args:
        crews: The institutions.
        processes: How many worker processes; 0 works in this process, one job after the other.
    """

    def __init__(self, crews: list[Crew], processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pools = [
            concurrent.futures.ProcessPoolExecutor(1, mp_context=context) for _ in range(min(processes, len(crews)))
        ]
        self._crews = {crew.name: crew for crew in crews}
        self._place = {crew.name: index % len(self._pools) if self._pools else 0 for index, crew in enumerate(crews)}

    def submit(self, name: str, work: Callable[..., _T], *arguments: Any) -> concurrent.futures.Future[_T]:
        """Have ``work(workbench, *arguments)`` done where this institution's data are."""
        crew = self._crews[name]
        if self._pools:
            return self._pools[self._place[name]].submit(_call, crew, work, arguments)
        future: concurrent.futures.Future[_T] = concurrent.futures.Future()
        try:
            future.set_result(_call(crew, work, arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def data(self, name: str) -> str:
        """The institution's data source."""
        return self._crews[name].data

    def close(self) -> None:
        """End the processes; unfinished work is dropped, and so are the data that this process has loaded."""
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)
        for crew in self._crews.values():
            _benches.pop(crew, None)


_benches: dict[Crew, Workbench] = {}


def _call(crew: Crew, work: Callable[..., _T], arguments: tuple[Any, ...]) -> _T:
    bench = _benches.get(crew)
    if bench is None:
        bench = _benches[crew] = Workbench(crew.name, crew.data, crew.allow, alteration=_alteration(crew.poison))
    return work(bench, *arguments)


def _alteration(poison: Poison) -> Alteration | None:
    if not poison:
        return None
    from simulation.attacks.data import alteration

    return alteration(poison)


def prepare(bench: Workbench, plan: RunPlan) -> Prepared:
    """See ``participant.work.Workbench.prepare``."""
    return bench.prepare(plan.learning, plan)


def perform(bench: Workbench, job: Job, base: Path, blobs: Path) -> Outcome:
    """See ``participant.work.Workbench.perform``."""
    return bench.perform(job, base, BlobStore(blobs), _unheard, _never)


def train_alone(
    bench: Workbench, folder: Path, initial: Path, seed: int, round_number: int, rounds: int
) -> dict[str, float]:
    """One more round of training on the institution's data alone; the scores after the last round, else nothing."""
    return bench.train_alone(folder, initial, seed=seed, round_number=round_number, rounds=rounds)


def backdoor_success(bench: Workbench, learning: dict[str, Any], model: Path) -> tuple[float, int]:
    """The attack success rate of the backdoor at this institution, and the number of pictures that it was tried on."""
    from simulation.attacks.data import Trigger

    judge = Workbench(bench.name, bench.data, bench.allow, alteration=Trigger().trials)
    judge.prepare(learning)
    found = judge.score(model)
    return found.metrics.get("accuracy", math.nan), found.examples


def _unheard(done: int, total: int) -> None:
    """Progress within a task isn't shown: rounds are short here."""


def _never() -> bool:
    return False
