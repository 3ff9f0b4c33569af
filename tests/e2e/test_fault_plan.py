"""A private federation killed at every row: right before and right after each durable write of a process.

The plan isn't a list of kinds: a run in which nobody dies says what a process writes (``tests.e2e.writes``), and the
plan has a death on either side of each write. After each run everything is recomputed from the disks
(``tests.e2e.replay``).
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc
import pytest

from protos import control_pb2
from tests.e2e.deployment import configuration
from tests.e2e.killing import SITES, Fragile, Nursery
from tests.e2e.replay import check_run
from tests.e2e.writes import bypassed, written
from wire import UnreachableError

pytestmark = pytest.mark.timeout(400)

VICTIM = SITES[1]
COORDINATOR = "coordinator"
ROUNDS = 3

PRIVACY = """
[privacy]
placement = "local"
epsilon = 8.0
delta = 1e-5
noise_multiplier = 1.0
sampling_rate = 0.05
"""


class Planned(Fragile):
    """A private federation of which some processes die around writes of the plan, by number."""

    def __init__(self, folder: Path, nursery: Nursery, initial: Path | None) -> None:
        config = configuration(folder, rounds=ROUNDS, steps=2, min_updates=3, lease_s=60.0, deadline_s=600.0)
        text = config.read_text() + PRIVACY
        if initial is not None:
            text = text.replace("\nlease_s", f'\ninitial_model = "{initial}"\nlease_s')
        config.write_text(text)
        super().__init__(folder, config, nursery)
        self.numbered = {VICTIM, COORDINATOR}

    def run_through(self, plan: dict[str, Iterable[int]]) -> None:
        """Die around these writes, start again each time, and end with nobody running."""
        for name, numbers in plan.items():
            self.deaths[name] = [f"{name}-{number}-{moment}" for number in numbers for moment in ("before", "after")]
        self.start_coordinator()
        for name in self.names:
            self._enrol(name)
        for name in self.names:
            self.start_participant(name, "--once")
        self.until(self._over, "the run ends", 250.0)
        for process in (*self.participants.values(), self.coordinator):
            assert process is not None
        assert self.coordinator is not None
        self.coordinator.kill()
        self.coordinator.wait()
        self.check_logs()

    def _enrol(self, name: str) -> None:
        """Invite a site and have it join; once more, with another token, where the coordinator dies of it."""
        while True:
            try:
                (item,) = self.control().Invite(control_pb2.InviteRequest(names=[name])).invitations
                asyncio.run(self.join_one(name, item.token))
                return
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), error
            except UnreachableError:
                pass
            self.until(lambda: self.revive(COORDINATOR), "the coordinator is dead")

    def start_participant(self, name: str, *arguments: str) -> object:
        """A site that ends with the run."""
        return super().start_participant(name, *(arguments or ("--once",)))

    def _over(self) -> bool:
        if self.revive(COORDINATOR):
            return False
        running = False
        for name in self.names:
            process = self.participants[name]
            if process.poll() == 0:
                continue
            running = True
            self.revive(name)
        return not running and self.finished()

    def check_plan(self) -> None:
        """Each death has happened, unless this run had fewer writes than the one that the plan was made of."""
        for name in self.numbered:
            assert bypassed(self.folder, name) == []
            written_now = len(written(self.folder, name))
            for death in set(self.deaths.get(name, ())) - set(self.died()):
                assert int(death.split("-")[-2]) > written_now, f"{death} hasn't happened"


def rows(folder: Path, name: str) -> set[str]:
    """What kinds of rows a process has written in a run, without what tells one run from another."""
    return {re.sub(r"[0-9a-f]{16,}|\.\d+$", "", line) for line in written(folder, name)}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture(scope="module")
def unkilled(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """A run in which nobody dies: what there is to die at."""
    folder = tmp_path_factory.mktemp("unkilled")
    initial = folder / "initial.safetensors"
    with Planned(folder, nursery, None) as made:
        made.run_once("model", "init", "--config", str(made.config), "--out", str(initial), "--seed", "11")
    with Planned(folder, nursery, initial) as federation:
        import time
        t=time.time()
        federation.run_through({})
        federation.took=time.time()-t
    federation.initial=initial
    return federation


@pytest.mark.parametrize("who", [VICTIM, COORDINATOR])
def test_try(tmp_path, nursery, unkilled, who):
    import time
    print(unkilled.took)
    with Planned(tmp_path, nursery, unkilled.initial) as federation:
        t=time.time()
        federation.run_through({who: range(3, 400, 9)})
        print(who, time.time()-t, len(federation.died()), len(written(tmp_path, who)))
        federation.check_plan()
    check_run(tmp_path, SITES, ROUNDS)
