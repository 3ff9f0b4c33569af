"""A deployed federation with hostile sites in it: separate processes, TLS, a coordinator killed on the way."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.deployment import Deployment, configuration, data_of

pytestmark = pytest.mark.timeout(240)

SITES = [f"site-{index}" for index in range(5)]
HOSTILE = {"site-3": "sign-flip", "site-4": "huge"}
ROUNDS = 3


def test_a_robust_federation_learns_with_two_of_five_hostile_and_tells_what_became_of_them(tmp_path: Path) -> None:
    config = configuration(
        tmp_path,
        participants=5,
        rounds=ROUNDS,
        steps=30,
        aggregation="plain",
        merging='rule = "robust"\nf = 2',
    )
    with Deployment(tmp_path, config) as federation:
        federation.start_coordinator()
        federation.fix_ports()
        federation.join(*SITES, data={name: data_of(index, 5) for index, name in enumerate(SITES)}, allow_plain=True)
        for name in SITES:
            federation.start_participant(name, attack=HOSTILE.get(name, ""))
        # Killed in the second round: what it has seen of the updates' dot products is lost, and formed anew.
        while federation.status()["version"] < 1:
            time.sleep(0.2)
        assert federation.coordinator is not None
        federation.kill(federation.coordinator)
        federation.start_coordinator()
        status = federation.wait("finished")
        shown = federation.fedloom("coordinator", "status", "--config", str(federation.config)).stdout
    assert status["version"] == ROUNDS
    assert "of 5 updates it stands 2 hostile ones" in status["guarantee"].lower()
    assert "2 hostile ones tolerated" in shown
    merges = [item["merge"] for item in status["history"] if item.get("merge")]
    assert len(merges) == ROUNDS
    for merge in merges:
        updates = {item["participant"]: item for item in merge["updates"]}
        assert set(updates) == set(SITES)
        assert updates["site-4"]["verdict"] in ("clipped", "rejected")
        assert updates["site-4"]["norm"] > 1e30
        assert updates["site-4"]["weight"] < 1e-20
    last = status["history"][-1]["participants"]
    assert _accuracy(last) > 0.5


def _accuracy(seats: list[dict[str, Any]]) -> float:
    return statistics.fmean(seat["evaluation"]["accuracy"] for seat in seats if seat["name"] not in HOSTILE)
