"""Sums of groups between real processes, one of them hostile and one killed: what is stood, shown, and recomputed."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.e2e.deployment import configuration
from tests.e2e.killing import Fragile, Nursery

# Six atoms of three: one may go, and five groups are left, with which one that is spoilt can be told apart.
NAMES = tuple(f"site-{index:02}" for index in range(18))
HOSTILE = NAMES[-1]  # the simulator's attackers are the last ones
VICTIM = NAMES[4]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def federation(tmp_path: Path, nursery: Nursery) -> Iterator[Fragile]:
    config = configuration(
        tmp_path,
        participants=len(NAMES),
        rounds=2,
        steps=2,
        lease_s=15.0,
        min_updates=15,
        merging='rule = "robust"\nf = 1',
    )
    first = tmp_path / "initial.safetensors"
    text = config.read_text().replace("\nlease_s", f'\nmetrics_port = 0\ninitial_model = "{first}"\nlease_s')
    for index, name in reversed(list(enumerate(NAMES))):
        text = text.replace(f'"site-{index}"', f'"{name}"')
    config.write_text(text)
    with Fragile(tmp_path, config, nursery, NAMES) as made:
        made.run_once("model", "init", "--config", str(config), "--out", str(first), "--seed", "11")
        yield made


def groups_of(merge: dict[str, Any]) -> dict[frozenset[str], dict[str, Any]]:
    return {frozenset(item["participant"].split("+")): item for item in merge["updates"]}


@pytest.mark.parametrize("attack", ["huge", "sign-flip"])
def test_a_hostile_site_spoils_its_group_and_a_killed_one_takes_its_atom_along(
    federation: Fragile, attack: str
) -> None:
    federation.attacks[HOSTILE] = attack
    federation.deaths[VICTIM] = ["trained-2-after"]
    federation.start()
    federation.until(federation.finished, "the run ends", 300.0)
    assert federation.died() == {"trained-2-after"}
    federation.check_logs()
    status = federation.status()
    first, second, scored = status["history"]
    assert status["version"] == 2

    # What it promises, and among how many each site hides.
    assert "Of the means of 6 groups it stands 1 hostile one, whatever is in them." in status["guarantee"]
    assert "a site hides among the 3 or more of its atom" in status["guarantee"]
    assert "of groups of at least 3 participants" in status["visibility"]

    # All six groups in the first round, and the same ones without the victim's in the second.
    before, after = groups_of(first["merge"]), groups_of(second["merge"])
    assert len(before) == 6 and {len(group) for group in before} == {3}
    assert frozenset().union(*before) == set(NAMES)
    atom = next(group for group in before if VICTIM in group)
    assert set(after) == set(before) - {atom}
    outcomes = {seat["name"]: seat["outcome"] for seat in second["participants"]}
    assert outcomes == {name: "late" if name == VICTIM else "sat out" if name in atom else "merged" for name in NAMES}
    assert {seat["outcome"] for seat in scored["participants"]} == {"scored"}
    for merge, found in ((first["merge"], before), (second["merge"], after)):
        assert (merge["tolerated"], merge["remaining"]) == (1, 1)
        spoilt = next(item for group, item in found.items() if HOSTILE in group)
        honest = [item for group, item in found.items() if HOSTILE not in group]
        if attack == "huge":
            assert spoilt["verdict"] == "rejected" and spoilt["weight"] == 0.0
            assert "times the median" in spoilt["reason"]
            assert spoilt["norm"] > 20.0 * max(item["norm"] for item in honest)
        assert sum(item["verdict"] != "rejected" for item in honest) >= len(honest) - 1

    # Monitoring tells the same.
    with urllib.request.urlopen(federation.listening["metrics"], timeout=10.0) as reply:
        samples = [sample for family in parse(reply.read().decode()) for sample in family.samples]
    verdicts = {
        sample.labels["participant"]: sample.labels["verdict"]
        for sample in samples
        if sample.name == "fedloom_update_verdict"
    }
    assert verdicts == {item["participant"]: item["verdict"] for item in second["merge"]["updates"]}

    # Anybody can work out the sums again: the operator, and a site.
    place = ["--config", str(federation.config)]
    verified = federation.lines("coordinator", "verify-log", *place)[0]
    recomputed = {item["round"]: {frozenset(group) for group in item["groups"]} for item in verified["recomputed"]}
    assert verified["lines"] == 3
    assert recomputed[2] == recomputed[3] == set(after)
    audited = federation.lines("participant", "audit", "2", "--home", str(federation.home(NAMES[0])))[0]
    assert (audited["mine"], audited["model"]) == (True, status["model"]["digest"])
    assert {frozenset(group["participants"]) for group in audited["groups"]} == set(after)
    mate = min(atom - {VICTIM})
    assert not federation.lines("participant", "audit", "2", "--home", str(federation.home(mate)))[0]["mine"]

    # With everyone there it is the simulation, byte for byte.
    simulated = federation.run_once(
        "simulate", *place, "--out", "report", "--workers", "1", "--attack", attack, "--attackers", "1"
    )
    digests = {item["round"]: item["digest"] for item in simulated if item["event"] == "round" and item["version"]}
    assert first["model"] == digests[1]

    shown = federation.fedloom("coordinator", "status", *place).stdout
    assert "5 groups kept as they were, 1 hostile one tolerated." in " ".join(shown.split())
    assert f"15 merged; {', '.join(sorted(atom - {VICTIM}))} sat out; {VICTIM} late" in " ".join(shown.split())
    heard = federation.fedloom("participant", "audit", "2", "--home", str(federation.home(NAMES[0]))).stdout
    assert "the sums of 5 groups are right, bit for bit." in heard
    assert "the 5 sums over site-" in federation.fedloom("coordinator", "verify-log", *place).stdout
