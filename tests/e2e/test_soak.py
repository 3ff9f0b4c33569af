"""Two hours of a federation whose processes are killed and whose links break: right models, flat memory.

``make soak`` runs it; ``FEDLOOM_SOAK_MINUTES`` sets its length and ``FEDLOOM_SOAK_SEED`` what is broken. The first half
is a series of runs, by turns synchronous and secure, asynchronous and plain, asynchronous and secure, in which
processes are killed and links break. In the second half links break and nobody is killed, so that what a process leaks
stays in it: one run of each kind.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from relays import plan

from coordinator.auditing import verify_log
from coordinator.serving import BLOBS, DATABASE
from coordinator.store import open_store
from protos import control_pb2
from tests.e2e.deployment import configuration
from tests.e2e.killing import Nursery
from tests.e2e.networked import Networked
from tests.e2e.replay import check_merges, check_sums
from tests.e2e.test_network_faults import EVERY

MINUTES = float(os.environ.get("FEDLOOM_SOAK_MINUTES", "120"))
SEED = int(os.environ.get("FEDLOOM_SOAK_SEED", "1"))

PHASES = 6
"""Runs of the first half."""

KILL_EVERY_S = 15.0
SAMPLE_EVERY_S = 1.0

GROWTH_MB = 48.0
"""What a process may grow by in its last run, by a line fitted to its memory behind the first third."""

VERSION_MB = 0.02
"""And for each version made in it: a coordinator remembers who was in which round (some 11 kB, four sites)."""

OPEN_FILES = 150
SITE_MB = 32.0
STATE_MB = 64.0
"""Beside the versions of the model, all of which are kept."""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(60 * MINUTES + 1800)]


@dataclasses.dataclass(frozen=True)
class Kind:
    """Of a run."""

    asynchronous: bool
    secure: bool

    def __str__(self) -> str:
        pace = "asynchronous" if self.asynchronous else "synchronous"
        return f"{pace}, {'secure' if self.secure else 'plain'}"


KINDS = (
    Kind(asynchronous=False, secure=True),
    Kind(asynchronous=True, secure=False),
    Kind(asynchronous=True, secure=True),
)


@dataclasses.dataclass
class Sample:
    """What a process uses at a time."""

    at_s: float
    memory_mb: float
    files: int


class Soak(Networked):
    """A federation, and what its processes use."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        settings: dict[str, Any] = {"rounds": 100_000, "steps": 20, "lease_s": 60.0, "deadline_s": 600.0}
        config = configuration(folder, **settings, min_updates=3, pace='mode = "synchronous"')
        super().__init__(folder, config, nursery)
        self.numbered = {"coordinator"}
        self.chance = random.Random(SEED)
        self.kills = 0
        self.samples: dict[str, list[Sample]] = {}
        self.began_s = time.monotonic()
        self.done: list[dict[str, Any]] = []

    def turn(self, kind: Kind) -> None:
        """Begin the next run, of this kind, in place of the last."""
        text = self.config.read_text()
        for first, other, switched in (
            ('mode = "secure"', 'mode = "plain"', not kind.secure),
            ('mode = "synchronous"', 'mode = "asynchronous"\nbuffer_size = 3', kind.asynchronous),
        ):
            text = text.replace(other, first)
            text = text.replace(first, other) if switched else text
        self.config.write_text(text)
        self.start_coordinator("--new-run")

    def phase(self, seconds: float, kind: Kind, *, kills: bool) -> None:
        """One run: for so long, then stopped, and recomputed from what is on the disk."""
        self.samples = {}
        end_s = time.monotonic() + seconds
        kill_s = time.monotonic() + KILL_EVERY_S
        while time.monotonic() < end_s:
            time.sleep(SAMPLE_EVERY_S)
            assert self.running()
            self.sample()
            if kills and time.monotonic() >= kill_s:
                self.kill_one()
                kill_s = time.monotonic() + KILL_EVERY_S * self.chance.uniform(0.2, 1.8)
        self.until(lambda: self.status()["version"] >= 1, "a version is made", 600.0)
        self.until(self._stopped, "the run is stopped")
        assert self.coordinator is not None
        self.kill(self.coordinator)
        made = check_sums(self.folder) if kind.secure else check_merges(self.folder)
        verify_log(self.folder / "state")
        self.check_logs()
        used = self.check_disks()
        self.done.append({"run": str(kind), "seconds": round(seconds), "kills": kills, "versions": made, **used})
        for path in (self.folder / "kept").iterdir():
            path.unlink()

    def _stopped(self) -> bool:
        if self.status()["state"] == "":
            return False
        self.control().Stop(control_pb2.StopRequest(), timeout=10.0)
        return True

    def kill_one(self) -> None:
        """Kill somebody, and start it again."""
        name = self.chance.choice(("coordinator", *self.names))
        process = self.coordinator if name == "coordinator" else self.participants[name]
        assert process is not None
        self.kill(process)
        self.kills += 1
        if name == "coordinator":
            self.start_coordinator()
        else:
            self.start_participant(name)

    def sample(self) -> None:
        everyone = {"coordinator": self.coordinator, **self.participants}
        for name, process in everyone.items():
            assert process is not None
            place = Path(f"/proc/{process.pid}")
            pages = int((place / "statm").read_text().split()[1])
            memory_mb = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            taken = Sample(time.monotonic(), memory_mb, len(list((place / "fd").iterdir())))
            self.samples.setdefault(name, []).append(taken)

    def check_disks(self) -> dict[str, float]:
        """What is on the disks is what has to be: all versions, and of everything else little."""
        state = self.folder / "state"
        store = open_store(state / DATABASE)
        try:
            versions = sum(item.size for run in store.runs() for item in store.checkpoints(run.run_id)) / 1e6
        finally:
            store.close()
        kept = {path.name for path in (self.folder / "kept").iterdir()}
        others = [path for path in (state / BLOBS).iterdir() if path.name not in kept]
        used = size_mb(state) - sum(path.stat().st_size for path in (state / BLOBS).iterdir()) / 1e6
        left = [path.name for path in others if path.suffix == ".part"]
        assert len(left) <= 2 * len(self.names), left
        assert used <= STATE_MB + versions
        sites = {name: size_mb(self.home(name)) for name in self.names}
        assert max(sites.values()) <= SITE_MB, sites
        return {"versions_mb": round(versions, 1), "state_else_mb": round(used, 1), "site_mb": max(sites.values())}

    def check_flat(self) -> dict[str, dict[str, float]]:
        """Nobody's memory grows, and nobody's open files."""
        found = {}
        for name, samples in self.samples.items():
            last = samples[len(samples) // 3 :]
            at_s = np.array([item.at_s for item in last])
            slope = float(np.polyfit(at_s - at_s[0], [item.memory_mb for item in last], 1)[0])
            grown = slope * float(at_s[-1] - at_s[0])
            files = max(item.files for item in last)
            found[name] = {
                "memory_mb": round(last[-1].memory_mb, 1),
                "grown_mb": round(grown, 2),
                "mb_per_hour": round(3600 * slope, 2),
                "files": files,
            }
            assert grown <= GROWTH_MB + VERSION_MB * self.done[-1]["versions"], (name, found[name])
            assert files <= OPEN_FILES, (name, found[name])
        return found


def size_mb(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


def test_a_federation_that_is_killed_and_cut_off_for_hours_stays_right_and_small(
    tmp_path: Path, nursery: Nursery
) -> None:
    with Soak(tmp_path, nursery) as soak:
        soak.start()
        soak.follow(
            {
                name: plan(1_000 * SEED + index, kinds=EVERY, every_bytes=3_000_000, lasts_s=3.0)
                for index, name in enumerate(soak.names)
            }
        )
        half_s = 60.0 * MINUTES / 2
        flat: dict[str, Any] = {}
        try:
            for number in range(PHASES):
                if number:
                    soak.turn(KINDS[number % len(KINDS)])
                soak.phase(half_s / PHASES, KINDS[number % len(KINDS)], kills=True)
            for kind in reversed(KINDS):
                soak.turn(kind)
                soak.phase(half_s / len(KINDS), kind, kills=False)
                flat[str(kind)] = soak.check_flat()
        finally:
            faults = {name: len(said) for name, said in soak.said().items()}
            report = {"seed": SEED, "kills": soak.kills, "faults": faults, "runs": soak.done, "last_runs": flat}
            print("\n" + json.dumps(report, indent=1))
        assert soak.kills > 0 and all(faults.values())
