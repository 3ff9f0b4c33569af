"""Federations whose connections break in every way: the run finishes, and synchronous rounds give the very same model.

Real processes and real TLS, through relays (``relays.Relay``) that know nothing of either. A failure prints the
seed and what was broken when.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from relays import plan

from tests.e2e.deployment import configuration
from tests.e2e.killing import SITES, Nursery
from tests.e2e.networked import Networked
from tests.e2e.replay import check_merges, check_run
from tests.e2e.stages import Stages, outcomes

PRIVACY = """
[privacy]
placement = "local"
epsilon = 8.0
delta = 1e-5
noise_multiplier = 1.0
sampling_rate = 0.05
"""

pytestmark = pytest.mark.timeout(900)

QUICK = ("cut", "reset", "truncate", "truncate", "delay", "slow", "refuse")
"""Faults that both sides hear of, or that pass: nobody has to wait for a deadline to notice them."""

EVERY = (*QUICK, "silence")

EVERY_BYTES = 150_000
"""Between two faults: about half a version of the model. A site's traffic is 400 kB a round."""

LEASE_S = 60.0
"""Longer than a dead connection takes to be noticed, so that nobody is taken for gone."""


def secure(folder: Path, stages: Stages, nursery: Nursery, rounds: int, lease_s: float = LEASE_S) -> Networked:
    made = stages.make(folder, rounds=rounds, lease_s=lease_s, deadline_s=600.0)
    return Networked(folder, made.config, nursery)


def run_through(federation: Networked, kinds: Sequence[str], seed: int, *, faults: int, lasts_s: float) -> None:
    """A whole run over links that break, each so many times."""
    federation.start()
    plans = {
        name: itertools.islice(plan(100 * seed + index, kinds=kinds, every_bytes=EVERY_BYTES, lasts_s=lasts_s), faults)
        for index, name in enumerate(federation.names)
    }
    federation.follow(plans)
    try:
        federation.until(lambda: federation.running() and federation.finished(), f"the run ends (seed {seed})", 800.0)
    except AssertionError as error:
        error.add_note(f"seed {seed}: {federation.said()}")
        raise
    federation.calm()
    assert all(federation.said().values()), "nothing was broken"
    federation.check_logs()


def check_the_same(federation: Networked, stages: Stages, rounds: int) -> None:
    """Everyone is in every sum, has trained once for each round, and the model is the undisturbed one."""
    status = federation.status()
    assert status["version"] == rounds
    for number in range(1, rounds + 1):
        assert outcomes(status, number) == dict.fromkeys(SITES, "merged")
    assert status["model"]["digest"] == stages.simulated(federation, rounds)
    # And one task more, in which everyone scores the last version.
    assert {name: federation.trainings(name) for name in SITES} == dict.fromkeys(SITES, rounds + 1)


def test_links_that_break_all_the_time_change_nothing_of_a_secure_run(
    tmp_path: Path, stages: Stages, nursery: Nursery
) -> None:
    with secure(tmp_path, stages, nursery, 6) as federation:
        run_through(federation, QUICK, 1, faults=8, lasts_s=0.3)
        check_the_same(federation, stages, 6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(EVERY)))
def test_each_fault_changes_nothing_of_a_secure_run(
    tmp_path: Path, stages: Stages, nursery: Nursery, kind: str
) -> None:
    with secure(tmp_path, stages, nursery, 6) as federation:
        # Who goes silent is missed after half a minute, and the next silence would only begin that anew.
        faults, lasts_s = (1, 5.0) if kind == "silence" else (12, 2.0)
        run_through(federation, (kind,), 2, faults=faults, lasts_s=lasts_s)
        check_the_same(federation, stages, 6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_all_faults_together_change_nothing_of_a_secure_run(
    tmp_path: Path, stages: Stages, nursery: Nursery, seed: int
) -> None:
    with secure(tmp_path, stages, nursery, 20) as federation:
        run_through(federation, EVERY, seed, faults=12, lasts_s=1.5)
        check_the_same(federation, stages, 20)


@pytest.mark.slow
def test_a_coordinator_out_of_reach_for_minutes_changes_nothing_of_a_secure_run(
    tmp_path: Path, stages: Stages, nursery: Nursery
) -> None:
    with secure(tmp_path, stages, nursery, 6, lease_s=300.0) as federation:
        federation.start()
        federation.until(lambda: federation.status()["version"] >= 1, "a round is over")
        for relay in federation.relays.values():
            relay.refuse()
        federation.until(
            lambda: {item["state"] for item in federation.status()["participants"]} == {"away"}, "nobody is connected"
        )
        time.sleep(120.0)
        assert federation.running()
        for relay in federation.relays.values():
            relay.accept()
        federation.until(federation.finished, "the run ends")
        federation.check_logs()
        check_the_same(federation, stages, 6)


@pytest.mark.slow
def test_links_that_break_change_nothing_of_what_a_private_run_pays(tmp_path: Path, nursery: Nursery) -> None:
    config = configuration(tmp_path, rounds=6, steps=2, min_updates=3, lease_s=LEASE_S, deadline_s=600.0)
    config.write_text(config.read_text() + PRIVACY)
    with Networked(tmp_path, config, nursery) as federation:
        run_through(federation, QUICK, 5, faults=20, lasts_s=0.3)
        end(federation)
    check_run(tmp_path, SITES, 6)


def asynchronous(folder: Path, nursery: Nursery, versions: int) -> Networked:
    pace = 'mode = "asynchronous"\nbuffer_size = 2'
    settings = {"rounds": versions, "steps": 2, "min_updates": 2, "lease_s": LEASE_S, "deadline_s": 600.0}
    config = configuration(folder, aggregation="plain", pace=pace, **settings)
    return Networked(folder, config, nursery)


def end(federation: Networked) -> None:
    """Kill everyone, so that nobody writes while the disks are read."""
    for process in (*federation.participants.values(), federation.coordinator):
        assert process is not None
        federation.kill(process)


@pytest.mark.slow
@pytest.mark.parametrize(("kinds", "seed"), [(QUICK, 6), (EVERY, 7)])
def test_asynchronous_rounds_over_links_that_break_merge_what_their_log_says(
    tmp_path: Path, nursery: Nursery, kinds: Sequence[str], seed: int
) -> None:
    with asynchronous(tmp_path, nursery, 40) as federation:
        run_through(federation, kinds, seed, faults=20, lasts_s=1.0)
        status = federation.status()
        end(federation)
        assert status["version"] == 40
        assert check_merges(tmp_path) == 40
        merged = Counter(
            seat["name"]
            for item in status["history"]
            if item["version"]
            for seat in item["participants"]
            if seat["outcome"] == "merged"
        )
        assert set(merged) == set(SITES), "nobody is left out"
        for name in SITES:
            # Beside what was merged: the score of the last version, and what was in training when that was made.
            assert merged[name] <= federation.trainings(name) <= merged[name] + 3
