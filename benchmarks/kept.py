"""Runs that a benchmark has made already: it may be stopped, and goes on where it was."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

C = TypeVar("C")
"""What is run: a federation's configuration, or another model or dataclass whose text tells it from all others."""

R = TypeVar("R")
"""What a run came to: a dataclass of numbers."""


class Kept(Generic[C, R]):
    """Runs by their configuration, in a file of JSON lines.

    Args:
        path: The file; without one nothing outlives this object.
        simulated: Runs a configuration; a function of a module, where several processes are to run it.
        read: Makes a run of its JSON values.
    """

    def __init__(self, path: Path | None, simulated: Callable[[C], R], read: Callable[..., R]) -> None:
        self._path = path
        self._simulated = simulated
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self._runs: dict[str, R] = {}
        for line in lines:
            table = json.loads(line)
            key = table.pop("configuration")
            self._runs[key] = read(**table)

    def run(self, config: C) -> R:
        """The run of this very configuration, kept or new."""
        key = _key(config)
        if key not in self._runs:
            self._keep(key, self._simulated(config))
        return self._runs[key]

    def run_all(self, configs: Iterable[C], processes: int) -> None:
        """Run what isn't kept yet, several at a time.

        Args:
            configs: In the order in which they begin.
            processes: That many at the same time; 1 runs them in this process.
        """
        missing = {_key(config): config for config in configs if _key(config) not in self._runs}
        if processes == 1 or len(missing) < 2:
            for config in missing.values():
                self.run(config)
            return
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
            pending = {pool.submit(self._simulated, config): key for key, config in missing.items()}
            for future in concurrent.futures.as_completed(pending):
                self._keep(pending[future], future.result())

    def _keep(self, key: str, found: R) -> None:
        self._runs[key] = found
        if self._path is not None:
            values: Any = found
            with self._path.open("a") as file:
                file.write(json.dumps({"configuration": key, **dataclasses.asdict(values)}) + "\n")


def _key(config: object) -> str:
    text = config.model_dump_json() if isinstance(config, BaseModel) else repr(config)
    return hashlib.sha256(text.encode()).hexdigest()
